"""The verifier can fail: a commit that is deliberately not atomic, and a crash in between, must be found out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce


async def test_a_commit_split_in_two_is_found_out(make_arena: Callable[[], Arena]) -> None:
    async with asyncio.TaskGroup() as all_four:
        for scope in ("partition", "process"):
            all_four.create_task(_split_commits(make_arena(), scope, "results_first", "repeated"))
            all_four.create_task(_split_commits(make_arena(), scope, "state_first", "lost"))


async def _split_commits(arena: Arena, scope: str, order: str, symptom: str) -> None:
    arena.configure("exactly_once", commit_scope=scope)
    await arena.create_topics()
    feed = Feed(11, partitions=PARTITIONS)
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=8_000, seconds=1.5)
    crashing = arena.start(
        SPLIT_COMMIT=order, CRASH_AT_STEP=3, CRASH_ON_COMMIT=PARTITIONS if scope == "partition" else 2
    )
    await arena.killed_itself(crashing)
    arena.start(SPLIT_COMMIT=order)
    await arena.until_committed()
    await arena.stop_workers()
    findings = await arena.verify()
    sys.stdout.write(f"\n{order}, {scope}: {str(findings)[:600]}\n")
    assert findings, "results and state were committed apart, with a crash in between, and the verifier saw nothing"
    counts = [problem.split(" frames for ") for problem in findings.problems if " frames for " in problem]
    surplus = [int(found.rpartition(" ")[2]) - int(wanted.partition(";")[0]) for found, wanted in counts]
    assert surplus
    assert all(number > 0 for number in surplus) if symptom == "repeated" else all(number < 0 for number in surplus)
