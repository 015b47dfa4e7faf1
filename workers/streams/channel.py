"""Bounded channels between tasks of one event loop.

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
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from types import TracebackType
from typing import Final, Generic, Literal, TypeVar

from workers.errors import ChannelClosed, WorkersError
from workers.streams.calls import fitted
from workers.streams.waiters import wait_to_be_woken, wake_all, wake_one

__all__ = ["DRAINED", "Channel", "Drained", "Pipe", "Watermark", "raisable"]

T = TypeVar("T")


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
        self._on_high = fitted(on_high, "on_high", 1)
        self._on_low = fitted(on_low, "on_low", 1)
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
        wake_one(self._getters)
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
        wake_all(self._putters)
        wake_all(self._getters)

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
            await wait_to_be_woken(self._putters, lambda: not self._is_full())
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
            await wait_to_be_woken(self._getters, lambda: bool(self._items))
        item = self._items.popleft()
        callback = self._report_fall()
        if callback is not None:
            await self._hold(item, callback)
        wake_one(self._putters)
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
            wake_one(self._getters)
            self._report_rise()
            raise
        finally:
            self._returnable -= 1
            if self._closed:
                wake_all(self._getters)  # they couldn't know whether the channel was empty

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
        wake_one(self._getters)


def raisable(error: BaseException) -> BaseException:
    """The error, or another caused by it where raising it in a reader would mean something else than a failure."""
    if not isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit | asyncio.CancelledError):
        return error
    wrapped = WorkersError(f"the stream failed: {type(error).__name__} was raised by its source or a callback")
    wrapped.__cause__ = error
    return wrapped
