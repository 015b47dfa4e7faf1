"""Bars made of bars: against a model written apart, and against bars made of the ticks themselves."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bars_oracle import Bar, Config, Model, summary
from tests.support.strategies import cuts
from tests.unit.core.test_lane import TOPIC, KafkaRecord, real_frames, reasons
from workers.apps.inspect.witness import Investigation
from workers.core.formats.frames import ChildBar, bar_decoder
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import REASON_HEADER
from workers.core.spec import LaneSpec
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT, TickFormat
from workers.core.windows.kinds import HoppingWindows, TumblingWindows, Windows
from workers.core.windows.resample import BarEngine, BarRules, Bars, Contents
from workers.core.windows.window import Lateness
from workers.errors import ConfigError
from workers.settings import Settings, TickSettings, load_settings
from workers.settings.lane import lane_spec
from workers.testing import TestDriver

MS = 1_000_000
SECOND_NS = 10**9
CHILD = 10  # ms


def spec_of(config: Config, *, emit_partial: bool = False) -> LaneSpec:
    return LaneSpec(
        window=TumblingWindows(config.size * MS),
        lateness_ns=config.lateness * MS,
        idle_after_ns=config.size * MS,
        key_ttl_ns=None if config.ttl == NEVER else config.ttl * MS,
        emit=config.emit,
        emit_partial=emit_partial,
        format="frames",
    )


def lane_of(config: Config, *, emit_partial: bool = False) -> Lane:
    return Lane(spec_of(config, emit_partial=emit_partial), Input(TOPIC, 0, 1))


def records_of(bars: Sequence[Bar]) -> list[KafkaRecord]:
    return [
        KafkaRecord(at, max(bar["end"], 0), bar["key"].encode(), orjson.dumps(bar))
        if bar
        else KafkaRecord(at, 0, None, None, ((CONTROL_HEADER, END_OF_INPUT),))
        for at, bar in enumerate(bars)
    ]


def late_of(records: Sequence[OutRecord]) -> list[tuple[int, str]]:
    entries = [orjson.loads(record.value or b"") for record in records]
    assert [entry["reason"].encode() for entry in entries] == [dict(each.headers)[REASON_HEADER] for each in records]
    return [(entry["offset"], entry["reason"]) for entry in entries]


NEVER = 10**24
NUMBERS = st.sampled_from([1.5, 2.25, 10.0, 0.1, 3.3, 1e300, 7.125, -0.5, 0.12345678901234568, 1e-300])
VOLUMES = st.sampled_from([0.0, 1.0, 0.1, 2.5, 1e3, None, 0.12345678901234568, 1e12, 1e300, 3e-20])


@st.composite
def bars(draw: st.DrawFn, config: Config) -> Bar:
    """A child near the epoch: on a grid of ten milliseconds or, seldom, of five or twenty."""
    length = draw(st.sampled_from([CHILD] * 12 + [CHILD // 2, 2 * CHILD]))
    start = draw(st.integers(-5, 40)) * CHILD
    kind = draw(st.sampled_from(["real"] * 8 + ["filled", "withdrawn"]))
    bar: Bar = {
        "key": draw(st.sampled_from(["A", "A", "B"])),
        "start": start,
        "end": start + length,
        "rev": draw(st.integers(0, 2)),
        "status": draw(st.sampled_from(["closed", "final", "closed", "provisional"])),
        "trigger": draw(st.sampled_from(["watermark", "late", "correction"])),
    }
    count = draw(st.integers(1, 5)) if kind == "real" else 0
    results: Bar = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"))
    if kind != "withdrawn":
        volume = draw(VOLUMES) if kind == "real" else 0.0
        results = {name: draw(NUMBERS) for name in ("open", "high", "low", "close")}
        results |= {"volume": volume, "vwap": draw(NUMBERS | st.none()) if volume else None}
    first = draw(st.integers(start, start + length - 1))
    times = {"first_ts": first, "last_ts": draw(st.integers(first, start + length - 1))} if count else {}
    bar |= {**results, "count": count, "first_ts": None, "last_ts": None, **times}
    return {**bar, "filled": True} if kind == "filled" else bar


configs = st.builds(
    Config,
    size=st.sampled_from([20, 40, 60, 200]),
    lateness=st.sampled_from([0, 0, 10, 15, 30, 100]),
    ttl=st.sampled_from([NEVER, 250, 300]),
    emit=st.sampled_from(["eager", "eager", "final"]),
)
cases = configs.flatmap(lambda config: st.tuples(st.just(config), st.lists(bars(config), max_size=40)))


@st.composite
def in_order(draw: st.DrawFn, config: Config) -> list[Bar]:
    """A log as an application makes it: each symbol's children by end, with revisions and repeats among them."""
    found = draw(st.lists(bars(config), max_size=40))
    found.sort(key=lambda bar: bar["end"] + draw(st.sampled_from([0, 0, 0, config.lateness])))
    return found


ordered_cases = configs.flatmap(lambda config: st.tuples(st.just(config), in_order(config)))


@st.composite
def with_ends(draw: st.DrawFn, children: Sequence[Bar]) -> list[Bar]:
    """Children with up to three ends of the input among them, which are empty."""
    log = list(children)
    for _ in range(draw(st.integers(0, 3))):
        log.insert(draw(st.integers(0, len(log))), {})
    return log


@given(cases | ordered_cases, st.data())
def test_any_children_in_any_batches_over_any_crashes_give_what_the_model_gives(
    case: tuple[Config, list[Bar]], data: st.DataObject
) -> None:
    config, children = case
    children = data.draw(with_ends(children), "ends")
    model = Model(config)
    partial = data.draw(st.booleans(), "emit_partial")
    lane, changelog = lane_of(config, emit_partial=partial), list[OutRecord]()
    records, frames = records_of(children), list[OutRecord]()
    late, dead = list[OutRecord](), list[OutRecord]()
    bounds = [0, *data.draw(cuts(len(records)), "cuts"), len(records)]
    for begin, end in itertools.pairwise(bounds):
        effects = lane.process(records[begin:end])
        frames, late, dead = frames + effects.frames, late + effects.late, dead + effects.dead_letters
        model.run(children[begin:end])
        match data.draw(st.sampled_from(["nothing", "silence", "flush", "crash"]), "then"):
            case "silence":
                frames += lane.idle(data.draw(st.integers(0, 500)) * MS).frames
            case "flush":
                shown = lane.flush_partial().frames
                check_provisional(shown, model)
                frames += shown
            case "crash":
                changelog += lane.take_changes()
                position, counts = lane.position, lane.counts
                lane = lane_of(config, emit_partial=partial)
                assert lane.restore(entries_of(changelog), where="test") is not None
                assert (lane.position, lane.counts) == (position, counts)
    assert real_frames(frames) == model.frames
    assert late_of(late) == model.late
    assert reasons(dead) == [(position, "wrong_window") for position in model.misplaced]
    counts = lane.counts
    assert (counts.aggregated, counts.deduplicated, counts.late) == (
        model.aggregated,
        model.deduplicated,
        len(model.late),
    )
    assert counts.balance() == 0


def check_provisional(frames: Sequence[OutRecord], model: Model) -> None:
    for record in frames:
        frame = orjson.loads(record.value or b"")
        wanted = model.open_parents(frame["key"])[frame["start"]]
        assert {name: frame.get(name) for name in wanted} == wanted


@given(cases | ordered_cases, st.data())
def test_provisional_children_leave_no_trace_in_other_frames(
    case: tuple[Config, list[Bar]], data: st.DataObject
) -> None:
    config, children = case
    children = data.draw(with_ends(children), "ends")
    with_all = lane_of(config).process(records_of(children))
    without = lane_of(config).process(records_of([bar for bar in children if bar.get("status") != "provisional"]))
    assert real_frames(with_all.frames) == real_frames(without.frames)
    assert [reason for _, reason in late_of(with_all.late)] == [reason for _, reason in late_of(without.late)]


@given(st.lists(bars(Config(200)), max_size=30), st.data())
def test_it_makes_no_difference_when_children_are_folded(children: list[Bar], data: st.DataObject) -> None:
    decode = lane_of(Config(10**6))._decode
    kept: dict[int, Any] = {}
    for record in records_of([bar for bar in children if bar["end"] - bar["start"] == CHILD]):
        decoded = decode(record)
        kept[decoded.child.start_ns] = decoded.child  # type: ignore[union-attr]
    whole, folded, codec = Contents(), Contents(), Bars()
    for start in sorted(kept):
        whole.join(kept[start])
        folded.join(kept[start])
        folded.settle(data.draw(st.sampled_from([-(10**18), start, kept[start].end_ns])))
        if data.draw(st.booleans()):
            folded = codec.load(codec.dump(folded))
    assert repr(codec.result(folded)) == repr(codec.result(whole))


# -- beside bars made of the ticks ------------------------------------------------------------------------------------

Sent = tuple[str, int, float, float]
"""Symbol, time in ms, price and size of a tick."""


def bar_of(frames: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The last frame of each window."""
    return {(frame["key"], frame["start"]): frame for frame in frames}


def feed(rng: random.Random, symbols: Sequence[str], count: int, *, dyadic: bool) -> list[Sent]:
    """Ticks with disorder, in quiet times and bursts; at the end three for each symbol that close all that is open."""
    ticks, now = list[Sent](), 1_700_000_000_000
    for _ in range(count):
        now += rng.choice([0, 1, 40, 300, 300, 1_500, 9_000])
        price = rng.randrange(1, 4_000) / (8 if dyadic else 100)
        size = rng.randrange(0, 900) / (4 if dyadic else 1_000)
        ticks.append(
            (rng.choice(symbols), now - rng.choice([0, 0, 0, 500, 2_500, 20_000, 45_000, 90_000]), price, size)
        )
    return ticks + [(symbol, now + ahead, 1.0, 1.0) for ahead in (10**7, 2 * 10**7, 3 * 10**7) for symbol in symbols]


def chain(ticks: Sequence[Sent], sizes_ns: Sequence[int], rng: random.Random) -> list[TestDriver]:
    """Applications of which each reads the frames of the one before; each is killed now and then."""
    first = LaneSpec(
        lag_ns=2 * SECOND_NS, lateness_ns=60 * SECOND_NS, window=TumblingWindows(sizes_ns[0]), emit_partial=True
    )
    specs = [
        first,
        *(replace(first, window=replace(first.window, size_ns=size_ns), format="frames") for size_ns in sizes_ns[1:]),
    ]
    drivers = [TestDriver(spec, partitions=2) for spec in specs]
    handed_on = [0] * len(drivers)

    def hand_on() -> None:
        for at, (child, parent) in enumerate(itertools.pairwise(drivers)):
            for driver in (child, parent):
                if rng.random() < 0.2:
                    driver.flush()
                if rng.random() < 0.3:
                    driver.crash()
            child.commit()
            frames = child.records("frames")
            for frame in frames[handed_on[at] :]:
                parent.send_raw(frame.key, frame.value, frame.timestamp_ms or -1)
            handed_on[at] = len(frames)
        drivers[-1].commit()

    for tick in ticks:
        drivers[0].send(tick[0], tick[1], price=tick[2], size=tick[3])
        if rng.random() < 0.05:
            hand_on()
    hand_on()
    return drivers


@pytest.mark.parametrize("dyadic", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_chain_of_three_applications_gives_the_bars_that_ticks_give(seed: int, dyadic: bool) -> None:
    rng = random.Random(seed)
    ticks = feed(rng, ["A", "B", "C"], 400, dyadic=dyadic)
    sizes_ns = [SECOND_NS, 60 * SECOND_NS, 3_600 * SECOND_NS]
    drivers = chain(ticks, sizes_ns, rng)
    last = max(ts for _, ts, _, _ in ticks)
    for driver, size_ns in list(zip(drivers, sizes_ns, strict=True))[1:]:
        straight = TestDriver(
            replace(drivers[0].spec, window=replace(drivers[0].spec.window, size_ns=size_ns)), partitions=2
        )
        for symbol, ts, price, size in ticks:
            straight.send(symbol, ts, price=price, size=size)
        straight.commit()
        wanted = {
            name: frame
            for name, frame in bar_of(straight.frames(provisional=False)).items()
            if frame["end"] <= last - 3 * 10**7  # the ticks far ahead are there to close what came before
        }
        found = bar_of(driver.frames(provisional=False))
        assert wanted.keys() <= found.keys()
        assert any(frame["rev"] for frame in found.values()) or size_ns > 60 * SECOND_NS, "nothing was revised"
        for name, frame in wanted.items():
            check_same(found[name], frame)
        assert driver.counts().balance() == 0
        assert driver.counts().late == driver.counts().rejected == 0


def check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in ("open", "high", "low", "close", "count", "first_ts", "last_ts"):
        assert found[name] == wanted[name], (name, found, wanted)
    assert found["volume"] == wanted["volume"]
    if wanted["vwap"] is None:
        assert found["vwap"] is None
    else:
        assert math.isclose(found["vwap"], wanted["vwap"], rel_tol=1e-12)
        assert found["low"] <= found["vwap"] <= found["high"]


def test_a_parents_sums_are_those_of_its_childrens_printed_decimals() -> None:
    volumes, prices = (0.1, 0.2, 0.3, 0.7), (9.1, 9.7, 9.3, 9.9)
    children = [
        child(10 * number, volume=volume, vwap=price, low=9.0)
        for number, (volume, price) in enumerate(zip(volumes, prices, strict=True))
    ]
    (bar,) = tell(TestDriver(SPEC), *children, child(60)).frames()
    assert (bar["volume"], bar["vwap"]) == (1.3, 12.57 / 1.3)


def test_a_parents_vwap_is_within_its_prices() -> None:
    prices = dict.fromkeys(("open", "high", "low", "close", "vwap"), 0.7)
    children = [child(10 * number, volume=volume, **prices) for number, volume in enumerate((0.1, 0.3, 3.3))]
    (bar,) = tell(TestDriver(SPEC), *children, child(60)).frames()
    assert bar["vwap"] == bar["low"] == bar["high"] == 0.7
    liar = child(0, low=1.0, high=2.0, vwap=5.0)
    (bar,) = tell(TestDriver(SPEC), liar, child(60)).frames()
    assert bar["vwap"] == bar["high"] == 2.0


def test_vwap_is_exact_where_each_childs_is() -> None:
    """Volumes that are powers of two: a child's vwap is then its notional, scaled, and loses nothing."""
    rng = random.Random(1)
    ticks = [
        ("A", 1_700_000_000_000 + 1_000 * n, rng.randrange(1, 4_000) / 8, 2.0 ** rng.randrange(4)) for n in range(200)
    ]
    ticks += [("A", 1_800_000_000_000 + ahead, 1.0, 1.0) for ahead in (0, 10**6)]
    *_, parent = chain(ticks, [SECOND_NS, 60 * SECOND_NS], rng)
    straight = TestDriver(replace(parent.spec, format="json"), partitions=2)
    for symbol, ts, price, size in ticks:
        straight.send(symbol, ts, price=price, size=size)
    straight.commit()
    names = ("open", "high", "low", "close", "volume", "vwap", "count", "first_ts", "last_ts")
    found, wanted = bar_of(parent.frames(provisional=False)), bar_of(straight.frames(provisional=False))
    compared = [
        [frame[name] for name in names] == [found[window][name] for name in names]
        for window, frame in wanted.items()
        if window in found
    ]
    assert len(compared) >= 4
    assert all(compared)


# -- one rule at a time -----------------------------------------------------------------------------------------------

SPEC = LaneSpec(window=TumblingWindows(60 * SECOND_NS), lateness_ns=30 * SECOND_NS, format="frames")


def child(second: int, *, rev: int = 0, status: str = "closed", key: str = "A", **more: object) -> Bar:
    """A child of ten seconds with one trade in its middle."""
    start = second * 1_000
    bar = {"key": key, "start": start, "end": start + 10_000, "rev": rev, "status": status, "trigger": "watermark"}
    bar |= dict.fromkeys(("open", "high", "low", "close", "vwap"), 10.0)
    return {**bar, "volume": 2.0, "count": 1, "first_ts": start + 5_000, "last_ts": start + 5_000, **more}


def empty(second: int, **more: object) -> Bar:
    nothing = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap", "first_ts", "last_ts"))
    return {**child(second), **nothing, "count": 0, "trigger": "merged", **more}


def filled(second: int, price: float) -> Bar:
    prices = dict.fromkeys(("open", "high", "low", "close"), price)
    return {**empty(second), **prices, "volume": 0.0, "trigger": "watermark", "filled": True}


def tell(driver: TestDriver, *children: Bar) -> TestDriver:
    for each in children:
        driver.send_raw(each["key"].encode(), orjson.dumps(each), each["end"])
    driver.commit()
    return driver


def test_a_parent_closes_with_its_last_child_and_revisions_travel_up() -> None:
    driver = tell(TestDriver(SPEC), child(0, open=5.0), child(30, high=20.0))
    assert driver.frames() == []
    tell(driver, child(50, close=7.0))
    (bar,) = driver.frames()
    assert (bar["start"], bar["end"], bar["rev"], bar["status"], bar["trigger"]) == (
        0,
        60_000,
        0,
        "closed",
        "watermark",
    )
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (5.0, 20.0, 10.0, 7.0)
    assert (bar["volume"], bar["vwap"], bar["count"]) == (6.0, 10.0, 3)
    assert (bar["first_ts"], bar["last_ts"]) == (5_000, 55_000)
    tell(driver, child(50, rev=1, close=8.0, count=2), child(50, rev=2, close=9.0, count=2, trigger="correction"))
    revised = [(bar["rev"], bar["trigger"], bar["close"], bar["count"]) for bar in driver.frames()[1:]]
    assert revised == [(1, "late", 8.0, 4), (2, "correction", 9.0, 4)]


def test_an_equal_or_lower_rev_changes_nothing_and_is_counted() -> None:
    driver = tell(TestDriver(SPEC), child(0, rev=3), child(0, rev=3, close=1.0), child(0, rev=2), child(50))
    assert [(bar["close"], bar["count"]) for bar in driver.frames()] == [(10.0, 2)]
    assert (driver.counts().aggregated, driver.counts().deduplicated) == (2, 2)
    assert driver.late() == driver.dead_letters() == []


def test_a_child_is_late_when_it_can_not_be_told_from_one_that_is_counted_already() -> None:
    driver = tell(TestDriver(SPEC), child(0), child(40), child(10, rev=9), child(110), child(0, rev=9))
    assert [(late["reason"], late["ts"], late["watermark_ns"]) for late in driver.late()] == [
        ("settled", 10_000, 50 * SECOND_NS),
        ("watermark", 0, 120 * SECOND_NS),
    ]


def test_provisional_children_are_shown_in_provisional_frames_alone() -> None:
    driver = TestDriver(replace(SPEC, emit_partial=True))
    tell(driver, child(0), child(10, status="provisional", high=99.0))
    driver.flush()
    tell(driver, child(10), child(50), child(20, status="provisional", high=99.0))
    assert [(bar["status"], bar["high"], bar["count"]) for bar in driver.frames()] == [
        ("provisional", 99.0, 2),
        ("closed", 10.0, 3),
    ]
    assert driver.counts().deduplicated == 1


def test_a_symbol_known_by_provisional_children_alone_is_shown_and_leaves_nothing_behind() -> None:
    driver = TestDriver(replace(SPEC, emit_partial=True, key_ttl_ns=200 * SECOND_NS))
    tell(driver, child(0, key="B", status="provisional"))
    driver.rebalance()
    driver.flush()
    tell(driver, child(0), child(500))
    assert [(bar["key"], bar["status"]) for bar in driver.frames("B")] == [("B", "provisional")]
    (partition,) = driver._partitions
    assert partition.lane.key_count == 1


def test_filled_children_count_only_where_there_is_nothing_else() -> None:
    driver = tell(TestDriver(SPEC), child(0, close=4.0), filled(10, 4.0), child(50, open=6.0))
    tell(driver, *[filled(second, 6.0) for second in range(60, 120, 10)])
    first, second = driver.frames()
    assert (first["open"], first["close"], first["count"], "filled" in first) == (10.0, 10.0, 2, False)
    assert list(second)[-1] == "filled"
    assert (second["open"], second["close"], second["volume"], second["count"]) == (6.0, 6.0, 0.0, 0)
    assert (second["vwap"], second["first_ts"], second["last_ts"], second["filled"]) == (None, None, None, True)


def test_a_child_without_ticks_takes_itself_out() -> None:
    driver = tell(TestDriver(SPEC), child(40, high=50.0), child(50), empty(40, rev=1), empty(50, rev=1))
    shown = [(bar["rev"], bar["high"], bar["count"]) for bar in driver.frames()]
    assert shown == [(0, 50.0, 2), (1, 10.0, 1), (2, None, 0)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": None}, "wrong_type"),
        ({"start": "0"}, "wrong_type"),
        ({"end": 0}, "wrong_type"),
        ({"end": 10_000.0}, "wrong_type"),
        ({"rev": -1}, "wrong_type"),
        ({"rev": True}, "wrong_type"),
        ({"status": "open"}, "wrong_type"),
        ({"trigger": 3}, "wrong_type"),
        ({"open": None}, "wrong_type"),
        ({"high": "10"}, "wrong_type"),
        ({"volume": -1.0}, "negative_size"),
        ({"vwap": "x"}, "wrong_type"),
        ({"count": 1.5}, "wrong_type"),
        ({"filled": True}, "wrong_type"),
        ({"first_ts": -5}, "wrong_type"),
        ({"first_ts": 5_000_000, "last_ts": 5_000_000}, "wrong_type"),
        ({"start": 2**62, "end": 2**62 + 1}, "timestamp_out_of_range"),
        ({"end": 7_000}, "wrong_window"),
        ({"start": 55_000, "end": 65_000, "first_ts": 60_000, "last_ts": 60_000}, "wrong_window"),
        ({"end": 120_000}, "wrong_window"),
    ],
)
def test_what_is_no_part_of_a_window_is_a_dead_letter(change: dict[str, object], reason: str) -> None:
    driver = TestDriver(SPEC)
    driver.send_raw(b"A", orjson.dumps({**child(0), **change}))
    for value in (None, b"{", b"[]", b'{"symbol":"A","ts":1,"price":1,"size":1}'):
        driver.send_raw(b"A", value)
    driver.send_raw(b"B", orjson.dumps(child(0)))
    driver.commit()
    found = [letter["reason"] for letter in driver.dead_letters()]
    assert found == [reason, "malformed_json", "malformed_json", "wrong_type", "missing_field", "key_mismatch"]


def test_frames_of_another_unit_are_noticed() -> None:
    driver = tell(TestDriver(replace(SPEC, tick=TickFormat(unit="us"))), child(1_700_000_000))
    (letter,) = driver.dead_letters()
    assert "tick.timestamp_unit must be that of the application" in letter["message"]


def test_children_of_two_sizes_are_not_counted_twice() -> None:
    half = {**child(0), "end": 5_000, "first_ts": 1_000, "last_ts": 1_000}
    driver = tell(TestDriver(SPEC), child(0), half, child(50), {**half, "start": 5_000, "end": 10_000})
    assert [bar["count"] for bar in driver.frames()] == [2]
    assert [late["reason"] for late in driver.late()][:1] == ["overlaps"]


def test_what_is_kept_of_a_window_does_not_grow_with_its_children() -> None:
    lane = Lane(replace(SPEC, window=replace(SPEC.window, size_ns=3_600 * SECOND_NS)), Input(TOPIC, 0, 1))
    children = [child(10 * number) for number in range(359)]
    lane.process(records_of(children))
    (window,) = lane._engine.windows()
    assert len(window.state.children) == 3  # as many as 30 s of allowed lateness leave open
    assert window.count == 359
    assert len(Bars().dump(window.state)) < 400


@pytest.mark.parametrize(
    "window",
    [HoppingWindows(60 * SECOND_NS, 20 * SECOND_NS), TumblingWindows(60 * SECOND_NS, offset_ns=20 * SECOND_NS)],
)
def test_other_kinds_of_parents_hold_what_ticks_would_give_them(window: Windows) -> None:
    rng = random.Random(3)
    first = LaneSpec(lag_ns=2 * SECOND_NS, lateness_ns=60 * SECOND_NS, window=TumblingWindows(10 * SECOND_NS))
    parent_spec = replace(first, window=window, format="frames")
    ticks = feed(rng, ["A", "B"], 300, dyadic=True)
    below, parent = TestDriver(first), TestDriver(parent_spec)
    straight = TestDriver(replace(parent_spec, format="json"))
    for symbol, ts, price, size in ticks:
        below.send(symbol, ts, price=price, size=size)
        straight.send(symbol, ts, price=price, size=size)
    for driver in (below, straight):
        driver.commit()
    for record in below.records("frames"):
        parent.send_raw(record.key, record.value, record.timestamp_ms or -1)
        if rng.random() < 0.05:
            parent.rebalance()
    parent.commit()
    found, compared = bar_of(parent.frames(provisional=False)), 0
    for name, frame in bar_of(straight.frames(provisional=False)).items():
        if name in found:
            check_same(found[name], frame)
            compared += 1
    assert compared > 20
    assert parent.counts().late == parent.counts().rejected == 0


class Halves:
    """Ten minutes of which every second minute is outside of all windows."""

    longest_ns = 60 * SECOND_NS

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        minute = ts_ns // self.longest_ns
        return () if minute % 2 else ((minute * self.longest_ns, (minute + 1) * self.longest_ns),)


def test_a_child_outside_of_all_sessions_is_late_and_closes_those_before() -> None:
    engine = BarEngine(BarRules(Halves(), 0), track_changes=True)
    decode = bar_decoder("ms", Halves())

    def add(bar: Bar) -> Lateness | None:
        (record,) = records_of([bar])
        decoded = decode(record)
        assert isinstance(decoded, ChildBar)
        return engine.add(decoded.symbol, decoded.ts_ns, decoded)

    assert add(child(70, status="provisional")) == Lateness("repeated", -(2**63), 0)
    assert add(child(70)) == Lateness("outside_session", 80 * SECOND_NS, 0)
    assert engine.key_count == 0
    assert add(child(120)) is None
    assert engine.take_emissions() == []
    assert add(child(180)) == Lateness("outside_session", 190 * SECOND_NS, 0)
    (emission,) = engine.take_emissions()
    assert (emission.start_ns, emission.status, emission.count) == (120 * SECOND_NS, "final", 1)
    assert add(child(170)) == Lateness("watermark", 190 * SECOND_NS, 10 * SECOND_NS)


def test_sums_beyond_the_greatest_float_stay_unknown() -> None:
    driver = tell(TestDriver(SPEC), child(0, volume=None, vwap=None), child(50))
    (bar,) = driver.frames()
    assert (bar["volume"], bar["vwap"], bar["count"]) == (None, None, 2)


def test_a_window_that_comes_again_before_its_record_is_deleted_leaves_none_behind() -> None:
    """All its children are provisional, so that the end of the input drops it, and it may begin anew."""
    preview, end = child(0, status="provisional"), Bar()
    lane = lane_of(Config(size=60_000))
    stored = lane.process(records_of([preview])) and lane.take_changes()
    (window,) = (record.key for record in stored if record.key is not None and record.key[:1] == b"w")
    for record in records_of([preview, end, preview, end])[1:]:
        lane.process([record])
    assert OutRecord(window, None) in lane.take_changes()


def test_the_model_shows_children_in_order_of_their_start() -> None:
    shown = summary([child(50, close=3.0), child(0, open=2.0)])
    assert (shown["open"], shown["close"]) == (2.0, 3.0)


def test_each_child_is_told_with_what_it_did() -> None:
    children = [
        child(0),
        child(20, status="provisional"),
        child(50),
        child(50),
        child(40, rev=1),
        child(100),
        child(0, rev=5),
        {**child(40), "end": 41_000, "first_ts": 40_500, "last_ts": 40_500},
        child(30, rev=2),
    ]
    spec = replace(SPEC, lateness_ns=50 * SECOND_NS)
    driver = tell(TestDriver(spec), *children)
    found = Investigation(spec, Input("ticks", 0, 1), "A", 0, 0)
    found.take(driver.log(0))
    story = found.windows[0]
    assert [(fate.offset, fate.fate, fate.reason) for fate in story.ticks] == [
        (0, "joined", None),
        (1, "joined", None),
        (2, "joined", None),
        (3, "duplicate", None),
        (4, "joined", None),
        (6, "late", "watermark"),
        (7, "late", "watermark"),
        (8, "late", "watermark"),
    ]
    assert [(frame.rev, frame.status, frame.offset) for frame in story.frames] == [(0, "closed", 2), (1, "closed", 4)]
    assert story.ticks[5].detail.startswith("late by 50 s: its symbol's watermark was at 1970-01-01 00:01:50 because")
    assert "lag 0 s" in story.ticks[5].detail


@given(cases | ordered_cases)
def test_an_investigation_makes_the_frames_that_the_lane_makes(case: tuple[Config, list[Bar]]) -> None:
    config, children = case
    records = records_of(children)
    made = real_frames(lane_of(config).process(records).frames)
    found = Investigation(spec_of(config), Input(TOPIC, 0, 1), "A", -(10**18), 10**18, tick_limit=5)
    found.take(records)
    told = [frame for story in found.windows.values() for frame in story.frames]
    assert sorted(frame.value for frame in told) == sorted(made.get("A", []))
    assert sum(sum(story.counts.values()) for story in found.windows.values()) + found.stray_count == sum(
        bar["key"] == "A" for bar in children
    )


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration in the working directory."""
    monkeypatch.chdir(tmp_path)


def load(**overrides: object) -> Settings:
    return load_settings(environ={}, overrides={key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.usefixtures("no_file")
def test_with_frames_there_is_no_lag_and_nothing_else_needs_saying() -> None:
    settings = load(tick__format="frames", topics__ticks="frames-1s", window__size="1m")
    spec = lane_spec(settings)
    assert (spec.format, spec.lag_ns, settings.window.lag) == ("frames", 0, 0)
    assert Settings(tick=TickSettings(format="frames")).window.lag == 0
    assert load(tick__format="frames", window__lag="0s").window.lag == 0
    assert load().window.lag == 2 * SECOND_NS
    assert "tick.format" not in LaneSpec().fingerprint(1, None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("window.lag", "2s", "there is nothing to wait for: expected 0s"),
        ("window.payload", "both", "means nothing where bars are made of frames"),
        ("window.watermark_scope", "partition", "means nothing"),
        ("window.fill_gaps", "1m", "means nothing"),
        ("window.aggregation", "mine:Own", "means nothing"),
        ("tick.price", "p", "means nothing"),
        ("tick.max_future_skew", "1s", "means nothing"),
    ],
)
@pytest.mark.usefixtures("no_file")
def test_what_means_nothing_with_frames_is_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(environ={}, overrides={"tick.format": "frames", key: value})


@pytest.mark.usefixtures("no_file")
def test_sessions_are_not_made_of_frames() -> None:
    with pytest.raises(ConfigError, match="sessions are made of ticks"):
        load(tick__format="frames", window__kind="session", window__gap="5s", window__lag="0s")
