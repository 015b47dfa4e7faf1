"""Reading from outside the group, on a real broker."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from workers.apps.broker import Broker
from workers.errors import BrokerError
from workers.kafka import changelog
from workers.kafka.errors import OffsetOutOfRangeError
from workers.kafka.options import consumer_options
from workers.kafka.reading import TopicReader, reading
from workers.settings import Settings, load_settings

pytestmark = pytest.mark.broker


def settings_of(broker: Broker) -> Settings:
    return load_settings(overrides={"bootstrap_servers": broker.bootstrap_servers}, environ={})


async def fill(broker: Broker, topic: str, values: dict[int, list[bytes]]) -> None:
    """Make a topic, and put values into its partitions; timestamps are the offsets, in seconds."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, len(values), 1, topic_configs={"retention.ms": "-1"})])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    await producer.start()
    try:
        for partition, found in values.items():
            for offset, value in enumerate(found):
                await producer.send(topic, value, partition=partition, timestamp_ms=1_000 * offset)
        await producer.flush()
    finally:
        await producer.stop()


async def test_partitions_are_read_from_where_they_are_to_be(broker: Broker, topic_name: str) -> None:
    await fill(broker, topic_name, {0: [b"a", b"b", b"c"], 1: [b"x"], 2: []})
    async with reading(settings_of(broker), topic_name) as reader:
        assert await reader.begins(range(3)) == {0: 0, 1: 0, 2: 0}
        assert await reader.ends(range(3)) == {0: 3, 1: 1, 2: 0}
        assert [await reader.offset_at(0, time_ms) for time_ms in (0, 1_001, 9_000)] == [0, 2, None]
        reader.assign(range(3))
        reader.seek(0, 1)
        reader.seek(1, 1)
        reader.seek(2, 0)
        found = await reader.poll(timeout_ms=5_000)
        assert {number: [record.value for record in records] for number, records in found.items()} == {0: [b"b", b"c"]}
        assert await reader.position(0) == 3


async def test_one_reader_goes_from_topic_to_topic(broker: Broker, topic_name: str) -> None:
    await fill(broker, topic_name, {0: [b"a"]})
    await fill(broker, f"{topic_name}-other", {0: [b"b"]})
    async with reading(settings_of(broker)) as reader:
        for topic, value in ((topic_name, b"a"), (f"{topic_name}-other", b"b"), (topic_name, b"a")):
            await reader.turn_to(topic)
            reader.assign([0])
            await reader.seek_to_begin()
            ((record,),) = (await reader.poll([0], timeout_ms=5_000)).values()
            assert (record.topic, record.partition, record.offset, record.value) == (topic, 0, 0, value)


async def test_a_position_that_is_gone_is_an_error_where_that_is_asked_for(broker: Broker, topic_name: str) -> None:
    await fill(broker, topic_name, {0: [b"a"]})
    async with reading(settings_of(broker), topic_name, auto_offset_reset="none") as reader:
        reader.assign([0])
        reader.seek(0, 99)
        with pytest.raises(OffsetOutOfRangeError):
            await reader.poll([0], timeout_ms=20_000)


async def test_a_cluster_that_is_not_there_is_explained() -> None:
    settings = load_settings(overrides={"bootstrap_servers": "127.0.0.1:1"}, environ={})
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1: connection refused"):
        async with reading(settings):
            pass


async def test_a_reader_of_changelogs_goes_from_one_partition_to_the_next(
    broker: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic_name, 3, 1, topic_configs={"cleanup.policy": "compact"})])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for partition, (key, value) in [(0, (b"a", b"1")), (0, (b"b", b"1")), (0, (b"a", None)), (2, (b"c", b"2"))]:
            await producer.send_and_wait(topic_name, value, key, partition)
    opened = []
    original = TopicReader.start

    async def start(self: TopicReader) -> None:
        opened.append(self)
        await original(self)

    monkeypatch.setattr(TopicReader, "start", start)
    monkeypatch.setattr(changelog, "LINGER_S", 0.01)
    readers = changelog.ChangelogReaders(topic_name, consumer_options(settings_of(broker)))
    read: list[int] = []
    for _ in range(3):
        found = [await readers.read(partition, read.append) for partition in range(3)]
        assert found == [{b"b": b"1"}, {}, {b"c": b"2"}]
    assert sum(read) == 3 * 4
    first = len(opened)
    assert 1 <= first <= 9, "as often as it lingered for too short a time"
    monkeypatch.setattr(changelog, "LINGER_S", 60.0)
    for partition in (0, 1, 2, 0):
        await readers.read(partition, read.append)
    assert len(opened) <= first + 1
    await readers.close()
    assert await readers.read(2, read.append) == {b"c": b"2"}
    assert all(reader._consumer._closed for reader in opened)
