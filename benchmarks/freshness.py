"""Freshness: how long after a window's end its first frame can be read, under a real-time load.

usage: python -m benchmarks.freshness [--rate 20000] [--symbols 1000] [--seconds 60] [--guarantee exactly_once]
                                      [--idle-after 1s,200ms,50ms] [--workers 1] [--out DIR]

A producer process sends ticks in real time; a read_committed consumer of this process notes when the first frame of
each (key, start) is there, in whatever status. Delay = now - window end, both by this machine's clock. Windows of the
first ten seconds are left out (start-up), and those still open at the end.

A symbol's window closes when the symbol's own clock says so: with its first tick later than end + lag. What the others
wait for is ``window.idle_after``, after which a provisional frame shows them; it is the setting that buys freshness.
Prints a table and a histogram; with ``--out``, draws `freshness.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiokafka import AIOKafkaConsumer

from benchmarks.fill import create_topic, delete_topics
from workers.apps.broker import find_broker

PARTITIONS = 4
WARM_UP_S = 10
BUCKETS_MS = (1_950, 2_000, 2_050, 2_100, 2_150, 2_200, 2_300, 2_500, 2_750, 3_000, 3_050, 3_100, 3_150, 3_200, 3_500)


def flags(bootstrap: str, name: str, options: argparse.Namespace, idle_after: str) -> list[str]:
    values = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": f"{name}-ticks",
        "topics.frames": f"{name}-frames",
        "topics.partitions": PARTITIONS,
        "processing_guarantee": options.guarantee,
        "window.idle_after": idle_after,
        "commit_interval": options.commit_interval,
        "metrics.port": "off",
    }
    return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]


async def watch(bootstrap: str, topic: str, until_s: float, begin_ms: int) -> tuple[list[int], Counter[str]]:
    """Delays in ms of the first frame of each window that ended after ``begin_ms``, and which trigger brought it."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=5,
    )
    await consumer.start()
    seen: set[tuple[str, int]] = set()
    delays: list[int] = []
    triggers: Counter[str] = Counter()
    try:
        while time.time() < until_s:
            batches = await consumer.getmany(timeout_ms=20)
            now_ms = time.time_ns() // 1_000_000
            for records in batches.values():
                for record in records:
                    frame = orjson.loads(record.value)
                    name = (frame["key"], frame["start"])
                    if name in seen:
                        continue
                    seen.add(name)
                    if frame["start"] >= begin_ms:
                        delays.append(now_ms - frame["end"])
                        triggers[frame["trigger"]] += 1
    finally:
        await consumer.stop()
    return delays, triggers


@dataclass(frozen=True)
class Run:
    """The delays in ms, in order, and the triggers of one setting."""

    idle_after: str
    delays: list[int]
    triggers: Counter[str]

    def at(self, share: float) -> float:
        """A quantile in seconds."""
        return self.delays[min(int(share * len(self.delays)), len(self.delays) - 1)] / 1000


def table(runs: Sequence[Run]) -> str:
    """Markdown."""
    lines = [
        "| idle_after | windows | p50, s | p90, s | p99, s | longest, s | first frame by watermark | provisional |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        closed = run.triggers["watermark"] / max(run.triggers.total(), 1)
        lines.append(
            f"| {run.idle_after} | {len(run.delays):,} | {run.at(0.5):.2f} | {run.at(0.9):.2f} | {run.at(0.99):.2f} | "
            f"{run.at(1.0):.2f} | {closed:.0%} | {1 - closed:.0%} |"
        )
    return "\n".join(lines)


def histogram(run: Run) -> str:
    """As text."""
    lines, previous = [f"idle_after {run.idle_after}: delay of the first frame"], 0
    for bound in BUCKETS_MS:
        count = sum(1 for delay in run.delays if previous <= delay < bound)
        lines.append(f"  < {bound / 1000:.2f} s {count:>8,} {'#' * round(60 * count / len(run.delays))}")
        previous = bound
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """A histogram for each setting, on one axis."""
    from matplotlib.figure import Figure  # not above: half a second, for those who only want tables

    figure = Figure(figsize=(10, 2.2 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    bins = [edge / 1000 for edge in range(1_900, 3_500, 20)]
    for axis, run in zip(axes, runs, strict=True):
        axis.hist([delay / 1000 for delay in run.delays], bins=bins, color="#1668b8")
        axis.set(
            title=f"idle_after {run.idle_after}: p50 {run.at(0.5):.2f} s, p99 {run.at(0.99):.2f} s", ylabel="windows"
        )
    axes[-1].set(xlabel="seconds from a window's end to its first readable frame")
    figure.savefig(path, metadata={"Date": None})


async def run(options: argparse.Namespace, idle_after: str, bootstrap: str) -> Run:
    name = f"fresh-{uuid.uuid4().hex[:8]}"
    topics = [f"{name}-ticks", f"{name}-frames"]
    for topic in topics:
        await create_topic(bootstrap, topic, PARTITIONS)
    mine = flags(bootstrap, name, options, idle_after)
    processes = [
        subprocess.Popen([sys.executable, "-m", "workers", "run", *mine], stderr=subprocess.DEVNULL)
        for _ in range(options.workers)
    ]
    try:
        await asyncio.sleep(4)
        begin_s = time.time()
        market = ("--symbols", str(options.symbols), "--rate", str(options.rate), "--disorder", "100ms")
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "workers",
                    "produce",
                    "--synthetic",
                    *market,
                    "--duration",
                    f"{options.seconds}s",
                    *mine,
                ],
                stderr=subprocess.DEVNULL,
            )
        )
        begin_ms = int((begin_s + WARM_UP_S) * 1000)
        delays, triggers = await watch(bootstrap, topics[1], begin_s + options.seconds - 1, begin_ms)
        if not delays or any(process.poll() for process in processes):
            raise SystemExit(f"no frames: a process ended early ({[process.poll() for process in processes]})")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        await delete_topics(bootstrap, topics)
    return Run(idle_after, sorted(delays), triggers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--guarantee", default="exactly_once")
    parser.add_argument("--idle-after", default="1s,200ms,50ms", help="one or more, with commas")
    parser.add_argument("--commit-interval", default="100ms")
    parser.add_argument("--out", type=Path, help="also draw freshness.svg in this folder")
    options = parser.parse_args()
    with find_broker() as broker:
        runs = [asyncio.run(run(options, each, broker.bootstrap_servers)) for each in options.idle_after.split(",")]
    print(
        f"{options.guarantee}, {options.rate:,} ticks/s, {options.symbols:,} symbols by Zipf's law, "
        f"commit_interval {options.commit_interval}, {options.workers} worker(s), {options.seconds} s each\n"
    )
    print(table(runs))
    print("\n```text\n" + "\n\n".join(map(histogram, runs)) + "\n```")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(runs, options.out / "freshness.svg")


if __name__ == "__main__":
    main()
