"""Fixtures of the chaos tests: a broker that may be harmed, and the arena around it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.chaos.arena import Arena, broker_config
from workers.apps.broker import Broker, find_broker
from workers.apps.broker.jvm import find_java
from workers.errors import BrokerUnavailableError

CHAOS_TIMEOUT_S = 300.0
# So long before pytest ends a test, the arena does, and says what was waited for; the rest is for what comes after.
ENDING_S = 60.0
_ARENAS = pytest.StashKey[list[Arena]]()

# A broker that is killed on purpose fills the report of any failure with the client's complaints about it.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.broker)
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(CHAOS_TIMEOUT_S))


@pytest.fixture(scope="session")
def chaos_broker() -> Iterator[tuple[Broker, int]]:
    """One broker for all chaos tests, which put it back on its feet when they harmed it, and its proxied port."""
    yield from _broker()


@pytest.fixture
def make_lax_arena(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], Arena]]:
    """On a broker that takes records of transactions that it was not told of: one can be left hanging on purpose."""
    with contextmanager(_broker)({"transaction.partition.verification.enable": "false"}) as (broker, proxy_port):
        yield from _arenas(broker, proxy_port, tmp_path, request.node)


def _broker(more: Mapping[str, str] = MappingProxyType({})) -> Iterator[tuple[Broker, int]]:
    try:
        find_java()
    except BrokerUnavailableError as error:
        pytest.skip(f"a broker that may be killed needs Java: {error}")
    config, proxy_port = broker_config()
    with find_broker(way="jvm", config={**config, **more}) as broker:
        yield broker, proxy_port


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With whatever fails, also where pytest's own clock ended it: what became of the workers, and their logs' ends."""
    report = yield
    if report.failed:
        for arena in item.stash.get(_ARENAS, []):
            report.sections.append(("workers", arena.report()))
    return report


@pytest.fixture
def make_arena(
    chaos_broker: tuple[Broker, int], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Arena]]:
    """Arenas beside one another on the broker, each with topics and workers of its own; what runs at the end is killed.

    They share the link.
    """
    yield from _arenas(*chaos_broker, tmp_path, request.node)


def _arenas(broker: Broker, proxy_port: int, tmp_path: Path, node: pytest.Item) -> Iterator[Callable[[], Arena]]:
    marker = node.get_closest_marker("timeout")
    assert marker is not None
    limit_s = marker.args[0] or math.inf
    deadline_s = time.monotonic() + limit_s - ENDING_S
    made: list[Arena] = []
    node.stash[_ARENAS] = made

    def make() -> Arena:
        made.append(Arena(broker, proxy_port, Path(os.environ.get("CHAOS_LOGS", tmp_path)), deadline_s=deadline_s))
        return made[-1]

    try:
        yield make
    finally:
        for arena in made:
            arena.close()
        for arena in made:
            asyncio.run(arena.delete_topics())


@pytest.fixture
def arena(make_arena: Callable[[], Arena]) -> Arena:
    """Topics of this test's own, its workers and its link; whatever still runs at the end is killed."""
    return make_arena()
