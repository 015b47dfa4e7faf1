"""Levels, their hysteresis, and the events that carry them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.backpressure.levels import (
    MAX_COORDINATORS,
    FeedbackBook,
    FeedbackEvent,
    Level,
    LevelGauge,
    LevelPolicy,
    rate_scale,
    strictest,
)

S = 1_000_000_000
POLICY = LevelPolicy(soft=100, hard=1_000, release=0.5, min_dwell_ns=5 * S)


def levels(*timeline: tuple[int, int], policy: LevelPolicy = POLICY) -> list[Level]:
    """The levels after each (second, value)."""
    gauge = LevelGauge(policy)
    return [gauge.observe(value, second * S) for second, value in timeline]


def test_a_level_is_raised_at_once() -> None:
    assert levels((0, 99), (1, 100), (2, 999), (3, 1_000)) == [Level.OK, Level.SOFT, Level.SOFT, Level.HARD]


def test_a_level_can_be_skipped_on_the_way_up_and_down() -> None:
    assert levels((0, 5_000), (5, 0)) == [Level.HARD, Level.OK]


def test_a_level_is_left_only_below_its_release_threshold() -> None:
    assert levels((0, 1_000), (10, 501), (20, 500)) == [Level.HARD, Level.HARD, Level.SOFT]
    assert levels((0, 100), (10, 51), (20, 50)) == [Level.SOFT, Level.SOFT, Level.OK]


def test_a_level_is_left_only_after_the_dwell_and_is_not_left_by_a_dip() -> None:
    assert levels((0, 100), (4, 0), (5, 0)) == [Level.SOFT, Level.SOFT, Level.OK]
    assert levels((0, 100), (4, 0), (5, 80), (9, 80)) == [Level.SOFT] * 4


def test_each_step_down_dwells_again() -> None:
    assert levels((0, 1_000), (5, 400), (6, 0), (10, 0)) == [Level.HARD, Level.SOFT, Level.SOFT, Level.OK]


def test_a_negative_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="measured -1"):
        LevelGauge(POLICY).observe(-1, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3 * S), st.integers(0, 2_000)), min_size=1, max_size=60),
    st.floats(0.05, 1.0),
    st.integers(0, 10 * S),
)
@example([(0, 100), (0, 100)], 1.0, 0)
@example([(0, 1_000), (S, 1_000)], 1.0, S)
def test_whatever_is_measured_relaxing_keeps_its_distance_and_hard_is_never_missed(
    steps: list[tuple[int, int]], release: float, dwell_ns: int
) -> None:
    policy = LevelPolicy(soft=100, hard=1_000, release=release, min_dwell_ns=dwell_ns)
    gauge, now_ns, changed_ns, before = LevelGauge(policy), 0, None, Level.OK
    for passed_ns, value in steps:
        now_ns += passed_ns
        level = gauge.observe(value, now_ns)
        assert level >= (Level.HARD if value >= 1_000 else Level.SOFT if value >= 100 else Level.OK)
        if level < before:
            assert changed_ns is not None
            assert now_ns - changed_ns >= dwell_ns
            assert value <= release * (1_000 if before is Level.HARD else 100)
        if level is not before:
            changed_ns, before = now_ns, level


@given(
    st.sampled_from((100, 1_000)),
    st.lists(st.tuples(st.integers(1, 4 * S), st.floats(0.51, 1.2)), min_size=2, max_size=80),
)
def test_a_lag_wandering_around_a_threshold_changes_the_level_once(
    threshold: int, wander: list[tuple[int, float]]
) -> None:
    gauge, now_ns, changes, before = LevelGauge(POLICY), 0, 0, None
    for passed_ns, factor in wander:
        now_ns += passed_ns
        level = gauge.observe(int(threshold * factor) + 1, now_ns)
        changes += before is not None and level is not before
        before = level
    assert changes <= 1


@given(st.lists(st.tuples(st.integers(1, S), st.integers(0, 2_000)), min_size=2, max_size=200))
def test_there_is_at_most_one_relaxation_in_a_dwell(wander: list[tuple[int, int]]) -> None:
    gauge, now_ns, relaxed, before = LevelGauge(POLICY), 0, [], Level.OK
    for passed_ns, value in wander:
        now_ns += passed_ns
        level = gauge.observe(value, now_ns)
        if level < before:
            relaxed.append(now_ns)
        before = level
    assert all(b - a >= POLICY.min_dwell_ns for a, b in itertools.pairwise(relaxed))


@pytest.mark.parametrize(
    "wrong",
    [
        {"soft": 10, "hard": 10},
        {"soft": 0},
        {"release": 0.0},
        {"release": 1.1},
        {"min_dwell_ns": -1},
        {"scale_soft": 0.2, "scale_hard": 0.3},
        {"scale_soft": 1.5},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LevelPolicy(**{"soft": 100, "hard": 1_000, **wrong})  # type: ignore[arg-type]


def test_each_level_has_its_scale() -> None:
    assert [rate_scale(level, POLICY) for level in Level] == [1.0, 0.5, 0.0]
    other = LevelPolicy(soft=1, hard=2, scale_soft=0.8, scale_hard=0.1)
    assert [rate_scale(level, other) for level in Level] == [1.0, 0.8, 0.1]


def test_the_strictest_wins_and_nobody_is_ok() -> None:
    assert strictest([Level.SOFT, Level.HARD, Level.OK]) is Level.HARD
    assert strictest([]) is Level.OK


# -- events -----------------------------------------------------------------------------------------------------------


def event(
    name: str = "store-1", level: Level = Level.SOFT, second: int = 1_700_000_000, size: int = 6_000
) -> FeedbackEvent:
    return FeedbackEvent(name, size, 10_000, level, "store", second * S)


def test_an_event_is_written_as_documented() -> None:
    assert event().encode() == (
        b'{"coordinator_id":"store-1","queue_size":6000,"capacity":10000,"level":"soft","source":"store",'
        b'"ts":1700000000000}'
    )


@given(
    st.builds(
        FeedbackEvent,
        st.text(min_size=1, max_size=256),
        st.integers(0, 2**63 - 1),
        st.integers(1, 2**63 - 1),
        st.sampled_from(Level),
        st.text(min_size=1, max_size=256),
        st.integers(0, (2**63 - 1) // 1_000_000).map(lambda ms: ms * 1_000_000),
    )
)
def test_an_event_comes_back_as_it_was(said: FeedbackEvent) -> None:
    assert FeedbackEvent.decode(said.encode()) == said


def test_a_level_may_be_written_in_capitals_and_unknown_fields_are_ignored() -> None:
    text = event().encode().replace(b'"soft"', b'"HARD"').replace(b"{", b'{"more":[1],', 1)
    assert FeedbackEvent.decode(text).level is Level.HARD


BAD = [
    b"",
    b"\xff",
    b"[]",
    b"null",
    b"{}",
    b'{"coordinator_id":"a","queue_size":1,"capacity":2,"level":"soft","source":"store"}',
    event().encode().replace(b"soft", b"medium"),
    event().encode().replace(b"6000", b"-1"),
    event().encode().replace(b"6000", b"6.5"),
    event().encode().replace(b"6000", b"true"),
    event().encode().replace(b"10000", b"0"),
    event().encode().replace(b"store-1", b""),
    event().encode().replace(b"store-1", b"x" * 257),
    event().encode().replace(b"1700000000000", b"-1"),
    event().encode().replace(b"1700000000000", b"99999999999999999999"),
    event().encode()[:-3],
]


@pytest.mark.parametrize("value", BAD)
def test_a_bad_event_is_counted_and_changes_nothing(value: bytes) -> None:
    book = FeedbackBook()
    book.take(b"store-1", event().encode(), event().ts_ns)
    assert book.take(b"store-1", value, event().ts_ns) is None
    assert book.bad == 1
    assert book.strictest(event().ts_ns) == event()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_book_fail(value: bytes) -> None:
    FeedbackBook().take(None, value, 0)


def test_an_event_counts_while_it_is_fresh() -> None:
    book = FeedbackBook(stale_after_ns=30 * S)
    book.take(b"store-1", event().encode(), event().ts_ns)
    assert book.strictest(event().ts_ns + 30 * S) == event()
    assert book.strictest(event().ts_ns + 30 * S + 1) is None
    assert book.stale(event().ts_ns + 31 * S) == 1


def test_an_old_event_read_from_the_beginning_is_stale_at_once() -> None:
    book = FeedbackBook()
    book.take(b"store-1", event(level=Level.HARD).encode(), event().ts_ns + 3_600 * S)
    assert book.strictest(event().ts_ns + 3_600 * S) is None


def test_a_clock_that_is_ahead_does_not_keep_an_event_fresh_for_longer() -> None:
    book = FeedbackBook(stale_after_ns=30 * S)
    read_ns = event().ts_ns - 3_600 * S
    book.take(b"store-1", event().encode(), read_ns)
    assert book.strictest(read_ns + 31 * S) is None


def test_of_several_coordinators_the_strictest_counts_and_of_equals_the_fullest() -> None:
    book, now_ns = FeedbackBook(), event().ts_ns
    for said in (
        event("a", Level.SOFT, size=9_000),
        event("b", Level.HARD, size=100),
        event("c", Level.HARD, size=200),
    ):
        book.take(None, said.encode(), now_ns)
    found = book.strictest(now_ns)
    assert found is not None
    assert found.coordinator_id == "c"


def test_a_coordinators_later_event_replaces_its_earlier_and_a_tombstone_removes_it() -> None:
    book, now_ns = FeedbackBook(), event().ts_ns
    book.take(None, event(level=Level.HARD).encode(), now_ns)
    book.take(None, event(level=Level.OK).encode(), now_ns)
    assert [each.level for each in book.fresh(now_ns)] == [Level.OK]
    book.take(b"store-1", None, now_ns)
    assert book.fresh(now_ns) == []


def test_events_of_an_ignored_source_do_not_count() -> None:
    book = FeedbackBook(ignore_sources={"store"})
    assert book.take(None, event(level=Level.HARD).encode(), event().ts_ns) is None
    assert book.strictest(event().ts_ns) is None
    assert book.bad == 0


def test_the_book_forgets_the_oldest_beyond_its_bound() -> None:
    book, now_ns = FeedbackBook(), event().ts_ns
    for number in range(MAX_COORDINATORS + 5):
        book.take(None, event(f"store-{number}").encode(), now_ns)
    names = {each.coordinator_id for each in book.fresh(now_ns)}
    assert len(names) == MAX_COORDINATORS
    assert "store-4" not in names
    assert "store-5" in names
