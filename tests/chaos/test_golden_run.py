"""Determinism: the non-provisional frames of a key are a function of its partition's log, to the byte.

One log is run straight through by one worker. Every other way of running it must give the same sequences: batches of
one record and of thousands, several workers, workers that come and go and die.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import orjson

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce
from tests.support.verify import read_topic

Sequences = dict[str, list[bytes]]
RECORDS = 24_000
_STEADY_S = 1.5


async def test_batches_workers_and_crashes_do_not_change_a_byte(arena: Arena) -> None:
    arena.configure()
    ticks = arena.topics.ticks
    await arena.create_topics()
    feed = Feed(99, partitions=PARTITIONS, speed=6.0)
    sent = await produce(arena.bootstrap, ticks, feed, per_second=RECORDS // 3, seconds=3.0)

    golden = await _run(arena, ticks, _one_worker)
    assert sum(map(len, golden.values())) > 500, "the log must close windows, or it proves nothing"
    revisions = sum(orjson.loads(frame)["rev"] > 0 for frames in golden.values() for frame in frames)
    assert revisions > 10, "and revise some"

    assert await _run(arena, ticks, _one_worker, lane__batch_size=1) == golden
    assert await _run(arena, ticks, _one_worker, lane__batch_size=5_000, commit_interval="700ms") == golden
    assert await _run(arena, ticks, _one_with_little_room, lane__batch_size=100) == golden
    assert await _run(arena, ticks, _two_workers) == golden
    assert await _run(arena, ticks, _three_with_crashes, lane__batch_size=37, commit_interval="100ms") == golden
    assert sent == feed.made, "the broker took every record, so the log is the same on every machine"


async def _run(arena: Arena, ticks: str, drive: Callable[[Arena], Awaitable[None]], **settings: object) -> Sequences:
    """Process the log from its beginning as a new application; what it wrote, per key."""
    arena.configure(ticks=ticks, **settings)
    await drive(arena)
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    sequences: Sequences = {}
    for records in (await read_topic(arena.bootstrap, arena.topics.frames)).values():
        for record in records:
            assert record.value is not None
            frame = orjson.loads(record.value)
            if frame["status"] != "provisional":
                sequences.setdefault(frame["key"], []).append(record.value)
    return sequences


async def _one_worker(arena: Arena) -> None:
    arena.start()


async def _one_with_little_room(arena: Arena) -> None:
    """Its lanes stop again and again for results that wait to be committed."""
    arena.start(PENDING_LIMIT_RECORDS=20)


async def _two_workers(arena: Arena) -> None:
    arena.start()
    arena.start()


async def _three_with_crashes(arena: Arena) -> None:
    """Three that die in mid-commit, one that is killed from outside, and the one that finishes."""
    for step in (2, 4, 3):
        arena.start(CRASH_AT_STEP=step, CRASH_ON_COMMIT=5)
    doomed = arena.start()
    await asyncio.sleep(_STEADY_S + float(os.environ.get("CHAOS_PATIENCE_S", "0")))
    doomed.kill()
    arena.start()
