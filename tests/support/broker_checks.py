"""What the tests of every kind of broker do with one: write, read, and look whether its processes are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

__all__ = ["eventually", "gone", "read", "round_trip"]


async def round_trip(bootstrap: str, topic: str, values: list[bytes], **security: object) -> list[bytes]:
    """Creates the topic, writes the values, and reads back what the topic holds."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **security)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, **security) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    return await read(bootstrap, topic, len(values), **security)


async def read(bootstrap: str, topic: str, count: int, **security: object) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", **security)
    try:
        await consumer.start()
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


def eventually(condition: Callable[[], bool], *, within_s: float = 15.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
