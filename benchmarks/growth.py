"""How the cost of a worker grows: with keys, disorder and payload (the lane alone), and with partitions (on a broker).

usage: python -m benchmarks.growth [--quick] [--out DIR]

The lane's rows are those of `benchmarks.scale`. For partitions, a worker process drains a short and a long topic of the
same market, exactly once; the marginal CPU per tick, its memory, and what it costs per second when nothing comes any
more. Prints tables in Markdown and, with ``--out``, draws `growth.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.fill import create_topic, delete_topics, fill
from benchmarks.measure import measure_windower, worker_argv
from benchmarks.scale import Row, measure_all, table
from workers.apps.broker import find_broker

__all__ = ["PartitionsRow", "draw", "measure_partitions", "partitions_table"]

RUN_LIMIT_S = 240.0
IDLE_S = 10.0
SETTLE_S = 12.0  # the last provisional frames are out


@dataclass(frozen=True)
class PartitionsRow:
    """A worker with so many partitions; ``idle_ms_per_s``: CPU milliseconds a second when nothing comes."""

    partitions: int
    cpu_us_per_tick: float
    seconds: float
    rss_mib: float
    idle_ms_per_s: float


async def measure_partitions(bootstrap: str, partitions: int, work: Path, *, short: int, long: int) -> PartitionsRow:
    """Drain both topics, then watch the worker idle."""
    found = []
    names: list[str] = []
    for ticks in (short, long):
        topic, name = f"growth-{partitions}-{ticks}", f"growth-{uuid.uuid4().hex[:8]}"
        await fill(bootstrap, topic, ticks, partitions=partitions)
        await create_topic(bootstrap, name, partitions)
        names += [topic, name]
        argv = worker_argv(bootstrap, topic, name, partitions)
        log = work / f"{name}.log"
        found.append(await asyncio.to_thread(measure_windower, argv, bootstrap, name, log, limit_s=RUN_LIMIT_S))
    idle = await asyncio.to_thread(_idle, worker_argv(bootstrap, names[-2], names[-1], partitions))
    changelogs = [
        f"{name}-{kind}" for name in names[1::2] for kind in ("changelog", "late", "dead-letters", "feedback")
    ]
    await delete_topics(bootstrap, [*names, *changelogs])
    small, large = found
    return PartitionsRow(
        partitions, (large.cpu_s - small.cpu_s) / (long - short) * 1e6, large.seconds, large.rss_mib, idle
    )


def _idle(argv: Sequence[str]) -> float:
    """CPU milliseconds a second of the same application, started again when everything is done."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE_S)
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        time.sleep(IDLE_S)
        after = watched.cpu_times()
        return (after.user + after.system - before.user - before.system) / IDLE_S * 1e3
    finally:
        process.terminate()
        process.wait(30)


def partitions_table(rows: Sequence[PartitionsRow]) -> str:
    """Markdown."""
    lines = [
        "| partitions | CPU-µs per tick | start to last frame, s | peak RSS, MiB | idle: CPU-ms per second |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.partitions} | {row.cpu_us_per_tick:.2f} | {row.seconds:.1f} | {row.rss_mib:.0f} | "
        f"{row.idle_ms_per_s:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(lanes: Sequence[Row], partitions: Sequence[PartitionsRow], path: Path) -> None:
    """Four panels: CPU per tick over keys, disorder, payload and partitions."""
    from matplotlib.figure import Figure  # not above: half a second, for those who only want tables

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, what, label in (
        (axes[0][0], "keys", "keys in the partition"),
        (axes[0][1], "disorder", "disorder, s"),
    ):
        points = sorted((row.x, row.cpu_us_per_tick) for row in lanes if row.curve == what and row.x is not None)
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", color="#1668b8")
        axis.set(xlabel=label, ylabel="CPU-µs per tick", ylim=(0, None), xscale="log")
        axis.grid(alpha=0.3)
    payload = [row for row in lanes if row.curve == "payload"]
    axes[1][0].barh([row.name for row in payload], [row.cpu_us_per_tick for row in payload], color="#1668b8")
    axes[1][0].set(xlabel="CPU-µs per tick (logarithmic)", xscale="log")
    if not partitions:
        figure.savefig(path, metadata={"Date": None})
        return
    axes[1][1].plot(
        [row.partitions for row in partitions], [row.cpu_us_per_tick for row in partitions], marker="o", color="#1668b8"
    )
    axes[1][1].set(xlabel="partitions of one worker", ylabel="CPU-µs per tick", ylim=(0, None), xscale="log")
    axes[1][1].grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


async def _run(bootstrap: str) -> list[PartitionsRow]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="workers-growth-") as folder:
        for number in (1, 4, 16, 64, 256):
            rows.append(await measure_partitions(bootstrap, number, Path(folder), short=500_000, long=2_000_000))
            print(f"{number} partitions: {rows[-1]}", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks and keys, no partitions")
    parser.add_argument("--out", type=Path, help="also draw growth.svg in this folder")
    options = parser.parse_args()
    os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xms1g -Xmx1g")
    lanes = measure_all(quick=options.quick)
    print(table(lanes), flush=True)
    partitions: list[PartitionsRow] = []
    if not options.quick:
        with find_broker() as broker:
            partitions = asyncio.run(_run(broker.bootstrap_servers))
        print("\n" + partitions_table(partitions))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(lanes, partitions, options.out / "growth.svg")


if __name__ == "__main__":
    main()
