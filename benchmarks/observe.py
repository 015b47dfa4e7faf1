"""Watches an application from outside, twice a second, while something is done to it.

Lag and rates come from the broker, memory from the operating system, rows from the database; only levels and scales are
asked of the processes themselves, at the endpoints that an operator would look at. What can't be asked at the moment (a
database that is frozen, a process that is stopped) is empty in the table, never an old number.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil
import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.integration.apps import App, Process
from tests.integration.groups import samples

__all__ = ["Observer", "Sample", "Series"]

EVERY_S = 0.5
ANSWER_S = 5.0
Offsets = Mapping[int, int]


@dataclass(frozen=True)
class Sample:
    """One look. ``at_s`` is since the observation began; None where nobody answered."""

    at_s: float
    lag: int
    produced: int
    committed: int
    produced_per_s: float
    level: float | None = None  # what the producer obeys: 0 OK, 1 SOFT, 2 HARD
    scale: float | None = None
    worker_level: float | None = None
    store_level: float | None = None
    store_queue: float | None = None
    rows: int | None = None
    rss_mib: Mapping[str, float] = field(default_factory=dict)
    lags: Offsets = field(default_factory=dict)
    done: Offsets = field(default_factory=dict)  # committed, by partition


@dataclass
class Series:
    """The looks of one scenario, and what was done when."""

    samples: list[Sample] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def between(self, begin_s: float, end_s: float) -> Iterator[Sample]:
        """The looks of a span of time."""
        return (sample for sample in self.samples if begin_s <= sample.at_s <= end_s)

    def peak_rss_mib(self, process: str, begin_s: float, end_s: float) -> float:
        """The largest resident size of a process in a span of time; 0 where it was not there."""
        return max((each.rss_mib.get(process, 0.0) for each in self.between(begin_s, end_s)), default=0.0)

    def recovered_s(self, since_s: float, per_s: float) -> float | None:
        """How long after a moment the produced rate was at ``per_s``, and still was at the next look; None: never."""
        later = [sample for sample in self.samples if sample.at_s > since_s]
        for sample, after in itertools.pairwise(later):
            if min(sample.produced_per_s, after.produced_per_s) >= per_s:
                return sample.at_s - since_s
        return None

    def write_csv(self, path: Path) -> None:
        """One line a look; memory of each process and lag of each partition in columns of their own."""
        processes = sorted({name for sample in self.samples for name in sample.rss_mib})
        partitions = sorted({number for sample in self.samples for number in sample.lags})
        plain = [each.name for each in fields(Sample) if each.name not in ("rss_mib", "lags", "done")]
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(
                [*plain, *(f"rss_mib_{name}" for name in processes), *(f"lag_{n}" for n in partitions), "mark"]
            )
            marks = list(self.marks)
            for sample in self.samples:
                said = [text for at_s, text in marks if at_s <= sample.at_s]
                marks = marks[len(said) :]
                row = [getattr(sample, name) for name in plain]
                row += [sample.rss_mib.get(name) for name in processes]
                row += [sample.lags.get(number) for number in partitions]
                out.writerow([_short(value) for value in row] + ["; ".join(said)])


def _short(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


class Observer:
    """Looks at an application while it is open; ``series`` holds what was seen.

    ``ports`` and ``processes`` may change while it looks; names are ``producer``, ``worker``, ``store``.
    """

    def __init__(self, app: App, *, dsn: str | None = None) -> None:
        self.app = app
        self.series = Series()
        self.ports: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.failed: list[str] = []
        self._dsn = dsn
        self._rows: tuple[float, int] | None = None
        self._began_s = 0.0
        self._stack = contextlib.AsyncExitStack()

    @property
    def now_s(self) -> float:
        """Seconds since it began to look."""
        return time.monotonic() - self._began_s

    @property
    def latest(self) -> Sample:
        """The last look."""
        return self.series.samples[-1]

    def mark(self, text: str) -> float:
        """Note that something was done now; returns when that is."""
        self.series.marks.append((self.now_s, text))
        return self.now_s

    async def until(self, condition: Callable[[Sample], bool], what: str, limit_s: float = 60.0) -> float:
        """Wait for a look of which the condition holds; returns the seconds it took. Raises ``TimeoutError``."""
        began_s = time.monotonic()
        seen = len(self.series.samples)
        while not any(condition(each) for each in self.series.samples[seen:]):
            if time.monotonic() - began_s > limit_s:
                raise TimeoutError(f"{self.app.name}: not within {limit_s:.0f} s: {what}; {self.latest}")
            self.check()
            seen = len(self.series.samples)
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    def check(self) -> None:
        """Raise ``RuntimeError`` where a process that is observed has ended by itself."""
        for name, process in self.processes.items():
            if process.exit_code is not None:
                raise RuntimeError(f"the {name} ended with {process.exit_code}:\n{process.output()[-3000:]}")

    async def __aenter__(self) -> Observer:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self.app.bootstrap, isolation_level="read_committed")
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self.app.bootstrap)
        await self._consumer.start()
        self._stack.push_async_callback(self._consumer.stop)
        await self._admin.start()
        self._stack.push_async_callback(self._admin.close)
        await self._consumer._client.add_topic(self.app.topics.ticks)
        self._began_s = time.monotonic()
        for loop in (self._look_again_and_again(), *([self._count_rows(self._dsn)] if self._dsn else [])):
            self._stack.push_async_callback(_cancel, asyncio.create_task(loop))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _look_again_and_again(self) -> None:
        due_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    self.series.samples.append(await self._look())
            except (KafkaError, TimeoutError, OSError) as error:
                self.failed.append(repr(error))
            due_s = max(due_s + EVERY_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())

    async def _look(self) -> Sample:
        tps = [TopicPartition(self.app.topics.ticks, number) for number in range(self.app.partitions)]
        found = await self._admin.list_consumer_group_offsets(self.app.name, partitions=tps)
        ends = await self._consumer.end_offsets(tps)
        at_s = self.now_s
        if any(tp not in found for tp in tps):
            raise TimeoutError("the group's coordinator gave no offsets")  # which is no lag of everything
        committed = {tp.partition: max(found[tp].offset, 0) for tp in tps}
        lags = {tp.partition: ends[tp] - committed[tp.partition] for tp in tps}
        metrics = await self._metrics()
        rows = self._rows[1] if self._rows is not None and time.monotonic() - self._rows[0] < 2 * EVERY_S else None
        return Sample(
            at_s=at_s,
            lag=sum(lags.values()),
            produced=(produced := sum(ends.values())),
            committed=sum(committed.values()),
            produced_per_s=self._rate(at_s, produced),
            level=metrics("producer", "pipeline_backpressure_state", provider="producer"),
            scale=metrics("producer", "pipeline_rate_scale_factor", provider="producer"),
            worker_level=metrics("worker", "pipeline_backpressure_state", provider="worker"),
            store_level=metrics("store", "workers_store_queue_level"),
            store_queue=metrics("store", "workers_store_queue_depth_records"),
            rows=rows,
            rss_mib=self._memory(),
            lags=lags,
            done=committed,
        )

    def _rate(self, at_s: float, produced: int) -> float:
        """Ticks a second over the last second or so."""
        before = next((each for each in reversed(self.series.samples) if at_s - each.at_s >= 2 * EVERY_S - 0.1), None)
        return (produced - before.produced) / (at_s - before.at_s) if before is not None else 0.0

    async def _metrics(self) -> Callable[..., float | None]:
        names = list(self.ports)
        found = dict(
            zip(
                names,
                await asyncio.gather(*(asyncio.to_thread(samples, self.ports[name]) for name in names)),
                strict=True,
            )
        )

        def value(process: str, name: str, **labels: str) -> float | None:
            return found.get(process, {}).get((name, tuple(sorted(labels.items()))))

        return value

    def _memory(self) -> dict[str, float]:
        sizes = {}
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                sizes[name] = psutil.Process(process.pid).memory_info().rss / 2**20
        return sizes

    async def _count_rows(self, dsn: str) -> None:
        """In a task of its own: a frozen database must not stop the looking."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=3) as connection:
                    while True:
                        done = await connection.execute("SELECT count(*) FROM frames")
                        ((count,),) = await done.fetchall()
                        self._rows = time.monotonic(), int(count)
                        await asyncio.sleep(EVERY_S)
            except psycopg.Error:
                await asyncio.sleep(EVERY_S)  # it is stopped, or has no tables yet


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        raise error
