"""Memory over event time: every kind of window, with each scope of clocks, plain, with operators and with corrections.

usage: python -m benchmarks.memory [--ticks 200000] [--only TEXT]

Each row is a process of its own with one lane, which reads a log of eight hours of event time (of eight days where
windows are trading sessions, everything else 24 times as long as well): fifty symbols at a time,
each of which trades for twenty minutes and then never again, ids that never repeat, a tick in twenty a little out of
order. State lives as long as ``key_ttl`` (ten minutes) or a ttl (five) says. Changes are taken as a worker takes them,
and results dropped, as when they are committed. The table has the resident memory at the start and after each quarter
of the log; it must be level over the last half, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import orjson
import psutil

from tests.support.raw_batches import build_batch
from workers.core.formats.corrections import CorrectionRules
from workers.core.lane import Input, Lane
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, Map, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.records import RawRecord
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.native.choose import make_lane

S = 1_000_000_000
MS = 1_000_000
MINUTE = 60 * S
HOURS = 8
SYMBOLS = 50
SYMBOL_LIVES_MS = 20 * 60_000
BASE_MS = 1_704_205_800_000  # 2024-01-02 09:30 in New York
PORTION = 500
QUARTERS = 4
LEVEL_MIB, LEVEL_SHARE = 2.0, 0.05  # what the last half may add

COMMON = LaneSpec(window=TumblingWindows(30 * S), key_ttl_ns=10 * MINUTE, lateness_ns=30 * S)
KINDS = {
    "tumbling": COMMON,
    "tumbling, New York": replace(COMMON, window=replace(COMMON.window, size_ns=MINUTE, time_zone="America/New_York")),
    "tumbling, gaps filled": replace(COMMON, window=replace(COMMON.window, fill_gaps_ns=5 * MINUTE)),
    "hopping": replace(COMMON, window=HoppingWindows(size_ns=COMMON.window.size_ns, hop_ns=10 * S)),
    "session": replace(COMMON, window=SessionWindows(20 * S)),
    "calendar, days": replace(COMMON, window=CalendarWindows("XNYS"), key_ttl_ns=8 * 60 * MINUTE),
}
OPERATORS = (
    Deduplicate(("id",), 5 * MINUTE),
    Filter("benchmarks.memory:any_tick"),
    Map("benchmarks.memory:larger"),
    Throttle(MS, burst=100),
    Conflate(100 * MS, 2 * S),
    Router((Route("elsewhere", "S1-*"),)),
)
STAGES = {
    "bars": {},
    "operators, items": {"pipeline": OPERATORS, "payload": "both"},
    "corrections": {"corrections": CorrectionRules("kind", cancel=("X",), correct=("C",), id="id")},
}


@dataclass(frozen=True)
class Case:
    """A row: what the lane is like."""

    name: str
    scope: str
    stages: str
    spec: LaneSpec
    native: bool = False


def any_tick(tick: Tick) -> bool:
    """A function for ``filter``."""
    return tick.size >= 0


def larger(tick: Tick) -> dict[str, object]:
    """A function for ``map``: every tick is written anew."""
    return {"size": tick.size + 1}


def cases() -> Iterator[Case]:
    """Every row. Windows with filled gaps have no items and no corrections."""
    yield Case("tumbling, native lane", "key", "bars", COMMON, native=True)
    for name, spec in KINDS.items():
        for scope in ("key", "partition"):
            for stages, options in STAGES.items():
                if spec.window.looks_back_ns and stages == "corrections":
                    continue
                if spec.window.looks_back_ns and "payload" in options:
                    stages, options = "operators", {"pipeline": OPERATORS}
                yield Case(name, scope, stages, replace(spec, scope=scope, **options))  # type: ignore[arg-type]


def log(ticks: int, times: int) -> Iterator[RawRecord]:
    """The records, in order, ``times`` as slow; one in a hundred is a correction where the lane knows them, else a tick
    like others."""
    step_ms = times * HOURS * 3_600_000 / ticks
    for number in range(ticks):
        ts = BASE_MS + int(number * step_ms) - (number % 20 == 0) * 1_500
        symbol = f"S{number % SYMBOLS}-{int(number * step_ms) // (times * SYMBOL_LIVES_MS)}"
        fields = {"symbol": symbol, "ts": ts, "price": 100 + number % 17 / 4, "size": 1 + number % 9, "id": number}
        if number % 100 == 99:
            fields |= {"kind": "C" if number % 200 == 99 else "X", "id": number - SYMBOLS}
        yield RawRecord(number, -1, symbol.encode(), orjson.dumps(fields), ())


def resident_mib() -> float:
    """What the process holds, after what can be given back was."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def measure(case: Case, ticks: int) -> list[float]:
    """Resident MiB before the log and after each quarter of it."""
    lane: Lane = make_lane(case.spec, Input("ticks", 0, 1), case.native)
    lane.process([])
    found = [resident_mib()]
    portion: list[RawRecord] = []
    for number, record in enumerate(log(ticks, 24 if case.spec.window.kind == "calendar" else 1), 1):
        portion.append(record)
        if len(portion) == PORTION or number == ticks:
            lane.process([build_batch(portion)] if case.native else portion)
            if lane.changes_waiting >= 8_000 or number % (10 * PORTION) == 0:
                lane.take_changes()
            portion = []
        if number % (ticks // QUARTERS) == 0 and len(found) <= QUARTERS:
            lane.take_changes()
            found.append(resident_mib())
    return found


def is_level(found: list[float]) -> bool:
    """Whether memory was no larger at the end than half-way, but for what allocators do."""
    middle, end = found[QUARTERS // 2], found[QUARTERS]
    return end <= middle + max(LEVEL_MIB, LEVEL_SHARE * middle)


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=200_000, help="of each row (default 200,000)")
    parser.add_argument("--only", default="", help="rows whose window kind, scope or stages hold this text")
    options = parser.parse_args()
    heads = " | ".join(f"{HOURS * quarter // QUARTERS} h" for quarter in range(QUARTERS + 1))
    print(
        f"MiB after so much event time:\n\n| windows | scope | stages | {heads} |\n|---|---|---|{'---|' * 5}",
        flush=True,
    )
    growing = []
    processes = multiprocessing.get_context("spawn")
    for case in cases():
        if options.only not in f"{case.name} {case.scope} {case.stages}":
            continue
        with processes.Pool(1) as pool:
            found = pool.apply(measure, (case, options.ticks))
        cells = " | ".join(f"{mib:.1f}" for mib in found)
        print(f"| {case.name} | {case.scope} | {case.stages} | {cells} |", flush=True)
        if not is_level(found):
            growing.append(f"{case.name}, {case.scope}, {case.stages}")
    if growing:
        sys.exit(f"not level: {'; '.join(growing)}")


if __name__ == "__main__":
    main()
