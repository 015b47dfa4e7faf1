"""Lanes side by side: what they give is what they give one after another, and whoever raises is waited for."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from tests.support.raw_batches import build_batch
from tests.unit.core.test_lane import KafkaRecord
from workers.core.effects import Effects
from workers.core.lane import Input, Lane
from workers.core.spec import LaneSpec
from workers.native.choose import make_lane
from workers.worker.lane_threads import LaneThreads

TICK = b'{"symbol":"A","ts":%d,"price":1.5,"size":2}'


def lanes(native: bool) -> list[Lane]:
    return [make_lane(LaneSpec(), Input("ticks", number, 4), native) for number in range(4)]


def test_several_lanes_at_once_give_what_each_gives_alone() -> None:
    records = [KafkaRecord(n, -1, b"A", TICK % (1_000 * n)) for n in range(5_000)]
    expected = [lane.process(records) for lane in lanes(native=False)]
    threads = LaneThreads(3)
    found = threads.run([partial(lane.process, [build_batch(records)]) for lane in lanes(native=True)])
    threads.close()
    assert [each[0] for each in found if not isinstance(each, Exception)] == expected


def test_they_are_at_work_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def work() -> Effects:
        together.wait(timeout=10)
        return Effects()

    threads = LaneThreads(3)
    assert len(threads.run([work] * 3)) == 3
    threads.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_the_others_made_is_there_though_one_raises(threads: int) -> None:
    made = [Effects(), Effects()]

    def fail() -> Effects:
        raise ValueError("number 1")

    lanes = LaneThreads(threads)
    first, failed, last = lanes.run([lambda: made[0], fail, lambda: made[1]])
    lanes.close()
    assert isinstance(failed, ValueError)
    assert not isinstance(first, Exception)
    assert not isinstance(last, Exception)
    assert (first[0], last[0]) == (made[0], made[1])


def test_one_thread_is_the_callers_own() -> None:
    threads = LaneThreads(1)
    names: list[str] = []

    def work() -> Effects:
        names.append(threading.current_thread().name)
        return Effects()

    threads.run([work, work])
    assert names == [threading.main_thread().name] * 2
    assert LaneThreads(0).count >= 1
