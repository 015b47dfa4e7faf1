"""What the fetch hook leans on in aiokafka, and that with it a consumer hands out the same records as without.

Where a new aiokafka fails here, `workers.kafka.fetch_hook` has to be looked at before anything else is.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import aiokafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from tests.support.raw_batches import build_batch, packed, with_header_names
from workers.apps.broker import Broker
from workers.core.records import RawBatch, RawRecord, records_of
from workers.errors import BrokerError
from workers.kafka import fetch_hook as batches
from workers.kafka.fetch_hook import HookError, install

TP = TopicPartition("ticks", 0)
HEADERS = [("h", b"1"), ("ü", b""), ("h", b"2")]
WHERE = f"aiokafka {aiokafka.__version__}: look at workers/kafka/fetch_hook.py"


# -- its insides ------------------------------------------------------------------------------------------------------


def test_fetcher_makes_partition_records_from_the_globals_of_its_module() -> None:
    names = fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert {"PartitionRecords", "MemoryRecords"} <= set(names), WHERE
    assert not fetcher.Fetcher._proc_fetch_request.__code__.co_freevars, WHERE
    assert inspect.iscoroutinefunction(fetcher.Fetcher._proc_fetch_request), WHERE
    assert fetcher.MemoryRecords is MemoryRecords, WHERE


def test_partition_records_are_built_and_read_as_the_hook_expects() -> None:
    parameters = list(inspect.signature(fetcher.PartitionRecords).parameters)
    assert parameters == [
        *("tp", "records", "aborted_transactions", "fetch_offset", "key_deserializer", "value_deserializer"),
        *("check_crcs", "isolation_level"),
    ], WHERE
    source = inspect.getsource(fetcher.PartitionRecords._unpack_records)
    steps = [
        "validate_crc",
        "_consume_aborted_up_to",
        "_contains_abort_marker",
        "_aborted_producers",
        "is_control_batch",
    ]
    assert all(step in source for step in steps), WHERE
    assert "next_fetch_offset" in inspect.getsource(fetcher.FetchResult), WHERE


def test_hook_says_what_is_wrong_with_a_fetcher_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherFetcher:
        _records: tuple[()] = ()
        _pending_tasks: tuple[()] = ()

        async def _proc_fetch_request(self) -> None: ...

    class Consumer:
        _fetcher = OtherFetcher()

    with pytest.raises(HookError, match=r"not use MemoryRecords, PartitionRecords.*use aiokafka 0.14"):
        install(Consumer())
    with pytest.raises(HookError, match="was not started"):
        install(object())


# -- batches without a broker -----------------------------------------------------------------------------------------


def _unpack(data: bytes, fetch_offset: int = 0, *, check_crcs: bool = True) -> tuple[list[object], int]:
    found = batches._BatchRecords(
        TP, batches._BatchSlices(data), None, fetch_offset, None, None, check_crcs, fetcher.READ_COMMITTED
    )
    return list(found), found.next_fetch_offset


def _plain(data: bytes, fetch_offset: int = 0) -> tuple[list[object], int]:
    found = fetcher.PartitionRecords(
        TP, MemoryRecords(data), None, fetch_offset, None, None, True, fetcher.READ_COMMITTED
    )
    return list(found), found.next_fetch_offset


def _some(first: int, number: int) -> list[RawRecord]:
    return [
        RawRecord(first + 2 * index, 1_000 + index, b"k" if index % 3 else None, b"v" * index if index % 5 else None)
        for index in range(number)
    ]


def _shown(records: Sequence[object]) -> list[tuple[object, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records]  # type: ignore[attr-defined]


@pytest.mark.parametrize("compression", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("fetch_offset", [0, 3, 4, 8])
def test_batches_hold_the_records_that_aiokafka_unpacks(compression: int, fetch_offset: int) -> None:
    data = packed(_some(0, 5), compression) + packed(_some(10, 8), compression)
    raw, next_offset = _unpack(data, fetch_offset)
    plain, expected_offset = _plain(data, fetch_offset)
    assert all(isinstance(each, RawBatch) for each in raw)
    assert _shown(list(records_of(raw))) == _shown(plain)  # type: ignore[arg-type]
    assert next_offset == expected_offset


def test_batches_before_the_position_do_not_take_it_back() -> None:
    data = packed(_some(0, 5)) + packed(_some(10, 8))
    raw, next_offset = _unpack(data, 24)
    assert [record.offset for record in records_of(raw)] == [24]  # type: ignore[arg-type]
    assert next_offset == 25
    assert _unpack(data, 100) == ([], 100)


def test_position_follows_batch_by_batch() -> None:
    data = packed(_some(0, 5)) + packed(_some(10, 8))
    found = batches._BatchRecords(TP, batches._BatchSlices(data), None, 0, None, None, True, fetcher.READ_COMMITTED)
    positions = [found.next_fetch_offset]
    for _ in found:
        positions.append(found.next_fetch_offset)  # noqa: PERF401
    assert positions == [0, 9, 25]


def test_checksums_are_checked_unless_told_otherwise() -> None:
    data = bytearray(packed(_some(0, 5)))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException, match="CRC"):
        _unpack(bytes(data))
    assert len(_unpack(bytes(data), check_crcs=False)[0]) == 1


def test_unknown_codec_raises_as_in_aiokafka() -> None:
    data = bytearray(packed(_some(0, 5)))
    data[22] |= 5
    with pytest.raises(UnsupportedCodecError):
        _unpack(bytes(data), check_crcs=False)


@pytest.mark.parametrize("magic", [0, 1])
def test_old_formats_come_record_by_record(magic: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    for offset in range(4):
        builder.append(offset, 1_000 + offset if magic else -1, b"k", b"v")
    data = bytes(builder.build())
    raw, next_offset = _unpack(data, 1)
    plain, expected_offset = _plain(data, 1)
    assert raw == plain
    assert len(raw) == 3
    assert next_offset == expected_offset


def test_built_batches_are_what_the_hook_hands_out() -> None:
    records = _some(7, 4)
    (raw,), _ = _unpack(packed(records))
    made = build_batch(records)
    assert isinstance(raw, RawBatch)
    names = (
        "base_offset",
        "next_offset",
        "count",
        "first_timestamp",
        "max_timestamp",
        "timestamp_type",
        "start_offset",
    )
    assert [getattr(raw, name) for name in names] == [getattr(made, name) for name in names]
    assert bytes(raw.payload()) == bytes(made.payload())


@pytest.mark.parametrize("compression", [0, 4], ids=["none", "zstd"])
@pytest.mark.parametrize("fetch_offset", [0, 2, 11])
def test_records_with_any_header_names_are_handed_out_one_by_one(compression: int, fetch_offset: int) -> None:
    hostile = [*_some(0, 2), RawRecord(4, 1_000, b"k", b"v", (("naMe", b"1"), ("x", None))), *_some(6, 2)]
    data = with_header_names(packed(hostile), {"naMe": b"\xff\xfea\xc3"}) + packed(_some(10, 3), compression)
    if fetch_offset < 5:
        with pytest.raises(UnicodeDecodeError):
            _plain(data, fetch_offset)
    found = batches._Records(
        TP, batches._BatchSlices(data), None, fetch_offset, None, None, True, fetcher.READ_COMMITTED
    )
    records = [(record, found.next_fetch_offset) for record in found]
    assert all(position == record.offset + 1 for record, position in records)
    named = (4, 1_000, b"k", b"v", (("\\xff\\xfea\\xc3", b"1"), ("x", None)))
    expected = [named if record.offset == 4 else _shown([record])[0] for record in [*hostile, *_some(10, 3)]]
    assert _shown([record for record, _ in records]) == [each for each in expected if each[0] >= fetch_offset]  # type: ignore[operator]
    assert {type(record) for record, _ in records} == {fetcher.ConsumerRecord}
    assert found.next_fetch_offset == 15


def test_a_batch_that_cannot_be_read_says_where_it_is() -> None:
    data = with_header_names(packed([RawRecord(4, 1_000, b"k", b"v", (("n", b"12"),))]), {})
    broken = with_header_names(data.replace(b"\x02n\x0412", b"\x02n\x7e12"), {})
    found = batches._Records(TP, batches._BatchSlices(broken), None, 0, None, None, True, fetcher.READ_COMMITTED)
    with pytest.raises(BrokerError, match=r"ticks\[0\]: .*the batch at offset 4 .*its checksum is good"):
        list(found)
    broken = bytearray(packed(_some(0, 5), 1))
    broken[70:80] = b"\0" * 10
    found = batches._Records(
        TP, batches._BatchSlices(with_header_names(bytes(broken), {})), None, 0, None, None, True, 1
    )
    with pytest.raises(BrokerError, match=r"the batch at offset 0 can't be read.*its checksum is good"):
        list(found)


# -- the real thing ---------------------------------------------------------------------------------------------------


async def _read(bootstrap: str, topic: str, end: int, *, hooked: bool, start: int = 0) -> list[tuple[object, ...]]:
    """Everything from ``start`` up to offset ``end``, a few batches or records at a time."""
    tp = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    await consumer.start()
    try:
        if hooked:
            install(consumer)
        await consumer._client.set_topics([topic])
        consumer.assign([tp])
        consumer.seek(tp, start)
        found: list[object] = []
        while await consumer.position(tp) < end:
            for items in (await consumer.getmany(tp, timeout_ms=500, max_records=3)).values():
                assert all(isinstance(item, RawBatch) for item in items) is hooked
                found += list(records_of(items))
        return _shown(found)
    finally:
        await consumer.stop()


async def _end(bootstrap: str, topic: str) -> int:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        await consumer._client.set_topics([topic])
        ends = await consumer.end_offsets([TopicPartition(topic, 0)])
        return int(ends[TopicPartition(topic, 0)])
    finally:
        await consumer.stop()


@pytest.fixture
async def topic(broker: Broker, topic_name: str) -> str:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic_name, 1, 1)])
    finally:
        await admin.close()
    return topic_name


@pytest.mark.broker
@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_a_hooked_consumer_reads_what_others_read(broker: Broker, topic: str, compression: str | None) -> None:
    """Many batches, transactions that commit and abort, headers, nulls, a large value, seeks into batches."""
    bootstrap = broker.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=compression, linger_ms=5) as producer:
        for batch in range(5):
            sent = [
                await producer.send(topic, f"v{index}".encode() * (index % 7), key=b"k%d" % batch, partition=0)
                for index in range(200)
            ]
            for future in sent:
                await future
        await producer.send_and_wait(topic, None, key=b"k", partition=0, timestamp_ms=5)
        await producer.send_and_wait(topic, b"", key=b"", partition=0, headers=[("h", b"1"), ("ü", b""), ("h", b"2")])
        await producer.send_and_wait(topic, b"x" * 900_000, key=b"big", partition=0)
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=topic, compression_type=compression
    ) as producer:
        for number in range(6):
            await producer.begin_transaction()
            for index in range(20):
                await producer.send(topic, f"t{number}-{index}".encode(), partition=0)
            await producer.flush()
            await (producer.abort_transaction() if number % 2 else producer.commit_transaction())
    end = await _end(bootstrap, topic)
    expected = await _read(bootstrap, topic, end, hooked=False)
    assert len(expected) == 1_000 + 3 + 3 * 20
    for start in (0, 1, 77, 199, 1_002, 1_010, 1_030):
        found = await _read(bootstrap, topic, end, hooked=True, start=start)
        assert found == [record for record in expected if record[0] >= start]  # type: ignore[operator]


@pytest.mark.broker
async def test_other_consumers_in_the_process_are_left_alone(broker: Broker, topic: str) -> None:
    bootstrap = broker.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(topic, b"v", partition=0)
    options = {"bootstrap_servers": bootstrap, "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(**options) as hooked, AIOKafkaConsumer(topic, **options) as other:
        install(hooked)
        with pytest.raises(HookError, match="replaced already"):
            install(hooked)
        hooked.subscribe([topic])
        (item,) = next(iter((await hooked.getmany(timeout_ms=20_000)).values()))
        assert isinstance(item, RawBatch)
        assert (await other.getone()).value == b"v"
        with pytest.raises(HookError, match="fetching already"):
            install(other)
