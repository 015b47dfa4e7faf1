"""Record batches as brokers store them, built by aiokafka's own builder, for lanes that take batches."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c as crc32c

from workers.core.records import RawBatch, RawRecord, Record
from workers.kafka.unpacking import CODECS
from workers.native.probe import reader

__all__ = ["batches", "build_batch", "by_hand", "packed", "varint", "with_header_names"]

HEADER_BYTES = 61
NO_LIMIT = 1 << 30


def packed(records: Sequence[Record], compression: int = 0) -> bytes:
    """A whole record batch (format v2) of the records; offsets must rise."""
    first = records[0].offset
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, NO_LIMIT)
    for record in records:
        added = builder.append(record.offset - first, record.timestamp, record.key, record.value, list(record.headers))
        assert added is not None
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, first)
    return bytes(data)


def build_batch(records: Sequence[Record], *, start_offset: int | None = None, codec: int = 0) -> RawBatch:
    """The same as the fetch hook hands it out, by native code where it is packed."""
    data = packed(records, codec)
    first_timestamp, max_timestamp = struct.unpack_from(">qq", data, 27)
    first, last = records[0].offset, records[-1].offset
    return RawBatch(
        first,
        last + 1,
        len(records),
        first_timestamp,
        max_timestamp,
        0,
        first if start_offset is None else start_offset,
        data[HEADER_BYTES:],
        CODECS[codec][2] if codec else None,
        codec,
        reader() if codec else None,
    )


def varint(number: int) -> bytes:
    """A zigzag varint."""
    left, out = (number << 1) ^ (number >> 63), bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left])


def by_hand(records: Sequence[RawRecord], names: Mapping[str, bytes]) -> RawBatch:
    """A batch as no client's builder writes it: any timestamps, and ``names`` in place of headers' names."""
    first, payload = records[0].offset, bytearray()
    for record in records:
        body = bytearray(b"\0" + varint(record.timestamp) + varint(record.offset - first))
        for part in (record.key, record.value):
            body += varint(-1) if part is None else varint(len(part)) + part
        body += varint(len(record.headers))
        for name, content in record.headers:
            written = names.get(name, name.encode())
            body += varint(len(written)) + written
            body += varint(-1) if content is None else varint(len(content)) + content
        payload += varint(len(body)) + body
    return RawBatch(first, records[-1].offset + 1, len(records), 0, 0, 0, first, bytes(payload))


def with_header_names(data: bytes, names: Mapping[str, bytes]) -> bytes:
    """A whole record batch in which headers have names that no builder writes; each as long as the one it replaces."""
    for name, wanted in names.items():
        assert len(name.encode()) == len(wanted)
        data = data.replace(varint(len(wanted)) + name.encode(), varint(len(wanted)) + wanted)
    return data[:17] + struct.pack(">I", crc32c(data[21:])) + data[21:]


def batches(records: Sequence[Record], bounds: Sequence[int]) -> Iterator[RawBatch]:
    """The records cut at rising positions; empty pieces leave no batch."""
    edges = [0, *bounds, len(records)]
    for begin, end in pairwise(edges):
        if begin < end:
            yield build_batch(records[begin:end])
