"""The state of an application for more input partitions: keys move to where Kafka's partitioner puts them then.

A key's state is its windows, its clock within them, and what operators keep of it; all of it moves as it is stored,
byte for byte. So its frames go on as if nothing had happened, provided that its ticks do: all that lie in the old
partition are in the state when it moves, and all that come lie in the new one. Whoever calls has to see to that.

What can't move is refused. With a watermark per partition a key's windows are closed by others' ticks, and those would
be others. A tick that is held back is known by its offset, which means nothing in another partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from workers.core.lane import Input, Lane
from workers.core.partitioning import partition_for
from workers.core.pipeline.stage import symbol_in
from workers.core.quarantine import CLOCK
from workers.core.snapshot import META_KEY, LaneMeta, StoredRecords, symbol_of_window, write_meta
from workers.core.spec import LaneSpec
from workers.core.windows.window import LONG_AGO
from workers.errors import StateFormatError, StateMismatchError

__all__ = ["Rescaled", "rescale", "symbol_of"]

Entries = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Rescaled:
    """The state of each partition, how many keys there are, how many of them have moved, and what the group's offsets
    are to say of the settings (`Lane.settings_digest`)."""

    partitions: list[dict[bytes, bytes]]
    keys: int
    moved: int
    settings: str


def symbol_of(key: bytes) -> bytes | None:
    """The symbol whose state a changelog record of this key holds; None where it is the partition's.

    Raises `StateFormatError` for a key of no kind known here.
    """
    match key[:1]:
        case b"w" | b"i":
            return symbol_of_window(key)
        case b"o":
            return symbol_in(key)
    if key in (META_KEY, CLOCK):
        return None
    raise StateFormatError(f"can't tell whose state a record with the key {key[:64]!r} is")


def rescale(states: Sequence[Entries], spec: LaneSpec, source: Input) -> Rescaled:
    """The stored state of each of ``source.partitions`` input partitions, from that of the fewer there were.

    New partitions begin at offset 0 and with nothing counted; the others keep both. Event time, where it belongs to a
    partition, is in each the greatest there was.

    Raises `StateMismatchError` for what can't be moved, `StateFormatError` for what can't be read.
    """
    old, partitions = len(states), source.partitions
    if partitions <= old:
        raise StateMismatchError(f"the state is of {old} input partitions; expected more than that to change to")
    if spec.scope == "partition":
        raise StateMismatchError(
            "window.watermark_scope is partition: a key's windows wait for all keys of its partition, which would be "
            "others. Only state with the scope key can be moved"
        )
    metas = [_checked(states[number], spec, replace(source, partition=number, partitions=old)) for number in range(old)]
    moved: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
    homes: dict[bytes, int] = {}
    movers = 0
    for number, entries in enumerate(states):
        for key, value in entries.items():
            symbol = symbol_of(key)
            if symbol is None:
                continue
            home = homes.get(symbol)
            if home is None:
                _check_home(symbol, number, old)
                home = homes[symbol] = partition_for(symbol, partitions)
                movers += home != number
            moved[home][key] = value
    _put_clocks(moved, states)
    lanes = [Lane(spec, replace(source, partition=number)) for number in range(partitions)]
    _put_metas(moved, metas, lanes)
    return Rescaled(moved, len(homes), movers, lanes[0].settings_digest)


def _checked(entries: Entries, spec: LaneSpec, source: Input) -> LaneMeta:
    """What a partition's state says of itself, when a lane has taken it; of a partition without state, nothing."""
    where = f"of {source.topic}[{source.partition}]"
    meta = Lane(spec, source).restore(entries, where=where)
    if meta is None:
        return LaneMeta(0, LONG_AGO, {})
    if meta.counts.held:
        raise StateMismatchError(
            f"the state {where} holds {meta.counts.held} ticks back (tick.max_jump, or an operator that conflates). "
            "They are known by where they lie in their partition, and can't be moved. End the input (`workers produce "
            "--finish`), let the workers read to its end, and try again"
        )
    return meta


def _check_home(symbol: bytes, number: int, partitions: int) -> None:
    """A key is where the partitioner puts it, or nobody knows where its producer will put it from now on."""
    home = partition_for(symbol, partitions)
    if home != number:
        raise StateMismatchError(
            f"{symbol.decode()!r} has state in partition {number}, but Kafka's partitioner puts it into {home} of "
            f"{partitions}: its producer has another partitioner, and where that puts it among more is not known. Have "
            "it use Kafka's own (partitioner=murmur2_random in librdkafka), and start over with `workers state reset`"
        )


def _put_clocks(moved: Sequence[dict[bytes, bytes]], states: Sequence[Entries]) -> None:
    """Give each partition the greatest time that any has let through, where times are judged by it."""
    clocks = [msgspec.msgpack.decode(entries[CLOCK], type=int) for entries in states if CLOCK in entries]
    for entries in moved if clocks else ():
        entries[CLOCK] = msgspec.msgpack.encode(max(clocks))


def _put_metas(moved: Sequence[dict[bytes, bytes]], metas: Sequence[LaneMeta], lanes: Sequence[Lane]) -> None:
    """Give each partition its record of offset, time and counts."""
    greatest_ns = max((meta.partition_max_ns for meta in metas), default=LONG_AGO)
    for number, (entries, lane) in enumerate(zip(moved, lanes, strict=True)):
        stored = StoredRecords()
        for key in entries:
            stored.count(key)
        meta = metas[number] if number < len(metas) else LaneMeta(0, greatest_ns, {})
        meta = lane.own(replace(meta, partition_max_ns=greatest_ns, stored=stored))
        record = write_meta(meta)
        assert record.value is not None
        entries[META_KEY] = record.value
