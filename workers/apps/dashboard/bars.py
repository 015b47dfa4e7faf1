"""The symbols and their bars: the last frames of each window, packed, and who has traded most.

A later frame of a window replaces the earlier one; where it revises one that was not provisional, that one's prices
stay beside it. What is forgotten is the oldest: bars by when they were first seen, symbols by when anything was last
heard of them.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError
from typing import Final, get_args

from workers.apps.dashboard.readings import STATUSES, Changes, Limits, Ranked, ShownBar, shown_symbol
from workers.core.frames import BAR_FIELDS, Frame
from workers.core.reasons import Trigger
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["SymbolBars"]

_TRIGGERS: Final = (*get_args(Trigger), "other")
_TRIGGER_CODES: Final = {name: code for code, name in enumerate(_TRIGGERS)}
_PACKED: Final = Struct("<qqqBBqqq6d")  # start, end, rev, status, trigger, count, first, last (ms), o h l c volume vwap
_PRICES: Final = Struct("<q4d")  # rev, o h l c of the frame that was revised
_NAN: Final = math.nan
_ACTIVITY_HALF_LIFE_S: Final = 30.0


@dataclass(slots=True)
class _Symbol:
    name: str
    bars: dict[int, tuple[int, bytes, bytes | None]] = field(default_factory=dict)
    seq: int = 0
    ticks: int = 0
    late: int = 0
    revisions: int = 0
    activity: float = 0.0
    activity_s: float = 0.0
    newest_ms: int = -(2**63)
    close: float = _NAN
    partition: int = 0


class SymbolBars:
    """All symbols, each with its bars and its counts. ``unit_ns`` is the tick's unit."""

    def __init__(self, unit_ns: int, limits: Limits, changes: Changes) -> None:
        self._unit_ns, self._limits, self._changes = unit_ns, limits, changes
        self._symbols: OrderedDict[str, _Symbol] = OrderedDict()
        self._arrived: deque[tuple[str, int]] = deque()
        self._live_since_s: float | None = None

    def take(self, frame: Frame, partition: int, now_ns: int, *, live: bool) -> bool:
        """One more frame; False, and nothing done, where it does not fit what is kept of one."""
        packed = self._pack(frame)
        if packed is None:
            return False
        symbol = self._symbol(frame.key)
        before = symbol.bars.get(frame.start_ms)
        counted, revised = self._before(frame, before)
        seq = self._changes.next()
        symbol.bars[frame.start_ms] = (seq, packed, revised)
        symbol.seq = seq
        symbol.partition = partition
        symbol.revisions += before is not None and revised is not None and revised is not before[2]
        self._count(symbol, frame.count - counted, now_ns, live)
        if frame.start_ms >= symbol.newest_ms:
            is_gone = frame.count == 0 and frame.close is None  # the next frame tells what it became
            symbol.newest_ms = -(2**63) if is_gone else frame.start_ms
            symbol.close = _NAN if frame.close is None else frame.close
        if before is None:
            self._make_room(symbol, frame.start_ms)
        return True

    def count_late(self, key: str) -> str:
        """One more late tick; the name that its symbol is kept under."""
        symbol = self._symbol(key)
        symbol.late += 1
        symbol.seq = self._changes.next()
        return symbol.name

    def _pack(self, frame: Frame) -> bytes | None:
        """None where it does not fit: its ticks have another unit, or other things than numbers for prices."""
        if not frame.others.keys().isdisjoint(BAR_FIELDS):
            return None
        prices = (frame.open, frame.high, frame.low, frame.close, frame.volume, frame.vwap)
        numbers = (
            frame.start_ms,
            frame.end_ms,
            frame.rev,
            STATUSES.index(frame.status),
            _TRIGGER_CODES.get(frame.trigger, len(_TRIGGERS) - 1),
            frame.count,
            (frame.first_ts or 0) * self._unit_ns // NS_PER_MS,
            (frame.last_ts or 0) * self._unit_ns // NS_PER_MS,
            *(_NAN if price is None else price for price in prices),
        )
        try:
            return _PACKED.pack(*numbers)
        except StructError:
            return None

    @staticmethod
    def _before(frame: Frame, before: tuple[int, bytes, bytes | None] | None) -> tuple[int, bytes | None]:
        """Ticks that the window's earlier frame counted, and the prices to remember as revised."""
        if before is None:
            return 0, None
        _, _, rev, status, _, count, _, _, *prices = _PACKED.unpack(before[1])
        if status != STATUSES.index("provisional") and frame.rev > rev and not math.isnan(prices[0]):
            return count, _PRICES.pack(rev, *prices[:4])
        return count, before[2]

    def _count(self, symbol: _Symbol, ticks: int, now_ns: int, live: bool) -> None:
        symbol.ticks += ticks  # fewer where a window was merged into another, or its trades were cancelled
        if live and ticks > 0:
            now_s = now_ns / NS_PER_SECOND
            if self._live_since_s is None:
                self._live_since_s = now_s
            symbol.activity = _decayed(symbol, now_s) + ticks
            symbol.activity_s = now_s

    def _make_room(self, symbol: _Symbol, start: int) -> None:
        self._arrived.append((symbol.name, start))
        if len(symbol.bars) > self._limits.bars_per_symbol:
            del symbol.bars[next(iter(symbol.bars))]
        if len(self._arrived) > self._limits.bars:
            name, old = self._arrived.popleft()
            owner = self._symbols.get(name)
            if owner is not None:
                owner.bars.pop(old, None)

    def _symbol(self, name: str) -> _Symbol:
        name = shown_symbol(name, self._limits.symbol_chars)
        found = self._symbols.get(name)
        if found is None:
            found = self._symbols[name] = _Symbol(name)
            if len(self._symbols) > self._limits.symbols:
                self._symbols.popitem(last=False)
        else:
            self._symbols.move_to_end(name)
        return found

    def symbol_seq(self, symbol: str) -> int:
        """The number of a symbol's last change; 0 where it is unknown."""
        found = self._symbols.get(symbol)
        return found.seq if found is not None else 0

    def bars(self, symbol: str, since: int = 0) -> Iterator[ShownBar]:
        """A symbol's bars that changed after ``since``, in the order in which they were first seen."""
        found = self._symbols.get(symbol)
        for seq, packed, revised in found.bars.values() if found is not None else ():
            if seq > since:
                yield _unpacked(seq, packed, revised)

    @property
    def symbols(self) -> int:
        """How many symbols are known."""
        return len(self._symbols)

    @property
    def bars_kept(self) -> int:
        """How many bars are kept, of all symbols."""
        return sum(len(symbol.bars) for symbol in self._symbols.values())

    def ranking(self, search: str, by: str, limit: int, now_ns: int) -> tuple[list[Ranked], int]:
        """The symbols that contain ``search``, the most ``active`` or most ``late`` first, and how many there are.

        A symbol that is or begins with what was searched for comes before the others.
        """
        wanted, now_s = search.casefold(), now_ns / NS_PER_SECOND
        matching = [symbol for name, symbol in self._symbols.items() if not wanted or wanted in name.casefold()]

        def rank(symbol: _Symbol) -> tuple[bool, bool, float, float, str]:
            name, activity = symbol.name.casefold(), _decayed(symbol, now_s)
            first = (-symbol.late, -activity) if by == "late" else (-activity, -symbol.ticks)
            return (not wanted or name != wanted, not wanted or not name.startswith(wanted), *first, symbol.name)

        # A count of N, halved every half-life, stems from N * ln 2 / half-life ticks a second, once it has counted for
        # long enough.
        counted_s = max(now_s - self._live_since_s, 1.0) if self._live_since_s is not None else math.inf
        to_rate = math.log(2) / _ACTIVITY_HALF_LIFE_S / -math.expm1(-math.log(2) * counted_s / _ACTIVITY_HALF_LIFE_S)
        return [
            Ranked(
                symbol.name,
                symbol.ticks,
                round(_decayed(symbol, now_s) * to_rate, 2),
                symbol.late,
                symbol.revisions,
                symbol.close,
                symbol.partition,
            )
            for symbol in heapq.nsmallest(limit, matching, key=rank)
        ], len(matching)


def _decayed(symbol: _Symbol, now_s: float) -> float:
    if not symbol.activity:
        return 0.0
    return symbol.activity * math.exp2(-max(now_s - symbol.activity_s, 0.0) / _ACTIVITY_HALF_LIFE_S)


def _unpacked(seq: int, packed: bytes, revised: bytes | None) -> ShownBar:
    start, end, rev, status, trigger, count, first, last, o, h, low, c, volume, vwap = _PACKED.unpack(packed)
    return ShownBar(
        seq,
        start,
        end,
        rev,
        STATUSES[status],
        _TRIGGERS[trigger],
        count,
        first,
        last,
        o,
        h,
        low,
        c,
        volume,
        vwap,
        _PRICES.unpack(revised) if revised is not None else None,
    )
