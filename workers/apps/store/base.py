"""What every store keeps to: the rule of precedence, the batch that is applied as one, and the errors.

WorkersError
└── StoreError                  the database can't be used as asked; the user must act
    ├── StoreUnavailableError   it can't be reached, or is busy: the same again later may work
    ├── StaleOffsetError        another writer moved an offset; nothing of the batch was stored
    └── RefusedError            it refuses a value of the batch; nothing of the batch was stored
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from workers.errors import StateFormatError, WorkersError

__all__ = [
    "FRAME_COLUMNS",
    "SETTLED",
    "WINDOW_COLUMNS",
    "Batch",
    "FrameRow",
    "OffsetMove",
    "RefusedError",
    "RejectedFrame",
    "StaleOffsetError",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "check_version",
    "newest",
    "precedence",
]

SETTLED: Final = 2**63 - 1
"""Stands for the offset of a frame that is not provisional: no provisional frame of the same ``rev`` beats it."""

FRAME_COLUMNS: Final = (
    "key",
    "start_ms",
    "end_ms",
    "rev",
    "status",
    "trigger",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "count",
    "first_ts",
    "last_ts",
    "filled",
    "items",
    "extra",
    "origin_topic",
    "origin_partition",
    "origin_offset",
)
"""The columns that are written, in the order of `FrameRow`; ``start_at`` is made of ``start_ms`` by the database."""

WINDOW_COLUMNS: Final = ("key", "start_ms", "origin_topic")
"""What names a row. Bars of several applications may be in one database: those of 5 seconds and those of a minute begin
together, and only the topic tells them apart."""


class StoreError(WorkersError):
    """The database can't be used as asked."""


class StoreUnavailableError(StoreError):
    """The database can't be reached or is busy; whether the transaction under way was committed is unknown."""


class StaleOffsetError(StoreError):
    """An offset was not what it was expected to be: another writer has moved it. Nothing was stored."""

    def __init__(self, topic: str, partitions: Iterable[int], found: Mapping[int, int]) -> None:
        self.partitions = frozenset(partitions)
        shown = ", ".join(f"{number} (now {found.get(number, 'none')})" for number in sorted(self.partitions))
        super().__init__(f"another writer has moved the stored offsets of {topic}, partitions {shown}")


class RefusedError(StoreError):
    """The database refuses a value of the batch, however often it is tried. Nothing was stored."""


class FrameRow(NamedTuple):
    """A frame as a row. ``items`` and ``extra`` (fields of custom aggregations) are JSON text."""

    key: str
    start_ms: int
    end_ms: int
    rev: int
    status: str
    trigger: str
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    vwap: float | None
    ticks: int  # the column is ``count``, a name that tuples use themselves
    first_ts: int | None
    last_ts: int | None
    filled: bool
    items: str | None
    extra: str | None
    origin_topic: str
    origin_partition: int
    origin_offset: int


class RejectedFrame(NamedTuple):
    """A record of the frames topic that is not a frame, or that the database refuses: why, and the record itself."""

    origin_topic: str
    origin_partition: int
    origin_offset: int
    reason: str
    message: str
    key: bytes | None
    value: bytes | None


class OffsetMove(NamedTuple):
    """From which stored offset (None: none was stored) to which; the offset is that of the next record to be read."""

    expected: int | None
    to: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction stores: frames in log order per partition, rejected records, and the offsets' moves."""

    topic: str
    offsets: Mapping[int, OffsetMove]
    frames: Sequence[FrameRow] = ()
    rejected: Sequence[RejectedFrame] = field(default=())


class Store(Protocol):
    """A database that frames are stored in. One task uses it at a time."""

    @property
    def name(self) -> str:
        """Which database, for logs and errors; never with a password."""
        ...

    async def open(self, *, read_only: bool = False) -> None:
        """Connect, and bring the tables to this version's form (``read_only``: only look that they have it).

        Raises `StoreUnavailableError`, `StoreError`, or ``StateFormatError`` where the tables are of a newer version.
        """
        ...

    async def read_offsets(self, topic: str) -> dict[int, int]:
        """The next offset to read, by partition; a partition that nothing was stored of is missing."""
        ...

    async def apply(self, batch: Batch) -> None:
        """Store a batch in one transaction: all of it, or nothing.

        Raises `StaleOffsetError` where an offset is not the expected one, `RefusedError` where a value can't be
        stored, `StoreUnavailableError` where it is unknown whether the batch was stored: the same batch once more
        then either succeeds or raises `StaleOffsetError`.
        """
        ...

    async def frames(
        self, key: str | None = None, *, topic: str | None = None, limit: int | None = None
    ) -> list[FrameRow]:
        """The latest ``limit`` frames of a key and a topic (None: of all), by start, key and topic, oldest first."""
        ...

    async def rejected(self, *, limit: int | None = None) -> list[RejectedFrame]:
        """The rejected records by topic, partition and offset."""
        ...

    async def close(self) -> None:
        """Let go of the database. A transaction under way is not committed."""
        ...


def precedence(frame: FrameRow) -> tuple[int, int]:
    """What decides which of two frames of one window is kept: the greater; where they are equal, what is there stays.

    A higher ``rev`` wins. Within a ``rev`` there is one frame that is not provisional, and it wins. Of two provisional
    ones the later in the log does: not that with more ticks, as a cancelled trade or a merged session leaves fewer. A
    symbol's frames are all in one partition, so their offsets tell. All of it is in the rows themselves, so neither the
    order in which they come nor how often changes what is kept in the end.
    """
    return frame.rev, frame.origin_offset if frame.status == "provisional" else SETTLED


def newest(frames: Iterable[FrameRow]) -> list[FrameRow]:
    """The frame of each window that takes precedence over its others, by key, start and topic.

    A statement that upserts may meet a row only once; and writers that lock rows in one order don't deadlock.
    """
    kept: dict[tuple[str, int, str], FrameRow] = {}
    for frame in frames:
        window = (frame.key, frame.start_ms, frame.origin_topic)
        other = kept.get(window)
        if other is None or precedence(frame) > precedence(other):
            kept[window] = frame
    return [kept[window] for window in sorted(kept)]


def check_version(found: int, known: int, name: str) -> None:
    """Raises ``StateFormatError`` where the tables are of a later version than this program knows."""
    if found > known:
        raise StateFormatError(
            f"{name} has tables of version {found}; this program knows up to {known}. Use the newer program"
        )
