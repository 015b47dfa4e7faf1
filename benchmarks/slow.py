"""A worker that can do only so much: an aggregation with a brake, for load tests.

The results are those of the built-in bars, so that the same oracle judges them; but it runs tick by tick, and no faster
than the file named by ``LOAD_BRAKE`` says (ticks a second for the whole process; no file, no brake). It sleeps instead
of computing, so the capacity is the same whatever else the machine does, and releasing the brake needs no restart.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from workers.core.aggregates import Ohlcv, OhlcvState
from workers.core.ticks import Tick

__all__ = ["BRAKE", "Braked"]

BRAKE = "LOAD_BRAKE"
LOOK_S = 0.2
NAP_S = 0.01  # sleeping for less costs more than it waits
CREDIT_S = 0.1  # time lost elsewhere, or overslept, that is made good: else a busy machine would be a second brake


class _Brake:
    """One for the process: all its partitions share what it can do."""

    def __init__(self) -> None:
        self._path = Path(os.environ[BRAKE]) if BRAKE in os.environ else None
        self._cost_s = 0.0
        self._looked_s = 0.0
        self._due_s = 0.0

    def one_tick(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._looked_s, self._cost_s = now_s, self._read()
        self._due_s = max(self._due_s, now_s - CREDIT_S) + self._cost_s
        if self._due_s - now_s > NAP_S:
            time.sleep(self._due_s - now_s)

    def _read(self) -> float:
        try:
            text = self._path.read_text() if self._path is not None else ""
        except FileNotFoundError:
            text = ""
        return 1 / float(text) if text.strip() else 0.0


_BRAKE = _Brake()


class Braked(Ohlcv):
    """Bars, at the pace that the brake allows."""

    name = "braked"

    def add(self, state: OhlcvState, tick: Tick) -> OhlcvState:
        _BRAKE.one_tick()
        return super().add(state, tick)
