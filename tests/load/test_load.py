"""Overload anywhere slows what feeds it, and ends by itself: the load benchmark's scenarios, shortened.

They run side by side, each with processes, topics and a database of its own, because most of their time is waiting;
what they saw is then judged by one test each. The full lengths are `make load`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import Plan, Report, run_scenario
from tests.support.fixtures_postgres import PostgresServer, postgres_server
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

PLAN = Plan(
    stall_s=8.0,
    steady_s=2.0,
    after_s=0.5,
    rate=900,
    symbols=60,
    workers=1,
    queue_s=3,
    poll_interval_s=0.2,
    min_dwell_s=0.5,
    native=False,  # the starts of ten processes are what takes these tests their time
    others_share=0.0,  # a timed comparison is for the benchmark: here only who was paused counts
)
NAMES = ("slow-worker", "store-frozen", "workers-stopped", "hot-symbol")


@pytest.fixture(scope="module")
def reports(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Report]]:
    """Every scenario's report; only one database server may be frozen, so that scenario has one of its own."""
    out = tmp_path_factory.mktemp("load")
    with postgres_server() as shared, postgres_server() as frozen:

        def server(name: str) -> PostgresServer:
            return frozen if name == "store-frozen" else shared

        async def run() -> list[Report]:
            return await asyncio.gather(
                *(run_scenario(name, broker.bootstrap_servers, server(name), PLAN, out) for name in NAMES)
            )

        found = asyncio.run(run())
        _written(out)
        yield dict(zip(NAMES, found, strict=True))


def _written(out: Path) -> None:
    for name in NAMES:
        assert (out / f"{name}.csv").read_text().count("\n") > 20, "a line every half second"
        assert (out / f"{name}.svg").read_text().endswith("</svg>\n")


def test_a_worker_that_can_do_a_third_slows_the_producer_to_what_it_can_do(reports: dict[str, Report]) -> None:
    assert not reports["slow-worker"].problems, reports["slow-worker"].problems


def test_a_database_that_hangs_stops_store_workers_and_producer_and_loses_nothing(reports: dict[str, Report]) -> None:
    assert not reports["store-frozen"].problems, reports["store-frozen"].problems


def test_a_producer_waits_for_workers_that_are_gone_and_goes_on_when_they_are_back(reports: dict[str, Report]) -> None:
    assert not reports["workers-stopped"].problems, reports["workers-stopped"].problems


def test_only_the_partition_of_a_hot_symbol_is_ever_paused(reports: dict[str, Report]) -> None:
    assert not reports["hot-symbol"].problems, reports["hot-symbol"].problems
