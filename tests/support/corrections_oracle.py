"""`tests.support.oracle` with messages that cancel or correct trades: again every frame is computed from a list of
trades.

A window is the list of its trades as they are now; a cancelled one is taken out of the list, a corrected one replaced
in its place. Like the oracle it imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from tests.support import oracle

__all__ = ["FIELDS", "Outcome", "run"]

FIELDS = ("kind", "id", "ref")
"""Fields: what a message is ("X" cancels, "C" corrects), a trade's id, and the id of the trade that is meant."""


@dataclass
class _Known:
    """A trade by its id, in the order of the log: the windows that it joined, and what it is now; None: cancelled."""

    name: str
    windows: list[oracle._Window]
    now: oracle._Tick | None


@dataclass
class Outcome:
    """``uncorrectable`` and ``malformed`` are offsets."""

    lane: oracle.Outcome
    corrected: int
    uncorrectable: list[int]
    malformed: list[int]


class _Lane(oracle._Lane):
    def __init__(self, config: oracle.Config) -> None:
        super().__init__(config, 0)
        self.known: dict[str, list[_Known]] = {}
        self.corrected = 0
        self.uncorrectable: list[int] = []
        self.malformed: list[int] = []
        self._name: object = None

    def take(self, record: oracle.Record) -> None:
        if record.is_end:
            super().take(record)
            return
        payload = orjson.loads(record.value or b"")
        if payload.get(FIELDS[0]) in ("X", "C"):
            self._message(record, payload)
            return
        self._name = payload.get(FIELDS[1])
        super().take(record)

    def _accept(self, tick: oracle._Tick) -> None:
        key = self.keys.setdefault(tick.symbol, oracle._Key(tick.ts_ns))
        if self._name is not None:  # its windows are noted before closing may drop them
            windows = [key.windows.setdefault(start, oracle._Window(start, end)) for start, end in self._windows(tick)]
            self.known.setdefault(tick.symbol, []).append(_Known(str(self._name), windows, tick))
        super()._accept(tick)

    def _message(self, record: oracle.Record, payload: dict[str, object]) -> None:
        symbol, name = payload.get("symbol"), payload.get(FIELDS[2])
        if not isinstance(symbol, str) or isinstance(name, bool) or not isinstance(name, str | int):
            self.malformed.append(record.offset)
            return
        kept = self.keys[symbol].in_order_of_start() if symbol in self.keys else []
        known = [each for each in self.known.get(symbol, []) if each.name == str(name)]
        found = [each for each in known if any(window is held for window in each.windows for held in kept)]
        if not found or found[-1].now is None:
            self.uncorrectable.append(record.offset)
            return
        self.corrected += 1
        trade = found[-1]
        before, after = trade.now, None
        assert before is not None
        if payload[FIELDS[0]] == "C":
            numbers = {"price": payload["price"], "size": payload["size"]}
            price, size = (float(str(number)) for number in numbers.values())
            value = orjson.dumps({**orjson.loads(before.value), **numbers})
            after = replace(before, price=price, size=size, value=value)
        trade.now = after
        for window in kept:
            if any(tick is before for tick in window.ticks):
                changed = [after if tick is before else tick for tick in window.ticks]
                window.ticks = [tick for tick in changed if tick is not None]
                if window.was_emitted:
                    self._emit(symbol, window, "closed", "correction")

    def _emit(self, symbol: str, window: oracle._Window, status: str, trigger: str) -> None:
        if window.ticks:
            super()._emit(symbol, window, status, trigger)
            return
        frame: oracle.Frame = {
            "key": symbol,
            "start": window.start_ns // 1_000_000,
            "end": window.end_ns // 1_000_000,
            "rev": window.next_rev,
            "status": status,
            "trigger": trigger,
        }
        if self.config.payload != "items":
            frame |= dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"))
        frame |= {"count": 0, "first_ts": None, "last_ts": None}
        if self.config.payload != "ohlcv":
            frame["items"] = []
        self.outcome.frames.setdefault(symbol, []).append(frame)
        window.next_rev += 1


def run(config: oracle.Config, records: Sequence[oracle.Record]) -> Outcome:
    """The log of one partition of ticks and messages, all of whose ticks are well-formed."""
    lane = _Lane(config)
    for record in records:
        lane.take(record)
    return Outcome(lane.outcome, lane.corrected, lane.uncorrectable, lane.malformed)
