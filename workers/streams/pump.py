"""A source read by a task of its own, so that waiting for its next item can end early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final, Literal, TypeVar

from workers.streams.channel import Drained, Pipe
from workers.streams.stream import OwnedSource

__all__ = ["TIMED_OUT", "TimedOut", "pumped", "take_within"]

T = TypeVar("T")
V = TypeVar("V")


class TimedOut(Enum):
    """What `take_within` returns when nothing came in time."""

    TIMED_OUT = "timed out"


TIMED_OUT: Final = TimedOut.TIMED_OUT


@asynccontextmanager
async def pumped(source: AsyncIterable[T], capacity: int, make: Callable[[T], V]) -> AsyncIterator[Pipe[V]]:
    """A channel with ``make(item)`` for each item of the source, fed by a task that ends with the block.

    So waiting for an item can end early, as it must to watch the time, without cancelling the source half-way.
    """
    channel: Pipe[V] = Pipe(capacity)
    pump = asyncio.get_running_loop().create_task(_pump(source, channel, make), name="workers.streams.windows")

    def on_done(_: asyncio.Task[None]) -> None:
        if not channel.closed:  # cancelled by somebody else before its first step: nobody else would tell the reader
            channel.fail(asyncio.CancelledError())

    pump.add_done_callback(on_done)
    try:
        yield channel
    finally:
        channel.close()
        pump.cancel()
        await asyncio.wait({pump})
        if not pump.cancelled():
            pump.result()  # raises what the closing of the source raised


async def _pump(source: AsyncIterable[T], channel: Pipe[V], make: Callable[[T], V]) -> None:
    try:
        async with OwnedSource(source) as items:
            while True:
                await channel.room()  # first, so that nothing lies between an item's arrival and its being in
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                await channel.put(make(item))
    except BaseException as error:
        if channel.closed:  # nobody reads it any more
            raise
        channel.fail(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    else:
        channel.close()


async def take_within(
    channel: Pipe[V], timeout_s: float | None
) -> V | Literal[Drained.DRAINED] | Literal[TimedOut.TIMED_OUT]:
    """The channel's next item, its end, or that neither came in time. What the channel failed with is raised."""
    if timeout_s is None or len(channel):
        return await channel.take()
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await channel.take()
    except TimeoutError:
        if timer.expired():
            return TIMED_OUT
        raise  # the source's own
