"""Recovery: how long after a SIGKILL the first frame comes, and how fast state is restored.

usage: python -m benchmarks.recovery [--keys N,N,...] [--guarantee exactly_once|at_least_once] [--session-ms N]

One worker fills its state: every key has an open window. It is killed, another is started at once, and every key gets
a tick that closes its window. The group gives the partitions away only when the dead worker's session is over, which
is a setting (Kafka's default is 10 s or more) and not a speed; so it is taken off. (It runs from the last heartbeat,
so up to a third of it is taken off too much.) Needs a broker; writes a table in
Markdown to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from workers.apps.broker import find_broker
from workers.core.partitioning import partition_for

PARTITIONS = 8
START_MS = 1_700_000_000_000
ROUNDS = 3  # ticks per key before the kill: the changelog holds more than the last value
LIMIT_S = 180.0


@dataclass
class Recovered:
    """Seconds; ``first_frame_s`` and ``last_frame_s`` from the kill, the session timeout taken off."""

    keys: int
    first_frame_s: float
    last_frame_s: float
    restore_s: float


async def measure(bootstrap: str, keys: int, guarantee: str, session_ms: int) -> Recovered:
    """Fill, kill, restart; see the module's text."""
    app = f"recovery-{uuid.uuid4().hex[:8]}"
    settings = {
        "bootstrap_servers": bootstrap,
        "application_id": app,
        "topics.ticks": f"{app}-ticks",
        "topics.frames": f"{app}-frames",
        "topics.partitions": str(PARTITIONS),
        "processing_guarantee": guarantee,
        "window.idle_after": "1h",  # else the silence before the kill shows every window provisionally
        "metrics.port": "off",
        "logging.format": "json",
        "kafka.session.timeout.ms": str(session_ms),
        "kafka.heartbeat.interval.ms": str(session_ms // 3),
    }
    symbols = [f"SYM{number}" for number in range(keys)]
    with tempfile.TemporaryDirectory() as folder:
        first_log, second_log = Path(folder, "first.log"), Path(folder, "second.log")
        with _worker(settings, first_log) as first:
            await _until(lambda: "partition ready" in first_log.read_text(), first_log)
            for number in range(ROUNDS):
                await _send(bootstrap, settings["topics.ticks"], symbols, START_MS + number)
                await _until_committed(bootstrap, app, settings["topics.ticks"], keys * (number + 1), first_log)
            first.kill()
            first.wait(10)
            killed_s = time.monotonic()
        with _worker(settings, second_log):
            sending = asyncio.ensure_future(_send(bootstrap, settings["topics.ticks"], symbols, START_MS + 60_000))
            first_s, last_s = await _frames(bootstrap, settings["topics.frames"], keys, second_log)
            await sending
            restore_s = _restore_seconds(second_log)
    session_s = session_ms / 1000
    return Recovered(keys, first_s - killed_s - session_s, last_s - killed_s - session_s, restore_s)


@contextmanager
def _worker(settings: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "workers", "run"]
    for name, value in settings.items():
        argv += ["--set", f"{name}={value}"]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


async def _send(bootstrap: str, topic: str, symbols: list[str], ts_ms: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type="lz4", linger_ms=10) as producer:
        for symbol in symbols:
            value = b'{"symbol":"%s","ts":%d,"price":1.25,"size":10}' % (symbol.encode(), ts_ms)
            key = symbol.encode()
            await producer.send(topic, value, key=key, partition=partition_for(key, PARTITIONS))


async def _until_committed(bootstrap: str, app: str, topic: str, records: int, log: Path) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        wanted = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        limit_s = time.monotonic() + LIMIT_S
        while True:
            found = await admin.list_consumer_group_offsets(app, partitions=wanted)
            if sum(max(each.offset, 0) for each in found.values()) >= records:
                return
            _check_time(limit_s, log)
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def _frames(bootstrap: str, topic: str, count: int, log: Path) -> tuple[float, float]:
    """When the first frame could be read, and when all could."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    try:
        seen, first_s = 0, 0.0
        limit_s = time.monotonic() + LIMIT_S
        while seen < count:
            seen += sum(map(len, (await consumer.getmany(timeout_ms=100, max_records=10_000)).values()))
            first_s = first_s or (time.monotonic() if seen else 0.0)
            _check_time(limit_s, log)
        return first_s, time.monotonic()
    finally:
        await consumer.stop()


async def _until(condition: Callable[[], bool], log: Path) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        _check_time(limit_s, log)
        await asyncio.sleep(0.05)


def _check_time(limit_s: float, log: Path) -> None:
    if time.monotonic() > limit_s:
        raise TimeoutError(f"not within {LIMIT_S:.0f} s; the worker says:\n{log.read_text()[-4000:]}")


def _restore_seconds(log: Path) -> float:
    """From the assignment of the partitions until the last of them was ready, by the worker's own log."""
    times: dict[str, list[datetime]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            times.setdefault(entry["event"], []).append(datetime.fromisoformat(entry["timestamp"]))
    return (times["partition ready"][-1] - times["partitions assigned"][0]).total_seconds()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", default="1000,10000,100000")
    parser.add_argument("--guarantee", default="exactly_once", choices=("exactly_once", "at_least_once"))
    parser.add_argument("--session-ms", type=int, default=3_000)
    options = parser.parse_args()
    print(f"| keys ({options.guarantee}) | first frame after SIGKILL, s | last frame, s | restored in, s | keys/s |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    with find_broker() as broker:
        for keys in map(int, options.keys.split(",")):
            found = asyncio.run(measure(broker.bootstrap_servers, keys, options.guarantee, options.session_ms))
            rate = found.keys / found.restore_s
            print(
                f"| {found.keys:,} | {found.first_frame_s:.2f} | {found.last_frame_s:.2f} | {found.restore_s:.2f} "
                f"| {rate:,.0f} |",
                flush=True,
            )
    print(f"\nSession timeout of {options.session_ms} ms taken off; {PARTITIONS} partitions, one worker.")


if __name__ == "__main__":
    main()
