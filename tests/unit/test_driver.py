"""The test driver: what users test with must behave as workers do, whatever the schedule."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.strategies import Case, configs, streams
from tests.unit.core.test_lane import real_frames, spec_of
from workers import testing
from workers.core.aggregates import Aggregation
from workers.core.frames import RESERVED_FIELDS
from workers.core.pipeline.pipeline import Filter, Route, Router
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick, TickFormat
from workers.errors import CallbackError, StateMismatchError
from workers.settings import load_settings
from workers.testing import TestDriver

SECOND_NS = 10**9
T0 = 1_700_000_000_000  # a window's start
SPEC = LaneSpec(lateness_ns=SECOND_NS)


def test_a_window_comes_out_once_it_is_committed() -> None:
    driver = TestDriver(SPEC, partitions=2)
    driver.send("AAPL", T0, price=189.10, size=100)
    driver.send("AAPL", T0 + 8_000, price=189.20, size=50)
    assert driver.frames() == []
    driver.commit()
    (bar,) = driver.frames()
    assert (bar["close"], bar["count"], bar["rev"], bar["status"]) == (189.10, 1, 0, "final")


def test_late_ticks_and_rejected_records_are_accounted_for() -> None:
    driver = TestDriver(SPEC)
    driver.send("AAPL", T0 + 10_000, 1, 1)
    driver.send("AAPL", T0 + 7_000, 1, 1)  # on the threshold: 10 s - lag 2 s - allowed lateness 1 s
    driver.send("AAPL", T0, 1, size=-1)
    driver.send_raw(None, b"rubbish")
    driver.commit()
    (late,) = driver.late()
    assert (late["reason"], late["late_by_ns"], late["offset"]) == ("watermark", 0, 1)
    assert [(letter["reason"], letter["offset"]) for letter in driver.dead_letters()] == [
        ("negative_size", 2),
        ("malformed_json", 3),
    ]
    counts = driver.counts()
    assert (counts.records, counts.aggregated, counts.late, counts.rejected) == (4, 1, 1, 2)
    assert counts.balance() == 0


def test_keys_are_where_murmur2_puts_them_unless_told_otherwise() -> None:
    driver = TestDriver(LaneSpec(tick=TickFormat(on_misrouted="reject")), partitions=4)
    home = oracle.partition_of(b"AAPL", 4)
    assert driver.send("AAPL", T0, 1, 1) == (home, 0)
    assert driver.send("AAPL", T0, 1, 1, partition=(home + 1) % 4) == ((home + 1) % 4, 0)
    driver.commit()
    assert [letter["reason"] for letter in driver.dead_letters()] == ["misrouted"]


def test_silence_brings_idle_windows_out_provisionally_when_they_are_due_and_not_before() -> None:
    driver = TestDriver(LaneSpec())  # 5 s windows, lag 2 s, idle after 1 s
    driver.send("AAPL", T0 + 1_000, 1, 1)
    driver.advance("6.999s")
    assert driver.frames() == []
    driver.advance(timedelta(milliseconds=1))
    driver.commit()
    (shown,) = driver.frames()
    assert (shown["status"], shown["trigger"], shown["rev"]) == ("provisional", "timeout", 0)
    driver.send("AAPL", T0 + 7_000, 1, 1)
    driver.commit()
    assert [frame["status"] for frame in driver.frames()] == ["provisional", "final"]
    assert driver.frames(provisional=False) == [driver.latest("AAPL")[T0]]


def test_open_windows_are_shown_at_flushes_with_emit_partial() -> None:
    driver = TestDriver(LaneSpec(emit_partial=True), flush_interval="250ms", commit_interval="100ms")
    driver.send("AAPL", T0, 1, 1)
    driver.advance("249ms")
    assert driver.frames() == []
    driver.advance("1ms")
    driver.commit()
    assert [frame["trigger"] for frame in driver.frames()] == ["partial"]


@pytest.mark.parametrize(("guarantee", "seen"), [("exactly_once", 1), ("at_least_once", 2)])
def test_a_crash_loses_nothing_and_repeats_only_what_at_least_once_may(guarantee: str, seen: int) -> None:
    driver = TestDriver(SPEC, guarantee=guarantee)
    driver.send("AAPL", T0, 1, 1)
    driver.commit()
    driver.send("AAPL", T0 + 8_000, 1, 1)  # brings the window out; not committed
    driver.crash()
    driver.commit()
    records = driver.records("frames")
    assert [record.value for record in records] == [records[0].value] * seen
    assert driver.counts().records == 2


def test_settings_give_the_driver_what_they_give_a_worker() -> None:
    overrides = {"window.size": "1s", "tick.price": "p", "topics.partitions": 3, "commit_interval": "200ms"}
    settings = load_settings(None, environ={}, overrides=overrides)
    driver = TestDriver(settings)
    driver.send("AAPL", datetime(2026, 1, 30, 13, 21, 25, 500_000, tzinfo=UTC), "189.10", 1)
    driver.send("AAPL", "2026-01-30T13:21:28.000000001Z", 1, 1)
    driver.advance("200ms")
    assert json.loads(driver.log(oracle.partition_of(b"AAPL", 3))[0].value or b"")["p"] == "189.10"
    (bar,) = driver.frames("AAPL")
    assert bar["end"] - bar["start"] == 1_000
    assert driver.guarantee == "exactly_once"


def raises_at_thirteen(tick: Tick) -> bool:
    if tick.price == 13:
        raise RuntimeError("thirteen")
    return tick.price > 1


def test_operators_run_and_a_function_that_raises_is_the_callers_to_see() -> None:
    routes = Router((Route("elsewhere", symbol="X*"),))
    driver = TestDriver(LaneSpec(pipeline=(Filter(f"{__name__}:raises_at_thirteen"), routes)))
    driver.send("AAPL", T0, 1, 1)
    driver.send("XAU", T0, 2, 1)
    driver.commit()
    assert [entry["reason"] for entry in driver.late()] == ["filtered"]
    assert [record.key for record in driver.routed("elsewhere")] == [b"XAU"]
    with pytest.raises(CallbackError, match="thirteen"):
        driver.send("AAPL", T0, 13, 1)


class OneOf(Aggregation[list[float]]):
    """Gives, as its result, what the test says."""

    name = "one of"
    given: ClassVar[object] = {}

    def create(self) -> list[float]:
        return []

    def add(self, state: list[float], tick: Tick) -> list[float]:
        return [*state, tick.price]

    def result(self, state: list[float]) -> Mapping[str, object]:
        if isinstance(OneOf.given, Exception):
            raise OneOf.given
        return OneOf.given  # type: ignore[return-value]


OWN = replace(SPEC, aggregation=f"{__name__}:OneOf")


@pytest.mark.parametrize("name", RESERVED_FIELDS)
def test_a_result_must_not_use_a_name_that_is_the_frames_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneOf, "given", {"mean": 1.0, name: 7})
    driver = TestDriver(OWN)
    driver.send("AAPL", T0, 1, 1)
    with pytest.raises(CallbackError) as caught:
        driver.send("AAPL", T0 + 8_000, 1, 1)
    said = str(caught.value)
    assert said.startswith(f"the aggregation '{__name__}:OneOf': result() gave {name}; reserved for the frame itself")
    assert said.endswith(
        "key, start, end, rev, status, trigger, count, first_ts, last_ts, items, filled; at "
        "ticks[0] offset 1, key 'AAPL'"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"OneOf': result\(\) gave a list; expected a dict of fields"),
        ({"mean": object()}, r"OneOf': result\(\) gave what JSON can't hold: .*offset 1, key 'AAPL'"),
        (RuntimeError("no"), r"OneOf' raised RuntimeError: no, at ticks\[0\] offset 1, key 'AAPL'"),
    ],
)
def test_a_result_that_is_none_is_an_error_of_the_aggregation(
    given: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneOf, "given", given)
    driver = TestDriver(OWN)
    driver.send("AAPL", T0, 1, 1)
    with pytest.raises(CallbackError, match=message):
        driver.send("AAPL", T0 + 8_000, 1, 1)


def test_a_result_that_raises_when_a_quiet_window_is_shown_is_an_error_of_the_aggregation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OneOf, "given", RuntimeError("no"))
    driver = TestDriver(OWN)
    driver.send("AAPL", T0, 1, 1)
    with pytest.raises(CallbackError, match=r"OneOf' raised RuntimeError: no, when windows of ticks\[0\]"):
        driver.advance("1m")


def test_numbers_that_json_does_not_have_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneOf, "given", {"a": float("nan"), "b": float("inf"), "c": -0.5})
    driver = TestDriver(OWN)
    driver.send("AAPL", T0, 1, 1)
    driver.send("AAPL", T0 + 8_000, 1, 1)
    driver.commit()
    assert [driver.frames()[0][name] for name in "abc"] == [None, None, -0.5]


def test_impossible_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="partitions is 0"):
        TestDriver(partitions=0)
    driver = TestDriver(partitions=2)
    with pytest.raises(ValueError, match="the topic has 2"):
        driver.send_raw(b"A", b"", partition=2)
    with pytest.raises(ValueError, match="time does not go back"):
        driver.advance(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="not a duration"):
        driver.advance("soon")


# -- any schedule -----------------------------------------------------------------------------------------------------

steps = st.one_of(
    st.just(("send", 1)),
    st.tuples(st.just("send"), st.integers(1, 20)),
    st.tuples(st.sampled_from(("commit", "crash", "rebalance", "flush")), st.just(0)),
    st.tuples(st.just("advance"), st.integers(0, 20_000)),
    st.tuples(st.just("move"), st.integers(0, 2)),
)
# One oracle for each partition must know how many there are, and windows need names of their own on the wire.
cases = (
    configs(all_late=False)
    .filter(lambda config: config.partitions == 3 and config.size_ns >= 1_000_000)
    .flatmap(lambda config: streams(config).map(lambda records: Case(config, records)))
)


def play(driver: TestDriver, records: Sequence[oracle.Record], schedule: Sequence[tuple[str, int]]) -> None:
    left = list(records)
    for what, number in schedule:
        match what:
            case "send":
                for record in left[:number]:
                    driver.send_raw(record.key, record.value, record.timestamp_ms)
                del left[:number]
            case "advance":
                driver.advance(timedelta(milliseconds=number))
            case "move":
                driver.rebalance([number])
            case _:
                getattr(driver, what)()
    for record in left:
        driver.send_raw(record.key, record.value, record.timestamp_ms)
    driver.commit()


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@given(case=cases, schedule=st.lists(steps, max_size=25), emit_partial=st.booleans())
def test_no_schedule_of_crashes_rebalances_and_silences_changes_a_frame(
    guarantee: str, case: Case, schedule: list[tuple[str, int]], emit_partial: bool
) -> None:
    driver = TestDriver(spec_of(case.config, emit_partial=emit_partial), partitions=3, guarantee=guarantee)
    play(driver, case.records, schedule)
    logs = {
        number: [oracle.Record(each.offset, each.timestamp, each.key, each.value) for each in driver.log(number)]
        for number in range(3)
    }
    expected = oracle.run_topic(case.config, logs)
    found = real_frames(driver.records("frames"))
    late = [(entry["partition"], entry["offset"]) for entry in driver.late()]
    bad = [(letter["partition"], letter["offset"]) for letter in driver.dead_letters()]
    if guarantee == "at_least_once":
        found = {key: list(dict.fromkeys(frames)) for key, frames in found.items()}
        late, bad = list(dict.fromkeys(late)), list(dict.fromkeys(bad))
    assert found == expected.wire()
    assert sorted(late) == sorted((each.partition, each.offset) for each in expected.late)
    assert sorted(bad) == sorted((each.partition, each.offset) for each in expected.rejected)
    counts = driver.counts()
    assert (counts.records, counts.balance()) == (len(case.records), 0)


def test_a_changelog_that_lost_windows_is_noticed_at_the_next_start() -> None:
    driver = TestDriver(SPEC)
    driver.send("AAPL", T0, 1, 5)
    driver.send("AAPL", T0 + 1_000, 1, 5)
    driver.commit()
    changelog = driver._kafka.changelogs[0]
    for key in [key for key in changelog if key[:1] == b"w"]:
        del changelog[key]
    with pytest.raises(StateMismatchError, match="not whole: found 0 windows, expected 1"):
        driver.crash()


def test_the_example_in_the_documentation_runs() -> None:
    assert testing.__doc__ is not None
    example = testing.__doc__.split("\n\n")[1:3]
    exec(textwrap.dedent("\n".join(example)), {})  # its own asserts
