"""The arithmetic of an adaptive producer: the ramp, the bucket, and the smoothed rate. No clock runs here."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backpressure.lag import LagSnapshot, SmoothedRate
from workers.backpressure.producer_throttle import Ramp, RampedBucket
from workers.kafka.group_offsets import GroupLag, PartitionLag, lost_records_problem

S = 1_000_000_000


def test_a_ramp_goes_down_within_a_second_and_up_within_three() -> None:
    ramp = Ramp()
    ramp.jump(1.0, 0)
    ramp.aim(0.0, 10 * S)
    assert [ramp.at(10 * S), ramp.at(10 * S + S // 2), ramp.at(11 * S), ramp.at(99 * S)] == [1.0, 0.5, 0.0, 0.0]
    ramp.aim(1.0, 20 * S)
    assert [ramp.at(20 * S), ramp.at(21 * S + S // 2), ramp.at(23 * S), ramp.at(99 * S)] == [0.0, 0.5, 1.0, 1.0]


def test_a_ramp_that_is_turned_round_goes_on_from_where_it_is() -> None:
    ramp = Ramp(up_ns=S, down_ns=S)
    ramp.jump(0.0, 0)
    ramp.aim(1.0, 0)
    ramp.aim(0.0, S // 2)
    assert ramp.at(S // 2) == pytest.approx(0.5)
    assert ramp.at(S) == pytest.approx(0.0)


@given(
    st.lists(st.tuples(st.integers(1, 4 * S), st.sampled_from((0.0, 0.25, 0.5, 1.0))), max_size=8),
    st.integers(1, 20 * S),
)
def test_the_area_under_a_ramp_is_that_of_its_many_thin_slices(aims: list[tuple[int, float]], span_ns: int) -> None:
    ramp, now_ns = Ramp(), 0
    for passed_ns, target in aims:
        now_ns += passed_ns
        ramp.aim(target, now_ns)
    slices = 2_000
    thin = sum(ramp.at(now_ns + span_ns * (2 * i + 1) // (2 * slices)) for i in range(slices)) * span_ns / slices
    assert ramp.full_ns(now_ns, now_ns + span_ns) == pytest.approx(thin, rel=1e-3, abs=span_ns * 1e-3)


def run(bucket: RampedBucket, ramp: Ramp, until_ns: int, *, start_ns: int = 0, count: int = 1) -> tuple[int, int]:
    """Take as fast as the bucket allows; records taken, and how often it was asked."""
    now_ns, taken, asked = start_ns, 0, 0
    while now_ns < until_ns:
        asked += 1
        wait_ns = bucket.take(count, now_ns)
        if wait_ns is None:
            break
        taken += count if wait_ns == 0 else 0
        now_ns += wait_ns
    return taken, asked


def test_a_bucket_gives_its_rate_and_asks_for_few_looks() -> None:
    ramp = Ramp()
    taken, asked = run(RampedBucket(1_000, ramp), ramp, 10 * S)
    assert taken == pytest.approx(10_100, rel=0.02)
    assert asked <= 2 * taken + 2, "a wait that does not lead to a grant is a busy wait"


def test_a_bucket_at_half_scale_gives_half() -> None:
    ramp = Ramp()
    ramp.jump(0.5, 0)
    taken, _ = run(RampedBucket(1_000, ramp), ramp, 10 * S)
    assert taken == pytest.approx(5_100, rel=0.02)


def test_a_bucket_that_gets_nothing_says_so_instead_of_being_asked_again_and_again() -> None:
    ramp = Ramp()
    ramp.jump(0.0, 0)
    bucket = RampedBucket(1_000, ramp, burst=1)
    assert bucket.take(1, 0) == 0
    assert bucket.take(1, 60 * S) is None
    ramp.aim(1.0, 60 * S)
    wait_ns = bucket.take(1, 60 * S)
    assert wait_ns is not None
    assert 0 < wait_ns < S


def test_a_request_above_the_burst_is_let_through_and_paid_for_afterwards() -> None:
    ramp = Ramp()
    bucket = RampedBucket(1_000, ramp, burst=10)
    assert bucket.take(1_000, 0) == 0
    wait_ns = bucket.take(1, 0)
    assert wait_ns == pytest.approx(0.991 * S, rel=0.01)


@given(
    st.integers(1, 500), st.floats(1.0, 1e6), st.lists(st.tuples(st.integers(0, S), st.integers(1, 50)), max_size=60)
)
def test_a_bucket_never_gives_more_than_its_burst_and_rate_allow(
    burst: int, rate: float, calls: list[tuple[int, int]]
) -> None:
    ramp = Ramp()
    bucket, now_ns, taken, largest = RampedBucket(rate, ramp, burst=burst), 0, 0, 0
    for passed_ns, count in calls:
        now_ns += passed_ns
        largest = max(largest, count)
        if bucket.take(count, now_ns) == 0:
            taken += count
    assert taken <= burst + rate * now_ns / S + largest + 1e-3


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_a_rate_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate is"):
        RampedBucket(rate, Ramp())


def test_a_smoothed_rate_follows_a_saw_tooth_without_its_teeth() -> None:
    rate = SmoothedRate(10 * S)
    rate.add(0, 0)
    for second in range(1, 61):
        rate.add(3_000 if second % 3 == 0 else 0, second * S)
    assert rate.per_s == pytest.approx(1_000, rel=0.2)
    for second in range(61, 121):
        rate.add(0, second * S)
    assert rate.per_s < 5


# -- what a partition's lag is ----------------------------------------------------------------------------------------


def test_lag_counts_from_the_commit() -> None:
    assert PartitionLag(0, begin=10, committed=40, end=100).lag == 60


def test_a_partition_without_a_commit_counts_from_the_start_of_its_log() -> None:
    assert PartitionLag(0, begin=10, committed=None, end=100).lag == 90


def test_a_group_that_begins_at_the_end_counts_from_the_end_first_seen() -> None:
    assert PartitionLag(0, begin=10, committed=None, end=100, first_seen_end=70).lag == 30


def test_records_deleted_by_retention_are_no_lag_any_more() -> None:
    assert PartitionLag(0, begin=80, committed=40, end=100).lag == 20


def test_a_commit_beyond_the_end_is_of_another_life_of_the_topic() -> None:
    assert PartitionLag(0, begin=0, committed=500, end=100).lag == 100


def test_records_that_retention_deleted_before_they_were_committed_are_lost() -> None:
    assert PartitionLag(0, begin=80, committed=40, end=100).lost == 40
    assert PartitionLag(0, begin=80, committed=80, end=100).lost == 0
    assert PartitionLag(0, begin=80, committed=None, end=100).lost == 0, "nobody was to have them"
    assert PartitionLag(0, begin=80, committed=500, end=100).lost == 0, "of another life of the topic"
    group = group_of(PartitionLag(0, 80, 40, 100), PartitionLag(1, 0, 0, 5), PartitionLag(2, 1_003, 3, 2_000))
    told = lost_records_problem(group)
    assert told is not None
    assert "up to 1,040 records of t are lost to group g" in told
    assert "partitions 0 (committed 40, the log begins at 80), 2 (committed 3, the log begins at 1,003)" in told
    assert lost_records_problem(group_of(PartitionLag(0, 80, 80, 100))) is None


# -- how long a lag takes ---------------------------------------------------------------------------------------------


def group_of(*partitions: PartitionLag, state: str = "Stable", members: int = 1) -> GroupLag:
    return GroupLag("g", "t", state, members, partitions)


@pytest.mark.parametrize(
    ("lag", "committed_per_s", "arriving_per_s", "state", "expected_s"),
    [
        (1_000, 50, 0, "Stable", 20),
        (1_000, 50, 40, "Stable", 100),
        (1_000, 50, 40, "PreparingRebalance", 100),
        (1_000, 50, 50, "Stable", math.inf),
        (1_000, 50, 60, "Stable", math.inf),
        (1_000, 0, 0, "Stable", math.inf),
        (1_000, 12, 0, "Empty", math.inf),  # what was committed a moment ago, by a worker that is gone
        (1_000, 12, 0, "Dead", math.inf),
        (0, 50, 50, "Stable", 0),
        (0, 0, 0, "Empty", 0),
    ],
)
def test_a_lag_drains_at_the_rate_of_commits_less_that_of_arrivals(
    lag: int, committed_per_s: float, arriving_per_s: float, state: str, expected_s: float
) -> None:
    group = group_of(PartitionLag(0, 0, 0, lag), state=state)
    assert LagSnapshot(group, 0, committed_per_s, arriving_per_s, {}).drain_s == expected_s
