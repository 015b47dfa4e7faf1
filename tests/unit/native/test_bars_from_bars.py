"""Bars from bars in the native lane: what the reference gives, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bars_oracle import Bar, Config
from tests.support.raw_batches import batches, build_batch
from tests.unit.core.test_lane import TOPIC, KafkaRecord
from tests.unit.core.windows.test_bars_from_bars import (
    CHILD,
    MS,
    bars,
    child,
    configs,
    in_order,
    records_of,
    spec_of,
    with_ends,
)
from tests.unit.native.test_lane import CALENDAR, assert_same, go_both_ways, same_changes
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.spec import LaneSpec
from workers.core.ticks import TickFormat
from workers.core.windows.kinds import HoppingWindows, SessionWindows, TumblingWindows
from workers.errors import StateFormatError
from workers.native.choose import make_lane, supports
from workers.native.lane import NativeLane

ONE = Input(TOPIC, 0, 1)
MOVES_MS = (0, 1_704_488_400_000)  # the second: a close of the New York Stock Exchange


@st.composite
def specs(draw: st.DrawFn, config: Config) -> LaneSpec:
    """Every kind of window that is made of bars."""
    spec = spec_of(config, emit_partial=draw(st.booleans()))
    size_ns = config.size * MS
    spec = replace(spec, tick=TickFormat(unit=draw(st.sampled_from(["ms", "s", "us"]))))
    match draw(st.sampled_from(["tumbling", "tumbling", "hopping", "offset", "zoned", "calendar"])):
        case "hopping":
            hop_ns = draw(st.sampled_from([CHILD, 2 * CHILD])) * MS
            spec = replace(spec, window=HoppingWindows(size_ns, hop_ns, draw(st.sampled_from([0, 5 * MS]))))
        case "offset":
            spec = replace(spec, window=TumblingWindows(size_ns, draw(st.sampled_from([5, CHILD])) * MS))
        case "zoned":
            zoned = TumblingWindows(3_600 * 10**9, time_zone="America/New_York")
            spec = replace(spec, window=zoned, key_ttl_ns=None)
        case "calendar":
            spec = replace(spec, window=CALENDAR, key_ttl_ns=None)
    return spec


def moved(bar: Bar, by_ms: int, unit: str) -> Bar:
    """A child at another time, with its ticks' times in another unit."""
    found = dict(bar)
    for name in ("start", "end"):
        found[name] = bar[name] + by_ms
    for name in ("first_ts", "last_ts"):
        if bar[name] is not None:
            found[name] = {"ms": 1, "us": 1_000}.get(unit, 1) * (bar[name] + by_ms)
            if unit == "s":
                found[name] //= 1_000
    return found


cases = configs.flatmap(
    lambda config: st.tuples(specs(config), st.lists(bars(config), max_size=60) | in_order(config), st.just(config))
)


@given(cases, st.data())
def test_batches_give_what_records_give(case: tuple[LaneSpec, list[Bar], Config], data: st.DataObject) -> None:
    spec, children, config = case
    assert supports(spec)
    by_ms = data.draw(st.sampled_from(MOVES_MS)) if spec.window != CALENDAR else MOVES_MS[1] - 20 * CHILD
    log = data.draw(with_ends([moved(bar, by_ms, spec.tick.unit) for bar in children]), "ends")
    go_both_ways(spec, data.draw(st.sampled_from([ONE, Input(TOPIC, 1, 2)])), records_of(log), config.size * MS, data)


ODD: Sequence[Any] = (None, True, False, "x", "", -1, 0, 1, 1.0, 2**62, 2**63, 2**64, 1e300, -0.0, [], {}, "closed", 15)


@given(st.lists(bars(Config(40)), min_size=1, max_size=20), st.data())
def test_frames_with_anything_in_them_are_taken_or_rejected_alike(children: list[Bar], data: st.DataObject) -> None:
    records = []
    for offset, bar in enumerate(children):
        found: dict[str, Any] = dict(bar)
        for name in data.draw(st.sets(st.sampled_from([*bar, "filled", "items", "ü"]), max_size=2)):
            if data.draw(st.booleans()) and name in found:
                del found[name]
            else:
                found[name] = data.draw(st.sampled_from(ODD))
        value = b"{" + b",".join(orjson.dumps(name) + b":" + _json(each) for name, each in found.items()) + b"}"
        if data.draw(st.integers(0, 5)) == 0:
            value = data.draw(st.sampled_from([b" " + value + b"\n", value[:-1], value.replace(b",", b" , ")]))
        records.append(KafkaRecord(offset, -1, data.draw(st.sampled_from([bar["key"].encode()] * 5 + [None])), value))
    go_both_ways(spec_of(Config(40, lateness=15)), ONE, records, 40 * MS, data)


def _json(found: object) -> bytes:
    return b"%d" % found if type(found) is int else orjson.dumps(found)


def frames_of(ticks: int, seed: int) -> list[KafkaRecord]:
    """The frames of an application with windows of 100 ms, revisions and previews among them, as its topic has them."""
    draw = random.Random(seed)
    spec = LaneSpec(
        window=TumblingWindows(100 * MS),
        lag_ns=200 * MS,
        lateness_ns=2_000 * MS,
        idle_after_ns=500 * MS,
        emit_partial=True,
    )
    lane = make_lane(spec, ONE)
    frames: list[OutRecord] = []
    for begin in range(0, ticks, 500):
        records = []
        for at in range(begin, begin + 500):
            ts = 1_700_000_000_000 + at * 3 - draw.choice([0, 0, 0, 50, 150, 1_900])
            fields = {"symbol": f"S{draw.randrange(30)}", "ts": ts, "price": draw.randrange(9_000, 9_900) / 100}
            value = orjson.dumps({**fields, "size": draw.randrange(1, 900) / 1_000})
            records.append(KafkaRecord(at, -1, str(fields["symbol"]).encode(), value))
        frames += lane.process(records).frames
        frames += lane.flush_partial().frames if draw.random() < 0.5 else []
    return [KafkaRecord(at, frame.timestamp_ms or 0, frame.key, frame.value) for at, frame in enumerate(frames)]


@pytest.mark.parametrize("emit", ["eager", "final"])
@pytest.mark.parametrize("lateness_ms", [0, 1_000, 3_000])
def test_frames_of_a_whole_application(lateness_ms: int, emit: str) -> None:
    records = frames_of(20_000, seed=lateness_ms)
    assert len(records) > 10_000
    spec = LaneSpec(
        window=HoppingWindows(1_000 * MS, 500 * MS),
        lag_ns=0,
        lateness_ns=lateness_ms * MS,
        emit=emit,  # type: ignore[arg-type]
        format="frames",
    )
    reference, fast = Lane(spec, ONE), NativeLane(spec, ONE)
    changelog: list[OutRecord] = []
    for number, (begin, end) in enumerate(pairwise([*range(0, len(records), 1_501), len(records)])):
        some = records[begin:end]
        assert_same(reference, fast, reference.process(some), fast.process(list(batches(some, [100, 200]))))
        if number % 2:
            changelog += same_changes(reference, fast)
        if number % 4 == 3:
            reference, fast = Lane(spec, ONE), NativeLane(spec, ONE)
            reference.restore(entries_of(changelog), where="test")
            fast.restore(entries_of(changelog), where="test")
    assert fast.counts.aggregated > 5_000
    assert fast.counts.balance() == 0


def test_frames_never_reach_the_plain_decoder() -> None:
    """Neither those with ticks nor those with provisional, filled, withdrawn or unknown contents."""
    lane = NativeLane(LaneSpec(window=TumblingWindows(1_000 * MS), lag_ns=0, format="frames"), ONE)
    lane._decode = None  # type: ignore[assignment]  # calling it would raise
    names = ("key", "start", "end", "rev", "status", "trigger", "open", "high", "low", "close", "volume", "vwap")
    nothing: tuple[object, ...] = (None,) * 6
    values = []
    for number, results in enumerate([(1.5, 2, 1.0, -0.5, 3.25, 1.1), nothing, (1.0, 1.0, 1.0, 1.0, 0.0, None)]):
        bar = dict(zip(names, ("A", 100 * number, 100 * number + 100, 0, "final", "late", *results), strict=True))
        count = 2 if number == 0 else 0
        bar |= {"count": count, "first_ts": 1 if count else None, "last_ts": 99 if count else None}
        values.append(bar | ({"filled": True} if number == 2 else {}))
    values += [{**values[0], "start": 300, "end": 400, "first_ts": 300, "last_ts": 399, "volume": None, "vwap": None}]
    values += [{**values[0], "start": 400, "end": 500, "first_ts": 400, "last_ts": 499, "items": [{"a": "\\"}]}]
    values += [{**values[0], "start": 500, "end": 600, "first_ts": 500, "last_ts": 599, "status": "provisional"}]
    effects = lane.process([build_batch(records_of(values))])
    assert (effects.aggregated, lane.counts.balance()) == (6, 0)
    values[0]["open"] = "1.5"
    (odd,) = records_of(values[:1])
    assert lane.process([build_batch([replace(odd, offset=6)])]).rejected == {"processing_failed": 1}


def test_a_window_that_comes_again_before_its_record_is_deleted_leaves_none_behind() -> None:
    reference, fast = lanes()
    preview, end = child(0, status="provisional"), Bar()
    first, *rest = records_of([preview, end, preview, end])
    assert_same(reference, fast, reference.process([first]), fast.process([first]))
    stored = {record.key for record in same_changes(reference, fast)}
    assert_same(reference, fast, reference.process(rest), fast.process(rest))
    deleted = {record.key for record in same_changes(reference, fast) if record.value is None}
    assert len(deleted & stored) == 1


def test_a_provisional_revision_of_what_is_there_is_not_shown_beside_it() -> None:
    reference, fast = lanes()
    records = records_of([child(0), child(0, status="provisional", rev=1, volume=7.0)])
    assert_same(reference, fast, reference.process(records), fast.process(list(batches(records, [1]))))
    assert fast.counts.deduplicated == 1
    assert_same(reference, fast, reference.flush_partial(), fast.flush_partial())


def lanes() -> tuple[Lane, NativeLane]:
    spec = spec_of(Config(size=60_000, lateness=60_000), emit_partial=True)
    return Lane(spec, ONE), NativeLane(spec, ONE)


def test_what_frames_can_not_be_part_of_is_left_to_the_reference() -> None:
    spec = LaneSpec(format="frames", lag_ns=0)
    assert supports(spec)
    assert supports(replace(spec, tick=TickFormat(ts="t", price="t"), aggregation="mine:Own", payload="both"))
    for window in (SessionWindows(1), TumblingWindows(10, fill_gaps_ns=10)):
        assert not supports(replace(spec, window=window))


# -- stored state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_damaged_contents_are_refused_or_taken_but_never_a_panic(seed: int) -> None:
    spec = LaneSpec(window=TumblingWindows(1_000 * MS), lag_ns=0, lateness_ns=500 * MS, format="frames")
    lane = NativeLane(spec, ONE)
    frames = frames_of(1_000, seed=3)
    lane.process([build_batch(frames[:-50])])
    entries = dict(entries_of(lane.take_changes()))
    names = [key for key in entries if key[:1] == b"w"]
    draw = random.Random(seed)
    refused = 0
    for _ in range(300):
        name = draw.choice(names)
        value = bytearray(entries[name])
        at = draw.randrange(len(value))
        value[at : at + draw.randrange(2)] = bytes([draw.choice((0x90, 0xC0, 0xCB, 0xFF, 0, draw.randrange(256)))])
        harmed = {**entries, name: bytes(value)}
        again = NativeLane(spec, ONE)
        try:
            again.restore(harmed, where="here")
        except StateFormatError:
            refused += 1
            continue
        again.process([build_batch(frames[-50:])])
        again.take_changes()
    assert refused > 100


def test_state_that_is_cut_is_refused_as_by_the_reference() -> None:
    spec = LaneSpec(window=TumblingWindows(1_000 * MS), lag_ns=0, format="frames")
    lane = NativeLane(spec, ONE)
    lane.process([build_batch(frames_of(500, seed=3))])
    entries = dict(entries_of(lane.take_changes()))
    name = next(key for key in entries if key[:1] == b"w")
    errors = []
    for new in (Lane(spec, ONE), NativeLane(spec, ONE)):
        with pytest.raises(StateFormatError) as caught:
            new.restore({**entries, name: entries[name][:-1]}, where="here")
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
