"""The lateness rule and the event-time clocks of the library."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import EventTimeClock, WatermarkPolicy
from workers.core.watermark import is_late
from workers.core.windows.assign import Tumbling
from workers.core.windows.engine import WindowEngine
from workers.core.windows.window import WindowRules
from workers.times import MAX_EVENT_TIME_NS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Item:
    key: str
    seconds: float


def at(item: Item) -> datetime:
    return EPOCH + timedelta(seconds=item.seconds)


def policy(lag_s: float, lateness_s: float = 0) -> WatermarkPolicy:
    return WatermarkPolicy(timedelta(seconds=lag_s), timedelta(seconds=lateness_s))


def test_the_policy_is_two_seconds_of_lag_unless_said_otherwise() -> None:
    assert (WatermarkPolicy().lag_ns, WatermarkPolicy().lateness_ns) == (2 * SECOND_NS, 0)


@pytest.mark.parametrize(("lag", "lateness"), [(-1, 0), (0, -0.000001)])
def test_negative_durations_are_refused(lag: float, lateness: float) -> None:
    with pytest.raises(ValueError, match="neither may be negative"):
        policy(lag, lateness)


def test_windows_refuse_a_policy_under_which_every_tick_is_late() -> None:
    """lag 0, lateness 0: after observing t the watermark is t, and t <= t."""
    with pytest.raises(ValueError, match="every tick would be late"):
        WindowRules(Tumbling(SECOND_NS), policy(0, 0).lag_ns, policy(0, 0).lateness_ns)
    clock = EventTimeClock(at, policy(0, 0))
    clock.observe(Item("a", 1))
    assert clock.is_late(Item("a", 1)), "the rule itself, which the clock only states"


@pytest.mark.parametrize(("seconds", "late"), [(3.5, False), (3.000001, False), (3.0, True), (2.8, True), (2.5, True)])
def test_an_item_at_the_threshold_is_late(seconds: float, late: bool) -> None:
    """lag 2, allowed lateness 1, after an item at 6: watermark 4, threshold 3."""
    clock = EventTimeClock(at, policy(2, 1))
    clock.observe(Item("a", 6))
    assert clock.watermark() == EPOCH + timedelta(seconds=4)
    assert clock.is_late(Item("a", seconds)) is late


def test_nothing_is_late_and_there_is_no_watermark_before_anything_was_observed() -> None:
    clock = EventTimeClock(at, policy(2), get_key=lambda item: item.key)
    assert clock.watermark("a") is None
    assert not clock.is_late(Item("a", -1e9))
    clock.observe(Item("b", 100))
    assert clock.watermark("a") is None
    assert not clock.is_late(Item("a", -1e9))


def test_each_key_has_its_own_clock_and_another_can_be_asked() -> None:
    clock = EventTimeClock(at, policy(2), get_key=lambda item: item.key)
    clock.observe(Item("a", 100))
    clock.observe(Item("b", 10))
    assert clock.watermark("a") == EPOCH + timedelta(seconds=98)
    assert clock.watermark("b") == EPOCH + timedelta(seconds=8)
    assert not clock.is_late(Item("b", 9))
    assert clock.is_late(Item("b", 9), key="a")


@pytest.mark.parametrize("name", ["lag", "allowed_lateness"])
def test_a_duration_that_is_no_timedelta_is_explained(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is 2 \(int\); expected a timedelta, like timedelta\(seconds=2\)"):
        WatermarkPolicy(**{name: 2})  # type: ignore[arg-type]


def test_with_keys_there_is_a_clock_of_all_as_well() -> None:
    clock = EventTimeClock(at, policy(2), get_key=lambda item: item.key)
    assert clock.watermark() is None
    for item in (Item("a", 10), Item("b", 100), Item("a", 50)):
        clock.observe(item)
    assert clock.watermark() == EPOCH + timedelta(seconds=98)
    assert clock.watermark("a") == EPOCH + timedelta(seconds=48)
    assert not clock.is_late(Item("a", 49)), "an item is judged by its own key's clock"


def test_without_keys_there_is_one_clock_for_all() -> None:
    clock = EventTimeClock(at, policy(2))
    clock.observe(Item("a", 100))
    assert clock.is_late(Item("b", 9))


def test_naive_times_are_utc_and_others_are_converted() -> None:
    clock: EventTimeClock[datetime] = EventTimeClock(lambda moment: moment, policy(1))
    clock.observe(datetime(2026, 1, 1, 12, 0, 0))
    assert clock.watermark() == datetime(2026, 1, 1, 11, 59, 59, tzinfo=UTC)
    clock.observe(datetime(2026, 1, 1, 14, 0, 1, tzinfo=timezone(timedelta(hours=2))))
    assert clock.watermark() == datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


LARGEST_US = MAX_EVENT_TIME_NS // 1000
times_us = st.lists(st.integers(-LARGEST_US, LARGEST_US), min_size=1, max_size=30)
durations_us = st.integers(0, 10**13)


@given(times_us, durations_us, durations_us)
@settings(deadline=None)
def test_a_watermark_never_goes_back_and_is_exact_to_the_microsecond(
    moments_us: list[int], lag_us: int, lateness_us: int
) -> None:
    moments = [EPOCH + timedelta(microseconds=us) for us in moments_us]
    clock: EventTimeClock[datetime] = EventTimeClock(
        lambda moment: moment, WatermarkPolicy(timedelta(microseconds=lag_us), timedelta(microseconds=lateness_us))
    )
    before = None
    for count, moment in enumerate(moments, start=1):
        clock.observe(moment)
        watermark = clock.watermark()
        assert watermark is not None
        assert watermark == max(moments[:count]) - timedelta(microseconds=lag_us)
        assert before is None or watermark >= before
        before = watermark


@given(times_us, durations_us, durations_us)
@settings(deadline=None)
def test_the_clock_and_the_windows_agree_on_what_is_late(moments_us: list[int], lag_us: int, lateness_us: int) -> None:
    if lag_us + lateness_us == 0:
        lag_us = 1
    clock: EventTimeClock[datetime] = EventTimeClock(
        lambda moment: moment, WatermarkPolicy(timedelta(microseconds=lag_us), timedelta(microseconds=lateness_us))
    )
    engine: WindowEngine[None, int] = WindowEngine(
        WindowRules(Tumbling(7 * SECOND_NS), lag_us * 1000, lateness_us * 1000)
    )
    for us in moments_us:
        moment = EPOCH + timedelta(microseconds=us)
        clock.observe(moment)
        assert (engine.add(None, us * 1000, us) is not None) == clock.is_late(moment)


@given(st.integers(), st.integers(), st.integers(min_value=0))
@settings(deadline=None)
def test_later_items_are_never_later(ts: int, watermark: int, lateness: int) -> None:
    if not is_late(ts, watermark, lateness):
        assert not is_late(ts + 1, watermark, lateness)
        assert not is_late(ts, watermark, lateness + 1)
        assert not is_late(ts, watermark - 1, lateness)
