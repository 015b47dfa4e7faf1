"""A stream split by key over several bounded lanes."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from typing import Generic, Literal, TypeVar

from workers.core.partitioning import PartitioningSpec, lane_for
from workers.streams.calls import fitted
from workers.streams.channel import Channel, Pipe, Watermark
from workers.streams.stream import OwnedSource, current_task

__all__ = ["PartitionedChannel", "hash_partition"]

T = TypeVar("T")
K = TypeVar("K")


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
        self._user_callbacks = {"on_high": fitted(on_high, "on_high", 2), "on_low": fitted(on_low, "on_low", 2)}
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
        if self._pump is not None and self._pump is not current_task():
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
        if self._pump is not None and self._pump is not current_task():
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
