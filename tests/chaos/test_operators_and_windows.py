"""Operators, other windows, corrections and bars from bars: whatever happens, what comes out is what the models make.

Each scenario is one application or two: side by side on the same ticks, or the second on the frames of the first. A
schedule harms all of them. The seed reproduces it: CHAOS_SEED=... and CHAOS_SECONDS=..., as printed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.schedule import EVERY_HARM, Kind, survive
from tests.chaos.variants import CORRECTIONS, FIVE_SECONDS, GAPS, PIPELINE, SECONDS, SESSIONS, Trades, Variant
from tests.support.verify import Findings

FEEDING_S = float(os.environ.get("CHAOS_SECONDS", "5"))
SOAK_FEEDING_S = 15.0  # the models search everything that there was, so what is long takes them much longer
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
GUARANTEES = ("exactly_once", "at_least_once")
SCOPES = ("partition", "process")


@dataclass(frozen=True)
class Scenario:
    """Applications and what they are fed. ``chained``: each but the first reads the frames of the one before."""

    variants: tuple[Variant, ...]
    chained: bool = False
    repeats: float = 0.0
    messages: float = 0.0
    per_second: int = 1_500
    speed: float = 2.0

    def feed(self, seed: int) -> Trades:
        return Trades(seed, partitions=PARTITIONS, repeats=self.repeats, messages=self.messages, speed=self.speed)


SCENARIOS = {
    "operators": Scenario((PIPELINE,), repeats=0.1),
    "sessions and filled gaps": Scenario((SESSIONS, GAPS)),
    "corrections": Scenario((CORRECTIONS,), messages=0.1),
    "bars from bars": Scenario((SECONDS, FIVE_SECONDS), chained=True, speed=8.0),
}


@dataclass(frozen=True)
class Run:
    """A round of a scenario that the default suite has time for: harms of which no kind need be there."""

    name: str
    guarantee: str
    scope: str
    seed: int
    harms: tuple[Kind, ...]


# With these seeds each application has a worker killed while there is much to do, and a broker is killed in between.
RUNS = [
    Run("operators", "exactly_once", "process", 21, ("kill", "kill", "freeze", "scale", "broker")),
    Run("sessions and filled gaps", "at_least_once", "partition", 37, ("kill", "kill", "kill", "freeze")),
    Run("corrections", "at_least_once", "process", 23, ("kill", "kill", "freeze", "scale")),
    Run("bars from bars", "exactly_once", "partition", 16, ("kill", "kill", "kill", "freeze", "broker")),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
async def test_what_comes_out_is_what_the_models_make(make_arena: Callable[[], Arena], run: Run) -> None:
    seed = int(os.environ.get("CHAOS_SEED", run.seed))
    arenas = [make_arena() for _ in SCENARIOS[run.name].variants]
    await _survive(arenas, run.name, (run.guarantee, run.scope), seed, FEEDING_S, run.harms)
    if "CHAOS_SEED" not in os.environ:
        for arena in arenas:
            codes = [worker.process.returncode for worker in arena.workers]
            assert -signal.SIGKILL in codes, f"no worker of {arena.application_id} was killed: {codes}"


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_soak_of_operators_and_windows_with_new_seeds(make_arena: Callable[[], Arena], name: str) -> None:
    end_s = time.monotonic() + SOAK_MINUTES * 60 / len(SCENARIOS)
    arenas = [make_arena() for _ in SCENARIOS[name].variants]
    rounds = 0
    while rounds < len(GUARANTEES) or time.monotonic() < end_s:
        seed = int(os.environ.get("CHAOS_SEED", 0)) or random.SystemRandom().randrange(2**31)
        how = (GUARANTEES[rounds % 2], SCOPES[seed % 2])
        await _survive(arenas, name, how, seed, SOAK_FEEDING_S, EVERY_HARM)
        for arena in arenas:
            await arena.delete_topics()
        rounds += 1


async def _survive(
    arenas: Sequence[Arena], name: str, how: tuple[str, str], seed: int, seconds: float, at_least: Sequence[Kind]
) -> None:
    """``how``: what is guaranteed, and in what scope it is committed."""
    scenario, (guarantee, scope) = SCENARIOS[name], how
    sys.stdout.write(f"\nCHAOS_SEED={seed} CHAOS_SECONDS={seconds:g} {guarantee}, commit_scope {scope}: {name}\n")
    ticks: str | None = None
    for arena, variant in zip(arenas, scenario.variants, strict=True):
        arena.workers.clear()
        arena.configure(
            guarantee,
            ticks=ticks,
            payload=variant.payload,
            pipeline=variant.pipeline,
            model=variant.model,
            commit_scope=scope,
            **variant.settings,
        )
        ticks = arena.topics.frames if scenario.chained else arena.topics.ticks
    await arenas[0].create_topics()
    sent, waited_s = await survive(
        arenas,
        seed,
        seconds,
        scenario.feed(seed),
        per_second=scenario.per_second,
        at_least=at_least,
        workers=len(arenas),  # one application alone gets more by its schedule
    )
    for arena, variant in zip(arenas, scenario.variants, strict=True):
        begun_s = time.monotonic()
        findings = await arena.verify()
        sys.stdout.write(
            f"{findings.ticks} of {sent} records, {findings.frames} frames {findings.triggers} ({findings.repeated} "
            f"repeats), late {findings.late_by_reason}, {findings.routed} routed, {findings.rejected} rejected, "
            f"{len(arena.workers)} workers; verified in {time.monotonic() - begun_s:.1f} s\n"
        )
        assert not findings, f"seed {seed}, {name}: {findings}"
        _proves_something(findings, variant)
    sys.stdout.write(f"caught up {waited_s:.1f} s after the last harm\n")


def _proves_something(findings: Findings, variant: Variant) -> None:
    found = {**findings.late_by_reason, **findings.triggers, "filled": findings.filled}
    missing = [each for each in variant.shows if found.get(each, 0) < 3]
    assert not missing, f"hardly any {missing} in {found}"
    assert findings.routed or not variant.pipeline
