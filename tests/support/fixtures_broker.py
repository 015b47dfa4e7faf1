"""Broker fixtures. ``broker`` is one for the whole session, started when the first test asks; ``own_broker`` is a
fresh one that a test may harm. A topic's name is the only isolation on the shared one, so names are never reused."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest

from workers.apps.broker import Broker, find_broker

__all__ = ["broker", "own_broker", "topic_name"]


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The session's broker, found as ``find_broker`` finds it. Not to be killed, stopped or paused."""
    with find_broker() as found:
        yield found


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker for this test alone, with its chaos controls. Some four seconds."""
    with find_broker(way="jvm") as started:
        yield started


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> str:
    """A name no other test or run uses, still readable in a broker's log."""
    test = re.sub(r"[^a-zA-Z0-9._-]+", "-", request.node.name)[:80].strip("-")
    return f"{test}-{uuid.uuid4().hex[:12]}"
