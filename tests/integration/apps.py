"""Running the real commands in tests: an application with topics of its own, and processes that end with the test."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaProducer

from tests.support import oracle
from tests.support.verify import Topics, end_offsets

__all__ = ["App", "Process", "committed_through", "send", "wait_until"]

LIMIT_S = 60.0


@dataclass(frozen=True)
class App:
    """One application on a broker; everything is named after ``name``."""

    bootstrap: str
    name: str
    partitions: int = 4
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return Topics(*(f"{self.name}-{role}" for role in ("ticks", "frames", "late", "dead-letters", "changelog")))

    def flags(self, **more: object) -> list[str]:
        """The ``--set`` flags that make any command work on this application."""
        values: dict[str, object] = {
            "bootstrap_servers": self.bootstrap,
            "application_id": self.name,
            "topics.ticks": self.topics.ticks,
            "topics.frames": self.topics.frames,
            "topics.partitions": self.partitions,
            "metrics.port": "off",
            "logging.format": "console",
            # A worker that was killed is seen dead soon, and a rebalance is noticed: nobody waits for these here.
            "kafka.session.timeout.ms": 2_000,
            "kafka.heartbeat.interval.ms": 500,
            **self.settings,
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]

    def run_command(
        self, *command: str, timeout_s: float = LIMIT_S, **more: object
    ) -> subprocess.CompletedProcess[str]:
        """Run ``workers COMMAND`` to its end."""
        argv = [sys.executable, "-m", "workers", *command, *self.flags(**more)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)

    def argv(self, **more: object) -> Sequence[str]:
        """The command line of a ``workers run``."""
        return [sys.executable, "-m", "workers", "run", *self.flags(**more)]

    @contextmanager
    def worker(self, log: Path, **more: object) -> Iterator[Process]:
        """A ``workers run`` that is asked to stop at the end, and must then have stopped cleanly."""
        process = Process(self.argv(**more), log)
        try:
            yield process
            process.stop()
        finally:
            process.kill()


class Process:
    """A process of the project's, with its output in a file."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(argv, stdout=out, stderr=out)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, limit_s: float = LIMIT_S) -> None:
        """SIGTERM, and a clean end within the limit."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(limit_s)
        if code == -signal.SIGKILL:
            return  # by the test
        if code == -signal.SIGTERM and not self.output():
            return  # it was still importing, and had not yet asked to be told of signals
        assert code == 0, f"exit code {code}; its output ends:\n{self.output()[-3000:]}"

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)


async def wait_until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds; fails with ``what`` after the limit."""
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.05)


async def send(
    app: App,
    records: Sequence[tuple[bytes | None, bytes | None, int | None]],
    *,
    compression: str | None = "lz4",
    transactional_id: str | None = None,
) -> None:
    """Send (key, value, timestamp in ms or None) to the ticks topic, where murmur2 puts the key (none: partition 0).

    With a transactional id, all of them in one transaction."""
    producer = AIOKafkaProducer(
        bootstrap_servers=app.bootstrap,
        compression_type=compression,
        linger_ms=5,
        max_request_size=4 * 1024 * 1024,
        transactional_id=transactional_id,
    )
    await producer.start()
    try:
        async with producer.transaction() if transactional_id else nullcontext():
            for key, value, timestamp_ms in records:
                partition = 0 if key is None else oracle.partition_of(key, app.partitions)
                await producer.send(app.topics.ticks, value, key=key, partition=partition, timestamp_ms=timestamp_ms)
            await producer.flush()
    finally:
        await producer.stop()


async def committed_through(app: App, limit_s: float = LIMIT_S, process: Process | None = None) -> None:
    """Wait until the changelog says that the ticks topic was processed to its end."""
    ends = await end_offsets(app.bootstrap, app.topics.ticks)
    limit = time.monotonic() + limit_s
    while True:
        done = await _processed(app)
        if all(done.get(partition, 0) >= end for partition, end in ends.items()):
            return
        if process is not None:
            assert process.exit_code is None, f"the worker ended with {process.exit_code}:\n{process.output()[-3000:]}"
        assert time.monotonic() < limit, f"not processed within {limit_s} s: {done} of {ends}"
        await asyncio.sleep(0.2)


async def _processed(app: App) -> dict[int, int]:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import GroupCoordinatorNotAvailableError

    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(app.name)
        return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == app.topics.ticks}
    except GroupCoordinatorNotAvailableError:
        return {}  # a fresh broker makes its offsets topic only now
    finally:
        await admin.close()
