"""The pipeline: what ticks pass between decoding and windows, stage by stage, in the order configured.

    tick ─▶ deduplicate ─▶ filter ─▶ map ─▶ throttle ─▶ router ─▶ windows
               │             │                 │           │
               ▼             ▼                 ▼           ▼
           duplicate      filtered         throttled   named topics
           └──── the late topic, with why ─────┘

Pure as the lane is: no I/O, no clock, event time only. Every tick that does not go on is counted by stage and reason
and, unless the stage's ``ledger`` is off, written to the late topic with that reason; a routed tick is in its topic.
With what conflation holds back at the moment, the account always balances (`workers.core.effects.Counts`).

The user's functions must depend on the tick alone: frames are a pure function of the log only if they are.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import msgspec
import orjson

from workers.core.encoding import to_json
from workers.core.formats.json import tick_decoder
from workers.core.frames import OutRecord
from workers.core.pipeline.deduplicate import Deduplicate, Deduplicator
from workers.core.pipeline.stage import Departures, Passage, Stage, StageContext, stage_of
from workers.core.pipeline.throttle import Conflate, Conflator, Throttle, Throttler
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.steps import Portion
from workers.core.ticks import DEEPEST_WRITABLE, EndOfInput, Rejection, Tick, TickFormat
from workers.errors import CallbackError, ConfigError, StateFormatError
from workers.times import MAX_EVENT_TIME_NS, format_time

__all__ = [
    "TO_WINDOWS",
    "Conflate",
    "Deduplicate",
    "Filter",
    "Map",
    "OperatorSpec",
    "Pipeline",
    "Route",
    "Router",
    "Throttle",
    "describe",
    "load_function",
    "matcher",
]

FILTERED: Final = Reason.FILTERED  # once: a member of an enum is slow to look up
TO_WINDOWS: Final = "window"
"""The route that is no topic: on to the next stage, and in the end to the windows."""


# -- what is configured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """Ticks whose symbol matches the glob pattern, and whose field equals the value, where these are given."""

    to: str
    symbol: str | None = None
    field: str | None = None
    equals: str | int | float | bool | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """Send a tick to the topic of the first route that applies, else to ``default``; see `TO_WINDOWS`."""

    routes: tuple[Route, ...]
    default: str = TO_WINDOWS

    def topics(self) -> set[str]:
        """The topics that are written to."""
        return {self.default, *(route.to for route in self.routes)} - {TO_WINDOWS}


@dataclass(frozen=True, slots=True)
class Filter:
    """Keep the ticks for which ``function``, a ``package.module:name``, returns something true."""

    function: str
    ledger: bool = True


@dataclass(frozen=True, slots=True)
class Map:
    """Replace each tick by what ``function`` returns: a tick, or a mapping of JSON fields to change."""

    function: str


OperatorSpec = Deduplicate | Throttle | Conflate | Router | Filter | Map

_KINDS: Final[dict[type, str]] = {
    Deduplicate: "deduplicate",
    Throttle: "throttle",
    Conflate: "conflate",
    Router: "router",
    Filter: "filter",
    Map: "map",
}


def describe(specs: Sequence[OperatorSpec]) -> list[dict[str, object]]:
    """The pipeline as stored state knows it: all that gives the state its meaning, as JSON would give it back."""
    described = [{"operator": _KINDS[type(spec)], **asdict(spec)} for spec in specs]
    for each in described:
        each.pop("ledger", None)  # it decides what is written down, not what happens
    found: list[dict[str, object]] = orjson.loads(orjson.dumps(described))
    return found


# -- at work ----------------------------------------------------------------------------------------------------------


class Pipeline:
    """The stages of one partition.

    ``form`` is how ticks are written; ``key_ttl_ns`` is that of the windows. Raises `ConfigError` where a function
    can't be imported.
    """

    def __init__(
        self, specs: Sequence[OperatorSpec], *, form: TickFormat, key_ttl_ns: int | None, topic: str, partition: int
    ) -> None:
        self._stages = [
            _make_stage(spec, StageContext(index, topic, partition, form.unit_ns, key_ttl_ns), form)
            for index, spec in enumerate(specs)
        ]

    @property
    def held(self) -> int:
        """Ticks that are held back at the moment."""
        return sum(stage.held for stage in self._stages)

    def push(
        self, tick: Tick, record: Record, departures: Departures
    ) -> tuple[Sequence[Passage], list[tuple[Record, Exception]]]:
        """Send a tick through the stages; those that reach the windows now, in order, and the records whose tick made a
        stage raise, with what it raised: they go no further, and the others do.

        Raises `CallbackError` where a user's function raised or returned something else than it should.
        """
        passages: Sequence[Passage] = (Passage(tick, record),)
        failed: list[tuple[Record, Exception]] = []
        for stage in self._stages:
            passages = _through(stage, passages, departures, failed)
            if not passages:
                break
        return passages, failed

    @property
    def changes_waiting(self) -> int:
        """About how many things `take_changes` would write."""
        return sum(stage.changes_waiting for stage in self._stages)

    def end_of_input(self, departures: Departures) -> tuple[Sequence[Passage], list[tuple[Record, Exception]]]:
        """The input has ended: what the stages hold back goes on, through those behind, each symbol's in order. Gives
        and raises what `push` does."""
        passages: list[Passage] = []
        failed: list[tuple[Record, Exception]] = []
        for stage in self._stages:
            passages = [*_through(stage, passages, departures, failed), *stage.release()]
        return passages, failed

    @property
    def stored_records(self) -> int:
        """How many records the changelog holds of the stages."""
        return sum(stage.stored_records for stage in self._stages)

    def take_changes(self) -> list[OutRecord]:
        """The changelog records of what changed since the last call."""
        return [record for stage in self._stages for record in stage.take_changes()]

    def restore_in_steps(self, entries: Mapping[bytes, bytes], *, where: str) -> Generator[None, None, None]:
        """Take over stored state, with a pause after each portion. New pipelines only.

        Raises `StateFormatError` where it is damaged.
        """
        portion = Portion()
        of_stages: list[dict[bytes, bytes]] = [{} for _ in self._stages]
        for key, value in entries.items():
            if portion.is_done(0.1):
                yield
            index = stage_of(key)
            if index is not None and index < len(of_stages):
                of_stages[index][key] = value
        for stage, own in zip(self._stages, of_stages, strict=True):
            stage.stored_records = len(own)
            try:
                yield from stage.restore(own)
            except (ValueError, msgspec.MsgspecError, orjson.JSONDecodeError) as error:
                raise StateFormatError(
                    f"the changelog {where} holds state of [[pipeline]] stage {stage.name} that can't be read: "
                    f"{error}. It was written by another version or another program; use the version that wrote it, "
                    "or start over with `workers state reset`"
                ) from error


def _make_stage(spec: OperatorSpec, context: StageContext, form: TickFormat) -> Stage:
    match spec:
        case Deduplicate():
            return Deduplicator(spec, context)
        case Throttle():
            return Throttler(spec, context)
        case Conflate():
            return Conflator(spec, context)
        case Router():
            return _RouterStage(spec, context)
        case Filter():
            return _FilterStage(spec, context)
        case Map():
            return _MapStage(spec, context, form)


class _RouterStage(Stage):
    def __init__(self, spec: Router, context: StageContext) -> None:
        super().__init__("router", context)
        self._default = spec.default
        self._routes = [(matcher(route), route.to) for route in spec.routes]

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        to = next((to for matches, to in self._routes if matches(passage.tick)), self._default)
        if to == TO_WINDOWS:
            return (passage,)
        record = passage.record
        departures.routed.setdefault(to, []).append(OutRecord(record.key, record.value, None, tuple(record.headers)))
        return ()


def matcher(route: Route) -> Callable[[Tick], bool]:
    """Whether a route applies to a tick."""
    pattern = re.compile(fnmatch.translate(route.symbol)) if route.symbol is not None else None
    name, wanted = route.field, route.equals
    is_bool = isinstance(wanted, bool)

    def matches(tick: Tick) -> bool:
        if pattern is not None and pattern.match(tick.symbol) is None:
            return False
        if name is None:
            return True
        found = tick.fields.get(name)
        return found == wanted and isinstance(found, bool) is is_bool  # in Python True is 1; in JSON it isn't

    return matches


# -- the user's functions ---------------------------------------------------------------------------------------------


def load_function(place: str) -> Callable[[Tick], object]:
    """The function of a ``package.module:name``. Raises `ConfigError` where there is none to call with a tick."""
    module_name, _, attribute = place.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:
        raise ConfigError(
            f"[[pipeline]] function {place!r} can't be loaded ({type(error).__name__}: {error}); expected an "
            'importable "package.module:name"'
        ) from error
    if not callable(found):
        raise ConfigError(f"[[pipeline]] function {place!r} is a {type(found).__name__}; expected something to call")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        raise ConfigError(f"[[pipeline]] function {place!r} is async or a generator; expected a plain function")
    return found


def _through(
    stage: Stage, passages: Sequence[Passage], departures: Departures, failed: list[tuple[Record, Exception]]
) -> list[Passage]:
    """What goes on behind a stage; a record whose tick makes it raise goes to ``failed``, and the others go on."""
    going: list[Passage] = []
    for each in passages:
        try:
            going += stage.take(each, departures)
        except CallbackError:
            raise
        except Exception as error:
            failed.append((each.record, error))
    return going


class _FunctionStage(Stage):
    """A stage that asks a function of the user's."""

    def __init__(self, kind: str, place: str, context: StageContext, *, ledger: bool = False) -> None:
        super().__init__(kind, context, ledger=ledger)
        self._place = place
        self._function = load_function(place)

    def _call(self, tick: Tick) -> object:
        try:
            return self._function(tick)
        except Exception as error:
            raise self._error(f"raised {type(error).__name__}: {error}", tick.symbol, tick.offset) from error

    def _error(self, what: str, symbol: str, offset: int) -> CallbackError:
        context = self.context
        return CallbackError(
            f"[[pipeline]] stage {self.name}: {self._place!r} {what}, at {context.topic}[{context.partition}] offset "
            f"{offset}, key {symbol[:80]!r}"
        )


class _FilterStage(_FunctionStage):
    def __init__(self, spec: Filter, context: StageContext) -> None:
        super().__init__("filter", spec.function, context, ledger=spec.ledger)

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        symbol, offset = passage.tick.symbol, passage.tick.offset
        verdict = self._call(passage.tick)
        try:
            keeps = bool(verdict)
        except Exception as error:  # an array's truth, for one
            what = f"returned a {type(verdict).__name__} that is neither true nor false ({error})"
            raise self._error(what, symbol, offset) from error
        if keeps:
            return (passage,)
        self._drop(passage, FILTERED, departures, {"function": self._place})
        return ()


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A record with another value, to be decoded as if it had come like that."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes | None]]


class _MapStage(_FunctionStage):
    """What comes back must be a tick of the same symbol: another one may belong to another partition.

    Behind a map, ``tick.fields`` is always what ``tick.value`` says, so that a tick held back and restored is the same.
    """

    def __init__(self, spec: Map, context: StageContext, form: TickFormat) -> None:
        super().__init__("map", spec.function, context)
        self._decode = tick_decoder(form, DEEPEST_WRITABLE)  # how deep a function nests what it is given is its choice
        self._min_time_ns = form.min_time_ns

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        symbol, offset = passage.tick.symbol, passage.tick.offset
        value, fields = passage.tick.value, passage.tick.fields
        result = self._call(passage.tick)
        try:
            return self._use(result, passage, value, fields, symbol, offset)
        except CallbackError:
            raise
        except Exception as error:  # the record was a tick: what can't be used is what the function made of it
            what = f"returned a {type(result).__name__} that can't be used ({type(error).__name__}: {error})"
            raise self._error(what, symbol, offset) from error

    def _use(
        self,
        result: object,
        passage: Passage,
        value: bytes,
        fields: Mapping[str, object],
        symbol: str,
        offset: int,
    ) -> Sequence[Passage]:
        if isinstance(result, Tick):
            self._check(result, symbol, offset)
            if result.fields is not fields:
                result.value = self._encode(result.fields, symbol, offset)
            if result.value is not value or result.fields is not fields:
                result.fields = self._parse(result.value, symbol, offset)
            return (Passage(result, passage.record),)
        if not isinstance(result, Mapping):
            what = f"returned a {type(result).__name__}; expected a Tick or a mapping of fields to change"
            raise self._error(what, symbol, offset)
        record = passage.record
        rewritten = self._encode({**fields, **result}, symbol, offset)
        decoded = self._decode(_Rewritten(offset, record.timestamp, record.key, rewritten, record.headers))
        assert not isinstance(decoded, EndOfInput), "it has a value"
        if isinstance(decoded, Rejection):
            raise self._error(
                f"made something that is no tick of this symbol ({decoded.reason}: {decoded.message})", symbol, offset
            )
        return (Passage(decoded, record),)

    def _check(self, tick: Tick, symbol: str, offset: int) -> None:
        problem = ""
        if tick.symbol != symbol or tick.offset != offset:
            problem = f"symbol {tick.symbol!r} and offset {tick.offset}; both must stay"
        elif type(tick.ts_ns) is not int or abs(tick.ts_ns) > MAX_EVENT_TIME_NS:
            problem = f"ts_ns {tick.ts_ns!r}; expected an integer, 64-bit nanoseconds since 1970"
        elif tick.ts_ns < self._min_time_ns:
            problem = f"ts_ns {tick.ts_ns}; expected no time before tick.min_time {format_time(self._min_time_ns)}"
        elif not (_is_finite(tick.price) and _is_finite(tick.size)) or tick.size < 0:
            problem = f"price {tick.price!r} and size {tick.size!r}; expected finite numbers, the size 0 or more"
        if problem:
            raise self._error(f"returned a tick with {problem}", symbol, offset)
        tick.price, tick.size = float(tick.price), float(tick.size)

    def _encode(self, fields: Mapping[str, object], symbol: str, offset: int) -> bytes:
        try:
            return to_json(dict(fields))
        except (TypeError, ValueError) as error:
            raise self._error(f"returned fields that JSON can't hold ({error})", symbol, offset) from error

    def _parse(self, value: bytes, symbol: str, offset: int) -> Mapping[str, object]:
        try:
            fields = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise self._error(f"returned a tick whose value is not JSON ({error})", symbol, offset) from error
        if not isinstance(fields, dict):
            raise self._error("returned a tick whose value is not a JSON object", symbol, offset)
        return fields


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
