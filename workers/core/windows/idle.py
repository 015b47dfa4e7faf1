"""Open windows that wait to be overdue, by their ends: what partition time has passed is shown provisionally."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic

from workers.core.windows.window import K, Window

__all__ = ["IdleQueue"]


class IdleQueue(Generic[K]):
    """Windows by end, until they are overdue; ``changed`` are those that changed while they were."""

    def __init__(self) -> None:
        self.changed: dict[tuple[K, int], Window[K]] = {}
        self._due: list[tuple[int, int, Window[K]]] = []  # heap of (end, tie-break, window)
        self._tie_break = count()  # keys need not be comparable

    def put(self, window: Window[K]) -> None:
        """Have the window wait."""
        heapq.heappush(self._due, (window.end_ns, next(self._tie_break), window))

    def take_overdue(self, reached_ns: int) -> list[Window[K]]:
        """The open windows that ended at ``reached_ns`` or before, and changed since they were last shown."""
        while self._due and self._due[0][0] <= reached_ns:
            due_ns, _, window = heapq.heappop(self._due)
            if window.end_ns > due_ns and not window.dropped:
                self.put(window)  # it grew
                continue
            window.overdue = True
            if window.changed:
                self.changed[window.key, window.start_ns] = window
        if not self.changed:
            return []
        changed, self.changed = self.changed, {}
        return [
            each for each in changed.values() if each.changed and each.overdue and not (each.closed or each.dropped)
        ]

    def next_end_ns(self) -> int | None:
        """The end of the window that is overdue next; None where none waits."""
        while self._due:
            due_ns, _, window = self._due[0]
            if window.closed or window.dropped:
                window.overdue = True
            elif window.end_ns == due_ns:
                return due_ns
            heapq.heappop(self._due)
            if not window.overdue:
                self.put(window)  # it grew
        return None

    def clear(self) -> None:
        """No window waits any more."""
        self._due.clear()
