"""lz4 by this package: what any consumer reads, at the level that was meant."""

from __future__ import annotations

import cramjam
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from workers.kafka.lz4 import use_fast_lz4

LZ4 = 3
HEADER_BYTES = 61


def lz4(payload: bytes, *, level: int) -> bytes:
    compressor = cramjam.lz4.Compressor(level=level, content_checksum=False, block_linked=False)
    compressor.compress(payload)
    return bytes(compressor.finish())


def test_batches_of_all_producers_are_fast_lz4_and_read_back_the_same() -> None:
    use_fast_lz4()
    use_fast_lz4()
    values = [
        b'{"symbol":"SYM%04d","ts":%d,"price":%d.25,"size":10}' % (n % 900, 17 * n, n % 777) for n in range(5_000)
    ]
    batch = BatchBuilder(1 << 20, LZ4)
    for value in values:
        assert batch.append(timestamp=1, key=b"AAPL", value=value) is not None

    built = bytes(batch._build())

    records = MemoryRecords(built).next_batch()
    assert [record.value for record in records] == values
    compressed = built[HEADER_BYTES:]
    payload = bytes(cramjam.lz4.decompress(compressed))
    assert compressed == lz4(payload, level=1)
    assert compressed != lz4(payload, level=9)  # what the client does by itself
