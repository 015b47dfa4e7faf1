"""``[[pipeline]]``: the options of the operators that ticks pass before windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import TO_WINDOWS, Filter, Map, OperatorSpec, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.settings.section import Section
from workers.settings.topics import DERIVED_TOPICS
from workers.settings.values import (
    MAX_DURATION_NS,
    DurationNs,
    Function,
    JsonField,
    JsonFields,
    TopicName,
    allowed,
    as_tuple,
)
from workers.settings.windows import WindowSettings
from workers.settings.wording import nearest, quoted
from workers.times import NS_PER_SECOND, format_duration

if TYPE_CHECKING:
    from workers.settings.model import Settings

__all__ = [
    "OPERATORS",
    "DeduplicateSettings",
    "FilterSettings",
    "MapSettings",
    "Operator",
    "RouterSettings",
    "RuleSettings",
    "ThrottleSettings",
    "operator_of",
]


class Operator(Section):
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

    id: JsonField | None = Field(
        default=None,
        description="JSON field of the id. Instead: `fields`.",
        json_schema_extra=allowed("the name of a JSON field"),
    )
    fields: JsonFields | None = Field(
        default=None,
        description="JSON fields that together form the id, if one is not enough.",
        json_schema_extra=allowed("a list of names of JSON fields"),
    )
    ttl: DurationNs = Field(
        default=600 * NS_PER_SECOND,
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
        json_schema_extra=allowed("number above 0, at most 1000000000"),
    )
    burst: int = Field(default=1, ge=1, le=1_000_000, description="drop: ticks allowed at once after a quiet period.")
    per: Literal["symbol", "partition"] = Field(
        default="symbol", description="drop: whether `rate` applies to each symbol or to a whole partition."
    )
    interval: Annotated[DurationNs, Field(ge=1)] | None = Field(
        default=None,
        description="conflate: interval length; intervals begin at multiples of it.",
        json_schema_extra=allowed("duration 1ns to 366d"),
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
        if self.rate is not None and self.burst * self._spacing_ns() > MAX_DURATION_NS:
            raise ValueError("burst / rate must be at most 366 days")
        return self

    def _spacing_ns(self) -> int:
        return math.ceil(NS_PER_SECOND / Fraction(str(self.rate)))  # rounded up: never above the rate

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


class RuleSettings(Section):
    """A rule of a router: which ticks, and where to. Both conditions hold where both are given."""

    to: TopicName = Field(description="Topic to write the ticks to, unchanged; window: pass them on to the windows.")
    symbol: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Symbol pattern: * any text, ? any character, [ab] one of these; case-sensitive.",
        json_schema_extra=allowed("a pattern"),
    )
    field: JsonField | None = Field(
        default=None,
        description="JSON field to compare with `equals`.",
        json_schema_extra=allowed("the name of a JSON field"),
    )
    equals: str | int | float | bool | None = Field(
        default=None,
        description="Value that the field must have.",
        json_schema_extra=allowed("text, number, true or false"),
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

    rules: Annotated[tuple[RuleSettings, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="Rules, in order: tables with `to` and `symbol`, or `field` and `equals`, or all.",
        json_schema_extra=allowed("a list of tables"),
    )
    default: TopicName = Field(
        default=TO_WINDOWS, description="Topic for ticks that match no rule; window: pass them on to the windows."
    )

    def spec(self, window: WindowSettings) -> OperatorSpec:
        routes = tuple(Route(rule.to, rule.symbol, rule.field, rule.equals) for rule in self.rules)
        return Router(routes, self.default)

    def topics(self) -> frozenset[str]:
        return frozenset({self.default, *(rule.to for rule in self.rules)} - {TO_WINDOWS})

    def conflicts(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
        for role in ("ticks", "frames", *DERIVED_TOPICS):
            for name in self.topics():
                if getattr(settings.topics, role).replace(".", "_") == name.replace(".", "_"):
                    yield (f"topics.{role}",), f"ticks can't be routed to {name}, which has another use"


class FilterSettings(Operator):
    """Keep the ticks that a function of yours says yes to."""

    function: Function = Field(
        description="Function of a `workers.Tick`; true keeps it. It must depend on the tick alone.",
    )
    ledger: bool = Field(default=True, description="Write each tick dropped to the late topic, with reason filtered.")

    def spec(self, window: WindowSettings) -> OperatorSpec:
        return Filter(self.function, self.ledger)


class MapSettings(Operator):
    """Replace each tick by what a function of yours makes of it."""

    function: Function = Field(
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


def operator_of(position: int, table: object) -> Operator:
    """One ``[[pipeline]]`` table, turned into its operator's options; ``operator = "<name>"`` says which."""
    if isinstance(table, Operator):
        return table
    name = table.get("operator") if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or not isinstance(name, str) or name not in OPERATORS:
        known = " | ".join(sorted(OPERATORS))
        hint = nearest(name, OPERATORS) if isinstance(name, str) else ""
        raise ValueError(f"entry {position}: no operator of that name ({quoted(name)}){hint}; known: {known}")
    try:
        return OPERATORS[name].model_validate({key: item for key, item in table.items() if key != "operator"})
    except ValidationError as error:
        wrong = "; ".join(
            _explain_option(OPERATORS[name], item["loc"], item["type"], item["msg"]) for item in error.errors()
        )
        raise ValueError(f"entry {position} ({name}): {wrong}") from None


def _explain_option(options: type[Section], place: tuple[int | str, ...], kind: str, message: str) -> str:
    """What is wrong with one option of an operator, or of a router's rule."""
    if len(place) > 2:
        options = RuleSettings
    where = ".".join(map(str, place))
    if kind == "extra_forbidden":
        hint = nearest(str(place[-1]), options.model_fields)
        return f"{where}: no option of that name{hint}; known: {' | '.join(options.model_fields)}"
    message = message.removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
