"""The section ``[topics]``: names and shape of the topics."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator

from workers.settings.section import Section
from workers.settings.values import TopicName, allowed

__all__ = ["DERIVED_TOPICS", "TopicsSettings"]

DERIVED_TOPICS: Final = {
    "late": "late",
    "dead_letters": "dead-letters",
    "changelog": "changelog",
    "feedback": "feedback",
}
"""Topics that are named after the application where no name is given: their keys, and the suffix of each."""


class TopicsSettings(Section):
    """Names and shape of the topics; the last four names follow ``application_id`` where not given."""

    ticks: TopicName = Field(default="ticks", description="Topic the ticks are read from.")
    frames: TopicName = Field(default="frames", description="Topic the window frames are written to.")
    late: TopicName = Field(
        default="tick-workers-late",
        description="Topic for late ticks, each with its reason. Default: `<application_id>-late`.",
    )
    dead_letters: TopicName = Field(
        default="tick-workers-dead-letters",
        description="Topic for records that are not valid ticks, each with its reason. Default: "
        "`<application_id>-dead-letters`.",
    )
    changelog: TopicName = Field(
        default="tick-workers-changelog",
        description="Compacted topic that state is restored from. Default: `<application_id>-changelog`.",
    )
    feedback: TopicName = Field(
        default="tick-workers-feedback",
        description="Topic that tells producers how fast they may send. Default: `<application_id>-feedback`.",
    )
    partitions: int = Field(
        default=8, ge=1, le=10_000, description="Partitions of topics created by workers; existing topics keep theirs."
    )
    replication_factor: int = Field(
        default=-1,
        ge=-1,
        le=32_767,
        description="Replication factor of topics created by workers; -1: the broker's default.",
        json_schema_extra=allowed("-1, or integer >= 1"),
    )
    create: bool = Field(
        default=True, description="Create missing topics at start; false: a missing topic is an error."
    )

    @field_validator("replication_factor")
    @classmethod
    def _some_replica(cls, value: int) -> int:
        if value == 0:
            raise ValueError("a topic has at least one replica")
        return value
