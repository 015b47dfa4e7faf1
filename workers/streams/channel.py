"""Bounded channels between tasks of one event loop, and a stream split by key over several of them.

A `Channel` holds at most ``capacity`` items; a put waits while it is full, and so does whoever feeds it. Its level is
reported at two marks, once per crossing:

    items
    capacity ─────────────────────────────────────  put waits
    high     ──────●on_high─────────────────●on_high
                  ╱  ╲      ╱╲             ╱
    low      ────╱────╲────╱──╲──●on_low──╱───────
                                           (after a high only)

The rules that hold for every use here:

* What was put is got, once, in order; after ``close`` what is left is still got, and only then comes the end.
* A failure (of a source, a key function, a callback) comes out of the *reading* side, after what was put before it.
  The end of an iteration therefore always means that the stream is complete.
* Cancelling a put that waits for room adds nothing; cancelling a get, or the ``anext`` of a stream, takes nothing.

Nothing here is safe to use from several threads.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import operator
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from types import TracebackType
from typing import Final, Generic, Literal, TypeVar

from workers.core.partitioning import PartitioningSpec, lane_for
from workers.errors import ChannelClosed, WorkersError

__all__ = ["Channel", "PartitionedChannel", "Stream", "Watermark", "hash_partition"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
K = TypeVar("K")


class Drained(Enum):
    """What `Pipe.take` returns once the channel is closed and empty."""

    DRAINED = "drained"


DRAINED: Final = Drained.DRAINED


@dataclass(frozen=True, slots=True)
class Watermark:
    """The levels of a channel that are reported, as shares of its capacity.

    Raises ``ValueError`` unless ``0 <= low < high <= 1``.
    """

    high: float = 0.75
    low: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"high is {self.high} and low {self.low}; expected shares of the capacity with 0 <= low < high <= 1"
            )


class Channel(Generic[T]):
    """A bounded first-in-first-out channel, for any number of producers and consumers.

    ``on_high`` is called when a put brings the channel to ``high * capacity`` items or more, ``on_low`` when a get
    brings it to ``low * capacity`` or fewer after that: once per crossing. They are called with the channel, or with
    nothing where they require no argument (``on_high=event.set``), and may be plain or async; an async one has ended
    when the put or get that set it off returns. One that raises fails the channel (see `fail`).

    Raises ``ValueError`` where the capacity is less than 1, ``TypeError`` where a callback requires more than one
    argument.
    """

    def __init__(
        self,
        capacity: int,
        watermark: Watermark | None = None,
        on_high: Callable[..., object] | None = None,
        on_low: Callable[..., object] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected 1 or more")
        levels = watermark if watermark is not None else Watermark()
        self._capacity = capacity
        # Exactly what was written: in floats 0.55 * 100 is more than 55.
        self._high_count = math.ceil(Fraction(str(levels.high)) * capacity)
        self._low_count = math.floor(Fraction(str(levels.low)) * capacity)
        self._on_high = _fitted(on_high, "on_high", 1)
        self._on_low = _fitted(on_low, "on_low", 1)
        self._is_high = False
        self._items: deque[T] = deque()
        self._returnable = 0  # items taken by a get whose on_low still runs: if that get is cancelled they come back
        self._getters: deque[asyncio.Future[None]] = deque()
        self._putters: deque[asyncio.Future[None]] = deque()
        self._callbacks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._error: BaseException | None = None
        self._error_traceback: TracebackType | None = None

    def __repr__(self) -> str:
        state = f"failed: {self._error!r}" if self._error is not None else "closed" if self._closed else "open"
        return f"<Channel {len(self._items)}/{self._capacity} {state}>"

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return True  # an empty channel is still a channel

    def qsize(self) -> int:
        """How many items wait to be got; the same as ``len``."""
        return len(self._items)

    @property
    def capacity(self) -> int:
        """How many items it holds at most."""
        return self._capacity

    @property
    def closed(self) -> bool:
        """Whether it takes no more items."""
        return self._closed

    async def put(self, item: T) -> None:
        """Add an item, after waiting for room.

        Raises `ChannelClosed` where the channel is closed, or is closed while this waits; the item was not added.
        Cancelled while it waits for room, it adds nothing either; cancelled while an async ``on_high`` runs, the item
        is in and the callback runs on.
        """
        if self._closed or self._is_full():
            await self._room()
        self._items.append(item)
        _wake_one(self._getters)
        callback = self._report_rise()
        if callback is not None:
            await asyncio.wait({callback})

    async def get(self) -> T:
        """Take the oldest item, after waiting for one.

        Raises `ChannelClosed` once the channel is closed and empty, or the error it failed with. Cancelled, it takes
        nothing.
        """
        item = await self._take()
        if item is DRAINED:
            raise ChannelClosed(f"the channel (capacity {self._capacity}) is closed and empty")
        return item

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._take()
        if item is DRAINED:
            raise StopAsyncIteration
        return item

    def close(self) -> None:
        """Take no more items: puts raise, gets go on until the channel is empty. Closing again changes nothing."""
        self._closed = True
        _wake_all(self._putters)
        _wake_all(self._getters)

    def fail(self, error: BaseException) -> None:
        """Close, and raise ``error`` instead of `ChannelClosed` in every get after what is left; the first one counts.

        An exception that means something else to the reader than a failure (the end of an iteration, its own
        cancellation) is raised as the cause of a `WorkersError`.
        """
        if self._error is None:
            self._error = raisable(error)
            self._error_traceback = self._error.__traceback__
        self.close()

    async def _room(self) -> None:
        while not self._closed and self._is_full():
            await _wait(self._putters, lambda: not self._is_full())
        if not self._closed:
            return
        if self._error is None:
            raise ChannelClosed(f"can't put: the channel (capacity {self._capacity}) is closed")
        raise ChannelClosed(f"can't put: the channel failed with {self._error!r}") from self._error

    async def _take(self) -> T | Literal[Drained.DRAINED]:
        while not self._items:
            if self._closed and not self._returnable:
                if self._error is not None:
                    raise self._error.with_traceback(self._error_traceback)  # or it would grow with every get
                return DRAINED
            await _wait(self._getters, lambda: bool(self._items))
        item = self._items.popleft()
        callback = self._report_fall()
        if callback is not None:
            await self._hold(item, callback)
        _wake_one(self._putters)
        return item

    def _is_full(self) -> bool:
        return len(self._items) + self._returnable >= self._capacity

    async def _hold(self, item: T, callback: asyncio.Task[None]) -> None:
        """Wait for the callback of a get that has its item; cancelled, the item goes back to the front."""
        self._returnable += 1
        try:
            await asyncio.wait({callback})
        except asyncio.CancelledError:
            self._items.appendleft(item)
            _wake_one(self._getters)
            self._report_rise()
            raise
        finally:
            self._returnable -= 1
            if self._closed:
                _wake_all(self._getters)  # they couldn't know whether the channel was empty

    def _report_rise(self) -> asyncio.Task[None] | None:
        if self._is_high or len(self._items) < self._high_count:
            return None
        self._is_high = True
        return self._call(self._on_high)

    def _report_fall(self) -> asyncio.Task[None] | None:
        if not self._is_high or len(self._items) > self._low_count:
            return None
        self._is_high = False
        return self._call(self._on_low)

    def _call(self, callback: Callable[..., object] | None) -> asyncio.Task[None] | None:
        """Call a callback; the task that finishes an async one. What it raises fails the channel."""
        if callback is None:
            return None
        try:
            result = callback(self)
        except Exception as error:
            self.fail(error)
            return None
        if not inspect.isawaitable(result):
            return None
        # A task of its own: cancelling the put or get must not cancel the callback half-way.
        task = asyncio.get_running_loop().create_task(self._finish(result))
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)
        return task

    async def _finish(self, result: Awaitable[object]) -> None:
        try:
            await result
        except (Exception, asyncio.CancelledError) as error:
            self.fail(error)


class Pipe(Channel[T]):
    """A channel with one producer, as a task that reads a source uses it; not part of the public interface."""

    async def room(self) -> None:
        """Wait until the next put won't have to; raises as `put` does.

        With several producers, one that is told of the room and doesn't use it would keep the others waiting.
        """
        await self._room()

    async def take(self) -> T | Literal[Drained.DRAINED]:
        """As `get`, but the end is a value: a `ChannelClosed` from here is what the channel *failed* with."""
        return await self._take()

    def add_beyond(self, item: T) -> None:
        """Add an item whatever the level: the one that a producer has in hand when it is stopped."""
        self._items.append(item)
        _wake_one(self._getters)


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


def _wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        _wake_one(waiters)


async def _wait(waiters: deque[asyncio.Future[None]], is_ready: Callable[[], bool]) -> None:
    """Wait to be woken. Cancelled after having been woken, it wakes the next: no wake-up may end with a dead task."""
    waiter = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        if not waiter.cancelled() and is_ready():
            _wake_one(waiters)
        with suppress(ValueError):  # whoever woke it, or skipped it as cancelled, has taken it out
            waiters.remove(waiter)
        raise


def raisable(error: BaseException) -> BaseException:
    """The error, or another caused by it where raising it in a reader would mean something else than a failure."""
    if not isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit | asyncio.CancelledError):
        return error
    wrapped = WorkersError(f"the stream failed: {type(error).__name__} was raised by its source or a callback")
    wrapped.__cause__ = error
    return wrapped


def _fitted(callback: Callable[..., object] | None, name: str, offered: int) -> Callable[..., object] | None:
    """The callback, to be called with ``offered`` arguments, of which it gets as many as it requires.

    Arguments with defaults are left alone: ``lambda lane=lane: ...`` is how a loop binds its variable.
    """
    if callback is None:
        return None
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return callback  # some builtins have no signature
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return callback
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > offered:
        raise TypeError(f"{name} requires {len(required)} arguments; it is called with {offered} at most")
    wanted = len(required)
    return lambda *arguments: callback(*arguments[:wanted])


class _Line(Pipe[T]):
    """Between the task that makes a stream's items and whoever reads them.

    An item is made when a reader waits for it and none is there, or as long as fewer than ``ahead`` are. A reader that
    is cancelled leaves what was begun for it to the next.
    """

    def __init__(self, ahead: int) -> None:
        super().__init__(max(ahead, 1))
        self._ahead = ahead
        self._waiting = 0
        self._makers: deque[asyncio.Future[None]] = deque()

    async def next(self) -> T | Literal[Drained.DRAINED]:
        """The next item, or the end; raises what the line failed with, after the items before it."""
        self._waiting += 1
        try:
            if self.is_wanting():
                _wake_one(self._makers)
            return await self._take()
        finally:
            self._waiting -= 1
            if self._ahead and self.is_wanting():
                _wake_one(self._makers)

    async def wanting(self) -> bool:
        """Wait until an item is to be made; False once none will be."""
        while not self._closed and not self.is_wanting():
            await _wait(self._makers, self.is_wanting)
        return not self._closed

    def is_wanting(self) -> bool:
        """Whether another item is to be made."""
        return len(self._items) < max(self._ahead, self._waiting)

    def abandon(self, runner: asyncio.Task[None]) -> None:
        """Nobody reads any more: end the task. A reader that waits all the same is told so."""
        if self._waiting:
            self.fail(WorkersError("the stream was closed while an anext waited for its next item"))
        self.close()
        runner.cancel()


_runners: Final[set[asyncio.Task[None]]] = set()
"""The tasks of all streams: an event loop holds its tasks weakly, and these must outlive their readers to clean up."""


class Stream(AsyncIterator[T_co]):
    """The items of a source, one by one as they are asked for: an async iterator that a timeout does not end.

        stream = map_async(source, fn)
        try:
            item = await asyncio.wait_for(anext(stream), 0.5)
        except TimeoutError:
            ...  # nothing came yet; the next anext goes on where this one was

    Source and functions run in a task of the stream's own, which begins with the first ``anext`` and ends with the
    stream. So a cancelled ``anext`` cancels nothing but itself: what it waited for is given to the next one, once, in
    order. Several may wait at a time, and share the items. What the source or a function raises is raised by every
    ``anext`` from there on; a ``CancelledError`` of theirs as the cause of a `WorkersError`, because it is not the
    reader that was cancelled.

    To stop early, `aclose` it, or let go of it: either ends the task and closes the source. Not for use by several
    event loops or threads.

    An item costs two turns of the event loop, some 20 µs, because nothing is read before it is asked for. A chain of
    streams pays that once, and one that ends in `workers.buffer_async`, which reads ahead, hardly at all.
    """

    def __init__(self, items: AsyncGenerator[T_co, None], ahead: int = 0) -> None:
        self._items = items
        self._line: _Line[T_co] = _Line(ahead)
        self._lazy = not ahead
        self._runner: asyncio.Task[None] | None = None
        self._ended = False
        self._owned = False  # by another stream, in whose task it is read

    async def __anext__(self) -> T_co:
        if self._owned:
            raise RuntimeError("this stream is the source of another one, which reads it; read that")
        if self._ended:
            raise StopAsyncIteration
        if self._runner is None:
            self._runner = _start(self._items, self._line)
        item = await self._line.next()
        if item is DRAINED:
            self._ended = True
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the stream and close its source; what was not read is dropped. Closing again changes nothing.

        Raises what the closing of the source raised, and ``RuntimeError`` where a function of the stream calls it,
        which would have to wait for itself. An ``anext`` that waits elsewhere raises a `WorkersError`.
        """
        runner = self._runner
        if runner is not None and runner is _current_task():
            raise RuntimeError("a stream can't be closed by its own source or functions; raise an exception instead")
        already, self._ended = self._ended, True
        if runner is None:
            await self._items.aclose()
            return
        if not runner.done():
            self._line.abandon(runner)
            await asyncio.wait({runner})
        if not already and not runner.cancelled():
            runner.result()  # raises what the closing of the source raised

    def __del__(self) -> None:
        runner = getattr(self, "_runner", None)  # missing where the constructor failed
        if runner is None or runner.done():
            return
        loop = runner.get_loop()
        if not loop.is_closed():  # the garbage collector may run in any thread
            loop.call_soon_threadsafe(self._line.abandon, runner)

    def _handed_over(self) -> AsyncIterator[T_co]:
        """This stream for the one that will own it: while nothing was read, its items without a task of their own."""
        if self._runner is not None or self._ended or self._owned or not self._lazy:
            return self
        self._owned = True
        return self._items


def _start(items: AsyncGenerator[T, None], line: _Line[T]) -> asyncio.Task[None]:
    runner = asyncio.get_running_loop().create_task(_make(items, line), name="workers.stream")

    def on_done(_: asyncio.Task[None]) -> None:
        _runners.discard(runner)
        if not line.closed:  # cancelled by somebody else before its first step: nobody else would tell the reader
            line.fail(asyncio.CancelledError())

    _runners.add(runner)
    runner.add_done_callback(on_done)
    return runner


async def _make(items: AsyncGenerator[T, None], line: _Line[T]) -> None:
    try:
        try:
            while await line.wanting():
                line.add_beyond(await anext(items))
        except StopAsyncIteration:
            pass  # by a generator that is the end, and nothing else: what it raises of that kind is a RuntimeError
        finally:
            await items.aclose()
    except BaseException as error:
        if line.closed:  # nobody reads it any more
            raise
        line.fail(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    else:
        line.close()


class OwnedSource(Generic[T]):
    """A source while it is read: an async context manager that closes it at the end, where it can be closed.

    A stream owns what it reads: a generator that holds a connection must let go of it when the stream is closed, not
    when the garbage collector comes by.
    """

    def __init__(self, source: AsyncIterable[T]) -> None:
        self._source = source

    async def __aenter__(self) -> AsyncIterator[T]:
        self._iterator = aiter(self._source)
        if isinstance(self._iterator, Stream):
            self._iterator = self._iterator._handed_over()
        return self._iterator

    async def __aexit__(self, *_: object) -> None:
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


class _Lane(Pipe[T]):
    """A lane of a `PartitionedChannel`: when one fails, all do, because the source can't go on without it."""

    def __init__(self, owner: PartitionedChannel[T], index: int) -> None:
        spec = owner.spec
        super().__init__(
            spec.capacity,
            Watermark(spec.high_watermark, spec.low_watermark),
            owner.lane_callback("on_high", index),
            owner.lane_callback("on_low", index),
        )
        self._owner = owner

    def fail(self, error: BaseException) -> None:
        self._owner.fail(error)

    def fail_alone(self, error: BaseException) -> None:
        super().fail(error)


class PartitionedChannel(Generic[T]):
    """A stream split over lanes by key, as `hash_partition` returns it.

    One task reads the source and puts each item into its lane. A full lane makes it wait, and with it every other
    lane: that is the backpressure, so **read all partitions, concurrently**. Reading them one after the other waits
    forever as soon as a lane that nobody reads yet is full.

    An ``async with`` block closes it at the end.
    """

    def __init__(
        self,
        source: AsyncIterable[T],
        lane_of: Callable[[T], int],
        spec: PartitioningSpec,
        on_high: Callable[..., object] | None = None,
        on_low: Callable[..., object] | None = None,
    ) -> None:
        self.spec = spec
        self._source = source
        self._lane_of = lane_of
        self._user_callbacks = {"on_high": _fitted(on_high, "on_high", 2), "on_low": _fitted(on_low, "on_low", 2)}
        self._lanes = [_Lane(self, index) for index in range(spec.partitions)]
        self._in_hand: tuple[_Lane[T], T] | None = None  # read from the source, waiting for room
        self._pump: asyncio.Task[None] | None = None
        self._ended = False
        self._cleanup_error: BaseException | None = None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # made outside a loop: the first reader starts it
        self._start()

    def partitions(self) -> range:
        """The partitions' indices, ``range(spec.partitions)``: iterate it, or take its ``len``."""
        return range(len(self._lanes))

    def stream_partition(self, idx: int) -> AsyncIterator[T]:
        """The items of one partition, in the order of the source. Raises ``IndexError`` where there is no such one.

        Iterators of the same partition share its items. To stop reading, by ``break``, ``aclose`` or cancellation,
        discards nothing: the items wait in the lane for another ``stream_partition(idx)``, and once the lane is full
        the source waits too. To give up the stream as a whole, `close` it.
        """
        if idx not in self.partitions():
            raise IndexError(f"partition is {idx}; expected 0 to {len(self._lanes) - 1}")
        return _LaneStream(self, self._lanes[idx])

    def close(self) -> Awaitable[None]:
        """Stop reading the source, at once; what was read already can still be got, then the streams end.

        Await the returned object to wait until the source is closed as well, and to have what its closing raised.
        Closing again changes nothing.
        """
        self._shut(None)
        return _Closing(self._pump, lambda: self._cleanup_error)

    async def __aenter__(self) -> PartitionedChannel[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def fail(self, error: BaseException) -> None:
        """Stop reading the source and raise ``error`` in the readers of every partition, after what was read."""
        self._shut(error)

    def lane_callback(self, name: Literal["on_high", "on_low"], index: int) -> Callable[[Channel[T]], object] | None:
        """The user's callback as a lane calls it."""
        callback = self._user_callbacks[name]
        return None if callback is None else lambda channel: callback(index, channel)

    def _start(self) -> None:
        if self._pump is None and not self._ended:
            self._pump = asyncio.get_running_loop().create_task(self._run(), name="workers.hash_partition")
            self._pump.add_done_callback(self._on_pump_done)

    def _on_pump_done(self, pump: asyncio.Task[None]) -> None:
        if not self._ended:  # cancelled by somebody else before its first step: nobody else would tell the readers
            self._shut(asyncio.CancelledError())

    def _shut(self, error: BaseException | None) -> None:
        self._ended = True
        if self._in_hand is not None:
            lane, item = self._in_hand
            self._in_hand = None
            lane.add_beyond(item)
        for lane in self._lanes:
            lane.close() if error is None else lane.fail_alone(error)
        if self._pump is not None and self._pump is not _current_task():
            self._pump.cancel()

    async def _run(self) -> None:
        try:
            async with OwnedSource(self._source) as items:
                async for item in items:
                    await self._deliver(item)
                    if self._ended:  # by a callback that raised, or closed us, within this very task
                        break
        except BaseException as error:
            stopped = self._ended and isinstance(error, asyncio.CancelledError)
            if self._ended and not stopped:
                self._cleanup_error = error
            if not stopped:
                self._shut(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            self._shut(None)

    async def _deliver(self, item: T) -> None:
        lane = self._lanes[self._lane_of(item)]
        self._in_hand = (lane, item)
        await lane.room()
        self._in_hand = None
        await lane.put(item)


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # closed outside a loop


class _LaneStream(AsyncIterator[T]):
    """Not a generator: a generator that is cancelled, by a timeout around its ``anext``, ends, as if complete."""

    def __init__(self, owner: PartitionedChannel[T], lane: Channel[T]) -> None:
        self._owner = owner
        self._lane: Channel[T] | None = lane

    async def __anext__(self) -> T:
        if self._lane is None:
            raise StopAsyncIteration
        self._owner._start()
        return await self._lane.__anext__()

    async def aclose(self) -> None:
        """Stop this iterator; the partition's items stay where they are."""
        self._lane = None


class _Closing(Awaitable[None]):
    """Waits for a pump that was told to end. Unlike a coroutine it need not be awaited."""

    def __init__(self, pump: asyncio.Task[None] | None, cleanup_error: Callable[[], BaseException | None]) -> None:
        self._pump = pump
        self._cleanup_error = cleanup_error

    def __await__(self) -> Generator[object, None, None]:
        if self._pump is not None and self._pump is not _current_task():
            yield from asyncio.wait({self._pump}).__await__()
        error = self._cleanup_error()
        if error is not None:
            raise error


def hash_partition(
    source: AsyncIterable[T],
    *,
    get_key: Callable[[T], K],
    spec: PartitioningSpec | None = None,
    hasher: Callable[[K], int] | None = None,
    on_high: Callable[..., object] | None = None,
    on_low: Callable[..., object] | None = None,
) -> PartitionedChannel[T]:
    """Split a stream by key over ``spec.partitions`` bounded lanes; one key's items stay together and in order.

    The lane is ``mmh3.hash(key, signed=False) % partitions`` (a key that is neither str nor bytes is hashed by its
    ``str()``), or ``hasher(key) % partitions``. ``on_high`` and ``on_low`` report a lane's level as `Channel` does,
    called with the partition's index and its channel, or with only the first of these or nothing where they require no
    more.

    Reading the source begins at once within a running event loop, else with the first reader. What the source,
    ``get_key``, ``hasher`` or a callback raises is raised in the readers of every partition, after the items read
    before it. The source is closed with the stream.
    """
    chosen = spec if spec is not None else PartitioningSpec()
    lanes = chosen.partitions

    def lane_of(item: T) -> int:
        try:
            key = get_key(item)
            return lane_for(key, lanes) if hasher is None else operator.index(hasher(key)) % lanes
        except Exception as error:
            error.add_note(f"while hash_partition looked for the lane of {_excerpt(item)}")
            raise

    return PartitionedChannel(source, lane_of, chosen, on_high, on_low)


def _excerpt(item: object) -> str:
    text = repr(item)
    return text if len(text) <= 120 else text[:120] + "…"
