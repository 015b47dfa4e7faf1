"""A lane that is watched: the lane itself, which notes what came of each record."""

from __future__ import annotations

from workers.core.effects import Effects
from workers.core.formats.corrections import Correction
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows.corrections import Changed, NotFound
from workers.core.windows.window import LONG_AGO

__all__ = ["WatchedLane"]


class WatchedLane(Lane):
    """A lane that notes which ticks reached the windows, which of those were late or had come before, and what became
    of corrections."""

    def __init__(self, spec: LaneSpec, source: Input) -> None:
        super().__init__(spec, source)
        self.decode = self._decode
        self.placed: list[tuple[Tick, OutRecord | None, bool]] = []
        self.corrections: list[tuple[Correction, Changed | NotFound]] = []

    def watermark_ns(self, symbol: str) -> int | None:
        """The watermark that judges the symbol's next tick; None where no clock is known."""
        found = self._engine.watermark_ns(symbol)
        return found if found is not None and found > LONG_AGO else None

    def has_clock(self, symbol: str) -> bool:
        """Whether the symbol has windows, and a clock that one of them holds."""
        return self._engine.has_key(symbol) and self.watermark_ns(symbol) is not None

    def is_held_for_its_time(self, symbol: str, offset: int) -> bool:
        """Whether ``max_jump`` holds the tick."""
        return self._quarantine is not None and self._quarantine.holds(symbol, offset)

    def spans(self, symbol: str) -> list[tuple[int, int]]:
        """Start and end of the symbol's windows."""
        return [(window.start_ns, window.end_ns) for window in self._engine.windows_of(symbol)]

    def place(self, tick: Tick, effects: Effects) -> None:
        late, repeated = len(effects.late), self.counts.deduplicated
        super().place(tick, effects)
        record = effects.late[-1] if len(effects.late) > late else None
        self.placed.append((tick, record, self.counts.deduplicated > repeated))

    def correct(self, correction: Correction, effects: Effects) -> Changed | NotFound:
        outcome = super().correct(correction, effects)
        self.corrections.append((correction, outcome))
        return outcome
