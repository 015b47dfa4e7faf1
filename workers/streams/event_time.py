"""What all windows by event time share: the time of an item, the engine's rules, and what becomes of late items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from workers.core.watermark import WatermarkPolicy
from workers.core.windows.window import Lateness, WindowRules
from workers.streams.calls import value_of
from workers.streams.specs import WindowSpec
from workers.times import (
    MAX_EVENT_TIME_NS,
    check_timedelta,
    datetime_to_ns,
    format_duration,
    format_instant,
    timedelta_to_ns,
)

__all__ = ["LateItems", "event_time_ns", "window_rules"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


def window_rules(
    spec: WindowSpec,
    policy: WatermarkPolicy,
    *,
    idle_after: timedelta | None = None,
    key_ttl: timedelta | None = None,
) -> WindowRules:
    """The engine's rules. Raises ``TypeError`` and ``ValueError`` for durations that are none or don't fit together."""
    assigner = spec.windows().assigner()
    for name, value in (("idle_after", idle_after), ("key_ttl", key_ttl)):
        if value is not None:
            check_timedelta(name, value)
    if idle_after is not None and idle_after < timedelta(0):
        raise ValueError(f"idle_after is {idle_after}; expected 0 or more")
    least_ns = assigner.longest_ns + policy.lag_ns + policy.lateness_ns
    if key_ttl is not None and timedelta_to_ns(key_ttl) < least_ns:
        raise ValueError(
            f"key_ttl is {key_ttl}; expected at least window + lag + allowed lateness = {format_duration(least_ns)}: "
            "a key that is no further behind may still have open windows"
        )
    return WindowRules(
        assigner,
        policy.lag_ns,
        policy.lateness_ns,
        idle_after_ns=None if idle_after is None else timedelta_to_ns(idle_after),
        key_ttl_ns=None if key_ttl is None else timedelta_to_ns(key_ttl),
    )


def event_time_ns(get_event_time: Callable[[T], datetime], item: T, name: str = "get_event_time") -> int:
    """The event time of an item; ``name`` is what the user calls the function, for errors."""
    found = get_event_time(item)
    if not isinstance(found, datetime):
        raise TypeError(f"{name} returned {found!r} ({type(found).__name__}); expected a datetime")
    ts_ns = datetime_to_ns(found)
    if not -MAX_EVENT_TIME_NS <= ts_ns <= MAX_EVENT_TIME_NS:
        raise ValueError(f"{name} returned {found}, which does not fit 64-bit nanoseconds since 1970")
    return ts_ns


class LateItems(Generic[T]):
    """Counts the items that join no window, and gives them to ``on_late`` (plain or async); without one the first is
    logged as a warning."""

    def __init__(self, on_late: Callable[[T, Lateness], object] | None) -> None:
        self._on_late = on_late
        self.count = 0

    async def take(self, item: T, key: Hashable, ts_ns: int, lateness: Lateness) -> None:
        """One more. Raises what ``on_late`` does."""
        self.count += 1
        if self._on_late is not None:
            await value_of(self._on_late(item, lateness))
        elif self.count == 1:
            _warn(key, ts_ns, lateness)


def _warn(key: Hashable, ts_ns: int, lateness: Lateness) -> None:
    if lateness.reason == "outside_session":
        _log.warning(
            "an item with key %r and event time %s is outside of all sessions; pass on_late to have such items, they "
            "are only counted from here on",
            key,
            format_instant(ts_ns),
        )
        return
    _log.warning(
        "an item with key %r and event time %s is too late for its window (watermark %s, %s below the threshold); "
        "pass on_late to have such items, they are only counted from here on",
        key,
        format_instant(ts_ns),
        format_instant(lateness.watermark_ns),
        format_duration(lateness.late_by_ns),
    )
