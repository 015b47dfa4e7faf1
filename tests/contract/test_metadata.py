"""What the client asks the cluster about topics: it makes none, and learns their ids."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from workers.apps.broker import Broker, find_broker
from workers.kafka.clients import admin_client
from workers.kafka.metadata import SafeMetadataRequest, topic_id_of
from workers.kafka.reading import reading
from workers.kafka.repairs import abandon, repair_client, stop_consumer
from workers.kafka.topics import describe_topics
from workers.settings import Settings

pytestmark = pytest.mark.broker


async def made_anew(admin: AIOKafkaAdminClient, name: str, other_than: str | None = None) -> str:
    """Make a topic, of which another may have been deleted a moment ago; its id."""
    async with asyncio.timeout(30):
        while True:
            await admin.create_topics([NewTopic(name, 1, 1)])
            found = (await describe_topics(admin)).get(name)
            if found is not None and found.id not in (None, other_than):
                assert found.id is not None
                return found.id
            await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_no_client_makes_the_broker_create_a_topic() -> None:
    with find_broker(way="jvm", config={"auto.create.topics.enable": "true"}) as broker:
        settings = Settings(bootstrap_servers=broker.bootstrap_servers)
        address = broker.bootstrap_servers
        async with admin_client(settings) as admin:
            await admin.create_topics([NewTopic("deleted", 1, 1)])
            await admin.describe_topics(["asked-by-name"])
            consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id="g")
            producer = AIOKafkaProducer(bootstrap_servers=address, request_timeout_ms=1_000)
            try:
                await consumer.start()
                consumer.subscribe(["subscribed", "deleted"])
                await producer.start()
                await producer.send_and_wait("deleted", b"1", partition=0)
                await admin.delete_topics(["deleted"])
                with contextlib.suppress(KafkaError, TimeoutError):
                    await asyncio.wait_for(producer.send_and_wait("deleted", b"2", partition=0), 2)
                with contextlib.suppress(KafkaError, TimeoutError):
                    await asyncio.wait_for(producer.send_and_wait("sent-to", b"1"), 1)
                await consumer.getmany(timeout_ms=500)
                async with reading(settings) as reader:
                    await reader.turn_to("read")
            finally:
                await stop_consumer(consumer)
                await abandon(producer)
            found = await describe_topics(admin)
    assert {name for name in found if not name.startswith("__")} == set()


@pytest.mark.timeout(120)
async def test_a_topic_that_is_made_again_has_another_id(broker: Broker) -> None:
    repair_client()
    name = f"id-{uuid.uuid4().hex[:8]}"
    settings = Settings(bootstrap_servers=broker.bootstrap_servers)
    async with admin_client(settings) as admin:
        first = await made_anew(admin, name)
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
        try:
            await consumer.start()
            consumer.assign([TopicPartition(name, 0)])
            assert await consumer.end_offsets([TopicPartition(name, 0)])
            assert topic_id_of(consumer._client, name) == first
            await admin.delete_topics([name])
            second = await made_anew(admin, name, other_than=first)
            async with asyncio.timeout(30):
                while topic_id_of(consumer._client, name) != second:
                    await consumer.getmany(timeout_ms=100)
        finally:
            await stop_consumer(consumer)


def test_a_broker_that_tells_no_ids_is_asked_as_the_client_does() -> None:
    old = SafeMetadataRequest(["a"]).prepare({3: (0, 8)})
    assert (old.API_VERSION, old.allow_auto_topic_creation) == (5, False)
    new = SafeMetadataRequest(["a"]).prepare({3: (0, 13)})
    assert (new.API_VERSION, new.allow_auto_topic_creation) == (11, False)
