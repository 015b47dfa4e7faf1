"""What a compacted topic holds, read natively, is what reading it record by record gives."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw_batches import HEADER_BYTES, build_batch, packed
from workers.core.records import RawBatch, RawRecord
from workers.errors import BrokerError
from workers.native.entries import put_entries

KEYS = st.none() | st.sampled_from([b"", b"m", b"w1", b"w2"]) | st.binary(max_size=3)
LOGS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=200)), min_size=1, max_size=60).map(
    lambda pairs: [RawRecord(5 + number, 1, key, value) for number, (key, value) in enumerate(pairs)]
)


def batch_of(records: list[RawRecord], codec: int = 0) -> RawBatch:
    return replace(build_batch(records), packed=packed(records, codec)[HEADER_BYTES:], codec=codec)


def entries_of(found: list[RawBatch]) -> dict[bytes, bytes]:
    entries: dict[bytes, bytes] = {}
    for batch in found:
        put_entries(entries, batch, where="changelog[0]")
    return entries


def expected(records: list[RawRecord]) -> dict[bytes, bytes]:
    held: dict[bytes, bytes] = {}
    for record in records:
        if record.key is not None and record.value is not None:
            held[record.key] = record.value
        elif record.key is not None:
            held.pop(record.key, None)
    return held


@given(LOGS, st.integers(1, 20), st.integers(0, 4), st.integers(0, 70))
def test_the_last_value_of_each_key_is_held(
    records: list[RawRecord], batch_size: int, codec: int, start_offset: int
) -> None:
    found = [
        replace(batch_of(records[first : first + batch_size], codec), start_offset=start_offset)
        for first in range(0, len(records), batch_size)
    ]
    assert entries_of(found) == expected([record for record in records if record.offset >= start_offset])


@given(LOGS, st.data())
def test_damaged_batches_are_refused_or_read(records: list[RawRecord], data: st.DataObject) -> None:
    batch = batch_of(records)
    payload = bytearray(batch.payload())
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = replace(
        batch,
        packed=bytes(payload[: data.draw(st.integers(0, len(payload)))]),
        count=data.draw(st.just(batch.count) | st.integers(0, 2**31)),
        codec=data.draw(st.integers(0, 7)),
    )
    with contextlib.suppress(BrokerError):
        entries_of([damaged])


def test_what_is_no_batch_is_refused() -> None:
    batch = batch_of([RawRecord(5, 1, b"a", b"1")])
    for broken in (replace(batch, packed=b"\xff" * 20), replace(batch, count=2), replace(batch, codec=3)):
        with pytest.raises(BrokerError, match=r"changelog\[0\]: the record batch of offsets 5 to 5 can't be read: "):
            entries_of([broken])
