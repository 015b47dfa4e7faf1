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
    assert [effects for effects, _ in found] == expected
    assert all(took_s > 0 for _, took_s in found)


def test_they_are_at_work_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def work() -> Effects:
        together.wait(timeout=10)
        return Effects()

    threads = LaneThreads(3)
    assert len(threads.run([work] * 3)) == 3
    threads.close()


@pytest.mark.parametrize("who", [0, 1, 2])
def test_an_error_comes_when_nobody_is_at_work_any_more(who: int) -> None:
    ended: list[int] = []

    def work(number: int) -> Effects:
        if number == who:
            raise ValueError(f"number {number}")
        ended.append(number)
        return Effects()

    threads = LaneThreads(3)
    with pytest.raises(ValueError, match=f"number {who}"):
        threads.run([partial(work, number) for number in range(3)])
    assert sorted(ended) == sorted({0, 1, 2} - {who})
    threads.close()


def test_one_thread_is_the_callers_own() -> None:
    threads = LaneThreads(1)
    names: list[str] = []

    def work() -> Effects:
        names.append(threading.current_thread().name)
        return Effects()

    threads.run([work, work])
    assert names == [threading.main_thread().name] * 2
    assert LaneThreads(0).count >= 1
