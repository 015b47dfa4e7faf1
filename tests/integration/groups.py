"""Consumer groups made by hand: a topic with ticks, offsets committed without a worker, and what a worker tells."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from prometheus_client.parser import text_string_to_metric_families

from workers.settings import Settings, load_settings

__all__ = ["LIMIT_S", "commit", "create", "http", "members_of", "produce", "samples", "settings_for", "until"]

LIMIT_S = 45.0


def settings_for(bootstrap: str, name: str, **more: object) -> Settings:
    """Settings of an application of its own, measured often; ``__`` in a name stands for the dot."""
    overrides: dict[str, object] = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": f"{name}-ticks",
        "topics.frames": f"{name}-frames",
        "backpressure.poll_interval": "100ms",
        "backpressure.min_dwell": "0s",
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return load_settings(None, environ={}, overrides=overrides)


async def create(bootstrap: str, topic: str, partitions: int = 1) -> None:
    """Create a topic and wait until it can be written to."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
        async with asyncio.timeout(LIMIT_S):
            while True:
                (found,) = await admin.describe_topics([topic])
                if len(found["partitions"]) == partitions and all(p["leader"] >= 0 for p in found["partitions"]):
                    return
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def produce(
    bootstrap: str, topic: str, values: list[bytes], *, partition: int = 0, timestamp_ms: int | None = None
) -> None:
    """Append values to a partition."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=5) as producer:
        for value in values:
            await producer.send(topic, value, key=b"AAPL", partition=partition, timestamp_ms=timestamp_ms)
        await producer.flush()


async def commit(bootstrap: str, group: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Commit offsets as a group without members."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        await consumer._client.add_topic(topic)
        consumer.assign([TopicPartition(topic, number) for number in offsets])
        await consumer.commit({TopicPartition(topic, number): offset for number, offset in offsets.items()})
    finally:
        await consumer.stop()


async def members_of(admin: AIOKafkaAdminClient, group: str) -> int:
    """How many members the group has; none before it has a coordinator."""
    try:
        (answer,) = await admin.describe_consumer_groups([group])
    except GroupCoordinatorNotAvailableError:
        return 0
    ((_, _, _, _, _, members, *_),) = answer.groups
    return len(members)


async def until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> float:
    """Wait for a condition; returns the seconds it took, and fails with ``what`` after the limit."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began_s


def http(port: int, path: str) -> tuple[int, str]:
    """GET from a process on this host; status 0 where nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a process exports: value by name and sorted labels."""
    _, text = http(port, "/metrics")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
