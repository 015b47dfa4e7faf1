"""The native pipeline against Python's: the same ticks, restarts and ends of input give the same to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from workers.core.effects import Effects
from workers.core.formats.json import tick_decoder
from workers.core.frames import OutRecord
from workers.core.lane import entries_of
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, OperatorSpec, Pipeline, Route, Router
from workers.core.pipeline.stage import Passage
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.records import RawRecord
from workers.core.steps import run_through
from workers.core.ticks import Tick, TickFormat
from workers.errors import StateFormatError
from workers.native.facts import FactTeller

native = pytest.importorskip("workers._native")

MS = 1_000_000
TOPIC, PARTITION = 'ti"cks', 3
FORM = TickFormat()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
decode = tick_decoder(FORM)

Headers = tuple[tuple[str, bytes | None], ...]
Row = tuple[str, int, float, float, int, bytes, int, bytes]


# -- the log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """The input has ended."""


@dataclass(frozen=True)
class Step:
    """How a record differs from the one before; ``more`` are members of its JSON, as text."""

    symbol: str
    advance: int
    back: int
    more: tuple[tuple[str, str], ...]
    headers: Headers
    timestamp_ms: int
    price: str = "1.5"
    more_ns: int = 0


# As JSON writes them; whatever native code is not sure of stands among them. Each choice is drawn as a byte, so that
# logs can be long.
BIG = [str(2**63 - 1), str(2**63), str(2**64), str(2**64 + 1), str(-(2**63)), str(-(2**63) - 1)]
IDS = [
    *["1", "2", "3", "4", "1", "2", "3", "4", "5", "6", "7"] * 12,
    *["null", '"1"', "1.0", "1.00", "10e-1", "true", "false", '"x"', '"\\u0031"', '"a\\nb"', '"é"', "-0", "0", "-0.0"],
    *["[1,2]", '[1, "a"]', '{"a":1,"b":2}', '{"b":2,"a":1.0}', f'"{"y" * 62}"', f'"{"y" * 63}"', '"12"', "[[]]"],
    *["1e5", "100000", "1E+5", "1.5e-300", "1" * 45, "0." + "1" * 50, "1e-00000000000000000001", *BIG],
]
VALUES = [
    *["null", '"X"', '"Y"', "1", "1.0", "true", "false", '"\\u0058"', "[1]", "2", "2.5", "-0", "-0.0", '"X"'],
    *[str(2**53 + 1), str(2**53) + ".0", str(2**64), '""', '"é"', "0", "1e0", str(2**63)],
]
NAMES = ["id", "id", "id", "id", "id", "id", "id", "i\\u0064", "id ", "", "other", "é"]
SYMBOLS = ["A", "A", "A", "A", "A", "B", "B", "AB", "", 'n"o\\t', "ÜBER-€", "C"]
HEADERS: list[Headers] = [(), (), (), (), (("h", b"v"),), (("é", None), ("", b"x" * 40)), (("h" * 40, b"x" * 300),)]
PRICES = ["1.5", "1.5", "0", "-1.50", '"3"', "2e-3"]
BYTES_OF_STEP = 12


def step_of(drawn: bytes) -> Step | End:
    choose = iter(drawn)

    def one_of(options: Sequence[Any]) -> Any:
        return options[next(choose) % len(options)]

    symbol, advance = one_of(SYMBOLS), one_of([0, 1, 1, 2, 5, 30])
    back = one_of([0, 0, 0, 0, 0, 1, 3, 8])
    more = [(one_of(NAMES), one_of(IDS)), ("venue", one_of(VALUES))][: one_of([0, 1, 2, 2, 2])]
    if one_of([*[0] * 20, 1]):
        more.append(("id", one_of(IDS)))
    headers, timestamp_ms = one_of(HEADERS), one_of([-1, 2**42])
    if one_of([*[0] * 30, 1]):
        return End()
    more_ns = 0 if len(more) < 2 else sum(drawn) % 4 // 3 * 999
    return Step(symbol, advance, back, tuple(more), headers, timestamp_ms, PRICES[sum(drawn) % len(PRICES)], more_ns)


@st.composite
def logs(draw: st.DrawFn) -> list[Step | End]:
    count = draw(st.one_of(st.integers(0, 100), st.just(100)))
    drawn = draw(st.binary(min_size=BYTES_OF_STEP * count, max_size=BYTES_OF_STEP * count))
    return [step_of(drawn[at : at + BYTES_OF_STEP]) for at in range(0, len(drawn), BYTES_OF_STEP)]


def pack(headers: Headers) -> bytes:
    """Headers as record batches have them."""

    def varint(number: int) -> bytes:
        number = (number << 1) ^ (number >> 63)
        out = b""
        while number >= 128:
            out += bytes((number & 127 | 128,))
            number >>= 7
        return out + bytes((number,))

    packed = varint(len(headers))
    for name, value in headers:
        packed += varint(len(name.encode())) + name.encode()
        packed += varint(-1) if value is None else varint(len(value)) + value
    return packed


starts = st.sampled_from([1_000, -20, 1_700_000_000_000])


def records_of(log: Sequence[Step | End], start: int = 1_000) -> list[RawRecord | None]:
    now, records = start, list[RawRecord | None]()
    for number, step in enumerate(log):
        if isinstance(step, End):
            records.append(None)
            continue
        now += step.advance
        symbol = json.dumps(step.symbol, ensure_ascii=number % 2 == 0)
        ts: int | str = now - step.back
        more = "".join(f',"{name}":{value}' for name, value in step.more)
        if step.more_ns:
            at = EPOCH + timedelta(milliseconds=now - step.back)
            ts = f'"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond * 1_000 + step.more_ns:09}Z"'
        text = f'{{"symbol":{symbol},"ts":{ts},"price":{step.price}{more},"size":1}}'
        records.append(RawRecord(3 * number, step.timestamp_ms, step.symbol.encode(), text.encode(), step.headers))
    return records


# -- pipelines --------------------------------------------------------------------------------------------------------

wanted = st.sampled_from(
    ["X", "é", "", 1, 1.0, 2.5, True, False, 0, 2**53, 2**53 + 1, float(2**53), 2**64, 2**63, None]
)
patterns = st.sampled_from(["AB*", "*B", "n?o*", "[B-C]", "[!A]*", "*", "Ü*", "[A-", "A[]B]"])
operators: st.SearchStrategy[OperatorSpec] = st.one_of(
    st.builds(
        Deduplicate,
        st.sampled_from([("id",), ("id",), ("id",), ("id", "venue"), ("price", "id"), ("id", "id")]),
        st.sampled_from([1, 4 * MS, 20 * MS, 1_000 * MS, 1_000 * MS, 1_000 * MS]),
        st.just(False),
        st.sampled_from([1, 2, 100]),
        st.booleans(),
    ),
    st.builds(
        Deduplicate, st.just(("id",)), st.sampled_from([4 * MS, 1_000 * MS]), st.just(True), st.just(3), st.booleans()
    ),
    st.builds(
        Throttle, st.sampled_from([MS // 2, MS, 3 * MS + 1, 20 * MS]), st.integers(1, 3), st.booleans(), st.booleans()
    ),
    st.builds(Conflate, st.sampled_from([1, 2 * MS, 10 * MS]), st.sampled_from([0, MS, 5 * MS]), st.booleans()),
    st.builds(
        Router,
        st.lists(
            st.one_of(
                st.builds(Route, st.sampled_from(["one", "two", "window"]), patterns),
                st.builds(
                    Route,
                    st.sampled_from(["one", "two", "window"]),
                    st.one_of(st.none(), patterns),
                    st.just("venue"),
                    wanted,
                ),
                st.builds(Route, st.sampled_from(["one", "two", "window"]), st.none(), st.just("id"), wanted),
            ),
            max_size=10,
        ).map(tuple),
        st.sampled_from(["window", "window", "rest"]),
    ),
)


@dataclass(frozen=True)
class Setting:
    """What both pipelines are made of."""

    specs: tuple[OperatorSpec, ...]
    key_ttl_ns: int | None


settings = st.builds(
    Setting, st.lists(operators, min_size=1, max_size=4).map(tuple), st.sampled_from([None, 4 * MS, 25 * MS])
)


# -- both sides -------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What came of ticks, in one form for both sides."""

    going: list[Row] = field(default_factory=list)
    late: list[tuple[str, bytes | None, bytes | None]] = field(default_factory=list)
    routed: dict[str, list[tuple[bytes | None, bytes | None, bytes]]] = field(default_factory=dict)
    taken_out: dict[str, int] = field(default_factory=dict)
    noticed: dict[tuple[str, str], int] = field(default_factory=dict)
    gaps: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    held: int = 0
    waiting: int = 0


class Plain:
    """Python's pipeline."""

    def __init__(self, setting: Setting) -> None:
        self._pipeline = Pipeline(
            setting.specs, form=FORM, key_ttl_ns=setting.key_ttl_ns, topic=TOPIC, partition=PARTITION
        )

    def take(self, records: Sequence[RawRecord | None]) -> Seen:
        effects, seen = Effects(), Seen()
        for record in records:
            if record is None:
                passages, failed = self._pipeline.end_of_input(effects)
            else:
                tick = decode(record)
                assert isinstance(tick, Tick), tick
                passages, failed = self._pipeline.push(tick, record, effects)
            assert not failed
            seen.going += map(row_of, passages)
        for late in effects.late:
            ((name, reason),) = late.headers
            assert name == "workers.reason"
            seen.late.append((reason.decode() if reason is not None else "", late.key, late.value))
        for topic, found in effects.routed.items():
            seen.routed[topic] = [(each.key, each.value, pack(each.headers)) for each in found]
        for (reason, stage), count in effects.taken_out.items():
            assert stage not in seen.taken_out, reason
            seen.taken_out[stage] = count
        seen.noticed = effects.noticed
        seen.gaps = [(gap.stage, gap.symbol, gap.first, gap.last, gap.offset) for gap in effects.gaps]
        seen.held, seen.waiting = self._pipeline.held, self._pipeline.changes_waiting
        return seen

    def changes(self) -> list[OutRecord]:
        return self._pipeline.take_changes()

    def restore(self, changelog: Sequence[OutRecord]) -> None:
        run_through(self._pipeline.restore_in_steps(entries_of(changelog), where="test"))


class Native:
    """The other one."""

    def __init__(self, setting: Setting) -> None:
        self._tell = FactTeller(setting.specs)
        self._probe = native.PipelineProbe(setting.specs, FORM.unit_ns, setting.key_ttl_ns, TOPIC, PARTITION)

    def take(self, records: Sequence[RawRecord | None]) -> Seen:
        seen = Seen()
        for record in records:
            if record is None:
                self._probe.end_of_input()
                self._collect(seen)
                continue
            tick = decode(record)
            assert isinstance(tick, Tick), tick
            told = self._tell(tick)
            found = self._probe.facts(tick.value)
            assert found in (None, told)  # sure or silent
            assert self._probe.decoded_facts(tick.symbol.encode(), tick.value) in (None, told)
            row = row_of(Passage(tick, record))
            goes_on = self._probe.push(row, told)
            self._collect(seen)
            if goes_on:
                seen.going.append(row)
        seen.held, seen.waiting = self._probe.held, self._probe.changes_waiting
        return seen

    def _collect(self, seen: Seen) -> None:
        found = self._probe.take_effects()
        seen.going += found["going"]
        seen.late += found["late"]
        for topic, *record in found["routed"]:
            seen.routed.setdefault(topic, []).append(tuple(record))
        for mine, more in ((seen.taken_out, found["taken_out"]), (seen.noticed, found["noticed"])):
            for name, count in more.items():
                mine[name] = mine.get(name, 0) + count
        seen.gaps += found["gaps"]

    def changes(self) -> list[OutRecord]:
        return [OutRecord(key, value) for key, value in self._probe.take_changes()]

    def restore(self, changelog: Sequence[OutRecord]) -> None:
        self._probe.restore(entries_of(changelog), self._facts_of)

    def _facts_of(self, value: bytes, first: int) -> bytes:
        return self._tell(Tick("", 0, 0, 0, 0, value, orjson.loads(value)), first)


def row_of(passage: Passage) -> Row:
    tick, record = passage.tick, passage.record
    headers = pack(tuple(record.headers))
    return (tick.symbol, tick.ts_ns, tick.price, tick.size, tick.offset, tick.value, record.timestamp, headers)


# -- comparing --------------------------------------------------------------------------------------------------------


@given(settings, logs(), starts)
def test_both_give_the_same(setting: Setting, log: list[Step | End], start: int) -> None:
    records = records_of(log, start)
    plain, other = Plain(setting), Native(setting)
    assert other.take(records) == plain.take(records)
    assert other.changes() == plain.changes()


@given(settings, logs(), starts, st.data())
def test_each_goes_on_where_the_other_stopped(
    setting: Setting, log: list[Step | End], start: int, data: st.DataObject
) -> None:
    records = records_of(log, start)
    plain, other = Plain(setting), Native(setting)
    changelog: list[OutRecord] = []
    while records:
        number = data.draw(st.integers(1, len(records)), "records")
        some, records = records[:number], records[number:]
        assert other.take(some) == plain.take(some)
        match data.draw(st.sampled_from(["nothing", "commit", "commit", "restart"]), "then"):
            case "commit":
                changes = plain.changes()
                assert other.changes() == changes
                changelog += changes
            case "restart":
                changes = plain.changes()
                assert other.changes() == changes
                changelog += changes
                plain, other = Plain(setting), Native(setting)  # either reads what the other could have written
                plain.restore(changelog)
                other.restore(changelog)
    assert other.changes() == plain.changes()


@example_settings(max_examples=20)
@given(st.integers(1, 9_000), st.integers(1, 9_000), st.sampled_from([2_000, 7_000, 100_000]))
def test_ids_of_many_parts_are_stored_and_restored(first: int, second: int, max_ids: int) -> None:
    setting = Setting((Deduplicate(("id",), 1_000 * MS, False, max_ids),), None)
    plain, other = Plain(setting), Native(setting)
    changelog: list[OutRecord] = []
    begin = 0
    for count in (first, second):
        log = [Step("A", number % 7 == 0, 0, (("id", str(begin + number)),), (), -1) for number in range(count)]
        records, begin = records_of(log, 1_000 + begin), begin + count - count // 3
        assert other.take(records) == plain.take(records)
        changes = plain.changes()
        assert other.changes() == changes
        changelog += changes
        plain, other = Plain(setting), Native(setting)
        plain.restore(changelog)
        other.restore(changelog)


@example_settings(max_examples=10)
@given(settings, st.integers(5_000, 20_000), st.integers(0, 2**32))
def test_symbols_that_come_and_go(setting: Setting, count: int, seed: int) -> None:
    """So many that their numbers are given to others."""
    log: list[Step | End] = [
        Step(f"{(seed * number) % 9_973}{'AB'[number % 2]}", 1, 0, (("id", str(number % 50)),), (), -1)
        for number in range(count)
    ]
    records = records_of(log)
    plain, other = Plain(setting), Native(setting)
    for begin in range(0, count, 4_000):
        some = records[begin : begin + 4_000]
        assert other.take(some) == plain.take(some)
        assert other.changes() == plain.changes()


def test_the_number_of_a_symbol_that_is_gone_brings_no_pattern_with_it() -> None:
    setting = Setting((Router((Route("one", "*A"),)),), None)
    log: list[Step | End] = [Step(f"{number}{'AB'[number % 2]}", 1, 0, (), (), -1) for number in range(15_000)]
    records = records_of(log)
    assert Native(setting).take(records) == Plain(setting).take(records)


pattern_text = st.text("-!]ac^\\*?[b\n.Z", max_size=10)


@given(
    st.lists(st.one_of(pattern_text, st.text("-!]acb[", max_size=8).map("[{}]".format)), min_size=1, max_size=20),
    st.data(),
)
def test_patterns_mean_what_fnmatch_makes_of_them(globs: list[str], data: st.DataObject) -> None:
    setting = Setting((Router(tuple(Route(f"t{number}", glob) for number, glob in enumerate(globs))),), None)
    compiled = [re.compile(translate(glob)) for glob in globs]
    other = Native(setting)
    for text in data.draw(st.lists(st.text("-!]ac^\\b\n.[Z_", max_size=4), min_size=10, max_size=30), "symbols"):
        other._probe.push((text, 0, 1.0, 1.0, 0, b"{}", -1, b""), b"")
        routed = [topic for topic, *_ in other._probe.take_effects()["routed"]]
        matching = [number for number, pattern in enumerate(compiled) if pattern.match(text)]
        assert routed == [f"t{number}" for number in matching[:1]], (globs, text)


def test_the_facts_of_a_restored_tick_are_asked_for_where_native_code_is_not_sure() -> None:
    #  A: 0 id "\\u0031", held | restart | 30 id "1", held: the first goes on, and this one repeats it
    setting = Setting((Conflate(10 * MS, 0), Deduplicate(("id",), 1_000 * MS)), None)
    first, second = (Step("A", 30, 0, (("id", written),), (), -1) for written in ('"\\u0031"', '"1"'))
    records = records_of([first, second, End()])
    plain, other = Plain(setting), Native(setting)
    assert other.take(records[:1]) == plain.take(records[:1])
    changelog = plain.changes()
    assert other.changes() == changelog
    plain, other = Plain(setting), Native(setting)
    plain.restore(changelog)
    other.restore(changelog)
    seen = plain.take(records[1:])
    assert [reason for reason, *_ in seen.late] == ["duplicate"]
    assert other.take(records[1:]) == seen


# -- damaged state ----------------------------------------------------------------------------------------------------


def damaged(changelog: list[OutRecord]) -> Iterator[list[OutRecord]]:
    for place, record in enumerate(changelog):
        for value in (b"", b"\xc1", (record.value or b"")[:-1], (record.value or b"") + b"\0"):
            yield [*changelog[:place], OutRecord(record.key, value), *changelog[place + 1 :]]
        yield [*changelog[:place], *changelog[place + 1 :]]


def test_damaged_state_is_refused_by_both() -> None:
    specs = (Deduplicate(("id",), 10_000 * MS, True, 10_000), Conflate(10 * MS, MS), Throttle(MS))
    setting = Setting(specs, None)
    log = [Step("A", number % 7 == 0, 0, (("id", str(number)),), (("h", b"v"),), -1) for number in range(7_000)]
    plain = Plain(setting)
    plain.take(records_of(log))
    changelog = plain.changes()
    assert len(changelog) >= 5
    outcomes = set()
    for changes in damaged(changelog):
        refused = []
        for side in (Plain(setting), Native(setting)):
            try:
                side.restore(changes)
            except (StateFormatError, ValueError):
                refused.append(True)
            else:
                refused.append(False)
        assert refused[0] == refused[1]
        outcomes.add(refused[0])
    assert outcomes == {True, False}


def test_a_pipeline_that_calls_python_is_none_that_can_be_native() -> None:
    with pytest.raises(ValueError, match="a pipeline with Filter is none that can be native"):
        native.PipelineProbe((Filter("a:b"),), 1, None, TOPIC, PARTITION)
