"""Bare consumption by aiokafka's ``getmany``: what a worker on its public API can't go below.

usage: python -m benchmarks.bare_getmany BOOTSTRAP TOPIC COUNT
"""

from __future__ import annotations

import asyncio
import gc
import sys

from aiokafka import AIOKafkaConsumer


async def main(bootstrap: str, topic: str, count: int) -> None:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=1 << 20
    )
    await consumer.start()
    gc.freeze()
    gc.set_threshold(50_000)
    read = 0
    try:
        while read < count:
            for records in (await consumer.getmany(timeout_ms=100, max_records=10_000)).values():
                read += len(records)
    finally:
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
