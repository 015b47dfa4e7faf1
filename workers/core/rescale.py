"""The state of an application for more input partitions: keys move to where Kafka's partitioner puts them from then on.

A key's state is its windows, its clock within them, and what operators keep of it; all of it moves as it is stored, byte
for byte. So its frames go on as if nothing had happened, provided that its ticks do: all that lie in the old partition
are in the state when it moves, and all that come lie in the new one. Whoever calls has to see to that.

What can't move is refused. With a watermark per partition a key's windows are closed by others' ticks, and those would
be others. A tick that is held back is known by its offset, which means nothing in another partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from workers.core.lane import Input, Lane
from workers.core.partitioning import partition_for
from workers.core.pipeline.stage import symbol_in
from workers.core.quarantine import CLOCK, SUSPECT
from workers.core.snapshot import META_KEY, LaneMeta, symbol_of_window, write_meta
from workers.core.spec import LaneSpec
from workers.core.windows.window import LONG_AGO
from workers.errors import StateFormatError, StateMismatchError

__all__ = ["Rescaled", "rescale", "symbol_of"]

Entries = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Rescaled:
    """The state of each partition of so many, and how many keys have moved."""

    partitions: list[dict[bytes, bytes]]
    keys: int
    moved: int


def symbol_of(key: bytes) -> bytes | None:
    """The symbol whose state a changelog record of this key holds; None where it is the partition's.

    Raises `StateFormatError` for a key of no kind known here.
    """
    match key[:1]:
        case b"w" | b"i":
            return symbol_of_window(key)
        case b"o":
            return symbol_in(key)
        case b"h" if key.startswith(SUSPECT):
            return key[len(SUSPECT) :]
    if key in (META_KEY, CLOCK):
        return None
    raise StateFormatError(f"unknown kind of record {key[:64]!r} in stored state")


def rescale(states: Sequence[Entries], spec: LaneSpec, topic: str, partitions: int) -> Rescaled:
    """The stored state of each of ``partitions`` input partitions, from that of the fewer there were.

    New partitions begin at offset 0 and with nothing counted; the others keep both. Event time, where it belongs to a
    partition, is in each the greatest there was.

    Raises `StateMismatchError` for what can't be moved, `StateFormatError` for what can't be read.
    """
    old = len(states)
    if partitions <= old:
        raise StateMismatchError(
            f"the state is of {old} input partitions already; expected more than that to change to"
        )
    if spec.scope == "partition":
        raise StateMismatchError(
            "window.watermark_scope is partition: a key's windows wait for all keys of its partition, which would be "
            "others. State can be moved with the scope key"
        )
    metas = [_checked(entries, spec, Input(topic, number, old)) for number, entries in enumerate(states)]
    moved: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
    keys: dict[bytes, int] = {}
    for number, entries in enumerate(states):
        for symbol, key, value in _of_symbols(entries):
            home = partition_for(symbol, partitions)
            keys[symbol] = home != number
            _check_home(symbol, number, old)
            moved[home][key] = value
    _put_metas(moved, metas, spec, topic)
    clocks = [msgspec.msgpack.decode(entries[CLOCK], type=int) for entries in states if CLOCK in entries]
    for entries in moved if clocks else ():
        entries[CLOCK] = msgspec.msgpack.encode(max(clocks))
    return Rescaled(moved, len(keys), sum(keys.values()))


def _checked(entries: Entries, spec: LaneSpec, source: Input) -> LaneMeta:
    """What a partition's state says of itself, once a lane has taken it; of a partition without state, nothing."""
    where = f"of {source.topic}[{source.partition}]"
    meta = Lane(spec, source).restore(entries, where=where)
    if meta is None:
        return LaneMeta(0, LONG_AGO, {})
    if meta.counts.held:
        raise StateMismatchError(
            f"the state {where} holds {meta.counts.held} ticks back (tick.max_jump, or an operator that conflates). They "
            "are known by where they lie in their partition, and can't be moved. End the input (`workers produce "
            "--finish`), let the workers read to its end, and try again"
        )
    return meta


def _of_symbols(entries: Entries) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Symbol, key and value of all that is a symbol's."""
    for key, value in entries.items():
        symbol = symbol_of(key)
        if symbol is not None:
            yield symbol, key, value


def _check_home(symbol: bytes, number: int, partitions: int) -> None:
    home = partition_for(symbol, partitions)
    if home != number:
        raise StateMismatchError(
            f"{symbol.decode()!r} has state of partition {number}, but Kafka's partitioner puts it into {home} of "
            f"{partitions}: its producer has another partitioner, and where that puts it from now on is not known. Set "
            "partitioner=murmur2_random (librdkafka's name for it) there, and start over with `workers state reset`"
        )


def _put_metas(moved: list[dict[bytes, bytes]], metas: Sequence[LaneMeta], spec: LaneSpec, topic: str) -> None:
    """Give each partition its record of offset, time and counts, under the fingerprint of so many partitions."""
    greatest_ns = max((meta.partition_max_ns for meta in metas), default=LONG_AGO)
    for number, entries in enumerate(moved):
        meta = metas[number] if number < len(metas) else LaneMeta(0, greatest_ns, {})
        fingerprint = Lane(spec, Input(topic, number, len(moved))).fingerprint
        record = write_meta(replace(meta, partition_max_ns=greatest_ns, fingerprint=fingerprint))
        assert record.key is not None
        assert record.value is not None
        entries[record.key] = record.value
