"""The sections ``[tick]`` and ``[corrections]``: how a message is read, as a tick or as one that changes another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.core.formats.corrections import CorrectionRules
from workers.settings.section import Section
from workers.settings.values import DurationNs, InstantNs, JsonField, Names, OptionalField, allowed
from workers.times import NS_PER_SECOND, TimestampUnit

__all__ = ["CorrectionsSettings", "TickSettings"]


class TickSettings(Section):
    """How a tick is read from its JSON object; with format frames, what is read instead."""

    format: Literal["json", "frames"] = Field(
        default="json",
        description="json: ticks; frames: the frames of another application, to build larger bars from.",
    )
    symbol: JsonField = Field(default="symbol", description="JSON field of the symbol.")
    ts: JsonField = Field(default="ts", description="JSON field of the event time.")
    price: JsonField = Field(default="price", description="JSON field of the price.")
    size: JsonField = Field(default="size", description="JSON field of the traded size.")
    timestamp_unit: TimestampUnit = Field(default="ms", description="Unit of an integer event time.")
    max_future_skew: DurationNs = Field(
        default=60 * NS_PER_SECOND,
        description="A tick ahead of its record's Kafka timestamp by more than this is rejected, so that one wrong "
        "clock can't make its symbol's next ticks late.",
    )
    min_time: InstantNs = Field(
        default=631_152_000 * NS_PER_SECOND,  # 1990
        description="A tick before this is rejected. It catches seconds read as milliseconds, which look like 1970.",
        json_schema_extra=allowed("a date, or an RFC 3339 time"),
    )
    max_jump: DurationNs = Field(
        default=0,
        description="A tick further ahead than this of all earlier ones in its partition is held until its symbol's "
        "next tick; if that goes back, the held one had a wrong date and becomes a dead letter. 0s: off.",
    )
    on_misrouted: Literal["warn", "reject"] = Field(
        default="warn", description="What to do with a tick that is not on the partition that murmur2 of its key gives."
    )


class CorrectionsSettings(Section):
    """Messages that cancel or correct a trade that came before; off unless `field` is given."""

    field: OptionalField = Field(
        default=None, description="JSON field with the message type. Not set: every message is a trade."
    )
    cancel: Names = Field(default=(), description="Values of `field` that mark a cancellation.")
    correct: Names = Field(default=(), description="Values of `field` that mark a correction of price and size.")
    id: OptionalField = Field(default=None, description="JSON field of a trade's id, text or an integer.")
    refers_to: OptionalField = Field(
        default=None,
        description="JSON field with the id of the trade that a cancellation or correction refers to; "
        "`corrections.id` if not set.",
    )

    def rules(self) -> CorrectionRules | None:
        """The same for the lane; None: there are no corrections."""
        if self.field is None or self.id is None:
            return None
        return CorrectionRules(self.field, self.cancel, self.correct, self.id, self.refers_to)
