"""What a lane did with one symbol's records: the lane itself does it again, and is watched.

Nothing is decided here that the lane decides: it takes the records one at a time, and what came of each is written
down, with the tick that had set the clock that judged it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import orjson

from workers.apps.inspect.fates import Clock, MadeFrame, TickFate, WindowStory, seconds_text
from workers.apps.inspect.watched import WatchedLane
from workers.core.encoding import json_object
from workers.core.formats.corrections import Correction
from workers.core.formats.frames import ChildBar
from workers.core.frames import Frame, OutRecord, decode_frame
from workers.core.lane import Input
from workers.core.ledger import MESSAGE_HEADER, OFFSET_HEADER, REASON_HEADER
from workers.core.partitioning import partition_for
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, OperatorSpec
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.spec import LaneSpec
from workers.core.ticks import Tick
from workers.core.windows.corrections import Changed, NotFound
from workers.core.windows.kinds import CalendarWindows
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, UNIT_NS, format_instant, parse_rfc3339

__all__ = ["Investigation", "says_symbol"]

_SESSIONS_HELD: Final = 256
_ASKED_HELD: Final = 1_000  # of each fate, of the very time asked for: times of whole seconds can have many


def _offset_of(letter: OutRecord) -> int:
    """Where the record of a dead letter was; the last header of that name is the lane's own."""
    return int(dict(letter.headers)[OFFSET_HEADER] or b"")


class Investigation:
    """Follows ``symbol`` through one partition, in the windows that contain a time in ``[first_ns, last_ns]``.

    Hand it the partition's records in log order by `take`; everything else is there to be read at any time. It must
    begin before any tick of these windows; where operators have a memory of their own, at the log's begin.

    ``tick_limit`` is for each fate of each window, so that the many that joined don't hide the few that did not. The
    ticks of the very time ``asked_ns`` are in ``asked``, which it does not limit.
    """

    def __init__(
        self,
        spec: LaneSpec,
        source: Input,
        symbol: str,
        first_ns: int,
        last_ns: int,
        *,
        tick_limit: int = 1_000,
        asked_ns: int | None = None,
    ) -> None:
        self._spec = spec = replace(spec, pipeline=tuple(map(_with_ledger, spec.pipeline)))
        self._lane = WatchedLane(spec, source)
        self._lag_ns = spec.lag_ns if spec.format == "json" else 0
        self._source = source
        self._symbol, self._key = symbol, symbol.encode()
        self._home = partition_for(self._key, source.partitions)
        self._first_ns, self._last_ns = first_ns, last_ns
        self._assigner = spec.window.assigner()
        self._begin_ns = min([first_ns, *(start_ns for start_ns, _ in self._assigner.assign(first_ns))])
        self._end_ns = max([last_ns, *(end_ns for _, end_ns in self._assigner.assign(last_ns))])
        self._limit = tick_limit
        self._asked_ns = asked_ns
        self._own: Clock | None = None  # the symbol's
        self._shared: Clock | None = None  # the partition's
        self._unplaced: dict[int, TickFate] = {}  # held back by an operator or max_jump, by offset
        self.windows: dict[int, WindowStory] = {}
        """By start. Of session windows also those near the time asked for: `touching` leaves them out."""
        self.asked: list[TickFate] = []
        """The ticks of the very time asked for; beyond 1,000 of a fate they are only counted."""
        self.asked_counts: dict[str, int] = {}  # by fate
        self.strays: list[TickFate] = []
        """Records that no window is for: rejected ones without a readable time, met while the symbol's clock was near
        the windows; and, of the time asked for, ticks outside of an exchange's sessions or dropped in between sessions.
        """
        self.stray_count = 0
        self.records = 0
        self.over_ms: int | None = None
        """Timestamp of the record with which the last of the windows was dropped; None: it still takes ticks."""

    @property
    def clock(self) -> Clock | None:
        """The clock that judges the symbol's next tick."""
        return self._own if self._spec.scope == "key" else self._shared

    def take(self, records: Sequence[Record]) -> None:
        """Go through the next records of the partition. Raises `CallbackError` as a worker would."""
        for record in records:
            self.records += 1
            effects = self._lane.process((record,))
            placed, self._lane.placed = self._lane.placed, []
            corrections, self._lane.corrections = self._lane.corrections, []
            letters = {_offset_of(letter): letter for letter in effects.dead_letters}
            if self._concerns(record, is_rejected=record.offset in letters):
                if record.offset in letters:
                    self._note_rejected(record, letters[record.offset])
                elif not corrections:
                    self._hold(record)
            for tick, late, repeated in placed:
                self._note_placed(tick, late, repeated=repeated)
            for correction, outcome in corrections:
                if correction.symbol == self._symbol:
                    self._note_correction(record, correction, outcome)
            for offset, letter in letters.items():
                self._note_contradicted(offset, letter)
            for dropped in effects.late:
                self._note_dropped(dropped)
            if effects.control:
                self._note_end(record.offset)
            if effects.routed and record.offset in self._unplaced:
                self._note_routed(record.offset, next(iter(effects.routed)))
            for frame in effects.frames:
                if frame.key == self._key:
                    self._note_frame(frame, record.offset)
            if self.over_ms is None and self._is_over():
                self.over_ms = record.timestamp

    def _is_over(self) -> bool:
        clock = self.clock
        if clock is None:
            return False
        end_ns = self._end_ns
        if self._spec.window.merges:
            end_ns = max([self._last_ns, *(story.end_ns for story in self.touching())])
        return clock.is_past(end_ns, self._spec.lateness_ns)

    def touching(self) -> list[WindowStory]:
        """The windows found that contain a time asked for, by start."""
        return sorted(
            (story for story in self.windows.values() if self._touches(story.start_ns, story.end_ns)),
            key=lambda story: story.start_ns,
        )

    def _touches(self, start_ns: int, end_ns: int) -> bool:
        return start_ns <= self._last_ns and end_ns > self._first_ns

    def _concerns(self, record: Record, *, is_rejected: bool) -> bool:
        """Whether the record is the symbol's, by its key or, where it was rejected for its key, by what it says."""
        if record.key == self._key:
            return True
        return is_rejected and says_symbol(record.value, self._spec.symbol_field, self._symbol)

    # -- ticks --------------------------------------------------------------------------------------------------------

    def _note_placed(self, tick: Tick, late: OutRecord | None, *, repeated: bool) -> None:
        judged_by = self.clock
        if not repeated and (late is None or dict(late.headers)[REASON_HEADER] == Reason.OUTSIDE_SESSION.encode()):
            self._move_clocks(tick, joined=late is None)
        fate = self._unplaced.pop(tick.offset, None)
        if fate is None:  # another symbol's, or held back since before this investigation began
            return
        fate.ts_ns, fate.price, fate.size = tick.ts_ns, tick.price, tick.size
        if repeated:
            fate.fate, fate.detail = "duplicate", "it changes nothing: the same frame, or a later one of it, is known"
        elif late is None:
            fate.fate, fate.detail, fate.clock = "joined", "", self.clock
        else:
            self._judge(fate, late, judged_by)
        self._keep(fate)

    def _move_clocks(self, tick: Tick, *, joined: bool) -> None:
        """A tick outside of sessions moves the clocks all the same, but for that of a symbol without windows."""
        ts_ns = tick.ts_ns
        if isinstance(tick, ChildBar):
            if tick.provisional:
                return
            ts_ns = tick.child.end_ns
        new = Clock(ts_ns - self._lag_ns, tick.offset, ts_ns)
        if self._shared is None or ts_ns > self._shared.ts_ns:
            self._shared = new
        has_clock = tick.symbol == self._symbol and (joined or self._lane.has_clock(self._symbol))
        if has_clock and (self._own is None or ts_ns > self._own.ts_ns):
            self._own = new

    def _note_end(self, offset: int) -> None:
        """The input has ended: the clock that judges the symbol may have moved."""
        watermark_ns, before = self._lane.watermark_ns(self._symbol), self.clock
        if watermark_ns is None or (before is not None and watermark_ns < before.watermark_ns):
            return
        new = Clock(watermark_ns, offset, watermark_ns + self._lag_ns, is_end=True)
        if self._spec.scope == "key":
            self._own = new
        else:
            self._shared = new

    def _note_correction(self, record: Record, correction: Correction, outcome: Changed | NotFound) -> None:
        """A message about a trade: with the windows that it changed, or with those that were open when it came."""
        is_correct = correction.kind == "correct"
        fate = TickFate(
            self._source.partition,
            record.offset,
            record.timestamp,
            "corrected",
            price=correction.price if is_correct else None,
            size=correction.size if is_correct else None,
            detail=f"{correction.kind} of trade {correction.trade_id[:80]!r}",
            misrouted=self._source.partition != self._home,
        )
        if isinstance(outcome, NotFound):
            fate.fate, fate.reason, fate.detail = "late", Reason.UNCORRECTABLE, f"{fate.detail}: {outcome.explanation}"
            if self._is_near():
                self._note_stray(fate)
            return
        for start_ns, end_ns in outcome.windows:
            if self._touches(start_ns, end_ns) and start_ns in self.windows:
                self._add(self.windows[start_ns], fate)

    def _note_routed(self, offset: int, topic: str) -> None:
        fate = self._unplaced.pop(offset)
        fate.fate, fate.detail = "routed", f"routed to the topic {topic}"
        self._keep(fate)

    def _hold(self, record: Record) -> None:
        """Note a tick whose fate isn't known: unless it turns up, an operator has it."""
        decoded = self._lane.decode(record)
        assert isinstance(decoded, Tick), "the lane took for a tick what its own decoder does not"
        fate = TickFate(
            self._source.partition,
            record.offset,
            record.timestamp,
            "held",
            decoded.ts_ns,
            decoded.price,
            decoded.size,
            detail="its time is ahead by more than tick.max_jump: it waits for its symbol's next tick"
            if self._lane.is_held_for_its_time(self._symbol, record.offset)
            else "an operator holds it back until a later tick releases it",
            misrouted=self._source.partition != self._home,
        )
        self._unplaced[record.offset] = fate

    def _judge(self, fate: TickFate, late: OutRecord, clock: Clock | None) -> None:
        entry = orjson.loads(late.value or b"")
        fate.fate, fate.reason, fate.late_by_ns = "late", entry["reason"], entry["late_by_ns"]
        if fate.reason == Reason.OUTSIDE_SESSION:
            fate.late_by_ns = None
            assert isinstance(self._spec.window, CalendarWindows), "other windows leave no time out"
            fate.detail = f"outside of all sessions of {self._spec.window.calendar}"
            return
        if fate.reason == Reason.OVERLAPS:
            fate.late_by_ns = None
            fate.detail = "it overlaps another frame: what is read has windows of several sizes, or overlapping ones"
            return
        if fate.reason == Reason.EXPIRED:
            fate.clock = clock = self._shared
            assert clock is not None, "nothing is behind a partition that has no time"
            fate.detail = (
                f"its window began more than key_ttl behind the partition, by {seconds_text(entry['late_by_ns'])}: the "
                f"partition's time was {_moment(clock.ts_ns)} because of {clock.because}"
            )
            return
        fate.clock = clock
        assert clock is not None, "nothing is late before a clock has seen a tick"
        assert clock.watermark_ns == entry["watermark_ns"], f"{clock} at offset {fate.offset}, the lane says {entry}"
        by = entry["late_by_ns"]
        how = f"late by {seconds_text(by)}" if by else "late: it is on the threshold, which counts as late"
        lateness_ns = self._spec.lateness_ns
        allowed = f", and allowed lateness is {seconds_text(lateness_ns)}" if lateness_ns else ""
        whose = "its symbol's" if self._spec.scope == "key" else "the partition's"
        fate.detail = (
            f"{how}: {whose} watermark was at {_moment(clock.watermark_ns)} because of {clock.because} "
            f"({_moment(clock.ts_ns)}, lag {seconds_text(self._lag_ns)}){allowed}"
        )
        if fate.reason == Reason.SETTLED:
            fate.detail += "; allowed lateness must be at least that of the application that the frames come from"

    def _note_dropped(self, record: OutRecord) -> None:
        """A tick that an operator took out; it need not be the one that came just now."""
        entry = orjson.loads(record.value or b"")
        if "stage" not in entry:
            return
        fate = self._unplaced.pop(entry["offset"], None)
        if fate is None:
            return
        fate.fate, fate.reason = entry["reason"], entry["reason"]
        detail = ", ".join(f"{name} {value}" for name, value in entry["detail"].items())
        fate.detail = f"dropped by stage {entry['stage']}{f': {detail}' if detail else ''}"
        self._keep(fate)

    def _note_contradicted(self, offset: int, letter: OutRecord) -> None:
        """A tick that was held for its time, and was not believed in the end."""
        fate = self._unplaced.pop(offset, None)
        if fate is None:
            return
        headers = dict(letter.headers)  # the last of a name is the lane's own
        fate.fate, fate.reason = "rejected", (headers[REASON_HEADER] or b"").decode()
        message = (headers[MESSAGE_HEADER] or b"").decode("utf-8", "backslashreplace")
        fate.detail = f"rejected as {fate.reason}: {message}"
        self._keep(fate)

    def _note_rejected(self, record: Record, letter: OutRecord) -> None:
        headers = dict(letter.headers[len(record.headers) :])
        reason = (headers[REASON_HEADER] or b"").decode()
        message = (headers[MESSAGE_HEADER] or b"").decode("utf-8", "backslashreplace")
        ts_ns = _time_said(record.value, *self._spec.time_field)
        fate = TickFate(
            self._source.partition,
            record.offset,
            record.timestamp,
            "rejected",
            ts_ns,
            reason=reason,
            detail=f"rejected as {reason}: {message}",
            misrouted=self._source.partition != self._home,
        )
        if ts_ns is not None:
            self._keep(fate)
        elif self._is_near():
            self._note_stray(fate)

    def _is_near(self) -> bool:
        """Whether the windows were open, or about to be: a record without a time may have been meant for them."""
        clock, longest_ns = self.clock, self._assigner.longest_ns
        if clock is None:
            return True
        return self._begin_ns - longest_ns <= clock.ts_ns <= self._end_ns + longest_ns + self._lag_ns

    def _keep(self, fate: TickFate) -> None:
        assert fate.ts_ns is not None
        if fate.ts_ns == self._asked_ns:
            self.asked_counts[fate.fate] = self.asked_counts.get(fate.fate, 0) + 1
            if self.asked_counts[fate.fate] <= _ASKED_HELD:
                self.asked.append(fate)
        stories = self._stories(fate.ts_ns, joined=fate.fate == "joined")
        for story in stories:
            self._add(story, fate)
        if not stories and not self._wanted_by_others(fate.ts_ns) and self._first_ns <= fate.ts_ns <= self._last_ns:
            self._note_stray(fate)

    def _add(self, story: WindowStory, fate: TickFate) -> None:
        story.counts[fate.fate] = story.counts.get(fate.fate, 0) + 1
        if story.counts[fate.fate] <= self._limit:
            story.ticks.append(fate)

    def _note_stray(self, fate: TickFate) -> None:
        self.stray_count += 1
        if len(self.strays) < self._limit:
            self.strays.append(fate)

    def _wanted_by_others(self, ts_ns: int) -> bool:
        """Whether there is a window for a time, though none of those asked for."""
        return not self._spec.window.merges and bool(self._assigner.assign(ts_ns))

    def still_held(self) -> Iterator[TickFate]:
        """Ticks of the symbol that operators, or ``max_jump``, hold back at the moment."""
        return iter(self._unplaced.values())

    # -- frames -------------------------------------------------------------------------------------------------------

    def _note_frame(self, record: OutRecord, offset: int) -> None:
        frame = decode_frame(record.value)
        assert record.value is not None
        assert isinstance(frame, Frame), f"a lane's own frame: {frame}"
        start_ns = frame.start_ms * NS_PER_MS
        if frame.status == "provisional":
            return
        if self._spec.window.merges:
            story = next((each for each in self.windows.values() if each.is_named(start_ns)), None)
        else:
            said = start_ns, start_ns + self._assigner.longest_ns  # where it is of less than the frame's millisecond
            window = next((each for each in self._assigner.assign(start_ns) if each[0] == start_ns), said)
            story = self._story(*window) if self._touches(*window) else None
        if story is not None:
            made = MadeFrame(frame.rev, frame.status, frame.trigger, record.value, offset, self.clock)
            story.frames.append(made)

    # -- windows ------------------------------------------------------------------------------------------------------

    def _stories(self, ts_ns: int, *, joined: bool) -> list[WindowStory]:
        """The windows asked for that a time is in."""
        if not self._spec.window.merges:
            return [self._story(*window) for window in self._assigner.assign(ts_ns) if self._touches(*window)]
        if joined:
            return [self._session(ts_ns)]
        return [story for story in self.windows.values() if story.start_ns <= ts_ns < story.end_ns]

    def _story(self, start_ns: int, end_ns: int) -> WindowStory:
        story = self.windows.get(start_ns)
        if story is None:
            story = self.windows[start_ns] = WindowStory(self._source.partition, start_ns, end_ns)
        return story

    def _session(self, ts_ns: int) -> WindowStory:
        """The session that a tick has just joined, and what was told so far of those that it made one of."""
        alone = self._assigner.assign(ts_ns)[0]
        start_ns, end_ns = next((span for span in self._lane.spans(self._symbol) if span[0] <= ts_ns < span[1]), alone)
        whole = WindowStory(self._source.partition, start_ns, end_ns)
        for story in [each for each in self.windows.values() if each.start_ns < end_ns and each.end_ns > start_ns]:
            del self.windows[story.start_ns]
            whole.ticks = self._limited([*whole.ticks, *story.ticks])
            whole.frames = sorted([*whole.frames, *story.frames], key=lambda frame: frame.offset)
            for fate, number in story.counts.items():
                whole.counts[fate] = whole.counts.get(fate, 0) + number
        self._forget_sessions(start_ns)
        self.windows[start_ns] = whole
        return whole

    def _limited(self, ticks: list[TickFate]) -> list[TickFate]:
        """The first of each fate, in log order."""
        kept: list[TickFate] = []
        numbers: dict[str, int] = {}
        for fate in sorted(ticks, key=lambda fate: fate.offset):
            numbers[fate.fate] = numbers.get(fate.fate, 0) + 1
            if numbers[fate.fate] <= self._limit:
                kept.append(fate)
        return kept

    def _forget_sessions(self, except_ns: int) -> None:
        """Forget sessions that don't touch the time asked for and can't come to do so: they would fill the memory."""
        if len(self.windows) < _SESSIONS_HELD:
            return
        kept = {span[0] for span in self._lane.spans(self._symbol)} | {story.start_ns for story in self.touching()}
        self.windows = {start_ns: story for start_ns, story in self.windows.items() if start_ns in {except_ns, *kept}}


def says_symbol(value: bytes | None, field_name: str, symbol: str) -> bool:
    """Whether a record's value is a JSON object of this symbol, whatever its key is."""
    return json_object(value).get(field_name) == symbol


def _with_ledger(spec: OperatorSpec) -> OperatorSpec:
    """The operator, writing down what it drops: that decides nothing, and tells which ticks they were."""
    return replace(spec, ledger=True) if isinstance(spec, Deduplicate | Throttle | Conflate | Filter) else spec


def _time_said(value: bytes | None, field_name: str, unit: str) -> int | None:
    """The event time of a record that is no tick, where it has a plausible one all the same."""
    ts = json_object(value).get(field_name)
    try:
        ts_ns = ts * UNIT_NS[unit] if type(ts) is int else parse_rfc3339(ts) if isinstance(ts, str) else None
    except (ValueError, OverflowError):
        return None
    return ts_ns if ts_ns is not None and abs(ts_ns) <= MAX_EVENT_TIME_NS else None


def _moment(time_ns: int) -> str:
    """An instant inside a sentence: date and time of day, UTC."""
    return format_instant(time_ns).removesuffix("Z").replace("T", " ")
