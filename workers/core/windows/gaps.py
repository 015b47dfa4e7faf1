"""Bars for times without trades: with ``fill_gaps`` a hole between two windows of a key is filled with empty ones.

    ticks      A A        B                     fill_gaps at least 2 windows:
            ├──────┼──────┼──────┼──────┼──────┤
               bar    fill   fill    bar
                      close of the bar before, volume 0

When a tick opens a window later than the key's newest, and the hole between them is not longer than ``fill_gaps``, the
windows in the hole are made, without ticks. They close, are kept, come out again and are dropped by the rules of all
windows (`workers.core.windows.engine`). What they show: the close of the window before as open, high, low and close, no
volume, no ticks; and that they are ``filled``. A hole that is longer stays one, and so does one that begins where the
key's state was forgotten.

A tick within the allowed lateness that joins an empty window makes it a bar like others, with its next rev. A tick
that changes a window's close changes the empty ones that follow it: those that came out come out again, with their next
rev, trigger ``late``. An empty window holds the close that it shows, so it needs the window before it only as long as
that can change.

With one clock for a partition a key's newest window is kept until no tick could begin a hole to fill; with a clock for
each key it is kept anyway, as it holds the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, Unpack

from workers.core.reasons import Status, Trigger
from workers.core.windows.engine import EngineOptions, Folding, T, WindowEngine
from workers.core.windows.window import LONG_AGO, K, KeyState, Window, WindowRules

__all__ = ["Filling", "GapBarEngine", "GapKey"]

T_contra = TypeVar("T_contra", contravariant=True)


class Filling(Folding[T_contra], Protocol[T_contra]):
    """What empty windows need of an aggregation."""

    def empty_after(self, state: Any) -> Any:
        """The state of a window without ticks that follows one with ``state``."""


@dataclass(slots=True)
class GapKey(KeyState[K]):
    """A key's windows; ``newest_ns`` is the start of the newest."""

    newest_ns: int = LONG_AGO


class GapBarEngine(WindowEngine[K, T]):
    """The engine for windows side by side whose holes are filled: those of at most ``fill_gaps_ns``. It needs a
    folding, and keeps no items."""

    def __init__(
        self, rules: WindowRules, fill_gaps_ns: int, filling: Filling[T], **options: Unpack[EngineOptions[T]]
    ) -> None:
        options["folding"] = filling
        super().__init__(rules, **options)
        self._fill_gaps_ns = fill_gaps_ns
        self._filling = filling

    def _loaded(self, state: KeyState[K]) -> None:
        super()._loaded(state)
        assert isinstance(state, GapKey)
        state.newest_ns = max(state.windows)

    def _make_state(self, key: K, max_ns: int) -> GapKey[K]:
        return GapKey(key, max_ns)

    def _join(self, state: KeyState[K], start_ns: int, end_ns: int, ts_ns: int, value: T, watermark_ns: int) -> None:
        assert isinstance(state, GapKey)
        if start_ns > state.newest_ns:
            self._fill(state, start_ns, watermark_ns)
            state.newest_ns = start_ns
        window = state.windows.get(start_ns)
        if window is not None and not window.count:
            window.state = self._filling.create()
            window.first_ns = window.last_ns = ts_ns
        super()._join(state, start_ns, end_ns, ts_ns, value, watermark_ns)
        self._carry(state, state.windows[start_ns])

    def _fill(self, state: GapKey[K], until_ns: int, watermark_ns: int) -> None:
        newest = state.windows.get(state.newest_ns)
        if newest is None or not 0 < until_ns - newest.end_ns <= self._fill_gaps_ns:
            return
        at_ns = newest.end_ns
        while at_ns < until_ns:
            ((start_ns, end_ns),) = self._rules.assigner.assign(at_ns)
            window = self._open(state, start_ns, end_ns, LONG_AGO, closed=False)
            window.state = self._filling.empty_after(newest.state)
            self._show_change(window, "watermark")
            at_ns = end_ns
        assert at_ns == until_ns, f"windows are not side by side: {at_ns} is past {until_ns}"
        # The watermark may be past them: it is the partition's, or the input had ended and moved it. Then they come
        # before the tick's own window.
        if self._rules.scope == "partition":
            self._close_partition(watermark_ns)
        else:
            self._close_key(state, watermark_ns)

    def _carry(self, state: KeyState[K], window: Window[K]) -> None:
        """Show the close of ``window`` in the empty windows that follow it, where it is another one now."""
        follower = state.windows.get(window.end_ns)
        while follower is not None and not follower.count:
            carried = self._filling.empty_after(window.state)
            if repr(self._filling.result(carried)) == repr(self._filling.result(follower.state)):  # -0.0 is not 0.0
                return
            follower.state = carried
            self._show_change(follower, "late")
            follower = state.windows.get(follower.end_ns)

    def _needed_until_ns(self, state: KeyState[K], window: Window[K], watermark_ns: int) -> int | None:
        assert isinstance(state, GapKey)
        rules = self._rules
        if rules.scope == "partition" and window.start_ns == state.newest_ns:
            # A tick that is not late is after this, so its window starts more than fill_gaps after the end of this one.
            until_ns = window.end_ns + self._fill_gaps_ns + rules.assigner.longest_ns + rules.lateness_ns
            return until_ns if until_ns > watermark_ns else None
        return super()._needed_until_ns(state, window, watermark_ns)

    def _result(self, window: Window[K]) -> Any:
        return self._filling.result(window.state)

    def _emit(self, window: Window[K], status: Status, trigger: Trigger, *, filled: bool = False) -> None:
        super()._emit(window, status, trigger, filled=filled or not window.count)
