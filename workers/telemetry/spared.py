"""Of many messages alike, which are logged: attempts that are repeated until they work must not fill a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["SAID_EVERY_S", "Spared"]

SAID_EVERY_S: Final = 10.0
FORGOTTEN_AFTER_S: Final = 300.0


class Spared:
    """Which of many alike is said: one in `SAID_EVERY_S`, by what it says."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # when last, and how many since

    def note(self, what: str) -> int | None:
        """How many were left out since the last that was said; None where this is one of them."""
        now_s = self._clock()
        self._said = {each: found for each, found in self._said.items() if now_s - found[0] < FORGOTTEN_AFTER_S}
        last_s, left_out = self._said.get(what, (-math.inf, 0))
        is_said = now_s - last_s >= SAID_EVERY_S
        self._said[what] = (now_s, 0) if is_said else (last_s, left_out + 1)
        return left_out if is_said else None
