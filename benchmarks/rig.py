"""An application to be overloaded: real processes with topics and a database of their own, observed and judged.

`Plan` says how much and how long, `Rig` starts and stops, `Report` collects what was seen and what should have been
otherwise. The judges here are those of every scenario: lag, memory, and the store against the oracle.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.observe import Observer, Series
from benchmarks.slow import BRAKE
from tests.integration.apps import App, Process
from tests.support import oracle
from tests.support.fixtures_postgres import PostgresServer
from tests.support.verify import read_topic
from workers.apps.broker.base import free_ports

__all__ = ["FULL", "RECOVERY_LIMIT_S", "START_LIMIT_S", "Plan", "Report", "Rig", "check_bounds", "check_store", "rig"]

PARTITIONS = 4
RAMP_DOWN_S = 1.0  # the producer's way from the full pace to nothing, once it knows
RSS_MARGIN_MIB = 32.0
RECOVERY_LIMIT_S = 30.0
START_LIMIT_S = 60.0
FULL = 0.9  # of the rate is the full pace
SIZE_MS, LAG_MS, LATENESS_MS, DISORDER_MS = 1_000, 300, 400, 500  # revisions happen, late ticks do not
COLUMNS = ("count", "open", "high", "low", "close", "volume", "vwap", "first_ts", "last_ts")
MS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """How long and how much; rates in ticks a second."""

    stall_s: float = 60.0
    steady_s: float = 10.0
    after_s: float = 10.0
    rate: int = 3_000
    symbols: int = 200
    workers: int = 2
    queue_s: int = 20  # of frames that the store's queue holds
    native: bool = True  # lanes; loading them takes a process two seconds of CPU
    others_share: float = 0.9  # of what they do alone, cold partitions must do beside a hot one
    poll_interval_s: float = 1.0
    min_dwell_s: float = 5.0

    @property
    def soft_lag(self) -> int:
        """A second's worth."""
        return self.rate

    @property
    def hard_lag(self) -> int:
        """Three seconds' worth."""
        return 3 * self.rate

    @property
    def lag_limit(self) -> int:
        """The hard limit, and what one feedback interval brings: a measurement, and the way down."""
        return self.hard_lag + int(self.rate * (self.poll_interval_s + RAMP_DOWN_S))

    @property
    def worker_capacity(self) -> int:
        """What the braked worker can do."""
        return self.rate // 3


@dataclass
class Report:
    """What was seen; ``problems`` are sentences, none when all is as it must be."""

    name: str
    series: Series
    plan: Plan
    figures: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Note a problem where something does not hold."""
        if not holds:
            self.problems.append(problem)


@dataclass
class Rig:
    """One application under observation: its processes, its database, and the report that is being written."""

    app: App
    plan: Plan
    observer: Observer
    report: Report
    folder: Path
    postgres: PostgresServer
    dsn: str

    @property
    def brake(self) -> Path:
        """The file that says how many ticks a second the workers can do."""
        return self.folder / "brake"

    def start(self, name: str, *command: str, port: int, **more: object) -> Process:
        """Start a command of the project, observed from now on; the brake is for aggregations that look at it."""
        environ = (f"{BRAKE}={self.brake}", f"WORKERS_NATIVE={int(self.plan.native)}")
        argv = ["env", *environ, sys.executable, "-m", "workers", *command, *self.app.flags(**more)]
        process = Process(argv, self.folder / f"{name}.log")
        self.observer.processes[name], self.observer.ports[name] = process, port
        return process

    def start_workers(self, count: int | None = None, **more: object) -> None:
        """Start the plan's workers, or ``count``; the first is called worker, and is the one asked for its level."""
        for number, port in enumerate(free_ports(count or self.plan.workers), 1):
            self.start("worker" if number == 1 else f"worker{number}", "run", port=port, metrics__port=port, **more)

    def start_store(self) -> None:
        """Start the store writer; its queue holds a few seconds' frames."""
        (port,) = free_ports(1)
        self.start("store", "store", "--postgres", self.dsn, port=port, metrics__port=port)

    def start_producer(self) -> None:
        """Start an adaptive producer at the plan's rate, without end."""
        (port,) = free_ports(1)
        market = ("--synthetic", "--symbols", str(self.plan.symbols), "--disorder", f"{DISORDER_MS}ms")
        pace = ("--rate", str(self.plan.rate), "--adaptive", "--metrics-port", str(port))
        self.start("producer", "produce", *market, *pace, port=port)

    async def stop(self, *names: str) -> None:
        """SIGTERM, and a clean end of each."""
        gone = [self.observer.processes.pop(name) for name in names]
        for name in names:
            self.observer.ports.pop(name)
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in gone))

    @property
    def worker_names(self) -> list[str]:
        """The names of the workers that run."""
        return [name for name in self.observer.processes if name.startswith("worker")]


@asynccontextmanager
async def rig(bootstrap: str, postgres: PostgresServer, name: str, plan: Plan, folder: Path) -> AsyncIterator[Rig]:
    """An application with its topics and a database of its own; whatever of it still runs at the end is killed."""
    settings = {
        "window.size": f"{SIZE_MS}ms",
        "window.lag": f"{LAG_MS}ms",
        "window.allowed_lateness": f"{LATENESS_MS}ms",
        "backpressure.soft_lag": plan.soft_lag,
        "backpressure.hard_lag": plan.hard_lag,
        "backpressure.poll_interval": f"{round(plan.poll_interval_s * 1000)}ms",
        "backpressure.min_dwell": f"{round(plan.min_dwell_s * 1000)}ms",
        "store.queue_capacity": plan.queue_s * plan.symbols,
        "store.batch_size": plan.symbols,
    }
    app = App(bootstrap, f"load-{name}-{uuid.uuid4().hex[:8]}", PARTITIONS, settings)
    made = await asyncio.to_thread(app.run_command, "topics", "create")
    if made.returncode:
        raise RuntimeError(made.stderr)
    dsn = await asyncio.to_thread(postgres.create_database)
    observer = Observer(app, dsn=dsn)
    try:
        async with observer:
            report = Report(name, observer.series, plan)
            yield Rig(app, plan, observer, report, folder, postgres, dsn)
    finally:
        for process in observer.processes.values():
            process.kill()


# -- judging -----------------------------------------------------------------------------------------------------------


def check_bounds(report: Report) -> None:
    """Lag below its limit, memory flat."""
    plan, series = report.plan, report.series
    full_s, begun_s = (at_s for at_s, _ in series.marks[:2])
    lag = max(sample.lag for sample in series.samples)
    report.figures |= {"largest lag": f"{lag:,}", "hard limit": f"{plan.hard_lag:,}", "bound": f"{plan.lag_limit:,}"}
    report.expect(lag <= plan.lag_limit, f"lag came to {lag:,}; expected at most {plan.lag_limit:,}")
    for process in sorted({name for sample in series.samples for name in sample.rss_mib}):
        before = series.peak_rss_mib(process, full_s, begun_s)
        after = series.peak_rss_mib(process, begun_s, float("inf"))
        report.figures[f"RSS of {process}, MiB"] = f"{before:.0f}, then at most {after:.0f}"
        report.expect(
            after <= before + RSS_MARGIN_MIB,
            f"the {process} grew from {before:.0f} to {after:.0f} MiB; expected at most {RSS_MARGIN_MIB:.0f} more",
        )


async def check_store(rig: Rig, limit_s: float = 60.0) -> None:
    """The table is what the oracle makes of the ticks topic: of each window the last frame, with every tick in it."""
    config = oracle.Config(size_ns=SIZE_MS * MS, lag_ns=LAG_MS * MS, allowed_lateness_ns=LATENESS_MS * MS)
    ticks = await read_topic(rig.app.bootstrap, rig.app.topics.ticks)
    outcome = await asyncio.to_thread(oracle.run_topic, config, ticks, end_of_input=True)
    expected = {(key, int(str(frame["start"]))): frame for key, frames in outcome.frames.items() for frame in frames}
    deadline_s = time.monotonic() + limit_s
    while True:
        found = await asyncio.to_thread(_table, rig.dsn)
        wrong = [window for window, frame in expected.items() if not _same(frame, found.get(window))]
        wrong += [window for window in found if window not in expected]
        if not wrong or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(0.5)
    counted = sum(int(str(row["count"])) for row in found.values())
    rig.report.figures |= {"ticks": f"{outcome.ticks_in:,}", "bars in the store": f"{len(found):,}"}
    rig.report.expect(
        not wrong,
        f"{len(wrong)} of {len(expected)} bars are wrong; {wrong[:1]}: "
        f"{[(expected.get(each), found.get(each)) for each in wrong[:1]]}",
    )
    rig.report.expect(
        counted + len(outcome.late) + len(outcome.rejected) == outcome.ticks_in,
        f"{counted:,} ticks in bars, {len(outcome.late)} late, {len(outcome.rejected)} rejected "
        f"of {outcome.ticks_in:,}",
    )
    rig.report.expect(counted > 0, "there is nothing in the store")


def _table(dsn: str) -> dict[tuple[str, int], dict[str, object]]:
    names = ("key", "start_ms", "status", *COLUMNS)
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        rows = connection.execute(f"SELECT {', '.join(names)} FROM frames").fetchall()
    return {(row[0], row[1]): dict(zip(names, row, strict=True)) for row in rows}


def _same(frame: Mapping[str, object], row: Mapping[str, object] | None) -> bool:
    """All numbers to the last bit. A window that no tick closed is there as a preview of what it would come to."""
    if row is None or any(row[name] != frame[name] for name in COLUMNS):
        return False
    return row["status"] == ("provisional" if frame["trigger"] == "end" else frame["status"])
