"""A step of a lane ends within a batch, behind any record, and nothing that comes out shows it; what waits is bounded
in bytes, whatever a batch unpacks to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import pytest

from tests.support.raw_batches import build_batch
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import REASON_HEADER, TRUNCATED_HEADER
from workers.core.packed import size_of
from workers.core.portions import NO_LIMIT, StepLimit
from workers.core.records import EXCERPT, LARGEST_RECORD, RawBatch, RawRecord, Record
from workers.core.spec import LaneSpec
from workers.errors import BrokerError
from workers.kafka import unpacking
from workers.kafka.ports import Fetched
from workers.native.lane import NativeLane
from workers.times import NS_PER_SECOND
from workers.worker.committer import CommitRules, WaitingLimits, wait_too_many
from workers.worker.partition import STEP_BYTES, Fullness, Partition, PartitionRules

S = 1_700_000_000_000
SOURCE = Input("ticks", 0, 1)
ZSTD = 4
PACKED = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

LANES = pytest.mark.parametrize("kind", [Lane, NativeLane])
Kind = Callable[[LaneSpec, Input], Lane]


def tick(offset: int, ts_ms: int, symbol: str = "A", note: str = "") -> RawRecord:
    value = f'{{"symbol":"{symbol}","ts":{S + ts_ms},"price":1.5,"size":2{note}}}'
    return RawRecord(offset, S + ts_ms, symbol.encode(), value.encode())


def garbage(offset: int, length: int = 9) -> RawRecord:
    return RawRecord(offset, S, b"A", b"x" * length)


def mixed(count: int, seed: int = 1) -> list[RawRecord]:
    """Ticks of some symbols, some late, some that native code leaves to Python, some garbage; offsets have gaps."""
    draw, made, offset = random.Random(seed), list[RawRecord](), 0
    for number in range(count):
        offset += draw.choice([1, 1, 1, 2, 7])
        ts_ms = number * 20 + draw.randint(-4_000, 0)
        symbol = f"S{draw.randint(0, 5)}"
        kind = draw.random()
        note = ',"\\u0061":1' if kind < 0.1 else ""
        made.append(garbage(offset) if kind > 0.9 else tick(offset, ts_ms, symbol, note))
    return made


def take_all(lane: Lane, items: Sequence[Record | RawBatch], limits: Callable[[], StepLimit]) -> list[Effects]:
    steps = []
    while items:
        steps.append(lane.process(items, limits()))
        items = steps[-1].rest
    return steps


def results(steps: Sequence[Effects]) -> tuple[list[OutRecord], list[OutRecord], list[OutRecord]]:
    """All but provisional frames, which depend on when somebody looks."""
    frames = [frame for step in steps for frame in step.frames if b'"provisional"' not in (frame.value or b"")]
    return (
        frames,
        [each for step in steps for each in step.late],
        [each for step in steps for each in step.dead_letters],
    )


@LANES
@pytest.mark.parametrize("seed", range(5))
def test_where_steps_end_changes_nothing(kind: Kind, seed: int) -> None:
    draw, records, spec = random.Random(seed), mixed(600, seed), LaneSpec(payload="both", lateness_ns=NS_PER_SECOND)
    batches = [build_batch(records[begin : begin + 150], codec=draw.choice([0, 2, 4])) for begin in range(0, 600, 150)]
    at_once, stepwise = Lane(spec, SOURCE), kind(spec, SOURCE)
    expected = at_once.process(records)
    assert not expected.rest

    def limit() -> StepLimit:
        return StepLimit(draw.choice([1, 3, 50]), draw.choice([1, 1_000, 10**9]))

    steps = take_all(stepwise, batches, limit)
    assert len(steps) > 12
    assert results(steps) == results([expected])
    assert sum(step.records for step in steps) == len(records)
    assert (stepwise.position, stepwise.counts) == (at_once.position, at_once.counts)
    assert entries_of(stepwise.take_changes()) == entries_of(at_once.take_changes())


@LANES
def test_a_crash_within_a_batch_goes_on_there(kind: Kind) -> None:
    spec, batch = LaneSpec(), build_batch(mixed(500), codec=ZSTD)
    whole, first = kind(spec, SOURCE), kind(spec, SOURCE)
    before = first.process([batch], StepLimit(30))
    assert before.rest
    stored = entries_of(first.take_changes())
    second = kind(spec, SOURCE)
    second.restore(stored, where="here")
    position = second.position
    assert batch.base_offset < position < batch.next_offset
    after = take_all(second, [batch.rest(position)], lambda: StepLimit(30))
    assert results([before, *after]) == results([whole.process([batch])])


@LANES
def test_a_step_ends_when_its_results_are_so_many_bytes(kind: Kind) -> None:
    batch = build_batch([garbage(number, 10_000) for number in range(100)], codec=ZSTD)
    steps = take_all(kind(LaneSpec(), SOURCE), [batch], lambda: StepLimit(size_bytes=100_000))
    sizes = [size_of(step.dead_letters) for step in steps]
    assert len(sizes) >= 10
    assert max(sizes) <= 100_000 + 11_000
    late = [tick(0, 60_000), *(tick(number, 0, note=f',"n":"{number:01000}"') for number in range(1, 100))]
    steps = take_all(kind(LaneSpec(), SOURCE), [build_batch(late)], lambda: StepLimit(size_bytes=10_000))
    assert max(size_of(step.late) for step in steps) < 10_000 + 2_000


def test_the_rest_of_a_batch_is_gone_on_with_and_not_unpacked_anew() -> None:
    unpacked, batch = 0, build_batch([garbage(number) for number in range(100)])

    def reader(batch: RawBatch) -> object:
        nonlocal unpacked
        unpacked += 1
        return replace(batch, reader=None).records()

    lane = Lane(LaneSpec(), SOURCE)
    steps = take_all(lane, [replace(batch, reader=reader)], lambda: StepLimit(7))  # type: ignore[arg-type]
    assert (len(steps), unpacked) == (15, 1)


# -- bombs ------------------------------------------------------------------------------------------------------------


@LANES
@pytest.mark.parametrize("codec", [0, ZSTD])
def test_of_a_record_that_is_too_long_the_begin_is_a_dead_letter(kind: Kind, codec: int) -> None:
    """100 MB of zeros in 10 KB."""
    bomb = RawRecord(1, S, b"A", bytes(100_000_000), (("name", b"content"),))
    batch = build_batch([tick(0, 0), bomb, tick(5, 8_000)], codec=codec)
    assert not codec or batch.size_bytes < 100_000
    effects = kind(LaneSpec(), SOURCE).process([batch])
    assert (effects.aggregated, effects.records, len(effects.frames)) == (2, 3, 1)
    assert effects.rejected == {"record_too_large": 1}
    [letter] = effects.dead_letters
    headers = dict(letter.headers)
    assert (letter.key, headers[REASON_HEADER]) == (b"A", b"record_too_large")
    assert letter.value is not None
    assert EXCERPT - 50 < len(letter.value) < EXCERPT
    assert 100_000_000 < int(headers[TRUNCATED_HEADER] or 0) < 100_000_050


@pytest.mark.parametrize("key_bytes", [3, EXCERPT - 5, EXCERPT, LARGEST_RECORD])
def test_both_lanes_read_the_same_of_a_record_that_is_too_long(key_bytes: int) -> None:
    bomb = RawRecord(4, S, b"k" * key_bytes, b"v" * LARGEST_RECORD)
    letters = [
        kind(LaneSpec(), SOURCE).process([build_batch([bomb], codec=ZSTD)]).dead_letters for kind in (Lane, NativeLane)
    ]
    plain = Lane(LaneSpec(), SOURCE).process([build_batch([bomb])]).dead_letters
    assert letters[0] == letters[1] == plain
    assert (letters[0][0].key is None) == (key_bytes >= EXCERPT - 5)


@LANES
def test_the_longest_record_that_is_read_is_read(kind: Kind) -> None:
    fits = RawRecord(0, S, b"A", b"x" * (LARGEST_RECORD - 100))
    effects = kind(LaneSpec(), SOURCE).process([build_batch([fits, tick(1, 0)], codec=ZSTD)])
    assert effects.rejected == {"malformed_json": 1}
    assert effects.aggregated == 1


def partition(lane: Lane, limits: WaitingLimits) -> Partition:
    """A partition that runs, as a worker with default settings would have it."""
    rules = PartitionRules(Fullness(37_500, 3 << 20), Fullness(12_500, 1 << 20), 5_000, CommitRules(NS_PER_SECOND))
    one = Partition(0, rules, lambda: wait_too_many([one.committer], limits))
    one.opened(lane, 0, owned=True)
    return one


@LANES
def test_garbage_of_gigabytes_is_committed_portion_by_portion(kind: Kind) -> None:
    """160 records of 900 KB in one batch of some 10 KB; what waits never comes to more than may, and a step."""
    limits = WaitingLimits()
    one = partition(kind(LaneSpec(), SOURCE), limits)
    batch = build_batch([garbage(number, 900_000) for number in range(160)], codec=ZSTD)
    assert batch.size_bytes < 100_000
    one.accept(Fetched([batch]), 0)
    letters = commits = 0
    while one.backlog:
        while (portion := one.next_portion()) is not None:
            effects = one.process(portion)
            one.processed(effects.records, 0.001)
            assert size_of(effects.dead_letters) <= STEP_BYTES + 1_000_000
        waiting = one.committer.bytes_waiting()
        assert waiting <= limits.size_bytes + STEP_BYTES + 1_000_000
        assert one.committer.is_urgent or not one.backlog
        letters += len(one.committer.pending.dead_letters)
        one.committer.discard()  # as a commit does
        commits += 1
    assert letters == 160
    assert commits >= 144_000_000 // (limits.size_bytes + STEP_BYTES)
    assert one.waiting == Fullness(0, 0)


@LANES
def test_a_batch_of_many_records_is_taken_in_steps(kind: Kind) -> None:
    one = partition(kind(LaneSpec(), SOURCE), WaitingLimits())
    batch = build_batch([garbage(number) for number in range(20_000)], codec=ZSTD)
    one.accept(Fetched([batch]), 0)
    taken = []
    while (portion := one.next_portion()) is not None:
        effects = one.process(portion)
        taken.append(effects.records)
        one.processed(effects.records, 0.001)
        assert one.waiting.records == 20_000 - sum(taken)
    assert taken[0] == 500
    assert max(taken) <= 5_000
    assert sum(taken) == 20_000


# -- the backlog ------------------------------------------------------------------------------------------------------


def test_a_backlog_is_full_in_bytes_as_well() -> None:
    """A batch of one record of a mebibyte is no more a thousandth of what fits than one of a hundred bytes."""
    one = partition(Lane(LaneSpec(), SOURCE), WaitingLimits())
    draw = random.Random(1)
    accepted = 0
    while not one.paused:
        record = RawRecord(accepted, S, b"A", draw.randbytes(1 << 20))
        one.accept(Fetched([build_batch([record], codec=ZSTD)]), 0)
        accepted += 1
    assert accepted == 3
    assert one.waiting.size_bytes > 3 << 20
    while (portion := one.next_portion()) is not None:
        one.processed(one.process(portion).records, 0.001)
    assert not one.paused


# -- plain Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", PACKED.values(), ids=PACKED)
def test_plain_python_unpacks_the_same(codec: int) -> None:
    batch = build_batch([*mixed(2_000), garbage(10**6, 3_000_000)], codec=codec)
    assert list(replace(batch, reader=None).records()) == list(batch.records())


@pytest.mark.parametrize("codec", PACKED.values(), ids=PACKED)
def test_plain_python_says_what_it_does_not_unpack(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "LARGEST_PAYLOAD", 1 << 20)
    batch = replace(build_batch([garbage(0, 4 << 20)], codec=codec), reader=None)
    with pytest.raises(BrokerError, match=r"the batch at offset 0 can't be decompressed.*more than the 1 MiB.*install"):
        next(batch.records())


@pytest.mark.parametrize("codec", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("native", [False, True])
def test_bytes_that_are_cut_short_are_refused(codec: int, native: bool) -> None:
    batch = build_batch(mixed(2_000), codec=codec)
    broken = replace(batch, packed=batch.packed[: len(batch.packed) // 2], reader=batch.reader if native else None)
    with pytest.raises(BrokerError, match="can't be"):
        list(islice(broken.records(), 3_000))


def test_a_step_without_a_limit_takes_all() -> None:
    assert not Lane(LaneSpec(), SOURCE).process(mixed(3_000), NO_LIMIT).rest
