"""What one browser is owed: the difference between what the model knows and what this browser was told.

A browser says what it wants to see (`Wish`), all of it each time, so that a lost connection loses nothing. It is then
asked at its own pace: however long a browser took, its next message holds the newest of everything once, so that a slow
one skips what it missed and piles up nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, Literal

import msgspec

from workers.apps.dashboard.model import DashboardModel
from workers.apps.dashboard.readings import STATUSES, ShownBar, short_member
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["View", "Wish", "WishError", "read_wish"]

MAX_WISH_BYTES: Final = 8 * 1024
LIST_ROWS: Final = 60
LEDGER_ROWS: Final = 100
SLOW_PARTS_EVERY_NS: Final = NS_PER_SECOND
_SHOWN_MEMBERS: Final = 200
_SHOWN_PARTITIONS: Final = 512


class WishError(ValueError):
    """A browser sent something that is no wish."""


class Explained(msgspec.Struct, forbid_unknown_fields=True):
    """A bar that was clicked: what became of its ticks is to be told. ``start`` is in ms."""

    symbol: str
    start: int


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """What a browser wants to see: a symbol's bars, a search in the symbols, a filter of the ledger."""

    symbol: str | None = None
    search: str = ""
    sort: Literal["active", "late"] = "active"
    kind: Literal["all", "late", "dead"] = "all"
    reason: str = ""
    text: str = ""
    explain: Explained | None = None


_WISHES: Final = msgspec.json.Decoder(Wish)


def read_wish(text: str) -> Wish:
    """The wish in a browser's message. Raises `WishError` where it is none."""
    if len(text) > MAX_WISH_BYTES:
        raise WishError(f"a wish of {len(text)} characters; expected at most {MAX_WISH_BYTES}")
    try:
        return _WISHES.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise WishError(f"no wish: {error}") from None


class View:
    """One browser's side of the model."""

    def __init__(self, model: DashboardModel) -> None:
        self._model = model
        self._wish = Wish()
        self._symbol: str | None = None
        self._bars_seq = self._points_seq = self._events_seq = 0
        self._told: dict[str, object] = {}
        self._slow_ns: int | None = None

    def want(self, wish: Wish) -> None:
        """From now on tell what ``wish`` asks for."""
        if wish.symbol != self._symbol:
            self._symbol, self._bars_seq = wish.symbol, 0
        self._wish = wish
        self._slow_ns = None  # who asks for something waits for it

    def message(self, wall_ns: int, now_ns: int) -> dict[str, object]:
        """What changed since the last message, with the time; parts that did not change are absent."""
        parts: dict[str, object] = {"t": wall_ns // NS_PER_MS}
        self._add_bars(parts)
        if self._slow_ns is None or now_ns - self._slow_ns >= SLOW_PARTS_EVERY_NS:
            self._slow_ns = now_ns
            self._add_points(parts)
            self._add_events(parts)
            self._add_changed(parts, wall_ns, now_ns)
        return parts

    def _add_bars(self, parts: dict[str, object]) -> None:
        symbol, since = self._symbol, self._bars_seq
        if symbol is None or (since and self._model.symbol_seq(symbol) <= since):
            return
        # Told once even of a symbol that has no bars, so that the page can say so; asked again when there are some.
        rows = [_bar_row(bar) for bar in self._model.bars(symbol, since)]
        if rows or self._told.get("bars_of") != symbol:
            parts["bars"] = {"symbol": symbol, "reset": not since, "rows": rows}
        self._told["bars_of"] = symbol
        self._bars_seq = self._model.symbol_seq(symbol)

    def _add_points(self, parts: dict[str, object]) -> None:
        fresh = [list(asdict(point).values())[1:] for point in self._model.points if point.seq > self._points_seq]
        if fresh:
            parts["points"] = {"reset": not self._points_seq, "rows": fresh}
            self._points_seq = self._model.points[-1].seq

    def _add_events(self, parts: dict[str, object]) -> None:
        fresh = [[event.at_ms, event.kind, event.text] for event in self._model.events if event.seq > self._events_seq]
        if fresh:
            parts["events"] = fresh
            self._events_seq = self._model.events[-1].seq

    def _add_changed(self, parts: dict[str, object], wall_ns: int, now_ns: int) -> None:
        """Parts that are small enough to be told whole, whenever they differ from what was told last."""
        wish = self._wish
        for name, part in (
            ("symbols", self._symbols(wish, now_ns)),
            ("group", self._group(wall_ns)),
            ("sum", self._sum()),
            ("ledger", self._ledger(wish)),
            ("sources", {name: [found.state, found.text] for name, found in self._model.sources.items()}),
        ):
            if self._told.get(name) != part:
                self._told[name] = parts[name] = part

    def _symbols(self, wish: Wish, now_ns: int) -> dict[str, object]:
        rows, matching = self._model.ranking(wish.search[:400], wish.sort, LIST_ROWS, now_ns)
        return {
            "search": wish.search,
            "sort": wish.sort,
            "known": self._model.symbols,
            "matching": matching,
            "rows": [[row.symbol, row.ticks, row.ticks_per_s, row.late, row.revisions, row.close] for row in rows],
        }

    def _group(self, wall_ns: int) -> dict[str, object]:
        model, reading = self._model, self._model.lag
        owners = {number: member for member in model.members for number in member.partitions}
        watermarks = model.watermarks()
        partitions = [
            [
                item.partition,
                short_member(owners[item.partition].client_id, owners[item.partition].member_id)
                if item.partition in owners
                else None,
                item.committed,
                item.end,
                item.lag,
                watermarks[item.partition] // NS_PER_MS if item.partition in watermarks else None,
                _seconds(item.waiting_ns),
            ]
            for item in (reading.partitions if reading is not None else ())[:_SHOWN_PARTITIONS]
        ]
        return {
            "state": model.group_state,
            "members": [
                [short_member(member.client_id, member.member_id), member.host, list(member.partitions)]
                for member in model.members[:_SHOWN_MEMBERS]
            ],
            "partitions": partitions,
            "level": model.level.name,
            "scale": model.scale,
            "pressure": list(model.pressure) if model.pressure is not None else None,
            "lag": reading.total if reading is not None else None,
            "waiting_s": _seconds(reading.waiting_ns) if reading is not None else None,
            "event_lag_s": _seconds(reading.event_lag_ns) if reading is not None else None,
            "drain_s": reading.drain_s if reading is not None else None,
            "measured": reading.measured_ns // NS_PER_MS if reading is not None else None,
        }

    def _sum(self) -> dict[str, object]:
        counts = self._model.counts
        return {
            "counts": asdict(counts),
            "balance": counts.balance(),
            "unbalanced": list(self._model.unbalanced[:20]),
            "partitions": len(self._model.watermarks()),
            "unreadable": self._model.unreadable,
            "frames": self._model.frames,
            "heard": self._model.heard_ms,
        }

    def _ledger(self, wish: Wish) -> dict[str, object]:
        rows = self._model.ledger(kind=wish.kind, reason=wish.reason, text=wish.text, limit=LEDGER_ROWS)
        return {
            "reasons": {kind: dict(counts) for kind, counts in self._model.reasons.items()},
            "rows": [
                [row.seq, row.kind, row.at_ms, row.symbol, row.reason, row.text, row.place, row.value] for row in rows
            ],
        }


def _bar_row(bar: ShownBar) -> list[object]:
    """A bar as the page reads it; the order is the page's ``BAR`` list."""
    return [
        bar.start_ms,
        bar.end_ms,
        bar.rev,
        STATUSES.index(bar.status),
        bar.trigger,
        bar.count,
        bar.first_ms,
        bar.last_ms,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.vwap,
        bar.revised,
    ]


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else round(duration_ns / NS_PER_SECOND, 3)
