"""Tasks that wait for one another, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["wait_to_be_woken", "wake_all", "wake_one"]


def wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    """Wake the one that has waited longest; those that were cancelled are skipped."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


def wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    """Wake everybody who waits now."""
    while waiters:
        wake_one(waiters)


async def wait_to_be_woken(waiters: deque[asyncio.Future[None]], is_ready: Callable[[], bool]) -> None:
    """Wait to be woken. Cancelled after having been woken, it wakes the next: no wake-up may end with a dead task."""
    waiter = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        if not waiter.cancelled() and is_ready():
            wake_one(waiters)
        with suppress(ValueError):  # whoever woke it, or skipped it as cancelled, has taken it out
            waiters.remove(waiter)
        raise
