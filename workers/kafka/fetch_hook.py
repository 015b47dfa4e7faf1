"""Whole record batches from aiokafka's consumer, instead of a Python object per record.

`install` changes one started consumer, and nothing else in the process: its ``getmany`` then hands out `RawBatch`
objects, or records as always, but then also those that aiokafka can't decode. What stays as it is in aiokafka's
fetcher: positions, checksums, aborted transactions and control batches left out, pausing, errors. ``max_records`` then
counts batches. Records in the formats before v2, which no broker since Kafka 4.0 writes, are handed out one by one, as
always.

How: the fetcher's ``_proc_fetch_request`` makes ``PartitionRecords`` over ``MemoryRecords``, both found among its
module's globals. The consumer's fetcher gets a copy of that function whose globals name other classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

import aiokafka
import structlog
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord

from workers.core.records import RawBatch
from workers.errors import BrokerError, WorkersError
from workers.kafka.unpacking import CODECS
from workers.native.probe import checksum, reader

__all__ = ["HookError", "install"]

_REPLACED: Final = ("MemoryRecords", "PartitionRecords")
_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT, _BEHIND_LENGTH, _MAGIC_AT, _COUNT_AT, _RECORDS_AT = 8, 12, 16, 57, 61
_TIMES: Final = struct.Struct(">qq")
_TIMES_AT: Final = 27
_CHECKSUM: Final = struct.Struct(">I")
_CHECKSUM_AT, _BEHIND_CHECKSUM = 17, 21
_CODEC_MASK: Final = 0x07
_V2: Final = 2

GLANCE_BYTES: Final = 32 * 1024 * 1024

_reader: Final = reader()
log = structlog.get_logger(__name__)


class HookError(WorkersError):
    """This aiokafka is not built the way that handing out whole batches needs."""


def install(consumer: aiokafka.AIOKafkaConsumer, *, records: bool = False, glances: bool = False) -> None:
    """Make a consumer hand out `RawBatch` objects. Between its ``start()`` and its first fetch.

    ``records``: it hands out records one by one, as it did, whatever the names of their headers: aiokafka raises where
    one is not UTF-8, good records before and behind it included. It then may have fetched already. ``glances``: it
    hands out records, and none of a batch of which more than `GLANCE_BYTES` would have to be unpacked before them.
    Raises `HookError` where aiokafka is not as expected, or the consumer was not started or has fetched already.
    """
    found = getattr(consumer, "_fetcher", None)
    if found is None:
        raise HookError("the consumer was not started; install the hook after start() and before subscribe()")
    if not (records or glances) and (found._records or found._pending_tasks):
        raise HookError("the consumer is fetching already; install the hook after start() and before subscribe()")
    original = type(found)._proc_fetch_request
    missing = [name for name in _REPLACED if name not in original.__code__.co_names]
    if missing or "_proc_fetch_request" in vars(found):
        raise HookError(
            f"aiokafka {aiokafka.__version__}: Fetcher._proc_fetch_request does not use {', '.join(missing)}, or is "
            "replaced already; use aiokafka 0.14"
        )
    kind = _Glances if glances else _Records if records else _BatchRecords
    scope = dict(original.__globals__, MemoryRecords=_BatchSlices, PartitionRecords=kind)
    copy = FunctionType(original.__code__, scope, original.__name__, original.__defaults__, original.__closure__)
    copy.__kwdefaults__ = original.__kwdefaults__
    found._proc_fetch_request = MethodType(copy, found)


class _BatchSlices:
    """aiokafka's ``MemoryRecords``, which also says which bytes a batch was read from."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._data = memoryview(data)
        self._position = 0

    def size_in_bytes(self) -> int:
        return len(self._data)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> tuple[Any, memoryview]:
        """The next batch as aiokafka reads it, and its bytes."""
        begin = self._position
        self._position += _BEHIND_LENGTH + _LENGTH.unpack_from(self._data, begin + _LENGTH_AT)[0]
        return self._records.next_batch(), self._data[begin : self._position]


class _BatchRecords(aiokafka_fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """aiokafka's ``PartitionRecords`` that goes from batch to batch; the rules are those of its ``_unpack_records``."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[object]:
        while self._records.has_next():
            batch, data = self._records.next_batch()
            if self._check_crcs and not _is_intact(batch, data):
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if data[_MAGIC_AT] < _V2:
                yield from self._one_by_one(batch)
                continue
            wanted_from, self.next_fetch_offset = self.next_fetch_offset, batch.next_offset
            if self._is_aborted(batch) or batch.is_control_batch or batch.next_offset <= wanted_from:
                self.next_fetch_offset = max(batch.next_offset, wanted_from)
                continue
            yield from self._hand_out(batch, data, wanted_from)

    def _hand_out(self, batch: Any, data: memoryview, wanted_from: int) -> Iterator[object]:
        raw = _raw_batch(batch, data, wanted_from)
        if raw.count:
            yield raw

    def _is_aborted(self, batch: Any) -> bool:
        if self._isolation_level != aiokafka_fetcher.READ_COMMITTED or batch.producer_id is None:
            return False
        self._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and self._contains_abort_marker(batch):
            self._aborted_producers.discard(batch.producer_id)
        return bool(batch.is_transactional and batch.producer_id in self._aborted_producers)

    def _one_by_one(self, batch: Any) -> Iterator[object]:
        for record in batch:
            if record.offset >= self.next_fetch_offset:
                self.next_fetch_offset = record.offset + 1
                yield self._consumer_record(self._tp, record)
        self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)


class _Records(_BatchRecords):
    """One by one. By native code, which never has all of a batch in memory; without it by aiokafka, wherever it can: it
    raises on a header whose name is not UTF-8."""

    def _hand_out(self, batch: Any, data: memoryview, wanted_from: int) -> Iterator[object]:
        self.next_fetch_offset = wanted_from
        for record in self._records_of(batch, data, wanted_from):
            if record.offset >= self.next_fetch_offset:
                self.next_fetch_offset = record.offset + 1
                yield record
        self.next_fetch_offset = max(batch.next_offset, wanted_from)

    def _records_of(self, batch: Any, data: memoryview, wanted_from: int) -> Iterable[ConsumerRecord[bytes, bytes]]:
        if _reader is not None:
            return self._read(_raw_batch(batch, data, wanted_from))
        try:
            return [self._consumer_record(self._tp, record) for record in batch]
        except MemoryError:
            raise
        except Exception:  # whatever it is, our own reader knows better what can be read
            return self._read(_raw_batch(batch, data, wanted_from))

    def _read(self, batch: RawBatch) -> Iterator[ConsumerRecord[bytes, bytes]]:
        topic, partition = self._tp
        try:
            for record in batch.records():
                key, value = record.key, record.value
                sizes = (-1 if key is None else len(key), -1 if value is None else len(value))
                yield ConsumerRecord(
                    topic,
                    partition,
                    record.offset,
                    record.timestamp,
                    batch.timestamp_type,
                    key,
                    value,
                    None,
                    *sizes,
                    record.headers,
                )
        except BrokerError as error:
            raise BrokerError(
                f"{topic}[{partition}]: {error}, though its checksum is good; the producer that "
                "wrote it is broken. Nothing after it can be read: start over behind it, or delete it from the log"
            ) from error


class _Glances(_Records):
    """One by one, of a batch only what is found soon: whoever looks for a few records must not unpack gigabytes."""

    def _read(self, batch: RawBatch) -> Iterator[ConsumerRecord[bytes, bytes]]:
        if _reader is not None:
            batch.reader = partial(_reader, most_passed=GLANCE_BYTES)
        try:
            yield from super()._read(batch)
        except BrokerError as error:
            log.debug("not all of a batch is looked at", error=str(error))


def _is_intact(batch: Any, data: memoryview) -> bool:
    """Whether a batch has the checksum that it says: by the processor's own instruction, where there is native code;
    aiokafka computes it in software, at some 15 ns a tick."""
    if checksum is None or data[_MAGIC_AT] < _V2:
        return bool(batch.validate_crc())
    (said,) = _CHECKSUM.unpack_from(data, _CHECKSUM_AT)
    return bool(checksum(bytes(data[_BEHIND_CHECKSUM:])) == said)


def _raw_batch(batch: Any, data: memoryview, wanted_from: int) -> RawBatch:
    unpack = None
    compression = batch.attributes & _CODEC_MASK
    if compression:
        if compression not in CODECS:
            raise UnsupportedCodecError(f"Unknown compression codec {compression:#04x}")
        name, is_there, unpack = CODECS[compression]
        if not is_there():
            raise UnsupportedCodecError(f"Libraries for {name} compression codec not found")
    first_timestamp, max_timestamp = _TIMES.unpack_from(data, _TIMES_AT)
    return RawBatch(
        batch.base_offset,
        batch.next_offset,
        _LENGTH.unpack_from(data, _COUNT_AT)[0],
        first_timestamp,
        max_timestamp,
        1 if batch.timestamp_type == 1 else 0,
        max(wanted_from, batch.base_offset),
        data[_RECORDS_AT:],
        unpack,
        compression,
        _reader,
    )
