"""Work at the cluster that goes on through its outages: done again and again, ever later, until it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from aiokafka.errors import KafkaError

from workers.errors import BrokerError, WorkersError

__all__ = ["OUTAGE", "Backoff", "keep_trying"]

OUTAGE: Final = (WorkersError, KafkaError, OSError, TimeoutError)
"""What a cluster that can't be used raises, in one way or another."""

_FIRST_S: Final = 0.2


class Backoff:
    """How long to wait before the next attempt: ``next_s``, doubled each time, ``most_s`` at most."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self.next_s = _FIRST_S

    def reset(self) -> None:
        """Begin again with a short one: something has worked."""
        self.next_s = _FIRST_S

    async def wait(self) -> None:
        """Wait that long."""
        waiting_s, self.next_s = self.next_s, min(2 * self.next_s, self._most_s)
        await asyncio.sleep(waiting_s)


async def keep_trying(
    attempt: Callable[[Backoff], Awaitable[None]], on_failure: Callable[[Exception], None], *, most_s: float
) -> NoReturn:
    """Make attempts until cancelled; each gets the backoff, to reset it once it works, or say when to come again.

    An outage is told to ``on_failure``. So is a cancellation that is not this task's: one of the client's own, leaked
    out of a request. Anything else is raised.
    """
    backoff = Backoff(most_s)
    while True:
        try:
            await attempt(backoff)
        except OUTAGE as error:
            on_failure(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            on_failure(BrokerError("the Kafka client ended a request"))
        await backoff.wait()
