"""The process dies right after each numbered step of a commit, and nothing shows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, feeding

STEPS = {"exactly_once": range(1, 6), "at_least_once": range(6)}


async def test_a_crash_after_any_step_of_a_commit_does_not_show(make_arena: Callable[[], Arena]) -> None:
    async with asyncio.TaskGroup() as all_four:  # beside one another: each waits for sessions of the dead to end
        for guarantee in STEPS:
            for scope in ("partition", "process"):
                all_four.create_task(_die_after_each_step(make_arena(), guarantee, scope))


async def _die_after_each_step(arena: Arena, guarantee: str, scope: str) -> None:
    arena.configure(guarantee, commit_scope=scope)
    await arena.create_topics()
    feed = Feed(7, partitions=PARTITIONS)
    for step in STEPS[guarantee]:
        # Not its first commit: by then it has restored what the one that died before it left behind.
        worker = arena.start(CRASH_AT_STEP=step, CRASH_ON_COMMIT=PARTITIONS + 2 if scope == "partition" else 3)
        async with feeding(arena.bootstrap, arena.topics.ticks, feed, per_second=2_000):
            await arena.killed_itself(worker)
    arena.start()
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    findings = await arena.verify()
    sys.stdout.write(
        f"\n{guarantee}, {scope}: steps {list(STEPS[guarantee])}: {findings.ticks} records, {findings.frames} frames, "
        f"{findings.repeated} repeated\n"
    )
    assert not findings, str(findings)
    assert findings.frames > 100
    if guarantee == "at_least_once":
        assert findings.repeated, "a crash between results and state must have repeated some, or it proves nothing"
