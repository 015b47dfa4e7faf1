"""What the extensions of the protocol rely on in a broker: who is refused, who waits, and who can be fenced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ProducerFenced

from tests.contract.test_kafka_ports import member as ports_member
from tests.contract.test_kafka_ports import opened, settings_for, work
from tests.contract.test_kafka_ports import settled as ports_settled
from tests.support.verify import read_topic
from workers.apps.broker import Broker
from workers.core.frames import OutRecord
from workers.kafka import commit
from workers.kafka.cluster import Cluster
from workers.kafka.commit import Attempt, TransactionWriter
from workers.kafka.errors import PASSING, StaleMemberError, UnstableOffsetError
from workers.kafka.internals import api_versions, brokers, committed_offset, membership_of, producer_id_of, send_offsets
from workers.kafka.protocol import Membership, lacking
from workers.kafka.transactions import describe, end_offsets, initialise, open_producers, transactional_ids

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

LIMIT_S = 40.0


async def until(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.01)


async def settled(action: Callable[[], Awaitable[object]]) -> None:
    """Topics that are new answer with passing errors for a moment."""
    limit_s = time.monotonic() + LIMIT_S
    while True:
        try:
            await action()
            return
        except PASSING:
            assert time.monotonic() < limit_s
            await asyncio.sleep(0.1)


@pytest.fixture
async def topic(broker: Broker, topic_name: str) -> str:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic_name, 1, 1)])
    finally:
        await admin.close()
    return topic_name


@asynccontextmanager
async def member(broker: Broker, topic: str, instance: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
    """A member of the group that is called as the topic is."""
    consumer = AIOKafkaConsumer(
        topic,
        group_instance_id=instance,
        bootstrap_servers=broker.bootstrap_servers,
        group_id=topic,
        enable_auto_commit=False,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=200,
    )
    await consumer.start()
    try:
        await until(lambda: membership_of(consumer) is not None, "a membership")
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def producing(broker: Broker, transactional_id: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=transactional_id, retry_backoff_ms=10
    ) as producer:
        yield producer


async def test_the_broker_has_what_is_needed(broker: Broker, topic: str) -> None:
    async with producing(broker, f"{topic}-id") as producer:
        for node in brokers(producer.client):
            assert lacking(await api_versions(producer.client, node)) == []
    assert len(lacking({})) == 6


async def test_the_group_refuses_offsets_of_a_generation_that_is_over(broker: Broker, topic: str) -> None:
    async with member(broker, topic) as first, producing(broker, f"{topic}-id") as producer:
        stale = membership_of(first)
        assert stale is not None
        await producer.begin_transaction()
        await send_offsets(producer, topic, stale, topic, {0: (1, "note")})
        await producer.commit_transaction()
        async with member(broker, topic):
            await until(
                lambda: (now := membership_of(first)) is not None and now.generation > stale.generation, "a rebalance"
            )
            await producer.begin_transaction()
            with pytest.raises(StaleMemberError, match="ILLEGAL_GENERATION"):
                await send_offsets(producer, topic, stale, topic, {0: (7, "")})
            with pytest.raises(StaleMemberError, match="UNKNOWN_MEMBER_ID"):
                await send_offsets(producer, topic, Membership(stale.generation + 1, "who"), topic, {0: (8, "")})
            await producer.abort_transaction()
        assert await committed_offset(first, topic, 0) == 1


async def test_a_static_member_commits_as_itself_and_nobody_else_does(broker: Broker, topic: str) -> None:
    async with member(broker, topic, "one") as consumer, producing(broker, f"{topic}-id") as producer:
        membership = membership_of(consumer)
        assert membership is not None
        assert membership.instance_id == "one"
        await producer.begin_transaction()
        await send_offsets(producer, topic, membership, topic, {0: (1, "")})
        await producer.commit_transaction()
        await producer.begin_transaction()
        with pytest.raises(StaleMemberError, match="FENCED_INSTANCE_ID"):
            await send_offsets(producer, topic, replace(membership, member_id="another"), topic, {0: (7, "")})
        await producer.abort_transaction()


async def test_an_offset_is_not_told_while_a_transaction_may_change_it(broker: Broker, topic: str) -> None:
    async with member(broker, topic) as consumer, producing(broker, f"{topic}-id") as producer:
        membership = membership_of(consumer)
        assert membership is not None
        await settled(lambda: committed_offset(consumer, topic, 0))
        await producer.begin_transaction()
        await send_offsets(producer, topic, membership, topic, {0: (5, "")})
        with pytest.raises(UnstableOffsetError):
            await committed_offset(consumer, topic, 0)
        await producer.commit_transaction()
        limit_s = time.monotonic() + LIMIT_S
        while True:  # it is committed; its marker comes a moment later
            try:
                assert await committed_offset(consumer, topic, 0) == 5
                return
            except UnstableOffsetError:
                assert time.monotonic() < limit_s
                await asyncio.sleep(0.01)


async def test_whose_transaction_holds_a_partition_is_known_and_can_be_ended(broker: Broker, topic: str) -> None:
    tp, name = TopicPartition(topic, 0), f"{topic}-writer"
    async with producing(broker, name) as writer, producing(broker, f"{topic}-other") as other:
        client = other.client
        await settled(lambda: end_offsets(client, [tp], committed=False))
        assert await open_producers(client, tp) == {}
        assert await describe(client, f"{topic}-nobody") is None
        await writer.begin_transaction()
        await writer.send_and_wait(topic, b"value", partition=0)
        assert await open_producers(client, tp) == {producer_id_of(writer): 0}
        listed = await transactional_ids(client, f"{topic}-")
        assert listed[name] == (producer_id_of(writer), "Ongoing")
        found = await describe(client, name)
        assert found is not None
        assert (found.state, found.producer, found.partitions) == ("Ongoing", (producer_id_of(writer), 0), {tp})
        assert (await end_offsets(client, [tp], committed=True))[tp] == 0

        assert await initialise(client, found) is not None

        ends = [(await end_offsets(client, [tp], committed=committed))[tp] for committed in (False, True)]
        assert ends == [2, 2], "the record, and the marker that aborts it"
        with pytest.raises(ProducerFenced):
            await writer.commit_transaction()
        async with producing(broker, name), producing(broker, name):
            pass
        assert await initialise(client, found) is None, "others have initialised it since it was described"


@pytest.mark.parametrize("scope", ["partition", "process"])
async def test_what_a_dead_writer_left_open_holds_up_nobody(broker: Broker, topic_name: str, scope: str) -> None:
    """One that had all partitions in its transaction, and died: its results don't count, and the next one begins at
    once."""
    settings = settings_for(topic_name, broker.bootstrap_servers, scope)
    kafka = Cluster(settings, lambda step, began_s: None)
    await kafka.prepare()
    async with ports_member(kafka) as reader:
        await ports_settled(kafka, 0)
        async with opened(kafka) as before:
            await before.commit(work(3, b"mine", changes=[(b"a", b"1")]))
        spec = kafka._spec
        assert spec is not None
        dead = TransactionWriter(spec, f"{topic_name}-dead")
        await dead.open([])
        assert dead._producer is not None
        await dead._producer.begin_transaction()
        for number in range(2):
            sent = await dead._send(dead._producer, spec.changelog, [OutRecord(b"a", b"2")], number, to=number)
            sent += await dead._send(dead._producer, spec.frames, [OutRecord(b"A", b"lost", 1_000)], number)
            await asyncio.gather(*sent)
        membership = reader.consumer.membership  # type: ignore[attr-defined]
        await send_offsets(dead._producer, spec.group_id, membership, spec.input_topic, {0: (9, ""), 1: (9, "")})
        await dead.close()  # as if it had died: nothing is aborted

        begun_s = time.monotonic()
        async with opened(kafka) as after:
            assert await kafka.read_changelog(0, lambda records: None) == {b"a": b"1"}
            assert await reader.consumer.committed(0) == 3
            assert await reader.consumer.committed(1) is None, "the other partition is free, too"
            await after.commit(work(4, b"theirs"))
        assert time.monotonic() - begun_s < settings.kafka.transaction_timeout_ms / 1000
    values = {
        record.value
        for records in (await read_topic(broker.bootstrap_servers, settings.topics.frames)).values()
        for record in records
    }
    assert values == {b"mine", b"theirs"}


async def test_works_that_are_large_together_go_out_one_after_the_other(
    broker: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client sends all batches that wait for a broker in one request, and the broker has a limit for it."""
    kafka = Cluster(settings_for(topic_name, broker.bootstrap_servers), lambda step, began_s: None)
    await kafka.prepare()
    await ports_settled(kafka, 0)
    assert kafka._spec is not None
    monkeypatch.setattr(commit, "QUEUED_BYTES", 1)
    sent: list[asyncio.Future[object]] = []
    waiting: list[int] = []
    original = AIOKafkaProducer.send_batch

    async def send_batch(self: AIOKafkaProducer, *arguments: object, **options: object) -> asyncio.Future[object]:
        waiting.append(sum(not each.done() for each in sent))
        sent.append(await original(self, *arguments, **options))
        return sent[-1]

    monkeypatch.setattr(AIOKafkaProducer, "send_batch", send_batch)
    writer = TransactionWriter(kafka._spec, f"{topic_name}-large")
    await writer.open([])
    try:
        works = {number: work(1, b"frame", changes=[(b"a", b"%d" % number)]) for number in range(2)}
        await writer.write(Attempt(works))
    finally:
        await writer.close()
    assert waiting == [0, 1, 0, 1], "before each batch: a partition's two, and none of the other partition's"
    for number in range(2):
        assert await kafka.read_changelog(number, lambda records: None) == {b"a": b"%d" % number}
