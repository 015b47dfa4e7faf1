"""Cancelled and corrected trades: messages that change a trade which is in a window already. The rules, in full.

    trade 7   price 10  size 5 ─▶ joins its window
    cancel    id 7             ─▶ the window as if trade 7 had never come
    correct   id 7      size 4 ─▶ the window as if trade 7 had been of price 10 and size 4

A message is a *cancel* or a *correct* by what one of its fields says; anything else is a trade. Both name a trade of
their own symbol by its id. A correct replaces price and size and nothing else: the trade stays at its time, and in its
place among the others.

*Finding the trade.* It is looked for in the windows of the symbol that are still kept (`workers.core.windows.engine`
says how long). Of several with the id, the one that came last is meant. It must not be cancelled already; corrected it
may be, any number of times. What is not found goes to the late topic with reason ``uncorrectable``. A message is not
judged by its own time, which it need not have, and moves no clock: the clock stays where a cancelled trade has set it.

*What comes out.* An open window changes silently. A closed one comes out again, whole, with its next rev, ``closed``,
trigger ``correction``. Where no trade is left, count is 0 and the results are null. A trade in several windows is
changed in all of them that are kept. Windows stay as the trades have made them: sessions don't fall apart.

*What it computes.* The window's trades are folded anew, in log order, as they are now: the result is, to the last bit,
that of a log that had held the corrected trades in the first place. Items show a corrected trade as it was received,
with price and size as the message has them, and a cancelled one not at all.

*What it costs.* Windows keep their trades, as entries of some 45 bytes in the changelog and twice that in memory, and
another 150 bytes for their ids (`TradeIndex`; the native lane has the ids only of symbols that messages named). A
change is one more entry behind them, and takes as long as there are trades in the windows that it changes, however many
others are kept. Messages don't pass the pipeline; a tick that an operator holds back or took out is not found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from workers.core.aggregates import Aggregation, Ohlcv
from workers.core.encoding import to_json
from workers.core.formats.corrections import Correction, CorrectionRules, text_of
from workers.core.steps import Portion
from workers.core.ticks import Tick, TickFormat, excerpt
from workers.core.windows.engine import WindowEngine
from workers.core.windows.sessions import SessionEngine, SessionKey
from workers.core.windows.window import KeyState, Lateness, Window, WindowRules
from workers.times import NS_PER_MS

__all__ = [
    "Changed",
    "CorrectingEngine",
    "CorrectingSessionEngine",
    "NotFound",
    "TradeIndex",
    "TradeLog",
    "change_of",
    "make_correcting_engine",
]

FORGOTTEN_AT_ONCE: Final = 5_000  # ids of windows that are gone, in a step that brought none


# -- the trades of a window -------------------------------------------------------------------------------------------


class _Trade(msgspec.Struct, array_like=True, tag=0):
    """A trade, as it joined; ``value`` where it is needed again."""

    offset: int
    id: str | None
    ts_ns: int
    price: float
    size: float
    value: bytes | None


class _Cancel(msgspec.Struct, array_like=True, tag=1):
    """The trade of offset ``target`` is cancelled, by the record at ``offset``."""

    offset: int
    target: int


class _Correct(msgspec.Struct, array_like=True, tag=2):
    """The trade of offset ``target`` is corrected, by the record at ``offset``."""

    offset: int
    target: int
    price: float
    size: float
    value: bytes | None


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(_Trade | _Cancel | _Correct).decode


def change_of(correction: Correction, target: int, value: bytes | None, form: TickFormat) -> bytes:
    """The item of a correction of the trade at offset ``target``, whose ``value`` is given where it is kept."""
    if correction.kind == "cancel":
        return _ENCODE(_Cancel(correction.offset, target))
    if value is not None:
        price, size = correction.written
        value = to_json({**orjson.loads(value), form.price: price, form.size: size})
    return _ENCODE(_Correct(correction.offset, target, correction.price, correction.size, value))


@dataclass(slots=True)
class _Entry:
    """A trade as it is now. ``cancelled_by`` is an offset."""

    trade: _Trade
    cancelled_by: int | None = None


@dataclass(slots=True)
class TradeLog:
    """What a window's items say, read: trades in log order by offset, and the last offset of each id.

    Read only when a correction comes, and from where it was read to the last time: trades cost nothing but their entry.
    """

    read: int = 0
    entries: dict[int, _Entry] = field(default_factory=dict)
    by_id: dict[str, int] = field(default_factory=dict)

    def read_on(self, items: Sequence[bytes]) -> None:
        """Take in what was appended."""
        for item in items[self.read :]:
            found = _DECODE(item)
            if isinstance(found, _Trade):
                self.entries[found.offset] = _Entry(found)
                if found.id is not None:
                    self.by_id[found.id] = found.offset
            elif isinstance(found, _Cancel):
                self.entries[found.target].cancelled_by = found.offset
            else:
                trade = self.entries[found.target].trade
                trade.price, trade.size, trade.value = found.price, found.size, found.value
        self.read = len(items)

    def effective(self) -> list[_Trade]:
        """The trades that are not cancelled, as they are now, in log order."""
        return [entry.trade for entry in self.entries.values() if entry.cancelled_by is None]


class TradeIndex:
    """Of one symbol: in which windows the trades of an id are. A window is told by the start that it had when the trade
    joined it; of several windows that a trade is in, the last is noted, which is kept longest.

    Windows go without their trades being looked at, so what is noted of them goes later, the oldest first.
    """

    __slots__ = ("_order", "_starts")

    def __init__(self) -> None:
        self._starts: dict[str, int | dict[int, None]] = {}
        self._order: deque[str] = deque()  # an entry per id and window, in the order they were noted

    def __len__(self) -> int:
        return len(self._order)

    def note(self, trade_id: str, start_ns: int) -> None:
        """A trade with this id has joined."""
        found = self._starts.get(trade_id)
        if found is None:
            self._starts[trade_id] = start_ns
        elif isinstance(found, dict):
            if start_ns in found:
                return
            found[start_ns] = None
        elif found != start_ns:
            self._starts[trade_id] = {found: None, start_ns: None}
        else:
            return
        self._order.append(trade_id)

    def starts_of(self, trade_id: str) -> Iterable[int]:
        """Where trades with this id joined."""
        found = self._starts.get(trade_id, ())
        return (found,) if isinstance(found, int) else found

    def forget(self, is_kept: Callable[[int], bool], limit: int) -> int:
        """Let go of at most ``limit`` entries, up to the first whose window is kept; how many."""
        for number in range(limit):
            if not self._order:
                return number
            trade_id = self._order[0]
            found = self._starts[trade_id]
            oldest = next(iter(found)) if isinstance(found, dict) else found
            if is_kept(oldest):
                return number
            self._order.popleft()
            if isinstance(found, dict):
                del found[oldest]
            if not isinstance(found, dict) or not found:
                del self._starts[trade_id]
        return limit


class NotFound(NamedTuple):
    """A correction that changed nothing, and why."""

    explanation: str

    @classmethod
    def unknown(cls, trade_id: str) -> NotFound:
        """No trade has the id that the message names."""
        return cls(f"no trade with id {excerpt(trade_id)} is kept in the windows of its symbol")

    @classmethod
    def cancelled(cls, offset: int, by: int) -> NotFound:
        """The trade at ``offset`` was cancelled by the record at ``by``."""
        return cls(f"the trade, at offset {offset}, was cancelled by the record at offset {by}")


class Changed(NamedTuple):
    """The windows that a correction changed, as ``(start, end)``."""

    windows: tuple[tuple[int, int], ...]


class CorrectingEngine(WindowEngine[str, Tick]):
    """An engine whose windows keep their trades and take corrections. ``trade_id`` names the field of the id.

    ``show_items``: frames show the trades; ``keep_values``: an aggregation needs the trades' other fields, too.
    It adds to any other engine that it is put before in a class's bases.
    """

    def __init__(
        self,
        rules: WindowRules,
        *,
        form: TickFormat,
        trade_id: str,
        show_items: bool,
        keep_values: bool,
        **engine_options: Any,
    ) -> None:
        super().__init__(rules, keep=self._entry_of, **engine_options)
        self._form = form
        self._trade_id = trade_id
        self._show_items = show_items
        self._keep_values = keep_values or show_items
        self._logs: dict[Window[str], TradeLog] = {}
        self._indices: dict[str, TradeIndex] = {}
        self._outdated: dict[str, None] = {}  # symbols that lost windows, whose index may have entries to forget
        self._noted = 0  # entries, since any were forgotten

    def add(self, key: str, ts_ns: int, value: Tick) -> Lateness | None:
        """As `WindowEngine.add`."""
        lateness = super().add(key, ts_ns, value)
        trade_id = text_of(value.fields.get(self._trade_id))
        state = self._keys.get(key)
        if lateness is None and state is not None and trade_id is not None:
            self._note(state, trade_id, ts_ns)
        return lateness

    def _note(self, state: KeyState[str], trade_id: str, ts_ns: int) -> None:
        holders = self._windows_at(state, ts_ns)
        if holders:
            index = self._indices.get(state.key)
            if index is None:
                index = self._indices[state.key] = TradeIndex()
            index.note(trade_id, holders[-1].start_ns)
            self._noted += 1

    def settle(self, silence_ns: int = 0) -> None:
        """As `WindowEngine.settle`; and forget the ids of windows that are gone, twice as many as came, or some."""
        super().settle(silence_ns)
        left = max(FORGOTTEN_AT_ONCE, 2 * self._noted)
        self._noted = 0
        while self._outdated and left:
            symbol, _ = self._outdated.popitem()
            index = self._indices.get(symbol)
            if index is None:
                continue
            left -= index.forget(partial(self._is_kept, symbol), left)
            if not left:
                self._outdated[symbol] = None
            elif not index:
                del self._indices[symbol]

    def _is_kept(self, symbol: str, start_ns: int) -> bool:
        state = self._keys.get(symbol)
        return state is not None and self._window_from(state, start_ns) is not None

    def load_in_steps(self, windows: Iterable[Window[str]], partition_max_ns: int) -> Generator[None, None, None]:
        yield from super().load_in_steps(windows, partition_max_ns)
        portion = Portion()
        for state in self._keys.values():
            for start_ns in sorted(state.windows):
                for item in state.windows[start_ns].items or ():
                    if portion.is_done(0.5):
                        yield
                    found = _DECODE(item)
                    if isinstance(found, _Trade) and found.id is not None:
                        self._note(state, found.id, found.ts_ns)
        self._noted = 0

    def _window_from(self, state: KeyState[str], start_ns: int) -> Window[str] | None:
        """The window that had this start when a trade joined it."""
        return state.windows.get(start_ns)

    def _windows_at(self, state: KeyState[str], ts_ns: int) -> list[Window[str]]:
        """The windows kept that trades of this time are in, by start."""
        assigned = self._rules.assigner.assign(ts_ns)
        return [state.windows[start_ns] for start_ns, _ in assigned if start_ns in state.windows]

    def correct(self, correction: Correction) -> Changed | NotFound:
        """Change the trade that is meant, in all windows that hold it."""
        state, watermark_ns = self._keys.get(correction.symbol), self.watermark_ns(correction.symbol)
        index = self._indices.get(correction.symbol)
        target: _Trade | None = None
        if state is not None and watermark_ns is not None and index is not None:
            noted = (self._window_from(state, start_ns) for start_ns in index.starts_of(correction.trade_id))
            for window in noted:
                trade = self._trade_in(window, correction.trade_id, watermark_ns)
                if trade is not None and (target is None or trade.offset > target.offset):
                    target = trade
        if state is None or watermark_ns is None or target is None:
            return NotFound.unknown(correction.trade_id)
        holders = [
            window
            for window in self._windows_at(state, target.ts_ns)
            if self._is_correctable(window, watermark_ns) and target.offset in self._log(window).entries
        ]
        cancelled_by = self._log(holders[0]).entries[target.offset].cancelled_by
        if cancelled_by is not None:
            return NotFound.cancelled(target.offset, cancelled_by)
        for window in holders:
            value = self._log(window).entries[target.offset].trade.value
            self._append(window, change_of(correction, target.offset, value, self._form))
            self._refold(window)
            self._show_change(window, "correction")
        return Changed(tuple((window.start_ns, window.end_ns) for window in holders))

    def _is_correctable(self, window: Window[str], watermark_ns: int) -> bool:
        """Not where a window is kept for nothing but the clock: its frame was final, or its input has ended."""
        return window.end_ns + self._rules.lateness_ns > watermark_ns and not window.settled

    def _trade_in(self, window: Window[str] | None, trade_id: str, watermark_ns: int) -> _Trade | None:
        """The last trade with this id in the window, if that can be corrected."""
        if window is None or not self._is_correctable(window, watermark_ns):
            return None
        log = self._log(window)
        offset = log.by_id.get(trade_id)
        return None if offset is None else log.entries[offset].trade

    def _entry_of(self, tick: Tick) -> bytes:
        value = tick.value if self._keep_values else None
        trade_id = text_of(tick.fields.get(self._trade_id))
        return _ENCODE(_Trade(tick.offset, trade_id, tick.ts_ns, tick.price, tick.size, value))

    def _append(self, window: Window[str], entry: bytes) -> None:
        assert window.items is not None, "windows that take corrections keep their trades"
        window.items.append(entry)

    def _log(self, window: Window[str]) -> TradeLog:
        """The window's trades, read to the end."""
        assert window.items is not None, "windows that take corrections keep their trades"
        log = self._logs.get(window)
        if log is None:
            log = self._logs[window] = TradeLog()
        log.read_on(window.items)
        return log

    def _refold(self, window: Window[str]) -> None:
        """Compute the window anew from its trades as they are now. Its clock stays."""
        trades = self._log(window).effective()
        if self._folding is not None:
            state = self._folding.create()
            for trade in trades:
                state = self._folding.add(state, self._tick_of(window.key, trade))
            window.state = state
        window.count = len(trades)
        if trades:
            window.first_ns = min(trade.ts_ns for trade in trades)
            window.last_ns = max(trade.ts_ns for trade in trades)

    def _tick_of(self, symbol: str, trade: _Trade) -> Tick:
        value = trade.value or b""
        fields = orjson.loads(value) if value else {}
        return Tick(symbol, trade.ts_ns, trade.price, trade.size, trade.offset, value, fields)

    def _take_in(self, state: KeyState[str], window: Window[str], ts_ns: int, value: Tick) -> None:
        if not window.count:  # all were cancelled, or none came yet; stored state does not tell a sum of none from 0
            window.first_ns = window.last_ns = ts_ns
            if self._folding is not None:
                window.state = self._folding.create()
        super()._take_in(state, window, ts_ns, value)

    def _drop(self, state: KeyState[str], window: Window[str]) -> None:
        self._logs.pop(window, None)
        self._outdated[state.key] = None
        super()._drop(state, window)

    def _items(self, window: Window[str]) -> tuple[Any, ...] | None:
        if not self._show_items:
            return None
        log = TradeLog()  # not the one that is kept: most windows see no correction
        log.read_on(window.items or ())
        return tuple(trade.value for trade in log.effective())


class CorrectingSessionEngine(CorrectingEngine, SessionEngine[str, Tick]):
    """Sessions that take corrections. What two that merge are together is folded anew from their trades."""

    def __init__(self, rules: WindowRules, **options: Any) -> None:
        super().__init__(rules, name_unit_ns=NS_PER_MS, **options)
        self._merge = None

    def _window_from(self, state: KeyState[str], start_ns: int) -> Window[str] | None:
        """The session that one of this start is, or is part of by now."""
        assert isinstance(state, SessionKey)
        at = bisect_right(state.starts, start_ns)
        window = state.windows[state.starts[at - 1]] if at else None
        return window if window is not None and start_ns < window.end_ns else None

    def _windows_at(self, state: KeyState[str], ts_ns: int) -> list[Window[str]]:
        window = self._window_from(state, ts_ns)
        return [] if window is None else [window]

    def _append(self, window: Window[str], entry: bytes) -> None:
        super()._append(window, entry)
        assert window.orders is not None, "sessions keep the order of their items"
        window.orders.append(self._next_order)
        self._next_order += 1

    def _unite(self, state: KeyState[str], window: Window[str], touched: list[Window[str]]) -> None:
        first, log = touched[0], self._logs.get(touched[0])
        super()._unite(state, window, touched)
        if len(touched) == 1:  # it only begins earlier: what it holds is the same, in the same order
            window.state = first.state
            if log is not None:
                self._logs[window] = log
            return
        self._logs.pop(window, None)  # its items are other ones now
        self._refold(window)


def make_correcting_engine(
    make: type[CorrectingEngine],
    rules: WindowRules,
    corrections: CorrectionRules,
    form: TickFormat,
    aggregation: Aggregation[object] | None,
    *,
    show_items: bool,
    emit_partial: bool,
) -> CorrectingEngine:
    """The engine, one that the kind of the windows names, for these rules. ``show_items``: frames show the trades."""
    return make(
        rules,
        form=form,
        trade_id=corrections.id,
        show_items=show_items,
        keep_values=aggregation is not None and not isinstance(aggregation, Ohlcv),
        folding=aggregation,
        emit_partial=emit_partial,
        track_changes=True,
    )
