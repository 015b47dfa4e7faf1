"""The sections ``[tick]`` and ``[corrections]``: how a message is read, as a tick or as one that changes another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.core.windows.corrections import CorrectionRules
from workers.settings.section import Section
from workers.settings.values import DurationNs, InstantNs, JsonField, Names, OptionalField, allowed
from workers.times import NS_PER_SECOND, TimestampUnit

__all__ = ["CorrectionsSettings", "TickSettings"]


class TickSettings(Section):
    """How a tick is read from its JSON object; with format frames, what is read instead."""

    format: Literal["json", "frames"] = Field(
        default="json",
        description="json: ticks; frames: the topic is the frames topic of another application, and bars are made of "
        "its bars.",
    )
    symbol: JsonField = Field(default="symbol", description="JSON field of the symbol.")
    ts: JsonField = Field(default="ts", description="JSON field of the event time.")
    price: JsonField = Field(default="price", description="JSON field of the price.")
    size: JsonField = Field(default="size", description="JSON field of the traded size.")
    timestamp_unit: TimestampUnit = Field(default="ms", description="Unit of an integer event time.")
    max_future_skew: DurationNs = Field(
        default=60 * NS_PER_SECOND,
        description="A tick later than its record's Kafka timestamp by more than this is rejected: "
        "one wrong clock must not make everybody's next ticks late.",
    )
    min_time: InstantNs = Field(
        default=631_152_000 * NS_PER_SECOND,  # 1990
        description="A tick before this is rejected: seconds that are read as milliseconds are times of 1970.",
        json_schema_extra=allowed("a date, or an RFC 3339 time"),
    )
    max_jump: DurationNs = Field(
        default=0,
        description="A tick further than this ahead of all before it in its partition waits for its symbol's next one: "
        "where that goes back, it was a wrong date, and goes to the dead letters. 0s: none waits.",
    )
    on_misrouted: Literal["warn", "reject"] = Field(
        default="warn", description="What happens to a tick on another partition than murmur2 of its key gives."
    )


class CorrectionsSettings(Section):
    """Messages that cancel or correct a trade that came before; off unless `field` is given."""

    field: OptionalField = Field(
        default=None, description="JSON field that says what a message is. Without it every message is a trade."
    )
    cancel: Names = Field(default=(), description="What `field` says in a message that cancels a trade.")
    correct: Names = Field(
        default=(), description="What `field` says in a message that corrects a trade's price and size."
    )
    id: OptionalField = Field(default=None, description="JSON field of a trade's id, text or an integer.")
    refers_to: OptionalField = Field(
        default=None,
        description="JSON field, of a message that cancels or corrects, of the id of the trade it is about; "
        "`corrections.id` where not given.",
    )

    def rules(self) -> CorrectionRules | None:
        """The same for the lane; None: there are no corrections."""
        if self.field is None or self.id is None:
            return None
        return CorrectionRules(self.field, self.cancel, self.correct, self.id, self.refers_to)
