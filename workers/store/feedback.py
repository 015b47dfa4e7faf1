"""The queue's level, told to the producers: one JSON object per change on the compacted feedback topic.

    key    coordinator_id
    value  {"coordinator_id", "queue_size", "capacity", "level": "OK"|"SOFT"|"HARD", "source": "store", "ts": ms}

An event comes with every change of level and every second while the level is not OK, so a reader may take an event that
is not OK and some seconds old for that of a process that died. A clean end leaves a tombstone.

Feedback is advice: whatever goes wrong here holds up nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Final

import orjson
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from workers.sink import abandon
from workers.store.queue import Level

__all__ = ["REPEAT_S", "SOURCE", "Coordinator", "feedback_event"]

log = structlog.get_logger(__name__)

REPEAT_S: Final = 1.0
SOURCE: Final = "store"
_SEND_TIMEOUT_S: Final = 5.0


def feedback_event(coordinator_id: str, queue_size: int, capacity: int, level: Level, now_ms: int) -> bytes:
    """The value of an event; sizes in records, ``now_ms`` since the epoch."""
    return orjson.dumps(
        {
            "coordinator_id": coordinator_id,
            "queue_size": queue_size,
            "capacity": capacity,
            "level": level,
            "source": SOURCE,
            "ts": now_ms,
        }
    )


class Coordinator:
    """Publishes the level of one queue. `report` is cheap and may be called at every change of the queue."""

    def __init__(self, coordinator_id: str, topic: str, capacity: int, producer_options: Mapping[str, object]) -> None:
        self.coordinator_id = coordinator_id
        self._topic = topic
        self._capacity = capacity
        self._options = {**producer_options, "acks": "all", "enable_idempotence": True, "linger_ms": 0}
        self._level: Level = "OK"
        self._queue_size = 0
        self._changed = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._failing = False

    async def start(self) -> None:
        """Connect. Raises ``KafkaError``."""
        self._producer = AIOKafkaProducer(**self._options)
        try:
            await self._producer.start()
        except BaseException:
            await self._discard()
            raise

    def report(self, level: Level, queue_size: int) -> None:
        """Say how the queue is now."""
        self._queue_size = queue_size
        if level != self._level:
            self._level = level
            self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled. A level that was left again before it could be sent is not sent any more."""
        while True:
            repeat_s = REPEAT_S if self._level != "OK" or self._failing else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(repeat_s):
                    await self._changed.wait()
            self._changed.clear()
            await self._send(
                feedback_event(
                    self.coordinator_id, self._queue_size, self._capacity, self._level, time.time_ns() // 1_000_000
                )
            )

    async def close(self) -> None:
        """Leave a tombstone, so that nobody obeys a store that is gone. Bounded, whatever the broker does."""
        if self._producer is not None:
            await self._send(None)
        await self._discard()

    async def _send(self, value: bytes | None) -> None:
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                if self._producer is None:
                    await self.start()
                assert self._producer is not None
                await self._producer.send_and_wait(
                    self._topic, value, key=self.coordinator_id.encode(), partition=0
                )
        except (KafkaError, TimeoutError, OSError) as error:
            if not self._failing:
                log.warning("feedback can't be published; trying on", topic=self._topic, error=repr(error))
            self._failing = True
            # Queued events would come out late and in a bunch; and an idempotent batch never expires.
            await self._discard()
        else:
            self._failing = False

    async def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await abandon(producer)
