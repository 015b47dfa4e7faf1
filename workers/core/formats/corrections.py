"""Messages that cancel or correct a trade, among ticks as JSON. `workers.core.windows.corrections` has the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from workers.core.formats.json import finite_number, tick_decoder
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.ticks import EndOfInput, Rejection, Tick, TickFormat, excerpt

__all__ = ["Correction", "CorrectionRules", "correction_decoder", "text_of", "trade_id_of"]

Kind = Literal["cancel", "correct"]


@dataclass(frozen=True, slots=True)
class CorrectionRules:
    """How corrections are told from trades: ``field`` names the JSON field that says what a message is, ``cancel`` and
    ``correct`` are what it then says. ``id`` is the field of a trade's id, ``refers_to`` that field of a message
    (None: the same). Integers count as their decimal text."""

    field: str
    cancel: tuple[str, ...]
    correct: tuple[str, ...]
    id: str
    refers_to: str | None = None

    def describe(self) -> dict[str, object]:
        """As stored state knows it, as JSON would give it back."""
        return {
            "field": self.field,
            "cancel": list(self.cancel),
            "correct": list(self.correct),
            "id": self.id,
            "refers_to": self.refers_to or self.id,
        }


@dataclass(slots=True)
class Correction:
    """A message about a trade. ``price`` and ``size`` are those of a correct, ``written`` how it writes them."""

    symbol: str
    kind: Kind
    trade_id: str
    price: float
    size: float
    written: tuple[object, object]
    ts: object  # the message's own time, as it says it
    offset: int
    value: bytes


def correction_decoder(
    form: TickFormat, rules: CorrectionRules
) -> Callable[[Record], Tick | Correction | EndOfInput | Rejection]:
    """A function that turns a record into a trade, a correction, the end of the input, or the reason why it is none."""
    decode_tick = tick_decoder(form)
    kinds: dict[str | None, Kind] = dict.fromkeys(rules.cancel, "cancel")
    kinds.update(dict.fromkeys(rules.correct, "correct"))

    def decode(record: Record) -> Tick | Correction | EndOfInput | Rejection:
        decoded = decode_tick(record)
        if isinstance(decoded, EndOfInput):
            return decoded
        if isinstance(decoded, Rejection) and decoded.reason is Reason.MALFORMED_JSON:
            return decoded
        fields = decoded.fields if isinstance(decoded, Tick) else _fields(record.value)
        kind = kinds.get(text_of(fields.get(rules.field)))
        if kind is not None:
            return _correction(kind, fields, record, form, rules)
        trade_id = fields.get(rules.id)
        if isinstance(decoded, Tick) and trade_id is not None and text_of(trade_id) is None:
            return _id_rejection(rules.id, trade_id, record)
        return decoded

    return decode


def _fields(value: bytes | None) -> Mapping[str, object]:
    found = orjson.loads(value or b"")
    return found if isinstance(found, dict) else {}


def text_of(found: object) -> str | None:
    """A field's text, if it is text or an integer."""
    if type(found) is str:
        return found
    return str(found) if type(found) is int else None


def trade_id_of(fields: Mapping[str, object], name: str) -> str | None:
    """A trade's id, if its field ``name`` is text or an integer."""
    return text_of(fields.get(name))


def _id_rejection(name: str, found: object, record: Record) -> Rejection:
    message = f"{name} is {excerpt(found)} ({type(found).__name__}); expected a trade's id, a string or an integer"
    return Rejection(Reason.WRONG_TYPE, message, record)


def _correction(
    kind: Kind, fields: Mapping[str, object], record: Record, form: TickFormat, rules: CorrectionRules
) -> Correction | Rejection:
    """The correction that the fields describe; checked in the order in which ticks are."""
    id_name = rules.refers_to or rules.id
    needed = (form.symbol, id_name, *((form.price, form.size) if kind == "correct" else ()))
    missing = [name for name in needed if name not in fields]
    if missing:
        return Rejection(Reason.MISSING_FIELD, f"{', '.join(missing)} missing in a {kind} message", record)
    symbol, trade_id = fields[form.symbol], text_of(fields[id_name])
    if type(symbol) is not str:
        message = f"{form.symbol} is {excerpt(symbol)} ({type(symbol).__name__}); expected a string"
        return Rejection(Reason.WRONG_TYPE, message, record)
    if trade_id is None:
        return _id_rejection(id_name, fields[id_name], record)
    price, size = 0.0, 0.0
    if kind == "correct":
        numbers = [finite_number(fields[name]) for name in (form.price, form.size)]
        for name, number in zip((form.price, form.size), numbers, strict=True):
            if number is None:
                message = f"{name} is {excerpt(fields[name])} in a correct message; expected a finite number"
                return Rejection(Reason.WRONG_TYPE, message, record)
        price, size = (number for number in numbers if number is not None)
        if size < 0:
            message = f"{form.size} is {fields[form.size]!r} in a correct message; expected 0 or more"
            return Rejection(Reason.NEGATIVE_SIZE, message, record)
    if record.key != symbol.encode():
        found = "none" if record.key is None else excerpt(record.key)
        message = f"the record's key is {found}; expected the symbol's UTF-8 bytes, {excerpt(symbol.encode())}"
        return Rejection(Reason.KEY_MISMATCH, message, record)
    written = (fields.get(form.price), fields.get(form.size))
    return Correction(
        symbol, kind, trade_id, price, size, written, fields.get(form.ts), record.offset, record.value or b""
    )
