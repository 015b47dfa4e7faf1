"""Session windows: as long as the ticks of a key come within ``gap`` of one another, they are in one window.

A session is ``[first, last + gap)``. A tick alone would be ``[ts, ts + gap)``; it joins every session that this
overlaps, and makes one of them. Half-open: a tick exactly ``gap`` after the last one begins a session of its own.

    gap 5      A ─── A+5            B ─── B+5
               ├──────┤             ├──────┤
    a tick at C between them     C ─── C+5              ─▶  one session, [A, B + 5)
                          ├──────┤

The lateness rule is that of all windows, and judges ticks, not sessions. A session that some accepted tick can still
reach is always kept: it ends after that tick, and so after the threshold.

*Who a merged session is.* A window is named by its key and start. The session that had the smallest start goes on under
that name, with its next ``rev``. Where the tick itself is the smallest, the session has a new start, so a new name, and
begins at rev 0. Names given up that were shown are *withdrawn*, so that nobody counts their ticks twice: a frame of
that name with count 0 and null results, trigger ``merged``; ``closed``, with their next rev, where they came out
before, and ``provisional`` where they were only shown provisionally. A name given up is never taken again: what is
between its start and its end stays part of a session, or is late.

*When it closes.* When the watermark reaches its end, like any window. A tick within the allowed lateness may make a
closed session end after the watermark: then it is open again, and comes out with its next rev when it closes. Where
the session still ends before the watermark, it comes out at once, trigger ``late``.

*What it computes.* Sessions never overlap, so of two that merge one is wholly before the other: their states are merged
in that order, and then the tick is added. Items are put in the order in which they came.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from functools import reduce
from operator import itemgetter
from typing import Any, Protocol, TypeVar, Unpack, cast

from workers.core.reasons import Status, Trigger
from workers.core.windows.engine import EngineOptions, Folding, T, WindowEngine
from workers.core.windows.window import K, KeyState, Window, WindowRules

__all__ = ["Merging", "SessionEngine", "SessionKey"]

T_contra = TypeVar("T_contra", contravariant=True)


class Merging(Folding[T_contra], Protocol[T_contra]):
    """What session windows need of an aggregation."""

    def merge(self, state: Any, later: Any) -> Any: ...


@dataclass(slots=True)
class SessionKey(KeyState[K]):
    """A key's sessions; ``starts`` are theirs, sorted."""

    starts: list[int] = field(default_factory=list)


class SessionEngine(WindowEngine[K, T]):
    """The engine for `workers.core.windows.assign.Sessions`. A session whose start moves within a ``name_unit_ns``
    keeps its name."""

    def __init__(self, rules: WindowRules, *, name_unit_ns: int = 1, **options: Unpack[EngineOptions[T]]) -> None:
        super().__init__(rules, name_unit_ns=name_unit_ns, **options)
        folding = cast("Merging[T] | None", options.get("folding"))
        self._merge = folding.merge if folding is not None else None
        self._next_order = 0

    def _loaded(self, state: KeyState[K]) -> None:
        super()._loaded(state)
        assert isinstance(state, SessionKey)
        state.starts = sorted(state.windows)
        for window in state.windows.values():
            if window.orders:
                self._next_order = max(self._next_order, window.orders[-1] + 1)

    def _make_state(self, key: K, max_ns: int) -> SessionKey[K]:
        return SessionKey(key, max_ns)

    def _join(self, state: KeyState[K], start_ns: int, end_ns: int, ts_ns: int, value: T, watermark_ns: int) -> None:
        assert isinstance(state, SessionKey)
        touched = self._touched(state, start_ns, end_ns)
        if touched:
            end_ns = max(end_ns, touched[-1].end_ns)
        closed = end_ns <= watermark_ns and self._rules.emit == "eager"
        if touched and touched[0].start_ns <= start_ns:
            window = touched[0]
            if end_ns > window.end_ns:
                self._lengthen(state, window, end_ns, closed=closed)
        else:
            window = self._open(state, start_ns, end_ns, ts_ns, closed=closed)
        if touched and (len(touched) > 1 or window is not touched[0]):
            self._unite(state, window, touched)
        self._take_in(state, window, ts_ns, value)

    def _touched(self, state: SessionKey[K], start_ns: int, end_ns: int) -> list[Window[K]]:
        """The sessions that overlap ``[start_ns, end_ns)``, by start; they are side by side."""
        high = low = bisect_left(state.starts, end_ns)
        while low and state.windows[state.starts[low - 1]].end_ns > start_ns:
            low -= 1
        return [state.windows[start_ns] for start_ns in state.starts[low:high]]

    def _open(self, state: KeyState[K], start_ns: int, end_ns: int, ts_ns: int, *, closed: bool) -> Window[K]:
        window = super()._open(state, start_ns, end_ns, ts_ns, closed=closed)
        if window.items is not None:
            window.orders = []
        assert isinstance(state, SessionKey)
        insort(state.starts, start_ns)
        return window

    def _lengthen(self, state: KeyState[K], window: Window[K], end_ns: int, *, closed: bool) -> None:
        window.end_ns = end_ns
        was_closed, window.closed = window.closed, closed
        if closed:
            return
        if was_closed and end_ns < window.due_ns:
            self._await(state, window, end_ns)
        if window.overdue:
            window.overdue = False
            self._await_idle(window)

    def _act(self, state: KeyState[K], window: Window[K], watermark_ns: int) -> int | None:
        if not window.closed:
            due_ns = window.end_ns + (self._rules.lateness_ns if self._rules.emit == "final" else 0)
            if due_ns > watermark_ns:
                return due_ns  # it grew since this was arranged
        return super()._act(state, window, watermark_ns)

    def _unite(self, state: KeyState[K], window: Window[K], touched: list[Window[K]]) -> None:
        """Make ``window``, the first of ``touched`` or a new one before them all, what they are together."""
        first = touched[0]
        if self._merge is not None:
            window.state = reduce(self._merge, (each.state for each in touched))
        if window.items is not None:
            self._unite_items(window, touched)
        window.count = sum(each.count for each in touched)
        window.first_ns = min(window.first_ns, first.first_ns)
        window.last_ns = max(each.last_ns for each in touched)
        window.clock_ns = max(window.clock_ns, *(each.clock_ns for each in touched))
        if window is not first and window.start_ns // self._name_unit_ns == first.start_ns // self._name_unit_ns:
            window.rev, window.shown = first.rev, first.shown
            first.rev, first.shown = 0, False
        for each in touched:
            if each is not window:
                self._withdraw(each)
                self._drop(state, each)

    def _unite_items(self, window: Window[K], touched: list[Window[K]]) -> None:
        if len(touched) == 1:
            window.items, window.orders = touched[0].items, touched[0].orders
        else:
            parts = (zip(each.orders or (), each.items or (), strict=True) for each in touched)
            pairs = list(heapq.merge(*parts, key=itemgetter(0)))
            window.orders, window.items = [order for order, _ in pairs], [item for _, item in pairs]
        window.stored_items = 0  # whatever is stored of it is to be written anew

    def _withdraw(self, window: Window[K]) -> None:
        """Take back what was shown of a window that is part of another one now."""
        window.count = 0
        window.items = None if window.items is None else []
        if window.rev:
            self._emit(window, "closed", "merged")
        elif window.shown:
            self._emit(window, "provisional", "merged")

    def _take_in(self, state: KeyState[K], window: Window[K], ts_ns: int, value: T) -> None:
        if window.orders is not None:
            window.orders.append(self._next_order)
            self._next_order += 1
        super()._take_in(state, window, ts_ns, value)

    def _drop(self, state: KeyState[K], window: Window[K]) -> None:
        assert isinstance(state, SessionKey)
        del state.starts[bisect_left(state.starts, window.start_ns)]
        super()._drop(state, window)

    def _emit(self, window: Window[K], status: Status, trigger: Trigger, *, filled: bool = False) -> None:
        super()._emit(window, status, trigger, filled=filled)
        if status == "provisional" and not window.shown and not window.dropped:
            window.shown = True  # a restart must not forget that there is something to withdraw
            if self._changes is not None:
                self._changes[window.key, window.start_ns] = window
