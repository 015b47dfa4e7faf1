"""What is kept does not grow with what has passed, and is no larger than it says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import orjson
import pytest

from tests.unit.test_lane import TOPIC, KafkaRecord
from workers.deduplication import Deduplicate
from workers.encoding import to_json
from workers.lane import Effects, Input, Lane, LaneSpec
from workers.pipeline import Map
from workers.ticks import Tick

S = 1_000_000_000
DAY = 86_400 * S


def tick(offset: int, ts_ms: int, symbol: str = "A", **more: object) -> KafkaRecord:
    value = orjson.dumps({"symbol": symbol, "ts": ts_ms, "price": 1.5, "size": 2, **more})
    return KafkaRecord(offset, -1, symbol.encode(), b"".join((value, b"")))


def lane_of(**options: object) -> Lane:
    return Lane(LaneSpec(**options), Input(TOPIC, 0, 1))  # type: ignore[arg-type]


# -- one clock for a partition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_ttl_ns", [DAY, 3_600 * S])
def test_with_one_clock_for_a_partition_a_visit_leaves_nothing_behind(key_ttl_ns: int) -> None:
    """Two hundred keys that come and go for hours: each visit, the key's windows close and it is forgotten."""
    lane = lane_of(scope="partition", key_ttl_ns=key_ttl_ns)
    engine = lane._engine
    for offset in range(20_000):
        lane.process([tick(offset, offset * 100, f"K{offset % 200}")])
        if offset % 100 == 0:
            lane.take_changes()
    assert lane.key_count <= 100
    assert len(engine._expiry) <= 2 * lane.key_count + 1_100
    assert len(engine._due) <= 200


def test_a_key_that_comes_back_still_expires_when_its_last_tick_is_too_old() -> None:
    """The sweep leaves what is scheduled for keys that are there."""
    lane = lane_of(scope="partition", size_ns=100 * S, lag_ns=100 * S, key_ttl_ns=150 * S, idle_after_ns=1_000 * S)
    offset = 0
    frames = []
    for visit in range(3):
        base_ms = visit * 1_000_000
        for number in range(1_500):  # enough keys for a sweep
            frames += lane.process([tick(offset, base_ms + number % 7, f"K{number}")]).frames
            offset += 1
        frames += lane.process([tick(offset, base_ms + 160_000, "other")]).frames
        offset += 1
    expired = [frame for frame in frames if b'"trigger":"expiry"' in (frame.value or b"")]
    assert len(expired) == 3 * 1_500


# -- JSON that is kept ------------------------------------------------------------------------------------------------


def bytes_taken(make: Callable[[], object]) -> int:
    """What is allocated for the object that ``make`` returns and still held afterwards."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        made = make()
        after, _ = tracemalloc.get_traced_memory()
        del made
        return after - before
    finally:
        tracemalloc.stop()


def test_json_that_is_kept_takes_what_it_is_long() -> None:
    assert bytes_taken(lambda: [to_json(10**9 + number) for number in range(1_000)]) < 100_000
    assert to_json({"b": 1, "a": 2}, orjson.OPT_SORT_KEYS) == b'{"a":2,"b":1}'


def wide(tick: Tick) -> dict[str, object]:
    """A mapping function that has every tick written anew."""
    return {"size": tick.size + 1}


KEEPING: dict[str, tuple[Lane, Callable[[int], KafkaRecord]]] = {
    "ids": (lane_of(pipeline=(Deduplicate(("id",), DAY),)), lambda n: tick(n, 0, id=n)),
    "items behind map": (
        lane_of(pipeline=(Map("tests.unit.test_growth:wide"),), payload="items"),
        lambda n: tick(n, 0),
    ),
    "frames": (lane_of(size_ns=S, lag_ns=S), lambda n: tick(n, n * 1_000)),
    "late ticks": (lane_of(size_ns=S, lag_ns=S), lambda n: tick(n, 10**6 if n == 0 else 0)),
    "dropped ticks": (lane_of(pipeline=(Deduplicate(("id",), DAY),)), lambda n: tick(n, 0, id=1)),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_waits_or_is_remembered_takes_about_what_it_is_long(name: str) -> None:
    lane, record = KEEPING[name]
    waiting = Effects()
    records = [record(number) for number in range(1_000)]

    def run() -> Lane:
        waiting.extend(lane.process(records))
        return lane

    assert bytes_taken(run) / 1_000 < 1_500
