"""Overload, on purpose: what feeds the part that is too slow must slow down, and go on by itself when it may.

usage: python -m benchmarks.load [--stall 60] [--rate 3000] [--only NAME,...] [--out DIR]

| scenario | what is done | what must follow |
|---|---|---|
| slow-worker | the worker can do a third of what is sent | the producer sends what the worker can do |
| store-frozen | PostgreSQL is frozen (SIGSTOP) | store, workers and producer stop |
| store-stopped | PostgreSQL is stopped, and started again | the same, over new connections |
| workers-stopped | all workers are stopped, and started again | the producer stops |
| hot-symbol | one symbol brings twice what the worker can do | its partition alone is paused, the others don't notice |

In each of them: lag stays below the hard limit plus what one feedback interval brings at the full rate, memory does not
grow, the pace recovers, and in the end every tick is in the store's bars, as the oracle says. Real processes, a real
broker, a real PostgreSQL. Every scenario leaves a table (CSV) and a drawing (SVG); ``report.md`` sums them up.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.hot import hot_symbol
from benchmarks.observe import Sample, Series
from benchmarks.plot import Line, Panel, svg
from benchmarks.rig import FULL, RECOVERY_LIMIT_S, START_LIMIT_S, Plan, Report, Rig, check_bounds, check_store, rig
from tests.support.fixtures_postgres import PostgresServer, postgres_server
from workers.apps.broker import find_broker
from workers.errors import WorkersError

__all__ = ["SCENARIOS", "Plan", "Report", "run_scenario", "write_report"]

# -- scenarios --------------------------------------------------------------------------------------------------------


async def slow_worker(rig: Rig) -> None:
    """The producer sends three times what the worker can do; later the worker can do it all again."""
    plan = rig.plan
    batch = max(plan.worker_capacity // 20, 1)  # a lane's turn holds the worker's loop for 50 ms
    more = {"window__aggregation": "benchmarks.slow:Braked", "lane__batch_size": batch, "lane__capacity": 2_000}
    await _at_full_pace(rig, 1, **more)
    begun_s = rig.observer.mark(f"worker braked to {plan.worker_capacity}/s")
    rig.brake.write_text(str(plan.worker_capacity))
    await _last(rig, plan.stall_s)
    ended_s = rig.observer.mark("brake released")
    rig.brake.unlink()
    late = list(rig.report.series.between(begun_s + 0.6 * plan.stall_s, ended_s))
    sent_per_s = _per_s(late, lambda sample: sample.produced)
    done_per_s = _per_s(list(rig.report.series.between(begun_s, ended_s)), lambda sample: sample.committed)
    rig.report.figures |= {
        "sent/s in its last two fifths": round(sent_per_s),
        "done/s all the while": round(done_per_s),
    }
    rig.report.expect(sent_per_s <= 0.67 * plan.rate, f"the producer still sends {sent_per_s:.0f}/s of {plan.rate}")
    rig.report.expect(
        done_per_s >= plan.worker_capacity / 3,
        f"the worker did {done_per_s:.0f}/s of the {plan.worker_capacity} it can do: it was throttled too far",
    )
    await _recovery(rig, ended_s)


async def store_frozen(rig: Rig) -> None:
    """The database's processes are frozen: connections stay open, nothing answers."""
    await _store_away(rig, "PostgreSQL frozen", rig.postgres.freeze, rig.postgres.thaw)


async def store_stopped(rig: Rig) -> None:
    """The database crashes, and is started again."""
    await _store_away(rig, "PostgreSQL stopped", rig.postgres.stop, rig.postgres.start)


async def _store_away(rig: Rig, what: str, away: Callable[[], None], back: Callable[[], None]) -> None:
    await _at_full_pace(rig)
    begun_s = rig.observer.mark(what)
    await asyncio.to_thread(away)
    try:
        await _last(rig, rig.plan.stall_s)
        await _standstill(rig, begun_s)
    finally:
        await asyncio.to_thread(back)
    ended_s = rig.observer.mark("PostgreSQL back")
    seen = list(rig.report.series.between(begun_s, ended_s))
    levels: dict[str, Callable[[Sample], float | None]] = {
        "the store's queue": lambda sample: sample.store_level,
        "the worker": lambda sample: sample.worker_level,
        "the producer": lambda sample: sample.level,
    }
    for who, level in levels.items():
        highest = max((level(sample) or 0 for sample in seen), default=0)
        rig.report.expect(highest == 2, f"{who} did not come to level HARD, only to {highest:.0f}")
    await _recovery(rig, ended_s)


async def workers_stopped(rig: Rig) -> None:
    """Every worker is asked to stop; later all are started again."""
    await _at_full_pace(rig)
    begun_s = rig.observer.mark("workers stopped")
    await rig.stop(*rig.worker_names)
    await _last(rig, rig.plan.stall_s)
    await _standstill(rig, begun_s)
    ended_s = rig.observer.mark("workers started")
    rig.start_workers()
    await _recovery(rig, ended_s)
    left = rig.report.series.samples
    before = next(sample for sample in reversed(left) if sample.at_s <= ended_s)
    working = _first(rig.report.series, ended_s, lambda sample: sample.committed > before.committed)
    rig.report.figures["first commit of the new workers after"] = working


async def _at_full_pace(rig: Rig, count: int | None = None, **worker: object) -> None:
    """Everything runs at the full rate, for a while; ``worker`` are the workers' settings."""
    rig.start_workers(count, **worker)
    rig.start_store()
    await rig.observer.until(lambda sample: sample.worker_level == 0, "the worker runs", START_LIMIT_S)
    rig.start_producer()
    full = FULL * rig.plan.rate
    await rig.observer.until(
        lambda sample: sample.produced_per_s >= full and sample.lag < rig.plan.soft_lag and sample.scale == 1,
        "the full pace",
        START_LIMIT_S,
    )
    rig.observer.mark("full pace")
    await _last(rig, rig.plan.steady_s)


async def _last(rig: Rig, seconds: float) -> None:
    """Time passes; nobody may end by himself meanwhile."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        rig.observer.check()
        await asyncio.sleep(min(left_s, 0.5))


async def _standstill(rig: Rig, begun_s: float) -> None:
    """Nothing is sent any more; waited for where the trouble is short."""
    try:
        await rig.observer.until(lambda sample: sample.produced_per_s == 0 and sample.level == 2, "nothing is sent")
    except TimeoutError as error:
        rig.report.problems.append(str(error))
    stopped = _first(rig.report.series, begun_s, lambda sample: sample.produced_per_s == 0)
    rig.report.figures["producer stood still after"] = stopped


async def _recovery(rig: Rig, ended_s: float) -> None:
    """The full pace is back within the limit, without anybody's help, and all that was sent is stored."""
    plan, report, series = rig.plan, rig.report, rig.report.series
    full = FULL * plan.rate
    try:
        await rig.observer.until(
            lambda sample: series.recovered_s(ended_s, full) is not None and sample.lag < plan.soft_lag,
            "the full pace again",
            RECOVERY_LIMIT_S,
        )
    except TimeoutError as error:
        report.problems.append(str(error))
    recovered_s = series.recovered_s(ended_s, full)
    report.figures["full pace again after"] = "never" if recovered_s is None else f"{recovered_s:.1f} s"
    report.figures["level OK again after"] = _first(series, ended_s, lambda sample: sample.level == 0)
    await _last(rig, plan.after_s)
    check_bounds(report)
    rig.observer.mark("producer stopped")
    await rig.stop("producer")
    await check_store(rig)
    await rig.stop(*rig.observer.processes)


def _first(series: Series, since_s: float, holds: Callable[[Sample], bool]) -> str:
    found = next((each.at_s for each in series.samples if each.at_s > since_s and holds(each)), None)
    return "never" if found is None else f"{found - since_s:.1f} s"


def _per_s(seen: Sequence[Sample], count: Callable[[Sample], int]) -> float:
    first, last = seen[0], seen[-1]
    return (count(last) - count(first)) / (last.at_s - first.at_s)


# -- running ----------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "slow-worker": slow_worker,
    "store-frozen": store_frozen,
    "store-stopped": store_stopped,
    "workers-stopped": workers_stopped,
    "hot-symbol": hot_symbol,
}


async def run_scenario(name: str, bootstrap: str, postgres: PostgresServer, plan: Plan, out: Path) -> Report:
    """Run one, and write its table and its drawing. What goes wrong on the way is a problem in the report."""
    out.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything runs
    with tempfile.TemporaryDirectory(prefix="workers-load-") as folder:
        async with rig(bootstrap, postgres, name, plan, Path(folder)) as made:
            try:
                await SCENARIOS[name](made)
            except (AssertionError, RuntimeError, TimeoutError, OSError, WorkersError) as error:
                made.report.problems.append(f"{type(error).__name__}: {error}")
            report = made.report
    report.series.write_csv(out / f"{name}.csv")
    (out / f"{name}.svg").write_text(svg(f"{name}: {plan.rate:,} ticks/s", report.series, _panels(plan)))
    return report


def _panels(plan: Plan) -> list[Panel]:
    def rss(process: str) -> Callable[[Sample], float | None]:
        return lambda sample: sample.rss_mib.get(process)

    return [
        Panel(
            "lag of the group, records",
            [Line("lag", lambda sample: sample.lag)],
            [("soft", plan.soft_lag), ("hard", plan.hard_lag), ("bound", plan.lag_limit)],
        ),
        Panel("ticks sent a second", [Line("sent/s", lambda sample: sample.produced_per_s)], [("rate", plan.rate)]),
        Panel("share of the full rate", [Line("producer's scale", lambda sample: sample.scale)], [("1", 1.0)]),
        Panel(
            "level: 0 OK, 1 SOFT, 2 HARD",
            [
                Line("producer", lambda sample: sample.level),
                Line("worker", lambda sample: sample.worker_level),
                Line("store", lambda sample: sample.store_level),
            ],
        ),
        Panel("resident memory, MiB", [Line(name, rss(name)) for name in ("producer", "worker", "store")]),
        Panel("rows in the store", [Line("rows", lambda sample: sample.rows)]),
        Panel("frames in the store's queue", [Line("queue", lambda sample: sample.store_queue)]),
    ]


def write_report(reports: Sequence[Report], path: Path) -> str:
    """A section for each scenario, as markdown; returns the text."""
    lines = ["# Load", ""]
    for report in reports:
        lines += [f"## {report.name}: {'as it must be' if not report.problems else 'NOT as it must be'}", ""]
        lines += [f"- {problem}" for problem in report.problems] + ([""] if report.problems else [])
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in report.figures.items()), ""]
        lines += [f"[table]({report.name}.csv), [drawing]({report.name}.svg)", ""]
    text = "\n".join(lines)
    path.write_text(text)
    return text


async def _run(names: Sequence[str], plan: Plan, out: Path) -> list[Report]:
    with ExitStack() as stack:
        broker = stack.enter_context(find_broker())
        postgres = stack.enter_context(postgres_server())
        reports = []
        for name in names:
            sys.stderr.write(f"{name} ...\n")
            reports.append(await run_scenario(name, broker.bootstrap_servers, postgres, plan, out))
            write_report(reports, out / "report.md")  # what is there stays if a later one is cut short
        return reports


def main() -> None:
    """Run and print; exit code 1 where something was not as it must be."""
    everybody = list(SCENARIOS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stall", type=float, default=60.0, help="how long each trouble lasts, in seconds")
    parser.add_argument("--rate", type=int, default=3_000, help="ticks a second")
    parser.add_argument("--only", default=",".join(everybody), help=f"of {', '.join(everybody)}; with commas")
    parser.add_argument("--out", type=Path, default=Path("load-report"), help="folder for tables and drawings")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in everybody]:
        parser.error(f"--only {','.join(unknown)}: expected some of {', '.join(everybody)}")
    plan = replace(Plan(), stall_s=options.stall, rate=options.rate)
    try:
        reports = asyncio.run(_run(names, plan, options.out))
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    print(write_report(reports, options.out / "report.md"))
    raise SystemExit(any(report.problems for report in reports))


if __name__ == "__main__":
    main()
