"""What is kept does not grow with what has passed, and is no larger than it says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import orjson
import pytest

from tests.unit.core.test_lane import TOPIC, KafkaRecord
from workers.core import partitioning, steps
from workers.core.effects import Effects
from workers.core.encoding import to_json
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.pipeline import deduplicate as deduplication
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Map
from workers.core.portions import StepLimit
from workers.core.snapshot import SEGMENT_BYTES
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows import corrections
from workers.core.windows.corrections import CorrectingEngine
from workers.core.windows.kinds import HoppingWindows, SessionWindows, TumblingWindows, Windows
from workers.kafka import commit as sink
from workers.kafka.ports import Fetched
from workers.settings import Settings
from workers.worker import committer, partition, report, worker
from workers.worker.committer import CommitRules
from workers.worker.partition import Fullness, Partition, PartitionRules
from workers.worker.runner import PartitionRunner

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
    lane = lane_of(
        scope="partition", window=TumblingWindows(100 * S), lag_ns=100 * S, key_ttl_ns=150 * S, idle_after_ns=1_000 * S
    )
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
        lane_of(pipeline=(Map("tests.unit.core.test_growth:wide"),), payload="items"),
        lambda n: tick(n, 0),
    ),
    "frames": (lane_of(window=TumblingWindows(S), lag_ns=S), lambda n: tick(n, n * 1_000)),
    "late ticks": (lane_of(window=TumblingWindows(S), lag_ns=S), lambda n: tick(n, 10**6 if n == 0 else 0)),
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


def test_long_keys_are_not_remembered() -> None:
    def place_all() -> None:
        for number in range(10):
            key = bytes([number]) * 100_000
            assert partitioning.partition_for(key, 7) == (partitioning.murmur2(key) & 0x7FFFFFFF) % 7

    assert bytes_taken(place_all) < 100_000


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


def running(lane: Lane, full: Callable[[], bool] = lambda: False) -> Partition:
    """A partition that is running, as a worker with default settings would have it."""
    rules = PartitionRules(Fullness(15_000, 3 << 20), Fullness(5_000, 1 << 20), 5_000, CommitRules(interval_ns=S))
    made = Partition(0, rules, full)
    made.opened(lane, 0, owned=True)
    return made


def step(one: Partition) -> bool:
    portion = one.next_portion()
    if portion is not None:
        one.processed(one.process(portion).records, 1e-3)
    return portion is not None


def test_results_that_wait_are_bounded_by_their_bytes() -> None:
    """Dead letters of a mebibyte each: far fewer than are waited for by number."""

    def full() -> bool:
        return committer.wait_too_many([one.committer], committer.WaitingLimits())

    one = running(lane_of(), full)
    large = b"x" * (1 << 20)
    for offset in range(100):
        one.accept(Fetched([KafkaRecord(offset, -1, b"A", large)]), 0)
    stepped = 0
    while step(one):
        stepped += 1
    assert stepped == committer.PENDING_LIMIT_BYTES // (1 << 20)
    assert full()
    assert one.committer.is_urgent


def test_a_lane_waits_when_a_commit_would_have_too_much_to_write() -> None:
    one = running(lane_of(pipeline=(Deduplicate(("id",), DAY),)))
    for begin in range(0, 30_000, 1_000):
        one.accept(Fetched([tick(begin + number, 0, id=begin + number) for number in range(1_000)]), 0)
    while step(one):
        pass
    assert one.lane is not None
    assert committer.CHANGES_LIMIT <= one.lane.changes_waiting < committer.CHANGES_LIMIT + 1_100


def test_the_longest_step_is_exported_and_slow_steps_get_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(report.time, "perf_counter", lambda: now_s)
    lane = lane_of()
    working = worker.Worker(Settings(application_id="growth", topics={"ticks": TOPIC, "frames": "frames"}))
    context = working._context_with(consumer=None)  # type: ignore[arg-type]  # it is asked for nothing
    runner = PartitionRunner(0, context)
    runner.state = running(lane)
    process, taken = lane.process, []

    def slow(records: list[KafkaRecord], limit: StepLimit) -> Effects:
        nonlocal now_s
        now_s += len(records) * 100e-6
        taken.append(len(records))
        return process(records, limit)

    monkeypatch.setattr(lane, "process", slow)
    runner.state.accept(Fetched([tick(number, 0) for number in range(8_000)]), 0)
    while working._step([runner]):
        pass
    assert taken[0] == partition.FIRST_RECORDS
    assert all(records == pytest.approx(partition.STEP_TARGET_S / 100e-6, abs=1) for records in taken[1:-1])
    longest = working.metrics.registry.get_sample_value("workers_longest_step_seconds", {"step": "process"})
    assert longest == pytest.approx(0.05)


def test_records_are_packed_in_portions() -> None:
    few = [OutRecord(b"k", b"v")] * (sink.PACKED_RECORDS + 1)
    assert [len(portion) for portion in sink._portions(few)] == [sink.PACKED_RECORDS, 1]
    large = [OutRecord(b"k", b"v" * sink.PACKED_BYTES)] * 2
    assert [len(portion) for portion in sink._portions(large)] == [1, 1]
    assert list(sink._portions([])) == []


# -- corrections ------------------------------------------------------------------------------------------------------

RULES = CorrectionRules("kind", cancel=("X",), correct=("C",), id="id")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Entries of trades that were decoded."""
    taken: list[bytes] = []
    decode = corrections._DECODE

    def counted(item: bytes) -> object:
        taken.append(item)
        return decode(item)

    monkeypatch.setattr(corrections, "_DECODE", counted)
    return taken


def engine_of(lane: Lane) -> CorrectingEngine:
    engine = lane._engine
    assert isinstance(engine, CorrectingEngine)
    return engine


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("window", [TumblingWindows(S), HoppingWindows(S, hop_ns=S // 2), SessionWindows(S // 2)])
def test_a_correction_costs_what_its_windows_hold(
    window: Windows, restored: bool, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five thousand windows of two trades: a cancel reads those that hold its trade; of an unknown id it reads none."""
    spec = {"window": window, "lateness_ns": DAY, "corrections": RULES}
    lane = lane_of(**spec)
    count = 10_000
    lane.process([tick(number, number // 2 * 1_000, id=number) for number in range(count)])
    if restored:
        stored = entries_of(lane.take_changes())
        lane = lane_of(**spec)
        lane.restore(stored, where="test")
    looked_at = 0
    is_correctable = CorrectingEngine._is_correctable

    def counted(*args: object) -> bool:
        nonlocal looked_at
        looked_at += 1
        return is_correctable(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(CorrectingEngine, "_is_correctable", counted)
    decoded.clear()
    lane.process([tick(count, 0, kind="X", id="unknown")])
    assert (len(decoded), looked_at) == (0, 0)
    effects = lane.process([tick(count + 1, 0, kind="X", id=5_000)])
    assert effects.corrected == {"cancel": 1}
    assert 2 <= len(decoded) <= 12  # two trades and a cancel in each of one or two windows, and once for a frame
    assert looked_at <= 6


def test_the_ids_of_windows_that_are_gone_are_forgotten() -> None:
    lane = lane_of(window=TumblingWindows(S), corrections=RULES)
    engine = engine_of(lane)
    for begin in range(0, 50_000, 1_000):
        lane.process(
            [tick(number, number * 10, f"K{number % 10}", id=number) for number in range(begin, begin + 1_000)]
        )
    assert sum(map(len, engine._indices.values())) < 1_500
    assert len(engine._indices) == 10


def test_ids_are_forgotten_with_their_symbol_and_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "FORGOTTEN_AT_ONCE", 100)
    lane = lane_of(window=TumblingWindows(S), corrections=RULES, key_ttl_ns=60 * S)
    engine = engine_of(lane)
    lane.process([tick(number, 0, "old", id=number) for number in range(1_000)])
    lane.process([tick(1_000, 100_000, "new", id="x")])
    assert len(engine._indices["old"]) == 900
    for offset in range(1_001, 1_012):
        lane.process([tick(offset, 100_000, "new", id=offset)])
    assert list(engine._indices) == ["new"]


def test_an_id_that_comes_again_and_again_is_noted_once_for_each_window() -> None:
    lane = lane_of(window=TumblingWindows(S), lateness_ns=DAY, corrections=RULES)
    lane.process([tick(number, number % 5 * 1_000, id="same") for number in range(1_000)])
    index = engine_of(lane)._indices["A"]
    assert len(index) == 5
    assert len(list(index.starts_of("same"))) == 5


# -- restoring --------------------------------------------------------------------------------------------------------

STORED: dict[str, dict[str, object]] = {
    "windows": {},
    "items": {"payload": "items", "window": TumblingWindows(10**6 * S)},
    "sessions": {"window": SessionWindows(S // 2)},
    "filled": {"window": TumblingWindows(S, fill_gaps_ns=60 * S)},
    "corrections": {"corrections": RULES},
    "ids": {"pipeline": (Deduplicate(("id",), DAY),), "window": TumblingWindows(10**6 * S)},
    "partition": {"scope": "partition"},
}


@pytest.mark.parametrize("name", STORED)
def test_a_plain_lane_is_restored_in_steps_of_bounded_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand things that are stored take several steps, and what comes of it is the same."""
    monkeypatch.setattr(steps, "UNITS", 200)
    monkeypatch.setattr(deduplication, "PART_IDS", 500)
    spec = {"window": TumblingWindows(S), "lateness_ns": DAY, **STORED[name]}
    lane = lane_of(**spec)
    lane.process([tick(number, number * 1_000, id=number, text="x" * 300) for number in range(10_000)])
    stored = entries_of(lane.take_changes())
    again = lane_of(**spec)
    assert sum(1 for _ in again.restore_in_steps(stored, where="test")) >= 4
    more = [tick(10_000 + number, 10_000_000 + number * 1_000, id=number) for number in range(10)]
    assert again.process(more) == lane.process(more)
    assert again.take_changes() == lane.take_changes()
