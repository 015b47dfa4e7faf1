"""What native code is told of a time zone: its offsets, in stretches, as times are met."""

from __future__ import annotations

from typing import Final

from workers import _native
from workers.core.windows.assign import Assigner, ZonedTumbling

__all__ = ["Zone"]

STRETCH_NS: Final = 256 * 86_400_000_000_000  # some milliseconds' work
LATEST_NS: Final = 2**63 - 1  # of 64 bits; no window of a time that ticks may have is near
EARLIEST_NS: Final = -(2**63)


class Zone:
    """Tells a native lane the offsets of its zone, of each stretch once."""

    def __init__(self, assigner: ZonedTumbling, lane: _native.Lane, margin_ns: int) -> None:
        self._assigner = assigner
        self._lane = lane
        self._margin_ns = margin_ns
        self._told: set[int] = set()

    def reach(self, ts_ns: int) -> None:
        """Have windows be found for a time."""
        first, last = (ts_ns - self._margin_ns) // STRETCH_NS, (ts_ns + self._margin_ns) // STRETCH_NS
        for number in range(first, last + 1):
            if number not in self._told:
                self._told.add(number)
                begin_ns, end_ns = max(number * STRETCH_NS, EARLIEST_NS), min((number + 1) * STRETCH_NS, LATEST_NS)
                if begin_ns < end_ns:
                    self._lane.learn(list(self._assigner.offsets(begin_ns, end_ns)))

    @classmethod
    def of(cls, assigner: Assigner, lane: _native.Lane, margin_ns: int) -> Zone | None:
        """The zone of windows that have one."""
        return cls(assigner, lane, margin_ns) if isinstance(assigner, ZonedTumbling) else None
