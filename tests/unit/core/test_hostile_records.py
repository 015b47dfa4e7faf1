"""Whatever bytes, headers and keys a stranger sends: each record is in a frame or has an entry that can be read.

The logs are made from seeds, which a failure names: ``HOSTILE_SEED=7 pytest tests/unit/core/test_hostile_records.py``.
The suite runs a few; `make soak` runs new ones for SOAK_MINUTES. The settings are drawn, too: every kind of window,
payload and scope, every operator, corrections, an aggregation of a user's, and frames as input. Where native lanes
compute what is drawn they must agree.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from aiokafka.record.memory_records import MemoryRecords

from tests.support.raw_batches import by_hand, packed
from workers.core.aggregates import Aggregation
from workers.core.effects import Effects
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import MESSAGE_HEADER, REASON_HEADER
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, Map, OperatorSpec, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.records import RawRecord, Record
from workers.core.spec import LaneSpec
from workers.core.ticks import DEEPEST_TICK, Rejection, Tick, TickFormat, excerpt, is_deeper
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.errors import BrokerError, CallbackError
from workers.kafka.commit import SinkSpec
from workers.kafka.fit import fit, size_in_batch
from workers.kafka.ports import Commit, OutTopic
from workers.native.choose import supports
from workers.native.lane import NativeLane
from workers.worker.all_rejected import FailureWatch

MS, S, DAY = 10**6, 10**9, 86_400 * 10**9
NOW_MS = 1_700_000_000_000
SYMBOLS = ("AAPL", "MSFT", "ü€", "")
DEPTHS = (1, 59, 60, 61, 253, 254, 255, 999, 1_000, 1_022, 1_023, 1_024, 5_000)
HEADER_NAMES = {"bad1": b"\xff\xfe", "bad2": b"\xc3", "bad3": b"\xed\xa0\x80name"}  # for the names on the left
SEEDS = [int(os.environ["HOSTILE_SEED"])] if "HOSTILE_SEED" in os.environ else list(range(60))
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
LIMIT_BYTES = 20_000

HERE = "tests.unit.core.test_hostile_records"


def is_even(tick: Tick) -> bool:
    return tick.offset % 2 == 0


def wraps(tick: Tick) -> Mapping[str, object]:
    """One level deeper than what came."""
    return {"seen": tick.fields, "price": tick.price + 1}


class Sizes(Aggregation[dict[str, float]]):
    """A user's aggregation."""

    name = "sizes"

    def create(self) -> dict[str, float]:
        return {"n": 0.0}

    def add(self, state: dict[str, float], tick: Tick) -> dict[str, float]:
        if tick.fields.get("poison"):
            raise RuntimeError("the aggregation can't take this")
        state["n"] += tick.size
        return state

    def merge(self, state: dict[str, float], later: dict[str, float]) -> dict[str, float]:
        state["n"] += later["n"]
        return state

    def result(self, state: dict[str, float]) -> Mapping[str, object]:
        return dict(state)


# -- what strangers send ----------------------------------------------------------------------------------------------


def nested(rng: random.Random) -> bytes:
    depth = rng.choice(DEPTHS)
    begin, end = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"b":[', b"]}]")])
    return begin * depth + rng.choice([b"1", b'"x"', b"18446744073709551616"]) + end * depth


def atom(rng: random.Random) -> bytes:
    """A JSON value, or nearly."""
    return rng.choice(
        [
            lambda: nested(rng),
            lambda: rng.choice([b"null", b"true", b"{}", b"[]", b'""', b'"x"', b"NaN", b"-0", b"1e999", b"1E-999"]),
            lambda: str(rng.choice([2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**308, -(2**63)])).encode(),
            lambda: b"9" * rng.choice([19, 20, 308, 309, 310, 5_000]),
            lambda: b'"-0.' + b"0" * rng.choice([1, 90, 6_000]) + b'1"',
            lambda: b'"' + b"1" * rng.choice([300, 400, 5_000]) + b'"',
            lambda: b"-" + str(rng.random() * 10 ** rng.randrange(300)).encode(),
            lambda: json.dumps("".join(chr(rng.randrange(0x20, 0xD7FF)) for _ in range(rng.randrange(120)))).encode(),
            lambda: rng.choice([b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"\\udcff"', b'"[[[["', b'"\\""', b'"\\\\"']),
            lambda: json.dumps(
                rng.choice(
                    ["2023-11-14T22:13:20Z", "9999-12-31T23:59:59.9Z", "0001-01-01T00:00:00+23:59", "2023-02-30T1"]
                )
            ).encode(),
            lambda: str(rng.uniform(-1e4, 1e4)).encode(),
        ]
    )()


def a_tick(rng: random.Random, now_ms: int) -> tuple[str, dict[str, bytes]]:
    symbol = rng.choice(SYMBOLS)
    return symbol, {
        "symbol": json.dumps(symbol).encode(),
        "ts": str(now_ms - rng.choice([0, 0, 1, 5, 30, 5_000])).encode(),
        "price": rng.choice([b"1.5", b'"2.25"', b"100"]),
        "size": rng.choice([b"1", b"0", b'"0.001"']),
        "id": str(rng.randrange(30)).encode(),
        "kind": rng.choice([b'"T"', b'"T"', b'"T"', b'"X"', b'"C"']),
    }


def a_frame(rng: random.Random, now_ms: int) -> tuple[str, dict[str, bytes]]:
    symbol, start = rng.choice(SYMBOLS), now_ms // 10 * 10
    count = rng.choice([0, 1, 2, 10**7, 10**7 + 1, 2**62, 2**63 - 1, 2**63])
    return symbol, {
        "key": json.dumps(symbol).encode(),
        "start": b"%d" % start,
        "end": b"%d" % (start + 10),
        "rev": b"%d" % rng.choice([0, 1, 2**63 - 1]),
        "status": rng.choice([b'"closed"', b'"final"', b'"provisional"']),
        "trigger": b'"watermark"',
        **dict.fromkeys(("open", "high", "low", "close", "vwap"), b"1.5"),
        "volume": rng.choice([b"3", b"1e308", b"null"]),
        "count": b"%d" % count,
        "first_ts": b"%d" % start,
        "last_ts": b"%d" % (start + 9),
    }


def record(rng: random.Random, offset: int, *, frames: bool) -> RawRecord:
    """One record: a good one, or one that is harmed in one or several ways."""
    now_ms = NOW_MS + 3 * offset + rng.choice([0, 0, 0, 0, 0, -20, 20])
    symbol, fields = a_frame(rng, now_ms) if frames else a_tick(rng, now_ms)
    key: bytes | None = symbol.encode()
    harms = rng.choice([0, 0, 0, 0, 1, 1, 2])
    for _ in range(harms):
        name = rng.choice([*fields, "unknown", "unknown"])
        fields[name] = atom(rng)
    members = [json.dumps(name).encode() + b":" + value for name, value in fields.items()]
    if harms and rng.random() < 0.2:
        members.append(members[rng.randrange(len(members))])
    value: bytes | None = b"{" + b",".join(members) + b"}"
    if harms:
        assert value is not None
        match rng.randrange(16):
            case 0:
                value = None
            case 1:
                value = rng.randbytes(rng.randrange(60))
            case 2:
                value = value[: rng.randrange(len(value))]
            case 3:
                value = nested(rng)
            case 4:
                key = rng.choice([None, b"", b"\xff\xfe", b"OTHER", b"k" * 30_000])
            case 5:
                value = b"\xef\xbb\xbf" + value
            case 6:
                value = value[:-1] + b',"long":"' + b"x" * 30_000 + b'"}'
            case 7 if not frames:  # a symbol that fills what its topics take
                key = b"L" * 15_000
                value = b'{"symbol":"%s","ts":%d,"price":1,"size":1}' % (key, now_ms)
    headers: list[tuple[str, bytes | None]] = [
        rng.choice(
            [
                (rng.choice([*HEADER_NAMES, "", "ü", REASON_HEADER, MESSAGE_HEADER]), rng.choice([None, b"", b"\xff"])),
                ("h" * rng.choice([1, 30_000]), b"1"),
            ]
        )
        for _ in range(rng.choice([0, 0, 0, 1, 3]))
    ]
    sent_ms = rng.choice([*[-1, now_ms + 1_000] * 5, now_ms, 0, 2**62])
    return RawRecord(offset, sent_ms, key, value, tuple(headers))


# -- what they send it to ---------------------------------------------------------------------------------------------


def stages(rng: random.Random) -> tuple[OperatorSpec, ...]:
    fields = rng.choice([("id",), ("unknown",), ("id", "unknown")])
    routes = (Route("elsewhere", symbol="M*"), Route("elsewhere", field="unknown", equals=1))
    choices: list[OperatorSpec] = [
        Deduplicate(fields, 10 * S, gaps=fields == ("id",), max_ids=20),
        Filter(f"{HERE}:is_even"),
        Map(f"{HERE}:wraps"),
        Throttle(rng.choice([1, 20 * MS]), burst=2, per_symbol=rng.random() < 0.5),
        Conflate(20 * MS, 5 * MS),
        Router(routes),
    ]
    return tuple(rng.sample(choices, rng.choice([0, 0, 1, 2, 4])))


def a_spec(rng: random.Random) -> LaneSpec:
    """Settings of any kind; drawn again until they can be together."""
    while True:
        spec = LaneSpec(
            tick=TickFormat(unit="ms", on_misrouted=rng.choice(["warn", "warn", "reject"])),
            window=TumblingWindows(rng.choice([50 * MS, S])),
            lag_ns=rng.choice([10 * MS, 2 * S]),
            lateness_ns=rng.choice([0, 50 * MS]),
            key_ttl_ns=rng.choice([S, DAY, 3 * DAY]),
            emit=rng.choice(["eager", "final"]),
            emit_partial=rng.random() < 0.3,
            payload=rng.choice(["ohlcv", "ohlcv", "items", "both"]),
            scope=rng.choice(["key", "key", "partition"]),
            aggregation=rng.choice(["ohlcv", "ohlcv", f"{HERE}:Sizes"]),
            pipeline=stages(rng),
            format=rng.choice(["json", "json", "json", "frames"]),
            corrections=rng.choice([None, CorrectionRules("kind", ("X",), ("C",), "id")]),
        )
        size_ns = spec.window.size_ns
        window = rng.choice(
            [
                spec.window,
                TumblingWindows(size_ns, offset_ns=7 * MS),
                TumblingWindows(3_600 * S, time_zone="Europe/Berlin"),
                TumblingWindows(size_ns, fill_gaps_ns=2 * S),
                HoppingWindows(50 * MS, hop_ns=10 * MS),
                SessionWindows(20 * MS),
                CalendarWindows("XNYS"),
            ]
        )
        fills = isinstance(window, TumblingWindows) and window.fill_gaps_ns > 0
        if spec.format == "frames":
            spec = replace(
                spec, scope="key", pipeline=(), corrections=None, aggregation="ohlcv", payload="ohlcv", lag_ns=0
            )
            if window.merges or fills:
                continue
        spec = replace(spec, window=window)
        if fills and (spec.corrections or spec.payload != "ohlcv" or spec.aggregation != "ohlcv"):
            continue
        if window.kind == "calendar":
            spec = replace(spec, key_ttl_ns=3 * DAY)
        return spec


# -- and what must come of it -----------------------------------------------------------------------------------------


def readable(value: bytes | None) -> Any:
    """JSON that every reader takes."""
    assert value is not None
    assert not is_deeper(value, 64)
    found = json.loads(value)
    orjson.loads(value)
    return found


def check_written(records: Sequence[OutRecord]) -> None:
    """That a client can write the records and read them again."""
    if not records:
        return
    numbered = [
        RawRecord(number, each.timestamp_ms or 0, each.key, each.value, each.headers)
        for number, each in enumerate(records)
    ]
    found = list(MemoryRecords(packed(numbered)).next_batch())
    assert [(each.key, each.value, tuple(each.headers)) for each in found] == [
        (each.key, each.value, tuple(each.headers)) for each in records
    ]


def check(effects: Effects, changes: list[OutRecord]) -> None:
    assert not effects.failures, effects.failures[0].error + "\n" + effects.failures[0].traceback
    for frame in effects.frames:
        readable(frame.value)
    for entry in effects.late:
        readable(entry.value)
    assert sum(effects.rejected.values()) == len(effects.dead_letters)
    topic = OutTopic("out", 3, LIMIT_BYTES)
    spec = SinkSpec("in", "app", topic, topic, topic, topic, True, {}, {"elsewhere": topic})
    work = Commit(1, effects.frames, effects.late, effects.dead_letters, dict(effects.routed), changes)
    letters = len(work.dead_letters)
    fit(work, spec)
    assert len(work.dead_letters) >= letters
    for records in (work.frames, work.late, work.dead_letters, *work.routed.values()):
        assert all(size_in_batch(each) <= LIMIT_BYTES for each in records)
        check_written(records)
    check_written(changes)
    for entry in work.late:
        readable(entry.value)


def storm(seed: int, records: int = 60) -> Mapping[str, int]:
    """A log of hostile records through one kind of lane, with restarts; how many were rejected, by reason."""
    rng = random.Random(seed)
    spec = a_spec(rng)
    source = Input("ticks", 0, rng.choice([1, 4]))
    lane = Lane(spec, source)
    fast = NativeLane(spec, source) if supports(spec) else None
    log = [record(rng, offset, frames=spec.format == "frames") for offset in range(records)]
    cuts = [0, *sorted(rng.sample(range(1, records), 5)), records]
    changelog: list[OutRecord] = []
    total = Effects()
    for begin, end in pairwise(cuts):
        batch = by_hand(log[begin:end], HEADER_NAMES)
        effects = lane.process(list(batch.records()))
        if fast is not None:
            assert fast.process([batch]) == effects
        effects.extend(lane.idle(S))
        effects.extend(lane.flush_partial())
        changes = lane.take_changes()
        changelog += changes
        if fast is not None:
            fast.idle(S)
            fast.flush_partial()
            assert fast.take_changes() == changes
        total.extend(effects)
        check(effects, changes)
        assert lane.counts.balance() == 0
        lane = Lane(spec, source)
        lane.restore(entries_of(changelog), where="test")
        if fast is not None:
            fast = NativeLane(spec, source)
            fast.restore(entries_of(changelog), where="test")
    return total.rejected


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_a_stranger_sends_stops_a_lane(seed: int) -> None:
    storm(seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak_of_hostile_records_with_new_seeds() -> None:
    end_s = time.monotonic() + SOAK_MINUTES * 60
    rounds = 0
    while time.monotonic() < end_s:
        seed = random.SystemRandom().randrange(2**31)
        sys.stdout.write(f"HOSTILE_SEED={seed}\n")
        storm(seed, 400)
        rounds += 1
    assert rounds


# -- one by one -------------------------------------------------------------------------------------------------------

DEEP = b"[" * 1_000 + b"]" * 1_000
TICK = b'{"symbol":"A","ts":%d,"price":1.5,"size":2}'
GOOD = RawRecord(1, -1, b"A", TICK % NOW_MS)
FRAME = (
    b'{"key":"A","start":%d,"end":%d,"rev":0,"status":"final","trigger":"watermark","open":1,"high":1,"low":1,'
    b'"close":1,"volume":1,"vwap":1,"count":%d,"first_ts":%d,"last_ts":%d}'
)


def a_child(offset: int, number: int, count: int) -> RawRecord:
    start = NOW_MS + 10 * number
    return RawRecord(offset, -1, b"A", FRAME % (start, start + 10, count, start, start))


def told(effects: Effects) -> list[tuple[str, str]]:
    """Reason and message of each dead letter."""
    headers = [dict(letter.headers) for letter in effects.dead_letters]
    return [((each[REASON_HEADER] or b"").decode(), (each[MESSAGE_HEADER] or b"").decode()) for each in headers]


def both_lanes(spec: LaneSpec, records: list[RawRecord]) -> Effects:
    """What a lane makes of records; where native lanes know the spec, both."""
    effects = Lane(spec, Input("ticks", 0, 1)).process(records)
    if supports(spec):
        assert NativeLane(spec, Input("ticks", 0, 1)).process([by_hand(records, {})]) == effects
    return effects


CORRECTIONS = CorrectionRules("kind", ("X",), ("C",), "id")
SPECS = {
    "ticks": LaneSpec(),
    "items": LaneSpec(payload="both"),
    "frames": LaneSpec(format="frames", window=TumblingWindows(S), lag_ns=0),
    "corrections": LaneSpec(corrections=CORRECTIONS, payload="items"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("place", ["whole", "price", "ts", "symbol", "unknown", "id", "count", "key"])
def test_deep_json_is_a_dead_letter_that_says_so(spec: LaneSpec, place: str) -> None:
    good = a_child(1, 0, 1) if spec.format == "frames" else GOOD
    assert good.value is not None
    members = {name: orjson.dumps(value) for name, value in orjson.loads(good.value).items()}
    members[place] = DEEP
    value = b"{" + b",".join(b'"%s":%s' % (name.encode(), text) for name, text in members.items()) + b"}"
    deep = RawRecord(0, -1, b"A", DEEP if place == "whole" else value)
    effects = both_lanes(spec, [deep, good])
    [(reason, message)] = told(effects)
    assert reason == "malformed_json"
    assert f"nested deeper than {62 if spec.format == 'frames' else 60} levels" in message
    assert effects.aggregated == 1
    assert effects.dead_letters[0].value == deep.value
    assert not effects.failures


@pytest.mark.parametrize("depth", [DEEPEST_TICK, DEEPEST_TICK + 1])
def test_what_is_taken_can_be_quoted_by_everything(depth: int) -> None:
    """As a late tick, as an item, as a correction's trade, as an id, and behind a function that wraps it."""
    inner = b"[" * (depth - 1) + b"]" * (depth - 1)
    member = b',"unknown":%s,"id":7}' % inner
    records = [RawRecord(0, -1, b"A", (TICK % NOW_MS)[:-1] + member), RawRecord(1, -1, b"A", TICK % (NOW_MS + 9_000))]
    records.append(RawRecord(2, -1, b"A", (TICK % NOW_MS)[:-1] + member))
    records.append(RawRecord(3, -1, b"A", TICK % (NOW_MS + 19_000)))
    pipeline = (Deduplicate(("unknown",), 10**6), Map(f"{HERE}:wraps"))
    for spec in (LaneSpec(payload="both"), LaneSpec(payload="both", pipeline=pipeline), LaneSpec()):
        effects = both_lanes(spec, records)
        taken = 2 if depth == DEEPEST_TICK else 0
        assert len(effects.dead_letters) == 2 - taken
        assert len(effects.late) == taken // 2
        check(effects, [])
    correct = RawRecord(1, -1, b"A", b'{"symbol":"A","price":9,"size":1,"id":7,"kind":"C"}')
    lane = Lane(LaneSpec(corrections=CORRECTIONS, payload="items"), Input("ticks", 0, 1))
    effects = lane.process([records[0], correct])
    assert effects.corrected == ({"correct": 1} if depth == DEEPEST_TICK else {})


def test_depth_is_that_of_arrays_and_objects_and_not_of_what_strings_hold() -> None:
    rng = random.Random(1)
    for _ in range(2_000):
        levels, depth = rng.randrange(1, 12), rng.randrange(1, 12)
        text = b"1"
        for _ in range(depth):
            more = b",".join(rng.choice([b'"[[[[{{{{"', b'"\\\\"', b'"\\"[[["', b"[]", b"{}", b"2"]) for _ in range(3))
            text = rng.choice([b"[%s,%s]", b'{"[[\\"{":[%s],"x":%s}'][:1]) % (more, text)
        deepest = 0
        stack: list[tuple[object, int]] = [(orjson.loads(text), 1)]
        while stack:
            found, at = stack.pop()
            if isinstance(found, list):
                deepest = max(deepest, at)
                stack += [(each, at + 1) for each in found]
            elif isinstance(found, dict):
                deepest = max(deepest, at)
                stack += [(each, at + 1) for each in found.values()]
        assert is_deeper(text, levels) is (deepest > levels), text


def test_members_that_are_given_twice_count_for_the_depth() -> None:
    """What quotes the tick quotes them both."""
    value = (TICK % NOW_MS)[:-1] + b',"x":%s,"x":1}' % DEEP
    [(reason, _)] = told(both_lanes(LaneSpec(), [RawRecord(0, -1, b"A", value)]))
    assert reason == "malformed_json"


@pytest.mark.parametrize(
    "value",
    [json.loads("[" * 900 + "]" * 900), {"a": {"b": {"c": {"d": {}}}}}, list(range(10**5)), 10**308, "x" * 10**6],
)
def test_excerpts_are_short_and_follow_nothing(value: object) -> None:
    assert len(excerpt(value)) <= 81


def test_messages_hold_little_of_what_is_wrong() -> None:
    value = b'{"symbol":"A","ts":%d,"price":1.5,"size":"-1.%s1"}' % (NOW_MS, b"0" * 100_000)
    [(reason, message)] = told(both_lanes(LaneSpec(), [RawRecord(0, -1, b"A", value)]))
    assert reason == "negative_size"
    assert len(message) < 200


def test_frames_that_say_more_ticks_than_there_are_nanoseconds_are_refused() -> None:
    lane = Lane(SPECS["frames"], Input("ticks", 0, 1))
    most = 10 * MS
    effects = lane.process([a_child(0, 0, 2**63 - 1), a_child(1, 1, most + 1), a_child(2, 2, most), a_child(3, 3, 1)])
    assert [reason for reason, _ in told(effects)] == ["wrong_type", "wrong_type"]
    assert f"count is 10000001 (int); expected an integer from 0 to {most}" in told(effects)[1][1]
    lane.process([a_child(4, 100, most)])
    lane.take_changes()


def test_the_counts_of_all_that_a_parent_can_hold_fit_64_bits() -> None:
    spec = LaneSpec(format="frames", window=TumblingWindows(366 * DAY), lag_ns=0, key_ttl_ns=366 * DAY)
    lane = Lane(spec, Input("ticks", 0, 1))
    half = 183 * 86_400_000
    begin = NOW_MS // (2 * half) * 2 * half
    children = [(0, half), (1, half), (2, half)]
    effects = lane.process(
        [
            RawRecord(
                offset,
                -1,
                b"A",
                FRAME % (begin + n * half, begin + (n + 1) * half, length * MS, begin + n * half, begin + n * half),
            )
            for offset, (n, length) in enumerate(children)
        ]
    )
    assert not effects.dead_letters
    check_written(lane.take_changes())
    assert readable(effects.frames[-1].value)["count"] == 2 * half * MS


@pytest.mark.parametrize("spec", [LaneSpec(), LaneSpec(max_jump_ns=S)], ids=["native", "plain"])
def test_headers_of_any_name_and_without_a_value_come_with_the_dead_letter(spec: LaneSpec) -> None:
    record = RawRecord(0, -1, b"A", b"rubbish", (("bad1", b"1"), ("ok", None)))
    batch = by_hand([record, GOOD], HEADER_NAMES)
    lane = NativeLane(spec, Input("ticks", 0, 1)) if supports(spec) else Lane(spec, Input("ticks", 0, 1))
    effects = lane.process([batch] if isinstance(lane, NativeLane) else list(batch.records()))
    [letter] = effects.dead_letters
    assert letter.headers[:2] == (("\\xff\\xfe", b"1"), ("ok", None))
    assert effects.aggregated == 1
    check(effects, [])


def test_held_ticks_keep_headers_without_a_value() -> None:
    spec = LaneSpec(pipeline=(Conflate(S, S),))
    lane = Lane(spec, Input("ticks", 0, 1))
    lane.process([replace(GOOD, headers=(("h", None),))])
    again = Lane(spec, Input("ticks", 0, 1))
    assert again.restore(entries_of(lane.take_changes()), where="test") is not None


# -- what nobody thought of -------------------------------------------------------------------------------------------


class Unforeseen(Exception):
    """What nothing here raises on purpose."""


def failing(decode: Callable[[Record], Any], offsets: set[int]) -> Callable[[Record], Any]:
    def decoder(record: Record) -> Any:
        if record.offset in offsets:
            raise Unforeseen("x" * 10_000)
        return decode(record)

    return decoder


def test_whatever_decoding_raises_takes_out_that_record_alone() -> None:
    values = [
        b'{"symbol":"A","ts":%d,"price":1.5,"size":2,"note":"\\u0041"}' % NOW_MS,
        b"rubbish",
    ]  # the plain decoder's
    records = [RawRecord(offset, -1, b"A", values[offset % 7 == 3]) for offset in range(20)]
    found = []
    for lane in (Lane(LaneSpec(), Input("ticks", 0, 1)), NativeLane(LaneSpec(), Input("ticks", 0, 1))):
        lane._decode = failing(lane._decode, {2, 3, 11})
        found.append(lane.process([by_hand(records, {})] if isinstance(lane, NativeLane) else records))
        assert lane.counts.balance() == 0
    plain, native = found
    assert plain == native
    assert plain.rejected == {"processing_failed": 3, "malformed_json": 2}
    assert [failure.offset for failure in plain.failures] == [2, 3, 11]
    assert plain.aggregated == 15
    assert plain.failures[0].error.startswith("Unforeseen: xxx")
    assert "in decoder" in plain.failures[0].traceback
    assert max(len(message) for _, message in told(plain)) < 500


@pytest.mark.parametrize("what", ["ledger", "stage", "window"])
def test_whatever_else_raises_takes_out_that_record_alone(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise Unforeseen

    spec = LaneSpec(pipeline=(Deduplicate(("id",), S),) if what == "stage" else ())
    lane = Lane(spec, Input("ticks", 0, 1))
    times = [NOW_MS, NOW_MS + 10_000, NOW_MS, NOW_MS + 10_000]  # the third is late
    records = [RawRecord(offset, -1, b"A", TICK % ts) for offset, ts in enumerate(times)]
    with monkeypatch.context() as patch:
        if what == "ledger":
            patch.setattr("workers.core.lane.late_record", raises)
        elif what == "stage":
            patch.setattr("workers.core.pipeline.deduplicate._value", raises)
        else:
            patch.setattr(lane._engine, "add", raises)
        effects = lane.process(records)
    failed = 1 if what == "ledger" else 4
    assert effects.rejected == {"processing_failed": failed}
    assert effects.aggregated == 4 - failed
    assert lane.counts.balance() == 0
    assert "Unforeseen" in told(effects)[0][1]
    # What came before and after is as if these records had never been.
    lane.process([RawRecord(9, -1, b"A", TICK % (NOW_MS + 11_000))])
    assert lane.counts.aggregated == 5 - failed


def test_a_tick_that_was_held_back_answers_for_itself() -> None:
    lane = Lane(LaneSpec(pipeline=(Conflate(S, 0),)), Input("ticks", 0, 1))
    add = lane._engine.add

    def raises_once(key: str, ts_ns: int, value: Tick) -> Any:
        if value.offset == 0:
            raise Unforeseen
        return add(key, ts_ns, value)

    lane._engine.add = raises_once  # type: ignore[method-assign]
    effects = lane.process([RawRecord(n, -1, b"A", TICK % (NOW_MS + 1_000 * n)) for n in range(3)])
    assert [dict(letter.headers)["__streams.errors.offset"] for letter in effects.dead_letters] == [b"0"]
    assert effects.aggregated == 1
    assert lane.counts.balance() == 0


@pytest.mark.parametrize("error", [MemoryError(), OSError("no file handles left"), BrokerError("gone")])
def test_what_is_no_fault_of_a_record_goes_on(error: Exception) -> None:
    def raises(_: Record) -> Rejection:
        raise error

    for lane in (Lane(LaneSpec(), Input("ticks", 0, 1)), NativeLane(LaneSpec(), Input("ticks", 0, 1))):
        lane._decode = raises
        with pytest.raises(type(error)):
            lane.process([GOOD])


def test_a_users_aggregation_that_raises_stays_a_callback_error() -> None:
    lane = Lane(LaneSpec(aggregation=f"{HERE}:Sizes"), Input("ticks", 0, 1))
    poison = RawRecord(0, -1, b"A", (TICK % NOW_MS)[:-1] + b',"poison":1}')
    with pytest.raises(
        CallbackError, match=r"Sizes' raised RuntimeError: the aggregation can't take this.*offset 0"
    ) as caught:
        lane.process([poison])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_raises_beside_a_users_aggregation_is_not_blamed_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(LaneSpec(aggregation=f"{HERE}:Sizes"), Input("ticks", 0, 1))
    monkeypatch.setattr(lane._rules.assigner.__class__, "assign", lambda *_: [][1])
    assert lane.process([GOOD]).rejected == {"processing_failed": 1}


class Unusable(Mapping[str, object]):
    """What a user's function may return."""

    def __getitem__(self, name: str) -> object:
        raise Unforeseen

    def __iter__(self) -> Any:
        return iter(["price"])

    def __len__(self) -> int:
        return 1


def unusable(_: Tick) -> Unusable:
    return Unusable()


def test_what_a_users_function_returns_is_its_own_fault() -> None:
    lane = Lane(LaneSpec(pipeline=(Map(f"{HERE}:unusable"),)), Input("ticks", 0, 1))
    with pytest.raises(CallbackError, match=r"1:map: .*unusable' returned a Unusable that can't be used"):
        lane.process([GOOD])


def test_tracebacks_are_told_at_a_bounded_rate() -> None:
    lane = Lane(LaneSpec(), Input("ticks", 0, 1))
    lane._decode = failing(lane._decode, set(range(100)))
    steps = [lane.process([replace(GOOD, offset=offset) for offset in range(n, n + 10)]) for n in range(0, 100, 10)]
    assert all(len(step.failures) == 5 for step in steps)
    watch = FailureWatch()
    said = [each for second, step in enumerate(steps) for each in watch.note(step, float(second))]
    assert [(failure.offset, others) for failure, others in said] == [(0, 9)]
    [(failure, others)] = watch.note(steps[0], 10.0)
    assert (failure.offset, others) == (0, 99)
    assert list(watch.note(Effects(), 100.0)) == []
    pending = Effects()
    for step in steps:
        pending.extend(step)
    assert len(pending.failures) == 5
