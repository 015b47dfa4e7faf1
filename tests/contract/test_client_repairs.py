"""What is repaired in aiokafka's client: without it, this fails."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

from workers.broker import Broker
from workers.client import METADATA_UPDATES_A_SECOND, repair_client

WATCHED_S = 2.0


@pytest.mark.timeout(60)
async def test_a_client_whose_topic_is_gone_asks_for_it_at_a_bounded_rate(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair_client()
    topic = f"gone-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        await consumer.start()
        await consumer.getmany(timeout_ms=500)
        await admin.delete_topics([topic])
        await asyncio.sleep(1.5)
        asked = 0
        send = AIOKafkaConnection.send

        def counting(self: AIOKafkaConnection, request: object, expect_response: bool = True) -> object:
            nonlocal asked
            asked += isinstance(request, MetadataRequest)
            return send(self, request, expect_response)

        monkeypatch.setattr(AIOKafkaConnection, "send", counting)
        for _ in range(int(WATCHED_S / 0.2)):
            await consumer.getmany(timeout_ms=200)
    finally:
        await consumer.stop()
        await admin.close()
    assert asked <= METADATA_UPDATES_A_SECOND * (WATCHED_S + 1)
