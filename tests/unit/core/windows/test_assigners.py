"""Which windows a time belongs to, against oracles apart from the code: a wall clock that is looked at all the time."""

from __future__ import annotations

import struct
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers import CalendarWindowSpec, HoppingWindowSpec, SessionWindowSpec, TumblingWindowSpec
from workers.core.spec import LaneSpec
from workers.core.windows.assign import (
    Assigner,
    ExchangeSessions,
    Hopping,
    Sessions,
    Tumbling,
    ZonedTumbling,
    make_tumbling,
)
from workers.core.windows.kinds import CalendarWindows
from workers.errors import ConfigError
from workers.times import MAX_EVENT_TIME_NS, NS_PER_SECOND, datetime_to_ns

S = NS_PER_SECOND
MINUTE, HOUR, DAY = 60 * S, 3_600 * S, 86_400 * S

times = st.integers(-MAX_EVENT_TIME_NS, MAX_EVENT_TIME_NS)


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """The nanoseconds of a wall clock's time in a zone."""
    return datetime_to_ns(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC))


def span(assigner: Assigner, ts_ns: int) -> tuple[int, int]:
    """The one window of a time."""
    (window,) = assigner.assign(ts_ns)
    return window


# -- tumbling and hopping ---------------------------------------------------------------------------------------------

sizes = st.one_of(st.integers(1, 50), st.integers(1, 400 * DAY))


@given(sizes, st.data(), times)
def test_a_tumbling_window_is_the_one_that_contains_the_time(size_ns: int, data: st.DataObject, ts_ns: int) -> None:
    offset_ns = data.draw(st.integers(0, size_ns - 1))
    start_ns, end_ns = span(Tumbling(size_ns, offset_ns), ts_ns)
    assert start_ns <= ts_ns < end_ns == start_ns + size_ns
    assert (start_ns - offset_ns) % size_ns == 0


@given(st.integers(1, 60), st.data(), st.integers(-500, 500))
def test_a_time_is_in_every_hopping_window_that_contains_it(size_ns: int, data: st.DataObject, ts_ns: int) -> None:
    hop_ns = data.draw(st.integers(1, size_ns))
    offset_ns = data.draw(st.integers(0, hop_ns - 1))
    all_starts = [start for start in range(-1_000, 1_000) if (start - offset_ns) % hop_ns == 0]
    expected = [(start, start + size_ns) for start in all_starts if start <= ts_ns < start + size_ns]
    assert list(Hopping(size_ns, hop_ns, offset_ns).assign(ts_ns)) == expected


@given(st.integers(1, 60), st.data(), st.integers(-300, 300), st.integers(0, 200))
def test_windows_between_two_times_are_those_of_each_time(
    size_ns: int, data: st.DataObject, first_ns: int, length_ns: int
) -> None:
    hop_ns = data.draw(st.integers(1, size_ns))
    for assigner in (Hopping(size_ns, hop_ns), Tumbling(size_ns, hop_ns - 1)):
        each = {window for ts_ns in range(first_ns, first_ns + length_ns + 1) for window in assigner.assign(ts_ns)}
        assert list(assigner.between(first_ns, first_ns + length_ns)) == sorted(each)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tumbling(0), "size is 0s"),
        (lambda: Tumbling(5, 5), "offset is 5ns; expected 0 or more, and less than the size"),
        (lambda: Hopping(5, 6), "hop is 6ns; expected more than 0 and at most the size"),
        (lambda: Hopping(5, 0), "hop is 0s"),
        (lambda: Hopping(5, 2, 2), "less than the hop"),
        (lambda: Hopping(2_001, 2), "more than 1,000 hops"),
        (lambda: Sessions(0), "gap is 0s"),
        (lambda: ZonedTumbling(7 * HOUR, "UTC"), "must divide a day, or be whole days"),
        (lambda: ZonedTumbling(36 * HOUR, "UTC"), "must divide a day, or be whole days"),
        (lambda: ZonedTumbling(HOUR, "America/New_Yrok"), "did you mean America/New_York"),
        (lambda: ZonedTumbling(HOUR, "../../etc/passwd"), "no time zone of that name"),
        (lambda: TumblingWindowSpec(timedelta(seconds=1), offset=timedelta(seconds=1)), "offset is 1s"),
        (lambda: HoppingWindowSpec(timedelta(seconds=1), timedelta(seconds=2)), "hop is 2s"),
        (lambda: SessionWindowSpec(timedelta(0)), "gap is 0s"),
        (lambda: CalendarWindowSpec("XNYS", close_grace=timedelta(seconds=-1)), "close_grace is -1s"),
    ],
)
def test_what_can_not_be_is_refused_with_what_was_expected(make: type[Assigner], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert said in str(caught.value)


# -- time zones -------------------------------------------------------------------------------------------------------

ZONES = {  # zone -> days around which its clocks were changed, and one on which nothing happens
    "America/New_York": (date(2024, 3, 10), date(2024, 11, 3), date(2024, 2, 29)),
    "Europe/London": (date(2024, 3, 31), date(2024, 10, 27), date(1968, 10, 27)),
    "Australia/Lord_Howe": (date(2024, 4, 7), date(2024, 10, 6), date(1981, 3, 1)),  # by half an hour
    "America/Havana": (date(2024, 3, 10), date(2024, 11, 3)),  # at midnight, both ways
    "Asia/Beirut": (date(2024, 3, 31), date(2024, 10, 27)),  # at midnight
    "Asia/Kathmandu": (date(1986, 1, 1), date(2024, 2, 29)),  # +5:30 to +5:45, once
    "Pacific/Apia": (date(2011, 12, 30), date(2011, 9, 24)),  # skipped a day
    "Pacific/Kwajalein": (date(1969, 10, 1), date(1993, 8, 21)),  # repeated most of a day, and skipped one
    "Africa/Monrovia": (date(1972, 1, 7),),  # by 44 minutes and a half
    "America/St_Johns": (date(2006, 10, 29), date(2007, 3, 11)),  # one minute past midnight
}
SIZES_S = (60, 900, 1_800, 3_600, 4 * 3_600, 12 * 3_600, 86_400, 7 * 86_400)


@cache
def zone_of(name: str) -> ZoneInfo:
    """The zone as the package has it: operating systems have other ideas of the time before 1970."""
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file)


def wall_s(zone: ZoneInfo, second: int) -> int:
    """What the wall clock shows, as seconds from 1970-01-01 00:00 on that clock."""
    shown = datetime.fromtimestamp(second, zone).replace(tzinfo=None)
    return int((shown - datetime(1970, 1, 1)).total_seconds())


def scanned_boundaries(
    zone: ZoneInfo, size_s: int, offset_s: int, first_s: int, last_s: int, step_s: int
) -> Iterator[int]:
    """The seconds in ``(first, last]`` at which a window starts, by looking at the clock on the wall at each step."""
    greatest = before = wall_s(zone, first_s)
    for second in range(first_s + step_s, last_s + 1, step_s):
        shown = wall_s(zone, second)
        if size_s % 86_400 == 0:  # whole days: only when the clock is at or past a boundary for the first time
            if (shown - offset_s) // size_s > (greatest - offset_s) // size_s:
                yield second
            greatest = max(greatest, shown)
        else:
            crossed = (shown - offset_s) // size_s > (before - offset_s) // size_s
            if crossed or (shown - offset_s) % size_s == 0:
                yield second
        before = shown


@cache
def expected_boundaries(name: str, day: date, size_s: int, offset_s: int) -> list[int]:
    middle_s = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp())
    reach_s = 3 * 86_400 + size_s * (size_s > 86_400)
    step_s = 30 if name == "Africa/Monrovia" else 60  # all offsets and changes here are whole multiples of it
    begin_s = (middle_s - reach_s) // 60 * 60
    return list(scanned_boundaries(zone_of(name), size_s, offset_s, begin_s, middle_s + reach_s, step_s))


@pytest.mark.parametrize("name", ZONES)
@pytest.mark.parametrize("size_s", SIZES_S)
def test_windows_start_whenever_the_wall_clock_shows_a_boundary(name: str, size_s: int) -> None:
    for day in ZONES[name]:
        for offset_s in {0, size_s // 4 // 60 * 60}:
            expected = expected_boundaries(name, day, size_s, offset_s)
            assigner = ZonedTumbling(size_s * S, name, offset_s * S)
            for number, (start_s, end_s) in enumerate(pairwise(expected)):
                window = (start_s * S, end_s * S)
                for ts_ns in (window[0], window[0] + 1, (window[0] + window[1]) // 2, window[1] - 1):
                    assert span(assigner, ts_ns) == window
                    if number % 97 == 0:  # the same where nothing is remembered
                        assert span(ZonedTumbling(size_s * S, name, offset_s * S), ts_ns) == window
            assert len(expected) > 2 or size_s > 86_400


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ZONES)), st.sampled_from(SIZES_S), st.data())
def test_windows_of_a_zone_tile_the_line_at_any_time(name: str, size_s: int, data: st.DataObject) -> None:
    offset_ns = data.draw(st.integers(0, size_s * S - 1))
    assigner = ZonedTumbling(size_s * S, name, offset_ns)
    ts_ns = data.draw(times)
    for _ in range(30):
        start_ns, end_ns = span(assigner, ts_ns)
        assert start_ns <= ts_ns < end_ns
        assert end_ns - start_ns <= assigner.longest_ns
        assert span(assigner, start_ns) == span(assigner, end_ns - 1) == (start_ns, end_ns)
        assert span(assigner, start_ns - 1)[1] == start_ns
        ts_ns = end_ns


@given(times, st.sampled_from([s for s in SIZES_S if s <= 86_400]), st.data())
@example(-1, 86_400, None)
def test_in_utc_the_wall_clock_makes_plain_windows(ts_ns: int, size_s: int, data: st.DataObject | None) -> None:
    offset_ns = data.draw(st.integers(0, size_s * S - 1)) if data is not None else 0
    assert span(make_tumbling(size_s * S, offset_ns, "UTC"), ts_ns) == span(make_tumbling(size_s * S, offset_ns), ts_ns)


def test_a_day_in_new_york_has_23_24_or_25_hours() -> None:
    day = ZonedTumbling(DAY, "America/New_York")
    lengths = {
        text: (span(day, at(f"{text}T12:00", "America/New_York")))
        for text in ("2024-03-10", "2024-06-01", "2024-11-03")
    }
    assert [(end - start) // HOUR for start, end in lengths.values()] == [23, 24, 25]
    assert lengths["2024-03-10"][0] == at("2024-03-10T05:00")  # midnight in New York, in UTC


def test_the_hour_that_is_repeated_is_two_windows_and_the_skipped_one_is_none() -> None:
    hour = ZonedTumbling(HOUR, "America/New_York")
    assert span(hour, at("2024-11-03T05:30")) == (at("2024-11-03T05:00"), at("2024-11-03T06:00"))  # 01:30, summer time
    assert span(hour, at("2024-11-03T06:30")) == (at("2024-11-03T06:00"), at("2024-11-03T07:00"))  # 01:30 again
    assert span(hour, at("2024-03-10T06:59")) == (at("2024-03-10T06:00"), at("2024-03-10T07:00"))  # 01:59
    assert span(hour, at("2024-03-10T07:00")) == (at("2024-03-10T07:00"), at("2024-03-10T08:00"))  # 03:00


def test_midnight_that_is_skipped_or_repeated_starts_a_day_once() -> None:
    day = ZonedTumbling(DAY, "America/Havana")
    assert span(day, at("2024-03-10T12:00")) == (at("2024-03-10T05:00"), at("2024-03-11T04:00"))  # 01:00 comes at once
    assert span(day, at("2024-11-03T12:00")) == (at("2024-11-03T04:00"), at("2024-11-04T05:00"))  # the first midnight
    half_hours = ZonedTumbling(HOUR // 2, "America/Havana")
    assert span(half_hours, at("2024-11-03T05:10"))[0] == at("2024-11-03T05:00")  # the second midnight


def test_a_day_that_was_never_shown_is_no_window() -> None:
    day = ZonedTumbling(DAY, "Pacific/Apia")
    last = span(day, at("2011-12-29T12:00", "Pacific/Apia"))
    after = span(day, at("2011-12-31T12:00", "Pacific/Apia"))
    assert last[1] == after[0]  # the 30th was skipped
    assert after[1] - after[0] == last[1] - last[0] == DAY


def test_several_days_are_counted_from_1970_on_the_wall_clock() -> None:
    week = ZonedTumbling(7 * DAY, "America/New_York", 4 * DAY)  # 1970-01-01 was a Thursday; four days on is a Monday
    start_ns, end_ns = span(week, at("2024-03-06T12:00", "America/New_York"))
    assert start_ns == at("2024-03-04T00:00", "America/New_York")
    assert end_ns == at("2024-03-11T00:00", "America/New_York")
    assert end_ns - start_ns == 7 * DAY - HOUR


def offset_changes(name: str) -> list[int]:
    """When the offset of a zone changes, out of its TZif file, in seconds since 1970."""
    data = files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()

    def counts(at: int) -> tuple[int, ...]:
        return struct.unpack(">6l", data[at + 20 : at + 44])

    isut, isstd, leap, transitions, types, chars = counts(0)
    at = 44 + transitions * 5 + types * 6 + chars + leap * 8 + isstd + isut  # behind the block of 32-bit times
    _, _, _, transitions, types, _ = counts(at)
    at += 44
    moments = struct.unpack(f">{transitions}q", data[at : at + 8 * transitions])
    kinds = data[at + 8 * transitions : at + 9 * transitions]
    at += 9 * transitions
    offsets = [struct.unpack(">l", data[at + 6 * kind : at + 6 * kind + 4])[0] for kind in range(types)]
    assert all(abs(offset) < 86_400 for offset in offsets)
    before = [offsets[0], *(offsets[kind] for kind in kinds)]
    return [moment for moment, old, kind in zip(moments, before, kinds, strict=False) if offsets[kind] != old]


def test_no_zone_changed_its_clocks_twice_within_two_days() -> None:
    """What makes it right to look at a zone's offset only at the ends of a day."""
    names = (files("tzdata") / "zones").read_text(encoding="utf-8").split()
    changes = {name: offset_changes(name) for name in names}
    assert sum(map(len, changes.values())) > 10_000
    for name, moments in changes.items():
        assert all(later - one > 2 * 86_400 for one, later in pairwise(moments)), name


# -- exchange sessions ------------------------------------------------------------------------------------------------


def regular(calendar: str, grace_ns: int = 0) -> ExchangeSessions:
    return ExchangeSessions(calendar, "regular", grace_ns)


@pytest.mark.parametrize(
    ("calendar", "zone", "opens", "closes"),
    [
        ("XNYS", "America/New_York", "2024-03-08T09:30", "2024-03-08T16:00"),
        ("XNYS", "America/New_York", "2024-03-11T09:30", "2024-03-11T16:00"),  # daylight saving time began
        ("XNYS", "America/New_York", "2024-07-03T09:30", "2024-07-03T13:00"),  # early close
        ("XNYS", "America/New_York", "2024-11-29T09:30", "2024-11-29T13:00"),
        ("XLON", "Europe/London", "2024-03-28T08:00", "2024-03-28T16:30"),
        ("XLON", "Europe/London", "2024-04-02T08:00", "2024-04-02T16:30"),
        ("XLON", "Europe/London", "2024-12-24T08:00", "2024-12-24T12:30"),
        ("XTKS", "Asia/Tokyo", "2024-02-29T09:00", "2024-02-29T15:00"),  # with a lunch break
        ("XTKS", "Asia/Tokyo", "2024-11-05T09:00", "2024-11-05T15:30"),  # half an hour longer since then
    ],
)
def test_a_regular_session_is_half_open_from_open_to_close(calendar: str, zone: str, opens: str, closes: str) -> None:
    window = (at(opens, zone), at(closes, zone))
    assigner = regular(calendar)
    for ts_ns in (window[0], (window[0] + window[1]) // 2, window[1] - 1):
        assert list(assigner.assign(ts_ns)) == [window]
    assert list(assigner.assign(window[0] - 1)) == list(assigner.assign(window[1])) == []
    longer = regular(calendar, 10 * MINUTE)
    assert span(longer, window[1]) == span(longer, window[1] + 10 * MINUTE - 1) == (window[0], window[1] + 10 * MINUTE)
    assert list(longer.assign(window[1] + 10 * MINUTE)) == []


@pytest.mark.parametrize(
    ("calendar", "zone", "day"),
    [
        ("XNYS", "America/New_York", "2024-07-04"),
        ("XNYS", "America/New_York", "2024-03-29"),  # Good Friday
        ("XNYS", "America/New_York", "2001-09-12"),
        ("XLON", "Europe/London", "2024-05-06"),
        ("XTKS", "Asia/Tokyo", "2024-02-12"),
        ("XNYS", "America/New_York", "2024-03-09"),  # a Saturday
    ],
)
def test_a_day_without_trading_has_no_regular_session_and_belongs_to_the_next_full_one(
    calendar: str, zone: str, day: str
) -> None:
    noon_ns = at(f"{day}T12:00", zone)
    assert list(regular(calendar).assign(noon_ns)) == []
    start_ns, end_ns = span(ExchangeSessions(calendar, "full"), noon_ns)
    closes = regular(calendar)._ends
    follower = bisect_right(closes, noon_ns)
    assert (start_ns, end_ns) == (closes[follower - 1], closes[follower])


def test_a_lunch_break_belongs_to_its_session() -> None:
    assert span(regular("XTKS"), at("2024-02-29T12:00", "Asia/Tokyo"))[0] == at("2024-02-29T09:00", "Asia/Tokyo")


def test_full_sessions_tile_the_line_from_close_to_close() -> None:
    full = ExchangeSessions("XNYS", "full", 15 * MINUTE)
    friday = at("2024-03-08T16:15", "America/New_York")
    monday = at("2024-03-11T16:15", "America/New_York")
    assert span(full, friday) == span(full, monday - 1) == (friday, monday)
    spans = list(full.between(at("2023-01-01T00:00"), at("2024-12-31T00:00")))
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    assert len(spans) == 250 + 252  # as the exchange counted them


def test_a_grace_never_reaches_into_the_next_session() -> None:
    futures = regular("CMES", HOUR)  # one session ends as the next begins, or an hour before
    spans = list(futures.between(at("2024-01-01T00:00"), at("2024-12-31T00:00")))
    assert len(spans) > 250
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    around_the_clock = regular("24/7", HOUR)
    assert span(around_the_clock, at("2024-02-29T00:30")) == (at("2024-02-29T00:00"), at("2024-03-01T00:00"))


@given(st.integers(at("1990-01-01T00:00"), at("2030-01-01T00:00")), st.sampled_from(["XNYS", "XLON", "XTKS"]))
@settings(deadline=None)  # the first one makes the calendar
def test_sessions_are_those_of_the_calendar_at_any_time(ts_ns: int, calendar: str) -> None:
    import pandas as pd
    from exchange_calendars import get_calendar

    known = _known(calendar)
    moment = pd.Timestamp(ts_ns, tz="UTC")
    found = known.opens.index[(known.opens <= moment) & (moment < known.closes)]
    expected = [(known.opens[day].value, known.closes[day].value) for day in found]
    assert get_calendar is not None
    assert list(regular(calendar).assign(ts_ns)) == expected


@cache
def _known(calendar: str):  # type: ignore[no-untyped-def]  # its package has no types
    from exchange_calendars import get_calendar

    return get_calendar(calendar, start="1997-01-01" if calendar == "XTKS" else "1985-01-01", end="2035-12-31")


def test_beyond_what_a_calendar_knows_there_are_no_sessions_and_no_errors() -> None:
    for assigner in (regular("XNYS"), ExchangeSessions("XNYS", "full")):
        first_ns, end_ns = assigner.known_ns
        for ts_ns in (-MAX_EVENT_TIME_NS, 0, first_ns - 1, end_ns, MAX_EVENT_TIME_NS):
            assert list(assigner.assign(ts_ns)) == []
        assert span(assigner, first_ns)[0] == first_ns
        assert span(assigner, end_ns - 1)[1] == end_ns


def test_an_alias_names_the_same_calendar_and_an_unknown_name_is_refused_with_what_is_near() -> None:
    assert regular("NYSE").known_ns == regular("XNYS").known_ns
    with pytest.raises(ConfigError, match=r"'XNYZ'.*none of that name; did you mean"):
        regular("XNYZ")


def test_without_the_package_the_error_names_the_extra() -> None:
    program = (
        "import sys\n"
        "sys.modules['exchange_calendars'] = None\n"
        "from workers.core.windows.assign import ExchangeSessions\n"
        "from workers.errors import ConfigError\n"
        "try:\n"
        "    ExchangeSessions('XNYS')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "pip install 'tick-workers[calendars]'" in done.stdout


def test_nothing_is_imported_for_calendars_unless_one_is_used() -> None:
    program = (
        "import sys\n"
        "from workers.core.spec import LaneSpec\n"
        "LaneSpec().rules()\n"
        "assert 'pandas' not in sys.modules and 'exchange_calendars' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=30, check=True)


def test_a_key_ttl_shorter_than_the_longest_session_is_refused() -> None:
    spec = LaneSpec(window=CalendarWindows("XNYS", session="full"), key_ttl_ns=24 * HOUR)
    with pytest.raises(ConfigError, match=r"key_ttl is 1d; the longest window of the calendar 'XNYS'.* is 604802s"):
        spec.rules()
    LaneSpec(window=CalendarWindows("XNYS"), key_ttl_ns=24 * HOUR).rules()
    LaneSpec(window=CalendarWindows("XNYS", session="full")).rules()  # nothing expires


@pytest.mark.parametrize(
    "make",
    [
        lambda: TumblingWindowSpec(5),  # type: ignore[arg-type]
        lambda: TumblingWindowSpec(timedelta(seconds=9), offset=5),  # type: ignore[arg-type]
        lambda: HoppingWindowSpec(5, timedelta(seconds=1)),  # type: ignore[arg-type]
        lambda: HoppingWindowSpec(timedelta(seconds=9), 5),  # type: ignore[arg-type]
        lambda: SessionWindowSpec(5),  # type: ignore[arg-type]
        lambda: CalendarWindowSpec("XNYS", close_grace=5),  # type: ignore[arg-type]
    ],
)
def test_a_duration_of_a_spec_that_is_no_timedelta_is_explained(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"is 5 \(int\); expected a timedelta, like timedelta\(seconds=5\)"):
        make()
