"""Lanes with windows that are not plain tumbling ones: the oracle's frames, whatever the batches, restores and gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.strategies import streams
from tests.unit.core.test_lane import kafka_records, lane_configs, late_entries, real_frames, run_through, spec_of
from workers import CalendarWindowSpec, HoppingWindowSpec, TumblingWindowSpec, window_event_time
from workers.apps.inspect.witness import Investigation
from workers.core.lane import Input, Lane, entries_of
from workers.core.spec import LaneSpec
from workers.core.windows.assign import Assigner, ExchangeSessions
from workers.core.windows.kinds import KINDS as OF_SETTINGS
from workers.core.windows.kinds import CalendarWindows, HoppingWindows, SessionWindows, TumblingWindows, Windows
from workers.errors import StateMismatchError
from workers.native.choose import make_lane, supports
from workers.settings import WindowSettings
from workers.streams.specs import WindowSpec
from workers.testing import TestDriver

S, MS = 10**9, 10**6
HOUR, DAY = 3_600 * S, 86_400 * S

Spans = Callable[[int], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Recurring:
    """Sessions of ``open_ns`` every ``period_ns``: a calendar small enough for drawn times to meet its edges."""

    period_ns: int
    open_ns: int

    @property
    def longest_ns(self) -> int:
        return self.open_ns

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns = ts_ns - ts_ns % self.period_ns
        return [(start_ns, start_ns + self.open_ns)] if ts_ns < start_ns + self.open_ns else []


@dataclass(frozen=True)
class RecurringWindows(Windows):
    """Such sessions, as a kind of windows."""

    kind = "calendar"
    period_ns: int
    open_ns: int

    def assigner(self) -> Assigner:
        return Recurring(self.period_ns, self.open_ns)

    @property
    def length(self) -> str:
        return "longest session"


@dataclass(frozen=True)
class Kind:
    """A log, the oracle's configuration for it, and the lane's."""

    config: oracle.Config
    spec: LaneSpec
    records: list[oracle.Record]

    def lane(self) -> Lane:
        return Lane(self.spec, Input("ticks", 0, self.config.partitions or 1))


def with_offset(size_ns: int, offset_ns: int) -> Spans:
    def spans(ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns = ts_ns - (ts_ns - offset_ns) % size_ns
        return [(start_ns, start_ns + size_ns)]

    return spans


def hopping(size_ns: int, hop_ns: int, offset_ns: int) -> Spans:
    def spans(ts_ns: int) -> Sequence[tuple[int, int]]:
        found, start_ns = [], ts_ns - (ts_ns - offset_ns) % hop_ns
        while start_ns + size_ns > ts_ns:
            found.append((start_ns, start_ns + size_ns))
            start_ns -= hop_ns
        return found[::-1]

    return spans


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    config = draw(lane_configs)
    step_ns = 1 if config.size_ns % MS else MS
    spec = spec_of(config, emit_partial=draw(st.booleans()))
    match draw(st.sampled_from(["offset", "hopping", "sessions"])):
        case "offset":
            offset_ns = draw(st.integers(0, config.size_ns // step_ns - 1)) * step_ns
            config = replace(config, windows_of=with_offset(config.size_ns, offset_ns))
            spec = replace(spec, window=replace(spec.window, offset_ns=offset_ns))
        case "hopping":
            hop_ns = draw(st.integers(1, config.size_ns // step_ns)) * step_ns
            offset_ns = draw(st.integers(0, hop_ns // step_ns - 1)) * step_ns
            config = replace(config, windows_of=hopping(config.size_ns, hop_ns, offset_ns))
            spec = replace(spec, window=HoppingWindows(size_ns=spec.window.size_ns, hop_ns=hop_ns, offset_ns=offset_ns))
        case _:
            period_ns = config.size_ns + draw(st.integers(1, 12)) * step_ns
            config = replace(config, windows_of=Recurring(period_ns, config.size_ns).assign)
            spec = replace(spec, window=RecurringWindows(period_ns, config.size_ns))
    return Kind(config, spec, draw(streams(config)))


@given(kinds())
def test_a_lane_gives_what_the_oracle_gives(case: Kind) -> None:
    expected = oracle.run(case.config, case.records)
    lane = case.lane()
    effects = lane.process(kafka_records(case.records))
    assert real_frames(effects.frames) == expected.wire()
    assert late_entries(effects.late) == [
        (late.offset, late.key, late.reason, late.watermark_ns, late.late_by_ns) for late in expected.late
    ]
    for record, late in zip(effects.late, expected.late, strict=True):
        entry = orjson.loads(record.value or b"")
        ends = (late.window_start_ns, late.window_end_ns)
        assert (entry["start"], entry["end"]) == tuple(None if each is None else each // MS for each in ends)
    assert (lane.counts.aggregated, lane.counts.late) == (expected.aggregated, len(expected.late))
    assert lane.counts.balance() == 0


@given(kinds(), st.data())
def test_batches_crashes_clocks_and_flushes_change_no_frame(case: Kind, data: st.DataObject) -> None:
    records = kafka_records(case.records)
    _, found = run_through(case.lane(), case.lane, records, 10 * case.config.size_ns, data)
    assert real_frames(found.frames) == oracle.run(case.config, case.records).wire()


# -- what is stored, and which lane -----------------------------------------------------------------------------------

KINDS = {
    "tumbling with an offset": LaneSpec(window=TumblingWindows(offset_ns=S)),
    "tumbling in a zone": LaneSpec(window=TumblingWindows(size_ns=HOUR, time_zone="America/New_York")),
    "hopping": LaneSpec(window=HoppingWindows(size_ns=5 * S, hop_ns=S)),
    "session": LaneSpec(window=SessionWindows(S)),
    "calendar": LaneSpec(window=CalendarWindows("XNYS")),
    "filled gaps": LaneSpec(window=TumblingWindows(fill_gaps_ns=60 * S)),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_is_native(name: str) -> None:
    assert supports(KINDS[name])
    assert type(make_lane(KINDS[name], Input("ticks", 0, 1))) is not Lane


@pytest.mark.parametrize("name", KINDS)
def test_state_of_other_windows_is_refused(name: str) -> None:
    plain = Lane(LaneSpec(), Input("ticks", 0, 1))
    stored = entries_of(plain.take_changes())
    with pytest.raises(StateMismatchError, match=r"window\.(kind|size|offset|time_zone|fill_gaps)"):
        Lane(KINDS[name], Input("ticks", 0, 1)).restore(stored, where="test")


def test_the_settings_stored_with_plain_windows_are_what_they_always_were() -> None:
    assert set(LaneSpec().fingerprint(1, None)) == {
        "tick.timestamp_unit",
        "window.size_ns",
        "window.lag_ns",
        "window.allowed_lateness_ns",
        "window.key_ttl_ns",
        "window.emit",
        "window.payload",
        "window.watermark_scope",
        "window.aggregation",
        "input partitions",
    }


STORED = {
    "tumbling with an offset": {"window.size_ns": 5 * S, "window.offset_ns": S},
    "tumbling in a zone": {"window.size_ns": HOUR, "window.time_zone": "America/New_York"},
    "hopping": {"window.size_ns": 5 * S, "window.kind": "hopping", "window.hop_ns": S},
    "session": {"window.size_ns": 5 * S, "window.kind": "session", "window.gap_ns": S},
    "calendar": {"window.size_ns": 5 * S, "window.kind": "calendar", "window.calendar": "XNYS"},
    "filled gaps": {"window.size_ns": 5 * S, "window.fill_gaps_ns": 60 * S},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_settings_stored_with_a_kind_are_those_that_mean_something_for_it(name: str) -> None:
    stored = KINDS[name].fingerprint(1, None)
    assert orjson.dumps(stored) == orjson.dumps({**LaneSpec().fingerprint(1, None), **STORED[name]})


def test_every_kind_of_the_settings_is_a_type_that_they_can_make() -> None:
    assert set(OF_SETTINGS) == set(get_args(WindowSettings.model_fields["kind"].annotation))
    for name, kind in OF_SETTINGS.items():
        assert kind.kind == name
        assert set(kind.settings()) <= set(WindowSettings.model_fields)


# -- exchange sessions, end to end without a broker -------------------------------------------------------------------


def new_york(text: str) -> datetime:
    return datetime.fromisoformat(text + "-05:00")


def test_an_exchange_session_closes_by_the_trades_after_hours_which_are_late() -> None:
    driver = TestDriver(LaneSpec(window=CalendarWindows("XNYS", close_grace_ns=60 * S)))
    driver.send("AAPL", new_york("2024-01-05T09:29:59"), 9, 1)  # before the open; there is no clock yet
    driver.send("AAPL", new_york("2024-01-05T09:30:00"), 10, 1)
    driver.send("AAPL", new_york("2024-01-05T16:00:30"), 11, 1)  # closing auction, within the grace
    driver.send("AAPL", new_york("2024-01-05T16:00:59"), 12, 1)
    driver.send("AAPL", new_york("2024-01-05T16:01:01"), 13, 1)
    driver.commit()
    assert driver.frames(provisional=False) == []
    driver.send("AAPL", new_york("2024-01-05T16:01:02"), 14, 1)
    driver.commit()
    (bar,) = driver.frames(provisional=False)
    assert (bar["open"], bar["close"], bar["count"], bar["rev"], bar["status"]) == (10, 12, 3, 0, "final")
    assert bar["start"] == int(new_york("2024-01-05T09:30").timestamp() * 1000)
    assert bar["end"] == int(new_york("2024-01-05T16:01").timestamp() * 1000)
    assert [late["reason"] for late in driver.late()] == ["outside_session"] * 3
    assert [(late["start"], late["end"], late["late_by_ns"]) for late in driver.late()] == [(None, None, 0)] * 3
    assert (driver.counts().late, driver.counts().aggregated, driver.counts().balance()) == (3, 3, 0)


def test_a_clock_that_was_moved_outside_of_sessions_survives_a_crash() -> None:
    def run(*, crash: bool) -> list[dict[str, object]]:
        driver = TestDriver(LaneSpec(window=CalendarWindows("XNYS"), lateness_ns=HOUR))
        driver.send("AAPL", new_york("2024-01-05T10:00"), 10, 1)
        driver.send("AAPL", new_york("2024-01-05T16:30"), 11, 1)
        driver.commit()
        if crash:
            driver.crash()
        driver.send("AAPL", new_york("2024-01-05T15:59:59"), 12, 1)  # within the allowed lateness
        driver.send("AAPL", new_york("2024-01-05T17:00:02"), 11, 1)
        driver.send("AAPL", new_york("2024-01-05T15:59:59.5"), 13, 1)  # not any more
        driver.commit()
        assert [late["reason"] for late in driver.late()] == ["outside_session", "outside_session", "watermark"]
        return driver.frames()

    assert run(crash=True) == run(crash=False)
    assert [(frame["rev"], frame["count"], frame["status"]) for frame in run(crash=True)][-1] == (1, 2, "closed")


def test_a_full_session_holds_the_evening_the_weekend_and_the_next_day() -> None:
    driver = TestDriver(LaneSpec(window=CalendarWindows("XNYS", session="full"), key_ttl_ns=8 * DAY))
    for text in (
        "2024-01-05T15:59:59",
        "2024-01-05T16:00",
        "2024-01-06T12:00",
        "2024-01-08T15:59",
        "2024-01-08T16:00:02",
    ):
        driver.send("AAPL", new_york(text), 10, 1)
    driver.commit()
    friday, weekend = driver.frames(provisional=False)
    assert (friday["count"], weekend["count"], weekend["status"]) == (1, 3, "final")
    assert weekend["start"] == friday["end"] == int(new_york("2024-01-05T16:00").timestamp() * 1000)
    assert driver.late() == []


def test_ticks_beyond_what_a_calendar_knows_are_outside_of_sessions() -> None:
    first_ns, last_ns = ExchangeSessions("XNYS").known_ns
    driver = TestDriver(LaneSpec(window=CalendarWindows("XNYS")))
    for ts_ns in (first_ns - MS, last_ns):
        driver.send("AAPL", datetime.fromtimestamp(ts_ns // S, UTC), 10, 1)
    driver.commit()
    assert [late["reason"] for late in driver.late()] == ["outside_session"] * 2
    assert driver.frames() == []


# -- what became of the ticks -----------------------------------------------------------------------------------------


def investigate(spec: LaneSpec, first_ns: int, last_ns: int, ticks: Sequence[tuple[float, int]]) -> Investigation:
    """``ticks``: (seconds, price); all of one symbol."""
    driver = TestDriver(spec)
    for seconds, price in ticks:
        driver.send("AAPL", datetime.fromtimestamp(seconds, UTC), price, 1)
    found = Investigation(spec, Input("ticks", 0, 1), "AAPL", first_ns, last_ns)
    found.take(driver.log(0))
    return found


def test_an_investigation_shows_a_tick_in_every_hopping_window() -> None:
    spec = LaneSpec(window=HoppingWindows(size_ns=10 * S, hop_ns=5 * S))
    found = investigate(spec, 7 * S, 7 * S, [(3, 1), (7, 2), (11, 3), (40, 4), (8, 5)])
    assert sorted(found.windows) == [0, 5 * S]
    assert [(tick.offset, tick.fate) for tick in found.windows[0].ticks] == [(0, "joined"), (1, "joined"), (4, "late")]
    assert [(tick.offset, tick.fate) for tick in found.windows[5 * S].ticks] == [
        (1, "joined"),
        (2, "joined"),
        (4, "late"),
    ]
    assert [frame.offset for frame in found.windows[0].frames] == [3]


def test_an_investigation_follows_sessions_as_they_become_one() -> None:
    spec = LaneSpec(window=SessionWindows(10 * S), lag_ns=30 * S)
    found = investigate(spec, 15 * S, 15 * S, [(0, 1), (18, 2), (9, 3), (75, 4), (150, 1), (12, 1)])
    (story,) = found.touching()
    assert (story.start_ns, story.end_ns) == (0, 28 * S)
    assert [(tick.offset, tick.fate) for tick in story.ticks] == [
        (0, "joined"),
        (1, "joined"),
        (2, "joined"),
        (5, "late"),
    ]
    assert [orjson.loads(frame.value)["count"] for frame in story.frames] == [3]


def test_an_investigation_tells_of_ticks_outside_of_sessions() -> None:
    spec = LaneSpec(window=CalendarWindows("XNYS"))
    opens, closes = (new_york(f"2024-01-05T{text}").timestamp() for text in ("09:30", "16:00"))
    found = investigate(spec, int(closes) * S, int(closes + 60) * S, [(opens, 1), (closes + 1, 2), (closes + 5, 3)])
    assert found.windows == {}
    assert [(tick.offset, tick.reason) for tick in found.strays] == [(1, "outside_session"), (2, "outside_session")]
    assert found.clock is not None
    assert found.clock.offset == 2
    whole = investigate(spec, int(opens) * S, int(opens) * S, [(opens, 1), (closes + 1, 2), (closes + 5, 3)])
    (story,) = whole.touching()
    assert [frame.offset for frame in story.frames] == [2]


def test_an_investigation_knows_that_a_symbol_without_windows_moves_the_partitions_clock() -> None:
    spec = LaneSpec(window=CalendarWindows("XNYS"), scope="partition")
    opens, closes = (new_york(f"2024-01-05T{text}").timestamp() for text in ("09:30", "16:00"))
    found = investigate(spec, int(opens) * S, int(opens) * S, [(closes + 1, 1), (opens, 2)])
    (story,) = found.touching()
    (late,) = story.ticks
    assert (late.offset, late.reason) == (1, "watermark")
    assert late.clock is not None
    assert late.clock.offset == 0


# -- the library ------------------------------------------------------------------------------------------------------


async def frames_of(
    spec: WindowSpec, times: Sequence[datetime], late: list[str]
) -> list[tuple[datetime, datetime, int]]:
    async def source() -> AsyncIterator[datetime]:
        for time in times:
            yield time

    stream = window_event_time(
        source(), spec, get_event_time=lambda time: time, on_late=lambda _, lateness: late.append(lateness.reason)
    )
    return [(frame.start, frame.end, len(frame.items)) async for frame in stream]


async def test_the_library_makes_hopping_windows() -> None:
    t0 = datetime(2024, 1, 5, tzinfo=UTC)
    spec = HoppingWindowSpec(timedelta(seconds=10), timedelta(seconds=5))
    found = await frames_of(spec, [t0 + timedelta(seconds=each) for each in (1, 7, 30)], [])
    assert [(start.second, end - start, count) for start, end, count in found] == [
        (55, timedelta(seconds=10), 1),
        (0, timedelta(seconds=10), 2),
        (5, timedelta(seconds=10), 1),
        (25, timedelta(seconds=10), 1),
        (30, timedelta(seconds=10), 1),
    ]


async def test_the_library_makes_days_of_a_time_zone() -> None:
    spec = TumblingWindowSpec(timedelta(days=1), time_zone="America/New_York")
    times = [datetime.fromisoformat(text) for text in ("2024-03-10T00:00-05:00", "2024-03-10T23:59-04:00")]
    ((start, end, count),) = await frames_of(spec, times, [])
    assert (end - start, count) == (timedelta(hours=23), 2)


async def test_the_library_makes_exchange_sessions_and_tells_what_is_outside() -> None:
    late: list[str] = []
    times = [new_york(f"2024-01-05T{text}") for text in ("09:00", "09:30", "15:59:59", "16:00:02", "16:00:03")]
    ((start, end, count),) = await frames_of(CalendarWindowSpec("XNYS"), times, late)
    assert (end - start, count) == (timedelta(hours=6, minutes=30), 2)
    assert late == ["outside_session"] * 3
