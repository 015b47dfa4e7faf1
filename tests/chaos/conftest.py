"""Fixtures of the chaos tests: a broker that may be harmed, and the arena around it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.arena import Arena, broker_config
from workers.apps.broker import find_broker
from workers.apps.broker.jvm import find_java
from workers.errors import BrokerUnavailableError

CHAOS_TIMEOUT_S = 240.0

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
def chaos_broker() -> Iterator[tuple[object, int]]:
    """One broker for all chaos tests, which put it back on its feet when they harmed it, and its proxied port."""
    try:
        find_java()
    except BrokerUnavailableError as error:
        pytest.skip(f"a broker that may be killed needs Java: {error}")
    config, proxy_port = broker_config()
    with find_broker(way="jvm", config=config) as broker:
        yield broker, proxy_port


@pytest.fixture
def make_arena(chaos_broker: tuple[object, int], tmp_path: Path) -> Iterator[Callable[[], Arena]]:
    """Arenas beside one another on the broker, each with topics and workers of its own; what runs at the end is killed.

    They share the link.
    """
    broker, proxy_port = chaos_broker
    made: list[Arena] = []

    def make() -> Arena:
        made.append(Arena(broker, proxy_port, Path(os.environ.get("CHAOS_LOGS", tmp_path))))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield make
    finally:
        for arena in made:
            arena.close()


@pytest.fixture
def arena(make_arena: Callable[[], Arena]) -> Arena:
    """Topics of this test's own, its workers and its link; whatever still runs at the end is killed."""
    return make_arena()
