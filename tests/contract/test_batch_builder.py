"""What `workers.kafka.commit.pack` leans on in aiokafka: a new version that changes it must fail here, not in
production."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from workers.apps.broker import Broker
from workers.core.frames import OutRecord
from workers.core.packed import PackedRecords
from workers.core.partitioning import partition_for
from workers.kafka.commit import pack


def test_the_c_builder_takes_records_and_says_none_when_full() -> None:
    builder = BatchBuilder(400, 0, is_transactional=True)
    append = builder._builder.append
    assert append(0, 1_700_000_000_000, b"key", b"v" * 1_000, []) is not None, "an empty batch takes any record"
    assert append(1, 1_700_000_000_000, b"key", b"v", []) is None, "a full batch takes none"
    builder._relative_offset = 1
    builder.close()
    assert builder.record_count() == 1
    assert builder.closed()


def native_records(records: list[OutRecord]) -> PackedRecords:
    """The same, packed."""
    return pytest.importorskip("workers._native").Records(records)  # type: ignore[no-any-return]


@pytest.mark.broker
@pytest.mark.parametrize("limit_bytes", [200, 1_000_000])
@pytest.mark.parametrize(
    ("is_native", "codec"),
    [(False, "lz4"), (True, "lz4"), (True, "gzip"), (True, "snappy"), (True, "zstd"), (True, None)],
)
async def test_packed_records_arrive_whole_in_order_and_where_murmur2_puts_them(
    broker: Broker, topic_name: str, limit_bytes: int, is_native: bool, codec: str | None
) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, compression_type=codec, transactional_id=topic_name
    )
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic_name, 3, 1, topic_configs={"retention.ms": "-1"})])
    await admin.close()
    records = [
        OutRecord(b"k%d" % (number % 7), b"%d" % number, 1_700_000_000_000 + number, (("h", b"x"),) * (number % 2))
        for number in range(100)
    ]
    records.append(OutRecord(None, b"keyless"))
    await producer.start()
    try:
        async with producer.transaction():
            written = native_records(records) if is_native else records
            packed = pack(written, producer, limit_bytes=limit_bytes, partitions=3, partition=None, keyless=2)
            assert (len(packed) > 3) is (limit_bytes == 200)
            for future in [await producer.send_batch(batch, topic_name, partition=to) for to, batch in packed]:
                await future
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(
        topic_name,
        bootstrap_servers=broker.bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    found = [await consumer.getone() for _ in records]
    await consumer.stop()
    for partition in range(3):
        expected = [
            (record.key, record.value, record.headers)
            for record in records
            if (2 if record.key is None else partition_for(record.key, 3)) == partition
        ]
        assert [(each.key, each.value, each.headers) for each in found if each.partition == partition] == expected
