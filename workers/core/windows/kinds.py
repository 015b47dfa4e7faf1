"""Kinds of windows: one type each, with the settings that mean something for it, durations in nanoseconds.

A kind knows which windows a time belongs to, which engine makes them, what stored state says of it, and how its windows
differ from those side by side. Whoever asks for windows holds one of them, and asks it; a new kind is a new type here.

The fields are the settings of ``[window]``, with the unit at the end of their names, in the order in which stored state
has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Final, Literal, TypeVar, Unpack, cast

from workers.core.aggregates import can_merge
from workers.core.windows.assign import (
    Assigner,
    CalendarSession,
    ExchangeSessions,
    Hopping,
    Sessions,
    make_tumbling,
)
from workers.core.windows.corrections import CorrectingEngine, CorrectingSessionEngine
from workers.core.windows.engine import EngineOptions, T, WindowEngine
from workers.core.windows.gaps import Filling, GapBarEngine
from workers.core.windows.sessions import SessionEngine
from workers.core.windows.window import K, WindowRules
from workers.errors import ConfigError
from workers.times import format_duration

__all__ = [
    "DEFAULT_SIZE_NS",
    "KINDS",
    "CalendarWindows",
    "HoppingWindows",
    "SessionWindows",
    "TumblingWindows",
    "WindowKind",
    "Windows",
    "check_merges",
]

WindowKind = Literal["tumbling", "hopping", "session", "calendar"]
"""How settings and stored state call the kinds."""

W = TypeVar("W", bound="Windows")

DEFAULT_SIZE_NS: Final = 5_000_000_000


def check_merges(folding: object) -> None:
    """Raises `ConfigError` where an aggregation can't be that of session windows."""
    if not can_merge(folding):
        raise ConfigError(
            f"the aggregation {type(folding).__name__} has no merge(), which session windows need: one tick may join "
            "two sessions to one"
        )


@dataclass(frozen=True)
class Windows(ABC):
    """What is asked of every kind."""

    kind: ClassVar[WindowKind]
    merges: ClassVar[bool] = False
    """Whether a tick may make one of several windows, which then last as long as ticks come."""

    @abstractmethod
    def assigner(self) -> Assigner:
        """Which windows a time belongs to. Raises ``ValueError`` for what can't be, `ConfigError` for a calendar that
        can't be had."""

    @property
    @abstractmethod
    def length(self) -> str:
        """What users know as the length of its longest window."""

    @property
    def looks_back_ns(self) -> int:
        """How long before a window the one may begin whose contents it shows."""
        return 0

    def engine(
        self, rules: WindowRules, *, name_unit_ns: int = 1, **options: Unpack[EngineOptions[T]]
    ) -> WindowEngine[K, T]:
        """An engine for these windows, by the rules. ``name_unit_ns``: the unit of the starts by which frames name
        windows that have no edges of their own.

        Raises `ConfigError` where the windows need an aggregation that can do more.
        """
        return WindowEngine(rules, **options)

    def correcting_engine(self) -> type[CorrectingEngine]:
        """The engine for these windows where trades are corrected. Raises `ConfigError` where they can't be."""
        return CorrectingEngine

    def check_ttl(self, key_ttl_ns: int, needed_ns: int) -> None:  # noqa: B027  # most have nothing to check
        """Raises `ConfigError` where keys expire sooner than the longest window, lag and allowed lateness need.

        Here for windows whose length is known only when a calendar is loaded; of others the settings see to it.
        """

    def fingerprint(self) -> dict[str, object]:
        """What of the kind is not the default, for stored state: that of plain tumbling windows names nothing."""
        named: dict[str, object] = {} if self.kind == "tumbling" else {"window.kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                named[f"window.{field.name}"] = value
        return named

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """The settings of ``[window]`` that mean something for this kind, of those that don't for all."""
        return tuple(field.name.removesuffix("_ns") for field in fields(cls))

    @classmethod
    def of(cls: type[W], settings: object) -> W:
        """The windows that the attributes of ``settings``, named as there, describe."""
        return cls(*(getattr(settings, name) for name in cls.settings()))


@dataclass(frozen=True)
class TumblingWindows(Windows):
    """Side by side, from the epoch or by the wall clock of ``time_zone``; ``offset_ns`` moves them.

    ``fill_gaps_ns``: how long a hole between a key's windows may be for it to be filled with empty ones
    (`workers.core.windows.gaps`); 0: none is.
    """

    kind: ClassVar[WindowKind] = "tumbling"
    size_ns: int = DEFAULT_SIZE_NS
    offset_ns: int = 0
    time_zone: str | None = None
    fill_gaps_ns: int = 0

    def assigner(self) -> Assigner:
        return make_tumbling(self.size_ns, self.offset_ns, self.time_zone)

    @property
    def length(self) -> str:
        return "size" if self.time_zone is None else "longest window"

    @property
    def looks_back_ns(self) -> int:
        return self.fill_gaps_ns + self.assigner().longest_ns if self.fill_gaps_ns else 0

    def engine(
        self, rules: WindowRules, *, name_unit_ns: int = 1, **options: Unpack[EngineOptions[T]]
    ) -> WindowEngine[K, T]:
        if not self.fill_gaps_ns:
            return super().engine(rules, name_unit_ns=name_unit_ns, **options)
        folding = options.pop("folding", None)
        if not hasattr(folding, "empty_after") or options.get("keep") is not None:
            raise ConfigError(
                'fill_gaps needs payload and aggregation "ohlcv": of a time without ticks there is only a close to show'
            )
        return GapBarEngine(rules, self.fill_gaps_ns, cast("Filling[T]", folding), **options)

    def correcting_engine(self) -> type[CorrectingEngine]:
        if self.fill_gaps_ns:
            raise ConfigError(
                "corrections and fill_gaps can't be together: of a bar whose trades are all cancelled, the close "
                "before may be known no more"
            )
        return CorrectingEngine


@dataclass(frozen=True)
class HoppingWindows(Windows):
    """One of ``size_ns`` every ``hop_ns``; a tick is in each that contains it. ``offset_ns`` moves them."""

    kind: ClassVar[WindowKind] = "hopping"
    size_ns: int
    hop_ns: int
    offset_ns: int = 0

    def assigner(self) -> Assigner:
        return Hopping(self.size_ns, self.hop_ns, self.offset_ns)

    @property
    def length(self) -> str:
        return "size"


@dataclass(frozen=True)
class SessionWindows(Windows):
    """As long as ticks of a key come within ``gap_ns`` of one another (`workers.core.windows.sessions`)."""

    kind: ClassVar[WindowKind] = "session"
    merges: ClassVar[bool] = True
    gap_ns: int

    def assigner(self) -> Assigner:
        return Sessions(self.gap_ns)

    @property
    def length(self) -> str:
        return "gap"

    def engine(
        self, rules: WindowRules, *, name_unit_ns: int = 1, **options: Unpack[EngineOptions[T]]
    ) -> WindowEngine[K, T]:
        if (folding := options.get("folding")) is not None:
            check_merges(folding)
        return SessionEngine(rules, name_unit_ns=name_unit_ns, **options)

    def correcting_engine(self) -> type[CorrectingEngine]:
        return CorrectingSessionEngine


@dataclass(frozen=True)
class CalendarWindows(Windows):
    """An exchange's trading sessions, by a name of the package ``exchange_calendars``; ``close_grace_ns`` moves every
    close."""

    kind: ClassVar[WindowKind] = "calendar"
    calendar: str
    session: CalendarSession = "regular"
    close_grace_ns: int = 0

    def assigner(self) -> ExchangeSessions:
        return ExchangeSessions(self.calendar, self.session, self.close_grace_ns)

    @property
    def length(self) -> str:
        return "longest session"

    def check_ttl(self, key_ttl_ns: int, needed_ns: int) -> None:
        if key_ttl_ns < needed_ns:
            raise ConfigError(
                f"window.key_ttl is {format_duration(key_ttl_ns)}; the longest window of the calendar "
                f"{self.calendar!r} (session {self.session}) with lag and allowed lateness is "
                f"{format_duration(needed_ns)}, and a tick of a window that began longer ago than key_ttl is late"
            )


KINDS: Final[dict[WindowKind, type[Windows]]] = {
    each.kind: each for each in (TumblingWindows, HoppingWindows, SessionWindows, CalendarWindows)
}
"""The type of each kind that settings can name."""
