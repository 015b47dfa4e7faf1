"""The values that settings are made of: what users write, what it becomes, and what is allowed.

Durations are text with a unit (``5s``, ``200ms``) outside and integer nanoseconds inside. A type here is pydantic's
``Annotated``: the value's type, the function that reads what was written, its bounds, and words for what is allowed
where bounds don't say it.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr
from pydantic.config import JsonDict

from workers.settings.wording import SHOWN_CHARS
from workers.times import (
    MAX_EVENT_TIME_NS,
    NS_PER_SECOND,
    datetime_to_ns,
    parse_duration,
    parse_instant,
    timedelta_to_ns,
)

__all__ = [
    "MAX_DURATION_NS",
    "MAX_INT32",
    "PARSE_DURATION",
    "PARSE_DURATION_OR_NEVER",
    "PARSE_INSTANT",
    "PLACE",
    "TOPIC",
    "DurationNs",
    "Function",
    "InstantNs",
    "Int32",
    "JsonField",
    "JsonFields",
    "Names",
    "OptionalField",
    "Portion",
    "Scale",
    "Secret",
    "Servers",
    "Text",
    "TopicName",
    "allowed",
    "as_tuple",
    "lower",
    "upper",
]

MAX_DURATION_NS: Final = 366 * 86_400 * NS_PER_SECOND  # sums of a few of these and an event time still fit 64 bits
MAX_INT32: Final = 2**31 - 1
"""Kafka's own width of an integer."""


def allowed(words: str) -> JsonDict:
    """What may be written, where a type's own bounds don't say it; found again by ``Key.allowed``."""
    return {"allowed": words}


def _duration(value: object) -> int:
    """Nanoseconds of a duration as users write it; a bare number is refused because nobody can know its unit."""
    if isinstance(value, timedelta):
        return timedelta_to_ns(value)
    if isinstance(value, str) and len(value) <= SHOWN_CHARS:
        return parse_duration(value)
    if value == 0 and isinstance(value, int) and not isinstance(value, bool):
        return 0
    raise ValueError("a duration is text with a unit, like 5s or 200ms (only 0 needs none)")


def _duration_or_never(value: object) -> int | None:
    return None if value is None or value == "never" else _duration(value)


PARSE_DURATION: Final = BeforeValidator(_duration)
PARSE_DURATION_OR_NEVER: Final = BeforeValidator(_duration_or_never)
DurationNs = Annotated[int, PARSE_DURATION, Field(ge=0, le=MAX_DURATION_NS)]
"""Integer nanoseconds, at most 366 days; accepted as ``5s``, ``200ms``, ``1h30m``, a timedelta, or 0."""


def _instant(value: object) -> int:
    """Nanoseconds of a date or a time as users write it, which in TOML may be values of their own types."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return datetime_to_ns(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime_to_ns(datetime.combine(value, time()))
    if isinstance(value, str) and len(value) <= SHOWN_CHARS:
        return parse_instant(value.strip())
    raise ValueError("neither a date nor a time with an offset")


PARSE_INSTANT: Final = BeforeValidator(_instant)
InstantNs = Annotated[int, PARSE_INSTANT, Field(ge=-MAX_EVENT_TIME_NS, le=MAX_EVENT_TIME_NS)]
"""Integer nanoseconds since the epoch; accepted as ``1990-01-01`` or ``2026-01-31T13:21:25Z``."""

TOPIC: Final = re.compile(r"[A-Za-z0-9._-]+")
"""The characters of a topic's name."""


def _topic(value: object) -> object:
    """A name Kafka accepts for a topic; the broker's own refusal would come only at the first write."""
    if isinstance(value, str) and (not TOPIC.fullmatch(value) or value in (".", "..") or len(value) > 249):
        raise ValueError("not a name Kafka accepts")
    return value


TopicName = Annotated[str, BeforeValidator(_topic), Field(json_schema_extra=allowed("1 to 249 of A-Z a-z 0-9 . _ -"))]


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


Servers = Annotated[str, BeforeValidator(_servers), Field(json_schema_extra=allowed("host:port, comma-separated"))]

PLACE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""Where a callable is imported from: ``package.module:name``."""
Function = Annotated[str, Field(pattern=PLACE.pattern + "$", json_schema_extra=allowed("package.module:name"))]
JsonField = Annotated[str, Field(min_length=1, json_schema_extra=allowed("the name of a JSON field"))]
OptionalField = Annotated[str | None, Field(min_length=1, json_schema_extra=allowed("the name of a JSON field"))]


def as_tuple(value: object) -> object:
    """A list of TOML as the tuple that a frozen model holds."""
    return tuple(value) if isinstance(value, list) else value


JsonFields = Annotated[
    tuple[JsonField, ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, json_schema_extra=allowed("a list of names of JSON fields")),
]


def _names(value: object) -> object:
    """A list of text and integers, or text with commas between them, as text."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip() not in ("", "[]")]
    if not isinstance(value, list | tuple) or not all(type(item) in (str, int) for item in value):
        raise ValueError("not a list of text or integers")
    return tuple(str(item) for item in value)


Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_names),
    Field(json_schema_extra=allowed("a list of text or integers, or text with commas between them")),
]
Text = Annotated[str | None, Field(min_length=1)]
Secret = Annotated[SecretStr | None, Field(min_length=1)]
Portion = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Int32 = Annotated[int, Field(ge=1, le=MAX_INT32)]


def lower(value: object) -> object:
    """For words that may be written in any case; what is no text is left for the check."""
    return value.lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    """As ``lower``, for words that are written in capitals."""
    return value.upper() if isinstance(value, str) else value
