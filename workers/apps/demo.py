"""The demo: a broker, two workers, a synthetic market, and what came of every tick, in under a minute.

Everything is real: the processes are those of ``workers run`` and ``workers produce``, and the summary is read back
from the topics, not counted on the way. Nothing is left running, nor any topic, whatever way the demo ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import orjson

from workers.apps.broker.supervisor import Supervisor
from workers.apps.inspect.tail import frame_line, tail
from workers.core.effects import Counts
from workers.core.snapshot import META_KEY
from workers.errors import BrokerError, WorkersError
from workers.kafka.changelog import read_changelog
from workers.kafka.clients import admin_client
from workers.kafka.errors import KafkaError
from workers.kafka.group_offsets import LagReader
from workers.kafka.options import consumer_options
from workers.kafka.topics import delete_topics, ensure_topics
from workers.settings import Settings, load_settings

if TYPE_CHECKING:
    from workers.kafka.reading import KafkaRecord

__all__ = ["Demo", "DemoSummary"]

WORKERS = 2
CATCH_UP_LIMIT_S = 60.0
DASHBOARD_LIMIT_S = 30.0
QUIET_NS = 4_000_000_000  # longer than lag + idle_after: the last windows have come out by then


@dataclass
class DemoSummary:
    """What the topics hold at the end."""

    produced: int = 0
    counts: Counts = field(default_factory=Counts)
    frames: dict[str, int] = field(default_factory=dict)  # by status
    symbols: int = 0

    @property
    def adds_up(self) -> bool:
        """Whether every tick produced is accounted for, once."""
        return self.counts.records == self.produced and self.counts.balance() == 0


class Demo:
    """One run against a broker; ``say`` gets notices for the person, ``show`` the frames' lines."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        seconds: int,
        rate: int,
        say: Callable[[str], None],
        show: Callable[[str], None],
    ) -> None:
        self._seconds, self._rate = seconds, rate
        self._say, self._show = say, show
        self._settings = _demo_settings(bootstrap_servers)
        self._summary = DemoSummary()
        self._symbols: set[str] = set()

    async def run(self, stop: asyncio.Event) -> DemoSummary:
        """Start everything, show frames until the market has closed and all is processed, and add up.

        Raises ``WorkersError`` where a process of the demo fails; its log is then shown.
        """
        with ExitStack() as stack:
            logs = Path(stack.enter_context(TemporaryDirectory(prefix="workers-demo-")))
            try:
                async with admin_client(self._settings) as admin:
                    await ensure_topics(admin, self._settings, create=True)
                workers = [self._start(stack, logs, f"worker-{number}", ["run"]) for number in range(1, WORKERS + 1)]
                self._say(f"{WORKERS} workers share {self._settings.topics.partitions} partitions; a market opens")
                producer = self._start(stack, logs, "producer", self._market())
                async with self._dashboard(stack, logs):
                    await self._watch(stop, producer)
                if not stop.is_set():
                    self._say("the market has closed; the workers leave")
                for worker in workers:
                    worker.signal(15)
                await _ended(workers, logs)
                await self._add_up()
            finally:
                await self._remove_topics()
        return self._summary

    def _market(self) -> list[str]:
        return [
            *("produce", "--synthetic", "--symbols", "12", "--rate", str(self._rate), "--seed", "7"),
            *("--disorder", "800ms", "--late-fraction", "0.004", "--bad-fraction", "0.001"),
            *("--duration", f"{self._seconds}s"),
        ]

    def _start(self, stack: ExitStack, logs: Path, name: str, command: list[str]) -> Supervisor:
        process = stack.enter_context(Supervisor())
        process.start([sys.executable, "-m", "workers", *command, *_flags(self._settings)], log=logs / f"{name}.log")
        return process

    @asynccontextmanager
    async def _dashboard(self, stack: ExitStack, logs: Path) -> AsyncIterator[None]:
        """A dashboard for as long as the block takes. It is a guest: without it the demo goes on all the same."""
        if any(importlib.util.find_spec(module) is None for module in ("starlette", "uvicorn", "websockets")):
            self._say("no dashboard: it comes with pip install 'tick-workers[dashboard]'")
            yield
            return
        try:
            process = self._start(stack, logs, "dashboard", ["dashboard", "--port", "0"])
        except BrokerError as error:
            self._say(f"no dashboard: {error}")
            yield
            return
        telling = asyncio.create_task(self._tell_address(process, logs / "dashboard.log"))
        try:
            yield
        finally:
            telling.cancel()
            with suppress(BrokerError):
                process.signal(15)

    async def _tell_address(self, process: Supervisor, log: Path) -> None:
        """Say where the dashboard listens, once it does, or why it does not."""
        limit_s = time.monotonic() + DASHBOARD_LIMIT_S
        with suppress(BrokerError):
            while time.monotonic() < limit_s:
                await asyncio.sleep(0.2)
                text = _written(log)
                line = next((line for line in text.splitlines() if line.startswith("dashboard: http")), None)
                if line is not None:
                    self._say(f"{line} (while the demo runs)")
                    return
                if not process.running():
                    self._say(f"no dashboard: {text.strip()[-300:] or 'it ended at once'}")
                    return

    async def _watch(self, stop: asyncio.Event, producer: Supervisor) -> None:
        """Show frames until the producer is done, the group has caught up, and nothing comes any more."""
        done = asyncio.Event()
        waiting = asyncio.ensure_future(self._until_caught_up(stop, producer, done))
        try:
            frames = tail(self._settings, self._settings.topics.frames, stop=done, from_beginning=True)
            async for batch in frames:
                self._take(batch)
            await waiting
        finally:
            waiting.cancel()

    async def _until_caught_up(self, stop: asyncio.Event, producer: Supervisor, done: asyncio.Event) -> None:
        try:
            while producer.running() and not stop.is_set():
                await asyncio.sleep(0.2)
            limit_s = time.monotonic() + CATCH_UP_LIMIT_S
            async with admin_client(self._settings) as admin, LagReader(self._settings, admin) as reader:
                while not stop.is_set():
                    lag = await reader.read()
                    self._summary.produced = sum(partition.end - partition.begin for partition in lag.partitions)
                    if lag.total == 0 and self._summary.produced:
                        break
                    if time.monotonic() > limit_s:
                        raise WorkersError(f"the workers are still {lag.total} ticks behind after a minute")
                    await asyncio.sleep(0.2)
            await asyncio.sleep(QUIET_NS / 1e9)
        finally:
            done.set()

    def _take(self, batch: Iterable[KafkaRecord]) -> None:
        now_ns = time.time_ns()
        for record in batch:
            self._show(frame_line(record, now_ns=now_ns))
            frame = orjson.loads(record.value or b"")
            self._summary.frames[frame["status"]] = self._summary.frames.get(frame["status"], 0) + 1
            self._symbols.add(frame["key"])

    async def _add_up(self) -> None:
        """The workers' own counts, as their last commits stored them."""
        options = consumer_options(self._settings)
        total = self._summary.counts
        for partition in range(self._settings.topics.partitions):
            entries = await read_changelog(self._settings.topics.changelog, partition, options)
            if META_KEY in entries:
                for name, number in orjson.loads(entries[META_KEY])["counts"].items():
                    setattr(total, name, getattr(total, name) + number)
        self._summary.symbols = len(self._symbols)

    async def _remove_topics(self) -> None:
        topics = self._settings.topics
        names = [topics.ticks, topics.frames, topics.late, topics.dead_letters, topics.changelog, topics.feedback]
        try:
            async with admin_client(self._settings) as admin:
                await delete_topics(admin, names)
        except (KafkaError, WorkersError) as error:
            self._say(f"could not remove the demo's topics: {error}")


def _demo_settings(bootstrap_servers: str) -> Settings:
    """Own names on whatever cluster it is: a demo must not touch anybody's topics."""
    name = f"demo-{uuid.uuid4().hex[:8]}"
    overrides: dict[str, object] = {
        "bootstrap_servers": bootstrap_servers,
        "application_id": name,
        "topics.ticks": f"{name}-ticks",
        "topics.frames": f"{name}-frames",
        "topics.partitions": 4,
        "metrics.port": "off",
    }
    return load_settings(overrides=overrides)


def _flags(settings: Settings) -> list[str]:
    values = {
        "bootstrap_servers": settings.bootstrap_servers,
        "application_id": settings.application_id,
        "topics.ticks": settings.topics.ticks,
        "topics.frames": settings.topics.frames,
        "topics.partitions": settings.topics.partitions,
        "metrics.port": "off",
    }
    return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]


def _written(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


async def _ended(processes: list[Supervisor], logs: Path) -> None:
    """Wait for processes that were asked to end; a failed one's log is the explanation."""
    limit_s = time.monotonic() + 30
    for number, process in enumerate(processes, 1):
        while process.running() and time.monotonic() < limit_s:
            await asyncio.sleep(0.1)
        if process.running() or process.exit_code():
            log = (logs / f"worker-{number}.log").read_text(errors="replace")
            raise WorkersError(f"worker {number} ended with {process.exit_code()}; the end of its log:\n{log[-2000:]}")
