"""Operators on streams inside one process: read ahead, filter, map, drop repeats, slow down and route.

They work on any async iterable, a `workers.Channel` included, under the rules of `workers.streams.windows`: a failure
comes out where the stream is consumed, after everything that was complete before it; a stream owns and closes its
source; nothing is read before the first ``anext``. The functions that are given may be plain or async.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Hashable, Mapping
from datetime import timedelta
from fractions import Fraction
from typing import Final, TypeVar, overload

from workers.core.token_bucket import ALWAYS_FULL, TokenBucket
from workers.streams.calls import value_of
from workers.streams.channel import Channel, raisable
from workers.streams.pump import pumped
from workers.streams.stream import OwnedSource, Stream
from workers.times import NS_PER_SECOND, check_timedelta, timedelta_to_ns

__all__ = ["buffer_async", "deduplicate", "filter_async", "map_async", "router", "throttle"]

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_ROUTE: Final = "default"
BURSTS_PER_SECOND: Final = 100
"""A default burst is a hundredth of a second's worth: the event loop's timers are hardly finer."""


# -- buffer, filter, map -----------------------------------------------------------------------------------------------


def buffer_async(source: AsyncIterable[T], capacity: int) -> Stream[T]:
    """The same items, read up to ``capacity`` ahead of the reader, so that a slow source and a slow reader overlap.

    Reading begins with the first ``anext``. Raises ``ValueError`` where the capacity is less than 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; expected 1 or more")
    return Stream(_items(source), ahead=capacity)


async def _items(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            yield item


def filter_async(source: AsyncIterable[T], predicate: Callable[[T], object]) -> Stream[T]:
    """The items for which ``predicate`` (plain or async) is true, in their order."""
    return Stream(_filtered(source, predicate))


async def _filtered(source: AsyncIterable[T], predicate: Callable[[T], object]) -> AsyncGenerator[T, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            if await value_of(predicate(item)):
                yield item


@overload
def map_async(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R]], *, concurrency: int = 1) -> Stream[R]: ...
@overload
def map_async(source: AsyncIterable[T], fn: Callable[[T], R], *, concurrency: int = 1) -> Stream[R]: ...
def map_async(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R], *, concurrency: int = 1) -> Stream[R]:
    """``fn`` (plain or async) of each item, in the items' order, with up to ``concurrency`` calls at a time.

    With more than one, results that are not read yet count as calls, so memory is bounded too. A call that fails raises
    in its turn, after the results before it; calls that still run are cancelled when the stream ends or is closed.
    Raises ``ValueError`` where ``concurrency`` is less than 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; expected 1 or more")
    return Stream(_mapped(source, fn) if concurrency == 1 else _mapped_concurrently(source, fn, concurrency))


async def _mapped(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R]) -> AsyncGenerator[R, None]:
    async with OwnedSource(source) as items:
        async for item in items:
            yield await value_of(fn(item))


async def _mapped_concurrently(
    source: AsyncIterable[T], fn: Callable[[T], Awaitable[R] | R], concurrency: int
) -> AsyncGenerator[R, None]:
    running: set[asyncio.Task[R]] = set()

    async def call(item: T) -> R:
        return await value_of(fn(item))

    def begin(item: T) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(call(item))
        running.add(task)
        return task

    try:
        # One less in the channel: the call whose result is awaited here is out of it already.
        async with pumped(source, concurrency - 1, begin) as tasks:
            async for task in tasks:
                result = await task
                running.discard(task)
                yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


# -- deduplicate ------------------------------------------------------------------------------------------------------


def deduplicate(
    source: AsyncIterable[T],
    *,
    key_fn: Callable[[T], Hashable | Awaitable[Hashable]],
    ttl: timedelta,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Stream[T]:
    """The items whose key was not seen in the last ``ttl``; the others are dropped.

    The time counts from a key's first item, by arrival: repeats don't prolong it, and an item ``ttl`` or more after
    that first one goes through and starts anew. So memory holds no more keys than arrive within one ``ttl``. ``clock``
    gives nanoseconds; should it go back, it counts as standing still.

    Raises ``TypeError`` where ``ttl`` is no timedelta, ``ValueError`` where it is not positive. What ``source``,
    ``key_fn`` or ``clock`` raise is raised to the reader, and so is a ``TypeError`` for a key that can't be hashed.
    """
    check_timedelta("ttl", ttl)
    if ttl <= timedelta(0):
        raise ValueError(f"ttl is {ttl}; expected more than zero")
    return Stream(_deduplicated(source, key_fn, timedelta_to_ns(ttl), clock))


async def _deduplicated(
    source: AsyncIterable[T],
    key_fn: Callable[[T], Hashable | Awaitable[Hashable]],
    ttl_ns: int,
    clock: Callable[[], int],
) -> AsyncGenerator[T, None]:
    forget_at_ns: dict[Hashable, int] = {}  # in the order of arrival, so also of these times
    now_ns = -(2**63)
    async with OwnedSource(source) as items:
        async for item in items:
            key = await value_of(key_fn(item))
            now_ns = max(now_ns, clock())
            while forget_at_ns:
                oldest = next(iter(forget_at_ns))
                if forget_at_ns[oldest] > now_ns:
                    break
                del forget_at_ns[oldest]
            if key not in forget_at_ns:
                forget_at_ns[key] = now_ns + ttl_ns
                yield item


# -- throttle ---------------------------------------------------------------------------------------------------------


def throttle(
    source: AsyncIterable[T],
    *,
    rate_limit: float,
    burst: int | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Stream[T]:
    """The same items, at most ``rate_limit`` a second; those that come faster wait, none is dropped.

    A token bucket of ``burst`` tokens: in any time ``t`` at most ``burst + rate_limit * t`` items come out, of which
    ``burst`` may come at once. By default that is a hundredth of a second's worth and at least 1: up to 100 items a
    second are evenly spaced. While an item waits nothing is read, so the source feels the limit. ``clock`` gives
    nanoseconds, ``sleep`` takes seconds.

    Raises ``ValueError`` where ``rate_limit`` is not positive and finite or ``burst`` is less than 1. What ``source``
    raises is raised to the reader.
    """
    if not 0 < rate_limit < math.inf:
        raise ValueError(f"rate_limit is {rate_limit}; expected items per second, more than 0 and finite")
    if burst is None:
        burst = max(1, int(rate_limit) // BURSTS_PER_SECOND)
    if burst < 1:
        raise ValueError(f"burst is {burst}; expected 1 or more")
    spacing_ns = math.ceil(NS_PER_SECOND / Fraction(str(rate_limit)))  # rounded up: never above the limit
    return Stream(_throttled(source, TokenBucket(spacing_ns, burst * spacing_ns), clock, sleep))


async def _throttled(
    source: AsyncIterable[T],
    bucket: TokenBucket,
    clock: Callable[[], int],
    sleep: Callable[[float], Awaitable[object]],
) -> AsyncGenerator[T, None]:
    full_at_ns = ALWAYS_FULL
    async with OwnedSource(source) as items:
        async for item in items:
            while (wait_ns := bucket.wait(full_at_ns, clock())) > 0:  # a timer may end a little early
                await sleep(wait_ns / NS_PER_SECOND)
            full_at_ns = bucket.taken(full_at_ns, clock())
            yield item


# -- router -----------------------------------------------------------------------------------------------------------


async def router(
    source: AsyncIterable[T],
    routes: Mapping[str, Channel[T]],
    *,
    route_key: Callable[[T], str | Awaitable[str]],
) -> None:
    """Put each item into the channel that ``route_key`` names, until the source ends; then close all channels.

    A name that is not in ``routes`` means ``routes["default"]``, where there is one. A full channel makes the router
    wait, and with it the source and the other routes: **read all channels, concurrently**.

    Whatever goes wrong, ``source`` or ``route_key`` raising, an unknown name (``KeyError``), a channel that was closed
    by its reader (`ChannelClosed`) or a cancelled router, is raised here *and* in the readers of all channels, after
    what they hold: no reader mistakes it for the end. A ``CancelledError`` of the source's own is raised as the cause
    of a `WorkersError`: it is not the router that was cancelled.
    """
    try:
        async with OwnedSource(source) as items:
            async for item in items:
                name = await value_of(route_key(item))
                channel = routes.get(name) or routes.get(DEFAULT_ROUTE)
                if channel is None:
                    known = ", ".join(map(repr, routes)) or "none at all"
                    raise KeyError(f"route_key returned {name!r}; the routes are {known}, and there is no 'default'")
                await channel.put(item)
    except BaseException as error:
        for channel in routes.values():
            channel.fail(error)
        if isinstance(error, asyncio.CancelledError) and not _is_cancelled():
            raise raisable(error) from error
        raise
    for channel in routes.values():
        channel.close()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
