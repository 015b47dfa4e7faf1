"""The deduplicating stage: a tick whose id its symbol had before is dropped, and skipped ids are noticed.

Time is the symbol's own: the greatest event time of its ticks seen here. An id first seen at event time ``t`` is
remembered until that clock reaches ``t + ttl``; repeats don't prolong it. So what is a duplicate depends on the log
alone, and with a ``ttl`` of at least lag and allowed lateness no repeat of a tick joins a window that still takes it.

    first seen        repeat                    repeat
    ────┼───────────────┼─────────────────────────┼──────▶ the symbol's greatest event time
        t            dropped         t + ttl   goes on, as new
        └────────── remembered ─────────┘

Ids are compared as JSON writes them: ``1``, ``1.0`` and ``"1"`` are three. Numbers count to their last digit, however
many there are, in arrays and objects too: none is compared as a float. ``1.50`` and ``15e-1`` are one number. A tick
without the id can't be judged: it goes on and is counted. The changelog gets, for each symbol that changed, its head
and the ids that were first seen since the last commit, in parts that fit a record; parts are deleted when their last id
is forgotten.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import msgspec
import orjson

from workers.core.effects import SequenceGap
from workers.core.encoding import to_json
from workers.core.frames import OutRecord
from workers.core.pipeline.stage import Departures, Passage, Stage, StageContext, StateKeys, SymbolStates
from workers.core.reasons import Reason
from workers.core.snapshot import SEGMENT_BYTES
from workers.core.steps import Portion
from workers.core.ticks import Tick

__all__ = ["Deduplicate", "Deduplicator", "identity_of", "sequence_number"]

DUPLICATE: Final = Reason.DUPLICATE  # once: a member of an enum is slow to look up
WITHOUT_ID: Final = "without_id"
FORGOTTEN_EARLY: Final = "forgotten_early"
GAP: Final = "gap"
FILLED: Final = "filled"

LONGEST_IDENTITY_BYTES: Final = 64
"""Longer ids are remembered by their hash: a record must not decide how much memory an id takes."""

FORGOTTEN_AT_ONCE: Final = 5_000  # ids, by one tick

BYTES_OF_UNIT: Final = 200  # of parts read in the time of a unit of `workers.core.steps`

PART_IDS: Final = SEGMENT_BYTES // (LONGEST_IDENTITY_BYTES + 16)
"""Ids in one changelog record, each with its time and what MessagePack adds: a record must not be too large for its
topic."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_STRING_OR_NUMBER = re.compile(rb'"(?P<string>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<number>-?[0-9][0-9.eE+-]*)')
_FRACTION = re.compile(rb"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_LONGEST_EXPONENT: Final = 18
_raw_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Deduplicate:
    """Drop ticks whose ``fields`` were seen of the same symbol within ``ttl_ns``.

    ``gaps``: the one field is an integer that counts up by 1 per symbol; report what is skipped. ``max_ids`` bounds
    what is remembered of one symbol; beyond it the oldest is forgotten early, and counted. ``ledger``: write what is
    dropped to the late topic.
    """

    fields: tuple[str, ...]
    ttl_ns: int
    gaps: bool = False
    max_ids: int = 100_000
    ledger: bool = True


@dataclass(slots=True, eq=False)
class _Memory:
    """The ids of one symbol, in the order they came, numbered from 0; ``first`` is the number of the oldest kept."""

    symbol: str
    clock_ns: int
    entries: deque[tuple[bytes, int]] = field(default_factory=deque)
    times: dict[bytes, int] = field(default_factory=dict)
    first: int = 0
    lowest: int | None = None
    greatest: int | None = None
    stored: bool = False
    stored_to: int = 0  # entries below this number are in the changelog
    parts: deque[tuple[int, int]] = field(default_factory=deque)  # (part, number after its last entry)
    next_part: int = 0

    @property
    def end(self) -> int:
        """The number that the next entry gets."""
        return self.first + len(self.entries)

    def remember(self, identity: bytes, ts_ns: int) -> None:
        self.entries.append((identity, ts_ns))
        self.times[identity] = ts_ns

    def drop_oldest(self) -> None:
        identity, ts_ns = self.entries.popleft()
        self.first += 1
        if self.times.get(identity) == ts_ns:  # else it was seen anew, and has a later entry
            del self.times[identity]


class Deduplicator(Stage):
    """See the module."""

    def __init__(self, spec: Deduplicate, context: StageContext) -> None:
        super().__init__("deduplicate", context, ledger=spec.ledger)
        self._spec = spec
        self._keys = StateKeys(context.index)
        self._memories: SymbolStates[_Memory] = SymbolStates(_Memory, context.key_ttl_ns)
        self._deletions: list[bytes] = []
        self._fresh = 0  # ids remembered since changes were taken

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        tick, ttl_ns = passage.tick, self._spec.ttl_ns
        identity = identity_of(tick, self._spec.fields)
        memory = self._memories.observe(tick.symbol, tick.ts_ns)
        self._bury()
        for _ in range(FORGOTTEN_AT_ONCE):  # a tick far ahead must not hold up the others; the next ones go on
            if not memory.entries or memory.entries[0][1] + ttl_ns > memory.clock_ns:
                break
            memory.drop_oldest()
        if identity is None:
            self._notice(WITHOUT_ID, departures)
            return (passage,)
        seen_ns = memory.times.get(identity)
        if seen_ns is not None and seen_ns + ttl_ns > memory.clock_ns:
            self._drop(passage, DUPLICATE, departures, {"first_ts": seen_ns // self.context.unit_ns})
            return ()
        if tick.ts_ns + ttl_ns > memory.clock_ns:
            memory.remember(identity, tick.ts_ns)
            self._fresh += 1
            if len(memory.entries) > self._spec.max_ids:
                if memory.entries[0][1] + ttl_ns > memory.clock_ns:
                    self._notice(FORGOTTEN_EARLY, departures)
                memory.drop_oldest()
        if self._spec.gaps:
            self._look_for_gap(memory, tick, departures)
        return (passage,)

    def _look_for_gap(self, memory: _Memory, tick: Tick, departures: Departures) -> None:
        number = sequence_number(tick.fields.get(self._spec.fields[0]))
        if number is None:
            self._notice(WITHOUT_ID, departures)
            return
        if memory.greatest is None or memory.lowest is None:
            memory.lowest = memory.greatest = number
        elif number > memory.greatest:
            if number > memory.greatest + 1:
                gap = SequenceGap(self.name, tick.symbol, memory.greatest + 1, number - 1, tick.offset)
                departures.gaps.append(gap)
                self._notice(GAP, departures)
            memory.greatest = number
        elif number > memory.lowest:
            self._notice(FILLED, departures)

    def _bury(self) -> None:
        """Have the records of forgotten symbols deleted; before a new state of the same symbol writes its own."""
        for memory in self._memories.take_forgotten():
            if memory.stored:
                self._deletions.append(self._keys.head(memory.symbol))
                self._deletions += [self._keys.part(memory.symbol, number) for number, _ in memory.parts]

    @property
    def changes_waiting(self) -> int:
        return self._fresh + self._memories.changes_waiting + len(self._deletions)

    def take_changes(self) -> list[OutRecord]:
        records = [OutRecord(key, None) for key in self._deletions]
        self.stored_records -= len(records)
        self._deletions.clear()
        for memory in self._memories.take_changed():
            symbol = memory.symbol
            while memory.parts and memory.parts[0][1] <= memory.first:
                records.append(OutRecord(self._keys.part(symbol, memory.parts.popleft()[0]), None))
                self.stored_records -= 1
            begin = max(memory.stored_to, memory.first)
            fresh = list(islice(reversed(memory.entries), memory.end - begin))[::-1]
            for first in range(0, len(fresh), PART_IDS):
                ids = fresh[first : first + PART_IDS]
                value = msgspec.msgpack.encode((begin + first, ids))
                records.append(OutRecord(self._keys.part(symbol, memory.next_part), value))
                memory.parts.append((memory.next_part, begin + first + len(ids)))
                memory.next_part += 1
                self.stored_records += 1
            memory.stored_to = memory.end
            head = (memory.clock_ns, memory.first, memory.next_part, memory.lowest, memory.greatest)
            records.append(OutRecord(self._keys.head(symbol), msgspec.msgpack.encode(head)))
            self.stored_records += not memory.stored
            memory.stored = True
        self._fresh = 0
        return records

    def restore(self, entries: Mapping[bytes, bytes]) -> Generator[None, None, None]:
        portion = Portion()
        memories: dict[str, _Memory] = {}
        for symbol, value in self._keys.heads_in(entries):
            clock_ns, first, next_part, lowest, greatest = msgspec.msgpack.decode(
                value, type=tuple[int, int, int, int | None, int | None]
            )
            memories[symbol] = _Memory(
                symbol,
                clock_ns,
                first=first,
                lowest=lowest,
                greatest=greatest,
                stored=True,
                stored_to=first,
                next_part=next_part,
            )
            if portion.is_done():
                yield
        parts: dict[str, list[tuple[int, bytes]]] = {}
        for symbol, number, value in self._keys.parts_in(entries):
            parts.setdefault(symbol, []).append((number, value))
            if portion.is_done(0.2):
                yield
        for symbol, found in parts.items():
            if symbol not in memories:
                raise ValueError(f"part {found[0][0]} of the ids of {symbol[:80]!r} has no head")
            for number, value in sorted(found):
                _restore_part(memories[symbol], number, value)
                if portion.is_done(1 + len(value) / BYTES_OF_UNIT):
                    yield
        self._memories.load(list(memories.values()))


def _restore_part(memory: _Memory, number: int, value: bytes) -> None:
    begin, found = msgspec.msgpack.decode(value, type=tuple[int, list[tuple[bytes, int]]])
    if max(begin, memory.first) != memory.end:
        raise ValueError(f"the ids of {memory.symbol[:80]!r} go on at {begin} in part {number}; expected {memory.end}")
    for identity, ts_ns in found[memory.end - begin :]:
        memory.remember(identity, ts_ns)
    memory.parts.append((number, begin + len(found)))
    memory.stored_to = memory.end


def identity_of(tick: Tick, names: Sequence[str]) -> bytes | None:
    """A tick's id, as it is remembered: the fields as JSON writes them; None where one of them is absent or null."""
    values = [_value(tick, name) for name in names]
    if None in values:
        return None
    identity = b",".join(value for value in values if value is not None)
    if len(identity) <= LONGEST_IDENTITY_BYTES:
        return identity
    return b"#" + hashlib.blake2b(identity, digest_size=24).digest()


def _value(tick: Tick, name: str) -> bytes | None:
    """A field as JSON writes it; None where it is absent or null."""
    value = tick.fields.get(name)
    if value is None:
        return None
    if type(value) in (float, list, dict):
        return _as_written(bytes(_raw_fields(tick.value)[name]))
    return to_json(value, option=orjson.OPT_SORT_KEYS)


def _as_written(text: bytes) -> bytes:
    """One form of all writings of a number, an array or an object that mean the same, without a loss of digits.

    Decoded, numbers with a fraction and integers beyond 64 bits would be floats, in which different ids are equal. So
    numbers go through the decoder, which sorts out blanks, escapes and the order of fields, as marked strings.
    """
    if text[0] not in b"[{":
        return _exact_number(text)
    marked = _STRING_OR_NUMBER.sub(_marked, text)
    return msgspec.json.encode(msgspec.json.decode(marked), order="sorted")


def _marked(found: re.Match[bytes]) -> bytes:
    number = found["number"]
    return b'"=' + found["string"] + b'"' if number is None else b'"#' + _exact_number(number) + b'"'


def _exact_number(text: bytes) -> bytes:
    """A JSON number: an integer as it is, another one as digits without zeros at the ends and a power of ten."""
    parts = _FRACTION.fullmatch(text)
    if parts is None or (parts[3] is None and parts[4] is None):
        return text
    sign, whole, fraction, power = parts[1], parts[2], parts[3] or b"", parts[4] or b"0"
    if len(power) > _LONGEST_EXPONENT:  # nobody's id; as written, since even an integer may be too long to read
        return text
    digits = (whole + fraction).lstrip(b"0")
    kept = digits.rstrip(b"0")
    exponent = int(power) - len(fraction) + len(digits) - len(kept) if kept else 0
    return b"%s%se%d" % (sign, kept or b"0", exponent)


def sequence_number(value: object) -> int | None:
    """A sequence number: an integer, or a string that is one, as exchanges send them."""
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    return int(value) if type(value) is str and _INTEGER.fullmatch(value) else None
