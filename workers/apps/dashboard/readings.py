"""What the model of the dashboard is told, and what it tells: readings, rows and bars, each as it was at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from workers.core.reasons import Status

__all__ = [
    "STATUSES",
    "Changes",
    "Event",
    "EventKind",
    "LagReading",
    "LedgerRow",
    "Limits",
    "Member",
    "PartitionReading",
    "Point",
    "Ranked",
    "ShownBar",
    "SourceState",
    "cut",
    "short_member",
    "shown_symbol",
]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

EventKind = Literal["rebalance", "joined", "left", "moved", "level"]


class Changes:
    """Numbers the changes of the model, from 1."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        """The number of one more change."""
        self.last += 1
        return self.last


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept: numbers of things, and characters of text that others wrote."""

    symbols: int = 20_000
    bars: int = 200_000
    bars_per_symbol: int = 1_500
    ledger_rows: int = 2_000  # of late ticks, and as many of dead letters
    events: int = 200
    points: int = 900  # one a second
    text_chars: int = 300
    symbol_chars: int = 256

    def __post_init__(self) -> None:
        for bound in fields(self):
            if getattr(self, bound.name) < 1:
                raise ValueError(f"{bound.name} is {getattr(self, bound.name)}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class ShownBar:
    """One window as last told; times in ms, ``revised`` the prices (rev, o, h, l, c) that it took the place of.

    Prices are NaN where the application's aggregation gives none, or there are no ticks; without ticks ``first_ms`` and
    ``last_ms`` mean nothing. ``seq`` grows with every change of the model.
    """

    seq: int
    start_ms: int
    end_ms: int
    rev: int
    status: str
    trigger: str
    count: int
    first_ms: int
    last_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    revised: tuple[int, float, float, float, float] | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A symbol in the list: ticks in all and a second (smoothed), late ticks, revisions, and the last price."""

    symbol: str
    ticks: int
    ticks_per_s: float
    late: int
    revisions: int
    close: float
    partition: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A tick that joined no window (``late``) or a record that was none (``dead``)."""

    seq: int
    kind: Literal["late", "dead"]
    at_ms: int
    symbol: str
    reason: str
    text: str
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the group, at a wall-clock time in ms."""

    seq: int
    at_ms: int
    kind: EventKind
    text: str


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group and the partitions of the ticks topic that it owns."""

    member_id: str
    client_id: str
    host: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionReading:
    """Offsets of one partition of the ticks topic; ``waiting_ns`` only where it lags and was looked at."""

    partition: int
    committed: int | None
    end: int
    lag: int
    waiting_ns: int | None = None


@dataclass(frozen=True, slots=True)
class LagReading:
    """One measurement of the group's lag."""

    partitions: tuple[PartitionReading, ...]
    waiting_ns: int | None
    event_lag_ns: int | None
    drain_s: float
    committed_per_s: float
    measured_ns: int

    @property
    def total(self) -> int:
        """Records not yet committed."""
        return sum(item.lag for item in self.partitions)


@dataclass(frozen=True, slots=True)
class Point:
    """One second of the curves: lag, level, scale, watermark delay (seconds) and rates (a second)."""

    seq: int
    at_ms: int
    lag: int | None
    waiting_s: float | None
    event_lag_s: float | None
    level: int
    scale: float
    watermark_delay_s: float | None
    ticks_per_s: float
    committed_per_s: float
    frames_per_s: float


@dataclass(slots=True)
class SourceState:
    """Where something is read from, and whether that works: ``ok``, ``waiting`` (not there yet) or ``failed``."""

    state: Literal["ok", "waiting", "failed"]
    text: str


def shown_symbol(symbol: str, limit: int) -> str:
    """The name a symbol is kept under: itself, or its beginning and a digest where it is longer than ``limit``."""
    if len(symbol) <= limit:
        return symbol
    digest = hashlib.sha256(symbol.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{symbol[:40]}… ({len(symbol):,} characters, sha256 {digest})"


def short_member(client_id: str, member_id: str) -> str:
    """A member in few letters: its client id and the beginning of what makes its id unique."""
    rest = member_id.removeprefix(client_id).lstrip("-")
    return f"{client_id[:40]}·{rest[:6]}" if rest else client_id[:40]


def cut(text: str, limit: int) -> str:
    """The text, or its beginning where it is longer than ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
