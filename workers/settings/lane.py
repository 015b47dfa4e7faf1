"""What the settings ask of a lane."""

from __future__ import annotations

from workers.core.spec import LaneSpec
from workers.core.ticks import TickFormat
from workers.core.windows.kinds import KINDS
from workers.settings.model import Settings
from workers.settings.ticks import TickSettings

__all__ = ["lane_spec", "tick_format"]


def tick_format(tick: TickSettings) -> TickFormat:
    """How the settings say that a tick is written."""
    return TickFormat(
        tick.symbol,
        tick.ts,
        tick.price,
        tick.size,
        tick.timestamp_unit,
        tick.max_future_skew,
        tick.on_misrouted,
        tick.min_time,
    )


def lane_spec(settings: Settings) -> LaneSpec:
    """What the settings ask of a lane."""
    tick, window = settings.tick, settings.window
    return LaneSpec(
        tick=tick_format(tick),
        window=KINDS[window.kind].of(window),
        lag_ns=window.lag,
        lateness_ns=window.allowed_lateness,
        idle_after_ns=window.idle_after,
        key_ttl_ns=window.key_ttl,
        emit=window.emit,
        emit_partial=window.emit_partial,
        payload=window.payload,
        scope=window.watermark_scope,
        aggregation=window.aggregation,
        pipeline=tuple(operator.spec(window) for operator in settings.pipeline),
        format=tick.format,
        corrections=settings.corrections.rules(),
        max_jump_ns=tick.max_jump,
    )
