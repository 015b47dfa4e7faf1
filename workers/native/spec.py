"""What native code is told of a lane's spec."""

from __future__ import annotations

from dataclasses import dataclass

from workers.core.lane import Input
from workers.core.spec import LaneSpec
from workers.core.windows.assign import ExchangeSessions
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.core.windows.window import WindowRules
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS

__all__ = ["NativeSpec", "native_spec"]

DAY_NS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class NativeSpec:
    """The attributes that ``_native.Lane`` reads: names as there, times and durations in nanoseconds."""

    topic: str
    partition: int
    partitions: int
    fields: tuple[str, str, str, str]
    unit_ns: int
    min_time_ns: int
    max_time_ns: int
    max_future_skew_ns: int
    lag_ns: int
    lateness_ns: int
    idle_after_ns: int
    key_ttl_ns: int | None
    is_final: bool
    by_partition: bool
    emit_partial: bool
    folds: bool
    keeps: bool
    shows: bool
    children: bool
    kind: str
    messages: tuple[str, list[str], str] | None = None
    longest_ns: int = 0
    fill_gaps_ns: int = 0
    name_unit_ns: int = 1
    size_ns: int = 0
    hop_ns: int = 0
    offset_ns: int = 0
    margin_ns: int = 0
    sessions: tuple[list[int], list[int]] = ([], [])


def native_spec(spec: LaneSpec, rules: WindowRules, source: Input) -> NativeSpec:
    """What native code is told of ``spec``, which `workers.native.choose.supports` must have said yes to."""
    form, corrections = spec.tick, spec.corrections
    messages = None
    if corrections is not None:
        messages = (corrections.field, [*corrections.cancel, *corrections.correct], corrections.id)
    children = spec.format == "frames"
    shows = spec.payload != "ohlcv" and not children
    return NativeSpec(
        topic=source.topic,
        partition=source.partition,
        partitions=source.partitions,
        fields=(form.symbol, form.ts, form.price, form.size),
        unit_ns=form.unit_ns,
        min_time_ns=form.min_time_ns,
        max_time_ns=MAX_EVENT_TIME_NS,
        max_future_skew_ns=form.max_future_skew_ns,
        lag_ns=rules.lag_ns,
        lateness_ns=spec.lateness_ns,
        idle_after_ns=spec.idle_after_ns,
        key_ttl_ns=spec.key_ttl_ns,
        is_final=spec.emit == "final",
        by_partition=spec.scope == "partition",
        emit_partial=spec.emit_partial,
        folds=spec.payload != "items" or children,
        keeps=shows or messages is not None,
        shows=shows,
        children=children,
        messages=messages,
        **_of_windows(spec, rules),  # type: ignore[arg-type]  # each name has its type above
    )


def _of_windows(spec: LaneSpec, rules: WindowRules) -> dict[str, object]:
    window = spec.window
    match window:
        case TumblingWindows():
            zoned = window.time_zone is not None
            longest_ns = rules.assigner.longest_ns
            return {
                "kind": "zoned" if zoned else "tumbling",
                "size_ns": window.size_ns,
                "offset_ns": window.offset_ns,
                "fill_gaps_ns": window.fill_gaps_ns,
                "longest_ns": longest_ns,
                "margin_ns": window.fill_gaps_ns + 2 * longest_ns + 3 * DAY_NS,
            }
        case HoppingWindows():
            return {
                "kind": "hopping",
                "size_ns": window.size_ns,
                "hop_ns": window.hop_ns,
                "offset_ns": window.offset_ns,
            }
        case SessionWindows():
            return {"kind": "session", "size_ns": window.gap_ns, "name_unit_ns": NS_PER_MS}
        case CalendarWindows():
            assigner = rules.assigner
            assert isinstance(assigner, ExchangeSessions)
            starts, ends = zip(*assigner.between(*assigner.known_ns), strict=True)
            return {"kind": "calendar", "sessions": (list(starts), list(ends))}
    raise AssertionError(f"windows of the kind {window.kind} are not native")
