"""Which windows library users ask for: the kinds of `workers.core.windows.kinds`, with timedeltas for durations.

What they raise as `Tumbling`, `ZonedTumbling`, `Hopping` and `ExchangeSessions` do, those of
`workers.core.windows.assign` explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from workers.core.windows.assign import CalendarSession
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.times import check_timedelta, timedelta_to_ns

__all__ = ["CalendarWindowSpec", "HoppingWindowSpec", "SessionWindowSpec", "TumblingWindowSpec", "WindowSpec"]


@dataclass(frozen=True, slots=True)
class TumblingWindowSpec:
    """Windows of one size, side by side from the epoch, or by the wall clock of ``time_zone``, an IANA name.

    ``offset`` moves them; ``emit_partial`` also shows open windows, provisionally. Raises ``TypeError`` where a
    duration is no timedelta, ``ValueError`` as `Tumbling` and `ZonedTumbling` do.
    """

    size: timedelta
    emit_partial: bool = False
    offset: timedelta = timedelta(0)
    time_zone: str | None = None

    def __post_init__(self) -> None:
        check_timedelta("size", self.size)
        check_timedelta("offset", self.offset)
        if self.size <= timedelta(0):
            raise ValueError(f"size is {self.size}; expected more than zero")
        self.windows().assigner()

    def windows(self) -> TumblingWindows:
        """The same in nanoseconds."""
        return TumblingWindows(timedelta_to_ns(self.size), timedelta_to_ns(self.offset), self.time_zone)


@dataclass(frozen=True, slots=True)
class HoppingWindowSpec:
    """A window of ``size`` every ``hop``; an item is in each one that contains it. Raises ``TypeError`` where a
    duration is no timedelta, ``ValueError`` as `Hopping` does."""

    size: timedelta
    hop: timedelta
    emit_partial: bool = False
    offset: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        for name in ("size", "hop", "offset"):
            check_timedelta(name, getattr(self, name))
        self.windows().assigner()

    def windows(self) -> HoppingWindows:
        """The same in nanoseconds."""
        return HoppingWindows(timedelta_to_ns(self.size), timedelta_to_ns(self.hop), timedelta_to_ns(self.offset))


@dataclass(frozen=True, slots=True)
class SessionWindowSpec:
    """Windows that last as long as items come within ``gap`` of one another. Raises ``TypeError`` where the gap is no
    timedelta, ``ValueError`` where it is not positive."""

    gap: timedelta
    emit_partial: bool = False

    def __post_init__(self) -> None:
        check_timedelta("gap", self.gap)
        self.windows().assigner()

    def windows(self) -> SessionWindows:
        """The same in nanoseconds."""
        return SessionWindows(timedelta_to_ns(self.gap))


@dataclass(frozen=True, slots=True)
class CalendarWindowSpec:
    """An exchange's trading sessions, by a name of the package ``exchange_calendars`` (extra ``calendars``).

    ``session``: ``regular``, open to close, or ``full``, close to close. ``close_grace`` moves every close. Raises
    ``TypeError`` where that is no timedelta, ``ValueError`` and `ConfigError` as `ExchangeSessions` does.
    """

    calendar: str
    session: CalendarSession = "regular"
    close_grace: timedelta = timedelta(0)
    emit_partial: bool = False

    def __post_init__(self) -> None:
        check_timedelta("close_grace", self.close_grace)
        self.windows().assigner()

    def windows(self) -> CalendarWindows:
        """The same in nanoseconds."""
        return CalendarWindows(self.calendar, self.session, timedelta_to_ns(self.close_grace))


WindowSpec = TumblingWindowSpec | HoppingWindowSpec | SessionWindowSpec | CalendarWindowSpec
"""The windows that `workers.window_event_time` makes."""
