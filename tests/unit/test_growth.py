"""What is kept does not grow with what has passed, and is no larger than it says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import orjson
import pytest

from tests.unit.test_lane import TOPIC, KafkaRecord
from workers import deduplication, sink, worker
from workers.deduplication import Deduplicate
from workers.encoding import to_json
from workers.frames import OutRecord
from workers.lane import Effects, Input, Lane, LaneSpec, entries_of
from workers.pipeline import Map
from workers.settings import Settings
from workers.snapshot import SEGMENT_BYTES
from workers.source import Fetched
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


# -- what is written at a commit --------------------------------------------------------------------------------------


def test_many_ids_are_stored_in_records_that_any_topic_takes() -> None:
    """Long ids too: 64 bytes is the most that is kept of one."""
    spec = {"pipeline": (Deduplicate(("id",), DAY),)}
    lane = lane_of(**spec)
    count = 20_000
    lane.process([tick(number, 0, id=f"{number:060}") for number in range(count)])
    assert lane.changes_waiting >= count
    changes = lane.take_changes()
    parts = [record for record in changes if record.key is not None and record.key[:4] == b"o\0\0s"]
    assert len(parts) > 1
    assert max(record.size for record in changes) <= SEGMENT_BYTES + 1_000
    assert lane.changes_waiting == 0

    again = lane_of(**spec)
    again.restore(entries_of(changes), where="test")
    again.process([tick(count + number, 0, id=f"{number:060}") for number in range(0, count, 7)])
    again.process([tick(2 * count, 0, id="new")])
    assert again.counts.deduplicated == len(range(0, count, 7))
    assert again.counts.aggregated == count + 1


def test_parts_of_ids_are_deleted_when_their_last_id_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduplication, "PART_IDS", 10)
    lane = lane_of(pipeline=(Deduplicate(("id",), 10 * S),))
    lane.process([tick(number, number, id=number) for number in range(35)])
    stored = entries_of(lane.take_changes())
    assert sum(key[:4] == b"o\0\0s" for key in stored) == 4
    lane.process([tick(35, 10_020, id=35)])  # the first 21 are as old as the ttl
    changes = lane.take_changes()
    assert sum(record.value is None for record in changes if record.key and record.key[:4] == b"o\0\0s") == 2


def test_a_tick_far_ahead_does_not_forget_all_ids_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go with the ticks after it; they are judged as forgotten, and nobody counts them as early."""
    monkeypatch.setattr(deduplication, "FORGOTTEN_AT_ONCE", 5)
    lane = lane_of(pipeline=(Deduplicate(("id",), 10 * S, max_ids=20),))
    lane.process([tick(number, 0, id=number) for number in range(20)])
    effects = lane.process([tick(20, 20_000, id="x")])
    memory = lane._pipeline._stages[0]._memories.get("A")  # type: ignore[union-attr,attr-defined]
    assert len(memory.entries) == 16
    effects.extend(lane.process([tick(21 + number, 20_000, id=number) for number in range(10)]))
    assert len(memory.entries) == 11
    assert not effects.taken_out
    assert not effects.noticed


def test_items_that_wait_to_be_stored_count_as_changes() -> None:
    lane = lane_of(payload="items")
    lane.process([tick(number, 0, text="x" * 4_000) for number in range(100)])
    assert lane.changes_waiting > 100
    lane.take_changes()
    assert lane.changes_waiting == 0


# -- what waits for a commit ------------------------------------------------------------------------------------------


def opened(lane: Lane) -> tuple[worker.Worker, worker.OwnedPartition]:
    """A worker that is not started, and a partition of it that is running."""
    working = worker.Worker(Settings(application_id="growth", topics={"ticks": TOPIC, "frames": "frames"}))
    partition = worker.OwnedPartition(0, working)
    working.partitions[0] = partition
    partition.lane, partition.phase = lane, worker.Phase.RUNNING
    return working, partition


def test_results_that_wait_are_bounded_by_their_bytes() -> None:
    """Dead letters of a mebibyte each: far fewer than are waited for by number."""
    working, partition = opened(lane_of())
    large = b"x" * (1 << 20)
    for offset in range(100):
        partition.accept(Fetched([KafkaRecord(offset, -1, b"A", large)]))
    stepped = 0
    while partition.step():
        stepped += 1
    assert stepped == worker.PENDING_LIMIT_BYTES // (1 << 20)
    assert working.is_full()
    assert partition._urgent.is_set()


def test_a_lane_waits_when_a_commit_would_have_too_much_to_write() -> None:
    _, partition = opened(lane_of(pipeline=(Deduplicate(("id",), DAY),)))
    for begin in range(0, 30_000, 1_000):
        partition.accept(Fetched([tick(begin + number, 0, id=begin + number) for number in range(1_000)]))
    while partition.step():
        pass
    assert partition.lane is not None
    assert worker.CHANGES_LIMIT <= partition.lane.changes_waiting < worker.CHANGES_LIMIT + 1_100


def test_the_longest_step_is_exported_and_slow_steps_get_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now_s)
    lane = lane_of()
    working, partition = opened(lane)
    process, taken = lane.process, []

    def slow(records: list[KafkaRecord]) -> Effects:
        nonlocal now_s
        now_s += len(records) * 100e-6
        taken.append(len(records))
        return process(records)

    monkeypatch.setattr(lane, "process", slow)
    partition.accept(Fetched([tick(number, 0) for number in range(8_000)]))
    while partition.step():
        pass
    assert taken[0] == worker.FIRST_RECORDS
    assert all(records == pytest.approx(worker.STEP_TARGET_S / 100e-6, abs=1) for records in taken[1:-1])
    longest = working.metrics.registry.get_sample_value("workers_longest_step_seconds", {"step": "process"})
    assert longest == pytest.approx(0.05)


def test_records_are_packed_in_portions() -> None:
    few = [OutRecord(b"k", b"v")] * (sink.PACKED_RECORDS + 1)
    assert [len(portion) for portion in sink._portions(few)] == [sink.PACKED_RECORDS, 1]
    large = [OutRecord(b"k", b"v" * sink.PACKED_BYTES)] * 2
    assert [len(portion) for portion in sink._portions(large)] == [1, 1]
    assert list(sink._portions([])) == []
