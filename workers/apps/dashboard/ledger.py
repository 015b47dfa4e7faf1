"""The ledger as the page shows it: the newest late ticks and dead letters, and how many of each reason there were.

They come from topics that others can write to: text is cut to a length.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from workers.apps.dashboard.bars import SymbolBars
from workers.apps.dashboard.readings import Changes, LedgerRow, Limits, cut, shown_symbol
from workers.core.ledger import MESSAGE_HEADER, OFFSET_HEADER, PARTITION_HEADER, REASON_HEADER, TOPIC_HEADER
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["LedgerRows"]

_MAX_REASONS: Final = 40


class _Late(msgspec.Struct):
    key: str
    ts: int | None
    reason: str
    topic: str
    partition: int
    offset: int
    late_by_ns: int | None = None
    start: int | None = None
    end: int | None = None
    stage: str | None = None
    detail: object = None
    tick: msgspec.Raw = msgspec.Raw(b"")


_LATE: Final = msgspec.json.Decoder(_Late)


class LedgerRows:
    """The rows of both kinds, and ``reasons``: of each kind, how many there were of each."""

    def __init__(self, bars: SymbolBars, limits: Limits, changes: Changes) -> None:
        self._bars, self._limits, self._changes = bars, limits, changes
        self._rows: dict[str, deque[LedgerRow]] = {kind: deque(maxlen=limits.ledger_rows) for kind in ("late", "dead")}
        self.reasons: dict[str, dict[str, int]] = {"late": {}, "dead": {}}

    def take_late(self, value: bytes | None, wall_ns: int) -> bool:
        """A record of the late topic: a late tick, one that an operator dropped, or a correction without its trade.

        False where it is none of these.
        """
        try:
            late = _LATE.decode(value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        symbol = self._bars.count_late(late.key)
        text = f"dropped by {late.stage}" if late.stage is not None else ""
        if isinstance(late.detail, str):
            text = late.detail
        elif late.stage is None and late.start is None:
            text = "no window is for its time"
        elif late.late_by_ns is not None and late.start is not None:
            text = f"{late.late_by_ns / NS_PER_SECOND:.3f} s below the threshold, missed the window from {late.start}"
        place = f"{late.topic}[{late.partition}] @ {late.offset}"
        self._note("late", wall_ns, symbol, late.reason, text, place, bytes(late.tick))
        return True

    def take_dead_letter(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]], wall_ns: int
    ) -> None:
        """A record of the dead-letters topic; its key and value can be anything."""
        told = {name: (text or b"").decode("utf-8", "replace") for name, text in headers}
        place = f"{told.get(TOPIC_HEADER, '?')}[{told.get(PARTITION_HEADER, '?')}]"
        place += f" @ {told.get(OFFSET_HEADER, '?')}"
        symbol = shown_symbol((key or b"").decode("utf-8", "replace"), self._limits.symbol_chars)
        reason = told.get(REASON_HEADER, "no reason given")
        self._note("dead", wall_ns, symbol, reason, told.get(MESSAGE_HEADER, ""), place, value or b"")

    def _note(
        self, kind: Literal["late", "dead"], wall_ns: int, symbol: str, reason: str, text: str, place: str, value: bytes
    ) -> None:
        limit = self._limits.text_chars
        reason = cut(reason, limit)[:64]
        reasons = self.reasons[kind]
        counted = reason if reason in reasons or len(reasons) < _MAX_REASONS else "other"
        reasons[counted] = reasons.get(counted, 0) + 1
        excerpt = value[: 4 * limit].decode("utf-8", "replace")
        at_ms = wall_ns // NS_PER_MS
        row = LedgerRow(
            self._changes.next(), kind, at_ms, symbol, reason, cut(text, limit), cut(place, limit), cut(excerpt, limit)
        )
        self._rows[kind].append(row)

    def newest(self, *, kind: str = "all", reason: str = "", text: str = "", limit: int = 100) -> list[LedgerRow]:
        """The newest rows that fit, newest first: of a kind (or ``all``), of a reason, with a text anywhere in them."""
        kinds = self._rows if kind == "all" else [kind]
        rows = heapq.merge(*(reversed(self._rows[name]) for name in kinds), key=lambda row: -row.seq)
        wanted = text.casefold()
        found: list[LedgerRow] = []
        for row in rows:
            if reason and row.reason != reason:
                continue
            if wanted and not any(wanted in part.casefold() for part in (row.symbol, row.text, row.place, row.value)):
                continue
            found.append(row)
            if len(found) == limit:
                break
        return found
