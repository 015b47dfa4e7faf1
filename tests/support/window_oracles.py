"""What session windows and filled gaps must produce, by brute force and apart from the package, like
`tests.support.oracle`.

Nothing is ever forgotten here, unless its key expires: sessions are found anew after every tick by cutting all accepted
times of a key where they are too far apart, and an empty window's price is looked for among all windows before it.
Revs are counted per name, as readers would count them: how many frames that are not provisional bore it.

The clock, lateness and expiry are those of `tests.support.oracle`, written out again in `_Judge`, as is what records
are ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.oracle import (
    UNIT_NS,
    Config,
    Frame,
    LateRecord,
    Outcome,
    Record,
    Rejected,
    _finite_or_none,
    _reject_or_tick,
    _Tick,
)
from tests.support.sums_oracle import Total, totals_of, vwap_of

__all__ = ["run_gaps", "run_sessions"]

MS_NS = 1_000_000


def run_sessions(config: Config, records: Sequence[Record]) -> Outcome:
    """The outcome for session windows with the gap ``config.size_ns``, which must be a millisecond or more."""
    assert config.size_ns >= MS_NS, "sessions would share the names that they have on the wire"
    return _run(_SessionLane(config), records)


def run_gaps(config: Config, fill_ns: int, records: Sequence[Record]) -> Outcome:
    """The outcome for tumbling windows whose gaps are filled up to ``fill_ns``."""
    return _run(_GapLane(config, fill_ns), records)


def _run(lane: _Judge, records: Sequence[Record]) -> Outcome:
    for record in records:
        lane.take(record)
    outcome = lane.outcome
    assert outcome.ticks_in == outcome.aggregated + len(outcome.late) + len(outcome.rejected) + outcome.control
    return outcome


class _Judge:
    """Clocks, lateness and expiry; what windows do is for subclasses."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.outcome = Outcome()
        self.max_ns: dict[str, int] = {}  # per key that is not forgotten
        self.partition_max_ns: int | None = None

    def take(self, record: Record) -> None:
        self.outcome.ticks_in += 1
        if record.is_end:
            self._end_of_input()
            return
        tick = _reject_or_tick(self.config, record)
        if isinstance(tick, str):
            self.outcome.rejected.append(Rejected(record.offset, tick))
            return
        late = self._judge(record.offset, tick)
        if late is not None:
            self.outcome.late.append(late)
            return
        self.outcome.aggregated += 1
        key = tick.symbol
        self.max_ns[key] = max(self.max_ns.get(key, tick.ts_ns), tick.ts_ns)
        moved = self.partition_max_ns is None or tick.ts_ns > self.partition_max_ns
        if self.partition_max_ns is None or moved:
            self.partition_max_ns = tick.ts_ns
        self.accept(tick, self.watermark_ns(key))
        if moved:
            self._expire()

    def _expire(self) -> None:
        assert self.partition_max_ns is not None
        horizon_ns = self.partition_max_ns - self.config.key_ttl_ns
        for each in [each for each, max_ns in self.max_ns.items() if max_ns < horizon_ns]:
            self.forget(each)
            del self.max_ns[each]

    def _end_of_input(self) -> None:
        self.outcome.control += 1
        config, ends = self.config, []
        for key in sorted(self.max_ns):
            end_ns = self.end(key)
            if config.watermark_scope == "key":
                self.max_ns[key] = max(self.max_ns[key], end_ns - 1 + config.allowed_lateness_ns + config.lag_ns)
            ends.append(end_ns)
        if ends and config.watermark_scope == "partition":
            assert self.partition_max_ns is not None
            clock_ns = max(ends) - 1 + config.allowed_lateness_ns + config.lag_ns
            self.partition_max_ns = max(self.partition_max_ns, clock_ns)
            self._expire()

    def watermark_ns(self, key: str) -> int:
        clock_ns = self.partition_max_ns if self.config.watermark_scope == "partition" else self.max_ns[key]
        assert clock_ns is not None
        return clock_ns - self.config.lag_ns

    def watermarks(self) -> list[tuple[str, int]]:
        """Every key with its watermark."""
        return [(key, self.watermark_ns(key)) for key in self.max_ns]

    def _judge(self, offset: int, tick: _Tick) -> LateRecord | None:
        config = self.config
        scoped = self.partition_max_ns if config.watermark_scope == "partition" else self.max_ns.get(tick.symbol)
        watermark_ns = (tick.ts_ns if scoped is None else max(scoped, tick.ts_ns)) - config.lag_ns
        start_ns, end_ns = self.window_of(tick)
        below_ns = watermark_ns - config.allowed_lateness_ns - tick.ts_ns
        if below_ns >= 0:
            return LateRecord(offset, tick.symbol, tick.ts_ns, "watermark", start_ns, end_ns, watermark_ns, below_ns)
        named_ns = self.named_ns(start_ns)
        if self.partition_max_ns is not None and self.partition_max_ns - named_ns > config.key_ttl_ns:
            by_ns = self.partition_max_ns - named_ns - config.key_ttl_ns
            return LateRecord(offset, tick.symbol, tick.ts_ns, "expired", start_ns, end_ns, watermark_ns, by_ns)
        return None

    def window_of(self, tick: _Tick) -> tuple[int, int]:
        raise NotImplementedError

    def named_ns(self, start_ns: int) -> int:
        """The earliest start of a window that has the same name on the wire."""
        return start_ns

    def accept(self, tick: _Tick, watermark_ns: int) -> None:
        raise NotImplementedError

    def forget(self, key: str) -> None:
        raise NotImplementedError

    def end(self, key: str) -> int:
        """Let out what has not come out of a key; the end of its last window."""
        raise NotImplementedError

    def show(self, key: str, start_ns: int, end_ns: int, rev: int, status: str, trigger: str, rest: Frame) -> None:
        head: Frame = {
            "key": key,
            "start": start_ns // MS_NS,
            "end": end_ns // MS_NS,
            "rev": rev,
            "status": status,
            "trigger": trigger,
        }
        self.outcome.frames.setdefault(key, []).append({**head, **rest})

    def status(self, end_ns: int, watermark_ns: int) -> str:
        return "final" if watermark_ns >= end_ns + self.config.allowed_lateness_ns else "closed"

    def is_due(self, end_ns: int, watermark_ns: int) -> bool:
        """Whether a window has closed; with emit = final that is when it is final."""
        wait_ns = self.config.allowed_lateness_ns if self.config.emit == "final" else 0
        return end_ns + wait_ns <= watermark_ns


def _times(config: Config, ticks: Sequence[_Tick]) -> Frame:
    unit_ns = UNIT_NS[config.unit]
    return {
        "count": len(ticks),
        "first_ts": min(tick.ts_ns for tick in ticks) // unit_ns if ticks else None,
        "last_ts": max(tick.ts_ns for tick in ticks) // unit_ns if ticks else None,
    }


def _prices(ticks: Sequence[_Tick]) -> Frame:
    """Prices of ticks in log order. Of equal ones (0.0 and -0.0) the first counts."""
    return {
        "open": min(ticks, key=lambda tick: tick.ts_ns).price,
        "high": max(tick.price for tick in ticks),
        "low": min(tick.price for tick in ticks),
        "close": max(reversed(ticks), key=lambda tick: tick.ts_ns).price,
    }


def _sums(volume: Total, notional: Total, low: float, high: float) -> Frame:
    return {"volume": _finite_or_none(volume.value), "vwap": vwap_of(volume, notional, low, high)}


# ---------------------------------------------------------------------------------------------------------------------
# Sessions


@dataclass
class _Session:
    """A component: ticks in log order, and sums that were made as the rules say."""

    ticks: list[tuple[int, _Tick]] = field(default_factory=list)  # (number in the log, tick)
    volume: Total = field(default_factory=Total)
    notional: Total = field(default_factory=Total)
    high: float = 0.0
    low: float = 0.0
    is_out: bool = False  # it came out as it is now

    @property
    def start_ns(self) -> int:
        return min(tick.ts_ns for _, tick in self.ticks)

    @property
    def last_ns(self) -> int:
        return max(tick.ts_ns for _, tick in self.ticks)


class _SessionLane(_Judge):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.sessions: dict[str, list[_Session]] = {}
        self.revs: dict[tuple[str, int], int] = {}  # of (key, start in ms): the next one
        self.names_ended: set[tuple[str, int]] = set()

    def window_of(self, tick: _Tick) -> tuple[int, int]:
        return tick.ts_ns, tick.ts_ns + self.config.size_ns

    def named_ns(self, start_ns: int) -> int:
        return start_ns // MS_NS * MS_NS

    def end_ns(self, session: _Session) -> int:
        return session.last_ns + self.config.size_ns

    def accept(self, tick: _Tick, watermark_ns: int) -> None:
        key, gap_ns = tick.symbol, self.config.size_ns
        before = self.sessions.get(key, [])
        # All accepted times, cut where neighbours are a gap or more apart: the piece with the tick is its session.
        times = sorted([each.ts_ns for session in before for _, each in session.ticks] + [tick.ts_ns])
        at = times.index(tick.ts_ns)
        low = high = at
        while low and times[low] - times[low - 1] < gap_ns:
            low -= 1
        while high + 1 < len(times) and times[high + 1] - times[high] < gap_ns:
            high += 1
        joined = sorted(
            (each for each in before if times[low] <= each.start_ns <= times[high]), key=lambda each: each.start_ns
        )
        session = self._union(joined, tick)
        self.sessions[key] = [each for each in before if each not in joined] + [session]
        name = (key, session.start_ns // MS_NS)
        for each in joined:
            ended = (key, each.start_ns // MS_NS)
            if ended != name:
                self._withdraw(key, each, ended)
        assert name not in self.names_ended
        if self.config.emit == "eager" and self.end_ns(session) <= watermark_ns:
            self._emit(key, session, "closed", "late")
        for each_key, each_watermark_ns in self.watermarks():
            self._close(each_key, each_watermark_ns)

    def _union(self, joined: Sequence[_Session], tick: _Tick) -> _Session:
        """Partial sums are added in order of start; then the tick."""
        ticks = sorted((each for session in joined for each in session.ticks), key=lambda each: each[0])
        union = _Session([*ticks, (self.outcome.ticks_in, tick)])
        if joined:
            first = joined[0]
            union.high, union.low = first.high, first.low
        else:
            union.high = union.low = tick.price
        for session in joined:
            union.volume.add_total(session.volume)
            union.notional.add_total(session.notional)
            union.high = max(union.high, session.high)  # of equal ones, 0.0 and -0.0, the earlier
            union.low = min(union.low, session.low)
        union.volume.add(tick.size)
        union.notional.add_product(tick.price, tick.size)
        union.high, union.low = max(union.high, tick.price), min(union.low, tick.price)
        return union

    def _withdraw(self, key: str, session: _Session, name: tuple[str, int]) -> None:
        self.names_ended.add(name)
        rev = self.revs.get(name, 0)
        if not rev:
            return
        rest: Frame = {}
        if self.config.payload != "items":
            rest = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"))
        rest.update(_times(self.config, []))
        if self.config.payload != "ohlcv":
            rest["items"] = []
        self.show(key, session.start_ns, self.end_ns(session), rev, "closed", "merged", rest)
        self.revs[name] = rev + 1

    def _close(self, key: str, watermark_ns: int) -> None:
        for session in sorted(self.sessions.get(key, []), key=self.end_ns):
            end_ns = self.end_ns(session)
            if self.is_due(end_ns, watermark_ns) and not session.is_out:
                self._emit(key, session, self.status(end_ns, watermark_ns), "watermark")

    def _emit(self, key: str, session: _Session, status: str, trigger: str) -> None:
        ticks = [tick for _, tick in session.ticks]
        rest: Frame = {}
        if self.config.payload != "items":
            prices = _prices(ticks)
            assert (prices["high"], prices["low"]) == (session.high, session.low)
            sums = _sums(session.volume, session.notional, session.low, session.high)
            rest = {**prices, "high": session.high, "low": session.low, **sums}
        rest.update(_times(self.config, ticks))
        if self.config.payload != "ohlcv":
            rest["items"] = [tick.value for tick in ticks]
        name = (key, session.start_ns // MS_NS)
        self.show(key, session.start_ns, self.end_ns(session), self.revs.get(name, 0), status, trigger, rest)
        self.revs[name] = self.revs.get(name, 0) + 1
        session.is_out = True

    def forget(self, key: str) -> None:
        for session in sorted(self.sessions.pop(key), key=lambda each: each.start_ns):
            if not session.is_out:
                self._emit(key, session, "final", "expiry")

    def end(self, key: str) -> int:
        sessions = sorted(self.sessions[key], key=lambda each: each.start_ns)
        for session in sessions:
            if not session.is_out:
                self._emit(key, session, "final", "end")
        return self.end_ns(sessions[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Filled gaps


@dataclass
class _Slot:
    start_ns: int
    ticks: list[_Tick] = field(default_factory=list)
    rev: int = 0
    last_shown: str = ""  # prices of the frame that came out last


class _GapLane(_Judge):
    def __init__(self, config: Config, fill_ns: int) -> None:
        super().__init__(config)
        assert config.payload == "ohlcv"
        self.fill_ns = fill_ns
        self.slots: dict[str, dict[int, _Slot]] = {}

    def window_of(self, tick: _Tick) -> tuple[int, int]:
        start_ns = tick.ts_ns // self.config.size_ns * self.config.size_ns
        return start_ns, start_ns + self.config.size_ns

    def accept(self, tick: _Tick, watermark_ns: int) -> None:
        key, size_ns = tick.symbol, self.config.size_ns
        slots = self.slots.setdefault(key, {})
        start_ns, end_ns = self.window_of(tick)
        if slots and start_ns > max(slots) and start_ns - (max(slots) + size_ns) <= self.fill_ns:
            for empty_ns in range(max(slots) + size_ns, start_ns, size_ns):
                slots[empty_ns] = _Slot(empty_ns)
        if start_ns not in slots:
            self._close(key, watermark_ns)  # windows just made, and long over: they come before the tick's own
            slots[start_ns] = _Slot(start_ns)
        slots[start_ns].ticks.append(tick)
        if self.config.emit == "eager" and end_ns <= watermark_ns:
            self._emit(key, slots[start_ns], "closed", "late")
        for later_ns in sorted(each for each in slots if each > start_ns):
            slot = slots[later_ns]
            if not slot.ticks and slot.rev and slot.last_shown != repr(self._bar(key, slot)):
                self._emit(key, slot, "closed", "late")
        for each_key, each_watermark_ns in self.watermarks():
            self._close(each_key, each_watermark_ns)

    def _close(self, key: str, watermark_ns: int) -> None:
        for start_ns, slot in sorted(self.slots.get(key, {}).items()):
            end_ns = start_ns + self.config.size_ns
            if self.is_due(end_ns, watermark_ns) and not slot.rev:
                self._emit(key, slot, self.status(end_ns, watermark_ns), "watermark")

    def _bar(self, key: str, slot: _Slot) -> Frame:
        if slot.ticks:
            volume, notional = totals_of((tick.price, tick.size) for tick in slot.ticks)
            low, high = min(tick.price for tick in slot.ticks), max(tick.price for tick in slot.ticks)
            return {**_prices(slot.ticks), **_sums(volume, notional, low, high)}
        before = max(each.start_ns for each in self.slots[key].values() if each.ticks and each.start_ns < slot.start_ns)
        close: Any = _prices(self.slots[key][before].ticks)["close"]
        return {**dict.fromkeys(("open", "high", "low", "close"), close), "volume": 0.0, "vwap": None}

    def _emit(self, key: str, slot: _Slot, status: str, trigger: str) -> None:
        bar = self._bar(key, slot)
        rest: Frame = {**bar, **_times(self.config, slot.ticks)}
        if not slot.ticks:
            rest["filled"] = True
        self.show(key, slot.start_ns, slot.start_ns + self.config.size_ns, slot.rev, status, trigger, rest)
        slot.rev += 1
        slot.last_shown = repr(bar)

    def forget(self, key: str) -> None:
        for slot in (self.slots[key][start_ns] for start_ns in sorted(self.slots[key])):
            if not slot.rev:
                self._emit(key, slot, "final", "expiry")
        del self.slots[key]

    def end(self, key: str) -> int:
        for _, slot in sorted(self.slots[key].items()):
            if not slot.rev:
                self._emit(key, slot, "final", "end")
        return max(self.slots[key]) + self.config.size_ns
