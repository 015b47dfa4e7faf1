"""Time as this package holds it: signed 64-bit integer nanoseconds since the epoch, UTC.

Everything that turns something else into nanoseconds, or back, is here. No float is ever used on the way: a float
holds today's epoch nanoseconds only to about 256 ns, enough to move a tick over a window's edge.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

__all__ = [
    "MAX_EVENT_TIME_NS",
    "NS_PER_MS",
    "NS_PER_SECOND",
    "UNIT_NS",
    "TimestampUnit",
    "check_timedelta",
    "datetime_from_ns",
    "datetime_to_ns",
    "describe_duration",
    "format_duration",
    "format_instant",
    "format_time",
    "parse_duration",
    "parse_instant",
    "parse_rfc3339",
    "timedelta_to_ns",
]

TimestampUnit = Literal["s", "ms", "us", "ns"]

NS_PER_MS: Final = 1_000_000
NS_PER_SECOND: Final = 1_000_000_000
UNIT_NS: Final[dict[str, int]] = {"s": NS_PER_SECOND, "ms": NS_PER_MS, "us": 1_000, "ns": 1}

MAX_EVENT_TIME_NS: Final = 2**63 - 1 - 2 * 366 * 86_400 * NS_PER_SECOND
"""Event times beyond ± this are out of range: two years short of what 64 bits hold, so that ``end + lag + idle_after``
and the like, whose durations are limited to a year, can't overflow in native code."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION_NS: Final[dict[str, int]] = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": NS_PER_MS,
    "s": NS_PER_SECOND,
    "m": 60 * NS_PER_SECOND,
    "h": 3_600 * NS_PER_SECOND,
    "d": 86_400 * NS_PER_SECOND,
}
_DURATION_PART = re.compile(r"(\d+)(?:\.(\d+))?\s*(ns|us|µs|ms|s|m|h|d)")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration written like ``5s``, ``200ms``, ``1.5h`` or ``1h30m``; ``0`` needs no unit.

    Raises ``ValueError`` for anything else, a bare number included: nobody can know its unit.
    """
    stripped = text.strip()
    if stripped == "0":
        return 0
    total, position = 0, 0
    while position < len(stripped):
        part = _DURATION_PART.match(stripped, position)
        if part is None:
            break
        whole, fraction, unit = part.groups()
        scale = _DURATION_NS[unit]
        total += int(whole) * scale
        if fraction:
            scaled, rest = divmod(int(fraction) * scale, 10 ** len(fraction))
            if rest:
                raise ValueError(f"{text!r} is finer than a nanosecond")
            total += scaled
        position = part.end()
    if not stripped or position < len(stripped):
        raise ValueError(f"{text!r} is not a duration; write a number and a unit (ns, us, ms, s, m, h, d), like 5s")
    return total


def format_duration(duration_ns: int) -> str:
    """The shortest exact writing of a duration that ``parse_duration`` reads back: ``5s``, ``200ms``, ``0s``."""
    if duration_ns < 0:
        return "-" + format_duration(-duration_ns)
    for unit in ("d", "h", "m", "s", "ms", "us"):
        if duration_ns and duration_ns % _DURATION_NS[unit] == 0:
            return f"{duration_ns // _DURATION_NS[unit]}{unit}"
    return f"{duration_ns}ns" if duration_ns else "0s"


def describe_duration(duration_ns: int) -> str:
    """A duration for people to read: exact below a minute (``1700ms``, ``1.046237s``), else by its two greatest units,
    rounded down (``2h 5m``, ``20,483d 14h``)."""
    if duration_ns < 0:
        return "-" + describe_duration(-duration_ns)
    if duration_ns < _DURATION_NS["m"]:
        if duration_ns % NS_PER_MS == 0 or duration_ns < NS_PER_MS:
            return format_duration(duration_ns)
        whole, fraction = divmod(duration_ns, NS_PER_SECOND)
        return f"{whole}.{fraction:09d}".rstrip("0") + "s"
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        number, duration_ns = divmod(duration_ns, _DURATION_NS[unit])
        if parts or number:
            parts.append(f"{number:,}{unit}" if number else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts))


def check_timedelta(name: str, value: object) -> None:
    """Raises ``TypeError`` where the value is no timedelta: of a bare number nobody can know the unit."""
    if not isinstance(value, timedelta):
        shown = repr(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        hint = f"timedelta(seconds={shown})" if number else "timedelta(seconds=5)"
        raise TypeError(f"{name} is {shown[:64]} ({type(value).__name__}); expected a timedelta, like {hint}")


def timedelta_to_ns(value: timedelta) -> int:
    """Exact nanoseconds of a timedelta (whose own resolution is a microsecond)."""
    return (value.days * 86_400 + value.seconds) * NS_PER_SECOND + value.microseconds * 1_000


def datetime_to_ns(value: datetime) -> int:
    """Epoch nanoseconds of a datetime; a naive one is taken as UTC."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return timedelta_to_ns(aware - _EPOCH)


def datetime_from_ns(time_ns: int) -> datetime:
    """The aware UTC datetime at or just before ``time_ns`` (datetimes stop at microseconds)."""
    return _EPOCH + timedelta(microseconds=time_ns // 1_000)


def format_instant(time_ns: int) -> str:
    """RFC 3339 in UTC, with as many of 0, 3, 6 or 9 fractional digits as the time needs."""
    seconds, fraction = divmod(time_ns, NS_PER_SECOND)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    if fraction:
        digits = f"{fraction:09d}"
        while digits.endswith("000"):
            digits = digits[:-3]
        text += "." + digits
    return text + "Z"


def format_time(time_ns: int) -> str:
    """`format_instant`, without the time of day where that is midnight: what `parse_instant` reads back."""
    return format_instant(time_ns).removesuffix("T00:00:00Z")


def parse_instant(text: str) -> int:
    """Epoch nanoseconds of an RFC 3339 timestamp, or of a date, whose midnight in UTC is meant.

    Raises ``ValueError`` for anything else.
    """
    return parse_rfc3339(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)


def parse_rfc3339(text: str) -> int:
    """Epoch nanoseconds of an RFC 3339 timestamp; digits beyond the ninth are cut off.

    A leap second (``:60``) is the first instant of the next minute, as Unix time counts it. Raises ``ValueError``
    where the text is no RFC 3339 timestamp, one without an offset included: its time zone would be a guess.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:64]!r} is not an RFC 3339 timestamp with an offset, like 2026-01-31T13:21:25.5Z")
    year, month, day, hour, minute, second, fraction, zulu, sign, off_hour, off_minute = match.groups()
    leap = second == "60"
    moment = datetime(int(year), int(month), int(day), int(hour), int(minute), 59 if leap else int(second), tzinfo=UTC)
    seconds = (moment - _EPOCH) // timedelta(seconds=1) + leap
    if not zulu:
        if int(off_hour) > 23 or int(off_minute) > 59:
            raise ValueError(f"{text[:64]!r} has an offset beyond 23:59")
        offset = int(off_hour) * 3_600 + int(off_minute) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * NS_PER_SECOND + int((fraction or "")[:9].ljust(9, "0"))
