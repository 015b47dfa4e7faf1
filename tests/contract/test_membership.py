"""Being a member of a group, on the real client and broker: asking about it changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.group import HeartbeatRequest

from workers.apps.broker import Broker
from workers.errors import FencedError
from workers.kafka.consumer import KafkaGroupConsumer
from workers.kafka.group_members import describe_group
from workers.kafka.repairs import repair_client

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def repaired() -> None:
    repair_client()


class Member:
    """One member of the group, and what it was told."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.owned: set[int] = set()
        options = {"bootstrap_servers": bootstrap_servers, "heartbeat_interval_ms": 200, "session_timeout_ms": 30_000}
        self.consumer = KafkaGroupConsumer(
            topic,
            topic,
            {**options, "rebalance_timeout_ms": 60_000},
            on_revoked=self._revoked,
            on_assigned=self._assigned,
        )

    async def _revoked(self, partitions: set[int]) -> None:
        self.owned -= partitions

    async def _assigned(self, partitions: set[int]) -> None:
        self.owned = partitions

    @property
    def membership(self) -> tuple[int, str]:
        coordinator = self.consumer._consumer._coordinator
        return coordinator.generation, coordinator.member_id


@asynccontextmanager
async def member(bootstrap_servers: str, topic: str) -> AsyncIterator[Member]:
    made = Member(bootstrap_servers, topic)
    await made.consumer.start()
    try:
        yield made
    finally:
        await made.consumer.stop()


async def until(condition: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s
        await asyncio.sleep(0.01)


@pytest.fixture
async def topic(broker: Broker, topic_name: str) -> str:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic_name, 2, 1)])
    finally:
        await admin.close()
    return topic_name


async def test_an_answer_that_comes_while_the_group_is_joined_anew_does_not_end_the_membership(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with member(broker.bootstrap_servers, topic) as first:
        await until(lambda: first.owned == {0, 1})
        client, rejoined = first.consumer._consumer._client, asyncio.Event()
        send, asking = client.send, asyncio.current_task()

        async def late(node: int, request: object, **more: Any) -> object:
            if isinstance(request, HeartbeatRequest) and asyncio.current_task() is not asking:
                return await send(node, request, **more)  # the client's own
            if isinstance(request, HeartbeatRequest):
                await rejoined.wait()
            return await send(node, request, **more)

        monkeypatch.setattr(client, "send", late)
        question = asyncio.ensure_future(first.consumer.confirm_membership(0))
        asking = question
        await asyncio.sleep(0)
        before = first.membership
        async with member(broker.bootstrap_servers, topic) as second:
            await until(lambda: len(first.owned) == len(second.owned) == 1)
            joined = first.membership
            assert joined != before
            rejoined.set()
            assert await question is False, "what was asked is not so any more: ask again"
            assert first.membership == joined
            [number] = first.owned
            asking = None
            assert await first.consumer.confirm_membership(number)
            assert not await first.consumer.confirm_membership(1 - number)


async def test_who_is_no_member_any_more_is_told(broker: Broker, topic: str) -> None:
    async with member(broker.bootstrap_servers, topic) as only:
        await until(lambda: only.owned == {0, 1})
        coordinator = only.consumer._consumer._coordinator
        coordinator.member_id = "a-ghost"
        with pytest.raises(FencedError, match="has not confirmed"):
            await only.consumer.confirm_membership(0)


async def test_who_waits_to_be_let_in_is_asked_in_vain_but_not_for_ever_and_leaves_nobody_behind(
    broker: Broker, topic: str
) -> None:
    async with member(broker.bootstrap_servers, topic) as first:
        await until(lambda: first.owned == {0, 1})
        asked, may_go_on = asyncio.Event(), asyncio.Event()

        async def take_time(partitions: set[int]) -> None:
            asked.set()
            await may_go_on.wait()

        first.consumer._on_revoked = take_time
        async with asyncio.timeout(LIMIT_S):
            async with member(broker.bootstrap_servers, topic) as second:
                await asked.wait()
                await second.consumer.stay()
            assert first.consumer.owns(0) is False, "the rebalance is still under way"
            admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
            await admin.start()
            try:
                _state, members = await describe_group(admin, topic, topic)
            finally:
                await admin.close()
            assert [each.member_id for each in members] == [first.membership[1]]
        may_go_on.set()
        await until(lambda: first.owned == {0, 1})


async def test_a_fetch_that_is_given_up_does_not_count_as_one_that_goes_on(broker: Broker, topic: str) -> None:
    async with member(broker.bootstrap_servers, topic) as only:
        await until(lambda: only.owned == {0, 1})
        fetching = asyncio.ensure_future(only.consumer._fetch([], timeout_ms=600_000))
        await asyncio.sleep(0.01)
        fetching.cancel()
        await asyncio.wait([fetching])
        idle = only.consumer._consumer._subscription.fetcher_idle_time
        await asyncio.sleep(0.01)
        assert only.consumer._consumer._subscription.fetcher_idle_time > idle
