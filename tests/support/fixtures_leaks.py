"""A test closes the sockets that it opens; one that doesn't fails, by name.

Left alone, such a socket comes to light whenever Python collects garbage, as a ``ResourceWarning`` in a test that has
nothing to do with it. What fixtures of a module or of the session open may stay for as long as they do.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["open_sockets"]

_DESCRIPTORS = Path("/proc/self/fd")
_CLOSING_S = 1.0  # a server's thread may close what it served a moment after its client has gone
_known: set[str] = set()
"""Sockets that no test is to be blamed for any more."""


def open_sockets() -> dict[str, int]:
    """The descriptors of this process's sockets, by the kernel's name for each; none where there is no /proc."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for descriptor in _DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):  # the listing's own, and those that threads close meanwhile
                name = str(descriptor.readlink())
                if name.startswith("socket:"):
                    found[name] = int(descriptor.name)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """What outlives a test is not that test's."""
    if fixturedef.scope == "function":
        return (yield)
    before = set(open_sockets())
    try:
        return (yield)
    finally:
        _known.update(set(open_sockets()) - before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Whatever is open now is not the next test's."""
    _known.update(open_sockets())
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Look when all of the test's fixtures are done."""
    result = yield
    limit_s = time.monotonic() + _CLOSING_S
    while left := {name: number for name, number in open_sockets().items() if name not in _known}:
        if time.monotonic() > limit_s:
            pytest.fail(f"the test leaves {len(left)} sockets open: {_described(left)}", pytrace=False)
        time.sleep(0.02)
    return result


def _described(left: dict[str, int]) -> str:
    """Who is connected to whom, and what Python says of those that nobody refers to; these are then closed."""
    lines = [_ends(number) for number in left.values()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    return "\n  ".join(["", *lines, *(str(warning.message) for warning in caught)])


def _ends(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as copy:
        try:
            return f"{copy.family.name} {copy.getsockname()} to {copy.getpeername()}"
        except OSError:
            return f"{copy.family.name} {copy.getsockname()}"
