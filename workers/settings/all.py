"""Settings: frozen, checked as a whole before anything starts, and able to say where each value came from.

Sources, each overriding the one before:

1. the defaults in this module,
2. a TOML file: the path given, else ``WORKERS_CONFIG``, else ``config/workers.toml`` where that exists,
3. the environment: ``KAFKA_<NAME>`` for Kafka's own settings, ``WORKERS__<SECTION>__<KEY>`` for every setting,
4. flags, as a mapping of dotted keys.

A key is written ``section.key`` everywhere (``window.size``, ``kafka.session.timeout.ms``). Sources become flat
``key -> value and origin`` layers first and are merged flat; only then does pydantic see them. That is why an error can
name the file, variable or flag a value came from, and why a typo is found in whichever source it was made.
Everything wrong is reported at once, one problem a line.

Nothing is ignored in silence: unknown keys, unknown ``WORKERS__`` variables and combinations that can't do what they
say are refused. Two exceptions, both of the environment's making: an empty variable counts as not set (that is what
``${NAME:-}`` in a compose file leaves behind), and ``KAFKA_`` variables that resemble none of ours are left alone,
because brokers, their images and Kubernetes' service links use the same prefix.

Durations are text with a unit (``5s``, ``200ms``) outside and integer nanoseconds inside. Kafka's own settings keep
Kafka's own names and units.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Annotated, Final, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from workers.core.pipeline.pipeline import (
    TO_WINDOWS,
    Conflate,
    Deduplicate,
    Filter,
    Map,
    OperatorSpec,
    Route,
    Router,
    Throttle,
)
from workers.core.windows.assign import Assigner, Hopping, Sessions, check_time_zone, make_tumbling
from workers.core.windows.corrections import CorrectionRules
from workers.errors import ConfigError
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_MS,
    NS_PER_SECOND,
    TimestampUnit,
    datetime_to_ns,
    format_duration,
    format_time,
    parse_duration,
    parse_instant,
    timedelta_to_ns,
)

__all__ = [
    "DEFAULT_CONFIG_PATH",
    "METRICS_OFF",
    "OPERATORS",
    "BackpressureSettings",
    "CorrectionsSettings",
    "DeduplicateSettings",
    "DurationNs",
    "FilterSettings",
    "InstantNs",
    "KafkaSettings",
    "LaneSettings",
    "LoggingSettings",
    "MapSettings",
    "MetricsSettings",
    "Operator",
    "ReferenceRow",
    "RouterSettings",
    "RuleSettings",
    "SettingRow",
    "Settings",
    "StoreSettings",
    "ThrottleSettings",
    "TickSettings",
    "TopicsSettings",
    "WindowSettings",
    "advice",
    "client_options",
    "consumer_options",
    "describe_settings",
    "load_settings",
    "operator_reference",
    "producer_options",
    "reference",
]

DEFAULT_CONFIG_PATH: Final = Path("config/workers.toml")
METRICS_OFF: Final = -1
"""The value of ``metrics.port`` that means no metrics endpoint; users write ``off``."""

_SECOND_NS: Final = NS_PER_SECOND
_DAY_NS: Final = 86_400 * NS_PER_SECOND
_MAX_DURATION_NS: Final = 366 * _DAY_NS  # sums of a few of these and an event time still fit 64 bits
_MASK: Final = "********"
_SHOWN_CHARS: Final = 80


# -- values -----------------------------------------------------------------------------------------------------------


def _duration(value: object) -> int:
    """Nanoseconds of a duration as users write it; a bare number is refused because nobody can know its unit."""
    if isinstance(value, timedelta):
        return timedelta_to_ns(value)
    if isinstance(value, str) and len(value) <= _SHOWN_CHARS:
        return parse_duration(value)
    if value == 0 and isinstance(value, int) and not isinstance(value, bool):
        return 0
    raise ValueError("a duration is text with a unit, like 5s or 200ms (only 0 needs none)")


def _duration_or_never(value: object) -> int | None:
    return None if value is None or value == "never" else _duration(value)


_PARSE_DURATION: Final = BeforeValidator(_duration)
_PARSE_DURATION_OR_NEVER: Final = BeforeValidator(_duration_or_never)
DurationNs = Annotated[int, _PARSE_DURATION, Field(ge=0, le=_MAX_DURATION_NS)]
"""Integer nanoseconds, at most 366 days; accepted as ``5s``, ``200ms``, ``1h30m``, a timedelta, or 0."""


def _instant(value: object) -> int:
    """Nanoseconds of a date or a time as users write it, which in TOML may be values of their own types."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return datetime_to_ns(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime_to_ns(datetime.combine(value, time()))
    if isinstance(value, str) and len(value) <= _SHOWN_CHARS:
        return parse_instant(value.strip())
    raise ValueError("neither a date nor a time with an offset")


_PARSE_INSTANT: Final = BeforeValidator(_instant)
InstantNs = Annotated[int, _PARSE_INSTANT, Field(ge=-MAX_EVENT_TIME_NS, le=MAX_EVENT_TIME_NS)]
"""Integer nanoseconds since the epoch; accepted as ``1990-01-01`` or ``2026-01-31T13:21:25Z``."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]+")


def _topic(value: object) -> object:
    """A name Kafka accepts for a topic; the broker's own refusal would come only at the first write."""
    if isinstance(value, str) and (not _TOPIC.fullmatch(value) or value in (".", "..") or len(value) > 249):
        raise ValueError("not a name Kafka accepts")
    return value


def _servers(value: object) -> object:
    """``host:port`` pairs with commas between them, blanks around them removed."""
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    if not isinstance(value, str):
        return value
    servers = [part.strip() for part in value.split(",")]
    for server in servers:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(\d{1,5})", server, re.ASCII)
        if match is None or not 1 <= int(match[2]) <= 65_535:
            raise ValueError("not a list of host:port")
    return ",".join(servers)


_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _aggregation(value: object) -> object:
    """``ohlcv`` or the place of a callable; it is imported where it is used, since importing runs the user's code."""
    if isinstance(value, str) and value != "ohlcv" and not _PLACE.fullmatch(value):
        raise ValueError("neither ohlcv nor of the form package.module:name")
    return value


def _time_zone(value: object) -> object:
    """The name of a time zone; nothing where it is empty."""
    if isinstance(value, str) and value:
        check_time_zone(value)
    return value or None


def _calendar(value: object) -> object:
    """The name of a calendar; whether there is one of that name is known where it is loaded, which takes a second."""
    if isinstance(value, str) and value and not _CALENDAR.fullmatch(value):
        raise ValueError("not a name that a calendar can have")
    return value or None


_CALENDAR = re.compile(r"[A-Za-z0-9_/&.-]{1,40}")


def _port(value: object) -> object:
    return METRICS_OFF if value == "off" else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _acks(value: object) -> object:
    text = str(value).lower() if isinstance(value, (int, str)) and not isinstance(value, bool) else value
    return "all" if text == "-1" else text


def _host_check(value: object) -> object:
    return "none" if value == "" else _lower(value)


def _pem_path(value: object) -> object:
    if isinstance(value, str) and value.lower().endswith((".jks", ".p12", ".pfx", ".pkcs12")):
        raise ValueError(_NO_KEYSTORE)
    return value


_NO_KEYSTORE: Final = (
    "Java keystores (JKS, PKCS12) can't be read here; convert it to PEM, "
    "with keytool -importkeystore -deststoretype PKCS12 and then openssl pkcs12 -nodes"
)


def _pem_type(value: object) -> object:
    kind = _upper(value)
    if kind in ("JKS", "PKCS12"):
        raise ValueError(_NO_KEYSTORE)
    return kind


def _login_mechanism(value: object) -> object:
    mechanism = _upper(value)
    if mechanism in ("GSSAPI", "OAUTHBEARER"):
        raise ValueError(f"{mechanism} needs a login callback, which a configuration can't carry")
    return mechanism


def _allowed(words: str) -> JsonDict:
    """What may be written, where a type's own bounds don't say it; found again by ``_Key.allowed``."""
    return {"allowed": words}


_MAX_INT32: Final = 2**31 - 1
_TopicName = Annotated[str, BeforeValidator(_topic), Field(json_schema_extra=_allowed("1 to 249 of A-Z a-z 0-9 . _ -"))]
_JsonField = Annotated[str, Field(min_length=1, json_schema_extra=_allowed("the name of a JSON field"))]
_Text = Annotated[str | None, Field(min_length=1)]
_Secret = Annotated[SecretStr | None, Field(min_length=1)]
_PemPath = Annotated[
    str | None, BeforeValidator(_pem_path), Field(min_length=1, json_schema_extra=_allowed("the path of a PEM file"))
]
_Portion = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_Scale = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Int32 = Annotated[int, Field(ge=1, le=_MAX_INT32)]
_SecurityProtocol = Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)]
_SaslMechanism = Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], BeforeValidator(_login_mechanism)]


class _Section(BaseModel):
    """Frozen, strict (a quoted number in TOML is a mistake), closed; never repeats an input, which may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


# -- sections ---------------------------------------------------------------------------------------------------------

_MAX_APPLICATION_ID: Final = 200  # leaves room for the longest suffix, and for a transactional id's partition
_DERIVED_TOPICS: Final = {
    "late": "late",
    "dead_letters": "dead-letters",
    "changelog": "changelog",
    "feedback": "feedback",
}


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_JsonFields = Annotated[
    tuple[_JsonField, ...],
    BeforeValidator(_as_tuple),
    Field(min_length=1, json_schema_extra=_allowed("a list of names of JSON fields")),
]
_Function = Annotated[str, Field(pattern=_PLACE.pattern + "$", json_schema_extra=_allowed("package.module:name"))]


class TopicsSettings(_Section):
    """Names and shape of the topics; the last four names follow ``application_id`` where not given."""

    ticks: _TopicName = Field(default="ticks", description="Topic the ticks are read from.")
    frames: _TopicName = Field(default="frames", description="Topic the window frames are written to.")
    late: _TopicName = Field(
        default="tick-workers-late",
        description="Topic for late ticks, each with its reason. Default: `<application_id>-late`.",
    )
    dead_letters: _TopicName = Field(
        default="tick-workers-dead-letters",
        description="Topic for records that are not valid ticks, each with its reason. Default: "
        "`<application_id>-dead-letters`.",
    )
    changelog: _TopicName = Field(
        default="tick-workers-changelog",
        description="Compacted topic that state is restored from. Default: `<application_id>-changelog`.",
    )
    feedback: _TopicName = Field(
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
        json_schema_extra=_allowed("-1, or integer >= 1"),
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


class TickSettings(_Section):
    """How a tick is read from its JSON object; with format frames, what is read instead."""

    format: Literal["json", "frames"] = Field(
        default="json",
        description="json: ticks; frames: the frames of another application, to build larger bars from.",
    )
    symbol: _JsonField = Field(default="symbol", description="JSON field of the symbol.")
    ts: _JsonField = Field(default="ts", description="JSON field of the event time.")
    price: _JsonField = Field(default="price", description="JSON field of the price.")
    size: _JsonField = Field(default="size", description="JSON field of the traded size.")
    timestamp_unit: TimestampUnit = Field(default="ms", description="Unit of an integer event time.")
    max_future_skew: DurationNs = Field(
        default=60 * _SECOND_NS,
        description="A tick ahead of its record's Kafka timestamp by more than this is rejected, so that one wrong "
        "clock can't make its symbol's next ticks late.",
    )
    min_time: InstantNs = Field(
        default=631_152_000 * _SECOND_NS,  # 1990
        description="A tick before this is rejected. It catches seconds read as milliseconds, which look like 1970.",
        json_schema_extra=_allowed("a date, or an RFC 3339 time"),
    )
    max_jump: DurationNs = Field(
        default=0,
        description="A tick further ahead than this of all earlier ones in its partition is held until its symbol's "
        "next tick; if that goes back, the held one had a wrong date and becomes a dead letter. 0s: off.",
    )
    on_misrouted: Literal["warn", "reject"] = Field(
        default="warn", description="What to do with a tick that is not on the partition that murmur2 of its key gives."
    )


class WindowSettings(_Section):
    """Which windows there are, when they close, and what comes out. Durations are integer nanoseconds."""

    kind: Literal["tumbling", "hopping", "session", "calendar"] = Field(
        default="tumbling",
        description="tumbling: side by side; hopping: one every `hop`, overlapping; session: as long as ticks come "
        "within `gap` of one another; calendar: an exchange's trading sessions.",
    )
    size: DurationNs = Field(
        default=5 * _SECOND_NS,
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
        json_schema_extra=_allowed("an IANA name, like America/New_York"),
    )
    gap: DurationNs = Field(
        default=0, description="session: the silence that ends a session; ticks closer than this share a window."
    )
    calendar: Annotated[str | None, BeforeValidator(_calendar)] = Field(
        default=None,
        description="calendar: the exchange, as the package `exchange_calendars` names it (extra `calendars`).",
        json_schema_extra=_allowed("a name of exchange_calendars, like XNYS"),
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
        default=2 * _SECOND_NS,
        description="How far the watermark trails the greatest event time: the disorder you expect. Always 0 with "
        "`tick.format` frames, whose application has waited already.",
    )
    allowed_lateness: DurationNs = Field(
        default=0, description="How long a closed window still takes ticks; each one emits it again, revised."
    )
    idle_after: DurationNs = Field(
        default=_SECOND_NS,
        description="Partition time past `end + lag` at which a quiet key's window is emitted as provisional.",
    )
    key_ttl: Annotated[int | None, _PARSE_DURATION_OR_NEVER] = Field(
        default=None,
        ge=0,
        le=_MAX_DURATION_NS,
        description="never: keep every key, a few hundred bytes each. A duration: finish and forget a key this far "
        "(event time) behind its partition, which frees its memory and makes ticks that old late, whichever symbol "
        "advanced the partition.",
        json_schema_extra=_allowed("never, or duration 0s to 366d"),
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
        json_schema_extra=_allowed("ohlcv, or package.module:name"),
    )


def _names(value: object) -> object:
    """A list of text and integers, or text with commas between them, as text."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip() not in ("", "[]")]
    if not isinstance(value, list | tuple) or not all(type(item) in (str, int) for item in value):
        raise ValueError("not a list of text or integers")
    return tuple(str(item) for item in value)


_Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_names),
    Field(json_schema_extra=_allowed("a list of text or integers, or text with commas between them")),
]
_OptionalField = Annotated[str | None, Field(min_length=1, json_schema_extra=_allowed("the name of a JSON field"))]


class CorrectionsSettings(_Section):
    """Messages that cancel or correct a trade that came before; off unless `field` is given."""

    field: _OptionalField = Field(
        default=None, description="JSON field with the message type. Not set: every message is a trade."
    )
    cancel: _Names = Field(default=(), description="Values of `field` that mark a cancellation.")
    correct: _Names = Field(default=(), description="Values of `field` that mark a correction of price and size.")
    id: _OptionalField = Field(default=None, description="JSON field of a trade's id, text or an integer.")
    refers_to: _OptionalField = Field(
        default=None,
        description="JSON field with the id of the trade that a cancellation or correction refers to; "
        "`corrections.id` if not set.",
    )

    def rules(self) -> CorrectionRules | None:
        """The same for the lane; None: there are no corrections."""
        if self.field is None or self.id is None:
            return None
        return CorrectionRules(self.field, self.cancel, self.correct, self.id, self.refers_to)


class LaneSettings(_Section):
    """Bounds of one partition's queue inside a worker, in records and fractions of them."""

    capacity: int = Field(
        default=50_000, ge=1, le=100_000_000, description="Fetched but unprocessed records that one partition may hold."
    )
    high_watermark: _Portion = Field(
        default=0.75, description="Fraction of `capacity` at which the partition is paused."
    )
    low_watermark: _Portion = Field(default=0.25, description="Fraction of `capacity` at which it is resumed.")
    batch_size: int = Field(
        default=5_000,
        ge=1,
        le=100_000_000,
        description="Most records processed in one step; bounds how long the event loop is blocked.",
    )


class BackpressureSettings(_Section):
    """When and how much producers are slowed down; lags are in records, summed over the group's partitions."""

    enabled: bool = Field(
        default=True, description="Publish the group's level to producers; false: only measure its lag."
    )
    soft_lag: int = Field(default=100_000, ge=1, description="Lag in records at which the level becomes SOFT.")
    hard_lag: int = Field(default=1_000_000, ge=1, description="Lag in records at which the level becomes HARD.")
    release: _Portion = Field(
        default=0.5,
        description="A level is left once the lag is at most this fraction of its threshold, so it can't flap.",
    )
    min_dwell: DurationNs = Field(default=5 * _SECOND_NS, description="Minimum time at a level before it drops.")
    poll_interval: DurationNs = Field(
        default=_SECOND_NS, ge=100 * NS_PER_MS, description="How often the lag is measured."
    )
    rate_scale_soft: _Scale = Field(default=0.5, description="Fraction of their rate that producers keep at SOFT.")
    rate_scale_hard: _Scale = Field(
        default=0.0, description="Fraction of their rate that producers keep at HARD; 0 stops them."
    )


class StoreSettings(_Section):
    """Where `workers store` keeps frames, and the bounds of its queue."""

    sqlite: str = Field(
        default="frames.db",
        min_length=1,
        description="SQLite file to store frames in, unless `store.postgres` is set.",
        json_schema_extra=_allowed("the path of a file"),
    )
    postgres: _Secret = Field(
        default=None,
        description="PostgreSQL database to store frames in, as a URI or name=value pairs. Also `WORKERS_STORE_DSN`.",
        json_schema_extra=_allowed("postgresql://user@host:5432/database"),
    )
    batch_size: int = Field(default=5_000, ge=1, le=1_000_000, description="Most frames stored in one transaction.")
    flush_interval: DurationNs = Field(
        default=200 * NS_PER_MS, description="How long the first frame of a batch waits for more."
    )
    queue_capacity: int = Field(
        default=50_000, ge=1, le=100_000_000, description="Most frames read but not yet stored."
    )
    queue_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1_024,
        le=2**40,
        description="The same limit in bytes; whichever is reached first.",
    )
    high_watermark: _Portion = Field(
        default=0.75, description="Fraction of the queue at which the level becomes HARD and reading pauses."
    )
    low_watermark: _Portion = Field(
        default=0.25, description="Fraction of the queue at which reading resumes; SOFT begins halfway between the two."
    )
    feedback: bool = Field(
        default=True,
        description="Publish the queue's level to producers; false for a store that backfills history.",
    )


class MetricsSettings(_Section):
    """Where Prometheus finds the metrics."""

    port: Annotated[int, BeforeValidator(_port)] = Field(
        default=9404,
        ge=METRICS_OFF,
        le=65_535,
        description="Port of the metrics endpoint; 0: any free port (several workers on one host); off: no endpoint.",
        json_schema_extra=_allowed("integer 0 to 65535, or off"),
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address the metrics endpoint listens on; it has no authentication, so open it deliberately.",
        json_schema_extra=_allowed("an address of this host"),
    )


class LoggingSettings(_Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Minimum level to log.")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, JSON lines elsewhere."
    )


class Operator(_Section):
    """Base of a pipeline operator's options; a subclass is made known by ``OPERATORS[name] = subclass``."""

    def spec(self, window: WindowSettings) -> OperatorSpec:
        """The same for the lane, which knows nothing of settings."""
        raise NotImplementedError

    def conflicts(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
        """What can't be together with other settings: their keys, and why."""
        yield from ()

    def topics(self) -> frozenset[str]:
        """The topics that this operator writes to."""
        return frozenset()


class DeduplicateSettings(Operator):
    """Drop a tick whose id its symbol had before, within ``ttl`` of event time."""

    id: _JsonField | None = Field(
        default=None,
        description="JSON field of the id. Instead: `fields`.",
        json_schema_extra=_allowed("the name of a JSON field"),
    )
    fields: _JsonFields | None = Field(
        default=None,
        description="JSON fields that together form the id, if one is not enough.",
        json_schema_extra=_allowed("a list of names of JSON fields"),
    )
    ttl: DurationNs = Field(
        default=600 * _SECOND_NS,
        ge=1,
        description="How long to remember an id after it was first seen, in its symbol's event time.",
    )
    gaps: bool = Field(default=False, description="The id increases by 1 per symbol: count and log skipped ids.")
    max_ids: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="Most ids remembered per symbol; beyond that the oldest is forgotten early, and counted.",
    )
    ledger: bool = Field(default=True, description="Write each duplicate to the late topic, with reason duplicate.")

    @model_validator(mode="after")
    def _one_id(self) -> DeduplicateSettings:
        if (self.id is None) == (self.fields is None):
            raise ValueError("expected either id or fields")
        if self.gaps and self.id is None:
            raise ValueError("gaps needs id, the one field that counts up")
        return self

    def spec(self, window: WindowSettings) -> OperatorSpec:
        names = (self.id,) if self.id is not None else self.fields or ()
        return Deduplicate(names, self.ttl, self.gaps, self.max_ids, self.ledger)

    def conflicts(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
        needed = settings.window.lag + settings.window.allowed_lateness
        if self.ttl < needed:
            why = (
                f"ttl {format_duration(self.ttl)} must be at least lag + allowed_lateness = {format_duration(needed)}, "
                "or a repeat could join a window when its first is forgotten"
            )
            yield ("window.lag", "window.allowed_lateness"), why


class ThrottleSettings(Operator):
    """Let fewer ticks through, by event time: so many per second, or the latest of each interval."""

    mode: Literal["drop", "conflate"] = Field(
        default="drop",
        description="drop: drop what exceeds `rate`; conflate: pass on the latest tick of each `interval`.",
    )
    rate: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = Field(
        default=None,
        description="drop: ticks per second of event time.",
        json_schema_extra=_allowed("number above 0, at most 1000000000"),
    )
    burst: int = Field(default=1, ge=1, le=1_000_000, description="drop: ticks allowed at once after a quiet period.")
    per: Literal["symbol", "partition"] = Field(
        default="symbol", description="drop: whether `rate` applies to each symbol or to a whole partition."
    )
    interval: Annotated[DurationNs, Field(ge=1)] | None = Field(
        default=None,
        description="conflate: interval length; intervals begin at multiples of it.",
        json_schema_extra=_allowed("duration 1ns to 366d"),
    )
    ledger: bool = Field(default=True, description="Write each tick dropped to the late topic, with reason throttled.")

    @model_validator(mode="after")
    def _one_way(self) -> ThrottleSettings:
        given, other = ("rate", "interval") if self.mode == "drop" else ("interval", "rate")
        if getattr(self, given) is None:
            raise ValueError(f"mode {self.mode} needs {given}")
        useless = {other, *(("burst", "per") if self.mode == "conflate" else ())} & self.model_fields_set
        if useless:
            raise ValueError(f"{', '.join(sorted(useless))} means nothing with mode {self.mode}")
        if self.rate is not None and self.burst * self._spacing_ns() > _MAX_DURATION_NS:
            raise ValueError("burst / rate must be at most 366 days")
        return self

    def _spacing_ns(self) -> int:
        return math.ceil(_SECOND_NS / Fraction(str(self.rate)))  # rounded up: never above the rate

    def spec(self, window: WindowSettings) -> OperatorSpec:
        if self.interval is not None:
            # A shared clock judges held ticks by other symbols' progress: none may wait beyond its interval's end.
            margin_ns = window.lag if window.watermark_scope == "key" else 0
            return Conflate(self.interval, margin_ns, self.ledger)
        return Throttle(self._spacing_ns(), self.burst, self.per == "symbol", self.ledger)

    def conflicts(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
        window = settings.window
        if self.interval is None or window.watermark_scope == "key":
            return
        if self.interval > window.lag + window.allowed_lateness:
            keys = ("window.watermark_scope", "window.lag", "window.allowed_lateness")
            yield (
                keys,
                "interval must be at most lag + allowed_lateness, or the partition's clock makes what is held late",
            )


class RuleSettings(_Section):
    """A rule of a router: which ticks, and where to. Both conditions hold where both are given."""

    to: _TopicName = Field(description="Topic to write the ticks to, unchanged; window: pass them on to the windows.")
    symbol: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Symbol pattern: * any text, ? any character, [ab] one of these; case-sensitive.",
        json_schema_extra=_allowed("a pattern"),
    )
    field: _JsonField | None = Field(
        default=None,
        description="JSON field to compare with `equals`.",
        json_schema_extra=_allowed("the name of a JSON field"),
    )
    equals: str | int | float | bool | None = Field(
        default=None,
        description="Value that the field must have.",
        json_schema_extra=_allowed("text, number, true or false"),
    )

    @model_validator(mode="after")
    def _some_condition(self) -> RuleSettings:
        if (self.field is None) != (self.equals is None):
            raise ValueError("field and equals go together")
        if self.symbol is None and self.field is None:
            raise ValueError("expected symbol, or field and equals; for all other ticks there is default")
        return self


class RouterSettings(Operator):
    """Send ticks to other topics; the first rule that applies decides."""

    rules: Annotated[tuple[RuleSettings, ...], BeforeValidator(_as_tuple)] = Field(
        default=(),
        description="Rules, in order: tables with `to` and `symbol`, or `field` and `equals`, or all.",
        json_schema_extra=_allowed("a list of tables"),
    )
    default: _TopicName = Field(
        default=TO_WINDOWS, description="Topic for ticks that match no rule; window: pass them on to the windows."
    )

    def spec(self, window: WindowSettings) -> OperatorSpec:
        routes = tuple(Route(rule.to, rule.symbol, rule.field, rule.equals) for rule in self.rules)
        return Router(routes, self.default)

    def topics(self) -> frozenset[str]:
        return frozenset({self.default, *(rule.to for rule in self.rules)} - {TO_WINDOWS})

    def conflicts(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
        for role in ("ticks", "frames", *_DERIVED_TOPICS):
            for name in self.topics():
                if getattr(settings.topics, role).replace(".", "_") == name.replace(".", "_"):
                    yield (f"topics.{role}",), f"ticks can't be routed to {name}, which has another use"


class FilterSettings(Operator):
    """Keep the ticks that a function of yours says yes to."""

    function: _Function = Field(
        description="Function of a `workers.Tick`; true keeps it. It must depend on the tick alone.",
    )
    ledger: bool = Field(default=True, description="Write each tick dropped to the late topic, with reason filtered.")

    def spec(self, window: WindowSettings) -> OperatorSpec:
        return Filter(self.function, self.ledger)


class MapSettings(Operator):
    """Replace each tick by what a function of yours makes of it."""

    function: _Function = Field(
        description="Function of a `workers.Tick`; returns a tick, or a mapping of the JSON fields to change. "
        "It must depend on the tick alone, and leave the symbol.",
    )

    def spec(self, window: WindowSettings) -> OperatorSpec:
        return Map(self.function)


OPERATORS: Final[dict[str, type[Operator]]] = {
    "deduplicate": DeduplicateSettings,
    "throttle": ThrottleSettings,
    "router": RouterSettings,
    "filter": FilterSettings,
    "map": MapSettings,
}
"""Operators that ``[[pipeline]]`` knows, by name. The only place to extend for a new one."""


def _operator(position: int, table: object) -> Operator:
    """One ``[[pipeline]]`` table, turned into its operator's options; ``operator = "<name>"`` says which."""
    if isinstance(table, Operator):
        return table
    name = table.get("operator") if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(name, str) or name not in OPERATORS:
        known = " | ".join(sorted(OPERATORS))
        hint = _like(name, OPERATORS) if isinstance(name, str) else ""
        raise ValueError(f"entry {position}: no operator of that name ({_quoted(name)}){hint}; known: {known}")
    try:
        return OPERATORS[name].model_validate({key: item for key, item in table.items() if key != "operator"})
    except ValidationError as error:
        wrong = "; ".join(
            _explain_option(OPERATORS[name], item["loc"], item["type"], item["msg"]) for item in error.errors()
        )
        raise ValueError(f"entry {position} ({name}): {wrong}") from None


def _explain_option(options: type[_Section], place: tuple[int | str, ...], kind: str, message: str) -> str:
    """What is wrong with one option of an operator, or of a router's rule."""
    if len(place) > 2:
        options = RuleSettings
    where = ".".join(map(str, place))
    if kind == "extra_forbidden":
        hint = _like(str(place[-1]), options.model_fields)
        return f"{where}: no option of that name{hint}; known: {' | '.join(options.model_fields)}"
    message = message.removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _like(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _kafka_name(field_name: str) -> str:
    return field_name.replace("_", ".")


class KafkaSettings(_Section):
    """Kafka's own client settings under Kafka's own names (dots for underscores) and units (the last word).

    Every client is meant where the description names none.
    """

    model_config = ConfigDict(alias_generator=_kafka_name, populate_by_name=True)

    security_protocol: _SecurityProtocol = Field(
        default="PLAINTEXT",
        description="How to connect to the brokers: with encryption (SSL), a login (SASL), or both.",
    )
    sasl_mechanism: _SaslMechanism = Field(default="PLAIN", description="Authentication mechanism.")
    sasl_username: _Text = Field(default=None, description="User name.")
    sasl_password: _Secret = Field(default=None, description="Password.")
    sasl_jaas_config: _Secret = Field(
        default=None,
        description="Login in the Java clients' form (PlainLoginModule or ScramLoginModule), "
        "instead of `sasl.username` and `sasl.password`.",
    )
    ssl_ca_location: _PemPath = Field(
        default=None,
        description="Certificates to trust; the system's if not set. Also `ssl.cafile`, `ssl.truststore.location`.",
    )
    ssl_truststore_type: Annotated[Literal["PEM"], BeforeValidator(_pem_type)] = Field(
        default="PEM", description="Format of the trusted certificates."
    )
    ssl_certificate_location: _PemPath = Field(
        default=None,
        description="This client's certificate chain, with its key unless `ssl.key.location` is given. "
        "Also `ssl.certfile`, `ssl.keystore.location`.",
    )
    ssl_key_location: _PemPath = Field(default=None, description="This client's private key. Also `ssl.keyfile`.")
    ssl_keystore_type: Annotated[Literal["PEM"], BeforeValidator(_pem_type)] = Field(
        default="PEM", description="Format of this client's certificate and key."
    )
    ssl_key_password: _Secret = Field(default=None, description="Passphrase of the private key.")
    ssl_endpoint_identification_algorithm: Annotated[Literal["https", "none"], BeforeValidator(_host_check)] = Field(
        default="https", description="none: don't verify that a broker's certificate matches its host name."
    )
    client_id: _Text = Field(
        default=None, description="Name in the brokers' logs and quotas; `application_id` if not set."
    )
    client_rack: _Text = Field(
        default=None, description="Consumer: rack of this client, to fetch from a nearby replica."
    )
    request_timeout_ms: _Int32 = Field(default=40_000, description="Request timeout.")
    metadata_max_age_ms: _Int32 = Field(default=300_000, description="Age at which metadata is refreshed.")
    retry_backoff_ms: _Int32 = Field(
        default=10,
        description="Pause before a retry; short, because a transaction often starts while the last one completes.",
    )
    connections_max_idle_ms: _Int32 = Field(
        default=540_000, description="Idle time after which a connection is closed."
    )
    group_instance_id: _Text = Field(
        default=None,
        description="Consumer: static membership, so that a restart moves no partitions; unique per worker.",
    )
    session_timeout_ms: _Int32 = Field(
        default=10_000, description="Consumer: time without a heartbeat after which a worker is considered dead."
    )
    heartbeat_interval_ms: _Int32 = Field(
        default=3_000, description="Consumer: time between heartbeats; at most a third of the session timeout."
    )
    rebalance_timeout_ms: _Int32 = Field(
        default=60_000, description="Consumer: time to finish and commit before partitions move."
    )
    max_poll_interval_ms: _Int32 = Field(
        default=300_000, description="Consumer: time without a fetch after which a worker leaves the group."
    )
    auto_offset_reset: Annotated[Literal["earliest", "latest"], BeforeValidator(_lower)] = Field(
        default="earliest", description="Consumer: where to start a partition without a committed offset."
    )
    isolation_level: Annotated[Literal["read_committed", "read_uncommitted"], BeforeValidator(_lower)] = Field(
        default="read_committed", description="Consumer: whether to read ticks of open and aborted transactions."
    )
    fetch_min_bytes: _Int32 = Field(default=1, description="Consumer: minimum bytes per fetch.")
    fetch_max_wait_ms: _Int32 = Field(
        default=50,
        description="Consumer: how long a broker waits for them; a quiet partition delays its broker's others by this.",
    )
    fetch_max_bytes: _Int32 = Field(default=52_428_800, description="Consumer: maximum bytes per fetch.")
    max_partition_fetch_bytes: _Int32 = Field(
        default=262_144, description="Consumer: maximum bytes per partition in a fetch; smaller is fairer."
    )
    acks: Annotated[Literal["all", "1", "0"], BeforeValidator(_acks)] = Field(
        default="all",
        description="Producer: acknowledgements to wait for; exactly_once needs all, at_least_once anything but 0.",
    )
    compression_type: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], BeforeValidator(_lower)] = Field(
        default="lz4", description="Producer: compression of batches."
    )
    linger_ms: int = Field(
        default=0, ge=0, le=_MAX_INT32, description="Producer: how long a batch waits for more records."
    )
    batch_size: _Int32 = Field(default=1_048_576, description="Producer: maximum bytes per batch.")
    max_request_size: _Int32 = Field(
        default=1_048_576, ge=1_024, le=_MAX_INT32, description="Producer: maximum bytes per request, and so per frame."
    )
    transaction_timeout_ms: _Int32 = Field(
        default=30_000,
        ge=1_000,
        le=900_000,
        description="Producer: age at which the broker aborts an unfinished transaction.",
    )


_SYNONYMS: Final = {
    "ssl.cafile": "ssl.ca.location",
    "ssl.truststore.location": "ssl.ca.location",
    "ssl.certfile": "ssl.certificate.location",
    "ssl.keystore.location": "ssl.certificate.location",
    "ssl.keyfile": "ssl.key.location",
}

_MANAGED: Final = {
    "bootstrap.servers": "set bootstrap_servers at the top of the file, or KAFKA_BOOTSTRAP_SERVERS",
    "group.id": "the group is the application_id",
    "group.protocol": "only the classic protocol is supported",
    "enable.auto.commit": "offsets are committed together with frames; see commit_interval",
    "auto.commit.interval.ms": "offsets are committed together with frames; see commit_interval",
    "transactional.id": "derived from application_id and the partition, which is what makes fencing sound",
    "enable.idempotence": "follows acks: on with all",
    "max.poll.records": "see lane.batch_size",
    "partition.assignment.strategy": "how partitions move is fixed, since state moves with them",
    "partitioner": "frames go where murmur2 of their key says",
    "partitioner.class": "frames go where murmur2 of their key says",
    "ssl.truststore.password": f"PEM certificates have none. {_NO_KEYSTORE}",
    "ssl.keystore.password": f"the passphrase of a PEM key is ssl.key.password. {_NO_KEYSTORE}",
}
"""Kafka's names that can't be set here, and why: each would break a promise, or is set elsewhere."""


# -- the whole --------------------------------------------------------------------------------------------------------


class _Conflict(NamedTuple):
    """Settings that can't be together: which, and why."""

    keys: tuple[str, ...]
    why: str


class _ConflictsError(ValueError):
    """Carries conflicts, with the settings they were found in, through pydantic."""

    def __init__(self, settings: Settings, conflicts: list[_Conflict]) -> None:
        super().__init__("; ".join(f"{', '.join(conflict.keys)}: {conflict.why}" for conflict in conflicts))
        self.settings = settings
        self.conflicts = conflicts


class Settings(_Section):
    """Everything that can be set. Use ``load_settings``; direct construction reads no file and no environment.

    Durations are integer nanoseconds. Direct construction raises pydantic's ``ValidationError``, without inputs.
    """

    bootstrap_servers: Annotated[str, BeforeValidator(_servers)] = Field(
        default="localhost:9092",
        description="Bootstrap brokers. Also `KAFKA_BOOTSTRAP_SERVERS`.",
        json_schema_extra=_allowed("host:port, comma-separated"),
    )
    application_id: _TopicName = Field(
        default="tick-workers",
        max_length=_MAX_APPLICATION_ID,
        description="Name of this application: its consumer group, and the prefix of its topics and transactions. "
        "Workers that share it share the work.",
        json_schema_extra=_allowed("1 to 200 of A-Z a-z 0-9 . _ -"),
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
        json_schema_extra=_allowed("a list of tables"),
    )
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal values; where they came from does not count."""
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

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
        if not _TOPIC.fullmatch(application_id) or len(application_id) > _MAX_APPLICATION_ID:
            return data  # it is refused itself; topics nobody wrote must not be complained about as well
        derived = {name: f"{application_id}-{suffix}" for name, suffix in _DERIVED_TOPICS.items()}
        return {**data, "topics": {**derived, **topics}}

    @model_validator(mode="before")
    @classmethod
    def _no_lag_of_frames(cls, data: object) -> object:
        """Frames have waited already: with them lag is 0 where it is not given."""
        if not isinstance(data, Mapping) or _given(data.get("tick", {})).get("format") != "frames":
            return data
        window = _given(data.get("window", {}))
        return data if "lag" in window else {**data, "window": {**window, "lag": 0}}

    @field_validator("pipeline", mode="before")
    @classmethod
    def _known_operators(cls, tables: object) -> object:
        if not isinstance(tables, (list, tuple)):
            raise ValueError("expected [[pipeline]] tables")  # noqa: TRY004 - pydantic collects ValueErrors only
        return tuple(_operator(position, table) for position, table in enumerate(tables, 1))

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        conflicts = [conflict for check in _CHECKS for conflict in check(self)]
        if conflicts:
            raise _ConflictsError(self, conflicts)
        return self


def _given(section: object) -> Mapping[str, object]:
    """What is given of a section, that may be a model or not yet one."""
    if isinstance(section, _Section):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, Mapping) else {}


def _topic_conflicts(settings: Settings) -> Iterator[_Conflict]:
    topics = settings.topics
    owner: dict[str, str] = {}
    for name in ("ticks", "frames", *_DERIVED_TOPICS):
        # Kafka refuses topics that differ only in . and _, since its metrics can't tell them apart.
        other = owner.setdefault(getattr(topics, name).replace(".", "_"), name)
        if other != name:
            yield _Conflict((f"topics.{other}", f"topics.{name}"), "topics must differ, by more than . and _")


def _tick_conflicts(settings: Settings) -> Iterator[_Conflict]:
    owner: dict[str, str] = {}
    for name in ("symbol", "ts", "price", "size"):
        other = owner.setdefault(getattr(settings.tick, name), name)
        if other != name:
            yield _Conflict((f"tick.{other}", f"tick.{name}"), "the fields of a tick must differ")
    needed = settings.window.lag + settings.window.allowed_lateness
    if 0 < settings.tick.max_jump < needed:
        why = (
            f"max_jump must be 0s or at least lag + allowed_lateness = {format_duration(needed)}, or a tick that is "
            "merely out of order would send the one before it to the dead letters"
        )
        yield _Conflict(("tick.max_jump", "window.lag", "window.allowed_lateness"), why)


def _window_conflicts(settings: Settings) -> Iterator[_Conflict]:
    window = settings.window
    if window.size % NS_PER_MS:
        yield _Conflict(("window.size",), "must be a whole number of milliseconds, as frames name windows in them")
    if window.lag + window.allowed_lateness == 0 and settings.tick.format == "json":
        yield _Conflict(
            ("window.lag", "window.allowed_lateness"),
            "both 0, every tick would be late (a tick is late at watermark - allowed_lateness itself); 1ns is enough",
        )
    if window.emit == "final" and window.emit_partial:
        yield _Conflict(("window.emit", "window.emit_partial"), "final promises one frame a window, so no partial ones")
    if window.payload == "items" and window.aggregation != "ohlcv":
        yield _Conflict(
            ("window.payload", "window.aggregation"),
            "the aggregation's result would be thrown away; use payload both, or ohlcv for the result alone",
        )


_OF_KIND: Final[dict[str, tuple[str, ...]]] = {
    "tumbling": ("size", "offset", "time_zone", "fill_gaps"),
    "hopping": ("size", "hop", "offset"),
    "session": ("gap",),
    "calendar": ("calendar", "session", "close_grace"),
}
"""The keys of a window that mean something for a kind, of those that don't for all."""


def _kind_conflicts(settings: Settings) -> Iterator[_Conflict]:
    window = settings.window
    own = _OF_KIND[window.kind]
    for name in sorted({name for names in _OF_KIND.values() for name in names} - set(own)):
        # A value that is the default may stay: files that list every setting have it.
        if getattr(window, name) != WindowSettings.model_fields[name].default:
            yield _Conflict((f"window.{name}", "window.kind"), f"means nothing with kind {window.kind}")
    for name in ("hop", "offset", "gap", "close_grace"):
        if getattr(window, name) % NS_PER_MS:
            why = "must be a whole number of milliseconds, as frames name windows in them"
            yield _Conflict((f"window.{name}",), why)
    if window.kind == "calendar":
        if window.calendar is None:
            yield _Conflict(("window.kind", "window.calendar"), "kind calendar needs the name of one, like XNYS")
        return  # how long its sessions are is known when it is loaded
    keys = tuple(f"window.{name}" for name in own if name != "fill_gaps")
    try:
        assigner = _assigner(window)
    except ValueError as error:
        yield _Conflict(("window.kind", *keys), str(error))
        return
    needed = assigner.longest_ns + window.lag + window.allowed_lateness
    if window.key_ttl is not None and window.key_ttl < needed:
        keys = ("window.key_ttl", keys[0], "window.lag", "window.allowed_lateness")
        length = "size" if window.time_zone is None else "longest window"
        length = "gap" if window.kind == "session" else length
        why = f"key_ttl must be at least {length} + lag + allowed_lateness = {format_duration(needed)}"
        yield _Conflict(keys, why)


def _assigner(window: WindowSettings) -> Assigner:
    if window.kind == "hopping":
        return Hopping(window.size, window.hop, window.offset)
    if window.kind == "session":
        return Sessions(window.gap)
    return make_tumbling(window.size, window.offset, window.time_zone)


def _gap_conflicts(settings: Settings) -> Iterator[_Conflict]:
    window = settings.window
    if not window.fill_gaps or window.kind != "tumbling":
        return
    if window.payload != "ohlcv" or window.aggregation != "ohlcv":
        keys = ("window.fill_gaps", "window.payload", "window.aggregation")
        yield _Conflict(keys, "only bars can be filled: expected payload ohlcv and aggregation ohlcv")
    if not window.size <= window.fill_gaps <= _MOST_FILLED * window.size:
        why = f"fill_gaps must be at least size, or nothing is filled, and at most {_MOST_FILLED:,} times size"
        yield _Conflict(("window.fill_gaps", "window.size"), why)


_MOST_FILLED: Final = 10_000  # bars that one tick can bring out


_NOT_OF_FRAMES: Final = (
    ("tick", ("symbol", "ts", "price", "size", "max_future_skew", "max_jump")),
    ("window", ("payload", "aggregation", "watermark_scope", "fill_gaps")),
    ("corrections", ("field",)),
)
"""The keys that frames leave no meaning: what they would change was decided by the application that made them."""


def _frames_conflicts(settings: Settings) -> Iterator[_Conflict]:
    if settings.tick.format == "json":
        return
    for section, names in _NOT_OF_FRAMES:
        held = getattr(settings, section)
        for name in names:
            if getattr(held, name) != type(held).model_fields[name].default:
                yield _Conflict((f"{section}.{name}", "tick.format"), "means nothing where bars are made of frames")
    if settings.window.lag:
        why = "frames come when their own application has waited, so there is nothing to wait for: expected 0s"
        yield _Conflict(("window.lag", "tick.format"), why)
    if settings.window.kind == "session":
        why = "sessions are made of ticks; frames need windows that they are equal parts of"
        yield _Conflict(("window.kind", "tick.format"), why)
    if settings.pipeline:
        yield _Conflict(("pipeline", "tick.format"), "operators work on ticks; put them where the frames are made")


def _correction_conflicts(settings: Settings) -> Iterator[_Conflict]:
    given = settings.corrections
    if given.field is None:
        for name in ("cancel", "correct", "id", "refers_to"):
            if getattr(given, name):
                yield _Conflict((f"corrections.{name}", "corrections.field"), "means nothing without field")
        return
    if given.id is None:
        yield _Conflict(("corrections.field", "corrections.id"), "a trade is found by its id: expected its field")
    if not given.cancel and not given.correct:
        keys = ("corrections.field", "corrections.cancel", "corrections.correct")
        yield _Conflict(keys, "expected what it says in messages that cancel, or that correct")
    both = set(given.cancel) & set(given.correct)
    if both:
        why = f"{', '.join(sorted(both))} can't mean both"
        yield _Conflict(("corrections.cancel", "corrections.correct"), why)
    if settings.window.fill_gaps:
        why = "of a bar whose trades are all cancelled, the close before may be known no more"
        yield _Conflict(("corrections.field", "window.fill_gaps"), why)


def _flow_conflicts(settings: Settings) -> Iterator[_Conflict]:
    lane, pressure, store = settings.lane, settings.backpressure, settings.store
    if lane.low_watermark >= lane.high_watermark:
        yield _Conflict(("lane.low_watermark", "lane.high_watermark"), "low must be below high")
    if lane.batch_size > lane.capacity:
        yield _Conflict(("lane.batch_size", "lane.capacity"), "a batch must fit in the lane")
    if store.low_watermark >= store.high_watermark:
        yield _Conflict(("store.low_watermark", "store.high_watermark"), "low must be below high")
    if store.batch_size > store.queue_capacity:
        yield _Conflict(("store.batch_size", "store.queue_capacity"), "a batch must fit in the queue")
    if pressure.soft_lag >= pressure.hard_lag:
        yield _Conflict(("backpressure.soft_lag", "backpressure.hard_lag"), "soft must be below hard")
    if pressure.rate_scale_hard > pressure.rate_scale_soft:
        yield _Conflict(
            ("backpressure.rate_scale_hard", "backpressure.rate_scale_soft"), "HARD must not allow more than SOFT"
        )


def _kafka_conflicts(settings: Settings) -> Iterator[_Conflict]:
    kafka, exactly_once = settings.kafka, settings.processing_guarantee == "exactly_once"
    if kafka.heartbeat_interval_ms * 3 > kafka.session_timeout_ms:
        yield _Conflict(
            ("kafka.heartbeat.interval.ms", "kafka.session.timeout.ms"),
            "three heartbeats must fit in a session, or one lost packet costs a rebalance",
        )
    if exactly_once and settings.commit_interval * 10 > kafka.transaction_timeout_ms * NS_PER_MS:
        yield _Conflict(
            ("commit_interval", "kafka.transaction.timeout.ms"),
            "ten commit intervals must fit in the transaction timeout, or a slow commit is aborted",
        )
    if exactly_once and kafka.acks != "all":
        yield _Conflict(("kafka.acks", "processing_guarantee"), "exactly_once needs acks all")
    if not exactly_once and kafka.acks == "0":
        yield _Conflict(("kafka.acks", "processing_guarantee"), "with acks 0 a lost frame is not even noticed")
    if kafka.fetch_max_wait_ms >= kafka.request_timeout_ms:
        yield _Conflict(("kafka.fetch.max.wait.ms", "kafka.request.timeout.ms"), "a fetch would time out while waiting")
    if kafka.max_partition_fetch_bytes > kafka.fetch_max_bytes:
        yield _Conflict(("kafka.max.partition.fetch.bytes", "kafka.fetch.max.bytes"), "a part exceeds the whole")
    if kafka.batch_size > kafka.max_request_size:
        yield _Conflict(("kafka.batch.size", "kafka.max.request.size"), "a batch must fit in a request")


def _tls_conflicts(settings: Settings) -> Iterator[_Conflict]:
    kafka = settings.kafka
    given = [
        key
        for key, value in (
            ("ssl.ca.location", kafka.ssl_ca_location),
            ("ssl.certificate.location", kafka.ssl_certificate_location),
            ("ssl.key.location", kafka.ssl_key_location),
            ("ssl.key.password", kafka.ssl_key_password),
        )
        if value is not None
    ]
    if not _uses_tls(kafka):
        for key in given:
            why = "has no effect: the connection would not be encrypted; expected SSL or SASL_SSL"
            yield _Conflict((f"kafka.{key}", "kafka.security.protocol"), why)
    for key in given:
        if key.startswith("ssl.key.") and kafka.ssl_certificate_location is None:
            yield _Conflict((f"kafka.{key}", "kafka.ssl.certificate.location"), "a key needs its certificate")


def _login_conflicts(settings: Settings) -> Iterator[_Conflict]:
    kafka = settings.kafka
    jaas = kafka.sasl_jaas_config
    pairs = {"kafka.sasl.username": kafka.sasl_username, "kafka.sasl.password": kafka.sasl_password}
    given = [key for key, value in (*pairs.items(), ("kafka.sasl.jaas.config", jaas)) if value is not None]
    if not _uses_sasl(kafka):
        for key in given:
            why = "has no effect: nobody would log in; expected SASL_SSL or SASL_PLAINTEXT"
            yield _Conflict((key, "kafka.security.protocol"), why)
        return
    if jaas is None:
        for key in pairs:
            if key not in given:
                yield _Conflict((key, "kafka.security.protocol"), "a login needs sasl.username and sasl.password")
        return
    if len(given) > 1:
        yield _Conflict(tuple(given), "the login is given twice; use either the JAAS text or name and password")
    try:
        module = _parse_jaas(jaas.get_secret_value()).module
    except ValueError as error:
        yield _Conflict(("kafka.sasl.jaas.config",), str(error))
        return
    if not kafka.sasl_mechanism.startswith(module):
        keys = ("kafka.sasl.jaas.config", "kafka.sasl.mechanism")
        yield _Conflict(keys, f"the JAAS text logs in by {module}, the mechanism is another")


def _pipeline_conflicts(settings: Settings) -> Iterator[_Conflict]:
    for position, operator in enumerate(settings.pipeline, 1):
        name = next(name for name, kind in OPERATORS.items() if isinstance(operator, kind))
        for keys, why in operator.conflicts(settings):
            yield _Conflict(keys, f"pipeline entry {position} ({name}): {why}")


_CHECKS: Final[tuple[Callable[[Settings], Iterator[_Conflict]], ...]] = (
    _topic_conflicts,
    _tick_conflicts,
    _window_conflicts,
    _kind_conflicts,
    _gap_conflicts,
    _frames_conflicts,
    _correction_conflicts,
    _flow_conflicts,
    _kafka_conflicts,
    _tls_conflicts,
    _login_conflicts,
    _pipeline_conflicts,
)


# -- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Key:
    """One setting: where it is in the model, and what may be written for it."""

    name: str
    section: str
    attribute: str
    field: FieldInfo
    type: object

    @property
    def is_duration(self) -> bool:
        return _PARSE_DURATION in self.field.metadata or self.may_be_never

    @property
    def may_be_never(self) -> bool:
        """Whether nothing is a value, which users write as ``never``."""
        return _PARSE_DURATION_OR_NEVER in self.field.metadata

    @property
    def is_secret(self) -> bool:
        return self.type is SecretStr

    def read(self, settings: Settings) -> object:
        holder: object = getattr(settings, self.section) if self.section else settings
        return getattr(holder, self.attribute)

    def show(self, value: object) -> str:
        """The value as users write it in a variable or flag; nothing where it is not set, stars for a secret."""
        if value is None:
            return "never" if self.may_be_never else ""
        if self.is_secret:
            return _MASK
        if self.is_duration and isinstance(value, int):
            return format_duration(value)
        if _PARSE_INSTANT in self.field.metadata and isinstance(value, int):
            return format_time(value)
        if self.name == "metrics.port" and value == METRICS_OFF:
            return "off"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
            return ",".join(value)
        return repr(list(value)) if isinstance(value, tuple) else str(value)

    def allowed(self) -> str:
        """What may be written, in words."""
        extra = self.field.json_schema_extra
        if isinstance(extra, dict) and "allowed" in extra:
            return str(extra["allowed"])
        if get_origin(self.type) is Literal:
            return " | ".join(get_args(self.type))
        names: dict[object, str] = {bool: "true | false", int: "integer", float: "number", str: "text"}
        kind = "duration" if self.is_duration else names.get(self.type, "text")
        return kind + self._bounds()

    def _bounds(self) -> str:
        """The narrowest bounds among the type's and the field's own."""
        rules = self.field.metadata
        low = max((rule.ge for rule in rules if isinstance(rule, Ge) and isinstance(rule.ge, int)), default=None)
        high = min((rule.le for rule in rules if isinstance(rule, Le) and isinstance(rule.le, int)), default=None)
        if any(isinstance(rule, Gt) for rule in rules):
            return f" above 0, at most {self.show(high)}"
        if high is None or high == _MAX_INT32:  # Kafka's own width of an integer tells the user nothing
            return f" >= {self.show(low)}" if low is not None else ""
        return f" {self.show(low)} to {self.show(high)}"

    def from_text(self, text: str) -> object:
        """What a variable's or flag's text means for this key; text that means nothing is left for the check."""
        stripped = text.strip()
        if self.is_duration or _PARSE_INSTANT in self.field.metadata:
            return text
        if self.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}.get(stripped.lower(), text)
        if self.type is int and re.fullmatch(r"[+-]?\d(_?\d){0,17}", stripped, re.ASCII):
            return int(stripped)
        if self.type is float:
            try:
                return float(stripped)
            except ValueError:
                return text
        return text


def _bare_type(annotation: object) -> object:
    """The type without ``| None``."""
    arguments = [argument for argument in get_args(annotation) if argument is not NoneType]
    return arguments[0] if NoneType in get_args(annotation) else annotation


def _collect_keys() -> dict[str, _Key]:
    keys: dict[str, _Key] = {}
    for name, top in Settings.model_fields.items():
        model = top.annotation
        if not (isinstance(model, type) and issubclass(model, _Section)):
            keys[name] = _Key(name, "", name, top, _bare_type(model))
            continue
        for attribute, leaf in model.model_fields.items():
            key = f"{name}.{leaf.alias or attribute}"
            keys[key] = _Key(key, name, attribute, leaf, _bare_type(leaf.annotation))
    return keys


_KEYS: Final = _collect_keys()
_SECTIONS: Final = frozenset(key.section for key in _KEYS.values() if key.section)
_SECRET_FILES: Final = {f"{key.name}.file": key.name for key in _KEYS.values() if key.is_secret}
"""``kafka.sasl.password.file -> kafka.sasl.password``: keys that name a file holding a secret."""
_CANONICAL: Final = {f"kafka.{name}": f"kafka.{canonical}" for name, canonical in _SYNONYMS.items()}
_REFUSED: Final = {f"kafka.{name}": reason for name, reason in _MANAGED.items()}
_WRITABLE: Final = frozenset([*_KEYS, *_SECRET_FILES, *_CANONICAL])


def _variables() -> dict[str, str]:
    """Environment variable -> key, least specific first: where two mean one key, the later one wins."""
    kafka = [key for key in (*_WRITABLE, *_REFUSED) if key.startswith("kafka.")]
    names = {key.upper().replace(".", "_"): key for key in sorted(kafka)}
    names["KAFKA_BOOTSTRAP_SERVERS"] = "bootstrap_servers"
    names["WORKERS_STORE_DSN"] = "store.postgres"
    names["WORKERS_STORE_DSN_FILE"] = "store.postgres.file"
    for key in sorted([*_WRITABLE, *_REFUSED]):
        names["WORKERS__" + key.upper().replace(".", "__")] = key
        if key.startswith("kafka."):  # Kafka's dots may be single underscores too, as in KAFKA_SASL_USERNAME
            names["WORKERS__KAFKA__" + key.removeprefix("kafka.").upper().replace(".", "_")] = key
    return names


_VARIABLES: Final = _variables()
_FLATTENED_VARIABLES: Final = {name.replace("__", "_"): name for name in _VARIABLES if name.startswith("WORKERS__")}


# -- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A value that some source gave, with what errors and ``config show`` need to name it."""

    value: object
    spelled: str
    where: str
    source: str


@dataclass(slots=True)
class _Layer:
    """What one source gave, by canonical key; ``problems`` is shared by all layers of a load.

    ``textual`` sources can give nothing but text, so theirs is read as what the key needs; TOML has types of its own,
    and a quoted number there is a mistake (except under Kafka's names, which are often copied from Java properties).
    """

    problems: list[str]
    textual: bool = True
    entries: dict[str, _Entry] = field(default_factory=dict)

    def put(self, spelled: str, value: object, where: str, source: str) -> None:
        """Take one value, or say what is wrong with its key. Values of unknown keys are never repeated: a mistyped
        ``sasl.password`` is still a password."""
        key = _CANONICAL.get(spelled, spelled)
        if spelled in _REFUSED:
            self.problems.append(f"{where}: {spelled} can't be set: {_REFUSED[spelled]}")
            return
        if key not in _WRITABLE:
            self.problems.append(f"{where}: {spelled} is not a setting{_did_you_mean(spelled)}")
            return
        rival = self._rival(key)
        if rival is not None:
            first = self.entries[rival]
            self.problems.append(f"{where}: {spelled} is given twice, also as {first.spelled} in {first.where}")
            return
        if isinstance(value, str) and key in _KEYS and (self.textual or key.startswith("kafka.")):
            value = _KEYS[key].from_text(value)
        self.entries[key] = _Entry(value, spelled, where, source)

    def _rival(self, key: str) -> str | None:
        twins = [key, f"{key}.file", _SECRET_FILES.get(key, key)]
        return next((twin for twin in twins if twin in self.entries), None)

    def override(self, other: _Layer) -> None:
        """Let ``other`` win; a secret and the file holding it are one thing, so either one replaces both."""
        for key in other.entries:
            self.entries.pop(f"{key}.file", None)
            self.entries.pop(_SECRET_FILES.get(key, key), None)
        self.entries.update(other.entries)


def _did_you_mean(spelled: str) -> str:
    """The settings whose names come closest, the same last word in another section included."""
    last = spelled.rpartition(".")[2].lower()
    level = _WRITABLE if "." in spelled else _SECTIONS | {key for key in _KEYS if "." not in key}
    close = difflib.get_close_matches(spelled.lower(), sorted(level), n=2, cutoff=0.75)
    elsewhere = [key for key in _KEYS if not key.startswith("kafka.") and key.rpartition(".")[2] == last]
    kafka = [key for key in _KEYS if key == f"kafka.{spelled.lower()}"]
    longer = [key for key in _KEYS if "." in spelled and key.startswith(spelled.lower())]
    found = list(dict.fromkeys([*longer, *elsewhere, *kafka, *close]))[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _quoted(value: object) -> str:
    """A value as an error shows it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _read_file_layer(path: Path, problems: list[str]) -> _Layer:
    """The settings of a TOML file; what is wrong with it goes to ``problems``."""
    layer = _Layer(problems, textual=False)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: the configuration can't be read: {_reason(error)}")
        return layer
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: not TOML: {error}")
        return layer
    for key, value in _leaves(data, str(path), problems):
        layer.put(key, value, str(path), f"file {path}")
    return layer


def _leaves(data: Mapping[str, object], where: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        if name not in _SECTIONS:
            yield name, value
        elif not isinstance(value, dict):
            problems.append(f"{where}: {name}: expected a table, [{name}], found {type(value).__name__}")
        elif name == "kafka":
            yield from _kafka_leaves(name, value)
        else:
            for key, item in value.items():
                secret = _KEYS.get(f"{name}.{key}")
                if secret is not None and secret.is_secret and isinstance(item, dict):
                    yield from _kafka_leaves(f"{name}.{key}", item)  # postgres.file, which TOML takes for a table
                else:
                    yield f"{name}.{key}", item


def _kafka_leaves(prefix: str, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Kafka's dotted names again, out of the nested tables that TOML makes of them."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _kafka_leaves(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def _environment_layers(environ: Mapping[str, str], problems: list[str]) -> Iterator[_Layer]:
    """First what Kafka's common variables say, then what is said for this program alone."""
    kafka, own = _Layer(problems), _Layer(problems)
    for name in sorted(environ):
        value, where = environ[name], f"environment variable {name}"
        if not value:
            continue
        if name in _VARIABLES and _VARIABLES[name] == "pipeline":
            problems.append(f"{where}: pipeline is a list of tables; set it in a file")
        elif name in _VARIABLES:
            (own if name.startswith("WORKERS__") else kafka).put(_VARIABLES[name], value, where, f"env {name}")
        elif _looks_ours(name, value):
            near = difflib.get_close_matches(name, sorted(_VARIABLES), n=1, cutoff=0.75)
            near = [_FLATTENED_VARIABLES[name]] if name in _FLATTENED_VARIABLES else near
            problems.append(f"{where} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    yield kafka
    yield own


def _looks_ours(name: str, value: str) -> bool:
    """Whether an unknown variable was meant for this program, rather than for a broker or by Kubernetes."""
    if name.upper().startswith("WORKERS__"):
        return True
    if name in _FLATTENED_VARIABLES:
        return not value.startswith("tcp://")  # the service link of a Service called workers-metrics
    return name.startswith("KAFKA_") and bool(difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=0.9))


_OPTIONS: Final = {"bootstrap_servers": "--bootstrap-servers", "application_id": "--application-id"}


def _flag_layer(overrides: Mapping[str, object], problems: list[str]) -> _Layer:
    layer = _Layer(problems)
    for name, value in overrides.items():
        where = _OPTIONS.get(name, f"--set {name}")
        if value is None:
            continue  # a flag that was not given
        if name in _KEYS and _KEYS[name].is_secret:
            variable = "WORKERS_STORE_DSN" if name == "store.postgres" else name.upper().replace(".", "_")
            problems.append(
                f"{where}: secrets can't be passed as flags, which every process can see; use {variable} or _FILE"
            )
        elif name == "pipeline":
            problems.append(f"{where}: pipeline is a list of tables; set it in a file")
        else:
            layer.put(name, value, where, "flag")
    return layer


def _read_secret_files(entries: dict[str, _Entry], problems: list[str]) -> set[str]:
    """Replace each ``….file`` by the secret it holds, without the line end that editors and ``echo`` add.

    Returns the secrets that were meant to be set but can't be read, so that nobody is told to set them.
    """
    unread = set[str]()
    for key, secret in _SECRET_FILES.items():
        entry = entries.pop(key, None)
        if entry is None:
            continue
        if not isinstance(entry.value, str):
            problems.append(f"{entry.where}: {entry.spelled} = {_quoted(entry.value)}: expected a path")
            unread.add(secret)
            continue
        try:
            text = Path(entry.value).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{entry.where}: {entry.spelled} = {_quoted(entry.value)}: can't be read: {_reason(error)}")
            unread.add(secret)
            continue
        source = f"{entry.source}, read from {entry.value}"
        entries[secret] = _Entry(text, entry.spelled, f"{entry.where}, read from {entry.value}", source)
    return unread


def _reason(error: Exception) -> str:
    """Why a file can't be read, without what is in it."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "not UTF-8 text"


# -- loading ----------------------------------------------------------------------------------------------------------


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """The settings from file, environment and flags, each overriding the one before, checked as a whole.

    ``path`` is a TOML file; without it ``WORKERS_CONFIG`` names one, and without that ``config/workers.toml`` is read
    if it is in the working directory. ``environ`` is the process's environment where not given. ``overrides`` maps
    dotted keys (``window.size``) to text or values; ``None`` means that the flag was not given.

    Raises ``ConfigError`` with every problem found, one a line, each naming the file, variable or flag, the key, the
    value (never a secret's) and what is allowed.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    merged = _Layer(problems)
    chosen = _config_path(path, environ)
    if chosen is not None:
        merged.override(_read_file_layer(chosen, problems))
    for layer in _environment_layers(environ, problems):
        merged.override(layer)
    merged.override(_flag_layer(overrides or {}, problems))
    unread = _read_secret_files(merged.entries, problems)
    settings = _validate(merged.entries, unread, problems)
    if problems or settings is None:
        raise ConfigError("\n".join(problems))
    settings._sources = {key: entry.source for key, entry in merged.entries.items()}
    return settings


def _config_path(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return path
    if environ.get("WORKERS_CONFIG"):
        return Path(environ["WORKERS_CONFIG"])
    return DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.is_file() else None


def _validate(entries: Mapping[str, _Entry], bad: set[str], problems: list[str]) -> Settings | None:
    """The model of the entries, or ``None`` with why in ``problems``.

    ``bad`` keys are known to be wrong already. Values that are wrong by themselves are set aside and the rest is looked
    at again, so that impossible combinations among the good ones are reported in the same go.
    """
    good = dict(entries)
    while True:
        try:
            settings = Settings.model_validate(_nested(good))
        except ValidationError as error:
            found = error.errors(include_url=False)
        else:
            return None if bad else settings
        wrong = {key: item for item in found if (key := ".".join(str(part) for part in item["loc"])) in good}
        for key, item in wrong.items():
            problems.append(_explain(good.pop(key), _KEYS[key], item["type"], item["msg"]))
        bad |= wrong.keys()
        if not wrong:
            for item in found:
                problems.extend(_explain_conflicts(item.get("ctx", {}).get("error", item["msg"]), entries, bad))
            return None


def _nested(entries: Mapping[str, _Entry]) -> dict[str, object]:
    """The entries as pydantic takes them: a dictionary for each section."""
    tables: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
    top: dict[str, object] = {}
    for name, entry in entries.items():
        key = _KEYS[name]
        (tables[key.section] if key.section else top)[name.removeprefix(f"{key.section}.")] = entry.value
    return {**top, **tables}


def _explain(entry: _Entry, key: _Key, kind: str, message: str) -> str:
    """One line about one wrong value."""
    hidden = key.is_secret or (key.name == "bootstrap_servers" and "@" in str(entry.value))
    shown = _MASK if hidden else _quoted(entry.value)
    why = f"{message.removeprefix('Value error, ')}; " if kind == "value_error" else ""
    if key.name == "pipeline":
        return f"{entry.where}: pipeline: {why.removesuffix('; ')}"
    near: list[str] = []
    if get_origin(key.type) is Literal and isinstance(entry.value, str):
        near = difflib.get_close_matches(entry.value, get_args(key.type), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{entry.where}: {entry.spelled} = {shown}: {why}expected {key.allowed()}{hint}"


def _explain_conflicts(cause: object, entries: Mapping[str, _Entry], bad: set[str]) -> list[str]:
    """A line for each impossible combination of good values, naming where each value came from."""
    if not isinstance(cause, _ConflictsError):
        return [str(cause)]
    lines = []
    for keys, why in cause.conflicts:
        if bad.isdisjoint(keys):
            parts = []
            for name in keys:
                shown = _KEYS[name].show(_KEYS[name].read(cause.settings)) or "(not set)"
                parts.append(f"{name} = {shown} ({entries[name].where if name in entries else 'default'})")
            lines.append(f"{', '.join(parts)}: {why}")
    return lines


# -- showing ----------------------------------------------------------------------------------------------------------


class SettingRow(NamedTuple):
    """One setting in force: its key, its value as users write it (a secret as stars), and where it came from."""

    key: str
    value: str
    source: str


class ReferenceRow(NamedTuple):
    """One setting that exists: its key, what may be written, its default, and what it does."""

    key: str
    allowed: str
    default: str
    description: str


def operator_reference() -> list[ReferenceRow]:
    """Every option of every operator, as ``pipeline.<operator>.<option>``; a router's rules as ``rules.<option>``."""
    rows = []
    for name, options in OPERATORS.items():
        rows += _option_rows(f"pipeline.{name}", options)
        if options is RouterSettings:
            rows += _option_rows(f"pipeline.{name}.rules", RuleSettings)
    return rows


def _option_rows(prefix: str, options: type[_Section]) -> list[ReferenceRow]:
    rows = []
    for name, option in options.model_fields.items():
        key = _Key(f"{prefix}.{name}", "", name, option, _bare_type(option.annotation))
        default = "" if option.is_required() or option.default in (None, ()) else key.show(option.default)
        rows.append(ReferenceRow(key.name, key.allowed(), default, " ".join((option.description or "").split())))
    return rows


def describe_settings(settings: Settings) -> list[SettingRow]:
    """Every setting in force; ``source`` is ``default``, ``file <path>``, ``env <NAME>`` or ``flag``.

    Secrets are stars when set; a setting without a value is empty text.
    """
    sources = settings._sources
    return [SettingRow(name, key.show(key.read(settings)), sources.get(name, "default")) for name, key in _KEYS.items()]


def reference() -> list[ReferenceRow]:
    """Every setting there is, in the order of the sections; documentation tables are made of this."""
    defaults = Settings()
    rows = []
    for name, key in _KEYS.items():
        rows.append(
            ReferenceRow(
                name, key.allowed(), key.show(key.read(defaults)), " ".join((key.field.description or "").split())
            )
        )
        if key.is_secret:
            description = f"A file that holds `{name.removeprefix('kafka.')}`, instead of the secret itself."
            rows.append(ReferenceRow(f"{name}.file", "the path of a text file", "", description))
    return rows


def advice(settings: Settings) -> list[str]:
    """What is possible and may not be meant, a sentence each: for a log at the start, and ``workers config check``."""
    tick, window = settings.tick, settings.window
    waited = window.lag + window.allowed_lateness
    if tick.format == "frames" or tick.max_future_skew <= waited:
        return []
    return [
        f"tick.max_future_skew is {format_duration(tick.max_future_skew)} and window.lag + window.allowed_lateness "
        f"{format_duration(waited)}: one tick from such a fast clock can make up to "
        f"{format_duration(tick.max_future_skew - waited)} of its symbol's ticks late; a smaller skew or more lag "
        f"limits that"
    ]


# -- for aiokafka -----------------------------------------------------------------------------------------------------


def client_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments that aiokafka's client and admin client take; certificates and keys are read here.

    Raises ``ConfigError`` where a certificate or key can't be read or used.
    """
    kafka = settings.kafka
    options: dict[str, object] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": kafka.client_id or settings.application_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "metadata_max_age_ms": kafka.metadata_max_age_ms,
        "retry_backoff_ms": kafka.retry_backoff_ms,
        "connections_max_idle_ms": kafka.connections_max_idle_ms,
        "security_protocol": kafka.security_protocol,
    }
    if _uses_tls(kafka):
        options["ssl_context"] = _ssl_context(settings)
    if _uses_sasl(kafka):
        username, password = _login(kafka)
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = username
        options["sasl_plain_password"] = password
    return options


def consumer_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments for an aiokafka consumer in the application's group; offsets are never committed by itself.

    Raises ``ConfigError`` as ``client_options`` does.
    """
    kafka = settings.kafka
    return client_options(settings) | {
        "group_id": settings.application_id,
        "group_instance_id": kafka.group_instance_id,
        "client_rack": kafka.client_rack,
        "enable_auto_commit": False,
        "auto_offset_reset": kafka.auto_offset_reset,
        "isolation_level": kafka.isolation_level,
        "session_timeout_ms": kafka.session_timeout_ms,
        "heartbeat_interval_ms": kafka.heartbeat_interval_ms,
        "rebalance_timeout_ms": kafka.rebalance_timeout_ms,
        "max_poll_interval_ms": kafka.max_poll_interval_ms,
        "fetch_min_bytes": kafka.fetch_min_bytes,
        "fetch_max_wait_ms": kafka.fetch_max_wait_ms,
        "fetch_max_bytes": kafka.fetch_max_bytes,
        "max_partition_fetch_bytes": kafka.max_partition_fetch_bytes,
    }


def producer_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments for an aiokafka producer; idempotent where ``acks`` is ``all``.

    ``transactional_id`` is for the caller to add: it is one per input partition. ``transaction_timeout_ms`` has no
    effect without it. Raises ``ConfigError`` as ``client_options`` does.
    """
    kafka = settings.kafka
    return client_options(settings) | {
        "acks": kafka.acks if kafka.acks == "all" else int(kafka.acks),
        "enable_idempotence": kafka.acks == "all",
        "compression_type": None if kafka.compression_type == "none" else kafka.compression_type,
        "linger_ms": kafka.linger_ms,
        "max_batch_size": kafka.batch_size,
        "max_request_size": kafka.max_request_size,
        "transaction_timeout_ms": kafka.transaction_timeout_ms,
    }


def _uses_tls(kafka: KafkaSettings) -> bool:
    return kafka.security_protocol in ("SSL", "SASL_SSL")


def _uses_sasl(kafka: KafkaSettings) -> bool:
    return kafka.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """What to trust and how to identify this client, from PEM files. Raises ``ConfigError``."""
    kafka = settings.kafka
    for key in ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location"):
        _require_pem(settings, f"kafka.{key}")
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_location)
    except ssl.SSLError as error:
        raise _file_error(settings, "kafka.ssl.ca.location", f"no usable certificate: {error.reason}") from None
    context.check_hostname = kafka.ssl_endpoint_identification_algorithm == "https"
    if kafka.ssl_certificate_location is None:
        return context
    secret = kafka.ssl_key_password
    key = "kafka.ssl.key.location" if kafka.ssl_key_location else "kafka.ssl.certificate.location"

    def passphrase() -> str:
        if secret is None:  # without this OpenSSL would ask the terminal, and a service would hang
            raise _file_error(settings, key, "the key is encrypted; set ssl.key.password")
        return secret.get_secret_value()

    try:
        context.load_cert_chain(kafka.ssl_certificate_location, kafka.ssl_key_location, passphrase)
    except ssl.SSLError as error:
        why = f"certificate and key can't be used together, or the passphrase is wrong: {error.reason}"
        raise _file_error(settings, key, why) from None
    return context


def _require_pem(settings: Settings, key: str) -> None:
    path = _KEYS[key].read(settings)
    if not isinstance(path, str):
        return
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _file_error(settings, key, f"can't be read: {_reason(error)}") from None
    if b"-----BEGIN " not in content:
        raise _file_error(settings, key, f"not a PEM file. {_NO_KEYSTORE}")


def _file_error(settings: Settings, key: str, why: str) -> ConfigError:
    source = settings._sources.get(key, "default")
    return ConfigError(f"{key} = {_quoted(_KEYS[key].read(settings))} ({source}): {why}")


def _login(kafka: KafkaSettings) -> tuple[str, str]:
    """Name and password; that there are some was checked when the settings were made."""
    if kafka.sasl_jaas_config is not None:
        jaas = _parse_jaas(kafka.sasl_jaas_config.get_secret_value())
        return jaas.username, jaas.password
    if kafka.sasl_username is None or kafka.sasl_password is None:
        raise ConfigError("kafka.sasl.username and kafka.sasl.password are not both set; a login needs them")
    return kafka.sasl_username, kafka.sasl_password.get_secret_value()


class _Jaas:
    """A login out of JAAS text; ``module`` is ``PLAIN`` or ``SCRAM``. It has no repr, because it holds a password."""

    __slots__ = ("module", "password", "username")

    def __init__(self, module: str, username: str, password: str) -> None:
        self.module = module
        self.username = username
        self.password = password


_JAAS_MODULES: Final = {"PlainLoginModule": "PLAIN", "ScramLoginModule": "SCRAM"}
_JAAS_HEAD = re.compile(r"\s*(?:[\w$]+\.)*(\w+)\s+(?:required|requisite|sufficient|optional)\b", re.IGNORECASE)
_JAAS_OPTION = re.compile(r"\s*([\w.]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|([^\s;\"']+))", re.DOTALL)
_JAAS_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def _parse_jaas(text: str) -> _Jaas:
    """Name and password out of ``…PlainLoginModule required username="…" password="…";``.

    Raises ``ValueError``, whose message repeats nothing of the text.
    """
    head = _JAAS_HEAD.match(text)
    if head is None or head[1] not in _JAAS_MODULES:
        raise ValueError("expected one PlainLoginModule or ScramLoginModule, followed by required")
    options, position = {}, head.end()
    while option := _JAAS_OPTION.match(text, position):
        name, double, single, bare = option.groups()
        value = next(part for part in (double, single, bare) if part is not None)
        if bare is None:
            value = re.sub(r"\\(.)", lambda escape: _JAAS_ESCAPES.get(escape[1], escape[1]), value, flags=re.DOTALL)
        options[name] = value
        position = option.end()
    if text[position:].strip() not in ("", ";"):
        raise ValueError('expected only options like name="value" after required, and one semicolon at the end')
    if not options.get("username") or not options.get("password"):
        raise ValueError("expected the options username and password")
    return _Jaas(_JAAS_MODULES[head[1]], options["username"], options["password"])
