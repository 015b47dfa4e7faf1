"""Lanes of several partitions side by side, in threads.

Native lanes compute without Python's lock, so one process can use all cores. The event loop waits for the threads: what
it would do in between, commits above all, must not meet lanes at work. So a step holds it for as long as the slowest of
the lanes takes, some 25 ms, and not for the sum of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from workers.core.effects import Effects

__all__ = ["LaneThreads"]

Work = Callable[[], Effects]


class LaneThreads:
    """Runs what lanes have to compute, at most ``count`` at once; 0: as many as there are cores for this process."""

    def __init__(self, count: int) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane") if self.count > 1 else None

    def run(self, works: Sequence[Work]) -> list[tuple[Effects, float] | Exception]:
        """What each gives and the seconds that it took, or what it raises, in order, when all have ended: what one lane
        made must not be lost by another that raises."""
        if self._pool is None or len(works) < 2:
            return [_timed(work) for work in works]
        others = [self._pool.submit(_timed, work) for work in works[1:]]
        first = _timed(works[0])  # the loop's own thread would only wait
        return [first, *(other.result() for other in others)]

    def close(self) -> None:
        """End the threads; nothing is at work any more."""
        if self._pool is not None:
            self._pool.shutdown()


def _timed(work: Work) -> tuple[Effects, float] | Exception:
    began_s = time.perf_counter()
    try:
        effects = work()
    except Exception as error:
        return error
    return effects, time.perf_counter() - began_s
