"""Lane state and the changelog's records: two plain functions each way.

A changelog partition holds, compacted,

    key                         value
    b"m"                        JSON: format, input offset, partition time, counts, the settings that give them meaning,
                                records of each kind, topics
    b"w" start symbol           one window: flags, rev, count, times, what flags announce, the aggregation's own bytes
    b"i" start segment symbol   MessagePack: items of that window, as many as came between two commits, or fit
    b"o" stage ...              state of a pipeline stage (`workers.core.pipeline.stage`)
    b"h" ...                    ticks that are held for being ahead of their time (`workers.core.quarantine`)

with ``start`` as 8 and ``segment`` as 4 bytes, big-endian. A record is written when its window changed and deleted
(tombstone) when the window is dropped, so a commit costs what changed, not what is kept. Keys' clocks need no record of
their own: `workers.core.windows.engine` says why.

``b"m"`` also says how many records of each kind there are, and of which topics all of it is. The number makes known
whether a state is whole (`check_whole`). A log is cut at its beginning, by kafka-delete-records, by a retention or by
making its topic anew, or at its end. A cut at the beginning takes records away and changes none: of each key the last
record is there as it was, or it is missing, and then they are fewer than the last commit has counted. A cut at the end
takes the last commit away, too, and the group's offset tells. So counting finds what a digest of keys and values would
find, and no window has to keep what its last record was: a commit knows of each that it writes whether there is one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from workers.core.effects import Counts
from workers.core.encoding import to_json
from workers.core.frames import OutRecord
from workers.core.steps import Portion, run_through
from workers.core.windows.window import Window
from workers.errors import StateFormatError, StateMismatchError
from workers.times import format_duration

__all__ = [
    "LaneMeta",
    "StoredRecords",
    "TopicIdentity",
    "check_fingerprint",
    "check_topics",
    "check_whole",
    "count_in_steps",
    "differing_settings",
    "entries_of",
    "read_meta",
    "read_state",
    "read_state_in_steps",
    "symbol_of_window",
    "write_meta",
    "write_windows",
]

FORMAT: Final = 1
META_KEY: Final = b"m"
SEGMENT_BYTES: Final = 512 * 1024  # of items in one record; one item may have more
BYTES_OF_UNIT: Final = 2_048  # of items read in the time of a unit of `workers.core.steps`
_WINDOW = Struct("<BBIQqqqI")  # version, flags, rev, count, end, first, last, segments
_START = Struct(">q")
_SEGMENT = Struct(">qI")
_CLOSED, _CHANGED = 1, 2
_OWN_CLOCK = 4  # the time that the clock was set to through the window is not that of its last tick; 8 bytes more
_SHOWN = 8
_ORDERED = 16  # segments of items also hold the items' orders
_SETTLED = 64  # the input has ended
_CORRECTED = 32  # the items are more than the ticks: some are corrections of others
_CLOCK = Struct("<q")


class TopicIdentity(NamedTuple):
    """A topic's name, and Kafka's id of it: one that is made again under the same name has another. None: not told."""

    name: str
    id: str | None = None


@dataclass(slots=True)
class StoredRecords:
    """How many records of each kind a changelog partition holds, but for that of the commit."""

    windows: int = 0
    items: int = 0
    operators: int = 0
    held: int = 0

    def count(self, key: bytes) -> None:
        """One more, by its key."""
        name = _KINDS.get(key[:1])
        if name is not None:
            setattr(self, name, getattr(self, name) + 1)


_UNREADABLE: Final = (StructError, ValueError, KeyError, msgspec.DecodeError, StateFormatError)
_KINDS: Final = {b"w": "windows", b"i": "items", b"o": "operators", b"h": "held"}
_KINDS_SAID: Final = {
    "windows": "windows",
    "items": "records of windows' items",
    "operators": "records of operators",
    "held": "records of held ticks",
}


@dataclass(slots=True)
class LaneMeta:
    """What a commit says about a partition: everything before ``offset`` of the input is in the state.

    ``stored``: the records that the state consists of. ``topics``: what it was made of and written to, by role: "ticks"
    and "changelog".
    """

    offset: int
    partition_max_ns: int
    fingerprint: Mapping[str, object]
    counts: Counts = field(default_factory=Counts)
    stored: StoredRecords = field(default_factory=StoredRecords)
    topics: Mapping[str, TopicIdentity] = field(default_factory=dict)


def write_meta(meta: LaneMeta) -> OutRecord:
    """The changelog's record of a commit."""
    counts = asdict(meta.counts)
    for name in ("corrected", "control"):
        if not counts[name]:
            del counts[name]  # most inputs have neither corrections nor an end
    value = {
        "format": FORMAT,
        "offset": meta.offset,
        "partition_max_ns": meta.partition_max_ns,
        "counts": counts,
        "settings": meta.fingerprint,
        "stored": asdict(meta.stored),
        "topics": {role: topic._asdict() for role, topic in meta.topics.items()},
    }
    return OutRecord(META_KEY, to_json(value))


def write_windows(windows: Iterable[Window[str]], dump: Any, stored: StoredRecords) -> list[OutRecord]:
    """The changelog's records for windows that changed, and tombstones for the dropped; marks them as stored, and
    counts them in ``stored``.

    ``dump`` turns a window's aggregation state into bytes. A window that came and went between two commits leaves none.
    """
    records: list[OutRecord] = []
    for window in windows:
        symbol = window.key.encode()
        key = b"w" + _START.pack(window.start_ns) + symbol
        if window.dropped:
            if window.stored:
                records.append(OutRecord(key, None))
                records += _without_segments(window, symbol, 0)
                stored.windows -= 1
                stored.items -= window.stored_segments
            continue
        stored.windows += not window.stored
        if window.items is not None:
            stored.items -= window.stored_segments
            records += _fresh_segments(window, window.items, symbol)
            stored.items += window.stored_segments
        flags = (
            _CLOSED * window.closed
            | _CHANGED * window.changed
            | _OWN_CLOCK * (window.clock_ns != window.last_ns)
            | _SHOWN * window.shown
            | _SETTLED * window.settled
            | _ORDERED * (window.orders is not None)
            | _CORRECTED * (window.items is not None and len(window.items) != window.count)
        )
        head = _WINDOW.pack(
            FORMAT,
            flags,
            window.rev,
            window.count,
            window.end_ns,
            window.first_ns,
            window.last_ns,
            window.stored_segments,
        )
        if window.clock_ns != window.last_ns:
            head += _CLOCK.pack(window.clock_ns)
        records.append(OutRecord(key, head + (dump(window.state) if dump is not None else b"")))
        window.stored = True
    return records


def _fresh_segments(window: Window[str], items: Sequence[bytes], symbol: bytes) -> list[OutRecord]:
    """The records of the items that are not stored yet: of all, where sessions merged."""
    records: list[OutRecord] = []
    if items and not window.stored_items and window.stored_segments:  # the order of the items has changed
        records += _without_segments(window, symbol, 1)
        window.stored_segments = 0
    while window.stored_items < len(items):
        first = window.stored_items
        end = _segment_end(items, first)
        fresh: object = items[first:end] if window.orders is None else (window.orders[first:end], items[first:end])
        key = b"i" + _SEGMENT.pack(window.start_ns, window.stored_segments) + symbol
        records.append(OutRecord(key, msgspec.msgpack.encode(fresh)))
        window.stored_items = end
        window.stored_segments += 1
    return records


def _segment_end(items: Sequence[bytes], first: int) -> int:
    """Where the segment that begins with item ``first`` ends: a record must not be too large for its topic."""
    size = 0
    for number in range(first, len(items)):
        size += len(items[number])
        if size > SEGMENT_BYTES and number > first:
            return number
    return len(items)


def _without_segments(window: Window[str], symbol: bytes, first: int) -> list[OutRecord]:
    """Tombstones for the window's segments from number ``first`` on."""
    return [
        OutRecord(b"i" + _SEGMENT.pack(window.start_ns, segment) + symbol, None)
        for segment in range(first, window.stored_segments)
    ]


def symbol_of_window(key: bytes) -> bytes:
    """The symbol whose window, or whose window's items, a changelog key is of."""
    return key[1 + (_START.size if key[:1] == b"w" else _SEGMENT.size) :]


def entries_of(records: Iterable[OutRecord]) -> dict[bytes, bytes]:
    """What a compacted topic holds after these records: the last value of each key, tombstones gone."""
    entries: dict[bytes, bytes] = {}
    for record in records:
        assert record.key is not None
        if record.value is None:
            entries.pop(record.key, None)
        else:
            entries[record.key] = record.value
    return entries


def read_state(entries: Mapping[bytes, bytes], load: Any, *, where: str) -> tuple[LaneMeta | None, list[Window[str]]]:
    """The state that the last record of each key describes; ``where`` names the changelog partition in errors.

    Raises `StateFormatError` where a record is of another format, damaged, or misses a part.
    """
    return run_through(read_state_in_steps(entries, load, where=where))


def read_state_in_steps(
    entries: Mapping[bytes, bytes], load: Any, *, where: str
) -> Generator[None, None, tuple[LaneMeta | None, list[Window[str]]]]:
    """`read_state`, with a pause after each portion."""
    meta = read_meta(entries, where=where)
    windows: list[Window[str]] = []
    portion = Portion()
    for key, value in entries.items():
        kind = key[:1]
        if portion.is_done(1 if kind == b"w" else 0.1):
            yield
        try:
            if kind == b"w":
                windows.append((yield from _read_window(key, value, load, entries, portion)))
            elif key != META_KEY and kind not in _KINDS:
                raise StateFormatError(f"unknown kind of record {kind!r}")
        except _UNREADABLE as error:
            raise _unreadable(key, error, where) from error
    if meta is None and windows:
        raise StateFormatError(
            f"the changelog {where} holds {len(windows)} windows but not the input offset they reflect; "
            "start over with `workers state reset`"
        )
    return meta, windows


def read_meta(entries: Mapping[bytes, bytes], *, where: str) -> LaneMeta | None:
    """What the last commit says; None where there was none. Raises `StateFormatError`, as `read_state`."""
    value = entries.get(META_KEY)
    if value is None:
        return None
    try:
        found = orjson.loads(value)
        if found["format"] != FORMAT:
            raise StateFormatError(f"its format is {found['format']}; this version reads format {FORMAT}")
        return LaneMeta(
            found["offset"],
            found["partition_max_ns"],
            found["settings"],
            Counts(**found["counts"]),
            StoredRecords(**found["stored"]),
            {role: TopicIdentity(**topic) for role, topic in found["topics"].items()},
        )
    except (*_UNREADABLE, TypeError) as error:
        raise _unreadable(META_KEY, error, where) from error


def _unreadable(key: bytes, error: Exception, where: str) -> StateFormatError:
    return StateFormatError(
        f"the changelog {where} holds a record that can't be read, key {key[:64]!r}: {error}. "
        "It was written by another version or another program; use the version that wrote it, or start over "
        "with `workers state reset`"
    )


def _read_window(
    key: bytes, value: bytes, load: Any, entries: Mapping[bytes, bytes], portion: Portion
) -> Generator[None, None, Window[str]]:
    if value[0] != FORMAT:
        raise StateFormatError(f"its format is {value[0]}; this version reads format {FORMAT}")
    _, flags, rev, count, end_ns, first_ns, last_ns, segments = _WINDOW.unpack_from(value)
    (start_ns,) = _START.unpack_from(key, 1)
    symbol = key[9:]
    rest = _WINDOW.size
    clock_ns = last_ns
    if flags & _OWN_CLOCK:
        (clock_ns,) = _CLOCK.unpack_from(value, rest)
        rest += _CLOCK.size
    window: Window[str] = Window(
        symbol.decode(),
        start_ns,
        end_ns,
        count=count,
        first_ns=first_ns,
        last_ns=last_ns,
        clock_ns=clock_ns,
        rev=rev,
        closed=bool(flags & _CLOSED),
        changed=bool(flags & _CHANGED),
        shown=bool(flags & _SHOWN),
        settled=bool(flags & _SETTLED),
        stored=True,
    )
    if load is not None:
        window.state = load(value[rest:])
    if segments:
        stored = (entries[b"i" + _SEGMENT.pack(start_ns, segment) + symbol] for segment in range(segments))
        items: list[bytes] = []
        if flags & _ORDERED:
            window.orders = orders = []
            for data in stored:
                if portion.is_done(len(data) / BYTES_OF_UNIT):
                    yield
                found = msgspec.msgpack.decode(data, type=tuple[list[int], list[bytes]])
                orders += found[0]
                items += found[1]
        else:
            for data in stored:
                if portion.is_done(len(data) / BYTES_OF_UNIT):
                    yield
                items += msgspec.msgpack.decode(data, type=list[bytes])
        if (len(items) != count) != bool(flags & _CORRECTED):
            raise StateFormatError(f"it counts {count} ticks but keeps {len(items)}")
        window.items, window.stored_items, window.stored_segments = items, len(items), segments
    return window


def check_fingerprint(meta: LaneMeta, fingerprint: Mapping[str, object], *, where: str) -> None:
    """Raise `StateMismatchError` where the state was made under settings that give its windows another meaning."""
    differing = differing_settings(meta, fingerprint)
    if differing:
        raise StateMismatchError(
            f"the stored state {where} was made under other settings: {'; '.join(differing)}. Windows made "
            "so far would change their meaning. Give the old settings; run the new ones under another application_id "
            "and another topics.frames (it starts from the log, and in one topic the frames of both would mix); or "
            "drop the state with `workers state reset`"
        )


def check_topics(meta: LaneMeta, topics: Mapping[str, TopicIdentity], *, where: str) -> None:
    """Raise `StateMismatchError` where the state was made of another ticks topic, or of another life of it.

    Another changelog is no reason: what was copied from one to another is good where it is whole.
    """
    was, now = meta.topics.get("ticks"), topics.get("ticks")
    if was is None or now is None:
        return
    if was.name != now.name:
        raise StateMismatchError(
            f"the stored state {where} was made of the topic {was.name}, and topics.ticks is {now.name}: it would go "
            f'on at offset {meta.offset:,}, which is another record there. Set topics.ticks = "{was.name}"; or run '
            f"{now.name} under another application_id and another topics.frames; or drop the state with `workers state "
            "reset`"
        )
    if None not in (was.id, now.id) and was.id != now.id:
        raise StateMismatchError(
            f"the topic {was.name} was deleted and made again since the stored state {where} was made of it (its id "
            f"was {was.id}, is {now.id}): it would go on at offset {meta.offset:,}, which is another record now. Drop "
            "the state with `workers state reset`: then all that the topic holds is processed from its begin on"
        )


def check_whole(meta: LaneMeta, found: StoredRecords, changelog: TopicIdentity | None, *, where: str) -> None:
    """Raise `StateMismatchError` where the records that were ``found`` are not those that the state consists of.

    ``changelog`` is the topic they were found in.
    """
    if found == meta.stored:
        return
    wrong = [
        f"{getattr(found, kind):,} {said}, expected {getattr(meta.stored, kind):,}"
        for kind, said in _KINDS_SAID.items()
        if getattr(meta.stored, kind) != getattr(found, kind)
    ]
    was = meta.topics.get("changelog")
    why = "Records were deleted from it (kafka-delete-records, or a retention while it was not compacted)"
    if was is not None and changelog is not None and was.id != changelog.id:
        why = f"The topic was deleted and made again (its id was {was.id}, is {changelog.id})"
    raise StateMismatchError(
        f"the changelog {where} is not whole: found {'; '.join(wrong)}. {why}. Windows that are missing would never "
        "come out. Put back a whole copy of the changelog, or drop the state with `workers state reset`: then what the "
        "ticks topic still holds is processed again"
    )


def count_in_steps(entries: Iterable[bytes]) -> Generator[None, None, StoredRecords]:
    """How many records of each kind there are, by their keys, with a pause after each portion."""
    found, portion = StoredRecords(), Portion()
    for key in entries:
        found.count(key)
        if portion.is_done(0.03):
            yield
    return found


def differing_settings(meta: LaneMeta, fingerprint: Mapping[str, object]) -> list[str]:
    """What differs between the settings that state was made under and those given, each as users write it."""
    return [
        f"{name.removesuffix('_ns')} was {_written(name, meta.fingerprint.get(name))}, "
        f"is {_written(name, fingerprint.get(name))}"
        for name in sorted({*meta.fingerprint, *fingerprint})
        if meta.fingerprint.get(name) != fingerprint.get(name)
    ]


def _written(name: str, value: object) -> str:
    """A setting's value as a configuration has it; nanoseconds are durations there."""
    if value is None:
        return "not given"
    plain = _without_ns(name, value)
    return plain if isinstance(plain, str) else orjson.dumps(plain).decode()


def _without_ns(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return {each.removesuffix("_ns"): _without_ns(each, inner) for each, inner in value.items()}
    if isinstance(value, list):
        return [_without_ns("", each) for each in value]
    return format_duration(value) if name.endswith("_ns") and isinstance(value, int) else value
