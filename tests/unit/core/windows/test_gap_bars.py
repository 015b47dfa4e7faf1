"""Filled gaps: timelines worked out by hand, and any log against an oracle that was written apart.

Times in the timelines are seconds; windows are 5 s, and gaps up to 20 s are filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracle import Record
from tests.support.strategies import Case, configs, ended, streams
from tests.support.window_oracles import run_gaps
from tests.unit.core.test_lane import TOPIC, kafka_records, late_entries, real_frames, run_through, spec_of
from workers.core.lane import Input, Lane
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import TumblingWindows
from workers.errors import ConfigError
from workers.testing import TestDriver

S = 10**9
MS = 10**6
SPEC = LaneSpec(window=TumblingWindows(size_ns=5 * S, fill_gaps_ns=20 * S), lag_ns=2 * S, idle_after_ns=S)
LATE = replace(SPEC, lateness_ns=30 * S)


def play(spec: LaneSpec, timeline: str) -> list[str]:
    """The frames but the provisional ones for ``"A0 A7 B1.5"``, each tick's price being its time: ``A [0, 5) 0 x1 rev 0
    closed watermark``, with the close and, where filled, ``filled`` instead of the count."""
    driver = TestDriver(spec)
    for word in timeline.split():
        driver.send(word[0], round(float(word[1:]) * 1000), price=float(word[1:]), size=1)
    driver.commit()
    return [brief(frame) for frame in driver.frames() if frame["status"] != "provisional"]


def brief(frame: Mapping[str, object]) -> str:
    start, end = (f"{int(str(frame[name])) / 1000:g}" for name in ("start", "end"))
    content = "filled" if frame.get("filled") else f"x{frame['count']}"
    assert (frame["count"] == 0) == (content == "filled")
    return f"{frame['key']} [{start}, {end}) {frame['close']:g} {content} rev {frame['rev']} {frame['trigger']}"


class TestFilling:
    def test_windows_between_two_bars_are_filled_with_the_close_before(self) -> None:
        assert play(SPEC, "A1 A2 A16 A22") == [
            "A [0, 5) 2 x2 rev 0 watermark",
            "A [5, 10) 2 filled rev 0 watermark",
            "A [10, 15) 2 filled rev 0 watermark",
            "A [15, 20) 16 x1 rev 0 watermark",
        ]

    def test_a_filled_bar_has_the_close_for_all_prices_and_no_volume_vwap_or_times(self) -> None:
        driver = TestDriver(SPEC)
        for ts in (1, 11, 17):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        filled = driver.frames()[1]
        assert list(filled.items())[6:] == [
            *(("open", 1.0), ("high", 1.0), ("low", 1.0), ("close", 1.0), ("volume", 0.0), ("vwap", None)),
            *(("count", 0), ("first_ts", None), ("last_ts", None), ("filled", True)),
        ]
        assert "filled" not in driver.frames()[0]

    def test_a_gap_as_long_as_is_filled_is_filled_and_a_longer_one_stays(self) -> None:
        assert play(SPEC, "A1 A25 A32") == [
            "A [0, 5) 1 x1 rev 0 watermark",
            *(f"A [{start}, {start + 5}) 1 filled rev 0 watermark" for start in (5, 10, 15, 20)),
            "A [25, 30) 25 x1 rev 0 watermark",
        ]
        assert play(SPEC, "A1 A30 A37") == ["A [0, 5) 1 x1 rev 0 watermark", "A [30, 35) 30 x1 rev 0 watermark"]

    def test_filled_bars_close_when_the_watermark_reaches_their_ends(self) -> None:
        assert play(SPEC, "A1 A16 A16.999") == [
            "A [0, 5) 1 x1 rev 0 watermark",
            "A [5, 10) 1 filled rev 0 watermark",
        ]
        assert play(SPEC, "A1 A16 A17")[2:] == ["A [10, 15) 1 filled rev 0 watermark"]

    def test_what_comes_before_the_first_bar_of_a_key_is_no_gap(self) -> None:
        assert play(LATE, "A20 A2 A32")[:2] == ["A [0, 5) 2 x1 rev 0 late", "A [20, 25) 20 x1 rev 0 watermark"]

    def test_a_forgotten_key_begins_anew(self) -> None:
        spec = replace(SPEC, key_ttl_ns=9 * S)
        assert play(spec, "A1 B20 A21 A28 B28") == [
            "A [0, 5) 1 x1 rev 0 expiry",
            "A [20, 25) 21 x1 rev 0 watermark",
            "B [20, 25) 20 x1 rev 0 watermark",
        ]

    def test_zoned_windows_are_filled_over_a_change_of_clocks(self) -> None:
        hour_ms = 3_600_000
        spec = replace(
            SPEC, window=replace(SPEC.window, size_ns=3_600 * S, fill_gaps_ns=86_400 * S, time_zone="America/New_York")
        )
        driver = TestDriver(spec)
        before = 1_710_046_800_000  # 2024-03-10 00:00 in New York; at 02:00 clocks went to 03:00
        for ts in (before, before + 4 * hour_ms, before + 6 * hour_ms + 2_000):
            driver.send("A", ts, price=1, size=1)
        driver.commit()
        shown = [((int(str(frame["start"])) - before) // hour_ms, "filled" in frame) for frame in driver.frames()]
        assert shown == [(0, False), (1, True), (2, True), (3, True), (4, False), (5, True)]


class TestRevisions:
    def test_a_late_tick_makes_a_filled_bar_a_bar_and_later_ones_follow_it(self) -> None:
        assert play(LATE, "A1 A21 A12 A24")[:1] == ["A [0, 5) 1 x1 rev 0 watermark"]
        assert play(LATE, "A1 A21 A12")[1:] == [
            "A [5, 10) 1 filled rev 0 watermark",
            "A [10, 15) 1 filled rev 0 watermark",
            "A [10, 15) 12 x1 rev 1 late",
        ]
        assert play(LATE, "A1 A23 A7 A22")[1:] == [
            "A [5, 10) 1 filled rev 0 watermark",
            "A [10, 15) 1 filled rev 0 watermark",
            "A [15, 20) 1 filled rev 0 watermark",
            "A [5, 10) 7 x1 rev 1 late",
            "A [10, 15) 7 filled rev 1 late",
            "A [15, 20) 7 filled rev 1 late",
        ]

    def test_a_late_tick_that_changes_a_close_changes_the_filled_bars_up_to_the_next_bar(self) -> None:
        assert play(LATE, "A1 A11 A22 A4")[4:] == [
            "A [0, 5) 4 x2 rev 1 late",
            "A [5, 10) 4 filled rev 1 late",
        ]

    def test_a_late_tick_that_leaves_the_close_leaves_the_filled_bars(self) -> None:
        assert play(LATE, "A4 A11 A17 A1")[3:] == ["A [0, 5) 4 x2 rev 1 late"]

    def test_a_filled_bar_that_is_open_still_shows_the_changed_close_when_it_closes(self) -> None:
        assert play(LATE, "A1 A11 A4 A30")[:3] == [
            "A [0, 5) 1 x1 rev 0 watermark",
            "A [0, 5) 4 x2 rev 1 late",
            "A [5, 10) 4 filled rev 0 watermark",
        ]

    def test_a_filled_bar_outlives_the_window_whose_close_it_shows(self) -> None:
        driver = TestDriver(replace(SPEC, lateness_ns=5 * S))
        driver.send("A", 1_000, price=1, size=1)
        driver.send("A", 16_000, price=16, size=1)  # the watermark is 14: [0, 5) is gone, [10, 15) open
        driver.rebalance()
        driver.send("A", 17_000, price=17, size=1)
        driver.commit()
        assert [brief(frame) for frame in driver.frames() if frame["status"] != "provisional"] == [
            "A [0, 5) 1 x1 rev 0 watermark",
            "A [5, 10) 1 filled rev 0 watermark",
            "A [10, 15) 1 filled rev 0 watermark",
        ]

    def test_a_filled_bar_that_was_restored_takes_a_tick_like_any_other(self) -> None:
        driver = TestDriver(LATE)
        for ts in (1, 16):
            driver.send("A", ts * 1000, price=ts, size=1)
        driver.commit()
        driver.rebalance()
        driver.send("A", 7_000, price=7, size=2)
        driver.commit()
        bar = driver.frames()[-1]
        assert brief(bar) == "A [5, 10) 7 x1 rev 1 late"
        assert [bar[name] for name in ("open", "high", "low", "volume", "vwap", "first_ts")] == [7, 7, 7, 2, 7, 7_000]
        driver.send("A", 17_000, price=17, size=1)
        driver.commit()
        assert brief(driver.frames()[-1]) == "A [10, 15) 7 filled rev 0 watermark"

    def test_a_close_of_minus_zero_is_another_one_than_zero(self) -> None:
        driver = TestDriver(LATE)
        for ts, price in ((1_000, 0.0), (11_000, 1.0), (2_000, -0.0)):
            driver.send("A", ts, price=price, size=1)
        driver.send("A", 13_000, price=1, size=1)
        driver.commit()
        shown = [(frame["start"], str(frame["close"])) for frame in driver.frames() if frame["status"] != "provisional"]
        assert shown == [(0, "0.0"), (0, "-0.0"), (5_000, "-0.0")]
        driver.send("A", 3_000, price=0.0, size=1)
        driver.commit()
        assert [(frame["start"], str(frame["close"])) for frame in driver.frames()[-2:]] == [(0, "0.0"), (5_000, "0.0")]

    def test_with_emit_final_each_bar_comes_once(self) -> None:
        frames = play(replace(LATE, emit="final"), "A1 A11 A22 A7 A4 A80")
        assert frames == [
            "A [0, 5) 4 x2 rev 0 watermark",
            "A [5, 10) 7 x1 rev 0 watermark",
            "A [10, 15) 11 x1 rev 0 watermark",
            "A [15, 20) 11 filled rev 0 watermark",
            "A [20, 25) 22 x1 rev 0 watermark",
        ]

    def test_filled_bars_are_shown_provisionally_like_others(self) -> None:
        driver = TestDriver(SPEC)
        driver.send("A", 1_000, price=1, size=1)
        driver.send("A", 11_000, price=11, size=1)
        driver.advance("8s")
        shown = [(frame["start"], frame["status"], frame.get("filled", False)) for frame in driver.frames()]
        assert shown == [(0, "final", False), (5_000, "provisional", True), (10_000, "provisional", False)]


class TestOneClockForAPartition:
    SPEC = replace(SPEC, scope="partition")

    def test_a_gap_is_filled_though_the_partition_is_past_it(self) -> None:
        # B takes the watermark to 28; A's next tick is accepted with 5 s of lateness, and fills what is over already.
        spec = replace(self.SPEC, lateness_ns=5 * S)
        assert [each for each in play(spec, "A1 B30 A24") if each[0] == "A"] == [
            "A [0, 5) 1 x1 rev 0 watermark",
            *(f"A [{start}, {start + 5}) 1 filled rev 0 watermark" for start in (5, 10, 15)),
            "A [20, 25) 24 x1 rev 0 late",
        ]

    def test_a_key_is_remembered_until_no_tick_could_begin_a_gap_to_fill(self) -> None:
        assert "A [20, 25) 1 filled rev 0 watermark" in play(self.SPEC, "A1 B26 A25 B40")
        driver = TestDriver(self.SPEC)
        engine = driver._partitions[0].lane._engine
        driver.send("A", 1_000, price=1, size=1)
        driver.send("B", 31_999, price=1, size=1)
        assert engine.has_key("A")
        driver.send("B", 32_000, price=1, size=1)  # the watermark is 30: ticks in time are in [30, 35) or later
        assert not engine.has_key("A")


class TestLimits:
    def test_only_bars_can_be_filled(self) -> None:
        for payload in ("items", "both"):
            with pytest.raises(ConfigError, match="fill_gaps needs payload and aggregation"):
                TestDriver(replace(SPEC, payload=payload))


# ---------------------------------------------------------------------------------------------------------------------
# Any log


@st.composite
def busy_cases(draw: st.DrawFn) -> tuple[Case, int]:
    """Gaps of many lengths, and much disorder within the allowed lateness; with it, how long a gap may be."""
    size, lag, lateness = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 40))
    config = replace(
        draw(configs(generous_ttl=draw(st.booleans()))),
        size_ns=size * MS,
        lag_ns=lag * MS,
        allowed_lateness_ns=lateness * MS,
        partitions=None,
        payload="ohlcv",
        unit="us",
        fields=("symbol", "ts", "price", "size"),
        emit=draw(st.sampled_from(("eager", "eager", "eager", "final"))),
    )
    step = st.tuples(
        st.sampled_from("AAAB"),
        st.one_of(st.integers(0, 2), st.integers(0, 8 * size), st.integers(-lag - lateness, 0)),
        st.integers(0, 4),
    )
    records, front = [], draw(st.sampled_from((0, 1_700_000_000_000)))
    for offset, (symbol, ahead, number) in enumerate(draw(st.lists(step, min_size=5, max_size=50))):
        ts_us = (front + ahead) * 1_000
        front = max(front, front + ahead)
        price, volume = ("1.1", "-0.0", "0.0", "7", "3.3")[number], ("0.1", "0.7", "3.3", "1e22", "2")[-number]
        value = f'{{"symbol":"{symbol}","ts":{ts_us},"price":{price},"size":{volume}}}'
        records.append(Record(offset, -1, symbol.encode(), value.encode()))
    return Case(config, draw(ended(records))), draw(st.integers(1, 10)) * size * MS + draw(
        st.integers(0, size * MS - 1)
    )


@st.composite
def any_cases(draw: st.DrawFn) -> tuple[Case, int]:
    """Logs with everything in them, malformed records too."""
    config = replace(draw(configs(all_late=False)), partitions=None, payload="ohlcv")
    case = Case(config, draw(streams(config, max_size=80)))
    return case, draw(st.integers(1, 8)) * config.size_ns


cases = busy_cases() | any_cases()


def lane_of(case: Case, fill_ns: int, *, emit_partial: bool = False) -> Lane:
    spec = spec_of(case.config, emit_partial=emit_partial)
    spec = replace(spec, window=replace(spec.window, fill_gaps_ns=fill_ns))
    return Lane(spec, Input(TOPIC, 0, 1))


@given(cases)
def test_filled_bars_are_those_of_the_oracle(drawn: tuple[Case, int]) -> None:
    case, fill_ns = drawn
    expected = run_gaps(case.config, fill_ns, case.records)
    lane = lane_of(case, fill_ns)
    effects = lane.process(kafka_records(case.records))
    assert real_frames(effects.frames) == expected.wire()
    assert late_entries(effects.late) == [
        (late.offset, late.key, late.reason, late.watermark_ns, late.late_by_ns) for late in expected.late
    ]
    assert (lane.counts.aggregated, lane.counts.late) == (expected.aggregated, len(expected.late))
    assert lane.counts.balance() == 0


@given(cases, st.data())
def test_batches_crashes_clocks_and_flushes_change_no_bar(drawn: tuple[Case, int], data: st.DataObject) -> None:
    case, fill_ns = drawn
    lane = lane_of(case, fill_ns, emit_partial=data.draw(st.booleans(), "emit_partial"))
    records = kafka_records(case.records)
    _, found = run_through(lane, lambda: lane_of(case, fill_ns), records, 10 * case.config.size_ns, data)
    assert real_frames(found.frames) == run_gaps(case.config, fill_ns, case.records).wire()
