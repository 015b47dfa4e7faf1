"""Fixtures and plugins for every test, and the profile of Hypothesis: a failure prints what reproduces it."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.support import fixtures_leaks, fixtures_scheduling
from tests.support.fixtures_broker import broker, own_broker, topic_name
from tests.support.fixtures_postgres import own_postgres, postgres, postgres_dsn

__all__ = ["broker", "own_broker", "own_postgres", "postgres", "postgres_dsn", "topic_name"]

# Shared machines stall; a deadline would make slowness look like a wrong result. The suite tries the same examples at
# each run, so that a change is judged by what it changed; `make soak` tries others.
settings.register_profile("suite", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("new seeds", deadline=None, print_blob=True)
settings.register_profile("thorough", settings.get_profile("new seeds"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Brokers that live for seconds: the second of Java's compilers would take longer over their code than it saves them.
os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xmx768m -Xms256m -XX:TieredStopAtLevel=1")


def pytest_configure(config: pytest.Config) -> None:
    """As plugins of the session: the hooks of a conftest.py are not told of fixtures that outlive its folder."""
    config.pluginmanager.register(fixtures_leaks)
    config.pluginmanager.register(fixtures_scheduling)
