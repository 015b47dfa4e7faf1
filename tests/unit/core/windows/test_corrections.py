"""Cancelled and corrected trades: against an oracle, and against logs that had held the right trades all along."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import corrections_oracle, oracle
from tests.support.strategies import configs, ended
from tests.support.sums_oracle import totals_of, vwap_of
from tests.unit.core.test_lane import TOPIC, KafkaRecord, kafka_records, real_frames, reasons, run_through, spec_of
from workers.apps.inspect.tail import late_line
from workers.apps.inspect.witness import Investigation
from workers.core.aggregates import Aggregation
from workers.core.formats.corrections import CorrectionRules
from workers.core.lane import Input, Lane, entries_of
from workers.core.partitioning import partition_for
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick, TickFormat
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows
from workers.errors import CallbackError, ConfigError, StateFormatError, StateMismatchError
from workers.settings import Settings, load_settings
from workers.settings.lane import lane_spec
from workers.testing import TestDriver

MS = 1_000_000
SECOND_NS = 10**9
KIND, ID, REF = corrections_oracle.FIELDS
RULES = CorrectionRules(KIND, ("X",), ("C",), ID, REF)


def lane_of(config: oracle.Config, *, emit_partial: bool = False) -> Lane:
    spec = replace(spec_of(config, emit_partial=emit_partial), corrections=RULES)
    if config.windows_of is not None:
        spec = replace(spec, window=HoppingWindows(size_ns=spec.window.size_ns, hop_ns=config.windows_of.args[1]))  # type: ignore[attr-defined]
    return Lane(spec, Input(TOPIC, 0, 1))


@st.composite
def logs(draw: st.DrawFn, config: oracle.Config) -> list[oracle.Record]:
    """Trades that move on in time, some of them late, with few ids; between them messages about them."""
    step_ns = max(config.size_ns // 4, 1)
    records, now = [], draw(st.sampled_from([0, -7 * step_ns, 10**15]))
    for offset in range(draw(st.integers(0, 30))):
        symbol = draw(st.sampled_from(["A", "A", "B"]))
        name = draw(st.sampled_from([1, 2, "3", "x"]))
        prices = {
            "price": draw(st.sampled_from([1.5, 2, "3.25", 0.1, 7e300])),
            "size": draw(st.sampled_from([1, 0, "0.3", 2.5])),
        }
        payload: dict[str, object] = {"symbol": symbol, **prices}
        match draw(st.sampled_from(["trade", "trade", "trade", "X", "C", "odd"])):
            case "trade":
                now += draw(st.integers(0, 3)) * step_ns
                at = now - draw(st.sampled_from([0, 0, 0, 1, 2, 5])) * step_ns
                payload |= {"ts": at // oracle.UNIT_NS[config.unit]}
                payload |= draw(st.sampled_from([{ID: name}, {ID: name}, {KIND: "T", ID: name}, {}, {ID: None}]))
            case "odd":
                payload |= {KIND: "X", REF: draw(st.sampled_from([None, 1.5, True]))}
            case kind:
                payload |= {KIND: kind, REF: draw(st.sampled_from([name, str(name)])), "ts": "whenever"}
        records.append(oracle.Record(offset, -1, symbol.encode(), orjson.dumps(payload)))
    return draw(ended(records))


def hopping(size_ns: int, hop_ns: int, ts_ns: int) -> list[tuple[int, int]]:
    last_ns = ts_ns // hop_ns * hop_ns
    starts = range(last_ns - (size_ns - 1) // hop_ns * hop_ns, last_ns + 1, hop_ns)
    return [(start_ns, start_ns + size_ns) for start_ns in starts if start_ns <= ts_ns < start_ns + size_ns]


def plain(config: oracle.Config) -> oracle.Config:
    return replace(config, fields=("symbol", "ts", "price", "size"), partitions=None)


def maybe_hopping(config: oracle.Config, hops: int) -> oracle.Config:
    """Windows of which a tick is in ``hops``, for more than one."""
    if hops == 1:
        return config
    size_ns = hops * config.size_ns
    return replace(config, size_ns=size_ns, windows_of=partial(hopping, size_ns, config.size_ns))


plain_configs = st.builds(maybe_hopping, configs(all_late=False).map(plain), st.sampled_from([1, 1, 1, 2, 3]))
cases = plain_configs.flatmap(lambda config: st.tuples(st.just(config), logs(config)))


@given(cases, st.data())
def test_corrections_in_any_batches_over_any_crashes_give_what_the_oracle_gives(
    case: tuple[oracle.Config, list[oracle.Record]], data: st.DataObject
) -> None:
    config, log = case
    expected = corrections_oracle.run(config, log)
    records = kafka_records(log)
    partly = data.draw(st.booleans(), "emit_partial")
    lane, found = run_through(
        lane_of(config, emit_partial=partly),
        lambda: lane_of(config, emit_partial=partly),
        records,
        10 * config.size_ns,
        data,
    )
    assert real_frames(found.frames) == expected.lane.wire()
    entries = [orjson.loads(record.value or b"") for record in found.late]
    judged = [(entry["offset"], entry["reason"]) for entry in entries]
    wanted = [(each.offset, each.reason) for each in expected.lane.late]
    assert judged == sorted(wanted + [(offset, "uncorrectable") for offset in expected.uncorrectable])
    assert {offset for offset, _ in reasons(found.dead_letters)} >= set(expected.malformed)
    assert lane.counts.corrected == expected.corrected
    assert lane.counts.balance() == 0


# -- other kinds of windows: the last frame of each window is that of the trades as they ended up ---------------------


KINDS = {
    "hopping": LaneSpec(window=HoppingWindows(size_ns=6 * MS, hop_ns=2 * MS), lag_ns=2 * MS, lateness_ns=4 * MS),
    "session": LaneSpec(window=SessionWindows(5 * MS), lag_ns=2 * MS, lateness_ns=4 * MS),
    "tumbling": LaneSpec(window=TumblingWindows(5 * MS), lag_ns=2 * MS, lateness_ns=4 * MS),
}


def random_log(rng: random.Random, length: int) -> list[dict[str, Any]]:
    messages, now = [], 1_000
    for name in range(length):
        kind = rng.choice(["T", "T", "T", "T", "X", "C"])
        numbers = {"price": rng.randrange(1, 90) / 4, "size": rng.randrange(0, 90) / 3}
        if kind == "T":
            now += rng.choice([0, 1, 1, 2, 9])
            messages.append({"ts": now - rng.choice([0, 0, 1, 3, 5]), ID: name, KIND: kind, **numbers})
        else:
            messages.append({REF: max(name - rng.randrange(1, 12), 0), KIND: kind, **numbers})
    return messages


def ohlcv(trades: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of trades in log order."""
    volume, notional = totals_of((trade["price"], trade["size"]) for trade in trades)
    low, high = min(trade["price"] for trade in trades), max(trade["price"] for trade in trades)
    return {
        "open": min(trades, key=lambda trade: trade["ts"])["price"],
        "high": high,
        "low": low,
        "close": max(reversed(trades), key=lambda trade: trade["ts"])["price"],
        "volume": volume.value,
        "vwap": vwap_of(volume, notional, low, high),
        "count": len(trades),
        "first_ts": min(trade["ts"] for trade in trades),
        "last_ts": max(trade["ts"] for trade in trades),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_the_last_frame_of_a_window_is_that_of_its_trades_as_they_are_now(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    spec = replace(KINDS[kind], corrections=RULES)
    driver = TestDriver(spec)
    log = random_log(rng, 150)
    log += [{"ts": 100_000, ID: "last", KIND: "T", "price": 1.0, "size": 1.0}]  # closes all there is
    for message in log:
        value = orjson.dumps({"symbol": "A", **message})
        driver.send_raw(b"A", value)
        if rng.random() < 0.2:
            driver.rebalance()
        if rng.random() < 0.1:
            driver.commit()
            driver.crash()
    driver.commit()
    late = {entry["offset"] for entry in driver.late()}
    # What each window must hold: every accepted trade in it, changed by every message that was taken while it was kept.
    clock = -(10**18)
    ends = {frame["start"]: frame["end"] for frame in driver.frames()}
    held: dict[int, dict[int, dict[str, Any]]] = {}
    for offset, message in enumerate(log):
        if message[KIND] == "T":
            if offset in late:
                continue
            clock = max(clock, message["ts"])
            for start, end in ends.items():
                if start <= message["ts"] < end:
                    held.setdefault(start, {})[message[ID]] = dict(message)
        elif offset not in late:
            taken = False
            for start, window in held.items():
                if message[REF] in window and ends[start] + 4 > clock - 2:
                    taken = True
                    if message[KIND] == "X":
                        del window[message[REF]]
                    else:
                        window[message[REF]] |= {"price": message["price"], "size": message["size"]}
            assert taken or not any(message[REF] in window for window in held.values())
    compared = 0
    last = {frame["start"]: frame for frame in driver.frames(provisional=False)}
    for start, frame in last.items():
        if frame["trigger"] == "merged":
            assert frame["count"] == 0
            continue
        trades = list(held.get(start, {}).values())
        names = ohlcv([{"ts": 0, "price": 0.0, "size": 0.0}])
        wanted = ohlcv(trades) if trades else dict.fromkeys(names) | {"count": 0}
        assert {name: frame[name] for name in wanted} == wanted, (start, frame, trades)
        compared += 1
    assert compared >= 5
    assert driver.counts().corrected >= 5
    assert driver.counts().balance() == 0


# -- one rule at a time -----------------------------------------------------------------------------------------------

SPEC = LaneSpec(lag_ns=2 * SECOND_NS, lateness_ns=10 * SECOND_NS, corrections=RULES)


def driver_of(spec: LaneSpec = SPEC, messages: Sequence[Mapping[str, object]] = ()) -> TestDriver:
    driver = TestDriver(spec)
    tell(driver, *messages)
    return driver


def tell(driver: TestDriver, *messages: Mapping[str, object]) -> None:
    for message in messages:
        driver.send_raw(b"A", orjson.dumps({"symbol": "A", **message}))
    driver.commit()


def trade(name: object, second: float, price: float = 10.0, size: float = 1.0, **more: object) -> dict[str, object]:
    return {"ts": int(second * 1_000), "price": price, "size": size, ID: name, **more}


def cancel(name: object) -> dict[str, object]:
    return {KIND: "X", REF: name}


def correct(name: object, price: object, size: object) -> dict[str, object]:
    return {KIND: "C", REF: name, "price": price, "size": size}


def test_an_open_window_changes_silently_and_a_closed_one_comes_out_again() -> None:
    driver = driver_of(messages=[trade("a", 1, 10), trade("b", 2, 30), cancel("b"), trade("c", 3, 20)])
    assert driver.frames() == []
    tell(driver, trade("d", 7))
    assert [(bar["rev"], bar["high"], bar["close"], bar["count"]) for bar in driver.frames()] == [(0, 20.0, 20.0, 2)]
    tell(driver, correct("c", "25.5", 3))
    last = driver.frames()[-1]
    assert (last["rev"], last["status"], last["trigger"]) == (1, "closed", "correction")
    assert (last["high"], last["volume"], last["count"], last["last_ts"]) == (25.5, 4.0, 2, 3_000)
    assert driver.counts().corrected == 2


def test_a_window_without_trades_left_shows_nulls_and_takes_trades_again() -> None:
    driver = driver_of(messages=[trade("a", 1), trade("b", 7), cancel("a")])
    emptied = driver.frames()[-1]
    assert (emptied["rev"], emptied["count"], emptied["open"], emptied["volume"]) == (1, 0, None, None)
    assert (emptied["first_ts"], emptied["last_ts"]) == (None, None)
    driver.rebalance()
    tell(driver, trade("c", 4, 50))
    again = driver.frames()[-1]
    assert (again["rev"], again["open"], again["low"], again["count"], again["first_ts"]) == (2, 50.0, 50.0, 1, 4_000)


def test_the_clock_stays_where_a_cancelled_trade_has_set_it_also_over_a_restart() -> None:
    driver = driver_of(messages=[trade("a", 1), trade("b", 100), cancel("b")])
    driver.rebalance()
    tell(driver, trade("c", 50))
    (late,) = driver.late()
    assert (late["reason"], late["watermark_ns"]) == ("watermark", 98 * SECOND_NS)


@pytest.mark.parametrize("emit", ["eager", "final"])
def test_what_came_out_as_final_is_not_corrected_though_its_window_still_holds_the_clock(
    emit: Literal["eager", "final"],
) -> None:
    spec = LaneSpec(window=CalendarWindows("XNYS"), lateness_ns=600 * SECOND_NS, emit=emit, corrections=RULES)
    closes_ms = 1_704_488_400_000  # 2024-01-05 16:00 in New York
    driver = TestDriver(spec)
    after_hours = (closes_ms + 602_000) / 1_000  # the clock that the session's window holds
    tell(driver, trade("a", (closes_ms - 1) / 1_000), trade("b", after_hours), cancel("a"))
    (frame,) = driver.frames(provisional=False)
    assert (frame["rev"], frame["count"], frame["status"]) == (0, 1, "final")
    assert [late["reason"] for late in driver.late()] == ["outside_session", "uncorrectable"]
    assert driver.counts().balance() == 0


def test_of_several_trades_with_an_id_the_last_is_meant_and_only_once_cancelled() -> None:
    driver = driver_of(messages=[trade(7, 1, 1.0), trade("7", 2, 2.0), cancel("7"), cancel(7), trade("x", 8)])
    (bar,) = driver.frames()
    assert (bar["high"], bar["count"]) == (1.0, 1)
    (late,) = driver.late()
    assert late["reason"] == "uncorrectable"
    assert late["detail"] == "the trade, at offset 1, was cancelled by the record at offset 2"
    assert late["start"] is late["end"] is late["late_by_ns"] is late["ts"] is None


@pytest.mark.parametrize("messages", [[], [trade("other", 1)], [trade("a", 1), trade("b", 100)]])
def test_a_trade_that_is_not_kept_can_not_be_corrected(messages: list[dict[str, object]]) -> None:
    driver = driver_of(messages=[*messages, cancel("a")])
    (late,) = driver.late()
    assert (late["reason"], late["key"], late["tick"][REF]) == ("uncorrectable", "A", "a")
    assert "no trade with id 'a' is kept" in late["detail"]
    assert driver.counts().balance() == 0


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({KIND: "X"}, "missing_field"),
        ({KIND: "X", REF: None}, "wrong_type"),
        ({KIND: "X", REF: 1.5}, "wrong_type"),
        ({KIND: "X", REF: ["a"]}, "wrong_type"),
        ({KIND: "C", REF: "a", "price": 1}, "missing_field"),
        ({KIND: "C", REF: "a", "price": "1e999", "size": 1}, "wrong_type"),
        ({KIND: "C", REF: "a", "price": True, "size": 1}, "wrong_type"),
        ({KIND: "C", REF: "a", "price": 1, "size": -1}, "negative_size"),
        ({KIND: "X", REF: "a", "symbol": "B"}, "key_mismatch"),
        ({KIND: "X", REF: "a", "symbol": 3}, "wrong_type"),
        ({**trade(1.5, 1)}, "wrong_type"),
        ({**trade({}, 1)}, "wrong_type"),
    ],
)
def test_malformed_messages_are_dead_letters(message: dict[str, object], reason: str) -> None:
    driver = driver_of(messages=[trade("a", 1), message])
    assert [letter["reason"] for letter in driver.dead_letters()] == [reason]
    assert (driver.counts().rejected, driver.counts().corrected) == (1, 0)


class Widest(Aggregation[list[float]]):
    """The widest spread, a field that windows themselves know nothing of, and price times size."""

    name = "widest"

    def create(self) -> list[float]:
        return [0.0, 0.0]

    def add(self, state: list[float], tick: Tick) -> list[float]:
        assert tick.fields["price"] in (tick.price, str(tick.price))
        assert orjson.loads(tick.value) == tick.fields
        spread = tick.fields["spread"]
        assert isinstance(spread, float)
        return [max(state[0], spread), state[1] + tick.price * tick.size]

    def result(self, state: list[float]) -> Mapping[str, object]:
        return {"widest": state[0], "notional": state[1]}


def test_any_aggregation_is_folded_anew_with_all_fields_of_its_trades() -> None:
    spec = replace(SPEC, aggregation="tests.unit.core.windows.test_corrections:Widest", payload="both")
    trades = [trade("a", 1, 10.0, 2.0, spread=0.5), trade("b", 2, 20.0, 1.0, spread=0.9), trade("c", 8, spread=0.1)]
    driver = driver_of(spec, trades)
    driver.rebalance()
    tell(driver, correct("a", "11.0", 3), cancel("b"))
    shown = [(bar["widest"], bar["notional"], len(bar["items"])) for bar in driver.frames() if bar["start"] == 0]
    assert shown == [(0.9, 40.0, 2), (0.9, 53.0, 2), (0.5, 33.0, 1)]
    # The item is the trade as it was received, with price and size as the message writes them.
    assert driver.frames()[-1]["items"] == [{"symbol": "A", **trades[0], "price": "11.0", "size": 3}]


def test_an_aggregation_that_raises_is_named_with_the_message_that_made_it_raise() -> None:
    driver = driver_of(
        replace(SPEC, aggregation="tests.unit.core.windows.test_corrections:Widest"), [trade("a", 1, spread=0.5)]
    )
    tell(driver, trade("b", 2, spread=0.5))
    driver.crash()
    original = Widest.add
    try:
        Widest.add = lambda self, state, tick: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        with pytest.raises(CallbackError, match=r"ZeroDivisionError: .*, at ticks\[0\] offset 2, key 'A'"):
            tell(driver, cancel("a"))
    finally:
        Widest.add = original  # type: ignore[method-assign]


def test_state_without_trades_or_of_other_rules_is_refused() -> None:
    records = [KafkaRecord(at, -1, b"A", orjson.dumps({"symbol": "A", **trade(at, at)})) for at in range(3)]
    for before, after in ((None, RULES), (RULES, None), (RULES, replace(RULES, cancel=("Y",)))):
        lane = Lane(replace(SPEC, corrections=before), Input(TOPIC, 0, 1))
        lane.process(records)
        stored = entries_of(lane.take_changes())
        with pytest.raises(StateMismatchError, match="corrections was"):
            Lane(replace(SPEC, corrections=after), Input(TOPIC, 0, 1)).restore(stored, where="test")


def test_state_that_lost_a_correction_is_refused() -> None:
    driver_records = [trade("a", 1), trade("b", 2), cancel("a")]
    records = [KafkaRecord(n, -1, b"A", orjson.dumps({"symbol": "A", **m})) for n, m in enumerate(driver_records)]
    lane = Lane(SPEC, Input(TOPIC, 0, 1))
    lane.process(records[:2])
    stored = [*lane.take_changes()]
    lane.process(records[2:])
    window = [record for record in lane.take_changes() if record.key is not None and record.key[:1] == b"w"]
    entries = entries_of([*stored, *window])
    with pytest.raises(StateFormatError):
        Lane(SPEC, Input(TOPIC, 0, 1)).restore(entries, where="test")


def test_what_can_not_be_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="fill_gaps"):
        Lane(replace(SPEC, window=replace(SPEC.window, fill_gaps_ns=50 * SECOND_NS)), Input(TOPIC, 0, 1))


def test_a_correction_is_told_with_the_window_that_it_changed() -> None:
    driver = driver_of(
        messages=[
            trade("a", 1, 10),
            trade("b", 2, 30),
            trade("c", 7),
            correct("a", 12, 1),
            cancel("b"),
            cancel("b"),
            {KIND: "X"},
            trade("d", 4),
        ]
    )
    found = Investigation(SPEC, Input("ticks", 0, 1), "A", 0, 0)
    found.take(driver.log(0))
    story = found.windows[0]
    assert [(fate.offset, fate.fate, fate.price) for fate in story.ticks] == [
        (0, "joined", 10.0),
        (1, "joined", 30.0),
        (3, "corrected", 12.0),
        (4, "corrected", None),
        (7, "joined", 10.0),
    ]
    assert [fate.detail for fate in story.ticks[2:4]] == ["correct of trade 'a'", "cancel of trade 'b'"]
    assert [(frame.rev, frame.trigger, frame.offset) for frame in story.frames] == [
        (0, "watermark", 2),
        (1, "correction", 3),
        (2, "correction", 4),
        (3, "late", 7),
    ]
    assert [(fate.offset, fate.fate, fate.reason) for fate in found.strays] == [
        (5, "late", "uncorrectable"),
        (6, "rejected", "missing_field"),
    ]
    assert [frame.value for frame in story.frames] == [
        record.value for record in driver.records("frames") if orjson.loads(record.value or b"")["start"] == 0
    ]


def test_what_is_not_found_is_a_line_for_people() -> None:
    driver = driver_of(messages=[trade("a", 1), {**cancel("gone"), "ts": "2024-01-05T10:00:00Z"}])
    (record,) = driver.records("late")
    line = late_line(Printed(0, record.key, record.value), now_ns=0, unit="ms")
    assert line.startswith("[p=0] A uncorrectable: no trade with id 'gone' is kept")
    assert line.endswith("from ticks[0] offset 1")


@dataclass(frozen=True)
class Printed:
    """What of a consumed record is printed."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


# -- settings ---------------------------------------------------------------------------------------------------------

GIVEN = {"corrections.field": "type", "corrections.cancel": "X", "corrections.id": "id"}


def test_settings_say_what_is_a_correction() -> None:
    text = '[corrections]\nfield = "type"\ncancel = ["X", 8]\ncorrect = ["C"]\nid = "id"\nrefers_to = "ref"\n'
    wanted = CorrectionRules("type", ("X", "8"), ("C",), "id", "ref")
    assert lane_spec(Settings()).corrections is None
    assert lane_spec(loaded(text)).corrections == wanted
    flags = {**GIVEN, "corrections.cancel": "X, 8", "corrections.correct": "C", "corrections.refers_to": "ref"}
    assert lane_spec(load_settings(environ={}, overrides=flags)).corrections == wanted


def loaded(text: str) -> Settings:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "workers.toml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, environ={})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corrections.field": None}, "means nothing without field"),
        ({"corrections.id": None}, "a trade is found by its id"),
        ({"corrections.cancel": None}, "expected what it says in messages that cancel"),
        ({"corrections.correct": "C,X"}, "X can't mean both"),
        ({"window.fill_gaps": "1m"}, "of a bar whose trades are all cancelled"),
        ({"tick.format": "frames", "window.lag": "0s"}, "means nothing where bars are made of frames"),
    ],
)
def test_settings_that_can_not_be_together_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(environ={}, overrides={**GIVEN, **change})


def test_messages_pass_no_pipeline_and_may_name_the_trade_in_the_field_of_its_own_id() -> None:
    """Deduplication would drop a message that has the id of the trade it is about, and the filter every message."""
    rules = CorrectionRules(KIND, ("X",), ("C",), ID)
    pipeline = (Deduplicate((ID,), 60 * SECOND_NS), Filter("tests.unit.core.windows.test_corrections:is_trade"))
    driver = driver_of(
        replace(SPEC, corrections=rules, pipeline=pipeline), [trade("a", 1), trade("a", 1), trade("b", 2)]
    )
    tell(driver, {KIND: "X", ID: "a"}, trade("c", 3, quote=True), {KIND: "X", ID: "c"}, trade("d", 8))
    assert [(bar["count"], bar["first_ts"]) for bar in driver.frames()] == [(1, 2_000)]
    assert [late["reason"] for late in driver.late()] == ["duplicate", "filtered", "uncorrectable"]
    counts = driver.counts()
    assert (counts.corrected, counts.deduplicated, counts.filtered, counts.balance()) == (1, 1, 1, 0)


def is_trade(tick: Tick) -> bool:
    return "quote" not in tick.fields


def test_a_message_on_a_partition_where_its_symbol_does_not_belong_is_seen_as_a_tick_would_be() -> None:
    form = TickFormat(on_misrouted="reject")
    for spec, reason in ((replace(SPEC, tick=form), "rejected"), (SPEC, "late")):
        driver = TestDriver(spec, partitions=2)
        home = partition_for(b"A", 2)
        driver.send_raw(b"A", orjson.dumps({"symbol": "A", **cancel("a")}), partition=1 - home)
        assert getattr(driver.counts(), reason) == 1
