"""The broker refuses a frame as too large: it is found among the dead letters, and everything else is exact."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import START_MS, Feed, Message, produce

LIMIT_BYTES = 20_000
BIG = "BIG"


class _OneGreedySymbol(Feed):
    """Among the usual ticks, one symbol has far too many in two windows of event time."""

    def _tick(self, symbol: str) -> Message:
        since_ms = self.now_ms - START_MS
        if symbol in self._symbols[:5] and since_ms > 2_000:
            note = f"{self.made:0100}" if since_ms < 4_000 else ""
            value = f'{{"symbol":"{BIG}","ts":{int(self.now_ms)},"price":1.5,"size":2,"note":"{note}"}}'
            return self._message(BIG, value.encode())
        return super()._tick(symbol)


async def test_a_frame_that_its_topic_refuses_becomes_a_dead_letter(make_arena: Callable[[], Arena]) -> None:
    async with asyncio.TaskGroup() as both:
        for guarantee in ("exactly_once", "at_least_once"):
            both.create_task(_refuse_frames(make_arena(), guarantee))


async def _refuse_frames(arena: Arena, guarantee: str) -> None:
    # Uncompressed: the broker measures what it gets, and made-up ticks compress too well.
    arena.configure(guarantee, payload="items", kafka__compression__type="none")
    await arena.create_topics()
    worker = arena.start()
    await arena.until_running(worker)
    # Only now: the worker believes in the limit it read at its start, so the refusal comes from the broker.
    await _lower_limit(arena)
    feed = _OneGreedySymbol(3, partitions=PARTITIONS, symbols=60, speed=2.0)
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=2_000, seconds=4.0)
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    assert "refused a record as too large" in worker.log(), "the broker refused nothing, so nothing was shown"
    findings = await arena.verify(largest_frame_bytes=LIMIT_BYTES)
    sys.stdout.write(
        f"\n{guarantee}: {findings.oversized} frames too large, {findings.frames} not, {findings.repeated} repeated\n"
    )
    assert not findings, str(findings)
    assert findings.oversized
    assert findings.frames > 100


async def _lower_limit(arena: Arena) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=arena.bootstrap)
    await admin.start()
    try:
        configs = {"max.message.bytes": str(LIMIT_BYTES), "retention.ms": "-1"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, arena.topics.frames, configs=configs)])
    finally:
        await admin.close()
    await asyncio.sleep(0.5)  # the broker applies it a moment after it answered
