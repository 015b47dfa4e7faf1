"""Event-time clocks and the lateness rule.

A clock is the greatest event time seen, its watermark is that less ``lag``. A tick is observed first and judged after:

    max_ts    = max(max_ts, ts)
    watermark = max_ts - lag
    late      = ts <= watermark - allowed_lateness

    lag 2 s, allowed lateness 1 s, after a tick at t = 6:

        ──────┬──────┬──────┬──────┬──▶ event time
              3      4             6
          threshold  watermark     max_ts
        ◀─late┘└─accepted──────────────

Observing can't make the observed tick late: where it raises the clock it is ``lag`` ahead of the watermark, and where
it doesn't nothing moved. So a tick never closes a window that it joins.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from workers.times import check_timedelta, datetime_from_ns, datetime_to_ns, timedelta_to_ns

__all__ = ["EventTimeClock", "WatermarkPolicy", "is_late"]

T = TypeVar("T")
_ZERO = timedelta(0)


def is_late(ts_ns: int, watermark_ns: int, lateness_ns: int) -> bool:
    """The lateness rule; at the threshold itself a tick is late."""
    return ts_ns <= watermark_ns - lateness_ns


@dataclass(frozen=True, slots=True)
class WatermarkPolicy:
    """How far the watermark trails the greatest event time, and how much later a tick may still join.

    Raises ``TypeError`` where either is no timedelta, ``ValueError`` where it is negative.
    """

    lag: timedelta = timedelta(seconds=2)
    allowed_lateness: timedelta = _ZERO

    def __post_init__(self) -> None:
        check_timedelta("lag", self.lag)
        check_timedelta("allowed_lateness", self.allowed_lateness)
        if self.lag < _ZERO or self.allowed_lateness < _ZERO:
            raise ValueError(f"lag is {self.lag} and allowed_lateness {self.allowed_lateness}; neither may be negative")

    @property
    def lag_ns(self) -> int:
        """``lag`` in nanoseconds."""
        return timedelta_to_ns(self.lag)

    @property
    def lateness_ns(self) -> int:
        """``allowed_lateness`` in nanoseconds."""
        return timedelta_to_ns(self.allowed_lateness)


class EventTimeClock(Generic[T]):
    """Watermarks for a stream of items: one clock for all and, with ``get_key``, one per key, which judges its items.

    ``get_event_time`` returns an item's event time (naive datetimes are UTC).
    """

    def __init__(
        self,
        get_event_time: Callable[[T], datetime],
        policy: WatermarkPolicy,
        get_key: Callable[[T], Hashable] | None = None,
    ) -> None:
        self._get_event_time = get_event_time
        self._get_key = get_key
        self._lag_ns = policy.lag_ns
        self._lateness_ns = policy.lateness_ns
        self._max_ns: dict[Hashable, int] = {}
        self._greatest_ns: int | None = None

    def observe(self, item: T) -> None:
        """Advance the item's clocks, its key's and that of all, to its event time; a clock never goes back."""
        key = self._get_key(item) if self._get_key is not None else None
        ts_ns = datetime_to_ns(self._get_event_time(item))
        if self._greatest_ns is None or ts_ns > self._greatest_ns:
            self._greatest_ns = ts_ns
        max_ns = self._max_ns.get(key)
        if max_ns is None or ts_ns > max_ns:
            self._max_ns[key] = ts_ns

    def watermark(self, key: Hashable = None) -> datetime | None:
        """The watermark of ``key``, aware UTC; None before anything of it was observed.

        Without a key it is that of all items: the greatest event time of any, less the lag.
        """
        max_ns = self._greatest_ns if key is None else self._max_ns.get(key)
        return None if max_ns is None else datetime_from_ns(max_ns - self._lag_ns)

    def is_late(self, item: T, key: Hashable = None) -> bool:
        """Whether the item is too late, by its own key's clock or, where given, by that of ``key``.

        Nothing is late before anything was observed.
        """
        if key is None and self._get_key is not None:
            key = self._get_key(item)
        max_ns = self._max_ns.get(key)
        if max_ns is None:
            return False
        return is_late(datetime_to_ns(self._get_event_time(item)), max_ns - self._lag_ns, self._lateness_ns)
