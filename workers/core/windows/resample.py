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
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal, get_args

import msgspec
import orjson

from workers.core.aggregates import Aggregation
from workers.core.decimals import DecimalSum, average
from workers.core.reasons import Reason, Status, Trigger
from workers.core.ticks import (
    DEEPEST_FRAME,
    EndOfInput,
    Record,
    Rejection,
    Tick,
    excerpt,
    is_deeper,
    too_deep,
    without_value,
)
from workers.core.windows.assign import Assigner, Hopping, Tumbling
from workers.core.windows.engine import LONG_AGO, KeyState, Lateness, Window, WindowEngine, WindowRules
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, UNIT_NS, TimestampUnit, format_duration, format_time

__all__ = ["BarEngine", "Bars", "Child", "ChildBar", "Contents", "bar_decoder"]

_FIELDS: Final = ("key", "start", "end", "rev", "status", "trigger", "count", "first_ts", "last_ts")
_RESULTS: Final = ("open", "high", "low", "close", "volume", "vwap")
_STATUSES: Final = get_args(Status)


class Child(msgspec.Struct, array_like=True, frozen=True):
    """A child as it is kept; times in nanoseconds. Without ticks, and not ``filled``, it is empty: numbers are 0."""

    start_ns: int
    end_ns: int
    rev: int
    count: int
    filled: bool
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class ChildBar(Tick):
    """A frame of another application on its way into a window.

    As a tick it has the child's start for a time, its close for a price and its volume for a size.
    """

    child: Child
    provisional: bool
    trigger: str


# -- decoding ---------------------------------------------------------------------------------------------------------


class _Malformed(Exception):
    """Why a record is no child; becomes a `Rejection`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def bar_decoder(
    unit: TimestampUnit, assigner: Assigner, min_time_ns: int = -MAX_EVENT_TIME_NS
) -> Callable[[Record], ChildBar | EndOfInput | Rejection]:
    """A function that turns a record of a frames topic into a child, the end of the input, or the reason why it is
    neither.

    ``unit`` is that of the frames' ``first_ts`` and ``last_ts``; ``assigner`` gives the parents. A child that begins
    before ``min_time_ns`` is none.
    """

    def decode(record: Record) -> ChildBar | EndOfInput | Rejection:
        if record.value is None:
            return without_value(record, "a frame")
        try:
            fields = _object_of(record.value)
            child = _child_of(fields, UNIT_NS[unit])
            if record.key is None or record.key != str(fields["key"]).encode():
                found = "none" if record.key is None else excerpt(record.key)
                message = f"the record's key is {found}; expected the frame's, {excerpt(fields['key'])}"
                raise _Malformed(Reason.KEY_MISMATCH, message)
            if child.start_ns < min_time_ns:
                message = (
                    f"start is {fields['start']}; as ms that is {format_time(child.start_ns)[:10]}, earlier than "
                    f"tick.min_time {format_time(min_time_ns)}: the application that the frames come from may read its "
                    "ticks in a wrong unit"
                )
                raise _Malformed(Reason.TIMESTAMP_OUT_OF_RANGE, message)
            _check_place(child, assigner)
        except _Malformed as error:
            return Rejection(error.reason, error.message, record)
        return ChildBar(
            str(fields["key"]),
            child.start_ns,
            child.close,
            child.volume,
            record.offset,
            record.value,
            fields,
            child,
            fields["status"] == "provisional",
            str(fields["trigger"]),
        )

    return decode


def _object_of(value: bytes) -> Mapping[str, object]:
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _Malformed(Reason.MALFORMED_JSON, f"{error}; the value begins {excerpt(value)}") from None
    if is_deeper(value, DEEPEST_FRAME):
        raise _Malformed(Reason.MALFORMED_JSON, too_deep(value, DEEPEST_FRAME))
    if not isinstance(fields, dict):
        raise _Malformed(Reason.WRONG_TYPE, f"the value is {excerpt(fields)}; expected a frame, a JSON object")
    missing = [name for name in (*_FIELDS, *_RESULTS) if name not in fields]
    if missing:
        message = f"{', '.join(missing)} missing; expected a frame with payload ohlcv or both"
        raise _Malformed(Reason.MISSING_FIELD, message)
    return fields


def _child_of(fields: Mapping[str, object], unit_ns: int) -> Child:
    """The child that a frame's fields describe."""
    if type(fields["key"]) is not str:
        raise _wrong("key", "a string", fields["key"])
    if fields["status"] not in _STATUSES:
        raise _wrong("status", " or ".join(_STATUSES), fields["status"])
    if type(fields["trigger"]) is not str:
        raise _wrong("trigger", "a string", fields["trigger"])
    start_ns, end_ns = (_time(fields, name, NS_PER_MS) for name in ("start", "end"))
    if end_ns <= start_ns:
        raise _wrong("end", f"more than start, {fields['start']}", fields["end"])
    # Not even one tick a nanosecond is too little: with that the counts of all children of a parent fit 64 bits.
    rev, count = _whole(fields, "rev", 2**63 - 1), _whole(fields, "count", end_ns - start_ns)
    filled = fields.get("filled", False)
    if type(filled) is not bool or (filled and count):
        raise _wrong("filled", "true or false, and true only with count 0", filled)
    if not count and not filled:
        return Child(start_ns, end_ns, rev, 0, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
    opened, high, low, close = (_finite(fields, name) for name in _RESULTS[:4])
    if filled:
        return Child(start_ns, end_ns, rev, 0, True, opened, high, low, close, 0.0, 0.0, 0, 0)
    first_ns, last_ns = (_time(fields, name, unit_ns) for name in ("first_ts", "last_ts"))
    # Both were floored to the unit when they were written.
    if not start_ns // unit_ns * unit_ns <= first_ns <= last_ns < end_ns:
        message = (
            f"first_ts is {fields['first_ts']} and last_ts {fields['last_ts']}, which are not times in the window; "
            "tick.timestamp_unit must be that of the application that the frames come from"
        )
        raise _Malformed(Reason.WRONG_TYPE, message)
    volume, vwap = _averaged(fields)
    return Child(start_ns, end_ns, rev, count, False, opened, high, low, close, volume, vwap, first_ns, last_ns)


def _wrong(name: str, expected: str, found: object) -> _Malformed:
    return _Malformed(Reason.WRONG_TYPE, f"{name} is {excerpt(found)} ({type(found).__name__}); expected {expected}")


def _time(fields: Mapping[str, object], name: str, unit_ns: int) -> int:
    found = fields[name]
    if type(found) is not int:
        raise _wrong(name, "an integer", found)
    if abs(found * unit_ns) > MAX_EVENT_TIME_NS:
        raise _Malformed(
            Reason.TIMESTAMP_OUT_OF_RANGE, f"{name} is {found}; it does not fit 64-bit nanoseconds since 1970"
        )
    return found * unit_ns


def _whole(fields: Mapping[str, object], name: str, most: int) -> int:
    found = fields[name]
    if type(found) is not int or not 0 <= found <= most:
        raise _wrong(name, f"an integer from 0 to {most}", found)
    return found


def _finite(fields: Mapping[str, object], name: str) -> float:
    found = fields[name]
    if type(found) is not float and type(found) is not int:
        raise _wrong(name, "a number", found)
    return float(found)  # JSON has no number that is not finite


def _averaged(fields: Mapping[str, object]) -> tuple[float, float]:
    """Volume and vwap. Null stands for what JSON can't hold, beyond the greatest float; both are then unknown."""
    if fields["volume"] is None:
        return float("inf"), float("nan")
    volume = _finite(fields, "volume")
    if volume < 0:
        raise _Malformed(Reason.NEGATIVE_SIZE, f"volume is {fields['volume']!r}; expected 0 or more")
    if fields["vwap"] is None:
        return volume, float("nan") if volume else 0.0
    return volume, _finite(fields, "vwap")


def _check_place(child: Child, assigner: Assigner) -> None:
    """See that the child lies in each of its parents whole, and that all children like it would."""
    length_ns = child.end_ns - child.start_ns
    units: tuple[int, ...] = ()
    if isinstance(assigner, Hopping):
        units = (assigner.hop_ns, assigner.size_ns)
    elif isinstance(assigner, Tumbling):
        units = (assigner.size_ns,)
    parents = assigner.assign(child.start_ns)
    if any(unit % length_ns for unit in units) or any(child.end_ns > end_ns for _, end_ns in parents):
        size = format_duration(assigner.longest_ns)
        message = (
            f"the frame is {format_duration(length_ns)} long, from {child.start_ns // NS_PER_MS} ms; it is not part of "
            f"one window of {size} here, whose size must be a multiple of that of the windows it is made of"
        )
        raise _Malformed(Reason.WRONG_WINDOW, message)


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
        self.high = max(self.high, child.high)
        self.low = min(self.low, child.low)
        self.close = child.close
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
        return dict.fromkeys(_RESULTS)
    return {
        "open": sums.open,
        "high": sums.high,
        "low": sums.low,
        "close": sums.close,
        "volume": float(sums.volume),
        "vwap": average(sums.notional, sums.volume, sums.low, sums.high),
    }


# -- the windows ------------------------------------------------------------------------------------------------------


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
            if refusal.reason is Reason.OUTSIDE_SESSION:  # what no window is for moves the clocks all the same
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
            refusal = Lateness(Reason.OUTSIDE_SESSION, max(watermark_ns, child.end_ns), 0)
        elif child.end_ns + rules.lateness_ns <= watermark_ns:
            is_gone = all(end_ns + rules.lateness_ns <= watermark_ns for _, end_ns in parents)
            late_by_ns = watermark_ns - rules.lateness_ns - child.end_ns
            refusal = Lateness(Reason.WATERMARK if is_gone else Reason.SETTLED, watermark_ns, late_by_ns)
        elif rules.key_ttl_ns is not None and self._partition_max_ns - parents[0][0] > rules.key_ttl_ns:
            late_by_ns = self._partition_max_ns - rules.key_ttl_ns - parents[0][0]
            refusal = Lateness(Reason.EXPIRED, max(watermark_ns, child.end_ns), late_by_ns)
        elif "repeated" in verdicts:
            return Lateness(Reason.REPEATED, watermark_ns, 0)
        elif "overlaps" in verdicts:
            refusal = Lateness(Reason.OVERLAPS, max(watermark_ns, child.end_ns), 0)
        if not bar.provisional:
            return refusal
        is_open = any(
            end_ns > watermark_ns and not (start_ns in windows and windows[start_ns].closed)
            for start_ns, end_ns in parents
        )
        # What is provisional will come again: it need not be missed.
        in_vain = refusal is not None or "revision" in verdicts or not is_open
        return Lateness(Reason.REPEATED, watermark_ns, 0) if in_vain else None

    def _join_parent(self, state: KeyState[str], start_ns: int, end_ns: int, bar: ChildBar, watermark_ns: int) -> None:
        child = bar.child
        is_over = end_ns <= watermark_ns  # before the child was observed: it may close what it joins
        window = state.windows.get(start_ns)
        if bar.provisional and (is_over or (window is not None and window.closed)):
            return
        if window is None:
            eager = self._rules.emit == "eager"
            window = self._open(state, start_ns, end_ns, child.start_ns, closed=is_over and eager)
            window.clock_ns = LONG_AGO
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
