"""What every stage of a pipeline is made of: ticks on their way, the account of those taken out, state per symbol.

A stage takes one tick and gives back those that go on: none, that one, or others that it had held back. Like all of the
core it reads no clock; where it needs the time, that is the greatest event time it has seen, per symbol, so that one
symbol's progress takes nothing from another. What a symbol needs to go on rightly is kept as its windows are: for good,
or, with a ``key_ttl``, until it is more than that behind its partition, which is for others to say. That is a token
bucket, a time, or one tick held; and the ids of one symbol's ``ttl``, which a repeat may bring again however long the
symbol has been quiet: ``max_ids`` bounds them, and a ``key_ttl`` frees those of symbols that are gone.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, Generic, Protocol, TypeVar

from workers.core.effects import SequenceGap
from workers.core.frames import OutRecord
from workers.core.ledger import dropped_record
from workers.core.packed import OutRecords
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.ticks import Tick
from workers.core.windows.window import LONG_AGO

__all__ = [
    "Departures",
    "Passage",
    "Stage",
    "StageContext",
    "StateKeys",
    "SymbolState",
    "SymbolStates",
    "stage_of",
    "symbol_in",
]

_INDEX = Struct(">H")
_SEGMENT = Struct(">Q")
_HEAD, _PART = b"h", b"s"


@dataclass(slots=True)
class Passage:
    """A tick on its way to the windows, and the record that it was."""

    tick: Tick
    record: Record


class Departures(Protocol):
    """Where stages account for what does not go on, and what they noticed; `workers.core.effects.Effects` is one."""

    late: OutRecords
    routed: dict[str, OutRecords]
    taken_out: dict[tuple[Reason, str], int]  # (reason, stage) -> ticks
    noticed: dict[tuple[str, str], int]  # (what, stage) -> times
    gaps: list[SequenceGap]


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage knows of its lane; ``index`` is its place in the pipeline, from 0."""

    index: int
    topic: str
    partition: int
    unit_ns: int
    key_ttl_ns: int | None  # None: no symbol is ever forgotten


def stage_of(key: bytes) -> int | None:
    """The index of the stage whose state a changelog key is of; None where it is of none."""
    if key[:1] != b"o" or len(key) < 1 + _INDEX.size:
        return None
    (index,) = _INDEX.unpack_from(key, 1)
    return int(index)


def symbol_in(key: bytes) -> bytes:
    """The symbol whose state a changelog key of a stage is of."""
    rest = key[1 + _INDEX.size :]
    return rest[len(_HEAD) :] if rest.startswith(_HEAD) else rest[len(_PART) + _SEGMENT.size :]


class StateKeys:
    """The changelog keys of one stage: ``o``, its index, then a symbol's one head or its numbered parts."""

    def __init__(self, index: int) -> None:
        self.prefix: Final = b"o" + _INDEX.pack(index)

    def head(self, symbol: str) -> bytes:
        """The key of a symbol's record."""
        return self.prefix + _HEAD + symbol.encode()

    def part(self, symbol: str, number: int) -> bytes:
        """The key of one of a symbol's parts."""
        return self.prefix + _PART + _SEGMENT.pack(number) + symbol.encode()

    def heads_in(self, entries: Mapping[bytes, bytes]) -> Iterator[tuple[str, bytes]]:
        """Symbol and value of this stage's heads."""
        begin = self.prefix + _HEAD
        for key, value in entries.items():
            if key.startswith(begin):
                yield key[len(begin) :].decode(), value

    def parts_in(self, entries: Mapping[bytes, bytes]) -> Iterator[tuple[str, int, bytes]]:
        """Symbol, number and value of this stage's parts."""
        begin = self.prefix + _PART
        for key, value in entries.items():
            if key.startswith(begin):
                (number,) = _SEGMENT.unpack_from(key, len(begin))
                yield key[len(begin) + _SEGMENT.size :].decode(), number, value


class Stage(ABC):
    """One operator at work on one partition. ``name`` is its place, from 1, and its kind: ``2:throttle``."""

    def __init__(self, kind: str, context: StageContext, *, ledger: bool = False) -> None:
        self.name = f"{context.index + 1}:{kind}"
        self.context = context
        self.stored_records = 0  # that the changelog holds of this stage
        self._ledger = ledger

    @abstractmethod
    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        """The ticks that go on now, in order, which need not be the one given."""

    @property
    def held(self) -> int:
        """Ticks that are held back."""
        return 0

    @property
    def changes_waiting(self) -> int:
        """About how many things `take_changes` would write."""
        return 0

    def release(self) -> Sequence[Passage]:
        """The input has ended: the ticks that are held back, by symbol; they are so no more."""
        return ()

    def take_changes(self) -> list[OutRecord]:
        """The changelog records that bring this stage's stored state up to date."""
        return []

    def restore(self, entries: Mapping[bytes, bytes]) -> Generator[None, None, None]:
        """Take over stored state, ``entries`` being this stage's, with a pause after each portion. Raises
        ``ValueError`` or a subclass where it is damaged."""
        yield from ()

    def _drop(self, passage: Passage, reason: Reason, departures: Departures, detail: Mapping[str, object]) -> None:
        """Count a tick as taken out for good and, with the ledger, write down which and why."""
        if self._ledger:
            context = self.context
            departures.late.append(
                dropped_record(
                    passage.tick, reason, self.name, detail, context.unit_ns, context.topic, context.partition
                )
            )
        key = (reason, self.name)
        departures.taken_out[key] = departures.taken_out.get(key, 0) + 1

    def _notice(self, what: str, departures: Departures) -> None:
        key = (what, self.name)
        departures.noticed[key] = departures.noticed.get(key, 0) + 1


class SymbolState(Protocol):
    """What a stage keeps of a symbol. ``stored``: the changelog holds its head."""

    symbol: str
    clock_ns: int
    stored: bool


S = TypeVar("S", bound=SymbolState)


class SymbolStates(Generic[S]):
    """A stage's state per symbol, each with the symbol's own clock, and what of it the changelog does not have yet."""

    def __init__(self, make: Callable[[str, int], S], key_ttl_ns: int | None) -> None:
        self._make = make
        self._key_ttl_ns = key_ttl_ns
        self._states: dict[str, S] = {}
        self._changed: dict[str, S] = {}
        self._expiry: list[tuple[int, str]] = []  # heap of (clock when pushed, symbol); empty where nothing expires
        self._forgotten: list[S] = []
        self.partition_ns = LONG_AGO

    def __len__(self) -> int:
        return len(self._states)

    def get(self, symbol: str) -> S | None:
        """The symbol's state, if it has any."""
        return self._states.get(symbol)

    def observe(self, symbol: str, ts_ns: int) -> S:
        """The symbol's state, new if need be, its clock moved to ``ts_ns`` if that is later."""
        state = self._states.get(symbol)
        if state is None:
            state = self._states[symbol] = self._make(symbol, ts_ns)
            if self._key_ttl_ns is not None:
                heapq.heappush(self._expiry, (ts_ns, symbol))
        elif ts_ns > state.clock_ns:
            state.clock_ns = ts_ns
        self._changed[symbol] = state
        if ts_ns > self.partition_ns:
            self.partition_ns = ts_ns
            self._forget()
        return state

    def _forget(self) -> None:
        ttl_ns = self._key_ttl_ns
        if ttl_ns is None:
            return
        while self._expiry and self.partition_ns - self._expiry[0][0] > ttl_ns:
            pushed_ns, symbol = heapq.heappop(self._expiry)
            state = self._states[symbol]
            if state.clock_ns > pushed_ns:
                heapq.heappush(self._expiry, (state.clock_ns, symbol))
                continue
            del self._states[symbol]
            self._changed.pop(symbol, None)
            self._forgotten.append(state)

    @property
    def changes_waiting(self) -> int:
        """How many states `take_changed` would give."""
        return len(self._changed) + len(self._forgotten)

    def take_forgotten(self) -> list[S]:
        """The states forgotten since the last call, by clock and symbol."""
        if not self._forgotten:
            return []
        taken, self._forgotten = self._forgotten, []
        return taken

    def mark_changed(self, state: S) -> None:
        """Have the state written with the next changes."""
        self._changed[state.symbol] = state

    def take_changed(self) -> list[S]:
        """The states that may differ from what was taken last."""
        taken = list(self._changed.values())
        self._changed.clear()
        return taken

    def load(self, states: Sequence[S]) -> None:
        """Take over stored states. New ones only. The symbol with the latest clock is never forgotten, so that the
        partition's time needs no record of its own."""
        self._states = {state.symbol: state for state in states}
        if self._key_ttl_ns is not None:
            self._expiry = [(state.clock_ns, state.symbol) for state in states]
            heapq.heapify(self._expiry)
        self.partition_ns = max((state.clock_ns for state in states), default=LONG_AGO)
