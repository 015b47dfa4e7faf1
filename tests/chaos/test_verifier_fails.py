"""The verifier can fail: a commit that is deliberately not atomic, and a crash in between, must be found out."""

from __future__ import annotations

import sys

import pytest

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce


@pytest.mark.parametrize(
    ("order", "symptom"), [("results_first", "repeated"), ("state_first", "lost")], ids=["repetition", "loss"]
)
async def test_a_commit_split_in_two_is_found_out(arena: Arena, order: str, symptom: str) -> None:
    arena.configure("exactly_once")
    await arena.create_topics()
    feed = Feed(11, partitions=PARTITIONS)
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=8_000, seconds=1.5)
    crashing = arena.start(SPLIT_COMMIT=order, CRASH_AT_STEP=3, CRASH_ON_COMMIT=PARTITIONS)
    assert crashing.process.wait(40) == -9, crashing.log()[-3000:]
    arena.start(SPLIT_COMMIT=order)
    await arena.until_committed()
    await arena.stop_workers()
    findings = await arena.verify()
    sys.stdout.write(f"\n{order}: {str(findings)[:600]}\n")
    assert findings, "results and state were committed apart, with a crash in between, and the verifier saw nothing"
    counts = [problem.split(" frames for ") for problem in findings.problems if " frames for " in problem]
    surplus = [int(found.rpartition(" ")[2]) - int(wanted.partition(";")[0]) for found, wanted in counts]
    assert surplus
    assert all(number > 0 for number in surplus) if symptom == "repeated" else all(number < 0 for number in surplus)
