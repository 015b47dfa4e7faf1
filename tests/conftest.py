"""Fixtures for every test, and the profile of Hypothesis: a failure prints what reproduces it."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.fixtures_broker import broker, own_broker, topic_name
from tests.fixtures_postgres import own_postgres, postgres, postgres_dsn

__all__ = ["broker", "own_broker", "own_postgres", "postgres", "postgres_dsn", "topic_name"]

# Shared machines stall; a deadline would make slowness look like a wrong result.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

_ORDER = ("unit", "contract", "integration", "browser", "docs", "load", "chaos")
"""What a busy machine disturbs most comes last: the other half of the suite is done by then."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two halves, for ``-n 2 --dist loadgroup``: tests that compute, and tests that mostly wait for a broker."""
    folders = {item: item.path.relative_to(item.config.rootpath).parts[1] for item in items}
    items.sort(key=lambda item: _ORDER.index(folders[item]))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("computes" if folders[item] == "unit" else "waits"))
