"""What the dashboard knows: the newest bars of every symbol, the ledger, the group, and how all of that moved.

Pure: records and times come in as arguments, and `workers.apps.dashboard.views` takes out what one browser lacks.
Rules:

1. A later frame of a window replaces the earlier one, as for any consumer of frames. Where it revises one that was not
   provisional, the predecessor's prices stay beside it, so that a person can see what changed.
2. Everything is bounded (`Limits`). What is forgotten is the oldest: bars by when they were first seen, symbols by when
   anything was last heard of them, rows of the ledger and events by age.
3. Whatever changes gets a greater sequence number; a browser is owed what is beyond the last number that it has.
4. Records come from topics that others can write to: one that can't be read is counted, text is cut to a length, and a
   symbol too long to keep is known by its beginning and a digest.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from struct import Struct
from struct import error as StructError
from typing import Final, Literal, get_args

import msgspec
import orjson

from workers.backpressure.levels import Level, LevelGauge, LevelPolicy, rate_scale
from workers.core.ledger import MESSAGE_HEADER, OFFSET_HEADER, PARTITION_HEADER, REASON_HEADER, TOPIC_HEADER
from workers.core.reasons import Status, Trigger
from workers.core.snapshot import Counts
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = [
    "STATUSES",
    "Bar",
    "DashboardModel",
    "Event",
    "LagReading",
    "LedgerRow",
    "Limits",
    "Member",
    "PartitionReading",
    "Point",
    "Ranked",
    "Source",
    "shown_symbol",
]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
_TRIGGERS: Final = (*get_args(Trigger), "other")
_TRIGGER_CODES: Final = {name: code for code, name in enumerate(_TRIGGERS)}
_PACKED: Final = Struct("<qqqBBqqq6d")  # start, end, rev, status, trigger, count, first, last (ms), o h l c volume vwap
_PRICES: Final = Struct("<q4d")  # rev, o h l c of the frame that was revised
_NAN: Final = math.nan
_ACTIVITY_HALF_LIFE_S: Final = 30.0
_MAX_REASONS: Final = 40
_MAX_MEMBERS: Final = 1_000
_MAX_PARTITIONS: Final = 10_000
_IDLE_PARTITION_NS: Final = 30 * NS_PER_SECOND
_RATE_SMOOTHING_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept: numbers of things, and characters of text that others wrote."""

    symbols: int = 20_000
    bars: int = 200_000
    bars_per_symbol: int = 1_500
    ledger_rows: int = 2_000  # of late ticks, and as many of dead letters
    events: int = 200
    points: int = 900  # one a second
    text_chars: int = 300
    symbol_chars: int = 256

    def __post_init__(self) -> None:
        for bound in fields(self):
            if getattr(self, bound.name) < 1:
                raise ValueError(f"{bound.name} is {getattr(self, bound.name)}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class Bar:
    """One window as last told; times in ms, ``revised`` the prices (rev, o, h, l, c) that it took the place of.

    Prices are NaN where the application's aggregation gives none, or there are no ticks; without ticks ``first_ms`` and
    ``last_ms`` mean nothing. ``seq`` grows with every change of the model.
    """

    seq: int
    start_ms: int
    end_ms: int
    rev: int
    status: str
    trigger: str
    count: int
    first_ms: int
    last_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    revised: tuple[int, float, float, float, float] | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A symbol in the list: ticks in all and a second (smoothed), late ticks, revisions, and the last price."""

    symbol: str
    ticks: int
    ticks_per_s: float
    late: int
    revisions: int
    close: float
    partition: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A tick that joined no window (``late``) or a record that was none (``dead``)."""

    seq: int
    kind: Literal["late", "dead"]
    at_ms: int
    symbol: str
    reason: str
    text: str
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the group, at a wall-clock time in ms."""

    seq: int
    at_ms: int
    kind: Literal["rebalance", "joined", "left", "moved", "level"]
    text: str


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group and the partitions of the ticks topic that it owns."""

    member_id: str
    client_id: str
    host: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionReading:
    """Offsets of one partition of the ticks topic; ``waiting_ns`` only where it lags and was looked at."""

    partition: int
    committed: int | None
    end: int
    lag: int
    waiting_ns: int | None = None


@dataclass(frozen=True, slots=True)
class LagReading:
    """One measurement of the group's lag."""

    partitions: tuple[PartitionReading, ...]
    waiting_ns: int | None
    event_lag_ns: int | None
    drain_s: float
    committed_per_s: float
    measured_ns: int

    @property
    def total(self) -> int:
        """Records not yet committed."""
        return sum(item.lag for item in self.partitions)


@dataclass(frozen=True, slots=True)
class Point:
    """One second of the curves: lag, level, scale, watermark delay (seconds) and rates (a second)."""

    seq: int
    at_ms: int
    lag: int | None
    waiting_s: float | None
    event_lag_s: float | None
    level: int
    scale: float
    watermark_delay_s: float | None
    ticks_per_s: float
    committed_per_s: float
    frames_per_s: float


@dataclass(slots=True)
class Source:
    """Where something is read from, and whether that works: ``ok``, ``waiting`` (not there yet) or ``failed``."""

    state: Literal["ok", "waiting", "failed"]
    text: str


@dataclass(slots=True)
class _Symbol:
    name: str
    bars: dict[int, tuple[int, bytes, bytes | None]] = field(default_factory=dict)
    seq: int = 0
    ticks: int = 0
    late: int = 0
    revisions: int = 0
    activity: float = 0.0
    activity_s: float = 0.0
    newest_ms: int = -(2**63)
    close: float = _NAN
    partition: int = 0


@dataclass(slots=True)
class _Progress:
    """What the changelog says of one partition, and when (monotonic) its clock last moved."""

    offset: int
    event_ns: int
    counts: Counts
    moved_ns: int


class _Frame(msgspec.Struct):
    key: str
    start: int
    end: int
    rev: int
    status: Status
    trigger: str = "other"
    count: int = 0
    first_ts: int | None = None
    last_ts: int | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    vwap: float | None = None


class _Late(msgspec.Struct):
    key: str
    ts: int | None
    reason: str
    topic: str
    partition: int
    offset: int
    late_by_ns: int | None = None
    start: int | None = None
    end: int | None = None
    stage: str | None = None
    detail: object = None
    tick: msgspec.Raw = msgspec.Raw(b"")


_FRAMES: Final = msgspec.json.Decoder(_Frame)
_LATE: Final = msgspec.json.Decoder(_Late)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, StructError, OverflowError)


def shown_symbol(symbol: str, limit: int) -> str:
    """The name a symbol is kept under: itself, or its beginning and a digest where it is longer than ``limit``."""
    if len(symbol) <= limit:
        return symbol
    digest = hashlib.sha256(symbol.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{symbol[:40]}… ({len(symbol):,} characters, sha256 {digest})"


class DashboardModel:
    """All that is known now. ``unit_ns`` is the tick's unit, ``lag_ns`` the watermark's lag, as the workers have them.

    Times that come in: ``now_ns`` is any clock that never goes back, ``wall_ns`` nanoseconds since the epoch.
    """

    def __init__(
        self, *, unit_ns: int, lag_ns: int, policy: LevelPolicy | None = None, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._unit_ns, self._lag_ns = unit_ns, lag_ns
        self._policy = policy
        self._gauge = LevelGauge(policy) if policy is not None else None
        self.seq = 0
        self._symbols: OrderedDict[str, _Symbol] = OrderedDict()
        self._arrived: deque[tuple[str, int]] = deque()
        self._ledger: dict[str, deque[LedgerRow]] = {
            kind: deque(maxlen=self.limits.ledger_rows) for kind in ("late", "dead")
        }
        self.reasons: dict[str, dict[str, int]] = {"late": {}, "dead": {}}
        self.events: deque[Event] = deque(maxlen=self.limits.events)
        self.points: deque[Point] = deque(maxlen=self.limits.points)
        self.sources: dict[str, Source] = {}
        self._progress: dict[int, _Progress] = {}
        self.group_state = ""
        self.members: tuple[Member, ...] = ()
        self._settled: tuple[Member, ...] | None = None
        self.lag: LagReading | None = None
        self.pressure: tuple[str, str, float] | None = None
        """What the feedback topic tells producers: level, by whom, and the share of the rate it leaves."""
        self.frames = self._live_frames = 0
        self._live_since_s: float | None = None
        self.unreadable = 0
        self._frames_rate, self._ticks_rate = _Rate(), _Rate()
        self.heard_ms = 0
        """When frames last came, by the wall clock; as exact as the samples are frequent."""
        self._frames_heard = 0
        self.ledger_seq = self.group_seq = self.symbols_seq = self.sum_seq = 0

    # -- frames -------------------------------------------------------------------------------------------------------

    def take_frame(self, value: bytes | None, partition: int, now_ns: int, *, live: bool = True) -> None:
        """A record of the frames topic; one that is not ``live`` was there before anybody looked.

        Old records come all at once, so they count for no rate.
        """
        try:
            frame = _FRAMES.decode(value or b"")
            packed = self._pack(frame)
        except _UNREADABLE:
            self.unreadable += 1
            return
        self.frames += 1
        self._live_frames += live
        symbol = self._symbol(frame.key)
        before = symbol.bars.get(frame.start)
        counted, revised = self._before(frame, before)
        seq = self._next()
        symbol.bars[frame.start] = (seq, packed, revised)
        symbol.seq = self.symbols_seq = seq
        symbol.partition = partition
        symbol.revisions += before is not None and revised is not None and revised is not before[2]
        self._count(symbol, frame.count - counted, now_ns, live)
        if frame.start >= symbol.newest_ms:
            is_gone = frame.count == 0 and frame.close is None  # the next frame tells what it became
            symbol.newest_ms = -(2**63) if is_gone else frame.start
            symbol.close = _NAN if frame.close is None else frame.close
        if before is None:
            self._make_room(symbol, frame.start)

    def _pack(self, frame: _Frame) -> bytes:
        prices = (frame.open, frame.high, frame.low, frame.close, frame.volume, frame.vwap)
        return _PACKED.pack(
            frame.start,
            frame.end,
            frame.rev,
            STATUSES.index(frame.status),
            _TRIGGER_CODES.get(frame.trigger, len(_TRIGGERS) - 1),
            frame.count,
            (frame.first_ts or 0) * self._unit_ns // NS_PER_MS,
            (frame.last_ts or 0) * self._unit_ns // NS_PER_MS,
            *(_NAN if price is None else price for price in prices),
        )

    @staticmethod
    def _before(frame: _Frame, before: tuple[int, bytes, bytes | None] | None) -> tuple[int, bytes | None]:
        """Ticks that the window's earlier frame counted, and the prices to remember as revised."""
        if before is None:
            return 0, None
        _, _, rev, status, _, count, _, _, *prices = _PACKED.unpack(before[1])
        if status != STATUSES.index("provisional") and frame.rev > rev and not math.isnan(prices[0]):
            return count, _PRICES.pack(rev, *prices[:4])
        return count, before[2]

    def _count(self, symbol: _Symbol, ticks: int, now_ns: int, live: bool) -> None:
        symbol.ticks += ticks  # fewer where a window was merged into another, or its trades were cancelled
        if live and ticks > 0:
            now_s = now_ns / NS_PER_SECOND
            if self._live_since_s is None:
                self._live_since_s = now_s
            symbol.activity = _decayed(symbol, now_s) + ticks
            symbol.activity_s = now_s

    def _make_room(self, symbol: _Symbol, start: int) -> None:
        self._arrived.append((symbol.name, start))
        if len(symbol.bars) > self.limits.bars_per_symbol:
            del symbol.bars[next(iter(symbol.bars))]
        if len(self._arrived) > self.limits.bars:
            name, old = self._arrived.popleft()
            owner = self._symbols.get(name)
            if owner is not None:
                owner.bars.pop(old, None)

    def _symbol(self, name: str) -> _Symbol:
        name = shown_symbol(name, self.limits.symbol_chars)
        found = self._symbols.get(name)
        if found is None:
            found = self._symbols[name] = _Symbol(name)
            if len(self._symbols) > self.limits.symbols:
                self._symbols.popitem(last=False)
        else:
            self._symbols.move_to_end(name)
        return found

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def take_late(self, value: bytes | None, wall_ns: int) -> None:
        """A record of the late topic: a late tick, one that an operator dropped, or a correction without its trade."""
        try:
            late = _LATE.decode(value or b"")
        except _UNREADABLE:
            self.unreadable += 1
            return
        symbol = self._symbol(late.key)
        symbol.late += 1
        symbol.seq = self.symbols_seq = self._next()
        text = f"dropped by {late.stage}" if late.stage is not None else ""
        if isinstance(late.detail, str):
            text = late.detail
        elif late.stage is None and late.start is None:
            text = "no window is for its time"
        elif late.late_by_ns is not None and late.start is not None:
            text = f"{late.late_by_ns / NS_PER_SECOND:.3f} s below the threshold, missed the window from {late.start}"
        place = f"{late.topic}[{late.partition}] @ {late.offset}"
        self._note("late", wall_ns, symbol.name, late.reason, text, place, bytes(late.tick))

    def take_dead_letter(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]], wall_ns: int
    ) -> None:
        """A record of the dead-letters topic; its key and value can be anything."""
        told = {name: (text or b"").decode("utf-8", "replace") for name, text in headers}
        place = f"{told.get(TOPIC_HEADER, '?')}[{told.get(PARTITION_HEADER, '?')}]"
        place += f" @ {told.get(OFFSET_HEADER, '?')}"
        symbol = shown_symbol((key or b"").decode("utf-8", "replace"), self.limits.symbol_chars)
        reason = told.get(REASON_HEADER, "no reason given")
        self._note("dead", wall_ns, symbol, reason, told.get(MESSAGE_HEADER, ""), place, value or b"")

    def _note(
        self, kind: Literal["late", "dead"], wall_ns: int, symbol: str, reason: str, text: str, place: str, value: bytes
    ) -> None:
        self.ledger_seq = self._next()
        reason = self._cut(reason)[:64]
        reasons = self.reasons[kind]
        counted = reason if reason in reasons or len(reasons) < _MAX_REASONS else "other"
        reasons[counted] = reasons.get(counted, 0) + 1
        excerpt = value[: 4 * self.limits.text_chars].decode("utf-8", "replace")
        at_ms = wall_ns // NS_PER_MS
        row = LedgerRow(
            self.ledger_seq, kind, at_ms, symbol, reason, self._cut(text), self._cut(place), self._cut(excerpt)
        )
        self._ledger[kind].append(row)

    def _cut(self, text: str) -> str:
        limit = self.limits.text_chars
        return text if len(text) <= limit else text[: limit - 1] + "…"

    def ledger(self, *, kind: str = "all", reason: str = "", text: str = "", limit: int = 100) -> list[LedgerRow]:
        """The newest rows that fit, newest first: of a kind (or ``all``), of a reason, with a text anywhere in them."""
        kinds = self._ledger if kind == "all" else [kind]
        rows = heapq.merge(*(reversed(self._ledger[name]) for name in kinds), key=lambda row: -row.seq)
        wanted = text.casefold()
        found: list[LedgerRow] = []
        for row in rows:
            if reason and row.reason != reason:
                continue
            if wanted and not any(wanted in part.casefold() for part in (row.symbol, row.text, row.place, row.value)):
                continue
            found.append(row)
            if len(found) == limit:
                break
        return found

    # -- state and the sum --------------------------------------------------------------------------------------------

    def take_meta(self, partition: int, value: bytes | None, now_ns: int) -> None:
        """The changelog's record of a commit; None where the state of a partition was dropped."""
        if value is None:
            if self._progress.pop(partition, None) is not None:
                self.sum_seq = self._next()
            return
        try:
            found = orjson.loads(value)
            counts = Counts(**{bound.name: int(found["counts"].get(bound.name, 0)) for bound in fields(Counts)})
            offset, event_ns = int(found["offset"]), int(found["partition_max_ns"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            self.unreadable += 1
            return
        before = self._progress.get(partition)
        if before is None and len(self._progress) >= _MAX_PARTITIONS:
            return
        moved_ns = before.moved_ns if before is not None and before.event_ns == event_ns else now_ns
        if before is not None and before.counts == counts and before.offset == offset:
            return
        self._progress[partition] = _Progress(offset, event_ns, counts, moved_ns)
        self.sum_seq = self._next()

    @property
    def counts(self) -> Counts:
        """What became of every record, over all partitions, as of each one's last commit."""
        total = Counts()
        for progress in self._progress.values():
            for name, number in asdict(progress.counts).items():
                setattr(total, name, getattr(total, name) + number)
        return total

    @property
    def unbalanced(self) -> tuple[int, ...]:
        """Partitions whose own sum does not add up; two errors that cancel out must not hide each other."""
        return tuple(sorted(number for number, found in self._progress.items() if found.counts.balance()))

    def watermarks(self) -> Mapping[int, int]:
        """The watermark of each partition's newest tick, in ns since the epoch."""
        return {number: found.event_ns - self._lag_ns for number, found in self._progress.items() if found.event_ns > 0}

    def watermark_delay_ns(self, wall_ns: int, now_ns: int) -> int | None:
        """How far the slowest partition's watermark is behind the wall clock; partitions without ticks don't count."""
        moving = [
            found.event_ns
            for found in self._progress.values()
            if found.event_ns > 0 and now_ns - found.moved_ns <= _IDLE_PARTITION_NS
        ]
        return wall_ns - (min(moving) - self._lag_ns) if moving else None

    # -- the group ----------------------------------------------------------------------------------------------------

    def take_lag(self, reading: LagReading) -> None:
        """A measurement of the group's lag."""
        before, self.lag = self.lag, reading
        self.group_seq = self._next()
        if before is not None:
            ends = {item.partition: item.end for item in before.partitions}
            came = sum(max(item.end - ends.get(item.partition, item.end), 0) for item in reading.partitions)
            self._ticks_rate.add(came, reading.measured_ns)
        if self._gauge is not None:
            level = self._gauge.level
            if self._gauge.observe(reading.total, reading.measured_ns) is not level:
                text = f"level {level.name} → {self._gauge.level.name} at a lag of {reading.total:,}"
                self._event(reading.measured_ns, "level", text)

    @property
    def level(self) -> Level:
        """The level of the group's lag, by the application's own thresholds."""
        return self._gauge.level if self._gauge is not None else Level.OK

    @property
    def scale(self) -> float:
        """The share of their rate that producers keep: the stricter of the group's own level and what was told."""
        own = rate_scale(self.level, self._policy) if self._policy is not None else 1.0
        return min(own, self.pressure[2]) if self.pressure is not None else own

    def take_pressure(self, pressure: tuple[str, str, float] | None) -> None:
        """The strictest level that the feedback topic tells now: level, source, and the scale that it means."""
        if pressure != self.pressure:
            self.pressure = pressure
            self.group_seq = self._next()

    def take_group(self, state: str, members: Iterable[Member], wall_ns: int) -> None:
        """The group as its coordinator describes it. What changed becomes events."""
        found = tuple(sorted(members, key=lambda member: member.member_id))[:_MAX_MEMBERS]
        if state != self.group_state:
            number = f"{len(found)} member{'' if len(found) == 1 else 's'}"
            if "Rebalance" in state and "Rebalance" not in self.group_state:
                self._event(wall_ns, "rebalance", f"rebalance begins, {number}")
            elif state == "Stable" and "Rebalance" in self.group_state:
                self._event(wall_ns, "rebalance", f"rebalance done, {number}")
            elif state in ("Empty", "Dead") and self.group_state not in ("", "Empty", "Dead"):
                self._event(wall_ns, "rebalance", "nobody is left in the group")
        elif found == self.members:
            return
        self.group_state = state
        if state in ("Stable", "Empty", "Dead"):
            if self._settled is not None and found != self._settled:
                self._differences(self._settled, found, wall_ns)
            self._settled = found
        self.members = found
        self.group_seq = self._next()

    def _differences(self, before: tuple[Member, ...], after: tuple[Member, ...], wall_ns: int) -> None:
        names_before = {member.member_id: member.client_id for member in before}
        names_after = {member.member_id: member.client_id for member in after}
        for member_id in names_after.keys() - names_before.keys():
            self._event(wall_ns, "joined", f"{short_member(names_after[member_id], member_id)} joined")
        for member_id in names_before.keys() - names_after.keys():
            self._event(wall_ns, "left", f"{short_member(names_before[member_id], member_id)} left")
        owned = {number: member for member in before for number in member.partitions}
        moves: dict[tuple[str, str], list[int]] = {}
        for member in after:
            for number in member.partitions:
                owner = owned.get(number)
                if owner is None or owner.member_id != member.member_id:
                    giver = short_member(owner.client_id, owner.member_id) if owner is not None else "nobody"
                    moves.setdefault((giver, short_member(member.client_id, member.member_id)), []).append(number)
        for (giver, taker), numbers in sorted(moves.items()):
            listed = ", ".join(map(str, sorted(numbers)[:16])) + (", …" if len(numbers) > 16 else "")
            noun = "partition" if len(numbers) == 1 else "partitions"
            self._event(wall_ns, "moved", f"{noun} {listed}: {giver} → {taker}")

    def _event(self, wall_ns: int, kind: Literal["rebalance", "joined", "left", "moved", "level"], text: str) -> None:
        self.events.append(Event(self._next(), wall_ns // NS_PER_MS, kind, self._cut(text)))

    # -- time ---------------------------------------------------------------------------------------------------------

    def set_source(self, name: str, state: Literal["ok", "waiting", "failed"], text: str = "") -> None:
        """Say how reading from somewhere goes."""
        before = self.sources.get(name)
        found = Source(state, self._cut(text))
        if before != found:
            self.sources[name] = found
            self._next()

    def sample(self, wall_ns: int, now_ns: int) -> None:
        """Add a point to the curves; call it once a second."""
        self._frames_rate.take_total(self._live_frames, now_ns)
        if self.frames != self._frames_heard:
            self._frames_heard, self.heard_ms = self.frames, wall_ns // NS_PER_MS
        delay_ns = self.watermark_delay_ns(wall_ns, now_ns)
        reading = self.lag
        fresh = reading is not None and wall_ns - reading.measured_ns < 10 * NS_PER_SECOND
        self.points.append(
            Point(
                self._next(),
                wall_ns // NS_PER_MS,
                reading.total if reading is not None and fresh else None,
                _seconds(reading.waiting_ns) if reading is not None and fresh else None,
                _seconds(reading.event_lag_ns) if reading is not None and fresh else None,
                int(self.level),
                self.scale,
                _seconds(delay_ns),
                round(self._ticks_rate.per_s, 1),
                round(reading.committed_per_s, 1) if reading is not None and fresh else 0.0,
                round(self._frames_rate.per_s, 1),
            )
        )

    # -- what views ask for -------------------------------------------------------------------------------------------

    def symbol_seq(self, symbol: str) -> int:
        """The number of a symbol's last change; 0 where it is unknown."""
        found = self._symbols.get(symbol)
        return found.seq if found is not None else 0

    def bars(self, symbol: str, since: int = 0) -> Iterator[Bar]:
        """A symbol's bars that changed after ``since``, in the order in which they were first seen."""
        found = self._symbols.get(symbol)
        for seq, packed, revised in found.bars.values() if found is not None else ():
            if seq > since:
                yield _unpacked(seq, packed, revised)

    @property
    def symbols(self) -> int:
        """How many symbols are known."""
        return len(self._symbols)

    @property
    def bars_kept(self) -> int:
        """How many bars are kept, of all symbols."""
        return sum(len(symbol.bars) for symbol in self._symbols.values())

    def ranking(self, search: str, by: str, limit: int, now_ns: int) -> tuple[list[Ranked], int]:
        """The symbols that contain ``search``, the most ``active`` or most ``late`` first, and how many there are.

        A symbol that is or begins with what was searched for comes before the others.
        """
        wanted, now_s = search.casefold(), now_ns / NS_PER_SECOND
        matching = [symbol for name, symbol in self._symbols.items() if not wanted or wanted in name.casefold()]

        def rank(symbol: _Symbol) -> tuple[bool, bool, float, float, str]:
            name, activity = symbol.name.casefold(), _decayed(symbol, now_s)
            first = (-symbol.late, -activity) if by == "late" else (-activity, -symbol.ticks)
            return (not wanted or name != wanted, not wanted or not name.startswith(wanted), *first, symbol.name)

        # A count of N, halved every half-life, stems from N * ln 2 / half-life ticks a second, once it has counted for
        # long enough.
        counted_s = max(now_s - self._live_since_s, 1.0) if self._live_since_s is not None else math.inf
        to_rate = math.log(2) / _ACTIVITY_HALF_LIFE_S / -math.expm1(-math.log(2) * counted_s / _ACTIVITY_HALF_LIFE_S)
        return [
            Ranked(
                symbol.name,
                symbol.ticks,
                round(_decayed(symbol, now_s) * to_rate, 2),
                symbol.late,
                symbol.revisions,
                symbol.close,
                symbol.partition,
            )
            for symbol in heapq.nsmallest(limit, matching, key=rank)
        ], len(matching)

    def _next(self) -> int:
        self.seq += 1
        return self.seq


class _Rate:
    """An exponential mean of a rate over some seconds, from counts at irregular times."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._seen_ns: int | None = None
        self.per_s = 0.0

    def add(self, count: int, now_ns: int) -> None:
        before, self._seen_ns = self._seen_ns, now_ns
        if before is None or now_ns <= before:
            return
        passed_s = (now_ns - before) / NS_PER_SECOND
        weight = -math.expm1(-passed_s / _RATE_SMOOTHING_S)
        self.per_s += weight * (count / passed_s - self.per_s)

    def take_total(self, total: int, now_ns: int) -> None:
        before, self._total = self._total, total
        self.add(total - before if before is not None else 0, now_ns)


def short_member(client_id: str, member_id: str) -> str:
    """A member in few letters: its client id and the beginning of what makes its id unique."""
    rest = member_id.removeprefix(client_id).lstrip("-")
    return f"{client_id[:40]}·{rest[:6]}" if rest else client_id[:40]


def _decayed(symbol: _Symbol, now_s: float) -> float:
    if not symbol.activity:
        return 0.0
    return symbol.activity * math.exp2(-max(now_s - symbol.activity_s, 0.0) / _ACTIVITY_HALF_LIFE_S)


def _unpacked(seq: int, packed: bytes, revised: bytes | None) -> Bar:
    start, end, rev, status, trigger, count, first, last, o, h, low, c, volume, vwap = _PACKED.unpack(packed)
    return Bar(
        seq,
        start,
        end,
        rev,
        STATUSES[status],
        _TRIGGERS[trigger],
        count,
        first,
        last,
        o,
        h,
        low,
        c,
        volume,
        vwap,
        _PRICES.unpack(revised) if revised is not None else None,
    )


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else round(duration_ns / NS_PER_SECOND, 3)
