"""What partitions cost in one process, in both scopes of a commit: the start, live commits, and idling.

usage: python -m benchmarks.scopes [--partitions N,N,...] [--scopes SCOPE,...] [--ticks N] [--live-s N] [--refused]

For each number of partitions a topic is filled with the same market. A worker starts on it, drains it, is sent 3,000
ticks a second for a while, and then nothing. Measured from outside: from the start of the process until all partitions
are read, and until the last frame that the data caused could be read; CPU and established connections when nothing
comes any more. Measured inside, by a wrapper that notes each commit's duration: from when a partition's commit begins
until it is acknowledged, while ticks come live. Needs a broker; writes a table in Markdown to standard output.

With ``--refused`` instead: 64 partitions commit together, and one of them has a record that the broker refuses. How
long until the others are committed, beside a round in which nothing is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.fill import delete_topics, fill, market_ticks
from workers.apps.broker import find_broker
from workers.apps.produce.sender import TickSender
from workers.core.frames import OutRecord
from workers.core.partitioning import partition_for
from workers.kafka.cluster import Cluster
from workers.kafka.ports import Commit
from workers.settings import load_settings

LIMIT_S = 240.0
QUIET_S = 4.0
SETTLE_S = 12.0  # the last provisional frames are out
IDLE_S = 10.0
LIVE_RATE = 3_000
PROVISIONAL = b'"status":"provisional"'


@dataclass(frozen=True)
class Row:
    """A worker in one scope with so many partitions; seconds from the start of its process, commits in ms."""

    partitions: int
    scope: str
    reading_s: float
    last_frame_s: float
    commit_p50_ms: float
    commit_p99_ms: float
    live_ms_per_s: float
    idle_ms_per_s: float
    sockets: int


async def measure(bootstrap: str, topic: str, partitions: int, scope: str, ticks: int, live_s: float) -> Row:
    """One worker, from its start to its idling."""
    name = f"scopes-{uuid.uuid4().hex[:8]}"
    settings = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": topic,
        "topics.frames": f"{name}-frames",
        "topics.partitions": partitions,
        "commit_scope": scope,
        "metrics.port": "off",
        "logging.format": "json",
    }
    with tempfile.TemporaryDirectory() as folder:
        log, durations = Path(folder, "worker.log"), Path(folder, "commits")
        await asyncio.to_thread(_create_topics, settings)
        with _worker(settings, log, durations) as process:
            watched = psutil.Process(process.pid)
            frames = await _last_frame(bootstrap, f"{name}-frames", partitions, log)
            live = list(itertools.islice(market_ticks(ticks + int(live_s * LIVE_RATE)), ticks, None))
            before = len(_commits(durations))
            live_ms = await _cpu_ms_per_s(watched, _send_live(bootstrap, topic, partitions, live))
            commits = sorted(_commits(durations)[before:])
            await asyncio.sleep(SETTLE_S)
            idle_ms = await _cpu_ms_per_s(watched, asyncio.sleep(IDLE_S))
            sockets = sum(each.status == psutil.CONN_ESTABLISHED for each in watched.net_connections("tcp"))
        ready = _times(log, "partition ready")
    await delete_topics(bootstrap, [f"{name}-{kind}" for kind in ("frames", "late", "dead-letters", "changelog")])
    assert len(ready) >= partitions, f"{len(ready)} of {partitions} partitions were ever read"
    begun_s = _BEGUN[process.pid]
    return Row(
        partitions,
        scope,
        ready[partitions - 1] - begun_s,
        frames - begun_s,
        statistics.median(commits),
        commits[math.ceil(0.99 * len(commits)) - 1],
        live_ms,
        idle_ms,
        sockets,
    )


_BEGUN: dict[int, float] = {}  # wall clock, by process id


@contextmanager
def _worker(settings: dict[str, object], log: Path, durations: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "benchmarks.scopes", "--as-worker", json.dumps(settings), str(durations)]
    durations.touch()
    with log.open("wb") as output:
        begun_s = time.time()
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        _BEGUN[process.pid] = begun_s
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _commits(durations: Path) -> list[float]:
    """Milliseconds of each so far."""
    return [float(line) * 1e3 for line in durations.read_text().splitlines()]


def _create_topics(settings: dict[str, object]) -> None:
    """That is no part of a worker's start, but of an application's first."""
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    subprocess.run([sys.executable, "-m", "workers", "topics", "create", *flags], check=True, stdout=subprocess.DEVNULL)


async def _last_frame(bootstrap: str, topic: str, partitions: int, log: Path) -> float:
    """The wall clock when the last final frame could be read, after which none came for a while."""
    limit_s = time.monotonic() + LIMIT_S
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    try:
        while topic not in await consumer.topics():
            _check_time(limit_s, log)
            await asyncio.sleep(0.1)
        consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
        last_s, wall_s = 0.0, 0.0
        while not last_s or time.monotonic() - last_s < QUIET_S:
            found = await consumer.getmany(timeout_ms=50, max_records=20_000)
            if any(PROVISIONAL not in record.value for records in found.values() for record in records):
                last_s, wall_s = time.monotonic(), time.time()
            _check_time(limit_s, log)
        return wall_s
    finally:
        await consumer.stop()


async def _send_live(bootstrap: str, topic: str, partitions: int, ticks: Sequence[tuple[bytes, bytes]]) -> None:
    """The market goes on, in portions of a twentieth of a second."""
    portion = LIVE_RATE // 20
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type="lz4", enable_idempotence=True
    ) as producer:
        sender = TickSender(producer, topic, partitions)
        begun_s = time.monotonic()
        for number, first in enumerate(range(0, len(ticks), portion)):
            await asyncio.sleep(max(0.0, begun_s + number / 20 - time.monotonic()))
            sender.add(list(ticks[first : first + portion]))
            await sender.send(everything=True)
        await sender.finish()


async def _cpu_ms_per_s(process: psutil.Process, during: Awaitable[object]) -> float:
    before, begun_s = process.cpu_times(), time.monotonic()
    await during
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - begun_s) * 1e3


def _times(log: Path, event: str) -> list[float]:
    """When the worker logged it, by the wall clock."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [datetime.fromisoformat(each["timestamp"]).timestamp() for each in entries if each["event"] == event]


def _check_time(limit_s: float, log: Path) -> None:
    if time.monotonic() > limit_s:
        raise TimeoutError(f"not within {LIMIT_S:.0f} s; the worker says:\n{log.read_text()[-4000:]}")


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| partitions | `commit_scope` | start to all read, s | start to last frame, s | commit p50, ms | p99, ms "
        "| live: CPU-ms per second | idle: CPU-ms per second | sockets |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.partitions} | {row.scope} | {row.reading_s:.1f} | {row.last_frame_s:.1f} | {row.commit_p50_ms:.1f} "
        f"| {row.commit_p99_ms:.1f} | {row.live_ms_per_s:.0f} | {row.idle_ms_per_s:.0f} | {row.sockets} |"
        for row in rows
    ]
    return "\n".join(lines)


async def _run(bootstrap: str, options: argparse.Namespace) -> None:
    rows = []
    await _once(bootstrap)
    for partitions in map(int, options.partitions.split(",")):
        for scope in options.scopes.split(","):
            topic = f"scopes-{partitions}-{uuid.uuid4().hex[:6]}"  # each its own: live ticks are added
            await fill(bootstrap, topic, options.ticks, partitions=partitions)
            rows.append(await measure(bootstrap, topic, partitions, scope, options.ticks, options.live_s))
            await delete_topics(bootstrap, [topic])
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))


async def _once(bootstrap: str) -> None:
    """A new broker makes its own topics for the first group and the first transaction: that is not to count."""
    topic = f"scopes-{uuid.uuid4().hex[:6]}"
    await fill(bootstrap, topic, 50_000, partitions=1)
    await measure(bootstrap, topic, 1, "partition", 50_000, 1.0)


async def measure_refused(bootstrap: str, partitions: int, rounds: int = 20) -> str:
    """A table of what one refused work costs the others that are committed with it."""
    name = f"refused-{uuid.uuid4().hex[:8]}"
    values = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": name,
        "topics.frames": f"{name}-frames",
        "topics.partitions": partitions,
        "commit_scope": "process",
    }
    await asyncio.to_thread(_create_topics, values)
    kafka = Cluster(load_settings(overrides=values, environ={}), lambda step, began_s: None)
    await kafka.prepare()
    owned = asyncio.Event()

    async def on_assigned(numbers: set[int]) -> None:
        if len(numbers) == partitions:
            owned.set()

    async def on_revoked(numbers: set[int]) -> None:
        pass

    consumer = kafka.consumer(on_revoked=on_revoked, on_assigned=on_assigned, batches=False)
    await consumer.start()
    try:
        await asyncio.wait_for(owned.wait(), LIMIT_S)
        sinks = [kafka.sink(number) for number in range(partitions)]
        for sink in sinks:
            await sink.open()
        keys = _keys_of_each(partitions, 20)
        good_ms, refused_ms = [], []
        for number in range(2 * rounds):
            if number % 2:
                sinks[0] = kafka.sink(0)  # as a partition that failed is opened again
                await sinks[0].open()
            begun_s = time.monotonic()
            large = kafka.topics.out.frames.max_record_bytes + 100_000 if number % 2 else 0
            first = asyncio.ensure_future(sinks[0].commit(_some(number, keys[0], large)))
            others = zip(sinks[1:], keys[1:], strict=True)
            await asyncio.gather(*(sink.commit(_some(number, found)) for sink, found in others))
            (refused_ms if number % 2 else good_ms).append((time.monotonic() - begun_s) * 1e3)
            await asyncio.gather(first, return_exceptions=True)
            assert (first.exception() is not None) == bool(number % 2)
            if number % 2:  # alone until it succeeds
                await sinks[0].close()
                sinks[0] = kafka.sink(0)
                await sinks[0].open()
                await sinks[0].commit(_some(number, keys[0]))
        for sink in sinks:
            await sink.close()
    finally:
        await consumer.stop()
    lines = ["| 64 partitions | the others are committed after: p50, ms | longest, ms |", "|---|---:|---:|"]
    for what, found in (("nothing is refused", good_ms[1:]), ("one work is refused", refused_ms)):
        lines.append(f"| {what} | {statistics.median(found):.0f} | {max(found):.0f} |")
    return "\n".join(lines)


def _keys_of_each(partitions: int, count: int) -> list[list[bytes]]:
    """So many keys of each partition: as ticks are, frames are on the partition of their key."""
    found: list[list[bytes]] = [[] for _ in range(partitions)]
    for number in itertools.count():
        keys = found[partition_for(b"S%d" % number, partitions)]
        if len(keys) < count:
            keys.append(b"S%d" % number)
        elif all(len(each) == count for each in found):
            return found
    raise AssertionError


def _some(number: int, keys: Sequence[bytes], more_bytes: int = 0) -> Commit:
    """A frame of each key and forty windows; another frame that is so much larger."""
    frames = [OutRecord(key, os.urandom(200), 1_000) for key in keys]
    if more_bytes:
        frames.append(OutRecord(keys[0], os.urandom(more_bytes), 1_000))
    return Commit(number + 1, frames=frames, changes=[OutRecord(b"w%d" % each, os.urandom(60)) for each in range(40)])


def _work(settings: str, durations: Path) -> None:
    """A worker like a user's that notes how long each commit took."""
    from workers.commands.common import run_async
    from workers.telemetry.logs import configure_logging
    from workers.worker.main import run_worker
    from workers.worker.report import PartitionReport

    loaded = load_settings(overrides=json.loads(settings), environ={})
    configure_logging(loaded.logging)
    original = PartitionReport.committed
    with durations.open("w", buffering=1) as noted:

        def committed(self: PartitionReport, under_way: object, lane: object, took_s: float) -> None:
            noted.write(f"{took_s}\n")
            original(self, under_way, lane, took_s)  # type: ignore[arg-type]

        PartitionReport.committed = committed  # type: ignore[method-assign,assignment]

        async def run(stop: asyncio.Event) -> None:
            await run_worker(loaded, stop=stop)

        run_async(run, patience_s=math.inf)


def main() -> None:
    if sys.argv[1:2] == ["--as-worker"]:
        _work(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", default="4,64,256")
    parser.add_argument("--scopes", default="partition,process")
    parser.add_argument("--ticks", type=int, default=500_000)
    parser.add_argument("--live-s", type=float, default=15.0)
    parser.add_argument("--refused", action="store_true", help="only what a refused record costs the others")
    options = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # topics that are new have no leader for a moment
    os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xms1g -Xmx1g")
    with find_broker() as broker:
        if options.refused:
            print(asyncio.run(measure_refused(broker.bootstrap_servers, 64)))
        else:
            asyncio.run(_run(broker.bootstrap_servers, options))


if __name__ == "__main__":
    main()
