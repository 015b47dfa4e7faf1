"""Following one symbol through a partition: what is said of each tick is what the lane did with it."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.strategies import SYMBOLS, Case, configs, streams
from tests.unit.core.test_lane import kafka_records, spec_of
from workers.apps.inspect.explain import parse_time
from workers.apps.inspect.explanation import differences
from workers.apps.inspect.fates import WindowStory, seconds_text
from workers.apps.inspect.witness import Investigation
from workers.core.lane import Input
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter
from workers.core.pipeline.throttle import Conflate
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.testing import TestDriver
from workers.times import MAX_EVENT_TIME_NS, parse_rfc3339

S = 10**9
T0_MS = 1_700_000_000_000
T0 = T0_MS * 10**6
SPEC = LaneSpec(lateness_ns=S)
EVERYTHING = 10**19


def investigate(driver: TestDriver, symbol: str = "AAPL", *, limit: int = 1_000) -> Investigation:
    found = Investigation(driver.spec, Input("ticks", 0, 1), symbol, T0, T0, tick_limit=limit)
    found.take(driver.log(0))
    return found


def test_a_late_tick_is_explained_by_the_tick_that_moved_the_watermark() -> None:
    driver = TestDriver(SPEC)
    driver.send("AAPL", T0_MS + 400, 1, 1)
    driver.send("MSFT", T0_MS + 60_000, 1, 1)  # another symbol's progress is no reason
    driver.send("AAPL", T0_MS + 7_100, 1, 1)
    driver.send("AAPL", T0_MS + 6_000, 1, 1)
    driver.send("AAPL", T0_MS + 2_800, 7, 3)
    (joined, late) = investigate(driver).windows[T0].ticks
    assert (joined.fate, joined.offset) == ("joined", 0)
    assert (late.fate, late.offset, late.price, late.size, late.late_by_ns) == ("late", 4, 7, 3, 1_300_000_000)
    assert late.clock is not None
    assert (late.clock.offset, late.clock.watermark_ns) == (2, T0 + 5_100_000_000)
    assert late.detail == (
        "late by 1.3 s: its symbol's watermark was at 2023-11-14 22:13:25.100 because of the tick at offset 2 "
        "(2023-11-14 22:13:27.100, lag 2 s), and allowed lateness is 1 s"
    )


def test_a_tick_on_the_threshold_is_called_late_and_not_late_by_nothing() -> None:
    driver = TestDriver(SPEC)
    driver.send("AAPL", T0_MS + 7_000, 1, 1)
    driver.send("AAPL", T0_MS + 4_000, 1, 1)
    (late,) = investigate(driver).windows[T0].ticks
    assert late.detail.startswith("late: it is on the threshold")


def test_with_a_clock_for_the_partition_another_symbol_can_be_the_reason() -> None:
    driver = TestDriver(LaneSpec(scope="partition"))
    driver.send("MSFT", T0_MS + 60_000, 1, 1)
    driver.send("AAPL", T0_MS, 1, 1)
    (late,) = investigate(driver).windows[T0].ticks
    assert late.clock is not None
    assert late.clock.offset == 0
    assert late.detail.startswith("late by 58 s: the partition's watermark")


def test_a_tick_of_a_forgotten_key_names_who_moved_the_partitions_time() -> None:
    driver = TestDriver(LaneSpec(key_ttl_ns=3600 * S))
    driver.send("AAPL", T0_MS, 1, 1)
    driver.send("MSFT", T0_MS + 3_700_000, 1, 1)
    driver.send("AAPL", T0_MS + 1, 1, 1)
    found = investigate(driver)
    joined, late = found.windows[T0].ticks
    assert (joined.fate, late.fate, late.reason) == ("joined", "late", "expired")
    assert late.detail.endswith("because of the tick at offset 1")
    assert [frame.trigger for frame in found.windows[T0].frames] == ["expiry"]


def test_rejected_records_are_found_by_key_by_symbol_and_without_a_time() -> None:
    driver = TestDriver(SPEC)
    driver.send("AAPL", T0_MS, 1, -1)
    driver.send_raw(b"AAPL", b"rubbish")
    driver.send_raw(b"MSFT", orjson.dumps({"symbol": "AAPL", "ts": T0_MS + 1, "price": 1, "size": 1}))
    driver.send_raw(b"MSFT", b"rubbish")
    driver.send("AAPL", T0_MS + 3_600_000, 1, 1)
    driver.send_raw(b"AAPL", b"long after")
    found = investigate(driver)
    assert [(tick.offset, tick.reason) for tick in found.windows[T0].ticks] == [
        (0, "negative_size"),
        (2, "key_mismatch"),
    ]
    assert [(tick.offset, tick.reason) for tick in found.strays] == [(1, "malformed_json")]


def test_frames_are_told_with_the_tick_and_the_watermark_that_brought_them_out() -> None:
    driver = TestDriver(SPEC)
    for ts in (400, 7_100, 4_300, 60_000):
        driver.send("AAPL", T0_MS + ts, 1, 1)
    found = investigate(driver)
    frames = found.windows[T0].frames
    assert [(frame.rev, frame.status, frame.trigger, frame.offset) for frame in frames] == [
        (0, "closed", "watermark", 1),
        (1, "closed", "late", 2),
    ]
    driver.commit()
    real = [record.value for record in driver.records("frames") if orjson.loads(record.value or b"")["start"] == T0_MS]
    assert [frame.value for frame in frames] == real
    assert found.over_ms == T0_MS + 60_000


def test_beyond_the_limit_ticks_are_counted_and_not_kept() -> None:
    driver = TestDriver(SPEC)
    for number in range(10):
        driver.send("AAPL", T0_MS + number, 1, 1)
    story = investigate(driver, limit=4).windows[T0]
    assert (len(story.ticks), story.counts) == (4, {"joined": 10})


def test_ticks_that_joined_hide_none_that_did_not_and_no_limit_hides_the_time_asked_for() -> None:
    driver = TestDriver(LaneSpec(lag_ns=S))
    for number in range(900):
        driver.send("AAPL", T0_MS + 2_000 + number, 1, 1)
    driver.send("AAPL", T0_MS + 195, 7, 3)  # late
    driver.send("AAPL", T0_MS + 195, 8, 3)  # and so is this
    driver.send("AAPL", T0_MS + 2_850, 9, 3)
    asked = []
    for asked_ms in (T0_MS + 195, T0_MS + 2_850):
        found = Investigation(
            driver.spec, Input("ticks", 0, 1), "AAPL", T0, T0, tick_limit=4, asked_ns=asked_ms * 10**6
        )
        found.take(driver.log(0))
        story = found.windows[T0]
        assert story.counts == {"joined": 901, "late": 2}
        assert [tick.fate for tick in story.ticks] == ["joined"] * 4 + ["late"] * 2
        asked.append([(tick.fate, tick.offset) for tick in found.asked])
        assert sum(found.asked_counts.values()) == 2
    assert asked == [[("late", 900), ("late", 901)], [("joined", 850), ("joined", 902)]]


def cheap(tick: Tick) -> bool:
    return tick.price < 100


def test_what_operators_do_is_told_even_without_their_ledger() -> None:
    pipeline = (
        Deduplicate(fields=("id",), ttl_ns=60 * S, ledger=False),
        Filter(f"{__name__}:cheap", ledger=False),
        Conflate(interval_ns=S, margin_ns=0, ledger=False),
    )
    driver = TestDriver(LaneSpec(pipeline=pipeline))
    driver.send("AAPL", T0_MS, 1, 1, id=1)
    driver.send("AAPL", T0_MS + 1, 1, 1, id=1)
    driver.send("AAPL", T0_MS + 2, 100, 1, id=2)
    driver.send("AAPL", T0_MS + 3, 2, 1, id=3)
    driver.send("AAPL", T0_MS + 4_000, 3, 1, id=4)
    found = investigate(driver)
    fates = {tick.offset: tick.fate for tick in found.windows[T0].ticks}
    assert fates == {0: "throttled", 1: "duplicate", 2: "filtered", 3: "joined"}
    assert [tick.offset for tick in found.still_held()] == [4]


cases = configs(all_late=False).flatmap(
    lambda config: streams(config).map(lambda records: Case(config, records)),
)


@given(cases, st.sampled_from(SYMBOLS))
def test_fates_are_those_of_the_oracle(case: Case, symbol: str) -> None:
    expected = oracle.run(case.config, case.records)
    source = Input("ticks", 0, case.config.partitions or 1)
    found = Investigation(spec_of(case.config), source, symbol, -EVERYTHING, EVERYTHING, tick_limit=10**6)
    found.take(kafka_records(case.records))
    ticks = [tick for story in found.windows.values() for tick in story.ticks]
    late = sorted((tick.offset, tick.late_by_ns, tick.reason) for tick in ticks if tick.fate == "late")
    assert late == [(each.offset, each.late_by_ns, each.reason) for each in expected.late if each.key == symbol]
    for tick in ticks:
        if tick.reason == "watermark":
            assert tick.clock is not None
            assert {each.offset: each.watermark_ns for each in expected.late}[tick.offset] == tick.clock.watermark_ns
    keys = {record.offset: record.key for record in case.records}
    told = {tick.offset for tick in (*ticks, *found.strays) if tick.fate == "rejected"}
    own = {bad.offset for bad in expected.rejected if keys[bad.offset] == symbol.encode()}
    assert told <= {bad.offset for bad in expected.rejected}
    assert own <= told
    frames = [frame.value for story in found.windows.values() for frame in story.frames]
    assert sorted(frames) == sorted(expected.wire().get(symbol, []))


stamped = cases.map(lambda case: Case(case.config, [each for each in case.records if each.timestamp_ms >= 0]))


@given(stamped, st.sampled_from(SYMBOLS[:3]), st.integers(0, 59))
def test_what_was_sent_before_the_window_could_be_is_not_needed(case: Case, symbol: str, number: int) -> None:
    """Why reading may begin at the first record sent max_future_skew before the window, or later; or before those whose
    end of the input may have set a clock that reaches it."""
    spec, source = spec_of(case.config), Input("ticks", 0, case.config.partitions or 1)
    records = kafka_records(case.records)
    whole = Investigation(spec, source, symbol, -EVERYTHING, EVERYTHING)
    whole.take(records)
    starts = sorted(whole.windows)
    assume(starts)
    start_ns = starts[number % len(starts)]
    earliest_ms = (start_ns - spec.end_reach_ns - spec.tick.max_future_skew_ns) // 10**6
    begin = next((n for n, each in enumerate(records) if each.timestamp >= earliest_ms), len(records))
    part = Investigation(spec, source, symbol, start_ns, start_ns)
    part.take(records[begin:])
    wanted, found = whole.windows[start_ns], part.windows.get(start_ns, WindowStory(0, start_ns, 0))
    assert [tick for tick in found.ticks if tick.fate != "rejected"] == [
        tick for tick in wanted.ticks if tick.fate != "rejected"
    ]
    assert found.frames == wanted.frames


# -- small things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2023-11-14T22:13:20Z", T0),
        ("2023-11-14T23:13:20+01:00", T0),
        (str(T0_MS), T0),
        ("-1", -(10**6)),
        ("13:21:25.5", parse_rfc3339("2026-01-30T13:21:25.5Z")),
        ("13:21:25Z", parse_rfc3339("2026-01-30T13:21:25Z")),
    ],
)
def test_times_are_read_as_people_write_them(text: str, wanted: int) -> None:
    assert parse_time(text, now_ns=parse_rfc3339("2026-01-30T23:59:59Z")) == wanted


def test_an_integer_is_in_the_unit_of_the_ticks_and_what_does_not_fit_says_how_it_was_read() -> None:
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)):
        assert parse_time(str(T0 // scale), now_ns=0, unit=unit) == T0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'1769783451046237', read as ms \(tick.timestamp_unit\), does not fit"):
        parse_time("1769783451046237", now_ns=0)


@pytest.mark.parametrize("text", ["", "noon", "2026-01-30", "2026-01-30T10:00:00", "25:00:00", "1e3", "9" * 30, "١"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|fit|hour|range"):
        parse_time(text, now_ns=0)


def test_the_fields_in_which_frames_differ_are_named() -> None:
    (one, more) = differences(b'{"a":1,"b":2}', b'{"a":1,"b":3,"c":4}')
    assert (one.field, one.expected, one.found) == ("b", 2, 3)
    assert (more.field, more.expected, more.found) == ("c", None, 4)
    (form,) = differences(b'{"a":1}', b'{"a": 1}')
    assert form.field == "value"
    (junk,) = differences(b'{"a":1}', b"\xff")
    assert junk.found == "\\xff"


def test_durations_are_said_exactly() -> None:
    texts = [seconds_text(ns) for ns in (0, 1, 1_300_000_000, 60 * S, -500_000_000)]
    assert texts == ["0 s", "0.000000001 s", "1.3 s", "60 s", "-0.5 s"]
    assert MAX_EVENT_TIME_NS < EVERYTHING
