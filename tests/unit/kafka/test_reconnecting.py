"""A task that works through outages: what it tells, how it rests, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from workers.errors import BrokerError
from workers.kafka import reconnecting
from workers.kafka.errors import KafkaError
from workers.kafka.reconnecting import ReconnectingTask


class Cluster:
    """Raises what it is told to, one after the other, and is well after that."""

    def __init__(self, *outages: BaseException) -> None:
        self.outages = list(outages)
        self.attempts = 0
        self.well = asyncio.Event()
        self.told: list[Exception] = []

    async def work(self) -> None:
        self.attempts += 1
        if self.outages:
            raise self.outages.pop(0)
        self.well.set()
        await asyncio.Event().wait()


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rests that are asked for; none is taken."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def note(rest_s: float) -> None:
        found.append(rest_s)
        await sleep(0)

    monkeypatch.setattr(reconnecting.asyncio, "sleep", note)
    return found


async def test_each_outage_is_told_and_work_begins_again(rests: list[float]) -> None:
    outages = (KafkaError("gone"), OSError("refused"), TimeoutError(), BrokerError("no answer"))
    cluster = Cluster(*outages)
    async with ReconnectingTask(cluster.work, cluster.told.append, name="test"):
        await asyncio.wait_for(cluster.well.wait(), 5)
    assert cluster.told == list(outages)
    assert cluster.attempts == 5


async def test_rests_double_up_to_the_longest(rests: list[float]) -> None:
    cluster = Cluster(*(OSError() for _ in range(6)))
    async with ReconnectingTask(cluster.work, cluster.told.append, name="test", longest_rest_s=2.0):
        await asyncio.wait_for(cluster.well.wait(), 5)
    assert rests == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


async def test_work_that_went_well_for_longer_than_a_rest_begins_with_the_shortest_again(rests: list[float]) -> None:
    cluster = Cluster(*(OSError() for _ in range(4)))

    async def work() -> None:
        if cluster.attempts == 2:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.35)
        await cluster.work()

    async with ReconnectingTask(work, cluster.told.append, name="test", longest_rest_s=0.3):
        await asyncio.wait_for(cluster.well.wait(), 5)
    assert rests == pytest.approx([0.2, 0.3, 0.2, 0.3])


async def test_a_cancellation_that_leaks_out_of_the_client_is_an_outage(rests: list[float]) -> None:
    cluster = Cluster(asyncio.CancelledError())
    async with ReconnectingTask(cluster.work, cluster.told.append, name="test"):
        await asyncio.wait_for(cluster.well.wait(), 5)
    assert [str(error) for error in cluster.told] == ["the Kafka client ended a request"]


async def test_it_ends_with_its_block_and_tells_nothing_of_that() -> None:
    cluster = Cluster()
    async with ReconnectingTask(cluster.work, cluster.told.append, name="the one"):
        await asyncio.wait_for(cluster.well.wait(), 5)
    assert cluster.told == []
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "the one"]
