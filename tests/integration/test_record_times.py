"""Records whose times a topic refuses: none where it can be helped, and a word on what to do where it can't."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from structlog.testing import capture_logs

from workers.apps.broker import Broker
from workers.kafka import record_times, topics
from workers.kafka.clients import admin_client
from workers.kafka.topics import ensure_topics
from workers.settings import Settings, load_settings
from workers.worker.worker import Worker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

HOUR_MS = 3_600_000
LIMIT_S = 60.0


def settings_for(broker: Broker, name: str, **more: object) -> Settings:
    return load_settings(
        environ={},
        overrides={
            "bootstrap_servers": broker.bootstrap_servers,
            "application_id": name,
            "topics.ticks": f"{name}-ticks",
            "topics.frames": f"{name}-frames",
            "topics.partitions": 1,
            "commit_interval": "20ms",
            "metrics.port": "off",
            **more,
        },
    )


async def make_with_the_brokers_limits(settings: Settings) -> None:
    """A frames topic that others made, with a broker's defaults: nothing more than an hour ahead."""
    async with admin_client(settings) as admin:
        await admin.create_topics(
            [NewTopic(settings.topics.frames, 1, 1, topic_configs={"message.timestamp.after.max.ms": str(HOUR_MS)})]
        )
        await ensure_topics(admin, settings, create=True)


async def send(settings: Settings, *times_ms: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for ts in times_ms:
            tick = {"symbol": "AAPL", "ts": ts, "price": 10.5, "size": 1}
            await producer.send_and_wait(settings.topics.ticks, orjson.dumps(tick), key=b"AAPL", partition=0)


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    run = asyncio.ensure_future(Worker(settings).run(stop))
    try:
        yield
    finally:
        stop.set()
        await run


async def next_frame(consumer: AIOKafkaConsumer) -> tuple[int, dict[str, object]]:
    async with asyncio.timeout(LIMIT_S):
        record = await consumer.getone()
    return record.timestamp, orjson.loads(record.value)


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    async with AIOKafkaConsumer(
        settings.topics.frames,
        bootstrap_servers=settings.bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    ) as consumer:
        yield consumer


async def test_open_windows_that_end_hours_from_now_are_shown(broker: Broker, topic_name: str) -> None:
    settings = settings_for(
        broker,
        topic_name,
        **{"window.size": "24h", "window.emit_partial": True, "window.flush_interval": "50ms"},
    )
    await make_with_the_brokers_limits(settings)
    now_ms = time.time_ns() // 1_000_000
    await send(settings, now_ms)
    async with working(settings), reading(settings) as consumer:
        timestamp, frame = await next_frame(consumer)
    assert (frame["status"], timestamp) == ("provisional", now_ms)
    assert frame["end"] > now_ms  # type: ignore[operator]


async def test_a_frame_that_its_topic_refuses_for_its_time_is_said_and_written_when_it_may(
    broker: Broker, topic_name: str
) -> None:
    settings = settings_for(broker, topic_name, **{"tick.max_future_skew": "1d"})
    await make_with_the_brokers_limits(settings)
    ahead_ms = time.time_ns() // 1_000_000 + 5 * HOUR_MS
    await send(settings, ahead_ms, ahead_ms + 60_000)
    with capture_logs() as logs:
        async with working(settings), reading(settings) as consumer:
            async with asyncio.timeout(LIMIT_S):
                while not (failed := [each for each in logs if each["event"].startswith("commit failed")]):
                    await asyncio.sleep(0.02)
            async with admin_client(settings) as admin:
                await allow_any_time(admin, settings.topics.frames)
            _timestamp, frame = await next_frame(consumer)
    assert frame["status"] == "final"
    for part in (f"{topic_name}-frames", "message.timestamp.after.max.ms = 3600000", "kafka-configs", "--add-config"):
        assert part in failed[0]["error"]
    [warned] = [each["event"] for each in logs if "refuses records more than 1h ahead" in each["event"]]
    assert "tick.max_future_skew" in warned
    assert "kafka-configs" in warned


async def allow_any_time(admin: AIOKafkaAdminClient, topic: str) -> None:
    """What the message says."""
    configs = dict(record_times.ANY_TIME)
    [response] = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
    assert [code for code, *_ in response.resources] == [0]


async def test_topics_made_here_take_records_of_any_time(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker, topic_name)
    async with admin_client(settings) as admin:
        layout = await ensure_topics(admin, settings, create=True)
        assert layout.ahead_limits_ms.keys() == {settings.topics.ticks}, "whose producers' clocks are not trusted"


async def test_topics_are_made_where_the_broker_knows_no_limits_of_times(
    broker: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "ANY_TIME", {"message.timestamp.as.in.another.version": "1"})
    settings = settings_for(broker, topic_name)
    async with admin_client(settings) as admin:
        assert len((await ensure_topics(admin, settings, create=True)).created) == 6
