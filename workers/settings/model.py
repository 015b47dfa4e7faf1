"""The whole of the settings: every section, checked together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny, field_validator, model_validator

from workers.settings.conflicts import ConflictsError, conflicts_in
from workers.settings.kafka import KafkaSettings
from workers.settings.pipeline import Operator, operator_of
from workers.settings.process import BackpressureSettings, LaneSettings, LoggingSettings, MetricsSettings, StoreSettings
from workers.settings.section import Section, given
from workers.settings.ticks import CorrectionsSettings, TickSettings
from workers.settings.topics import DERIVED_TOPICS, TopicsSettings
from workers.settings.values import TOPIC, DurationNs, Servers, TopicName, allowed
from workers.settings.windows import WindowSettings
from workers.times import NS_PER_MS

__all__ = ["Settings"]

_MAX_APPLICATION_ID: Final = 200  # leaves room for the longest suffix, and for a transactional id's partition


class Settings(Section):
    """Everything that can be set. Use ``load_settings``; direct construction reads no file and no environment.

    Durations are integer nanoseconds. Direct construction raises pydantic's ``ValidationError``, without inputs.
    """

    bootstrap_servers: Servers = Field(
        default="localhost:9092", description="Bootstrap brokers. Also `KAFKA_BOOTSTRAP_SERVERS`."
    )
    application_id: TopicName = Field(
        default="tick-workers",
        max_length=_MAX_APPLICATION_ID,
        description="Name of this application: its consumer group, and the prefix of its topics and transactions. "
        "Workers that share it share the work.",
        json_schema_extra=allowed("1 to 200 of A-Z a-z 0-9 . _ -"),
    )
    processing_guarantee: Literal["exactly_once", "at_least_once"] = Field(
        default="exactly_once",
        description="exactly_once: frames, state and offsets appear together or not at all; "
        "at_least_once: after a crash a frame may appear again, byte for byte the same.",
    )
    commit_interval: DurationNs = Field(
        default=150 * NS_PER_MS,
        ge=20 * NS_PER_MS,
        description="Time between commits; with exactly_once, also the delay until frames can be read.",
    )
    commit_scope: Literal["partition", "process"] = Field(
        default="partition",
        description="partition: each partition commits by itself, with a producer of its own; "
        "process: all partitions of a process commit in one transaction (Kafka 3.0 or newer).",
    )
    topics: TopicsSettings = Field(default_factory=TopicsSettings)
    tick: TickSettings = Field(default_factory=TickSettings)
    window: WindowSettings = Field(default_factory=WindowSettings)
    corrections: CorrectionsSettings = Field(default_factory=CorrectionsSettings)
    lane: LaneSettings = Field(default_factory=LaneSettings)
    backpressure: BackpressureSettings = Field(default_factory=BackpressureSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    pipeline: tuple[SerializeAsAny[Operator], ...] = Field(
        default=(),
        description="Operators applied to ticks before windowing, in order; only in a file, as [[pipeline]] tables.",
        json_schema_extra=allowed("a list of tables"),
    )
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal values; where they came from does not count."""
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    def source_of(self, key: str) -> str:
        """Where a key's value came from: ``default``, ``file <path>``, ``env <NAME>`` or ``flag``."""
        return self._sources.get(key, "default")

    def remember_sources(self, sources: Mapping[str, str]) -> None:
        """Note where values came from, by key; what is not named is a default."""
        self._sources = dict(sources)

    @model_validator(mode="before")
    @classmethod
    def _derive_topics(cls, data: object) -> object:
        """Name the topics that weren't named after the application, so that two applications never share state."""
        if not isinstance(data, Mapping):
            return data
        topics = data.get("topics", {})
        if isinstance(topics, TopicsSettings):
            topics = {name: getattr(topics, name) for name in topics.model_fields_set}
        application_id = data.get("application_id", "tick-workers")
        if not isinstance(topics, Mapping) or not isinstance(application_id, str):
            return data
        if not TOPIC.fullmatch(application_id) or len(application_id) > _MAX_APPLICATION_ID:
            return data  # it is refused itself; topics nobody wrote must not be complained about as well
        derived = {name: f"{application_id}-{suffix}" for name, suffix in DERIVED_TOPICS.items()}
        return {**data, "topics": {**derived, **topics}}

    @model_validator(mode="before")
    @classmethod
    def _no_lag_of_frames(cls, data: object) -> object:
        """Frames have waited already: with them lag is 0 where it is not given."""
        if not isinstance(data, Mapping) or given(data.get("tick", {})).get("format") != "frames":
            return data
        window = given(data.get("window", {}))
        return data if "lag" in window else {**data, "window": {**window, "lag": 0}}

    @field_validator("pipeline", mode="before")
    @classmethod
    def _known_operators(cls, tables: object) -> object:
        if not isinstance(tables, (list, tuple)):
            raise ValueError("expected [[pipeline]] tables")  # noqa: TRY004 - pydantic collects ValueErrors only
        return tuple(operator_of(position, table) for position, table in enumerate(tables, 1))

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        conflicts = conflicts_in(self)
        if conflicts:
            raise ConflictsError(self, conflicts)
        return self
