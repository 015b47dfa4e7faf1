"""The rate limiting stages: at most so many ticks per second of *event* time, so that the log alone decides which.

*drop*: a token bucket per symbol (or one per partition). It fills with the greatest event time it has seen; a tick that
finds no token is dropped. Late ticks find the bucket as it is by then.

*conflate*: of each symbol, the latest tick per interval (by event time; the last in the log among equals), intervals
being counted from the epoch. Which tick is the latest is known only afterwards, so it is held back until

- a tick of its symbol comes for a later interval, or
- the input ends (`workers.core.ticks.EndOfInput`), or
- partition time, the greatest event time of any symbol here, is ``margin`` past its interval's end: a quiet symbol's
  last tick must not wait for the next one. Should a newer tick of that interval still come, it goes on as well: another
  symbol's progress can add a tick, and never takes one.

A tick that is older than one already held or passed on is dropped. What is held is part of the state, and counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import orjson

from workers.core.frames import OutRecord
from workers.core.pipeline.stage import Departures, Passage, Stage, StageContext, StateKeys, SymbolStates
from workers.core.reasons import Reason
from workers.core.steps import Portion
from workers.core.ticks import Tick
from workers.core.token_bucket import ALWAYS_FULL, TokenBucket
from workers.core.windows.window import LONG_AGO

__all__ = [
    "Conflate",
    "Conflator",
    "DumpedPassage",
    "Throttle",
    "Throttler",
    "dump_passage",
    "load_passage",
]

THROTTLED: Final = Reason.THROTTLED  # once: a member of an enum is slow to look up
WHOLE_PARTITION: Final = ""
"""The symbol under which a bucket for all symbols is kept."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Let a tick through every ``spacing_ns`` of event time on average, and up to ``burst`` at once."""

    spacing_ns: int
    burst: int = 1
    per_symbol: bool = True
    ledger: bool = True


@dataclass(frozen=True, slots=True)
class Conflate:
    """Let the latest tick of each interval through; ``margin_ns``: see the module."""

    interval_ns: int
    margin_ns: int
    ledger: bool = True


@dataclass(slots=True, eq=False)
class _Bucket:
    """A symbol's bucket, and the greatest event time that it has seen."""

    symbol: str
    clock_ns: int
    full_at_ns: int = ALWAYS_FULL
    stored: bool = False


class Throttler(Stage):
    """*drop*; see the module."""

    def __init__(self, spec: Throttle, context: StageContext) -> None:
        super().__init__("throttle", context, ledger=spec.ledger)
        self._spec = spec
        self._tokens = TokenBucket(spec.spacing_ns, spec.burst * spec.spacing_ns)
        self._keys = StateKeys(context.index)
        self._buckets: SymbolStates[_Bucket] = SymbolStates(_Bucket, context.key_ttl_ns)
        self._deletions: list[bytes] = []

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        tick = passage.tick
        bucket = self._buckets.observe(tick.symbol if self._spec.per_symbol else WHOLE_PARTITION, tick.ts_ns)
        self._deletions += [self._keys.head(old.symbol) for old in self._buckets.take_forgotten() if old.stored]
        wait_ns = self._tokens.wait(bucket.full_at_ns, bucket.clock_ns)
        if wait_ns > 0:
            free_ns = bucket.clock_ns + wait_ns
            self._drop(passage, THROTTLED, departures, {"next_ts": -(-free_ns // self.context.unit_ns)})
            return ()
        bucket.full_at_ns = self._tokens.taken(bucket.full_at_ns, bucket.clock_ns)
        return (passage,)

    @property
    def changes_waiting(self) -> int:
        return self._buckets.changes_waiting + len(self._deletions)

    def take_changes(self) -> list[OutRecord]:
        records = [OutRecord(key, None) for key in self._deletions]
        self.stored_records -= len(records)
        self._deletions.clear()
        for bucket in self._buckets.take_changed():
            value = msgspec.msgpack.encode((bucket.clock_ns, bucket.full_at_ns))
            records.append(OutRecord(self._keys.head(bucket.symbol), value))
            self.stored_records += not bucket.stored
            bucket.stored = True
        return records

    def restore(self, entries: Mapping[bytes, bytes]) -> Generator[None, None, None]:
        portion = Portion()
        buckets = []
        for symbol, value in self._keys.heads_in(entries):
            clock_ns, full_at_ns = msgspec.msgpack.decode(value, type=tuple[int, int])
            buckets.append(_Bucket(symbol, clock_ns, full_at_ns, stored=True))
            if portion.is_done():
                yield
        self._buckets.load(buckets)


@dataclass(slots=True, eq=False)
class _Latest:
    """A symbol's newest tick: held back, or only its time where it has gone on."""

    symbol: str
    clock_ns: int
    passed_ns: int = LONG_AGO
    held: Passage | None = None
    stored: bool = False


class Conflator(Stage):
    """*conflate*; see the module."""

    def __init__(self, spec: Conflate, context: StageContext) -> None:
        super().__init__("throttle", context, ledger=spec.ledger)
        self._spec = spec
        self._keys = StateKeys(context.index)
        self._symbols: SymbolStates[_Latest] = SymbolStates(_Latest, context.key_ttl_ns)
        self._due: list[tuple[int, str]] = []  # heap of (interval's end, symbol); what is no longer held is skipped
        self._deletions: list[bytes] = []
        self._held = 0

    @property
    def held(self) -> int:
        return self._held

    def take(self, passage: Passage, departures: Departures) -> Sequence[Passage]:
        tick = passage.tick
        latest = self._symbols.observe(tick.symbol, tick.ts_ns)
        going = [*self._release_forgotten(), *self._release_due()]
        end_ns = self._interval_end_ns(tick)
        if latest.held is not None and end_ns > self._interval_end_ns(latest.held.tick):
            going.append(self._release(latest, latest.held))
        newest_ns = latest.held.tick.ts_ns if latest.held is not None else latest.passed_ns
        if tick.ts_ns < newest_ns:
            self._drop(passage, THROTTLED, departures, {"newer_ts": newest_ns // self.context.unit_ns})
        elif end_ns + self._spec.margin_ns <= self._symbols.partition_ns:
            latest.passed_ns = tick.ts_ns
            going.append(passage)
        else:
            if latest.held is not None:
                self._drop(latest.held, THROTTLED, departures, {"newer_ts": tick.ts_ns // self.context.unit_ns})
            else:
                self._held += 1
                heapq.heappush(self._due, (end_ns, tick.symbol))
            latest.held = passage
        return going

    def release(self) -> Sequence[Passage]:
        holding = [latest for _, symbol in self._due if (latest := self._symbols.get(symbol)) and latest.held]
        self._due.clear()
        holding.sort(key=lambda latest: latest.symbol)
        return [self._release(latest, latest.held) for latest in holding if latest.held is not None]

    def _interval_end_ns(self, tick: Tick) -> int:
        return (tick.ts_ns // self._spec.interval_ns + 1) * self._spec.interval_ns

    def _release(self, latest: _Latest, held: Passage) -> Passage:
        latest.held, latest.passed_ns = None, held.tick.ts_ns
        self._held -= 1
        self._symbols.mark_changed(latest)
        return held

    def _release_due(self) -> list[Passage]:
        released = []
        due_ns = self._symbols.partition_ns - self._spec.margin_ns
        while self._due and self._due[0][0] <= due_ns:
            end_ns, symbol = heapq.heappop(self._due)
            latest = self._symbols.get(symbol)
            if latest is not None and latest.held is not None and self._interval_end_ns(latest.held.tick) == end_ns:
                released.append(self._release(latest, latest.held))
        return released

    def _release_forgotten(self) -> list[Passage]:
        released = []
        for latest in self._symbols.take_forgotten():
            if latest.stored:
                self._deletions.append(self._keys.head(latest.symbol))
            if latest.held is not None:
                self._held -= 1
                released.append(latest.held)
        return released

    @property
    def changes_waiting(self) -> int:
        return self._symbols.changes_waiting + len(self._deletions)

    def take_changes(self) -> list[OutRecord]:
        records = [OutRecord(key, None) for key in self._deletions]
        self.stored_records -= len(records)
        self._deletions.clear()
        for latest in self._symbols.take_changed():
            held = None if latest.held is None else dump_passage(latest.held)
            value = msgspec.msgpack.encode((latest.clock_ns, latest.passed_ns, held))
            records.append(OutRecord(self._keys.head(latest.symbol), value))
            self.stored_records += not latest.stored
            latest.stored = True
        return records

    def restore(self, entries: Mapping[bytes, bytes]) -> Generator[None, None, None]:
        portion = Portion()
        symbols = []
        for symbol, value in self._keys.heads_in(entries):
            clock_ns, passed_ns, dumped = msgspec.msgpack.decode(value, type=tuple[int, int, DumpedPassage | None])
            held = None if dumped is None else load_passage(symbol, dumped)
            symbols.append(_Latest(symbol, clock_ns, passed_ns, held, stored=True))
            if held is not None:
                self._held += 1
                heapq.heappush(self._due, (self._interval_end_ns(held.tick), symbol))
            if portion.is_done():
                yield
        self._symbols.load(symbols)


class DumpedPassage(msgspec.Struct, array_like=True):
    """A tick that is held, as the changelog has it; ``original`` is the record's value where a map changed the tick's.

    The record's key is the symbol, or it would have been rejected.
    """

    ts_ns: int
    price: float
    size: float
    offset: int
    value: bytes
    original: bytes | None
    timestamp_ms: int
    headers: list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class _HeldRecord:
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes | None]] = field(default=())


def dump_passage(passage: Passage) -> DumpedPassage:
    """A tick and its record as the changelog has them."""
    tick, record = passage.tick, passage.record
    original = None if record.value == tick.value else record.value
    return DumpedPassage(
        tick.ts_ns, tick.price, tick.size, tick.offset, tick.value, original, record.timestamp, list(record.headers)
    )


def load_passage(symbol: str, dumped: DumpedPassage) -> Passage:
    """What `dump_passage` was given. Raises ``ValueError`` where the tick's value is not JSON."""
    tick = Tick(
        symbol, dumped.ts_ns, dumped.price, dumped.size, dumped.offset, dumped.value, orjson.loads(dumped.value)
    )
    original = dumped.value if dumped.original is None else dumped.original
    return Passage(tick, _HeldRecord(dumped.offset, dumped.timestamp_ms, symbol.encode(), original, dumped.headers))
