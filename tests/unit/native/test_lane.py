"""The native lane is the reference, only faster: the same effects and the same stored state, byte for byte."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracle import Config
from tests.support.raw_batches import batches, build_batch, varint
from tests.support.strategies import Case, configs, cuts, streams
from tests.unit.core.test_lane import TOPIC, KafkaRecord, kafka_records, spec_of
from workers import _native
from workers.core.effects import Effects
from workers.core.formats.json import tick_decoder
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import OperatorSpec, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.records import RawBatch, RawRecord, Record, count_of, end_of, records_of
from workers.core.spec import LaneSpec
from workers.core.ticks import Rejection, TickFormat
from workers.core.windows.kinds import (
    CalendarWindows,
    HoppingWindows,
    SessionWindows,
    TumblingWindows,
    Windows,
)
from workers.errors import BrokerError, StateFormatError, StateMismatchError
from workers.native import choose as lanes_module
from workers.native import lane as batch_lane
from workers.native import probe
from workers.native.choose import make_lane, supports
from workers.native.lane import NativeLane
from workers.times import MAX_EVENT_TIME_NS

all_configs = configs(all_late=False, min_times=True)
cases = all_configs.flatmap(lambda config: streams(config, max_size=120).map(lambda records: Case(config, records)))

CALENDAR = CalendarWindows("XNYS")


def windows(config: Config) -> st.SearchStrategy[Windows]:
    """Every kind, in sizes that fit the log."""
    size_ns = config.size_ns
    fills = st.just(0) | st.integers(1, 6).map(lambda count: count * size_ns)
    tumbling = st.builds(
        TumblingWindows,
        st.just(size_ns),
        st.just(0) | st.integers(0, size_ns - 1),
        st.none(),
        fills if config.payload == "ohlcv" else st.just(0),
    )
    hopping = st.integers(max(1, size_ns // 10), size_ns).flatmap(
        lambda hop_ns: st.builds(HoppingWindows, st.just(size_ns), st.just(hop_ns), st.integers(0, hop_ns - 1))
    )
    sessions = st.integers(1, 2 * size_ns).map(SessionWindows)
    return tumbling | hopping | sessions | st.just(CALENDAR)


def pipelines(config: Config) -> st.SearchStrategy[tuple[OperatorSpec, ...]]:
    """None, mostly; else up to three operators, on the fields that a log has."""
    _, ts, price, size = config.fields
    spans = st.integers(1, 4 * config.size_ns)
    fields = st.sampled_from([(ts,), (price, size), (size,), ("nowhere",)])
    deduplicates = st.builds(Deduplicate, fields, spans, gaps=st.booleans(), ledger=st.booleans())
    routes = st.sampled_from(
        [Route("a", "A*"), Route("window", "B"), Route("b", field=price, equals=1), Route("b", "*", size, "1")]
    )
    routers = st.lists(routes, min_size=1, max_size=3).map(lambda found: Router(tuple(found)))
    operators = (
        deduplicates | st.builds(Throttle, spans, st.integers(1, 3)) | st.builds(Conflate, spans, spans) | routers
    )
    return st.just(()) | st.lists(operators, max_size=3).map(tuple)


def lanes(spec: LaneSpec, config: Config) -> tuple[Lane, NativeLane]:
    source = Input(TOPIC, 0, config.partitions or 1)
    return Lane(spec, source), NativeLane(spec, source)


def assert_same(reference: Lane, fast: Lane, left: Effects, right: Effects) -> None:
    assert left == right
    assert (reference.position, reference.counts) == (fast.position, fast.counts)
    assert (reference.key_count, reference.partition_max_ns) == (fast.key_count, fast.partition_max_ns)
    assert reference.next_timeout_ns() == fast.next_timeout_ns()


@given(cases, st.data())
def test_batches_give_what_records_give(case: Case, data: st.DataObject) -> None:
    """Any log in any batches, with silences, flushes, commits, and crashes after which either lane goes on."""
    spec = spec_of(case.config, emit_partial=data.draw(st.booleans(), "emit_partial"))
    spec = replace(spec, window=data.draw(windows(case.config), "window"))
    spec = replace(spec, pipeline=data.draw(pipelines(case.config), "pipeline"))
    if spec.window == CALENDAR:
        spec = replace(spec, key_ttl_ns=None)  # a session is longer than the others' times to live
    source = Input(TOPIC, 0, case.config.partitions or 1)
    go_both_ways(spec, source, kafka_records(case.records), case.config.size_ns, data)


def go_both_ways(
    spec: LaneSpec, source: Input, records: Sequence[KafkaRecord], size_ns: int, data: st.DataObject
) -> Lane:
    """Give both lanes a log in any batches, with silences of up to ten times ``size_ns``, flushes, commits, and crashes
    after which either goes on. The reference, as it is in the end."""
    reference, fast = Lane(spec, source), NativeLane(spec, source)
    bounds = [0, *data.draw(cuts(len(records)), "cuts"), len(records)]
    changelog: list[OutRecord] = []
    for begin, end in pairwise(bounds):
        some = records[begin:end]
        inner = data.draw(cuts(len(some)), "batches")
        given_to_fast: Sequence[Record] | Sequence[RawBatch] = list(batches(some, inner))
        if data.draw(st.integers(0, 9), "plain records") == 0:
            given_to_fast = some
        # The builder has no word for "no timestamp" beside others; what it wrote is what both get.
        assert_same(reference, fast, reference.process(list(records_of(given_to_fast))), fast.process(given_to_fast))
        match data.draw(st.sampled_from(["nothing", "silence", "flush", "commit", "crash", "swap"]), "then"):
            case "silence":
                silence_ns = data.draw(st.integers(0, 10 * size_ns), "silence_ns")
                assert_same(reference, fast, reference.idle(silence_ns), fast.idle(silence_ns))
            case "flush":
                assert_same(reference, fast, reference.flush_partial(), fast.flush_partial())
            case "commit":
                changelog += same_changes(reference, fast)
            case "crash" | "swap" as what:
                changelog += same_changes(reference, fast)
                if what == "swap":  # each goes on with what the other stored; they stored the same
                    reference, fast = Lane(spec, source), NativeLane(spec, source)
                    order = data.draw(st.permutations(sorted(entries_of(changelog).items())), "order")
                    entries = dict(order)
                else:
                    reference, fast = Lane(spec, source), NativeLane(spec, source)
                    entries = entries_of(changelog)
                assert reference.restore(entries, where="test") == fast.restore(entries, where="test")
                assert_same(reference, fast, Effects(), Effects())
    assert same_changes(reference, fast)
    return reference


def same_changes(reference: Lane, fast: Lane) -> list[OutRecord]:
    left, right = reference.take_changes(), fast.take_changes()
    assert left == right
    return right


def _market(ticks: int, symbols: int, seed: int, *, disorder_ms: int = 1500, step_ms: float = 0.4) -> list[KafkaRecord]:
    """A busy market: symbols come and go, prices have cents, sizes need rounding, few ticks are late or wrong."""
    draw = random.Random(seed)
    records = []
    for offset in range(ticks):
        ts = 1_700_000_000_000 + int(offset * step_ms) - draw.randrange(disorder_ms)
        alive = int(offset * symbols / ticks)
        symbol = f"SYM{max(0, alive - draw.randrange(symbols // 4 + 1))}" + "-long" * (draw.randrange(50) == 0)
        fields = {"symbol": symbol, "ts": ts, "price": round(draw.uniform(1, 500), 2), "size": draw.random()}
        if draw.randrange(200) == 0:
            fields[draw.choice(["ts", "price", "size"])] = draw.choice(["x", None, -1, "2023-11-14T22:13:20Z"])
        value = orjson.dumps(fields)
        records.append(KafkaRecord(offset, ts + 1_000, symbol.encode(), value))
    return records


HOUR_NS = 3_600 * 10**9
OVER_A_YEAR = {
    "New York, 1 h": TumblingWindows(HOUR_NS, time_zone="America/New_York"),
    "Lord Howe, 3 h": TumblingWindows(3 * HOUR_NS, 1_800 * 10**9, "Australia/Lord_Howe"),
    "Apia, 1 d": TumblingWindows(24 * HOUR_NS, 9 * HOUR_NS, "Pacific/Apia"),
    "Casablanca, filled": TumblingWindows(6 * HOUR_NS, time_zone="Africa/Casablanca", fill_gaps_ns=200 * HOUR_NS),
    "XNYS": CalendarWindows("XNYS"),
    "XHKG, full": CalendarWindows("XHKG", "full", 10**9),
}


@pytest.mark.parametrize("scope", ["key", "partition"])
@pytest.mark.parametrize("name", OVER_A_YEAR)
@pytest.mark.parametrize("seed", range(2))
def test_years_by_wall_clocks_and_calendars_agree(name: str, scope: Literal["key", "partition"], seed: int) -> None:
    """Through all changes of clocks and holidays of three years (Samoa skipped a day), with jumps of decades."""
    draw = random.Random(f"{name} {seed}")
    spec = LaneSpec(
        window=OVER_A_YEAR[name], scope=scope, lag_ns=2 * HOUR_NS, lateness_ns=30 * HOUR_NS, idle_after_ns=HOUR_NS
    )
    records, now_ms = [], 1_290_000_000_000
    for offset in range(6_000):
        now_ms += draw.randrange(28_800_000)
        far_ms = draw.choice((-1, 1)) * 10**12 * (draw.randrange(500) == 0)
        symbol = draw.choice("ABC")
        ts = now_ms - draw.randrange(90_000_000) * (draw.randrange(3) == 0) + (far_ms if symbol == "C" else 0)
        value = orjson.dumps({"symbol": symbol, "ts": ts, "price": draw.randrange(900) / 8, "size": draw.randrange(9)})
        records.append(KafkaRecord(offset, -1, symbol.encode(), value))
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    changelog: list[OutRecord] = []
    for begin in range(0, len(records), 1_500):
        some = records[begin : begin + 1_500]
        assert_same(reference, fast, reference.process(some), fast.process(list(batches(some, [400, 900]))))
        changelog += same_changes(reference, fast)
        reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
        entries = entries_of(changelog)
        assert reference.restore(entries, where="test") == fast.restore(entries, where="test")


@pytest.mark.parametrize("sign", [1, -1])
def test_windows_of_a_year_by_a_wall_clock_are_found_where_times_end(sign: int) -> None:
    window = TumblingWindows(366 * 24 * HOUR_NS, time_zone="Europe/Berlin")
    spec = LaneSpec(TickFormat(unit="ns"), window=window)
    records = [_tick(n, sign * (MAX_EVENT_TIME_NS - n * 10**9)) for n in range(3)]
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    assert_same(reference, fast, reference.process(records), fast.process([build_batch(records)]))
    assert fast.counts.aggregated + fast.counts.late == 3


@pytest.mark.parametrize("emit", ["eager", "final"])
def test_large_logs_outgrow_every_table_and_still_agree(emit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lane, "SETTLE_AT_LEAST", 1 << 20)  # the reference shows all it has at once
    spec = LaneSpec(
        window=TumblingWindows(10**9), lag_ns=10**9, lateness_ns=10**9, emit=emit, emit_partial=True, key_ttl_ns=10**10
    )  # type: ignore[arg-type]
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    records = _market(60_000, 6_000, seed=5)
    changelog: list[OutRecord] = []
    for begin in range(0, len(records), 7_001):
        some = records[begin : begin + 7_001]
        assert_same(reference, fast, reference.process(some), fast.process(list(batches(some, [100, 200, 5_000]))))
        if begin % 2:
            changelog += same_changes(reference, fast)
        else:
            assert_same(reference, fast, reference.flush_partial(), fast.flush_partial())
    changelog += same_changes(reference, fast)
    again = NativeLane(spec, Input(TOPIC, 0, 1))
    again.restore(entries_of(changelog), where="test")
    assert again.key_count == fast.key_count > 500


def test_forgotten_keys_and_windows_give_their_room_back() -> None:
    """A hundred thousand symbols, of which some two thousand are alive at any time."""
    spec = LaneSpec(window=TumblingWindows(10**9), lag_ns=10**9, key_ttl_ns=2 * 10**9)
    lane = NativeLane(spec, Input(TOPIC, 0, 1))
    records = [_tick(n, n, f"symbol-{n}") for n in range(100_000)]
    for number, batch in enumerate(batches(records, range(1_000, 100_000, 1_000))):
        lane.process([batch])
        if number % 3 == 0:
            lane.take_changes()
    assert lane.key_count == 2_001
    assert lane.row_counts[0] < 20_000
    assert lane.row_counts[1] < 20_000


def test_one_key_may_have_more_windows_than_fit_a_round() -> None:
    spec = LaneSpec(window=TumblingWindows(10**6), lag_ns=10**11, lateness_ns=0, key_ttl_ns=10**12)
    order = list(range(20_000))
    random.Random(1).shuffle(order)
    times = [*order, 200_000]  # the last closes all of them at once
    records = [_tick(offset, ts) for offset, ts in enumerate(times)]
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    assert_same(reference, fast, reference.process(records), fast.process([build_batch(records)]))


def _tick(offset: int, ts: int, symbol: str = "A") -> KafkaRecord:
    value = orjson.dumps({"symbol": symbol, "ts": ts, "price": 1.5, "size": 2})
    return KafkaRecord(offset, -1, symbol.encode(), value)


def test_what_waits_to_be_overdue_does_not_pile_up() -> None:
    """A tick that opens a hundred windows at once, again and again."""
    spec = LaneSpec(window=HoppingWindows(100 * 10**9, 10**9), lag_ns=10**9)
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    for begin in range(0, 1_200, 300):
        some = [_tick(begin + n, (begin + n) * 300_000, "AB"[n % 2]) for n in range(300)]
        assert_same(reference, fast, reference.process(some), fast.process([build_batch(some)]))
        assert same_changes(reference, fast)


def test_a_long_silence_shows_very_many_windows_in_several_steps() -> None:
    spec = LaneSpec(key_ttl_ns=10**15)
    lane = NativeLane(spec, Input(TOPIC, 0, 1))
    lane.process([build_batch([_tick(n, 1_000, f"S{n}") for n in range(50_000)])])
    shown = []
    while (due_ns := lane.next_timeout_ns()) is not None:
        effects = lane.idle(due_ns)
        assert 0 < len(effects.frames) <= 20_000
        shown += effects.frames
    assert len(shown) == len({frame.key for frame in shown}) == 50_000


# -- batches ----------------------------------------------------------------------------------------------------------


def test_records_before_the_start_offset_are_skipped() -> None:
    records = [_tick(offset, 1_000 + offset) for offset in range(10, 20)]
    lane = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    lane.process([build_batch(records, start_offset=15)])
    assert (lane.counts.records, lane.position) == (5, 20)


def test_log_append_time_counts_for_every_record_of_a_batch() -> None:
    records = [_tick(offset, 50_000) for offset in range(3)]
    batch = build_batch(records)
    batch.timestamp_type, batch.max_timestamp = 1, 10_000
    spec = LaneSpec(TickFormat(max_future_skew_ns=10**9))
    reference, fast = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    assert_same(reference, fast, reference.process(list(batch.records())), fast.process([batch]))
    assert fast.counts.rejected == 3
    batch.max_timestamp = -1
    batch.base_offset, batch.next_offset = 3, 6
    batch.start_offset = 3
    assert_same(reference, fast, reference.process(list(batch.records())), fast.process([batch]))
    assert fast.counts.aggregated == 3


def test_batches_unpack_into_the_records_they_were_made_of() -> None:
    records = [
        RawRecord(5, 1_000, b"k", b"v"),
        RawRecord(7, 999, None, None, (("h", b"1"), ("ü", None), ("h", b""))),
        RawRecord(200, 10**12, b"", b"x" * 1_000_000),
    ]
    batch = build_batch(records)
    assert list(records_of([batch])) == records
    assert (count_of([batch]), end_of([batch])) == (count_of(records), end_of(records)) == (3, 201)


@pytest.mark.parametrize("harm", ["cut", "longer", "length"])
def test_batch_with_broken_insides_is_refused(harm: str) -> None:
    batch = build_batch([_tick(offset, 1_000) for offset in range(3)])
    payload = bytes(batch.packed)
    batch.packed = {"cut": payload[:-3], "longer": payload + b"\0", "length": b"\xff" * 9 + payload}[harm]
    lane = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    with pytest.raises(BrokerError, match=r"ticks\[0\]: the record batch of offsets 0 to 2"):
        lane.process([batch])
    with pytest.raises(BrokerError, match="batch"):
        list(batch.records())


def test_an_offset_beyond_its_batch_is_refused() -> None:
    batch = build_batch([_tick(0, 1_000), _tick(2**40, 1_000)])
    batch.next_offset = 2
    lane = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    with pytest.raises(BrokerError, match="offsets 0 to 1"):
        lane.process([batch])
    with pytest.raises(BrokerError, match="do not rise, or leave it"):
        list(batch.records())


BROKEN_HEADERS = [
    b"\x02",
    b"\x02\xff",
    b"\x02\x02a\x7e",
    b"\x04\x02a\x00",
    b"\x01",
    b"\x00\x00",
    b"\xfe\xff\xff\xff\x0f",
]


@pytest.mark.parametrize("headers", BROKEN_HEADERS, ids=bytes.hex)
def test_batch_with_a_broken_header_area_is_refused_as_a_whole(headers: bytes) -> None:
    """By both readers, and whether or not the record with it is read again: a good tick is not."""
    tick = _tick(0, 1_000)
    assert tick.key is not None
    assert tick.value is not None
    body = b"\0\0\0" + varint(len(tick.key)) + tick.key + varint(len(tick.value)) + tick.value + headers
    batch = RawBatch(0, 1, 1, 10_000, 10_000, 0, 0, varint(len(body)) + body)
    with pytest.raises(BrokerError, match=r"ticks\[0\]: the record batch of offsets 0 to 0"):
        NativeLane(LaneSpec(), Input(TOPIC, 0, 1)).process([batch])
    with pytest.raises(BrokerError, match="the batch at offset 0"):
        list(batch.records())


# -- stored state -----------------------------------------------------------------------------------------------------


def test_damaged_or_foreign_state_is_refused_as_by_the_reference() -> None:
    spec = LaneSpec()
    source = Input(TOPIC, 0, 1)
    lane = NativeLane(spec, source)
    lane.process([build_batch([_tick(0, 1_000)])])
    entries = entries_of(lane.take_changes())
    window = next(key for key in entries if key[:1] == b"w")
    for harm in (
        {window: entries[window][:-1]},
        {window: b"\x02" + entries[window][1:]},
        {window: entries[window] + b"\0"},
        {b"x": b""},
        {b"w\0": entries[window]},
        {b"w" + b"\0" * 8 + b"\xff": entries[window]},
    ):
        errors = []
        for new in (Lane(spec, source), NativeLane(spec, source)):
            with pytest.raises((StateFormatError, StateMismatchError)) as caught:
                new.restore({**entries, **harm}, where="here")
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    with pytest.raises(StateFormatError, match="not the input offset"):
        NativeLane(spec, source).restore({window: entries[window]}, where="here")
    with pytest.raises(StateMismatchError, match=r"window\.size was 5s, is 1s"):
        NativeLane(LaneSpec(window=TumblingWindows(10**9)), source).restore(entries, where="here")
    assert NativeLane(spec, source).restore({}, where="here") is None


def test_restoring_many_windows_is_quick() -> None:
    lane = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    records = [_tick(n, 1_000, f"S{n}") for n in range(100_000)]
    lane.process(list(batches(records, range(5_000, 100_000, 5_000))))
    entries = entries_of(lane.take_changes())
    again = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    began_s = time.process_time()
    again.restore(entries, where="test")
    assert time.process_time() - began_s < 1.0
    assert again.key_count == 100_000


def test_restoring_in_steps_takes_over_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lane, "RECORDS_AT_ONCE", 7)
    spec, source = LaneSpec(lateness_ns=10**9), Input(TOPIC, 0, 1)
    lane = NativeLane(spec, source)
    lane.process(list(batches(_market(2_000, 100, seed=2), [500])))
    assert lane.changes_waiting > 7
    entries = entries_of(lane.take_changes())
    assert lane.changes_waiting == 0
    reference, again = Lane(spec, source), NativeLane(spec, source)
    reference.restore(entries, where="test")
    assert sum(1 for _ in again.restore_in_steps(entries, where="test")) == -(-len(entries) // 7)
    more = [_tick(10_000 + n, 1_700_000_003_000 + n, f"SYM{n}") for n in range(100)]
    assert_same(reference, again, reference.process(more), again.process([build_batch(more)]))


# -- the choice -------------------------------------------------------------------------------------------------------


def test_only_what_is_native_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Input(TOPIC, 0, 1)
    for spec in (LaneSpec(), LaneSpec(payload="both"), LaneSpec(scope="partition"), LaneSpec(window=SessionWindows(1))):
        assert isinstance(make_lane(spec, source), NativeLane)
    others = (LaneSpec(TickFormat(ts="t", price="t")), LaneSpec(max_jump_ns=1))
    for spec in others:
        assert not supports(spec)
        assert type(make_lane(spec, source)) is Lane
        with pytest.raises(ValueError, match="native lane needs"):
            make_lane(spec, source, native=True)
    assert type(make_lane(LaneSpec(), source, native=False)) is Lane
    monkeypatch.setenv("WORKERS_NATIVE", "0")
    assert type(make_lane(LaneSpec(), source)) is Lane


def test_native_code_that_cannot_be_used_leaves_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes_module._is_usable.cache_clear()
    try:
        monkeypatch.setattr(probe, "writes_as_orjson", lambda: False)
        with pytest.warns(RuntimeWarning, match="orjson writes floats differently"):
            assert type(make_lane(LaneSpec(), Input(TOPIC, 0, 1))) is Lane
        with pytest.raises(ValueError, match="Rust compiler"):
            make_lane(LaneSpec(), Input(TOPIC, 0, 1), native=True)
        monkeypatch.setattr(probe, "INTERFACE", 0)
        lanes_module._is_usable.cache_clear()
        with pytest.warns(RuntimeWarning, match="built of other sources; install again"):
            assert type(make_lane(LaneSpec(), Input(TOPIC, 0, 1))) is Lane
    finally:
        lanes_module._is_usable.cache_clear()


def test_nothing_needs_native_code_but_the_native_lane() -> None:
    code = (
        "import sys; sys.modules['workers._native'] = None\n"
        "from workers.native.choose import is_available, make_lane\n"
        "from workers.core.lane import Input\n"
        "from workers.core.spec import LaneSpec\n"
        "assert not is_available()\n"
        "print(type(make_lane(LaneSpec(), Input('t', 0, 1))).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("Lane", "")


# -- the decoder, against the reference's -----------------------------------------------------------------------------

_VALID = (
    b'{"symbol":"AAPL","ts":1700000000000,"price":100.25,"size":3}',
    b'{"symbol":"B","ts":-5,"price":"0.30","size":"1"}',
    b' { "size" : 12.5 , "price":-1.75,\n"ts":1700000000000,\t"symbol":"AAPL"} ',
    b'{"e":"trade","x":true,"symbol":"AAPL","n":null,"m":false,"ts":1,"price":1,"id":123456,"size":0.000001}',
    '{"symbol":"ÜBER","ts":17,"price":1.5,"size":2}'.encode(),
    b'{"symbol":"A","ts":"2023-11-14T22:13:20Z","price":1e2,"size":1}',
    b'{"symbol":"","ts":0,"price":0,"size":0}',
    b'{"symbol":"AAPL","ts":1700000000000,"price":123456789012345678,"size":0.123456789012345678}',
)
_PIECES = (
    *(b'"', b"\\", b"{", b"}", b",", b":", b"0", b"9", b"-", b".", b"e", b" ", b"\t", b"\0", b"\x7f", b"\x80", b"\xc3"),
    *(b'"ts":1,', b'"symbol":"AAPL",', b"null", b"[]", b"1" * 20),
    *(b'"a":1,', b'"a":01,', b'"a":1.,', b'"a":"\xff",', b'"a":-,', b'"a":tru,', b'"a":true,', b'"a":"b",'),
)


def _mutations(seed: int, number: int) -> list[tuple[bytes, bytes]]:
    """Keys and values: valid ticks with some of their bytes changed, put in, taken out, repeated."""
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        original = draw.choice(_VALID)
        value = bytearray(original)
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            at = draw.randrange(len(value) + 1)
            match draw.randrange(5):
                case 0:
                    value[at : at + 1] = bytes([draw.randrange(256)])
                case 1:
                    value[at:at] = draw.choice(_PIECES)
                case 2:
                    del value[at : at + draw.randrange(1, 4)]
                case 3:
                    other = draw.choice(_VALID)
                    value[at:] = other[draw.randrange(len(other)) :]
                case 4:
                    begin = draw.randrange(len(value) + 1)
                    value[at:at] = value[begin : begin + draw.randrange(12)]
        made.append((orjson.loads(original)["symbol"].encode(), bytes(value)))
    return made


@pytest.mark.parametrize("seed", range(8))
def test_mutated_json_is_decoded_or_rejected_as_by_the_reference(seed: int) -> None:
    form = TickFormat(max_future_skew_ns=10**9)
    decode = tick_decoder(form)
    draw = random.Random(seed)
    records: list[Record] = []
    for offset, (symbol, value) in enumerate(_mutations(seed, 5_000)):
        key = symbol if draw.randrange(6) else draw.choice((b"AAPL", b"B", b"", b"A", None, b'AA"PL', b"\xff"))
        sent_ms = draw.choice((1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_000, 17))
        records.append(RawRecord(offset, sent_ms, key, value))
    spec = LaneSpec(form, window=TumblingWindows(10**16), lag_ns=10**16, payload="both")
    reference, lane = Lane(spec, Input(TOPIC, 0, 1)), NativeLane(spec, Input(TOPIC, 0, 1))
    left = reference.process(records)
    assert_same(reference, lane, left, lane.process(list(batches(records, sorted(draw.sample(range(5_000), 30))))))
    assert 500 < left.aggregated + len(left.late) < 3_000
    assert same_changes(reference, lane)
    assert sum(isinstance(decode(record), Rejection) for record in records) == sum(left.rejected.values())


def test_ordinary_ticks_never_reach_the_plain_decoder() -> None:
    values = (
        b'{"symbol":"AAPL","ts":1700000000000,"price":100.25,"size":3}',
        b'{"symbol":"AAPL","ts":1700000000000,"price":"100.25","size":"0.00001"}',
        b'{"e":"trade","E":1,"symbol":"AAPL","t":12345,"price":"0.001","size":"100","ts":1700000000000,"m":true}',
        b'{ "ts": 1700000000000, "size": 0, "price": -0.5, "symbol": "AAPL" }',
    )
    lane = NativeLane(LaneSpec(), Input(TOPIC, 0, 1))
    lane._decode = None  # type: ignore[assignment]  # calling it would raise
    records = [RawRecord(offset, -1, b"AAPL", values[offset % 4]) for offset in range(1_000)]
    assert lane.process([build_batch(records)]).aggregated == 1_000


def test_floats_are_written_as_orjson_writes_them() -> None:
    draw = random.Random(7)
    special = [0.0, -0.0, 5e-324, 1e-5, 9.999e-5, 1e-6, 1e15, 1e16, 1e17, 2.0**53, 2.0**60, 1e21, 1e22, 1e23, 0.1 + 0.2]
    special += [1.7976931348623157e308, 2.2250738585072014e-308, float("inf"), float("nan"), 9999999999999998.0, 4.35]
    bits = struct.unpack("<100000d", draw.randbytes(800_000))
    for values in (
        special,
        bits,
        [draw.random() * 10.0 ** draw.randrange(-10, 25) for _ in range(100_000)],
        [round(draw.random() * 1_000, 2) for _ in range(50_000)],
        [2.0 ** draw.randrange(-1074, 1023) for _ in range(10_000)],
        [10.0 ** draw.randrange(-300, 300) for _ in range(10_000)],
        [float(draw.randrange(10**18)) for _ in range(50_000)],
    ):
        assert [_native.float_text(value) for value in values] == [orjson.dumps(value).decode() for value in values]
