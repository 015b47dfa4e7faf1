"""Session windows: timelines worked out by hand, and any log against an oracle that was written apart.

Times in the timelines are seconds; the gap is 5 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracle import Record
from tests.support.strategies import Case, configs, ended, streams
from tests.support.window_oracles import run_sessions
from tests.unit.core.test_lane import TOPIC, KafkaRecord, kafka_records, late_entries, real_frames, run_through, spec_of
from workers import Aggregation, SessionWindowSpec, Tick, WatermarkPolicy, WindowFrame, window_event_time
from workers.core.lane import Input, Lane, entries_of
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import SessionWindows
from workers.errors import ConfigError
from workers.testing import TestDriver

S = 10**9
MS = 10**6
SPEC = LaneSpec(window=SessionWindows(5 * S), lag_ns=2 * S, idle_after_ns=S)
LATE = replace(SPEC, lateness_ns=20 * S)


def play(spec: LaneSpec, timeline: str) -> list[str]:
    """The frames but the provisional ones for ``"A0 A2 B1.5"``, as ``A [0, 7) x2 rev 0 closed watermark``."""
    driver = TestDriver(spec)
    for word in timeline.split():
        driver.send(word[0], round(float(word[1:]) * 1000), price=float(word[1:]), size=1)
    driver.commit()
    return [brief(frame) for frame in driver.frames() if frame["status"] != "provisional"]


def brief(frame: Mapping[str, object]) -> str:
    start, end = (f"{int(str(frame[name])) / 1000:g}" for name in ("start", "end"))
    return f"{frame['key']} [{start}, {end}) x{frame['count']} rev {frame['rev']} {frame['status']} {frame['trigger']}"


class TestExtent:
    def test_ticks_closer_than_the_gap_are_one_session_that_ends_a_gap_after_the_last(self) -> None:
        assert play(SPEC, "A0 A4 A8.999 A30") == ["A [0, 13.999) x3 rev 0 final watermark"]

    def test_a_tick_exactly_a_gap_after_the_last_opens_a_session_of_its_own(self) -> None:
        assert play(SPEC, "A0 A5 A30") == ["A [0, 5) x1 rev 0 final watermark", "A [5, 10) x1 rev 0 final watermark"]

    def test_a_session_closes_when_the_watermark_reaches_its_end(self) -> None:
        assert play(SPEC, "A0 A1 A7.999") == []
        assert play(SPEC, "A0 A1 A8") == ["A [0, 6) x2 rev 0 final watermark"]

    def test_a_tick_between_two_sessions_that_were_not_shown_makes_one_of_them(self) -> None:
        slow = replace(SPEC, lag_ns=20 * S)
        assert play(slow, "A0 A8 A4 A50") == ["A [0, 13) x3 rev 0 final watermark"]

    def test_a_tick_a_gap_away_from_both_neighbours_joins_neither(self) -> None:
        slow = replace(SPEC, lag_ns=20 * S)
        assert play(slow, "A0 A10 A5 A50") == [
            "A [0, 5) x1 rev 0 final watermark",
            "A [5, 10) x1 rev 0 final watermark",
            "A [10, 15) x1 rev 0 final watermark",
        ]

    def test_each_key_has_its_own_sessions(self) -> None:
        assert play(SPEC, "A0 B3 A4 B30 A30") == [
            "B [3, 8) x1 rev 0 final watermark",
            "A [0, 9) x2 rev 0 final watermark",
        ]


class TestRevisions:
    def test_a_late_tick_inside_a_closed_session_brings_it_out_again(self) -> None:
        assert play(LATE, "A0 A2 A20 A1") == [
            "A [0, 7) x2 rev 0 closed watermark",
            "A [0, 7) x3 rev 1 closed late",
        ]

    def test_a_late_tick_that_lengthens_a_session_past_the_watermark_opens_it_again(self) -> None:
        # The watermark is 8 when the tick at 6.5 makes the session [0, 11.5); it is reached by the tick at 13.5.
        assert play(LATE, "A0 A2 A10 A6.5 A13.499") == ["A [0, 7) x2 rev 0 closed watermark"]
        assert play(LATE, "A0 A2 A13 A6.5 A20") == [
            "A [0, 7) x2 rev 0 closed watermark",
            "A [0, 11.5) x3 rev 1 closed watermark",
            "A [13, 18) x1 rev 0 closed watermark",
        ]

    def test_sessions_that_came_out_merge_under_the_name_of_the_first(self) -> None:
        assert play(LATE, "A0 A8 A20 A4") == [
            "A [0, 5) x1 rev 0 closed watermark",
            "A [8, 13) x1 rev 0 closed watermark",
            "A [8, 13) x0 rev 1 closed merged",
            "A [0, 13) x3 rev 1 closed late",
        ]

    def test_an_earlier_tick_gives_a_session_another_name(self) -> None:
        assert play(LATE, "A3 A20 A1 A2") == [
            "A [3, 8) x1 rev 0 closed watermark",
            "A [3, 8) x0 rev 1 closed merged",
            "A [1, 8) x2 rev 0 closed late",
            "A [1, 8) x3 rev 1 closed late",
        ]

    def test_a_session_that_came_out_and_one_that_is_open_merge_to_an_open_one(self) -> None:
        assert play(LATE, "A0 A8 A9 A4 A30") == [
            "A [0, 5) x1 rev 0 closed watermark",
            "A [0, 14) x4 rev 1 closed watermark",
        ]

    def test_an_open_session_takes_the_place_of_one_that_came_out(self) -> None:
        # The tick at 3 is before both: the name is new, what came out under the old one is taken back.
        assert play(LATE, "A4 A12 A8 A3 A30") == [
            "A [4, 9) x1 rev 0 closed watermark",
            "A [4, 17) x0 rev 1 closed merged",
            "A [3, 17) x4 rev 0 closed watermark",
        ]

    def test_with_emit_final_nothing_is_ever_taken_back(self) -> None:
        assert play(replace(LATE, emit="final"), "A0 A8 A20 A4 A3 A60") == [
            "A [0, 13) x4 rev 0 final watermark",
            "A [20, 25) x1 rev 0 final watermark",
        ]

    def test_what_is_taken_back_has_no_results(self) -> None:
        driver = TestDriver(replace(LATE, payload="both"))
        for ts in (3, 20, 1):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        (taken_back,) = [frame for frame in driver.frames() if frame["trigger"] == "merged"]
        names = ("open", "high", "low", "close", "volume", "vwap", "first_ts", "last_ts")
        assert [taken_back[name] for name in names] == [None] * len(names)
        assert (taken_back["items"], taken_back["end"]) == ([], 8000)

    def test_a_start_that_moves_within_a_millisecond_keeps_the_name_that_frames_show(self) -> None:
        driver = TestDriver(replace(LATE, tick=replace(LATE.tick, unit="us")))
        for ts_us in (3_000_700, 20_000_000, 3_000_100):
            driver.send("A", ts_us, price=1, size=1)
        driver.commit()
        assert [brief(frame) for frame in driver.frames()] == [
            "A [3, 8) x1 rev 0 closed watermark",
            "A [3, 8) x2 rev 1 closed late",
        ]


class TestProvisional:
    def test_a_session_shown_provisionally_is_taken_back_provisionally_also_after_a_restart(self) -> None:
        driver = TestDriver(replace(SPEC, lag_ns=20 * S))
        driver.send("A", 0, price=1, size=1)
        driver.send("A", 8_000, price=1, size=1)
        driver.commit()
        driver.advance("60s")
        driver.rebalance()
        driver.send("A", 4_000, price=1, size=1)
        driver.send("A", 60_000, price=1, size=1)
        driver.commit()
        assert [brief(frame) for frame in driver.frames()] == [
            "A [0, 5) x1 rev 0 provisional timeout",
            "A [8, 13) x1 rev 0 provisional timeout",
            "A [8, 13) x0 rev 0 provisional merged",
            "A [0, 13) x3 rev 0 final watermark",
        ]

    def test_a_session_that_grew_waits_for_silence_after_its_new_end(self) -> None:
        driver = TestDriver(SPEC)
        driver.send("A", 0, price=1, size=1)
        driver.send("A", 3_000, price=1, size=1)
        driver.advance("7999ms")  # overdue at 8 + 2 + 1, eight seconds after the last tick
        assert driver.frames() == []
        driver.advance("101ms")
        assert [brief(frame) for frame in driver.frames()] == ["A [0, 8) x2 rev 0 provisional timeout"]
        driver.send("A", 4_000, price=1, size=1)
        driver.advance("7999ms")
        assert len(driver.frames()) == 1
        driver.advance("101ms")
        assert [brief(frame) for frame in driver.frames()][1:] == ["A [0, 9) x3 rev 0 provisional timeout"]

    def test_a_session_that_grew_waits_for_the_partitions_time_to_pass_its_new_end(self) -> None:
        driver = TestDriver(SPEC)
        for symbol, ts in (("A", 0), ("A", 3), ("B", 10.999)):  # A's session ends at 8, and not at 5 any more
            driver.send(symbol, round(ts * 1000), price=1, size=1)
        driver.commit()
        assert driver.frames() == []
        driver.send("B", 11_000, price=1, size=1)
        driver.commit()
        assert [brief(frame) for frame in driver.frames()] == ["A [0, 8) x2 rev 0 provisional idle"]

    def test_an_overdue_session_that_changes_and_grows_at_once_waits_again(self) -> None:
        lane = Lane(replace(SPEC, lag_ns=4 * S), Input(TOPIC, 0, 1))
        records = [
            KafkaRecord(offset, -1, key.encode(), f'{{"symbol":"{key}","ts":{ts},"price":1,"size":1}}'.encode())
            for offset, (key, ts) in enumerate([("A", 4_000), ("B", 14_000), ("A", 4_000), ("A", 8_000), ("B", 15_000)])
        ]
        lane.process(records[:1])
        shown = [lane.process(batch).frames for batch in (records[1:2], records[2:4], records[4:])]
        assert [len(frames) for frames in shown] == [1, 0, 0]


class Longest(Aggregation[int]):
    """The longest run of rising prices; no two can be put together."""

    name = "longest"

    def create(self) -> int:
        return 0

    def add(self, state: int, tick: Tick) -> int:
        return state + 1

    def result(self, state: int) -> Mapping[str, object]:
        return {"longest": state}


class Path(Aggregation[list[float]]):
    """All prices, by session part: what order things are put together in."""

    name = "path"

    def create(self) -> list[float]:
        return []

    def add(self, state: list[float], tick: Tick) -> list[float]:
        return [*state, tick.price]

    def merge(self, state: list[float], later: list[float]) -> list[float]:
        return state + later

    def result(self, state: list[float]) -> Mapping[str, object]:
        return {"path": state}


class TestAggregations:
    def test_an_aggregation_that_cannot_merge_is_refused_at_start(self) -> None:
        with pytest.raises(ConfigError, match=r"Longest has no merge\(\), which session windows need"):
            TestDriver(replace(SPEC, aggregation=f"{__name__}:Longest"))

    def test_states_are_merged_in_order_of_start_and_then_the_tick_is_added(self) -> None:
        driver = TestDriver(replace(SPEC, lag_ns=30 * S, aggregation=f"{__name__}:Path"))
        for ts in (20, 12, 13, 4, 0, 8, 16, 90):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        (frame,) = driver.frames()
        # 8 joins [0, 9) = 4, 0 and [12, 18) = 12, 13; then 16 joins that and [20, 25)
        assert frame["path"] == [4, 0, 12, 13, 8, 20, 16]

    def test_items_stay_in_log_order(self) -> None:
        driver = TestDriver(replace(SPEC, lag_ns=30 * S, payload="items"))
        for ts in (20, 12, 13, 4, 0, 8):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        driver.rebalance()
        for ts in (16, 90):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        (frame,) = driver.frames()
        items = frame["items"]
        assert isinstance(items, list)
        assert [item["price"] for item in items] == [20, 12, 13, 4, 0, 8, 16]


class TestState:
    def test_a_restart_after_every_tick_changes_nothing_and_nothing_is_left_behind(self) -> None:
        spec = replace(SPEC, lag_ns=10 * S, lateness_ns=20 * S, payload="both")
        records = [
            KafkaRecord(offset, -1, b"A", f'{{"symbol":"A","ts":{ts}000,"price":{ts},"size":0.1}}'.encode())
            for offset, ts in enumerate((20, 12, 13, 4, 0, 5, 8, 16, 21, 35, 41, 38, 90, 130))
        ]
        whole = Lane(spec, Input(TOPIC, 0, 1)).process(records)
        frames, changelog = [], []
        lane = Lane(spec, Input(TOPIC, 0, 1))
        for record in records:
            frames += lane.process([record]).frames
            changelog += lane.take_changes()
            entries = entries_of(changelog)
            lane = Lane(spec, Input(TOPIC, 0, 1))
            lane.restore(entries, where="test")
            segments = sum(window.stored_segments for window in lane._engine.windows())
            assert sum(1 for key in entries if key[:1] == b"i") == segments
        assert real_frames(frames) == real_frames(whole.frames)
        assert len(frames) >= 4

    def test_a_session_that_has_another_name_still_knows_its_keys_clock(self) -> None:
        driver = TestDriver(LATE)
        for ts in (4, 7, 5, 3):  # the last one renames the session, of which the tick at 7 set the clock
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        driver.rebalance()
        assert driver._partitions[0].lane._engine.watermark_ns("A") == 5 * S


async def test_sessions_of_a_stream() -> None:
    async def source() -> object:
        for second in (3, 1, 20, 4, 60):
            yield datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)

    frames: list[WindowFrame[datetime]] = [
        frame
        async for frame in window_event_time(
            source(),  # type: ignore[arg-type]
            SessionWindowSpec(timedelta(seconds=5)),
            get_event_time=lambda item: item,
            watermark_policy=WatermarkPolicy(timedelta(seconds=2), timedelta(seconds=30)),
        )
    ]
    shown = [(frame.start.second, [item.second for item in frame.items], frame.rev, frame.trigger) for frame in frames]
    assert shown == [
        (1, [3, 1], 0, "watermark"),
        (1, [3, 1, 4], 1, "late"),
        (20, [20], 0, "watermark"),
        (0, [0], 0, "end"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Any log

any_configs = configs(all_late=False).filter(lambda config: config.size_ns >= 10**6)
any_cases = any_configs.map(lambda config: replace(config, partitions=None)).flatmap(
    lambda config: streams(config, max_size=80).map(lambda records: Case(config, records))
)
"""Logs with everything in them, malformed records too. Few sessions merge in them."""


@st.composite
def busy_cases(draw: st.DrawFn) -> Case:
    """Much disorder within the allowed lateness, so that sessions merge, move their starts and open again."""
    gap, lag, lateness = draw(st.integers(1, 6)), draw(st.integers(0, 4)), draw(st.integers(6, 40))
    config = replace(
        draw(configs(generous_ttl=draw(st.booleans()))),
        size_ns=gap * MS,
        lag_ns=lag * MS,
        allowed_lateness_ns=lateness * MS,
        partitions=None,
        unit="us",
        fields=("symbol", "ts", "price", "size"),
        emit=draw(st.sampled_from(("eager", "eager", "eager", "final"))),
    )
    step = st.tuples(
        st.sampled_from("AAAB"),
        st.one_of(st.integers(0, 3), st.integers(0, 3 * gap), st.integers(-lag - lateness, 0)),
        st.sampled_from((0, 0, 0, 1, -1)),  # microseconds
        st.integers(0, 4),
    )
    records, front = [], draw(st.sampled_from((0, 1_700_000_000_000)))
    for offset, (symbol, ahead, beside_us, number) in enumerate(draw(st.lists(step, min_size=8, max_size=60))):
        ts_us = (front + ahead) * 1_000 + beside_us
        front = max(front, front + ahead)
        price, size = ("1.1", "-0.0", "0.0", "7", "3.3")[number], ("0.1", "0.7", "3.3", "1e22", "2")[-number]
        value = f'{{"symbol":"{symbol}","ts":{ts_us},"price":{price},"size":{size}}}'
        records.append(Record(offset, -1, symbol.encode(), value.encode()))
    return Case(config, draw(ended(records)))


cases = busy_cases() | any_cases


def lane_of(case: Case, *, emit_partial: bool = False) -> Lane:
    spec = replace(spec_of(case.config, emit_partial=emit_partial), window=SessionWindows(case.config.size_ns))
    return Lane(spec, Input(TOPIC, 0, 1))


@given(cases)
def test_sessions_are_what_the_oracle_finds_by_cutting_all_times(case: Case) -> None:
    expected = run_sessions(case.config, case.records)
    lane = lane_of(case)
    effects = lane.process(kafka_records(case.records))
    assert real_frames(effects.frames) == expected.wire()
    assert late_entries(effects.late) == [
        (late.offset, late.key, late.reason, late.watermark_ns, late.late_by_ns) for late in expected.late
    ]
    assert (lane.counts.aggregated, lane.counts.late) == (expected.aggregated, len(expected.late))
    assert lane.counts.balance() == 0


@given(cases, st.data())
def test_batches_crashes_clocks_and_flushes_change_no_session(case: Case, data: st.DataObject) -> None:
    lane = lane_of(case, emit_partial=data.draw(st.booleans(), "emit_partial"))
    records = kafka_records(case.records)
    _, found = run_through(lane, lambda: lane_of(case), records, 10 * case.config.size_ns, data)
    assert real_frames(found.frames) == run_sessions(case.config, case.records).wire()


@given(cases, st.data())
def test_what_readers_keep_of_provisional_and_other_frames_counts_each_tick_once(
    case: Case, data: st.DataObject
) -> None:
    """A reader that keeps the last frame of each name holds every accepted tick once, when all was shown."""
    lane = lane_of(case, emit_partial=True)
    last: dict[tuple[str, int], dict[str, object]] = {}
    for record in kafka_records(case.records):
        effects = lane.process([record])
        if data.draw(st.booleans(), "show"):
            effects.extend(lane.flush_partial())
        for frame in effects.frames:
            shown = orjson.loads(frame.value or b"")
            last[shown["key"], shown["start"]] = shown
    if case.config.emit == "final":
        return
    for frame in lane.flush_partial().frames:
        shown = orjson.loads(frame.value or b"")
        last[shown["key"], shown["start"]] = shown
    assert sum(int(str(frame["count"])) for frame in last.values()) == lane.counts.aggregated
