"""Work that goes on through outages: what is tried again, what is raised, and how long it waits in between."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError

from workers.errors import BrokerError
from workers.kafka.outages import Backoff, keep_trying


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, which here take no time."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("workers.kafka.outages.asyncio.sleep", note)
    return waits


class EndError(Exception):
    """Ends a test's attempts."""


async def test_an_outage_is_told_and_tried_again_ever_later(slept: list[float]) -> None:
    told: list[Exception] = []

    async def attempt(backoff: Backoff) -> None:
        if len(slept) == 4:
            raise EndError
        raise KafkaConnectionError("away")

    with pytest.raises(EndError):
        await keep_trying(attempt, told.append, most_s=1.0)
    assert slept == [0.2, 0.4, 0.8, 1.0]
    assert [type(error) for error in told] == [KafkaConnectionError] * 4


async def test_what_worked_begins_with_a_short_wait_again(slept: list[float]) -> None:
    async def attempt(backoff: Backoff) -> None:
        if len(slept) == 2:
            backoff.reset()
        if len(slept) == 3:
            raise EndError

    with pytest.raises(EndError):
        await keep_trying(attempt, lambda error: None, most_s=5.0)
    assert slept == [0.2, 0.4, 0.2]


async def test_a_cancellation_of_the_clients_own_is_an_outage(slept: list[float]) -> None:
    told: list[Exception] = []

    async def attempt(backoff: Backoff) -> None:
        if told:
            raise EndError
        raise asyncio.CancelledError

    with pytest.raises(EndError):
        await keep_trying(attempt, told.append, most_s=5.0)
    assert isinstance(told[0], BrokerError)


async def test_who_is_cancelled_stops() -> None:
    begun = asyncio.Event()

    async def attempt(backoff: Backoff) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(keep_trying(attempt, lambda error: None, most_s=5.0))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
