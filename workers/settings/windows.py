"""The section ``[window]``: which windows there are, when they close, and what comes out."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from workers.core.windows.assign import check_time_zone
from workers.settings.section import Section
from workers.settings.values import MAX_DURATION_NS, PARSE_DURATION_OR_NEVER, PLACE, DurationNs, allowed
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["WindowSettings"]


def _aggregation(value: object) -> object:
    """``ohlcv`` or the place of a callable; it is imported where it is used, since importing runs the user's code."""
    if isinstance(value, str) and value != "ohlcv" and not PLACE.fullmatch(value):
        raise ValueError("neither ohlcv nor of the form package.module:name")
    return value


def _time_zone(value: object) -> object:
    """The name of a time zone; nothing where it is empty."""
    if isinstance(value, str) and value:
        check_time_zone(value)
    return value or None


_CALENDAR: Final = re.compile(r"[A-Za-z0-9_/&.-]{1,40}")


def _calendar(value: object) -> object:
    """The name of a calendar; whether there is one of that name is known where it is loaded, which takes a second."""
    if isinstance(value, str) and value and not _CALENDAR.fullmatch(value):
        raise ValueError("not a name that a calendar can have")
    return value or None


class WindowSettings(Section):
    """Which windows there are, when they close, and what comes out. Durations are integer nanoseconds."""

    kind: Literal["tumbling", "hopping", "session", "calendar"] = Field(
        default="tumbling",
        description="tumbling: side by side; hopping: one every `hop`, overlapping; session: as long as ticks come "
        "within `gap` of one another; calendar: an exchange's trading sessions.",
    )
    size: DurationNs = Field(
        default=5 * NS_PER_SECOND,
        ge=NS_PER_MS,
        description="tumbling, hopping: length of a window, a whole number of milliseconds; windows start at "
        "multiples of it (hopping: of `hop`).",
    )
    hop: DurationNs = Field(
        default=0, description="hopping: time from the start of a window to the start of the next, at most `size`."
    )
    offset: DurationNs = Field(
        default=0, description="tumbling, hopping: shifts all windows, by less than `size` (hopping: `hop`)."
    )
    time_zone: Annotated[str | None, BeforeValidator(_time_zone)] = Field(
        default=None,
        description="tumbling: windows start when the wall clock of this zone shows a multiple of `size` since "
        "midnight, daylight saving time included; UTC if not set.",
        json_schema_extra=allowed("an IANA name, like America/New_York"),
    )
    gap: DurationNs = Field(
        default=0, description="session: the silence that ends a session; ticks closer than this share a window."
    )
    calendar: Annotated[str | None, BeforeValidator(_calendar)] = Field(
        default=None,
        description="calendar: the exchange, as the package `exchange_calendars` names it (extra `calendars`).",
        json_schema_extra=allowed("a name of exchange_calendars, like XNYS"),
    )
    session: Literal["regular", "full"] = Field(
        default="regular",
        description="calendar: regular: from open to close, ticks outside are late with reason outside_session; "
        "full: from close to close, so that every tick belongs to a trading day.",
    )
    close_grace: DurationNs = Field(
        default=0,
        description="calendar: how long after the close a session still takes ticks, for a closing auction.",
    )
    fill_gaps: DurationNs = Field(
        default=0,
        description="tumbling: fill gaps between bars, up to this long, with empty bars at the last close; 0s: off.",
    )
    lag: DurationNs = Field(
        default=2 * NS_PER_SECOND,
        description="How far the watermark trails the greatest event time: the disorder you expect. Always 0 with "
        "`tick.format` frames, whose application has waited already.",
    )
    allowed_lateness: DurationNs = Field(
        default=0, description="How long a closed window still takes ticks; each one emits it again, revised."
    )
    idle_after: DurationNs = Field(
        default=NS_PER_SECOND,
        description="Partition time past `end + lag` at which a quiet key's window is emitted as provisional.",
    )
    key_ttl: Annotated[int | None, PARSE_DURATION_OR_NEVER] = Field(
        default=None,
        ge=0,
        le=MAX_DURATION_NS,
        description="never: keep every key, a few hundred bytes each. A duration: finish and forget a key this far "
        "(event time) behind its partition, which frees its memory and makes ticks that old late, whichever symbol "
        "advanced the partition.",
        json_schema_extra=allowed("never, or duration 0s to 366d"),
    )
    emit: Literal["eager", "final"] = Field(
        default="eager",
        description="eager: a frame on close and on each revision; final: one frame, once it can't change any more.",
    )
    emit_partial: bool = Field(default=False, description="Also emit open windows that changed, as provisional frames.")
    flush_interval: DurationNs = Field(
        default=250 * NS_PER_MS, ge=10 * NS_PER_MS, description="How often `emit_partial` looks for changed windows."
    )
    payload: Literal["ohlcv", "items", "both"] = Field(
        default="ohlcv", description="What a frame carries: the aggregate, the ticks themselves, or both."
    )
    watermark_scope: Literal["key", "partition"] = Field(
        default="key", description="Whose event time makes a tick late: its own key's, or its whole partition's."
    )
    aggregation: Annotated[str, BeforeValidator(_aggregation)] = Field(
        default="ohlcv",
        description="What to compute over a window; name your own by its import path.",
        json_schema_extra=allowed("ohlcv, or package.module:name"),
    )
