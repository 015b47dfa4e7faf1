"""Ticks that are held for their time, at work in a lane: `workers.core.jumps` with records, dead letters and stored
state.

What is held is part of the changelog, so that no crash shows: under ``b"hs"`` and the symbol the tick and its record,
under ``b"hc"`` the greatest time let through.

A trade that is held can be cancelled or corrected before it is believed. A cancel takes it away: it becomes a dead
letter, as it is in no window that could be made anew. A correct gives it its new price and size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import msgspec
import orjson

from workers.core.formats.corrections import Correction, trade_id_of
from workers.core.frames import OutRecord
from workers.core.jumps import Judged, JumpGuard, Suspect
from workers.core.pipeline.stage import Passage
from workers.core.pipeline.throttle import DumpedPassage, dump_passage, load_passage
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.ticks import Rejection, Tick, TickFormat
from workers.errors import StateFormatError
from workers.times import describe_duration, format_duration, format_time

__all__ = ["CLOCK", "Quarantine", "held_in"]

_SUSPECT: Final = b"hs"
CLOCK: Final = b"hc"
"""The changelog key of the greatest time let through."""


def held_in(entries: Mapping[bytes, bytes], records: int) -> int:
    """How many ticks stored state holds, of which so many ``records`` are here."""
    return records - (CLOCK in entries)


class Quarantine:
    """The ticks of one partition that wait to be believed. ``trade_id``: the field that corrections know a trade by;
    ``disorder_ns``: how far ticks are out of order without being late."""

    def __init__(self, max_jump_ns: int, disorder_ns: int, form: TickFormat, trade_id: str | None) -> None:
        self._guard: JumpGuard[Passage] = JumpGuard(max_jump_ns, min(disorder_ns, max_jump_ns))
        self._max_jump_ns = max_jump_ns
        self._form = form
        self._trade_id = trade_id
        self._stored: set[str] = set()
        self._stored_clock_ns: int | None = None

    @property
    def held(self) -> int:
        """Ticks that are held at the moment."""
        return len(self._guard)

    def holds(self, symbol: str, offset: int) -> bool:
        """Whether the tick of this offset is held."""
        held = self._guard.held(symbol)
        return held is not None and held.order == offset

    def judge(self, tick: Tick, record: Record) -> Iterator[Passage | Rejection]:
        """What goes on now, and what is rejected, in order: the tick, or others that were held, or none."""
        for judged in self._guard.judge(tick.symbol, tick.ts_ns, tick.offset, Passage(tick, record)):
            yield judged.item if judged.contradicted_by is None else self._rejection(judged)

    def release_all(self) -> list[Passage]:
        """The input has ended: what is held goes on, in log order."""
        return [judged.item for judged in self._guard.release_all()]

    def cancel(self, correction: Correction) -> Rejection | None:
        """What becomes of the trade that a cancel is about; None where it is not held."""
        held = self._meant(correction)
        if held is None:
            return None
        self._guard.discard(held.key)
        message = (
            f"cancelled by the message at offset {correction.offset}, while it was held: its time, "
            f"{format_time(held.ts_ns)}, was ahead by more than tick.max_jump {format_duration(self._max_jump_ns)}"
        )
        return Rejection(Reason.CLOCK_JUMP, message, held.item.record)

    def correct(self, correction: Correction) -> bool:
        """Give the trade that a correct is about its new price and size; False where it is not held."""
        held = self._meant(correction)
        if held is None:
            return False
        price, size = correction.written
        tick = held.item.tick
        fields = {**tick.fields, self._form.price: price, self._form.size: size}
        changed = replace(tick, price=correction.price, size=correction.size, value=orjson.dumps(fields), fields=fields)
        self._guard.put(held.key, Passage(changed, held.item.record))
        return True

    def _meant(self, correction: Correction) -> Suspect[Passage] | None:
        held = self._guard.held(correction.symbol)
        if held is None or self._trade_id is None:
            return None
        return held if trade_id_of(held.item.tick.fields, self._trade_id) == correction.trade_id else None

    def _rejection(self, judged: Judged[Passage]) -> Rejection:
        assert judged.contradicted_by is not None
        back_ns = judged.ts_ns - judged.contradicted_by.ts_ns
        message = (
            f"{self._form.ts} is {format_time(judged.ts_ns)}; the key's next tick, at offset "
            f"{judged.contradicted_by.order}, goes back by {describe_duration(back_ns)}, to "
            f"{format_time(judged.contradicted_by.ts_ns)}. A tick further ahead of its partition than tick.max_jump "
            f"{format_duration(self._max_jump_ns)} needs a second that does not"
        )
        return Rejection(Reason.CLOCK_JUMP, message, judged.item.record)

    # -- stored state -------------------------------------------------------------------------------------------------

    @property
    def changes_waiting(self) -> int:
        """How many held ticks `take_changes` would write or delete."""
        return self._guard.changes_waiting

    @property
    def stored_records(self) -> int:
        """How many records the changelog holds of this."""
        return len(self._stored) + (self._stored_clock_ns is not None)

    def take_changes(self) -> list[OutRecord]:
        """The changelog records of what changed since the last call."""
        records = []
        for symbol, held in self._guard.take_changed():
            key = _SUSPECT + symbol.encode()
            if held is not None:
                records.append(OutRecord(key, msgspec.msgpack.encode(dump_passage(held.item))))
                self._stored.add(symbol)
            elif symbol in self._stored:
                records.append(OutRecord(key, None))
                self._stored.remove(symbol)
        clock_ns = self._guard.clock_ns
        if clock_ns != self._stored_clock_ns:
            records.append(OutRecord(CLOCK, msgspec.msgpack.encode(clock_ns)))
            self._stored_clock_ns = clock_ns
        return records

    def restore(self, entries: Mapping[bytes, bytes], *, where: str) -> None:
        """Take over stored state. Raises `StateFormatError` where it can't be read. Only for a new one."""
        suspects = []
        try:
            self._stored_clock_ns = msgspec.msgpack.decode(entries.get(CLOCK, b"\xc0"), type=int | None)
            for key, value in entries.items():
                if key.startswith(_SUSPECT):
                    symbol = key[len(_SUSPECT) :].decode()
                    passage = load_passage(symbol, msgspec.msgpack.decode(value, type=DumpedPassage))
                    suspects.append(Suspect(symbol, passage.tick.ts_ns, passage.tick.offset, passage))
        except (ValueError, msgspec.DecodeError) as error:
            raise StateFormatError(
                f"the changelog {where} holds ticks that tick.max_jump held back and that can't be read: {error}. They "
                "were written by another version or another program; use the version that wrote them, or start over "
                "with `workers state reset`"
            ) from error
        self._stored = {suspect.key for suspect in suspects}
        self._guard.load(self._stored_clock_ns, suspects)
