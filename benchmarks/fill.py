"""Fills a topic with a synthetic market: 1,000 symbols by Zipf's law, 1 s disorder, about 0.058 frames a tick."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from workers.apps.produce.market import Market, arrivals, synthetic_ticks
from workers.apps.produce.sender import TickSender
from workers.times import NS_PER_SECOND

__all__ = ["EVENT_RATE", "START_NS", "create_topic", "delete_topics", "fill", "market_ticks"]

START_NS = 1_700_000_000 * NS_PER_SECOND
EVENT_RATE = 3_000  # ticks per second of event time
CHUNK = 20_000


def market_ticks(
    count: int, *, symbols: int = 1_000, disorder_ns: int = NS_PER_SECOND
) -> Iterator[tuple[bytes, bytes]]:
    """``count`` keys and values, the same on every machine and run."""
    market = Market(symbols=symbols, disorder_ns=disorder_ns)
    return itertools.islice(synthetic_ticks(market, arrivals(START_NS, EVENT_RATE)), count)


async def create_topic(bootstrap: str, topic: str, partitions: int) -> None:
    """A topic that keeps records however old they say they are."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs={"retention.ms": "-1"})])
    finally:
        await admin.close()


async def delete_topics(bootstrap: str, topics: list[str]) -> None:
    """Give the disk back between measurements."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics(topics)
    finally:
        await admin.close()


async def fill(
    bootstrap: str,
    topic: str,
    count: int,
    *,
    partitions: int = 4,
    symbols: int = 1_000,
    disorder_ns: int = NS_PER_SECOND,
) -> float:
    """Create and fill a topic; the seconds it took."""
    await create_topic(bootstrap, topic, partitions)
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type="lz4", enable_idempotence=True, max_batch_size=256 * 1024
    )
    await producer.start()
    started_s = time.monotonic()
    try:
        sender = TickSender(producer, topic, partitions)
        ticks = market_ticks(count, symbols=symbols, disorder_ns=disorder_ns)
        while chunk := list(itertools.islice(ticks, CHUNK)):
            sender.add(chunk)
            await sender.send()
        await sender.finish()
    finally:
        await producer.stop()
    return time.monotonic() - started_s
