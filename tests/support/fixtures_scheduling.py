"""Which tests share a process of ``pytest -n 3``, in what order, and what the run left out for want of what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

__all__ = ["FilesTogether", "left_out"]

_ORDER = ("chaos", "integration", "load", "browser", "contract", "docs", "unit")
"""What takes longest begins, and the many short ones keep all processes busy to the end. The three that start many
processes at once, chaos, load and docs, are kept apart."""

_WANTING = (
    (r"docker", "Docker"),
    (r"postgres", "PostgreSQL"),
    (r"promtool", "promtool"),
    (r"chromium", "Chromium"),
    (r"playwright", "playwright"),
    (r"testcontainers", "testcontainers"),
    (r"openssl", "openssl"),
    (r"\bjava\b|CLIENT_JARS|\bjars\b|maven", "Java and Maven"),
    (r"cargo", "cargo"),
    (r"captured trades", "captured trades"),
)
"""The reason of a skip, and the program that would have made the test run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorted by folder; in one process, too."""
    items.sort(key=lambda item: _ORDER.index(_folder(item.nodeid)))


def _folder(nodeid: str) -> str:
    """Of tests/, where a test is; those that lie there themselves are short, too."""
    folder = nodeid.split("/")[1]
    return folder if folder in _ORDER else "unit"


class FilesTogether(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist is untyped
    """Tests of one file share its fixtures, so they share a process; those of tests/unit go wherever there is room.

    All chaos is one: two brokers that are being killed, with workers around each, disturb one another's clocks.

    Not by pytest-xdist's own groups: it writes them into the names of tests, which pytest 9.2 does not let it do.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        match _folder(file):
            case "unit":
                return nodeid
            case "chaos":
                return "tests/chaos"
            case _:
                return file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    """The order is ours: pytest-xdist's, by numbers of tests, says nothing of how long they take."""
    config.option.loadscopereorder = False
    return FilesTogether(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Below everything else: what is missing here, and how many tests that left out."""
    yield
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()) if report.longrepr]
    if reasons:
        terminalreporter.write_line(left_out(reasons), yellow=True)


def left_out(reasons: list[str]) -> str:
    """The line, for the reasons of all skipped tests."""
    wanting = Counter(_wanting(reason.removeprefix("Skipped: ")) for reason in reasons)
    programs = ", ".join(f"{name} ({number})" for name, number in sorted(wanting.items()))
    return f"Left out {len(reasons)} test{'s' * (len(reasons) > 1)}, for want of: {programs}"


def _wanting(reason: str) -> str:
    return next((name for pattern, name in _WANTING if re.search(pattern, reason, re.IGNORECASE)), reason)
