"""The process dies right after each numbered step of a commit, and nothing shows."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce

STEPS = {"exactly_once": range(1, 6), "at_least_once": range(6)}
DEATH_LIMIT_S = 40.0


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_a_crash_after_any_step_of_a_commit_does_not_show(arena: Arena, guarantee: str) -> None:
    arena.configure(guarantee)
    await arena.create_topics()
    feed = Feed(7, partitions=PARTITIONS)
    for step in STEPS[guarantee]:
        # Not its first commit: by then it has restored what the one that died before it left behind.
        worker = arena.start(CRASH_AT_STEP=step, CRASH_ON_COMMIT=PARTITIONS + 2)
        enough = asyncio.Event()
        feeding = asyncio.ensure_future(_feed(arena, feed, enough))
        try:
            limit_s = time.monotonic() + DEATH_LIMIT_S
            while worker.alive:
                assert time.monotonic() < limit_s, f"no commit reached step {step}\n{worker.log()[-3000:]}"
                await asyncio.sleep(0.02)
        finally:
            enough.set()
            await feeding
        assert worker.process.returncode == -9, worker.log()[-3000:]
    arena.start()
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    findings = await arena.verify()
    sys.stdout.write(
        f"\n{guarantee}: steps {list(STEPS[guarantee])}: {findings.ticks} records, {findings.frames} frames, "
        f"{findings.repeated} repeated\n"
    )
    assert not findings, str(findings)
    assert findings.frames > 100
    if guarantee == "at_least_once":
        assert findings.repeated, "a crash between results and state must have repeated some, or it proves nothing"


async def _feed(arena: Arena, feed: Feed, enough: asyncio.Event) -> None:
    while not enough.is_set():
        await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=2_000, seconds=1.0)
