"""Corrections in the native lane: what the reference gives, byte for byte."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import corrections_oracle, oracle
from tests.support.raw_batches import batches, build_batch
from tests.support.strategies import configs, streams
from tests.unit.core.test_lane import TOPIC, KafkaRecord, kafka_records, spec_of
from tests.unit.core.windows.test_corrections import KIND, KINDS, MS, REF, RULES, logs, plain, random_log
from tests.unit.native.test_lane import CALENDAR, assert_same, go_both_ways, same_changes
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import HoppingWindows, SessionWindows, TumblingWindows, Windows
from workers.errors import StateFormatError
from workers.native.choose import make_lane, supports
from workers.native.lane import NativeLane

ID = corrections_oracle.FIELDS[1]
ONE = Input(TOPIC, 0, 1)


def windows(config: oracle.Config) -> st.SearchStrategy[Windows]:
    """Every kind that takes corrections, in sizes that fit the log."""
    size_ns = config.size_ns
    tumbling = st.builds(TumblingWindows, st.just(size_ns), st.just(0) | st.integers(0, size_ns - 1))
    hopping = st.integers(max(1, size_ns // 10), size_ns).flatmap(
        lambda hop_ns: st.builds(HoppingWindows, st.just(size_ns), st.just(hop_ns), st.integers(0, hop_ns - 1))
    )
    sessions = st.integers(1, 2 * size_ns).map(SessionWindows)
    zoned = st.just(TumblingWindows(3_600 * 10**9, time_zone="America/New_York"))
    return tumbling | hopping | sessions | sessions | zoned | st.just(CALENDAR)


rules = st.sampled_from(
    [
        RULES,
        RULES,
        replace(RULES, refers_to=None),
        CorrectionRules(KIND, ("X", "8"), ("C", ""), "symbol", REF),
        CorrectionRules(KIND, ("X",), (), "price", ID),
        CorrectionRules(ID, ("1",), ("3",), ID, REF),
        CorrectionRules("size", ("0.3",), ("1",), KIND, ID),
    ]
)


@st.composite
def kept_by(draw: st.DrawFn, config: oracle.Config) -> LaneSpec:
    spec = spec_of(config, emit_partial=draw(st.booleans()))
    spec = replace(spec, window=draw(windows(config)), corrections=draw(rules))
    # A session is longer than the others' times to live.
    is_long = spec.window == CALENDAR or getattr(spec.window, "time_zone", None) is not None
    return replace(spec, key_ttl_ns=None) if is_long else spec


plain_configs = configs(all_late=False).map(plain)
cases = plain_configs.flatmap(lambda config: st.tuples(st.just(config), logs(config), kept_by(config)))


@given(cases, st.data())
def test_batches_give_what_records_give(
    case: tuple[oracle.Config, list[oracle.Record], LaneSpec], data: st.DataObject
) -> None:
    config, log, spec = case
    assert supports(spec)
    go_both_ways(spec, ONE, kafka_records(log), config.size_ns, data)


odd_values = st.sampled_from(
    ["a", "X", "C", "", "1", "ü", 'q"', "\n", 0, 1, -1, 2**31, 10**18, 2**63, 2**64, 1.5, 1e300, True, None, [], {}]
)


@given(
    configs(all_late=False, min_times=True).flatmap(
        lambda config: st.tuples(st.just(config), streams(config), kept_by(config))
    ),
    st.data(),
)
def test_any_values_in_the_fields_of_messages(
    case: tuple[oracle.Config, list[oracle.Record], LaneSpec], data: st.DataObject
) -> None:
    """Logs with whatever is wrong with ticks, and anything where the messages' fields are."""
    config, log, spec = case
    records = []
    for record in kafka_records(log):
        value = record.value
        if value is not None and value.rstrip().endswith(b"}") and data.draw(st.booleans()):
            more = {name: data.draw(odd_values) for name in data.draw(st.sets(st.sampled_from([KIND, ID, REF])))}
            written = b"".join(b',"%s":%s' % (name.encode(), _json(found)) for name, found in more.items())
            value = value.rstrip()[:-1] + written + b"}"
        records.append(KafkaRecord(record.offset, record.timestamp, record.key, value, record.headers))
    go_both_ways(spec, Input(TOPIC, 0, config.partitions or 1), records, config.size_ns, data)


def _json(found: object) -> bytes:
    return b"%d" % found if type(found) is int else orjson.dumps(found)


def records_of(messages: Sequence[Mapping[str, object]], symbol: str = "A") -> list[KafkaRecord]:
    values = [orjson.dumps({"symbol": symbol, **message}) for message in messages]
    return [KafkaRecord(offset, -1, symbol.encode(), value) for offset, value in enumerate(values)]


@pytest.mark.parametrize("payload", ["ohlcv", "both", "items"])
@pytest.mark.parametrize("kind", KINDS)
def test_long_logs_of_trades_and_messages(kind: str, payload: str) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        spec = replace(KINDS[kind], corrections=RULES, payload=payload)  # type: ignore[arg-type]
        reference, fast = Lane(spec, ONE), make_lane(spec, ONE, native=True)
        records = records_of(random_log(rng, 600))
        changelog: list[OutRecord] = []
        for begin, end in pairwise(sorted({0, 600, *rng.sample(range(600), 12)})):
            some = records[begin:end]
            cuts = sorted(rng.sample(range(len(some)), min(len(some), 2)))
            assert isinstance(fast, NativeLane)
            assert_same(reference, fast, reference.process(some), fast.process(list(batches(some, cuts))))
            if rng.random() < 0.4:
                changelog += same_changes(reference, fast)
            if rng.random() < 0.2:
                changelog += same_changes(reference, fast)
                reference, fast = Lane(spec, ONE), NativeLane(spec, ONE)
                reference.restore(entries_of(changelog), where="test")
                fast.restore(entries_of(changelog), where="test")
        assert reference.counts.corrected > 50
        assert fast.counts.balance() == 0


def test_ordinary_trades_never_reach_the_plain_decoder() -> None:
    values = (
        b'{"symbol":"A","ts":1700000000000,"price":100.25,"size":3,"id":17}',
        b'{"kind":"T","id":"a-b","symbol":"A","ts":1700000000000,"price":"100.25","size":"0.00001"}',
        b'{"symbol":"A","ts":1700000000000,"kind":null,"price":0.001,"size":100,"id":null}',
        b'{ "ts": 1700000000000, "size": 0, "price": -0.5, "symbol": "A" , "kind" : 3 }',
    )
    spec = LaneSpec(corrections=RULES)
    lane = NativeLane(spec, ONE)
    lane._decode = None  # type: ignore[assignment]  # calling it would raise
    records = [KafkaRecord(offset, -1, b"A", values[offset % 4]) for offset in range(1_000)]
    assert lane.process([build_batch(records)]).aggregated == 1_000


def trade(name: object, ts: int) -> dict[str, object]:
    return {"ts": ts, "price": 1.5, "size": 2, ID: name}


def test_a_message_costs_what_its_window_has_however_many_others_are_kept() -> None:
    """20,000 windows of a symbol, the same ids in all of them, and a message about the trade of every tenth. Letting go
    of all of them at once costs no more."""
    number = 20_000
    spec = LaneSpec(
        window=TumblingWindows(10 * MS), lateness_ns=10**12, key_ttl_ns=10**13, corrections=RULES, idle_after_ns=10**12
    )
    lane = NativeLane(spec, ONE)
    trades = [message for at in range(number) for message in (trade(at, 10 * at), trade(f"x{at % 7}", 10 * at + 1))]
    lane.process([build_batch(records_of(trades))])
    messages = [{KIND: "X", REF: at} for at in range(0, number, 10)]
    later = [replace(record, offset=record.offset + 2 * number) for record in records_of(messages)]
    began_s = time.process_time()
    lane.process([build_batch(later)])
    assert lane.counts.corrected == len(messages)
    lane.process([build_batch([replace(records_of([trade("last", 10**7)])[0], offset=3 * number)])])
    assert time.process_time() - began_s < 1.0


def test_ids_of_windows_that_are_gone_are_found_no_more() -> None:
    spec = LaneSpec(window=TumblingWindows(5 * MS), lag_ns=2 * MS, lateness_ns=4 * MS, corrections=RULES)
    reference, fast = Lane(spec, ONE), NativeLane(spec, ONE)
    messages: list[dict[str, object]] = []
    for at in range(5_000):
        messages.append(trade(at % 100, at))
        if at % 7 == 0:
            messages.append({KIND: "X", REF: (at - at % 23) % 100})
    records = records_of(messages)
    assert_same(reference, fast, reference.process(records), fast.process(list(batches(records, [1_000, 3_000]))))
    assert reference.counts.corrected > 100
    assert reference.counts.late > 100


# -- stored state -----------------------------------------------------------------------------------------------------


def stored() -> tuple[LaneSpec, dict[bytes, bytes]]:
    spec = LaneSpec(lateness_ns=10**10, corrections=RULES)
    lane = NativeLane(spec, ONE)
    lane.process([build_batch(records_of([trade("a", 1), trade("b", 2), {KIND: "X", REF: "a"}]))])
    return spec, dict(entries_of(lane.take_changes()))


def test_state_that_lost_a_correction_is_refused() -> None:
    spec, entries = stored()
    (segment,) = [key for key in entries if key[:1] == b"i"]
    items = msgspec.msgpack.decode(entries[segment])
    without_message = msgspec.msgpack.encode(items[:1])  # as many items as the window counts trades
    errors = []
    for lane in (Lane(spec, ONE), NativeLane(spec, ONE)):
        with pytest.raises(StateFormatError) as caught:
            lane.restore({**entries, segment: without_message}, where="here")
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_trades_are_refused_or_taken_but_never_a_panic(seed: int) -> None:
    spec, entries = stored()
    (segment,) = [key for key in entries if key[:1] == b"i"]
    draw = random.Random(seed)
    refused = 0
    for _ in range(300):
        items = msgspec.msgpack.decode(entries[segment])
        item = bytearray(items[draw.randrange(3)])
        at = draw.randrange(len(item))
        item[at : at + draw.randrange(2)] = bytes([draw.choice((0x90, 0xC0, 0xCB, 0xFF, 0, 1, 2, draw.randrange(256)))])
        items[draw.randrange(3)] = bytes(item)
        lane = NativeLane(spec, ONE)
        try:
            lane.restore({**entries, segment: msgspec.msgpack.encode(items)}, where="here")
        except StateFormatError:
            refused += 1
            continue
        later = [replace(record, offset=record.offset + 3) for record in records_of([{KIND: "X", REF: "b"}])]
        lane.process([build_batch(later)])
    assert refused > 100
