"""Freshness: how long after a window's end its first frame can be read, under a real-time load.

usage: python -m benchmarks.freshness [--rate 20000] [--symbols 1000] [--seconds 60] [--guarantee exactly_once]
                                      [--idle-after 1s] [--workers 1]

A producer process sends ticks in real time; a read_committed consumer of this process notes when the first frame of
each (key, start) is there, in whatever status. Delay = now - window end, both by this machine's clock. Windows of the
first ten seconds are left out (start-up), and those still open at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
import uuid
from collections import Counter

import orjson
from aiokafka import AIOKafkaConsumer

from benchmarks.fill import create_topic, delete_topics
from workers.broker import find_broker

PARTITIONS = 4
WARM_UP_S = 10
BUCKETS_MS = (1_950, 2_000, 2_050, 2_100, 2_150, 2_200, 2_300, 2_500, 2_750, 3_000, 3_050, 3_100, 3_150, 3_200, 3_500)


def flags(bootstrap: str, name: str, options: argparse.Namespace) -> list[str]:
    values = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": f"{name}-ticks",
        "topics.frames": f"{name}-frames",
        "topics.partitions": PARTITIONS,
        "processing_guarantee": options.guarantee,
        "window.idle_after": options.idle_after,
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


def report(delays: list[int], triggers: Counter[str], options: argparse.Namespace) -> None:
    delays.sort()

    def at(share: float) -> float:
        return delays[min(int(share * len(delays)), len(delays) - 1)] / 1000

    print(
        f"{options.guarantee}, {options.rate} ticks/s, {options.symbols} symbols, idle_after {options.idle_after}, "
        f"commit_interval {options.commit_interval}: {len(delays):,} windows"
    )
    print(
        f"p50 {at(0.5):.2f} s, p90 {at(0.9):.2f} s, p99 {at(0.99):.2f} s, max {delays[-1] / 1000:.2f} s; "
        f"first frames by {dict(triggers)}"
    )
    previous = 0
    for bound in BUCKETS_MS:
        count = sum(1 for delay in delays if previous <= delay < bound)
        print(f"  < {bound / 1000:.2f} s {count:>8,} {'#' * round(60 * count / len(delays))}")
        previous = bound


async def run(options: argparse.Namespace, bootstrap: str) -> None:
    name = f"fresh-{uuid.uuid4().hex[:8]}"
    topics = [f"{name}-ticks", f"{name}-frames"]
    for topic in topics:
        await create_topic(bootstrap, topic, PARTITIONS)
    mine = flags(bootstrap, name, options)
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
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        await delete_topics(bootstrap, topics)
    report(delays, triggers, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--guarantee", default="exactly_once")
    parser.add_argument("--idle-after", default="1s")
    parser.add_argument("--commit-interval", default="100ms")
    options = parser.parse_args()
    with find_broker() as broker:
        asyncio.run(run(options, broker.bootstrap_servers))


if __name__ == "__main__":
    main()
