"""How long one step holds the event loop, in shapes that once held it for seconds. No broker.

usage: python -m benchmarks.stalls [--limit-ms 100]

Each shape is fed to a lane as a worker does it: portions of some 25 ms, changes taken before they are too many, the
state stored and restored in steps, frames packed in portions, Python's collector set as a worker sets it. The table has
the longest step of each kind, in milliseconds of CPU of this thread, so that a shared machine doesn't show. The exit
code is 1 where one took longer than the limit.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from benchmarks.stages import LZ4, _fetched, pack_logs
from workers.commands.run import calm_collector
from workers.core.effects import Effects
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.packed import OutRecords
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Map
from workers.core.records import RawBatch, RawRecord
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows.kinds import TumblingWindows
from workers.kafka.commit import _portions
from workers.native.choose import make_lane
from workers.worker import committer, partition

S = 1_000_000_000
DAY = 86_400 * S
BASE_MS = 1_699_920_000_000  # a midnight
CORRECTIONS = CorrectionRules("kind", cancel=("X",), correct=("C",), id="id")
KINDS = ("process", "changes", "pack", "restore")

Records = Iterator[RawRecord] | Iterator[RawBatch]


@dataclass(frozen=True)
class Shape:
    """A log, and the lane that reads it."""

    name: str
    spec: LaneSpec
    make: Callable[[], Records]


@dataclass
class Watch:
    """The longest step of each kind, in seconds."""

    longest_s: dict[str, float] = field(default_factory=dict)

    def timed(self, kind: str, call: Callable[[], object]) -> float:
        """Run a step; how long it took."""
        began_s = time.thread_time()
        call()
        took_s = time.thread_time() - began_s
        self.longest_s[kind] = max(self.longest_s.get(kind, 0.0), took_s)
        return took_s


def more(tick: Tick) -> dict[str, object]:
    """A function for ``map``: every tick is written anew."""
    return {"size": tick.size + 1}


def records(described: Iterator[tuple[int, str, dict[str, object]]]) -> Iterator[RawRecord]:
    """Records of time (ms), symbol and further fields."""
    for offset, (ts, symbol, fields) in enumerate(described):
        value = {"symbol": symbol, "ts": BASE_MS + ts, "price": 1.5, "size": 2, **fields}
        yield RawRecord(offset, -1, symbol.encode(), orjson.dumps(value), ())


def shuffled_days() -> Iterator[RawBatch]:
    """Four days of a symbol, a trade per 10 s, each day's in any order."""
    rng = np.random.default_rng(1)
    times = np.concatenate([rng.permutation(8_640) * 10_000 + day * 86_400_000 for day in range(4)]) + BASE_MS
    (log,) = pack_logs(np.zeros(len(times), np.int64), times, 1)
    for data in log:
        yield from _fetched(data, 0)  # type: ignore[misc]


def scattered(windows: int) -> Iterator[RawBatch]:
    """So many windows of a symbol that are open together, in any order."""
    times = np.random.default_rng(2).permutation(2 * windows)[:windows] * 1_000 + BASE_MS
    (log,) = pack_logs(np.zeros(windows, np.int64), times, 1)
    for data in log:
        yield from _fetched(data, 0)  # type: ignore[misc]


def visits() -> Records:
    """Two hundred keys that come and go for five hours and a half."""
    return records((number * 100, f"K{number % 200}", {}) for number in range(200_000))


def ids(number: int) -> Records:
    """So many ids of one symbol, and a tick so far ahead that all are forgotten."""

    def described() -> Iterator[tuple[int, str, dict[str, object]]]:
        for each in range(number):
            yield each // 10, "A", {"id": f"id-{each:020}"}
        yield 10 * 86_400_000, "A", {"id": "late"}

    return records(described())


def corrected(windows: int) -> Records:
    """Windows that are all kept, and cancels and corrections of what is there and what isn't."""
    draw = random.Random(3)

    def described() -> Iterator[tuple[int, str, dict[str, object]]]:
        for each in range(4 * windows):
            yield each // 4 * 1_000, "A", {"id": each}
        for _ in range(2_000):
            kind = draw.choice("XC")
            yield 0, "A", {"kind": kind, "id": draw.randrange(6 * windows)}

    return records(described())


def jumps() -> Records:
    """Two thousand open windows that one tick closes: they come out in one step."""
    return records((number % 2_000 * 1_000 if number < 20_000 else 86_400_000, "A", {}) for number in range(20_001))


SHAPES = (
    Shape(
        "native: days shuffled, 1 s, lag 1 d",
        LaneSpec(window=TumblingWindows(S), lag_ns=DAY, key_ttl_ns=30 * DAY),
        shuffled_days,
    ),
    Shape(
        "native: 40,000 scattered windows of a key",
        LaneSpec(window=TumblingWindows(S), lag_ns=DAY, key_ttl_ns=30 * DAY),
        lambda: scattered(40_000),
    ),
    Shape("one clock a partition, 200 keys come and go", LaneSpec(scope="partition"), visits),
    Shape(
        "deduplicate, 1,000,000 ids of a symbol",
        LaneSpec(pipeline=(Deduplicate(("id",), DAY, max_ids=2_000_000),)),
        lambda: ids(1_000_000),
    ),
    Shape(
        "items behind map, 200,000 in a window",
        LaneSpec(pipeline=(Map("benchmarks.stalls:more"),), payload="items", window=TumblingWindows(DAY)),
        lambda: records((number, "A", {}) for number in range(200_000)),
    ),
    Shape(
        "corrections, 16,000 windows kept",
        LaneSpec(window=TumblingWindows(S), lateness_ns=DAY, corrections=CORRECTIONS),
        lambda: corrected(16_000),
    ),
    Shape(
        "plain: one tick closes 2,000 windows",
        LaneSpec(window=TumblingWindows(S), lag_ns=36_000 * S, payload="both"),
        jumps,
    ),
)


def take(portion: list[object], size: int, source: Records) -> bool:
    """Fill a portion; whether there was anything. A batch is not divided."""
    portion.clear()
    count = 0
    for item in source:
        portion.append(item)
        count += len(item) if isinstance(item, RawBatch) else 1
        if count >= size:
            break
    return bool(portion)


def drain(steps: Generator[None, None, object], watch: Watch) -> None:
    """Run steps to their end."""
    done = False

    def step() -> None:
        nonlocal done
        try:
            next(steps)
        except StopIteration:
            done = True

    while not done:
        watch.timed("restore", step)


def measure(shape: Shape) -> Watch:
    """Feed the shape's log to a lane, store its state now and then, and restore another from it."""
    watch, source = Watch(), shape.make()
    first = next(source)
    native = isinstance(first, RawBatch)
    lane: Lane = make_lane(shape.spec, Input("ticks", 0, 1), native)
    stored: dict[bytes, bytes] = {}
    portion: list[object] = [first]
    at_once = partition.FIRST_RECORDS
    effects, changes = Effects(), []

    def process() -> None:
        nonlocal effects
        effects = lane.process(portion)  # type: ignore[arg-type]

    def commit() -> None:
        nonlocal changes
        changes = lane.take_changes()

    def keep(records: Sequence[OutRecord]) -> None:
        for record in records:
            assert record.key is not None
            if record.value is None:
                stored.pop(record.key, None)
            else:
                stored[record.key] = record.value

    while portion:
        took_s = watch.timed("process", process)
        affordable = int(max(effects.records, 1) * partition.STEP_TARGET_S / max(took_s, 1e-6))
        at_once = min(max(affordable, partition.LEAST_RECORDS), 2 * at_once, 5_000)
        pack(effects.frames, watch)
        if lane.changes_waiting >= committer.CHANGES_BEFORE_COMMIT:
            watch.timed("changes", commit)
            pack(changes, watch)
            keep(changes)
        take(portion, at_once, source)
    watch.timed("changes", commit)
    keep(changes)
    again = make_lane(shape.spec, Input("ticks", 0, 1), native)
    drain(again.restore_in_steps(stored, where="benchmark"), watch)
    assert entries_of(again.take_changes()).keys() == {b"m"}, "nothing is to be written of what was just read"
    assert again.key_count == lane.key_count
    return watch


def pack(written: OutRecords, watch: Watch) -> None:
    """What a sink does with records before they are sent: portions in native batches, or in aiokafka's builder."""
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    for portion in _portions(written):

        def fill(portion: OutRecords = portion) -> None:
            if not isinstance(portion, list):
                portion.batches(partitions=4, partition=None, keyless=0, limit_bytes=1 << 20, now_ms=0, codec=LZ4)
                return
            builder = DefaultRecordBatchBuilder(2, LZ4, 1, 1, 0, 0, 1 << 20)
            for number, record in enumerate(portion):
                if builder.append(number, 0, record.key, record.value, []) is None:
                    builder.build()
                    builder = DefaultRecordBatchBuilder(2, LZ4, 1, 1, 0, 0, 1 << 20)
            builder.build()

        watch.timed("pack", fill)


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-ms", type=float, default=100.0, help="the longest that a step may take (default 100)")
    options = parser.parse_args()
    calm_collector()
    print(f"| shape | {' | '.join(f'{kind}, ms' for kind in KINDS)} |\n|---|{'---|' * len(KINDS)}", flush=True)
    too_long = []
    for shape in SHAPES:
        longest_s = measure(shape).longest_s
        cells = [f"{longest_s[kind] * 1e3:.0f}" if kind in longest_s else "-" for kind in KINDS]
        print(f"| {shape.name} | {' | '.join(cells)} |", flush=True)
        too_long += [f"{shape.name}: {kind}" for kind in longest_s if longest_s[kind] * 1e3 > options.limit_ms]
    if too_long:
        sys.exit(f"longer than {options.limit_ms:g} ms: {'; '.join(too_long)}")


if __name__ == "__main__":
    main()
