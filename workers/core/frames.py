"""Frames: what a window looks like to those who read it, as an object and on the wire."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec
import orjson

from workers.core.encoding import json_object, to_json
from workers.core.reasons import Status, Trigger
from workers.core.ticks import Tick
from workers.core.windows.window import Emission
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, datetime_from_ns

__all__ = [
    "BAR_FIELDS",
    "RESERVED_FIELDS",
    "Frame",
    "FrameEncoder",
    "FrameName",
    "NoFrame",
    "OutRecord",
    "WindowFrame",
    "decode_frame",
    "frame_from_emission",
    "frame_name",
    "kept_bytes",
]

RESERVED_FIELDS: Final = (
    "key",
    "start",
    "end",
    "rev",
    "status",
    "trigger",
    "count",
    "first_ts",
    "last_ts",
    "items",
    "filled",
)
"""A frame's own fields: readers tell frames apart by them, so no aggregation may give them."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowFrame(Generic[T]):
    """A window as the library API hands it out: ``[start, end)`` in aware UTC datetimes and the items, as they came.

    ``rev`` counts what was emitted of this window before; ``status`` is ``provisional`` (will come again), ``closed``
    (may be revised) or ``final``; ``trigger`` says what brought it out.
    """

    key: Hashable
    start: datetime
    end: datetime
    items: tuple[T, ...]
    rev: int = field(default=0, compare=False)
    status: Status = field(default="final", compare=False)
    trigger: Trigger = field(default="watermark", compare=False)


def frame_from_emission(emission: Emission[Hashable]) -> WindowFrame[T]:
    """The library's frame for what an engine emitted."""
    return WindowFrame(
        emission.key,
        datetime_from_ns(emission.start_ns),
        datetime_from_ns(emission.end_ns),
        emission.items or (),
        emission.rev,
        emission.status,
        emission.trigger,
    )


@dataclass(slots=True)
class OutRecord:
    """A record to be written: ``timestamp_ms`` None leaves the time of sending."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers, with the lengths before them: a dead letter may have many short headers."""
        size = len(self.key or b"") + len(self.value or b"")
        if self.headers:
            size += sum(len(name.encode()) + len(value or b"") + 16 for name, value in self.headers)
        return size


class FrameEncoder:
    """Writes emissions in the wire form of the frames topic.

    ``unit_ns`` is the tick's unit, in which ``first_ts`` and ``last_ts`` are written (floored). Numbers that JSON can't
    hold (NaN, or a volume beyond float64) are null. Results must leave `RESERVED_FIELDS` alone.
    """

    def __init__(self, unit_ns: int) -> None:
        self._unit_ns = unit_ns

    def encode(self, emission: Emission[str]) -> OutRecord:
        """The record for one emission, keyed by its symbol.

        Its timestamp is the window's end. A provisional frame's is its last tick's time: brokers refuse what is stamped
        an hour ahead of their clocks, and a window may end later than that.
        """
        start_ms, end_ms = emission.start_ns // NS_PER_MS, emission.end_ns // NS_PER_MS
        frame: dict[str, object] = {
            "key": emission.key,
            "start": start_ms,
            "end": end_ms,
            "rev": emission.rev,
            "status": emission.status,
            "trigger": emission.trigger,
            **emission.result,
            "count": emission.count,
            "first_ts": emission.first_ns // self._unit_ns if emission.count else None,
            "last_ts": emission.last_ns // self._unit_ns if emission.count else None,
        }
        if emission.items is not None:
            frame["items"] = orjson.Fragment(b"[" + b",".join(emission.items) + b"]")
        if emission.filled:
            frame["filled"] = True
        time_ms = end_ms
        if emission.status == "provisional":
            time_ms = emission.last_ns // NS_PER_MS if emission.count else start_ms
        # Kafka has no negative record timestamps: a window before 1970 is stamped 1970.
        return OutRecord(emission.key.encode(), to_json(frame), max(time_ms, 0))


def kept_bytes(tick: Tick) -> bytes:
    """What an ``items`` window keeps of a tick: the record's value, as received."""
    return tick.value


# -- read back --------------------------------------------------------------------------------------------------------

BAR_FIELDS: Final = ("open", "high", "low", "close", "volume", "vwap")
"""What the usual aggregation adds to a frame."""

_MAX_MS: Final = MAX_EVENT_TIME_NS // NS_PER_MS
_Ms = Annotated[int, msgspec.Meta(ge=-_MAX_MS, le=_MAX_MS)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 2)]
_NOTHING: Final[Mapping[str, msgspec.Raw]] = {}


class _Window(msgspec.Struct):
    """What every frame has."""

    key: str
    start_ms: _Ms = msgspec.field(name="start")
    end_ms: _Ms = msgspec.field(name="end")
    rev: _Count
    status: Status
    trigger: str
    count: _Count
    first_ts: _Int64 | None
    last_ts: _Int64 | None
    filled: bool = False
    items: msgspec.Raw = msgspec.Raw()


class Frame(_Window):
    """A frame as read: window times in ms, ``first_ts`` and ``last_ts`` in the unit of its ticks, ``items`` as written.

    A bar's field is None where the frame does not have it, or has something else than a number there.
    """

    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    vwap: float | None = None

    @property
    def others(self) -> Mapping[str, msgspec.Raw]:
        """The fields of a custom aggregation, as they were written; a bar's field that is no number is one of them."""
        return _NOTHING


class _PlainFrame(Frame, forbid_unknown_fields=True):
    """The usual frame, decoded in one go."""


class _CustomFrame(Frame):
    """One with other fields than a bar's; made here, never decoded."""

    kept: dict[str, msgspec.Raw] = {}  # msgspec copies it

    @property
    def others(self) -> Mapping[str, msgspec.Raw]:
        return self.kept


@dataclass(frozen=True, slots=True)
class NoFrame:
    """Why a record's value is no frame."""

    reason: Literal["no_value", "malformed_json", "not_a_frame"]
    message: str


_decode_plain = msgspec.json.Decoder(_PlainFrame).decode
_decode_window = msgspec.json.Decoder(_Window).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_number = msgspec.json.Decoder(float | None).decode
_WINDOW_FIELDS: Final = frozenset(_Window.__struct_encode_fields__)


def decode_frame(value: bytes | None) -> Frame | NoFrame:
    """The frame that a record's value is, or why it is none. Never raises for what is in it.

    Other consumers of a frames topic may write to it: whatever is asked here of a frame, those of a worker have.
    """
    if value is None:
        return NoFrame("no_value", "the record has no value; expected a frame's JSON object")
    try:
        try:
            return _decode_plain(value)
        except msgspec.ValidationError:
            return _decode_custom(value)
    except msgspec.ValidationError as error:
        return NoFrame("not_a_frame", str(error))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return NoFrame("malformed_json", str(error))


def _decode_custom(value: bytes) -> Frame:
    """A frame with fields of a custom aggregation. Raises what msgspec raises."""
    fields = msgspec.structs.asdict(_decode_window(value))
    others: dict[str, msgspec.Raw] = {}
    for name, raw in _decode_fields(value).items():
        if name in _WINDOW_FIELDS:
            continue
        if name in BAR_FIELDS:
            try:
                fields[name] = _decode_number(raw)
                continue
            except msgspec.ValidationError:
                pass  # a custom aggregation's own idea of the name
        others[name] = raw
    return _CustomFrame(**fields, kept=others)


class FrameName(NamedTuple):
    """What tells a symbol's frames apart; None where the record does not have it, or has something else there."""

    start_ms: int | None
    rev: int | None
    status: str | None


def frame_name(value: bytes | None) -> FrameName:
    """The name of a frame, whatever else is wrong with it, so that it can be found and compared."""
    fields = json_object(value)
    start_ms, rev, status = fields.get("start"), fields.get("rev"), fields.get("status")
    return FrameName(
        start_ms if type(start_ms) is int else None,
        rev if type(rev) is int else None,
        status if type(status) is str else None,
    )
