"""Nothing is lost, repeated or changed, whatever happens to workers, broker and network. The seed reproduces it."""

from __future__ import annotations

import os
import random
import sys
import time

import pytest

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed
from tests.chaos.schedule import survive

SECONDS = float(os.environ.get("CHAOS_SECONDS", "15"))
TICKS_PER_SECOND = 2_500
# These two have all kinds of harm overlap: a freeze and a cut longer than the session around a restart of the broker.
# What each partition commits by itself, or all of a process together: in both.
RUNS = [("exactly_once", "partition", 2255), ("at_least_once", "partition", 2450), ("exactly_once", "process", 2255)]
if "CHAOS_SEED" in os.environ:
    RUNS = [(guarantee, scope, int(os.environ["CHAOS_SEED"])) for guarantee, scope, _ in RUNS]
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))


@pytest.mark.parametrize(("guarantee", "scope", "seed"), RUNS)
async def test_every_tick_counts_once_through_every_harm(arena: Arena, guarantee: str, scope: str, seed: int) -> None:
    await _survive(arena, guarantee, scope, seed, SECONDS)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_soak_with_new_seeds(arena: Arena) -> None:
    end_s = time.monotonic() + SOAK_MINUTES * 60
    rounds = 0
    while time.monotonic() < end_s:
        seed = int(os.environ.get("CHAOS_SEED", 0)) or random.SystemRandom().randrange(2**31)
        guarantee, scope = ("exactly_once", "at_least_once")[rounds % 2], ("partition", "process")[seed % 2]
        await _survive(arena, guarantee, scope, seed, min(60.0, SOAK_MINUTES * 60))
        await arena.delete_topics()
        rounds += 1
    assert rounds


async def _survive(arena: Arena, guarantee: str, scope: str, seed: int, seconds: float) -> None:
    sys.stdout.write(f"\nCHAOS_SEED={seed} CHAOS_SECONDS={seconds:g} {guarantee}, commit_scope {scope}\n")
    arena.configure(guarantee, commit_scope=scope)
    await arena.create_topics()
    feed = Feed(seed, partitions=PARTITIONS)
    sent, waited_s = await survive([arena], seed, seconds, feed, per_second=TICKS_PER_SECOND)
    findings = await arena.verify()
    sys.stdout.write(
        f"{sent} records sent, {findings.frames} frames ({findings.repeated} repeats), {findings.late} late, "
        f"{findings.rejected} rejected, {len(arena.workers)} workers; caught up {waited_s:.1f} s after the last harm\n"
    )
    assert not findings, f"seed {seed}: {findings}"
    assert findings.ticks == sent
    assert findings.frames > 100
    assert findings.late > 10
    assert findings.rejected > 10
