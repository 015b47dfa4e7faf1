"""Which windows an event time belongs to. Pure arithmetic on integer nanoseconds; windows are ``[start, end)``.

*Tumbling*: side by side, ``start = floor((ts - offset) / size) * size + offset`` from the epoch.

*Tumbling in a time zone*: a window starts whenever the wall clock there shows a boundary. Boundaries are midnight +
offset + k * size; the size divides a day, or is whole days, which are counted from 1970-01-01. Where clocks are changed

- a boundary that is skipped is the moment of the skip, so no window is lost or empty,
- a boundary that is shown twice starts a window both times; where windows are whole days, only the first time.

*Hopping*: one window every ``hop``, each ``size`` long; a tick is in every one that contains it.

*Exchange sessions*: ``regular``, from the open of a session to its close; a tick between sessions belongs to none.
``full``, from close to close, so that a tick belongs to the trading day that it counts for. Lunch breaks are part of
their session. ``close_grace`` moves every close, though never past the next open. What holidays, early closes and
daylight saving time make of a session is the calendar's knowledge. Before its first session and after the last one it
knows, a time belongs to none.

*Session windows* have no edges of their own: here a tick's window is what it would be if the tick stayed alone,
``[ts, ts + gap)``; the engine joins them.

Time zones are those of the package ``tzdata``, not the operating system's: workers of one group must agree, and do
where they have the same packages.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Final, Literal, Protocol
from zoneinfo import ZoneInfo

from workers.errors import ConfigError
from workers.times import NS_PER_SECOND, datetime_from_ns, format_duration

__all__ = [
    "Assigner",
    "CalendarSession",
    "ExchangeSessions",
    "Hopping",
    "Sessions",
    "Tumbling",
    "ZonedTumbling",
    "check_time_zone",
    "make_tumbling",
]

CalendarSession = Literal["regular", "full"]

DAY_NS: Final = 86_400 * NS_PER_SECOND
MOST_OVERLAPPING: Final = 1_000
"""Hopping windows that one tick may be in: each costs a frame, and state."""


class Assigner(Protocol):
    """Says which windows an event time belongs to, as half-open ``[start, end)`` in nanoseconds."""

    @property
    def longest_ns(self) -> int:
        """No window is longer than this; session windows, which ticks make longer, apart."""
        ...

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        """The windows that contain ``ts_ns``, by start; none where it is outside of all."""
        ...

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        """The windows that contain a time in ``[first_ns, last_ns]``, by start. Of session windows, which are what
        ticks make of them, none."""
        ...


# -- tumbling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tumbling:
    """Side-by-side windows of ``size_ns`` from the epoch, moved by ``offset_ns``. Raises ``ValueError`` for a size that
    is not positive or an offset that is not in ``[0, size)``."""

    size_ns: int
    offset_ns: int = 0

    def __post_init__(self) -> None:
        _check_size(self.size_ns)
        _check_offset(self.offset_ns, self.size_ns, "size")

    @property
    def longest_ns(self) -> int:
        return self.size_ns

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns = (ts_ns - self.offset_ns) // self.size_ns * self.size_ns + self.offset_ns
        return ((start_ns, start_ns + self.size_ns),)

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        return _side_by_side(self, first_ns, last_ns)


class ZonedTumbling:
    """Tumbling windows by the wall clock of a time zone; the module's docstring has the rules.

    Raises ``ValueError`` where the zone is unknown, the size neither divides a day nor is whole days, or the offset is
    not in ``[0, size)``. Not to be shared by threads: the window that was asked for last is remembered.
    """

    def __init__(self, size_ns: int, time_zone: str, offset_ns: int = 0) -> None:
        _check_size(size_ns)
        _check_offset(offset_ns, size_ns, "size")
        if DAY_NS % size_ns and size_ns % DAY_NS:
            raise ValueError(
                f"size is {format_duration(size_ns)}; in a time zone it must divide a day, or be whole days, "
                "for boundaries to be at the same times of each day"
            )
        self.size_ns, self.time_zone, self.offset_ns = size_ns, time_zone, offset_ns
        self._pieces = _Pieces(time_zone)
        self._find = self._of_days if size_ns % DAY_NS == 0 else self._of_hours
        self._last: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def longest_ns(self) -> int:
        # Clocks that are put back show boundaries again, a day at most when the date line moves.
        return min(2 * self.size_ns, self.size_ns + DAY_NS) if self.size_ns < DAY_NS else self.size_ns + DAY_NS

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns, end_ns = self._last[0]
        if not start_ns <= ts_ns < end_ns:
            self._last = (self._find(ts_ns),)
        return self._last

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        return _side_by_side(self, first_ns, last_ns)

    def offsets(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int, int]]:
        """The zone's time line from ``first_ns`` to ``last_ns``, in pieces side by side: begin, end, offset."""
        for begin_ns, end_ns, offset_ns in self._pieces.onward(first_ns):
            yield max(begin_ns, first_ns), min(end_ns, last_ns), offset_ns
            if end_ns >= last_ns:
                return

    def _of_days(self, ts_ns: int) -> tuple[int, int]:
        """Boundaries are the first instants at which the wall clock has reached them."""
        wall_ns = self._floor(ts_ns + self._pieces.at(ts_ns)[2])
        start_ns, end_ns = self._reached(wall_ns), self._reached(wall_ns + self.size_ns)
        while end_ns <= ts_ns:  # the clock had passed the boundary, and was then put back before it
            wall_ns += self.size_ns
            start_ns, end_ns = end_ns, self._reached(wall_ns + self.size_ns)
        return start_ns, end_ns

    def _reached(self, wall_ns: int) -> int:
        """The first instant at which the wall clock shows ``wall_ns`` or later."""
        # No clock is a day ahead of UTC, so it can't have been earlier than a day before.
        for begin_ns, end_ns, offset_ns in self._pieces.onward(wall_ns - DAY_NS):
            if end_ns + offset_ns > wall_ns:
                return max(begin_ns, wall_ns - offset_ns)
        raise AssertionError("pieces have no end")

    def _of_hours(self, ts_ns: int) -> tuple[int, int]:
        """Boundaries are all instants at which the wall clock shows one, or skips one."""
        return self._before(ts_ns), self._after(ts_ns)

    def _before(self, ts_ns: int) -> int:
        """The last boundary at or before ``ts_ns``."""
        begin_ns, _, offset_ns = self._pieces.at(ts_ns)
        while True:
            found_ns = self._floor(ts_ns + offset_ns) - offset_ns
            if found_ns >= begin_ns:
                return found_ns
            ts_ns = begin_ns - 1
            before_ns, _, earlier_offset_ns = self._pieces.at(ts_ns)
            if self._skips(begin_ns, earlier_offset_ns, offset_ns):
                return begin_ns
            begin_ns, offset_ns = before_ns, earlier_offset_ns

    def _after(self, ts_ns: int) -> int:
        """The first boundary after ``ts_ns``."""
        _, end_ns, offset_ns = self._pieces.at(ts_ns)
        found_ns = self._floor(ts_ns + offset_ns) + self.size_ns - offset_ns
        while found_ns >= end_ns:
            _, next_end_ns, next_offset_ns = self._pieces.at(end_ns)
            if self._skips(end_ns, offset_ns, next_offset_ns):
                return end_ns
            found_ns = self._floor(end_ns + next_offset_ns - 1) + self.size_ns - next_offset_ns
            end_ns, offset_ns = next_end_ns, next_offset_ns
        return found_ns

    def _skips(self, change_ns: int, from_ns: int, to_ns: int) -> bool:
        """Whether a boundary lies in what the wall clock skips when its offset changes at ``change_ns``."""
        return to_ns > from_ns and self._floor(change_ns + to_ns - 1) >= change_ns + from_ns

    def _floor(self, wall_ns: int) -> int:
        """The last boundary on an undisturbed wall clock at or before ``wall_ns``."""
        return (wall_ns - self.offset_ns) // self.size_ns * self.size_ns + self.offset_ns


class _Pieces:
    """A zone's time line as pieces ``(begin, end, offset from UTC)`` of constant offset, a day long at most.

    Kept by day, so that the zone's own arithmetic, which is that of datetimes, is asked some times a day.
    """

    _DAYS_KEPT: Final = 1_000

    def __init__(self, time_zone: str) -> None:
        self._zone = _zone(time_zone)
        self._days: dict[int, tuple[tuple[int, int, int], ...]] = {}

    def at(self, ts_ns: int) -> tuple[int, int, int]:
        """The piece that contains ``ts_ns``."""
        for piece in self._of_day(ts_ns // DAY_NS):
            if ts_ns < piece[1]:
                return piece
        raise AssertionError("the pieces of a day end with it")

    def onward(self, ts_ns: int) -> Iterator[tuple[int, int, int]]:
        """The piece that contains ``ts_ns``, and all that follow."""
        while True:
            piece = self.at(ts_ns)
            yield piece
            ts_ns = piece[1]

    def _of_day(self, day: int) -> tuple[tuple[int, int, int], ...]:
        pieces = self._days.get(day)
        if pieces is None:
            if len(self._days) >= self._DAYS_KEPT:
                self._days.clear()
            pieces = self._days[day] = tuple(self._look(day * 86_400))
        return pieces

    def _look(self, begin_s: int) -> Iterator[tuple[int, int, int]]:
        # One look at each end is enough: nowhere were clocks changed twice within a day.
        end_s, offset_s = begin_s + 86_400, self._offset_s(begin_s)
        next_offset_s = self._offset_s(end_s)
        if next_offset_s != offset_s:
            change_s = self._change(begin_s, end_s, offset_s)
            if change_s < end_s:
                yield begin_s * NS_PER_SECOND, change_s * NS_PER_SECOND, offset_s * NS_PER_SECOND
                begin_s, offset_s = change_s, next_offset_s
        yield begin_s * NS_PER_SECOND, end_s * NS_PER_SECOND, offset_s * NS_PER_SECOND

    def _change(self, low_s: int, high_s: int, offset_s: int) -> int:
        """The first second in ``(low, high]`` at which the offset is not ``offset_s`` any more."""
        while high_s - low_s > 1:
            middle_s = (low_s + high_s) // 2
            if self._offset_s(middle_s) == offset_s:
                low_s = middle_s
            else:
                high_s = middle_s
        return high_s

    def _offset_s(self, instant_s: int) -> int:
        offset = datetime_from_ns(instant_s * NS_PER_SECOND).astimezone(self._zone).utcoffset()
        assert offset is not None, "a zone has an offset at any time"
        return offset // timedelta(seconds=1)


@cache
def _zone_names() -> frozenset[str]:
    return frozenset((files("tzdata") / "zones").read_text(encoding="utf-8").split())


def check_time_zone(name: str) -> None:
    """Raises ``ValueError`` where there is no time zone of that name."""
    names = _zone_names()
    if name not in names:
        near = difflib.get_close_matches(name, sorted(names), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no time zone of that name ({name[:64]!r}){hint}")


@cache
def _zone(name: str) -> ZoneInfo:
    """The zone as the package tzdata has it, whatever the operating system has. Raises ``ValueError``."""
    check_time_zone(name)
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def _side_by_side(assigner: Assigner, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
    while first_ns <= last_ns:
        ((start_ns, end_ns),) = assigner.assign(first_ns)
        yield start_ns, end_ns
        first_ns = end_ns


def make_tumbling(size_ns: int, offset_ns: int = 0, time_zone: str | None = None) -> Tumbling | ZonedTumbling:
    """Tumbling windows, in a time zone where one is named. Raises ``ValueError`` as they do."""
    return Tumbling(size_ns, offset_ns) if time_zone is None else ZonedTumbling(size_ns, time_zone, offset_ns)


# -- hopping and session windows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hopping:
    """A window of ``size_ns`` every ``hop_ns``, counted from the epoch and moved by ``offset_ns``.

    Raises ``ValueError`` where the hop is not in ``(0, size]``, the offset not in ``[0, hop)``, or more than
    `MOST_OVERLAPPING` windows contain one time.
    """

    size_ns: int
    hop_ns: int
    offset_ns: int = 0

    def __post_init__(self) -> None:
        _check_size(self.size_ns)
        if not 0 < self.hop_ns <= self.size_ns:
            raise ValueError(
                f"hop is {format_duration(self.hop_ns)}; expected more than 0 and at most the size, "
                f"{format_duration(self.size_ns)}, or ticks between windows would be in none"
            )
        _check_offset(self.offset_ns, self.hop_ns, "hop")
        if self.size_ns > self.hop_ns * MOST_OVERLAPPING:
            raise ValueError(
                f"size {format_duration(self.size_ns)} is more than {MOST_OVERLAPPING:,} hops of "
                f"{format_duration(self.hop_ns)}: each tick would be in as many windows"
            )

    @property
    def longest_ns(self) -> int:
        return self.size_ns

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        hop_ns, size_ns = self.hop_ns, self.size_ns
        last_ns = (ts_ns - self.offset_ns) // hop_ns * hop_ns + self.offset_ns
        first_ns = last_ns - (last_ns + size_ns - 1 - ts_ns) // hop_ns * hop_ns
        return [(start_ns, start_ns + size_ns) for start_ns in range(first_ns, last_ns + 1, hop_ns)]

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        yield from (found := self.assign(first_ns))
        for start_ns in range(found[-1][0] + self.hop_ns, last_ns + 1, self.hop_ns):
            yield start_ns, start_ns + self.size_ns


@dataclass(frozen=True, slots=True)
class Sessions:
    """Session windows: what a lone tick's is. Raises ``ValueError`` where the gap is not positive."""

    gap_ns: int

    def __post_init__(self) -> None:
        if self.gap_ns <= 0:
            raise ValueError(f"gap is {format_duration(self.gap_ns)}; expected more than 0")

    @property
    def longest_ns(self) -> int:
        return self.gap_ns

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        return ((ts_ns, ts_ns + self.gap_ns),)

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        return iter(())


def _check_size(size_ns: int) -> None:
    if size_ns <= 0:
        raise ValueError(f"size is {format_duration(size_ns)}; expected more than 0")


def _check_offset(offset_ns: int, period_ns: int, period: str) -> None:
    if not 0 <= offset_ns < period_ns:
        raise ValueError(
            f"offset is {format_duration(offset_ns)}; expected 0 or more, and less than the {period}, "
            f"{format_duration(period_ns)}"
        )


# -- exchange sessions ------------------------------------------------------------------------------------------------

FIRST_DAY: Final = "1980-01-01"
LAST_DAY: Final = "2050-12-31"
"""The sessions asked of a calendar, which may know fewer. Left to itself it would give those around today, and what a
tick belongs to must not depend on when that is asked."""


class ExchangeSessions:
    """Windows that are an exchange's trading sessions; the module's docstring has the rules.

    ``calendar`` is a name of the package ``exchange_calendars``, aliases included. Raises ``ValueError`` where the
    grace is negative, `ConfigError` where the package is not installed or has no such calendar.
    """

    def __init__(self, calendar: str, session: CalendarSession = "regular", close_grace_ns: int = 0) -> None:
        if close_grace_ns < 0:
            raise ValueError(f"close_grace is {format_duration(close_grace_ns)}; expected 0 or more")
        self.calendar, self.session, self.close_grace_ns = calendar, session, close_grace_ns
        opens, closes = _sessions(calendar)
        ends = [close + close_grace_ns for close in closes]
        ends = [min(end, max(close, follower)) for end, close, follower in zip(ends, closes, opens[1:], strict=False)]
        ends.append(closes[-1] + close_grace_ns)
        # For "full" the first session has no close before it, so it is no window, only the begin of the next.
        self._starts = opens if session == "regular" else tuple(ends[:-1])
        self._ends = tuple(ends) if session == "regular" else tuple(ends[1:])
        self._longest_ns = max(end - start for start, end in zip(self._starts, self._ends, strict=True))
        self._last: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def longest_ns(self) -> int:
        return self._longest_ns

    @property
    def known_ns(self) -> tuple[int, int]:
        """Start of the first window and end of the last one; times beyond belong to none."""
        return self._starts[0], self._ends[-1]

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns, end_ns = self._last[0]
        if start_ns <= ts_ns < end_ns:
            return self._last
        number = bisect_right(self._starts, ts_ns) - 1
        if number < 0 or ts_ns >= self._ends[number]:
            return ()
        self._last = ((self._starts[number], self._ends[number]),)
        return self._last

    def between(self, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
        low, high = bisect_right(self._ends, first_ns), bisect_right(self._starts, last_ns)
        return zip(self._starts[low:high], self._ends[low:high], strict=True)


@cache
def _sessions(calendar: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Opens and closes of every session that a calendar knows between `FIRST_DAY` and `LAST_DAY`, in order."""
    try:
        from exchange_calendars import get_calendar, get_calendar_names  # not above: it needs pandas, and a second
        from exchange_calendars.errors import InvalidCalendarName
        from pandas import Timestamp
    except ImportError as error:
        raise ConfigError(
            f"window.calendar is {calendar!r}, which needs the package exchange_calendars "
            f"(pip install 'tick-workers[calendars]'): {error}"
        ) from error
    try:
        bounded = get_calendar(calendar)
        first, last = Timestamp(FIRST_DAY), Timestamp(LAST_DAY)
        made = get_calendar(
            calendar,
            start=max(first, bounded.bound_min() or first),
            end=min(last, bounded.bound_max() or last),
        )
    except InvalidCalendarName:
        near = difflib.get_close_matches(calendar.upper(), get_calendar_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"window.calendar is {calendar!r}; exchange_calendars has none of that name{hint}") from None
    except (ValueError, NotImplementedError) as error:  # seen with a pandas that the package does not know yet
        raise ConfigError(
            f"window.calendar is {calendar!r}, which exchange_calendars could not make: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error
    opens, closes = tuple(map(int, made.opens_nanos)), tuple(map(int, made.closes_nanos))
    _check_sessions(calendar, opens, closes)
    assert opens[0] == made.opens.iloc[0].value, "opens_nanos are not nanoseconds"
    return opens, closes


def _check_sessions(calendar: str, opens: Sequence[int], closes: Sequence[int]) -> None:
    """Raises `ConfigError` where sessions overlap or run backwards: a tick's window would be a matter of chance."""
    edges = [edge for session in zip(opens, closes, strict=True) for edge in session]
    for number, (one, other) in enumerate(pairwise(edges)):
        if one > other or (one == other and number % 2 == 0):
            raise ConfigError(f"the calendar {calendar!r} has sessions that overlap, around {datetime_from_ns(one)}")
    if not edges:
        raise ConfigError(f"the calendar {calendar!r} has no sessions between {FIRST_DAY} and {LAST_DAY}")
