"""What operators and kinds of windows cost: the lane alone, in CPU µs per tick, as ratios to tumbling windows.

usage: python -m benchmarks.kinds [--quick]

One partition of the market of the other benchmarks, fed to a lane in steps of some 5,000 records, its changes taken as
by commits. Plain tumbling windows are measured in both lanes: everything below the first row goes through the plain
lane, so the ratio that tells what a kind itself costs is the one to the plain lane's tumbling windows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import numpy as np

from benchmarks.scale import steps
from benchmarks.stages import _fetched, make_logs
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, Map, OperatorSpec, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.records import RawBatch, Record, records_of
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows
from workers.native.choose import make_lane, supports
from workers.times import NS_PER_SECOND

RUNS = 3
COMMIT_RECORDS = 20_000
NATIVE = "tumbling 5 s"
PLAIN = "tumbling 5 s, plain lane"
HOUR_NS = 3_600 * NS_PER_SECOND


def keep_all(tick: Tick) -> bool:
    """A filter that keeps everything: what is measured is the call."""
    return tick.size >= 0


def unchanged(tick: Tick) -> Tick:
    """A map that changes nothing."""
    return tick


def specs() -> Iterator[tuple[str, LaneSpec]]:
    """Name and lane; plain tumbling windows first."""
    base = LaneSpec()
    yield NATIVE, base
    yield (PLAIN, base)
    yield "tumbling 5 s with an offset", replace(base, window=replace(base.window, offset_ns=NS_PER_SECOND))
    zoned = replace(base.window, size_ns=HOUR_NS, time_zone="America/New_York")
    yield "tumbling 1 h, New York", replace(base, window=zoned)
    filled = replace(base.window, fill_gaps_ns=60 * NS_PER_SECOND)
    yield "tumbling 5 s, gaps up to 1 min filled", replace(base, window=filled)
    hopping = HoppingWindows(size_ns=base.window.size_ns, hop_ns=NS_PER_SECOND)
    yield "hopping, 5 s every 1 s", replace(base, window=hopping)
    yield "hopping, 60 s every 5 s", replace(base, window=HoppingWindows(60 * NS_PER_SECOND, 5 * NS_PER_SECOND))
    yield "session, gap 1 s", replace(base, window=SessionWindows(NS_PER_SECOND))
    calendar = replace(base, window=CalendarWindows("XNYS", session="full"), key_ttl_ns=240 * HOUR_NS)
    yield "exchange sessions, XNYS full", calendar
    yield "one clock for the partition", replace(base, scope="partition")
    yield "items", replace(base, payload="items")
    yield "emit final", replace(base, emit="final")
    rules = CorrectionRules(field="type", cancel=("cancel",), correct=("correct",), id="ts")
    yield "corrections on, none comes", replace(base, corrections=rules)
    operators: dict[str, OperatorSpec] = {
        "deduplicate": Deduplicate(("ts", "price", "size"), 10 * NS_PER_SECOND),
        "throttle, never full": Throttle(1, burst=1_000_000),
        "throttle, conflate to 10/s": Conflate(NS_PER_SECOND // 10, 0),
        "router, one route of three topics": Router((Route("a", "AAA*"), Route("b", "BBB*"))),
        "filter": Filter("benchmarks.kinds:keep_all"),
        "map": Map("benchmarks.kinds:unchanged"),
    }
    for name, operator in operators.items():
        yield name, replace(base, pipeline=(operator,))


def run(spec: LaneSpec, batches: list[RawBatch], *, native: bool) -> float:
    """CPU microseconds per tick, commits included."""
    lane: Lane = make_lane(spec, Input("ticks", 0, 1), native)
    portions: list[list[RawBatch] | list[Record]] = [
        portion if native else list(records_of(portion)) for portion in steps(batches)
    ]
    count = since = 0
    written: list[OutRecord] = []
    began_s = time.process_time()
    for portion in portions:
        effects = lane.process(portion)
        count += effects.records
        since += effects.records
        if since >= COMMIT_RECORDS:
            written, since = lane.take_changes(), 0
    assert written
    return (time.process_time() - began_s) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks, one run")
    options = parser.parse_args()
    ticks, runs = (40_000, 1) if options.quick else (200_000, RUNS)
    (log,) = make_logs(ticks, partitions=1)
    batches = [batch for data in log for batch in _fetched(data, 0)]  # type: ignore[arg-type]
    rows = [
        (name, native, median(run(spec, batches, native=native) for _ in range(runs)))
        for name, spec in specs()
        for native in [name != PLAIN and supports(spec)]
    ]
    plain = next(cost for name, _, cost in rows if name == PLAIN)
    print("| operator or kind of window | lane | CPU-µs per tick | × tumbling, plain lane | × tumbling |")
    print("|---|---|---|---|---|")
    for name, native, cost in rows:
        lane = "native" if native else "plain"
        print(f"| {name} | {lane} | {cost:.2f} | {cost / plain:.2f} | {cost / rows[0][2]:.1f} |", flush=True)
    print(f"\n{ticks:,} ticks, {np.size(batches)} record batches, median of {runs}; one thread, no broker.")


if __name__ == "__main__":
    main()
