"""Bars from bars: windows made of the frames of another application. The rules, in full.

    ticks ─▶ application A, 1 s ─▶ frames ─▶ application B, 1 m ─▶ frames ─▶ application C, 1 h ─▶ frames

*Joining.* A frame ``[start, end)`` is a *child*; it joins the window, its *parent*, that ``start`` belongs to, and must
lie in it whole: the parent's size is a multiple of the child's.

*The clock* of a symbol is the greatest end among its children that are not provisional, and the watermark is the same:
an application emits the windows of a symbol in order of their ends, so that with an end everything before it has come.
There is nothing to wait for, hence no lag.

*Late* is a child whose ``end + allowed_lateness`` the watermark had reached before it came; a child that moves the
clock is never late. Its own application, with the same allowed lateness, would have dropped its window by then: so it
either had come before, or breaks that promise. ``watermark`` is the reason where the parent is gone too, ``settled``
where it is still kept. Allowed lateness must be at least that of the application the frames come from.

*Revisions.* A child that comes again with a higher ``rev`` replaces itself, and a parent that is closed already comes
out again with its own next ``rev``: revisions travel up. An equal or lower ``rev`` changes nothing, and counts as
deduplicated. A child without ticks (all cancelled, or its session was merged into another) takes itself out.

*Provisional children* are shown in provisional frames of an open parent and nowhere else: they are kept apart, and
what is emitted otherwise is computed as if they had never come. They move no clock and are never late.

*Sums* are made in order of the children's start: of their volumes, and of volume times vwap, both as printed and both
exact (`workers.core.decimals`). vwap is the second by the first, and within low and high. A child that can't be revised
any more is added to the sums so far and not kept by itself; as those after it come later in that order, too, it makes
no difference when that is done.

*Filled* children (no ticks, the price before) count only where a parent has nothing else: then it is filled as well.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Final, Literal

import msgspec

from workers.core.aggregates import Aggregation
from workers.core.decimals import DecimalSum, average
from workers.core.formats.frames import Child, ChildBar
from workers.core.frames import BAR_FIELDS
from workers.core.prices import join_later
from workers.core.reasons import Status, Trigger
from workers.core.ticks import Tick
from workers.core.windows.engine import WindowEngine
from workers.core.windows.window import LONG_AGO, KeyState, Lateness, Window, WindowRules

__all__ = ["BarEngine", "BarRules", "Bars", "Contents"]


# -- what a parent holds ----------------------------------------------------------------------------------------------


class _Sums(msgspec.Struct, array_like=True):
    """Children added up in order of start, all of them with ticks, or all of them filled."""

    open: float
    high: float
    low: float
    close: float
    volume: DecimalSum
    notional: DecimalSum
    count: int
    first_ns: int
    last_ns: int

    def add(self, child: Child) -> None:
        join_later(self, child)
        self.volume = self.volume.plus(child.volume)
        self.notional = self.notional.plus_product(child.vwap, child.volume)
        self.count += child.count
        self.last_ns = child.last_ns


class Contents(msgspec.Struct, array_like=True):
    """What a parent knows of its children.

    ``real`` and ``filled`` are the sums of those that can't be revised any more, all of which end at ``settled_ns`` or
    before; ``children`` and ``previews`` (the provisional ones) are by start. ``joined``: any came that was not
    provisional.
    """

    joined: bool = False
    settled_ns: int = LONG_AGO
    real: _Sums | None = None
    filled: _Sums | None = None
    children: list[Child] = []  # msgspec copies it
    previews: list[Child] = []

    def verdict(self, child: Child) -> Literal["new", "revision", "repeated", "overlaps"]:
        """What the child, which is not settled, is to those that are here."""
        if child.start_ns < self.settled_ns:
            return "overlaps"
        at = bisect_left(self.children, child.start_ns, key=_START)
        if at < len(self.children):
            there = self.children[at]
            if there.start_ns == child.start_ns and there.end_ns == child.end_ns:
                return "revision" if child.rev > there.rev else "repeated"
            if there.start_ns < child.end_ns:
                return "overlaps"
        return "overlaps" if at and self.children[at - 1].end_ns > child.start_ns else "new"

    def join(self, child: Child) -> int:
        """Take a child in; it replaces itself. By how many the ticks became more."""
        self.joined = True
        self.previews = [each for each in self.previews if not _overlap(each, child)]
        return child.count - _put(self.children, child)

    def preview(self, child: Child) -> None:
        """Take a provisional child in; it replaces itself."""
        self.previews = [each for each in self.previews if not _overlap(each, child)]
        _put(self.previews, child)

    def settle(self, horizon_ns: int) -> None:
        """Add the children that end at ``horizon_ns`` or before to the sums, for good."""
        number = 0
        for child in self.children:
            if child.end_ns > horizon_ns:
                break
            self.real, self.filled = _added(self.real, self.filled, child)
            self.settled_ns = child.end_ns
            number += 1
        if number:
            del self.children[:number]
        if self.previews and self.previews[0].end_ns <= horizon_ns:
            self.previews = [each for each in self.previews if each.end_ns > horizon_ns]

    def total(self, *, with_previews: bool) -> tuple[_Sums | None, _Sums | None]:
        """The sums over all children with ticks, and over all filled ones."""
        real = msgspec.structs.replace(self.real) if self.real is not None else None
        filled = msgspec.structs.replace(self.filled) if self.filled is not None else None
        children: Iterable[Child] = self.children
        if with_previews and self.previews:
            children = heapq.merge(self.children, self.previews, key=_START)
        for child in children:
            real, filled = _added(real, filled, child)
        return real, filled


_START: Final = attrgetter("start_ns")


def _put(children: list[Child], child: Child) -> int:
    """Put a child in its place; the ticks of the one that it replaces."""
    at = bisect_left(children, child.start_ns, key=_START)
    if at < len(children) and children[at].start_ns == child.start_ns:
        replaced, children[at] = children[at], child
        return replaced.count
    children.insert(at, child)
    return 0


def _overlap(one: Child, other: Child) -> bool:
    return one.start_ns < other.end_ns and other.start_ns < one.end_ns


def _added(real: _Sums | None, filled: _Sums | None, child: Child) -> tuple[_Sums | None, _Sums | None]:
    if child.count:
        return _plus(real, child), filled
    return real, _plus(filled, child) if child.filled else filled


def _plus(sums: _Sums | None, child: Child) -> _Sums:
    if sums is not None:
        sums.add(child)
        return sums
    return _Sums(
        child.open,
        child.high,
        child.low,
        child.close,
        DecimalSum().plus(child.volume),
        DecimalSum().plus_product(child.vwap, child.volume),
        child.count,
        child.first_ns,
        child.last_ns,
    )


class Bars(Aggregation[Contents]):
    """Open, high, low, close, volume and vwap of children. `BarEngine` hands them in, so `add` is not used."""

    name = "bars"
    version = 2

    def create(self) -> Contents:
        return Contents()

    def add(self, state: Contents, tick: Tick) -> Contents:
        raise NotImplementedError("children join by BarEngine, which knows the clock that settles them")

    def result(self, state: Contents) -> Mapping[str, object]:
        return _result_of(*state.total(with_previews=False))

    def dump(self, state: Contents) -> bytes:
        return msgspec.msgpack.encode(state, enc_hook=DecimalSum.dump)

    def load(self, data: bytes) -> Contents:
        return msgspec.msgpack.decode(data, type=Contents, dec_hook=lambda _, packed: DecimalSum.load(packed))


def _result_of(real: _Sums | None, filled: _Sums | None) -> Mapping[str, object]:
    sums = real or filled
    if sums is None:
        return dict.fromkeys(BAR_FIELDS)
    return {
        "open": sums.open,
        "high": sums.high,
        "low": sums.low,
        "close": sums.close,
        "volume": float(sums.volume),
        "vwap": average(sums.notional, sums.volume, sums.low, sums.high),
    }


# -- the windows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarRules(WindowRules):
    """The rules of windows that are made of children: there is nothing to wait for, hence no lag."""

    needs_lag: ClassVar[bool] = False


class BarEngine(WindowEngine[str, Tick]):
    """Windows whose ticks are children, by the rules of this module; closing, keeping and expiry are those of ticks.

    ``rules.lag_ns`` must be 0 and ``rules.scope`` key: the frames of several symbols come in no common order of time.
    """

    def __init__(self, rules: WindowRules, *, emit_partial: bool = False, track_changes: bool = False) -> None:
        assert rules.lag_ns == 0, "children come when their own application has waited"
        assert rules.scope == "key", "frames of several symbols come in no common order of time"
        super().__init__(rules, folding=Bars(), emit_partial=emit_partial, track_changes=track_changes)
        self._shown: tuple[_Sums | None, _Sums | None] = (None, None)  # of the window that is being emitted

    def add(self, key: str, ts_ns: int, value: Tick) -> Lateness | None:
        """Judge and place one `ChildBar`; None when it was accepted. ``repeated``: it changes nothing."""
        assert isinstance(value, ChildBar)
        child, state = value.child, self._keys.get(key)
        parents = self._rules.assigner.assign(ts_ns)
        watermark_ns = LONG_AGO if state is None else state.max_ns
        refusal = self._judge(value, parents, {} if state is None else state.windows, watermark_ns)
        if refusal is not None:
            if refusal.reason == "outside_session":  # what no window is for moves the clocks all the same
                has_clock = watermark_ns != LONG_AGO
                self._pass_by(state if has_clock else None, child.end_ns, refusal.watermark_ns)
            return refusal
        if state is None:
            state = self._new_key(key, child.end_ns)
            state.max_ns = LONG_AGO
        if not value.provisional and child.end_ns > state.max_ns:
            if state.max_ns == LONG_AGO:
                self._await_expiry(state, child.end_ns)
            state.max_ns = child.end_ns
        for start_ns, end_ns in parents:
            self._join_parent(state, start_ns, end_ns, value, watermark_ns)
        if state.max_ns > watermark_ns:
            self._advance(state, state.max_ns, state.max_ns)
        return None

    def _judge(
        self,
        bar: ChildBar,
        parents: Sequence[tuple[int, int]],
        windows: Mapping[int, Window[str]],
        watermark_ns: int,
    ) -> Lateness | None:
        """Why the child can't join, if it can't."""
        child, rules = bar.child, self._rules
        refusal: Lateness | None = None
        verdicts = {windows[start].state.verdict(child) for start, _ in parents if start in windows}
        if not parents:
            refusal = Lateness("outside_session", max(watermark_ns, child.end_ns), 0)
        elif child.end_ns + rules.lateness_ns <= watermark_ns:
            is_gone = all(end_ns + rules.lateness_ns <= watermark_ns for _, end_ns in parents)
            late_by_ns = watermark_ns - rules.lateness_ns - child.end_ns
            refusal = Lateness("watermark" if is_gone else "settled", watermark_ns, late_by_ns)
        elif rules.key_ttl_ns is not None and self._partition_max_ns - parents[0][0] > rules.key_ttl_ns:
            late_by_ns = self._partition_max_ns - rules.key_ttl_ns - parents[0][0]
            refusal = Lateness("expired", max(watermark_ns, child.end_ns), late_by_ns)
        elif "repeated" in verdicts:
            return Lateness("repeated", watermark_ns, 0)
        elif "overlaps" in verdicts:
            refusal = Lateness("overlaps", max(watermark_ns, child.end_ns), 0)
        if not bar.provisional:
            return refusal
        is_open = any(
            end_ns > watermark_ns and not (start_ns in windows and windows[start_ns].closed)
            for start_ns, end_ns in parents
        )
        # What is provisional will come again: it need not be missed.
        in_vain = refusal is not None or "revision" in verdicts or not is_open
        return Lateness("repeated", watermark_ns, 0) if in_vain else None

    def _join_parent(self, state: KeyState[str], start_ns: int, end_ns: int, bar: ChildBar, watermark_ns: int) -> None:
        child = bar.child
        is_over = end_ns <= watermark_ns  # before the child was observed: it may close what it joins
        window = state.windows.get(start_ns)
        if bar.provisional and (is_over or (window is not None and window.closed)):
            return
        if window is None:
            eager = self._rules.emit == "eager"
            gone = self._changes.get((state.key, start_ns)) if self._changes is not None else None
            window = self._open(state, start_ns, end_ns, child.start_ns, closed=is_over and eager)
            window.clock_ns = LONG_AGO
            # One of nothing but provisional children may have gone, and comes again before its record was deleted.
            window.stored = gone is not None and gone.stored
        contents: Contents = window.state
        if bar.provisional:
            contents.preview(child)
        else:
            window.count += contents.join(child)
            contents.settle(state.max_ns - self._rules.lateness_ns)
            window.clock_ns = max(window.clock_ns, child.end_ns)
        self._show_change(window, "correction" if bar.trigger == "correction" else "late")

    def _clock_after_ns(self, last_end_ns: int) -> int:
        return last_end_ns + self._rules.lateness_ns  # of children it is the end that is late

    def _is_real(self, window: Window[str]) -> bool:
        contents: Contents = window.state
        return contents.joined

    def load_in_steps(self, windows: Iterable[Window[str]], partition_max_ns: int) -> Generator[None, None, None]:
        yield from super().load_in_steps(windows, partition_max_ns)
        clockless = [state for state in self._keys.values() if state.max_ns == LONG_AGO]
        if clockless:  # only provisional children so far: there is no clock to expire by
            self._expiry = [entry for entry in self._expiry if entry[0] != LONG_AGO]
            heapq.heapify(self._expiry)
            for state in clockless:
                self._await_expiry(state, max(window.end_ns for window in state.windows.values()))

    def _await_expiry(self, state: KeyState[str], time_ns: int) -> None:
        if self._rules.key_ttl_ns is not None:
            heapq.heappush(self._expiry, (time_ns, next(self._tie_break), state))

    def _emit(self, window: Window[str], status: Status, trigger: Trigger, *, filled: bool = False) -> None:
        contents: Contents = window.state
        if status != "provisional" and not contents.joined:
            window.changed = False  # nothing but provisional children: to all others it does not exist
            return
        self._shown = real, empty = contents.total(with_previews=status == "provisional")
        counted = window.count
        window.count = real.count if real is not None else 0
        window.first_ns = real.first_ns if real is not None else window.start_ns
        window.last_ns = real.last_ns if real is not None else window.start_ns
        super()._emit(window, status, trigger, filled=real is None and empty is not None)
        window.count = counted  # provisional children are not of it

    def _result(self, window: Window[str]) -> Mapping[str, object]:
        return _result_of(*self._shown)
