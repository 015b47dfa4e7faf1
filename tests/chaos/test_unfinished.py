"""A transaction that the broker decided and never finished is finished by the partition's next owner, as decided."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, feeding


async def test_a_transaction_left_hanging_ends_as_its_coordinator_decided(make_lax_arena: Callable[[], Arena]) -> None:
    async with asyncio.TaskGroup() as all_four:
        for scope in ("partition", "process"):
            for outcome in ("commit", "abort"):
                all_four.create_task(_leave_hanging(make_lax_arena(), scope, outcome))


async def _leave_hanging(arena: Arena, scope: str, outcome: str) -> None:
    arena.configure("exactly_once", commit_scope=scope)
    await arena.create_topics()
    feed = Feed(21, partitions=PARTITIONS)
    dying = arena.start(LOSE_MARKERS=outcome)
    async with feeding(arena.bootstrap, arena.topics.ticks, feed, per_second=3_000):
        await arena.killed_itself(dying)
    assert '"left hanging"' in dying.log(), dying.report()
    successor = arena.start()
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    finished = [line for line in successor.log().splitlines() if "finished a transaction" in line]
    hung = json.loads(next(line for line in dying.log().splitlines() if '"left hanging"' in line))["partitions"]
    # Openings side by side may each find it, and decide the same.
    assert sorted({json.loads(line)["partition"] for line in finished}) == hung, finished
    assert all(json.loads(line)["outcome"] == outcome for line in finished), finished
    findings = await arena.verify()
    sys.stdout.write(f"\n{scope}, {outcome}: {findings.frames} frames, {findings.late} late\n")
    assert not findings, f"{scope}, {outcome}: {findings}"
