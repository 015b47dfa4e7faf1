"""A sink that is being closed lets go of its producers, though who closes it is cancelled meanwhile.

A worker that is told to stop while it opens a partition does just that: opening fails because the consumer is gone, so
the sink is closed, and in that very moment the opening is cancelled.
"""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from workers.kafka.commit import SinkSpec, TransactionWriter
from workers.kafka.ports import OutTopic

TOPIC = OutTopic("topic", 1, 1_000_000)


async def test_a_sink_whose_closing_is_cancelled_lets_go_of_its_producers() -> None:
    options = {"max_batch_size": 16_384}
    spec = SinkSpec("ticks", "group", TOPIC, TOPIC, TOPIC, TOPIC, False, options)
    sink = TransactionWriter(spec, "id")
    producers = [AIOKafkaProducer(**options), AIOKafkaProducer(**options)]
    sink._producer, sink._results_producer = producers
    closing = asyncio.ensure_future(sink.close())
    await asyncio.sleep(0)  # it has begun, and what it started has not
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert all(producer._closed for producer in producers)
