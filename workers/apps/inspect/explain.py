"""What happened to a symbol around a time: which ticks joined its window, which did not and why, and what came out.

The lane does its work again, watched (`workers.apps.inspect.witness`), and what it makes is compared with what was
published.

*Where reading begins.* A tick that is more than ``tick.max_future_skew`` ahead of its record's timestamp is rejected,
so every accepted tick of a window was sent at ``start - max_future_skew`` or later, and the broker finds the first such
record. What lies before can't change the answer: none of it belongs to the window, and no clock set by it reaches the
window's start, so it makes no tick of the window late. An end of the input can set a clock further, by lag and allowed
lateness from the end of the last window: so the windows that end less than that before count as part of the window, as
does the bar before a gap where gaps are filled. This holds for replays of old data (all of it is then read) and wrong
clocks alike. Two things escape it: ticks rejected because they were further ahead than that, and records without any
timestamp, which no current producer writes; reading from the beginning finds them. Operators of a ``[[pipeline]]`` and
``tick.max_jump`` can have a memory of their own, and a session window can have begun at any time before: there reading
begins where the log does.

*Where it ends.* Ticks may come for a window that is over, any time later: they are late, and it is worth saying so. So
reading goes on for ``read_on_ns`` of the log's own time (its records' timestamps) after the window was over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

import orjson

from workers.apps.inspect.explanation import Explanation, FrameAccount, Stretch, Verdict, WindowAccount, differences
from workers.apps.inspect.fates import MadeFrame, WindowStory
from workers.apps.inspect.witness import Investigation, says_symbol
from workers.core.encoding import json_object
from workers.core.frames import frame_name
from workers.core.lane import Input, Lane
from workers.core.partitioning import partition_for
from workers.core.snapshot import META_KEY, read_meta
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import CalendarWindows
from workers.errors import ConfigError
from workers.kafka.clients import admin_client
from workers.kafka.group_offsets import LagReader, PartitionLag, no_group_problem
from workers.kafka.log_reader import LogReader
from workers.kafka.topics import describe_topics
from workers.settings.lane import lane_spec
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, UNIT_NS, TimestampUnit, parse_rfc3339

if TYPE_CHECKING:
    from workers.kafka.reading import KafkaRecord
    from workers.settings import Settings

__all__ = ["explain", "parse_time", "stored_settings_problem"]

MINUTE_NS: Final = 60 * 10**9
MOST_WINDOWS: Final = 1_000
_SAID_EVERY_RECORDS: Final = 50_000


async def explain(
    settings: Settings,
    symbol: str,
    time_ns: int,
    *,
    around_ns: int = 0,
    read_on_ns: int = 10 * MINUTE_NS,
    from_beginning: bool = False,
    everywhere: bool = True,
    tick_limit: int = 1_000,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Explanation:
    """What became of ``symbol`` in the windows that touch ``[time - around, time + around]``; times in nanoseconds.

    ``from_beginning`` reads the logs from begin to end, ``read_on_ns`` or not. ``everywhere`` also looks for the symbol
    on partitions where it does not belong, which reads as much of each. Of each window ``tick_limit`` ticks of each
    fate are kept, and all are counted; those of the very time are kept all the same. Reads as any consumer outside the
    group may; nothing is written or committed.

    Raises `ConfigError` for a time out of range or too many windows, `TopicError` where there is no ticks topic,
    `BrokerError`, `DataLossError` where records are deleted while they are read, `CallbackError` where a function of
    the pipeline raises.
    """
    spec = lane_spec(settings)
    _check_times(spec, time_ns, around_ns)
    first_ns, last_ns = time_ns - around_ns, time_ns + around_ns
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(admin_client(settings))
        topics = await describe_topics(admin)
        lag = await (await stack.enter_async_context(LagReader(settings, admin))).read()
        ticks = await stack.enter_async_context(LogReader(settings))
        committed = await stack.enter_async_context(LogReader(settings, isolation_level="read_committed"))
        count = len(lag.partitions)
        search = _Search(settings, spec, symbol, time_ns, first_ns, last_ns, count, ticks, tick_limit, on_progress)
        home = partition_for(symbol.encode(), count)
        # Workers go on meanwhile. What was committed is asked first, the frames' end next, the ticks' ends last: then a
        # frame that should be there is, and one that is there has its ticks among those that are read.
        frames_topic = topics.get(settings.topics.frames)
        frames_end = 0
        if frames_topic is not None:
            where = partition_for(symbol.encode(), frames_topic.partitions)
            _, frames_end = await committed.bounds(frames_topic.name, where)
        await search.follow(lag.partitions[home], read_on_ns, from_beginning=from_beginning)
        if everywhere:
            for other in lag.partitions:
                if other.partition != home and await search.finds(other, from_beginning=from_beginning):
                    await search.follow(other, read_on_ns, from_beginning=from_beginning)
        notes = list(search.notes(lag.partitions[home], home))
        published: list[KafkaRecord] = []
        if frames_topic is None:
            notes.append(f"there is no topic {settings.topics.frames}: nothing was published yet")
        else:
            published = await search.published(committed, frames_topic.partitions, frames_end)
        problem, other_settings = no_group_problem(lag), False
        if settings.topics.changelog in topics:
            differing = await stored_settings_problem(settings, committed, home, count)
            problem, other_settings = differing or problem, differing is not None
    return search.conclude(home, published, notes, problem, other_settings=other_settings)


def parse_time(text: str, *, now_ns: int, unit: TimestampUnit = "ms") -> int:
    """Nanoseconds of a time as people write it: RFC 3339, ``HH:MM:SS`` (today, UTC), or an integer.

    An integer counts ``unit`` since 1970, as the ticks do (``tick.timestamp_unit``), so that what a tick or the late
    topic says can be pasted. Raises ``ValueError`` for anything else, saying how an integer was read.
    """
    stripped = text.strip()
    how = ""
    if stripped.lstrip("-").isdecimal() and stripped.isascii():
        time_ns = int(stripped) * UNIT_NS[unit]
        how = f", read as {unit} (tick.timestamp_unit),"
    elif len(stripped) >= 8 and stripped[2] == stripped[5] == ":":
        today = datetime.fromtimestamp(now_ns // 10**9, UTC).date().isoformat()
        time_ns = parse_rfc3339(f"{today}T{stripped.removesuffix('Z')}Z")
    else:
        try:
            time_ns = parse_rfc3339(stripped)
        except ValueError as error:
            raise ValueError(
                f"{error}, nor HH:MM:SS (today, UTC), nor an integer ({unit} since 1970, by tick.timestamp_unit)"
            ) from None
    if abs(time_ns) > MAX_EVENT_TIME_NS:
        raise ValueError(f"{text[:64]!r}{how} does not fit 64-bit nanoseconds since 1970")
    return time_ns


async def stored_settings_problem(settings: Settings, reader: LogReader, partition: int, partitions: int) -> str | None:
    """Why a worker with these settings would refuse the stored state; None where it would not, or there is none."""
    topic = settings.topics.changelog
    value = await reader.last_value(topic, partition, META_KEY)
    if value is None:
        return None
    where = f"{topic}[{partition}]"
    meta = read_meta({META_KEY: value}, where=where)
    if meta is None:
        return None
    lane = Lane(lane_spec(settings), Input(settings.topics.ticks, partition, partitions))
    differing = lane.differing_settings(meta)
    return f"the stored state {where} was made under other settings: {'; '.join(differing)}" if differing else None


def _check_times(spec: LaneSpec, time_ns: int, around_ns: int) -> None:
    """Raises `ConfigError` where too much is asked for."""
    if abs(time_ns) + around_ns > MAX_EVENT_TIME_NS or around_ns < 0:
        raise ConfigError(f"the time {time_ns} ns, {around_ns} ns around it, is out of the range of event times")
    windows = spec.window.assigner().between(time_ns - around_ns, time_ns + around_ns)
    if next(islice(windows, MOST_WINDOWS, None), None) is not None:
        raise ConfigError(f"too many windows are asked for; at most {MOST_WINDOWS:,} can be explained at once")


@dataclass
class _Search:
    """The reading of one explanation, partition by partition."""

    settings: Settings
    spec: LaneSpec
    symbol: str
    time_ns: int
    first_ns: int
    last_ns: int
    partitions: int
    reader: LogReader
    tick_limit: int
    on_progress: Callable[[str], None]
    found: dict[int, Investigation] = field(default_factory=dict)
    stretches: list[Stretch] = field(default_factory=list)
    until_ms: int | None = None  # the timestamp up to which the home partition was read; None: to its end

    async def _begin(self, log: PartitionLag, *, from_beginning: bool) -> int:
        if from_beginning or self.spec.pipeline or self.spec.max_jump_ns or self.spec.window.merges:
            return log.begin
        earliest_ns = min([self.first_ns, *(start_ns for start_ns, _ in self.spans())])
        earliest_ns -= self.spec.window.looks_back_ns + self.spec.end_reach_ns
        earliest_ms = (earliest_ns - self.spec.tick.max_future_skew_ns) // NS_PER_MS
        return await self.reader.offset_at(self.settings.topics.ticks, log.partition, earliest_ms)

    async def follow(self, log: PartitionLag, read_on_ns: int, *, from_beginning: bool) -> None:
        """Investigate one partition."""
        topic = self.settings.topics.ticks
        begin = await self._begin(log, from_beginning=from_beginning)
        source = Input(topic, log.partition, self.partitions)
        looked = Investigation(
            self.spec,
            source,
            self.symbol,
            self.first_ns,
            self.last_ns,
            tick_limit=self.tick_limit,
            asked_ns=self.time_ns,
        )
        _, log_end = await self.reader.bounds(topic, log.partition)
        end, said = log_end, 0
        async with aclosing(self.reader.read(topic, log.partition, begin, log_end)) as chunks:
            async for chunk in chunks:
                looked.take(chunk)
                last = chunk[-1]
                if looked.records - said >= _SAID_EVERY_RECORDS:
                    said = looked.records
                    self.on_progress(f"{topic}[{log.partition}]: at offset {last.offset:,} of {log_end:,}")
                over_ms = looked.over_ms
                if over_ms is not None and not from_beginning and last.timestamp > over_ms + read_on_ns // NS_PER_MS:
                    end = last.offset + 1
                    self.until_ms = max(self.until_ms or 0, last.timestamp)
                    break
        self.found[log.partition] = looked
        self.stretches.append(Stretch(log.partition, begin, end, log.begin, log_end, log.committed, looked.records))

    async def finds(self, log: PartitionLag, *, from_beginning: bool) -> bool:
        """Whether a partition, where the symbol does not belong, holds a record of it."""
        topic, key, quoted = self.settings.topics.ticks, self.symbol.encode(), orjson.dumps(self.symbol)
        begin, end = await self._begin(log, from_beginning=from_beginning), log.end
        if self.until_ms is not None:
            end = await self.reader.offset_at(topic, log.partition, self.until_ms + 1)
        records = 0
        async with aclosing(self.reader.read(topic, log.partition, begin, end)) as chunks:
            async for chunk in chunks:
                records += len(chunk)
                for record in chunk:
                    if record.key == key or (
                        record.value is not None
                        and quoted in record.value
                        and says_symbol(record.value, self.spec.symbol_field, self.symbol)
                    ):
                        return True
        self.stretches.append(Stretch(log.partition, begin, end, log.begin, log.end, log.committed, records))
        return False

    async def published(self, reader: LogReader, partitions: int, end: int) -> list[KafkaRecord]:
        """The symbol's frames of these windows, as the frames topic holds them before offset ``end``."""
        spans = self.spans()
        if not spans:
            return []
        topic, key = self.settings.topics.frames, self.symbol.encode()
        partition = partition_for(key, partitions)
        # A frame's timestamp is its window's end; where the broker stamps it, the tick that closed the window may have
        # been ahead of the clock, by so much at most.
        earliest_ms = (spans[0][0] - self.spec.tick.max_future_skew_ns) // NS_PER_MS
        begin = await reader.offset_at(topic, partition, earliest_ms)
        found: list[KafkaRecord] = []
        async for chunk in reader.read(topic, partition, begin, end):
            own = (record for record in chunk if record.key == key)
            found += (record for record in own if any(self._is_of(span, record) for span in spans))
        return found

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of the windows asked for, by start; of session windows, as far as they were found."""
        if not self.spec.window.merges:
            return list(self.spec.window.assigner().between(self.first_ns, self.last_ns))
        stories = [story for looked in self.found.values() for story in looked.touching()]
        return sorted({(story.start_ns, story.end_ns) for story in stories})

    def _is_of(self, span: tuple[int, int], record: KafkaRecord) -> bool:
        """Whether a published frame is of the window ``span``, or of a session that became part of it."""
        start_ns = _start_ns(record.value)
        if not self.spec.window.merges:
            return start_ns == span[0]
        return span[0] // NS_PER_MS * NS_PER_MS <= start_ns < span[1]

    def notes(self, log: PartitionLag, home: int) -> Iterable[str]:
        """What a reader of the answer should know."""
        topic = self.settings.topics.ticks
        for stretch in self.stretches:
            if stretch.partition in self.found and stretch.begin == stretch.log_begin > 0:
                yield (
                    f"{topic}[{stretch.partition}] begins at offset {stretch.log_begin}: what came before was deleted, "
                    "and can't be explained"
                )
        if len(self.found) > 1:
            wrong = ", ".join(str(number) for number in sorted(self.found) if number != home)
            yield (
                f"records of the symbol are on partition {wrong}, where Kafka's murmur2 does not put them: their "
                "producer uses another partitioner (librdkafka: set partitioner=murmur2_random)"
            )
        if isinstance(self.spec.window, CalendarWindows) and not self.spans():
            yield f"no session of {self.spec.window.calendar} contains this time"
        if log.committed is None:
            yield f"the group {self.settings.application_id} has committed nothing of {topic}[{home}] yet"

    def conclude(
        self,
        home: int,
        published: Sequence[KafkaRecord],
        notes: Sequence[str],
        problem: str | None,
        *,
        other_settings: bool,
    ) -> Explanation:
        """Put together what was found."""
        committed = {stretch.partition: stretch.committed or 0 for stretch in self.stretches}
        order = [home, *(number for number in sorted(self.found) if number != home)]
        windows: list[WindowAccount] = []
        for span in self.spans():
            found = [self.found[n].windows.get(span[0]) for n in order]
            stories = [each for each in found if each is not None and each.end_ns == span[1]]
            if not stories:
                stories = [WindowStory(home, *span)]
            frames = _match(stories, [each for each in published if self._is_of(span, each)], committed)
            windows += [
                WindowAccount(story, self._state(story), tuple(account))
                for story, account in zip(stories, frames, strict=True)
            ]
        return Explanation(
            self.symbol,
            self.time_ns,
            self.settings.topics.ticks,
            self.settings.topics.frames,
            home,
            self.partitions,
            tuple(windows),
            tuple(tick for number in order for tick in self.found[number].strays),
            sum(looked.stray_count for looked in self.found.values()),
            tuple(tick for number in order for tick in self.found[number].still_held()),
            {number: self.found[number].clock for number in order},
            tuple(self.stretches),
            tuple(notes),
            tuple(tick for number in order for tick in self.found[number].asked),
            sum(sum(looked.asked_counts.values()) for looked in self.found.values()),
            problem,
            other_settings,
        )

    def _state(self, story: WindowStory) -> Literal["empty", "open", "closed", "over"]:
        looked = self.found.get(story.partition)
        clock = looked.clock if looked is not None else None
        if clock is not None and clock.is_past(story.end_ns, self.spec.lateness_ns):
            return "over"
        if not story.counts.get("joined"):
            return "empty"
        return "closed" if clock is not None and clock.is_past(story.end_ns, 0) else "open"


def _match(
    stories: Sequence[WindowStory], published: Sequence[KafkaRecord], committed: Mapping[int, int]
) -> list[list[FrameAccount]]:
    """The frames of each story beside those published; what belongs to none is put with the first."""
    accounts: list[list[FrameAccount]] = [[] for _ in stories]
    left = list(published)
    unmatched: list[tuple[int, MadeFrame]] = []
    for index, story in enumerate(stories):
        for made in story.frames:
            same = [record for record in left if record.value == made.value]
            for number, record in enumerate(same):
                accounts[index].append(_account("repeated" if number else "matches", record, made))
                left.remove(record)
            if not same:
                unmatched.append((index, made))
    for index, made in unmatched:
        rival = next((each for each in left if frame_name(each.value) == frame_name(made.value)), None)
        if rival is not None:
            left.remove(rival)
            accounts[index].append(_account("differs", rival, made))
        else:
            due = made.offset < committed.get(stories[index].partition, 0)
            verdict: Verdict = "missing" if due else "not yet"
            accounts[index].append(FrameAccount(verdict, made.rev, made.status, made.trigger, made))
    for record in left:
        provisional = frame_name(record.value).status == "provisional"
        accounts[0].append(_account("provisional" if provisional else "unexpected", record, None))
    for account in accounts:
        account.sort(key=lambda frame: (frame.rev, frame.verdict != "provisional", frame.offset or 0))
    return accounts


def _account(verdict: Verdict, record: KafkaRecord, made: MadeFrame | None) -> FrameAccount:
    frame, name = json_object(record.value), frame_name(record.value)
    differing = tuple(differences(made.value, record.value or b"")) if made is not None and verdict == "differs" else ()
    rev, status, trigger = name.rev if name.rev is not None else -1, str(frame.get("status")), str(frame.get("trigger"))
    return FrameAccount(verdict, rev, status, trigger, made, record.partition, record.offset, frame, differing)


def _start_ns(value: bytes | None) -> int:
    """The start of a frame's window; for what is no frame, a time that no window has."""
    start_ms = frame_name(value).start_ms
    return start_ms * NS_PER_MS if start_ms is not None else -(2**63)
