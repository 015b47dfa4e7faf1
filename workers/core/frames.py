"""Frames: what a window looks like to those who read it, as an object and on the wire."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, TypeVar

import orjson

from workers.core.encoding import to_json
from workers.core.reasons import Status, Trigger
from workers.core.ticks import Tick
from workers.core.windows.engine import Emission
from workers.times import NS_PER_MS, datetime_from_ns

__all__ = ["RESERVED_FIELDS", "FrameEncoder", "OutRecord", "WindowFrame", "frame_from_emission"]

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
        """The record for one emission, keyed by its symbol, its timestamp the window's end in ms."""
        end_ms = emission.end_ns // NS_PER_MS
        frame: dict[str, object] = {
            "key": emission.key,
            "start": emission.start_ns // NS_PER_MS,
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
        # Kafka has no negative record timestamps: a window before 1970 is stamped 1970.
        return OutRecord(emission.key.encode(), to_json(frame), max(end_ms, 0))


def kept_bytes(tick: Tick) -> bytes:
    """What an ``items`` window keeps of a tick: the record's value, as received."""
    return tick.value
