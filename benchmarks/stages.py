"""What a tick costs in the native path, stage by stage, in CPU microseconds. No broker: the batches are built here.

    python -m benchmarks.stages [--ticks 400000] [--runs 5] [--reference]

The load is that of the comparison with other systems: 4 partitions, 1,000 symbols by Zipf, 5 s windows, 1 s of
disorder, 0.06 frames a tick, lz4, half a MiB a batch. Changes are taken every 100,000 ticks, as by a commit interval
of 100 ms at a million ticks a second. CPU time, not wall: the machine may be shared. Medians of all runs.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import numpy as np
import orjson
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from workers.core.lane import Input
from workers.core.partitioning import partition_for
from workers.core.records import records_of
from workers.core.spec import LaneSpec
from workers.kafka.fetch_hook import _BatchRecords, _BatchSlices
from workers.native.choose import make_lane
from workers.native.lane import NativeLane

PARTITIONS = 4
SYMBOLS = 1_000
TICKS_PER_WINDOW = 16_500
COMMIT_EVERY = 100_000
BATCH_BYTES = 1 << 19
LZ4 = 3

Log = list[bytes]


def make_logs(
    ticks: int, *, symbols: int = SYMBOLS, disorder_ms: int = 1_000, partitions: int = PARTITIONS
) -> list[Log]:
    """The stored batches of each partition, in order, of the load above."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, symbols + 1)
    chosen = rng.choice(symbols, ticks, p=weights / weights.sum())
    times = 1_700_000_000_000 + np.arange(ticks) * 5_000 // TICKS_PER_WINDOW - rng.integers(0, disorder_ms, ticks)
    return pack_logs(chosen, times, partitions)


def pack_logs(symbols: np.ndarray, times: np.ndarray, partitions: int) -> list[Log]:
    """The stored batches of each partition, for the symbols' numbers and the event times (ms) of some ticks."""
    rng = np.random.default_rng(2)
    ticks = len(symbols)
    prices, sizes = np.round(100 + rng.random(ticks) * 50, 2).tolist(), rng.integers(1, 1_000, ticks).tolist()
    builders: list[DefaultRecordBatchBuilder | None] = [None] * partitions
    logs: list[Log] = [[] for _ in range(partitions)]
    counts, firsts = [0] * partitions, [0] * partitions

    def close(partition: int) -> None:
        if (builder := builders[partition]) is not None:
            data = bytearray(builder.build())
            data[:8] = firsts[partition].to_bytes(8, "big")
            logs[partition].append(bytes(data))
        builders[partition] = None

    for symbol_number, ts, price, size in zip(symbols.tolist(), times.tolist(), prices, sizes, strict=True):
        symbol = f"SYM{symbol_number:04d}"
        value = orjson.dumps({"symbol": symbol, "ts": ts, "price": price, "size": size})
        partition = partition_for(symbol.encode(), partitions)
        while True:
            if builders[partition] is None:
                builders[partition] = DefaultRecordBatchBuilder(2, LZ4, 0, -1, -1, -1, BATCH_BYTES)
                firsts[partition] = counts[partition]
            delta = counts[partition] - firsts[partition]
            if builders[partition].append(delta, ts + 2_000, symbol.encode(), value, []) is not None:
                break
            close(partition)
        counts[partition] += 1
    for partition in range(partitions):
        close(partition)
    return logs


class Stopwatch:
    """CPU seconds by stage; a stage that runs inside another is taken off it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object) -> object:
            self._inner.append(0.0)
            began = time.process_time()
            result = function(*args)
            took = time.process_time() - began
            self.seconds[stage] += took - self._inner.pop()
            self._inner[-1] += took
            return result

        return run


def run_once(logs: list[Log], native: bool, watch: Stopwatch) -> tuple[float, int, int]:
    """CPU seconds of everything, ticks and frames."""
    lanes = [make_lane(LaneSpec(), Input("ticks", number, PARTITIONS), native) for number in range(PARTITIONS)]
    positions = [0] * PARTITIONS
    unpack = watch.timed("unpack, crc", lambda data, position: list(_fetched(data, position)))
    process: list[Callable[..., object]] = [watch.timed("lane, the rest", lane.process) for lane in lanes]
    changes: list[Callable[..., object]] = [watch.timed("changes", lane.take_changes) for lane in lanes]
    ticks = frames = since_commit = 0
    began = time.process_time()
    for number in range(max(map(len, logs))):
        for partition, log in enumerate(logs):
            if number >= len(log):
                continue
            batches = unpack(log[number], positions[partition])
            assert isinstance(batches, list)
            if not native:
                batches = list(records_of(batches))
            effects = process[partition](batches)
            positions[partition] = lanes[partition].position
            ticks += effects.records  # type: ignore[attr-defined]
            since_commit += effects.records  # type: ignore[attr-defined]
            frames += len(effects.frames)  # type: ignore[attr-defined]
        if since_commit >= COMMIT_EVERY:
            since_commit = 0
            for take in changes:
                take()
    return time.process_time() - began, ticks, frames


def _fetched(data: bytes, position: int) -> _BatchRecords:
    where = TopicPartition("ticks", 0)
    return _BatchRecords(where, _BatchSlices(data), None, position, None, None, True, READ_COMMITTED)


def instrument(watch: Stopwatch) -> None:
    """Time the native functions where the lane calls them."""
    for stage, name in (
        ("decompress, decode, windows, frame text", "_take_batch"),
        ("records unsure", "_take_record"),
        ("results as objects", "_collect"),
    ):
        setattr(NativeLane, name, watch.timed(stage, getattr(NativeLane, name)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reference", action="store_true", help="measure the reference lane as well")
    options = parser.parse_args()
    logs = make_logs(options.ticks)
    watch = Stopwatch()
    if options.reference:
        seconds, ticks, frames = run_once(logs, False, watch)
        print(f"reference lane: {seconds / ticks * 1e6:.3f} CPU-us per tick, {frames / ticks:.4f} frames per tick")
    instrument(watch)
    runs: list[dict[str, float]] = []
    run_once(logs, True, watch)  # warm
    for _ in range(options.runs):
        watch.seconds.clear()
        seconds, ticks, frames = run_once(logs, True, watch)
        runs.append({**watch.seconds, "all": seconds})
    print(f"{ticks} ticks, {frames / ticks:.4f} frames per tick; CPU-us per tick, median of {options.runs} runs")
    for stage in runs[0]:
        print(f"{stage:>40}  {median(run[stage] for run in runs) / ticks * 1e6:.4f}")


if __name__ == "__main__":
    main()
