"""Long work in short steps: a generator that yields when it has done a portion lets an event loop go on with others.

Portions are counted in work, not in time: what is computed must not depend on a clock, and neither must tests.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

__all__ = ["Portion", "run_through"]

T = TypeVar("T")

UNITS: Final = 2_000
"""Of some 10 µs each, the time that it takes to read and place one stored window: 20 ms."""


class Portion:
    """Says when a step has done enough; then the next one begins."""

    def __init__(self) -> None:
        self._left = float(UNITS)

    def is_done(self, units: float = 1) -> bool:
        """Whether, with ``units`` more, this step has done its portion."""
        self._left -= units
        if self._left > 0:
            return False
        self._left = float(UNITS)
        return True


def run_through(steps: Generator[None, None, T]) -> T:
    """All steps at once; what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: T = done.value
            return found
