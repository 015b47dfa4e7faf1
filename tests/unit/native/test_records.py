"""Records that stay one text: they look like a list of `OutRecord`, and the batches built of them are these records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw_batches import build_batch
from workers._native import Batch, Records
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input
from workers.core.packed import joined, oldest_ms, size_of
from workers.core.partitioning import partition_for
from workers.core.records import RawBatch, RawRecord
from workers.core.snapshot import META_KEY
from workers.core.spec import LaneSpec
from workers.kafka import unpacking
from workers.kafka.commit import _portions, pack
from workers.kafka.fit import fit
from workers.kafka.ports import Commit, OutTopic
from workers.native.lane import NativeLane
from workers.worker.committer import CommitRules, Committer

NOW_MS = 1_700_000_000_000
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

header_sets = st.sampled_from(
    [
        (),
        (("workers.reason", b"watermark"),),
        (("workers.reason", b"expired"),),
        (("a", None), ("ä" * 80, b"")),
        (("a", b""), ("a", b"x" * 200)),
    ]
)
texts = st.one_of(st.binary(max_size=12), st.sampled_from([b"SYM0001", b"x" * 63, b"y" * 200, b"{}" * 5_000]))
records_of_any_kind = st.lists(
    st.builds(
        OutRecord,
        st.none() | texts,
        st.none() | texts,
        st.none() | st.integers(0, 2**42) | st.sampled_from([NOW_MS, NOW_MS + 5_000, NOW_MS - 5_000]),
        header_sets,
    ),
    max_size=40,
)


def packed(records: Sequence[OutRecord]) -> Records:
    return Records(records)


# -- as a list --------------------------------------------------------------------------------------------------------


@given(records_of_any_kind, st.slices(40))
def test_they_look_like_a_list(records: list[OutRecord], some: slice) -> None:
    found = packed(records)
    assert len(found) == len(records)
    assert bool(found) == bool(records)
    assert list(found) == records
    assert found == records
    assert records == found
    assert found == packed(records)
    assert (found != records) is False
    assert [found[number] for number in range(-len(records), len(records))] == records * 2
    assert found[some] == records[some]
    assert found[::-1] == records[::-1]
    assert found != [*records, OutRecord(b"k", b"v")]
    for index in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            found[index]


@given(records_of_any_kind)
def test_sizes_and_times_are_those_of_the_records(records: list[OutRecord]) -> None:
    found = packed(records)
    assert size_of(found) == size_of(records)
    assert found.largest_bytes == max((record.size for record in records), default=0)
    assert oldest_ms(found) == oldest_ms(records)


def test_one_that_differs_in_anything_is_another() -> None:
    base = OutRecord(b"ab", b"c", 1, (("h", b"1"),))
    for other in (
        OutRecord(b"a", b"bc", 1, base.headers),
        OutRecord(b"ab", None, 1, base.headers),
        OutRecord(None, b"c", 1, base.headers),
        OutRecord(b"ab", b"c", None, base.headers),
        OutRecord(b"ab", b"c", 1, (("h", b"2"),)),
        OutRecord(b"ab", b"c", 1, (("h", None),)),
        OutRecord(b"ab", b"c", 1),
    ):
        assert packed([base]) != [other]
        assert packed([base]) != packed([other])
    assert packed([OutRecord(b"", None)]) != packed([OutRecord(None, b"")])


@given(st.lists(st.tuples(st.booleans(), records_of_any_kind), max_size=6))
def test_lists_and_packed_records_are_joined_in_order(parts: list[tuple[bool, list[OutRecord]]]) -> None:
    effects, expected = Effects(), []
    steps = [Effects(packed(part) if is_packed else list(part), packed(part)) for is_packed, part in parts]
    for step, (_, part) in zip(steps, parts, strict=True):
        effects.extend(step)
        expected += part
    assert effects.frames == expected
    assert effects.late == expected
    if any(is_packed and part for is_packed, part in parts):
        assert isinstance(effects.frames, Records)
    for step, (_, part) in zip(steps, parts, strict=True):
        assert step.frames == part, "what was joined is not changed by what comes later"


def test_records_can_be_joined_to_themselves_and_to_a_part_of_themselves() -> None:
    records = [OutRecord(b"%d" % number, b"v") for number in range(4)]
    found = packed(records)
    middle = found[1:3]
    found += found
    assert found == records * 2
    middle += found
    middle.append(records[0])
    assert middle == [*records[1:3], *records, *records, records[0]]
    assert joined([], packed([])) == []


def test_a_record_that_is_none_leaves_them_as_they_were() -> None:
    found = packed([OutRecord(b"k", b"v")])
    with pytest.raises(AttributeError):
        found += [OutRecord(b"k2", b"v"), 3]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        found.append(OutRecord("text", b"v"))  # type: ignore[arg-type]
    assert found == [OutRecord(b"k", b"v")]


# -- as record batches ------------------------------------------------------------------------------------------------


def stamped(records: Sequence[OutRecord]) -> list[OutRecord]:
    return [
        OutRecord(each.key, each.value, NOW_MS if each.timestamp_ms is None else each.timestamp_ms, each.headers)
        for each in records
    ]


def read_by_client(data: bytes) -> list[OutRecord]:
    batches = MemoryRecords(data)
    found = read_batch(batches.next_batch())
    assert batches.next_batch() is None
    return found


def read_by_clients_python(data: bytes) -> list[OutRecord]:
    return read_batch(_DefaultRecordBatchPy(bytearray(data)))


def read_batch(batch: Any) -> list[OutRecord]:
    assert batch.validate_crc()
    return [OutRecord(each.key, each.value, each.timestamp, tuple(map(tuple, each.headers))) for each in batch]


def read_by_core(data: bytes) -> list[OutRecord]:
    attributes, last, first_ms, max_ms = struct.unpack_from(">hiqq", data, 21)
    unpack = unpacking.CODECS[attributes & 7][2] if attributes & 7 else None
    batch = RawBatch(0, last + 1, last + 1, first_ms, max_ms, 0, 0, data[61:], unpack)
    found = list(batch.records())
    assert [record.offset for record in found] == list(range(last + 1))
    assert max_ms == max(record.timestamp for record in found)
    return [OutRecord(each.key, each.value, each.timestamp, each.headers) for each in found]


def batches_of(records: Records, codec: int = 0, **wanted: Any) -> Sequence[tuple[int, Batch]]:
    plan = {"partitions": 3, "partition": None, "keyless": 2, "limit_bytes": 1_000_000, "now_ms": NOW_MS, **wanted}
    return records.batches(codec=codec, **plan)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("reader", [read_by_client, read_by_clients_python, read_by_core])
@given(records_of_any_kind, st.sampled_from([70, 300, 20_000, 1_000_000]))
def test_batches_are_the_records_in_order(
    codec: str, reader: Callable[[bytes], list[OutRecord]], records: list[OutRecord], limit_bytes: int
) -> None:
    found: dict[int, list[OutRecord]] = {0: [], 1: [], 2: []}
    for to, batch in batches_of(packed(records), CODECS[codec], limit_bytes=limit_bytes):
        data = batch.build(-1, -1, 0, False)
        assert len(data) == batch.size_bytes
        assert batch.size_bytes <= limit_bytes or batch.count == 1
        content = reader(data)
        assert len(content) == batch.count > 0
        found[to] += content
    for partition, content in found.items():
        expected = [
            record for record in records if (2 if record.key is None else partition_for(record.key, 3)) == partition
        ]
        assert content == stamped(expected)


@given(records_of_any_kind, st.sampled_from([70, 300, 20_000, 1_000_000]), st.booleans())
def test_they_are_to_the_byte_the_batches_that_the_clients_python_builds(
    records: list[OutRecord], limit_bytes: int, to_one: bool
) -> None:
    records = stamped(records)
    producer = a_producer(0)
    options = {"limit_bytes": limit_bytes, "partitions": 3, "partition": 1 if to_one else None, "keyless": 2}
    with pytest.MonkeyPatch.context() as patch:  # its compiled builder leaves the last byte of a batch unused
        patch.setattr(message_accumulator, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
        ours, theirs = (
            [(to, batch.record_count(), batch.size(), built(batch)) for to, batch in pack(some, producer, **options)]  # type: ignore[arg-type]
            for some in (packed(records), records)
        )
    assert sorted(ours, key=lambda batch: batch[0]) == sorted(theirs, key=lambda batch: batch[0])


def a_producer(codec: int) -> Any:
    manager = SimpleNamespace(transactional_id="id")
    return SimpleNamespace(_message_accumulator=SimpleNamespace(_compression_type=codec), _txn_manager=manager)


def built(batch: Any) -> bytes:
    assert batch.closed()
    batch._set_producer_state(7_000_000_000, 3, 1_000)
    return bytes(batch._build())


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_compressed_is_small_and_read_by_both_readers_of_the_client(codec: str) -> None:
    records = [
        OutRecord(b"SYM%d" % (number % 9), b'{"price":%d.25}' % number, NOW_MS + number) for number in range(9_000)
    ]
    ((to, batch),) = batches_of(packed(records), CODECS[codec], partition=2)
    data = batch.build(5, 6, 7, True)
    assert (to, batch.count) == (2, 9_000)
    assert len(data) < 200_000 or codec == "none"
    (attributes,) = struct.unpack_from(">h", data, 21)
    assert attributes == CODECS[codec] | 16, "the codec, and that it is part of a transaction"
    assert struct.unpack_from(">qhi", data, 43) == (5, 6, 7)
    assert read_by_client(data) == read_by_clients_python(data) == read_by_core(data) == records


def test_what_does_not_compress_is_sent_as_it_is() -> None:
    for codec in CODECS.values():
        ((_, batch),) = batches_of(packed([OutRecord(b"k", b"v")]), codec)
        data = batch.build(-1, -1, 0, False)
        assert data[22] == 0
        assert read_by_core(data) == [OutRecord(b"k", b"v", NOW_MS)]


def test_a_codec_that_kafka_does_not_know_is_refused() -> None:
    for codec in (5, 7, 8, 11):
        with pytest.raises(ValueError, match="no codec"):
            batches_of(packed([OutRecord(b"k", b"v")]), codec)
    with pytest.raises(ValueError, match="one partition or more"):
        batches_of(packed([]), partitions=0)


def test_a_batch_that_is_sent_again_is_the_same() -> None:
    ((_, batch),) = pack(
        packed([OutRecord(b"k", b"v")]), a_producer(3), limit_bytes=99, partitions=1, partition=0, keyless=0
    )
    first = built(batch)
    batch._set_producer_state(1, 1, 1)
    assert batch._build() == first


@given(records_of_any_kind, st.integers(1, 30_000))
def test_portions_are_all_records_in_order(records: list[OutRecord], size_bytes: int) -> None:
    portions = packed(records).portions(size_bytes)
    assert [record for portion in portions for record in portion] == records
    assert all(portions)
    assert all(size_of(portion[:-1]) < size_bytes for portion in portions)
    assert all(size_of(portion) >= size_bytes for portion in portions[:-1])
    assert list(_portions(packed(records))) == [records][: len(records)]


# -- on the way out of a lane -----------------------------------------------------------------------------------------


def test_no_object_is_made_of_what_a_native_lane_puts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = NativeLane(LaneSpec(), Input("ticks", 0, 1))
    committer = Committer(CommitRules(interval_ns=0))
    ticks = [
        RawRecord(number, NOW_MS + ts_ms, b"A", b'{"symbol":"A","ts":%d,"price":1.5,"size":2}' % (NOW_MS + ts_ms))
        for number, ts_ms in enumerate([*range(0, 600_000, 500), *range(0, 1_000, 10)])
    ]
    made: list[OutRecord] = []
    init = OutRecord.__init__

    def noted(record: OutRecord, *args: Any, **named: Any) -> None:
        made.append(record)
        init(record, *args, **named)

    monkeypatch.setattr(OutRecord, "__init__", noted)
    for begin in range(0, len(ticks), 100):
        committer.take(lane.process([build_batch(ticks[begin : begin + 100])]))
    assert committer.bytes_waiting() > 10_000
    under_way = committer.begin(lane, topics(), 0)
    assert under_way is not None
    work = under_way.work
    assert min(len(work.frames), len(work.late), len(work.changes)) >= 2
    for records in (work.frames, work.late, work.changes):
        batches = pack(records, a_producer(3), limit_bytes=9_000, partitions=2, partition=None, keyless=0)
        assert sum(batch.record_count() for _, batch in batches) == len(records)
    assert [record.key for record in made] == [META_KEY]
    assert list(work.changes)[-1] == made[0]


# -- what topics don't take -------------------------------------------------------------------------------------------


@dataclass
class Topics:
    frames: OutTopic
    late: OutTopic
    dead_letters: OutTopic
    routed: dict[str, OutTopic]


def topics() -> Topics:
    return Topics(*(OutTopic(name, 1, 10_000) for name in ("frames", "late", "dead-letters")), {})


def test_only_records_that_are_too_large_are_unpacked() -> None:
    frame = OutRecord(b"A", b'{"key":"A","start":0,"end":1,"items":[%s]}' % b",".join([b"1"] * 100), 1)
    late = OutRecord(b"A", b'{"key":"A","offset":3,"tick":{"a":1}}', None, (("workers.reason", b"expired"),))
    work = Commit(1, packed([frame] * 3), packed([late] * 3))
    assert fit(work, topics()) == 0
    assert isinstance(work.frames, Records)
    assert isinstance(work.late, Records)
    large = OutRecord(b"A", b'{"key":"A","start":0,"end":1,"items":[%s]}' % b",".join([b"1"] * 9_000), 1)
    large_late = OutRecord(b"A", b'{"key":"A","offset":3,"tick":"%s"}' % (b"a" * 9_000), None, late.headers)
    lists = Commit(1, [frame, large, frame], [late, large_late])
    work = Commit(1, packed(lists.frames), packed(lists.late))  # type: ignore[arg-type]
    assert fit(work, topics()) == fit(lists, topics()) == 1
    assert work == lists
    assert work.frames == [frame, frame]
    assert len(work.dead_letters) == 1
