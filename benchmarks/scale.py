"""How cost grows with keys, disorder, payload and the rest: the lanes alone, in CPU microseconds per tick. No broker.

usage: python -m benchmarks.scale [--quick]

For every load: CPU per tick once all keys are known, memory per key, and the longest time one `process` call of some
5,000 records held the process (by CPU, so that a shared machine doesn't show).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil

from benchmarks.stages import Log, _fetched, make_logs, pack_logs
from workers.core.lane import Input, Lane
from workers.core.records import RawBatch, records_of
from workers.core.spec import LaneSpec
from workers.native.choose import make_lane, takes_batches
from workers.times import NS_PER_SECOND

STEP_RECORDS = 5_000
BASE_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Load:
    """The log of one partition, and the lane that reads it; with ``curve``, ``x`` is its place on one."""

    name: str
    make: Callable[[], list[Log]]
    spec: LaneSpec = field(default_factory=LaneSpec)
    curve: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Row:
    """What a load cost; memory is given where there are enough keys to tell."""

    name: str
    lane: str
    keys: int
    cpu_us_per_tick: float
    bytes_per_key: float | None
    longest_step_ms: float
    curve: str = ""
    x: float | None = None


def uniform(keys: int, ticks: int, *, span_ms: int) -> list[Log]:
    """Every key in turn, over a span of event time."""
    return pack_logs(np.arange(ticks) % keys, BASE_MS + np.arange(ticks) * span_ms // ticks, 1)


def hot(ticks: int) -> list[Log]:
    """Half of the ticks on one symbol of a thousand."""
    rng = np.random.default_rng(3)
    symbols = np.where(rng.random(ticks) < 0.5, 0, rng.integers(0, 1_000, ticks))
    return pack_logs(symbols, BASE_MS + np.arange(ticks) * 5_000 // 16_500, 1)


def loads(ticks: int, most_keys: int) -> Iterator[Load]:
    """The rows, the plainest first."""
    yield Load("plain: 1,000 Zipf keys, 1 s disorder", lambda: make_logs(ticks, partitions=1))
    for keys in (10, 1_000, 10_000, 100_000, most_keys):
        # Two rounds over all keys; the second alone is measured, so a tick always finds its key.
        count = max(2 * keys, ticks)
        yield Load(
            f"{keys:,} keys, uniform",
            lambda keys=keys, count=count: uniform(keys, count, span_ms=4_000),
            curve="keys",
            x=keys,
        )
    for disorder_ms in (1, 10, 100, 1_000, 1_900, 10_000):
        name = f"disorder {disorder_ms / 1000:g} s" + (": most are late" if disorder_ms > 2_000 else "")
        yield Load(
            name,
            lambda disorder_ms=disorder_ms: make_logs(ticks, disorder_ms=disorder_ms, partitions=1),
            curve="disorder",
            x=disorder_ms / 1000,
        )
    yield Load("hot key: half of the ticks", lambda: hot(ticks))
    hour = replace(LaneSpec(), window=replace(LaneSpec().window, size_ns=3_600 * NS_PER_SECOND))
    yield Load("windows of 1 h", lambda: make_logs(ticks, partitions=1), hour)
    late = replace(LaneSpec(), lateness_ns=600 * NS_PER_SECOND)
    yield Load("10 min allowed lateness: 120 kept windows a key", lambda: make_logs(ticks, partitions=1), late)
    yield Load(
        "one frame a window (emit final)", lambda: make_logs(ticks, partitions=1), replace(LaneSpec(), emit="final")
    )
    few = min(ticks, 200_000)
    for payload in ("ohlcv", "items", "both"):
        spec = replace(LaneSpec(), payload=payload)
        yield Load(f"payload {payload}", lambda: make_logs(few, partitions=1), spec, curve="payload")
    yield Load(
        "watermark scope partition", lambda: make_logs(few, partitions=1), replace(LaneSpec(), scope="partition")
    )


def steps(batches: list[RawBatch]) -> Iterator[list[RawBatch]]:
    """Batches in portions of about `STEP_RECORDS`, as a worker takes them."""
    portion: list[RawBatch] = []
    for batch in batches:
        portion.append(batch)
        if sum(map(len, portion)) >= STEP_RECORDS:
            yield portion
            portion = []
    if portion:
        yield portion


def measure(load: Load) -> Row:
    """Run a load twice; the second half of its log is what counts."""
    (log,) = load.make()
    batches: list[RawBatch] = []
    for data in log:
        batches += _fetched(data, 0)  # type: ignore[arg-type]
    half = len(batches) // 2
    native = takes_batches(load.spec)
    gc.collect()
    before = psutil.Process().memory_info().rss
    lane: Lane = make_lane(load.spec, Input("ticks", 0, 1))
    longest_s = 0.0

    def run(some: list[RawBatch]) -> tuple[float, int]:
        nonlocal longest_s
        count = 0
        began_s = time.process_time()
        for portion in steps(some):
            step_s = time.process_time()
            effects = lane.process(portion if native else list(records_of(portion)))  # type: ignore[arg-type]
            longest_s = max(longest_s, time.process_time() - step_s)
            count += effects.records
            if lane.changes_waiting > 20_000:
                lane.take_changes()
        return time.process_time() - began_s, count

    run(batches[:half])
    seconds, count = run(batches[half:])
    lane.take_changes()
    gc.collect()
    per_key = (psutil.Process().memory_info().rss - before) / max(lane.key_count, 1)
    return Row(
        load.name,
        "native" if native else "plain",
        lane.key_count,
        seconds / count * 1e6,
        per_key if lane.key_count >= 10_000 else None,
        longest_s * 1e3,
        load.curve,
        load.x,
    )


def measure_all(*, quick: bool) -> list[Row]:
    """Every load, in turn."""
    ticks, most_keys = (100_000, 100_000) if quick else (400_000, 1_000_000)
    return [measure(load) for load in loads(ticks, most_keys)]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| load | lane | keys | CPU-µs per tick | bytes per key | longest step, ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        memory = "-" if row.bytes_per_key is None else f"{row.bytes_per_key:,.0f}"
        lines.append(
            f"| {row.name} | {row.lane} | {row.keys:,} | {row.cpu_us_per_tick:.2f} | {memory} | "
            f"{row.longest_step_ms:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks and keys")
    options = parser.parse_args()
    print(table(measure_all(quick=options.quick)))


if __name__ == "__main__":
    main()
