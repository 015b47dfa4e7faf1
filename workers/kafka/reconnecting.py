"""A task that works through outages: what ends its work is told, and after a rest the work begins again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final

from workers.errors import BrokerError
from workers.kafka.backoff import Backoff
from workers.kafka.errors import OUTAGE

__all__ = ["ReconnectingTask"]

FIRST_REST_S: Final = 0.2
_CLOSE_TIMEOUT_S: Final = 10.0


class ReconnectingTask:
    """Does ``work`` while it is open, again and again: with fresh clients, as those that an outage hit are of no use.

        async with ReconnectingTask(self._follow, self._failed, name="feedback-listener"):
            ...

    ``failed`` is told each outage. Rests grow from 0.2 s to ``longest_rest_s`` while the work ends sooner than that.
    What else ``work`` raises ends the task.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        failed: Callable[[Exception], None],
        *,
        name: str,
        longest_rest_s: float = 2.0,
    ) -> None:
        self._work, self._failed = work, failed
        self._name, self._longest_rest_s = name, longest_rest_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReconnectingTask:
        self._task = asyncio.create_task(self._run(), name=self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)

    async def _run(self) -> None:
        backoff = Backoff(FIRST_REST_S, self._longest_rest_s)
        while True:
            began_s = time.monotonic()
            try:
                await self._work()
            except OUTAGE as error:
                self._failed(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._failed(BrokerError("the Kafka client ended a request"))  # its own cancellation leaked out
            if time.monotonic() - began_s > self._longest_rest_s:
                backoff.reset()
            await asyncio.sleep(backoff.grow())
