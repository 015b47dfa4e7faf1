"""Making frames again from the input topic, and comparing them with those that were published.

    ticks[p] ─▶ a lane of its own ─▶ made ──┐
                                            ├─▶ by (start, key, rev, status): identical, or why not
    frames ──────────────────────▶ published┘

Provisional frames are left out, because they depend on the clock on the wall. What is compared waits in a temporary
database on disk, so that memory is bounded by the lanes' state, however long the log is.

*What is assumed.* The log is read from its begin, so that the state is that of a worker which began there. With
``warm_up_ns`` it is read from the first record sent ``tick.max_future_skew`` before that time, or later: as a tick
further ahead of its record is rejected, no tick at ``warm_up_ns`` or later is missed, and none before it belongs to a
window that starts at ``from_ns >= warm_up_ns``, nor sets a clock that makes one of its ticks late. (Filled gaps
show an earlier close, and an end of the input sets clocks ahead, so that much more is read.) Operators,
``tick.max_jump`` and session windows may remember more than that; with them the answer is as good as their warm-up is
long.

*Workers may go on meanwhile.* What the group has committed is asked first, the end of the frames next, the end of the
ticks last: so what should be published is, and what is published has its ticks among those that are read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from workers.apps.inspect.explain import Difference, differences, stored_settings_problem
from workers.apps.produce.send import prepare_topic
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, LaneSpec
from workers.core.partitioning import partition_for
from workers.core.snapshot import META_KEY, read_state
from workers.core.ticks import is_end_of_input
from workers.errors import ConfigError, TopicError
from workers.kafka.connection import connecting, explain_connection_error
from workers.kafka.group_offsets import GroupLag, LagReader, PartitionLag
from workers.kafka.log_reader import LogReader
from workers.kafka.repairs import stop_producer
from workers.kafka.topics import admin_client, describe_topics, ensure_topics
from workers.settings.all import producer_options
from workers.settings.lane import lane_spec
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS

if TYPE_CHECKING:
    from workers.kafka.topics import TopicLayout
    from workers.settings.all import Settings

__all__ = ["FrameProblem", "FrameSink", "ReplayResult", "replay", "writing_to_file", "writing_to_topic"]

Kind = Literal["missing", "extra", "differing", "repeated"]

PROGRESS_EVERY_S: Final = 2.0
PROBLEMS_KEPT: Final = 100
_RECORD_OVERHEAD_BYTES: Final = 1_024  # as the sink reckons
_NO_PARTITION: Final = -1


class FrameSink(Protocol):
    """Takes the frames that were made again, those of a key in order."""

    async def write(self, frames: Sequence[OutRecord]) -> None: ...


@dataclass(frozen=True, slots=True)
class FrameProblem:
    """A frame that is not as it should be; ``expected`` and ``found`` are its wire bytes, None where there is none.

    ``made_at`` is partition and offset of the tick that brings it out, ``published_at`` its own in the frames topic;
    ``cause`` is the likely one, where it can be known.
    """

    kind: Kind
    key: str
    start_ms: int
    rev: int
    status: str
    expected: bytes | None
    found: bytes | None
    made_at: tuple[int, int] | None
    published_at: tuple[int, int] | None
    differences: tuple[Difference, ...]
    cause: str | None


@dataclass(slots=True)
class ReplayResult:
    """What came of a replay. ``problems`` are the first ones by window, ``different`` counts them all.

    ``not_yet`` frames are made by ticks that no worker has committed; ``repeated`` ones are there more than once, which
    at_least_once allows. ``compared`` is False where nothing was.
    """

    made: int = 0
    identical: int = 0
    not_yet: int = 0
    repeated: int = 0
    different: int = 0
    records: int = 0
    compared: bool = False
    problems: list[FrameProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Row(NamedTuple):
    """A frame, made or published, in the order of comparison."""

    start_ms: int
    key: bytes
    rev: int
    status: str
    published: int
    partition: int
    offset: int
    due: int  # made by a tick that was committed before the frames' end was asked
    value: bytes


class _Frames:
    """The frames of one comparison, in a temporary database that SQLite keeps on disk and deletes by itself."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute(
            "CREATE TABLE frames (start INTEGER, key BLOB, rev INTEGER, status TEXT, published INTEGER, "
            "partition INTEGER, offset INTEGER, due INTEGER, value BLOB)"
        )

    def close(self) -> None:
        self._database.close()

    def add(self, rows: Sequence[_Row]) -> None:
        self._database.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def by_name(self) -> Iterator[tuple[list[_Row], list[_Row]]]:
        """Those made and those published under each name, names by window start and key."""
        sides = [self._ordered(published) for published in (0, 1)]
        for _, group in groupby(merge(*sides, key=_name_of), key=_name_of):
            rows = list(group)
            yield [row for row in rows if not row.published], [row for row in rows if row.published]

    def _ordered(self, published: int) -> Iterator[_Row]:
        query = "SELECT * FROM frames WHERE published = ? ORDER BY start, key, rev, status, partition, offset"
        return map(_Row._make, self._database.execute(query, (published,)))


def _name_of(row: _Row) -> tuple[int, bytes, int, str]:
    return row[:4]


# -- the replay -------------------------------------------------------------------------------------------------------


async def replay(
    settings: Settings,
    from_ns: int,
    to_ns: int,
    *,
    symbol: str | None = None,
    warm_up_ns: int | None = None,
    compare: bool = True,
    sink: FrameSink | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> ReplayResult:
    """Make the frames of windows that start in ``[from, to)`` again, hand them to ``sink``, and compare them with the
    frames topic; of one symbol, or all.

    Of a symbol only its home partition is read. Provisional frames are left out. Nothing is committed.

    Raises `ConfigError` for times that can't be, `TopicError` where topics are missing, `BrokerError`, `DataLossError`
    where records are deleted while they are read, `CallbackError` where a function of yours raises.
    """
    _check_range(settings, from_ns, to_ns, warm_up_ns)
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(admin_client(settings))
        layout = await ensure_topics(admin, settings, create=False, only=["ticks", *(["frames"] if compare else [])])
        lag = await (await stack.enter_async_context(LagReader(settings, admin))).read()
        ticks = await stack.enter_async_context(LogReader(settings))
        frames = await stack.enter_async_context(LogReader(settings, isolation_level="read_committed"))
        work = _Replay(settings, layout, lag, from_ns, to_ns, symbol, warm_up_ns, on_progress)
        found = stack.enter_context(closing(_Frames())) if compare else None
        if found is not None:
            await work.collect(frames, found)
        for log in lag.partitions:
            if work.home is None or log.partition == work.home:
                await work.make(ticks, log, sink, found)
        if found is not None:
            if settings.topics.changelog in await describe_topics(admin):
                await work.look_at_state(frames)
            work.compare(found)
    return work.result


def _check_range(settings: Settings, from_ns: int, to_ns: int, warm_up_ns: int | None) -> None:
    if not -MAX_EVENT_TIME_NS <= from_ns < to_ns <= MAX_EVENT_TIME_NS:
        raise ConfigError(f"--from is {from_ns} ns and --to {to_ns} ns; expected from < to")
    if warm_up_ns is not None and warm_up_ns > from_ns:
        raise ConfigError(f"--warm-up is {warm_up_ns - from_ns} ns after --from; it must not be later")


class _Replay:
    """One replay: what is asked, what the topics are like, and what has come of it so far."""

    def __init__(
        self,
        settings: Settings,
        layout: TopicLayout,
        lag: GroupLag,
        from_ns: int,
        to_ns: int,
        symbol: str | None,
        warm_up_ns: int | None,
        on_progress: Callable[[str], None],
    ) -> None:
        self.result = ReplayResult()
        self.spec: LaneSpec = lane_spec(settings)
        self._longest_ns = self.spec.assigner().longest_ns
        self._settings, self._layout, self._warm_up_ns = settings, layout, warm_up_ns
        self._lag = {log.partition: log for log in lag.partitions}
        self._from_ns, self._to_ns = from_ns, to_ns
        self._from_ms, self._to_ms = -(-from_ns // NS_PER_MS), -(-to_ns // NS_PER_MS)
        self._key = symbol.encode() if symbol is not None else None
        self.home = partition_for(self._key, len(lag.partitions)) if self._key is not None else None
        self._on_progress = on_progress
        self._said_s = time.monotonic()
        self._frames_begin: dict[int, int] = {}
        self._counted: dict[int, tuple[int, int]] = {}  # partition -> (offset committed, records before it)
        self._problems_of_state: dict[int, str] = {}

    # -- published ----------------------------------------------------------------------------------------------------

    async def collect(self, reader: LogReader, found: _Frames) -> None:
        """Read the frames that were published of these windows."""
        topic = self._settings.topics.frames
        skew_ns = (
            self.spec.tick.max_future_skew_ns
        )  # as in `workers.apps.inspect.explain`: the broker may stamp the records
        earliest_ms = (self._from_ns - skew_ns) // NS_PER_MS
        partitions = range(self._layout.frames)
        if self._key is not None:
            partitions = range(home := partition_for(self._key, self._layout.frames), home + 1)
        ends = {}
        for partition in partitions:
            self._frames_begin[partition], ends[partition] = await reader.bounds(topic, partition)
        foreign = 0
        for partition in partitions:
            begin = await reader.offset_at(topic, partition, earliest_ms)
            async for chunk in reader.read(topic, partition, begin, ends[partition]):
                rows = []
                for record in chunk:
                    if is_end_of_input(record) or (self._key is not None and record.key != self._key):
                        continue
                    row = self._row(OutRecord(record.key, record.value), partition, record.offset, published=True)
                    foreign += row is None
                    if row is not None and row.status != "provisional" and self._from_ms <= row.start_ms < self._to_ms:
                        rows.append(row)
                found.add(rows)
                self._say(f"{topic}[{partition}]: at offset {chunk[-1].offset:,} of {ends[partition]:,}")
        if foreign:
            self.result.notes.append(f"{foreign:,} records of {topic} are not frames; something else writes to it")

    def _row(self, record: OutRecord, partition: int, offset: int, *, published: bool, due: bool = True) -> _Row | None:
        """The row of a frame; None for what is none."""
        value = record.value or b""
        try:
            frame = orjson.loads(value)
            start_ms, rev, status = frame["start"], frame["rev"], frame["status"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        if type(start_ms) is not int or type(rev) is not int or type(status) is not str:
            return None
        if max(abs(start_ms), abs(rev)) >= 2**63:
            return None
        return _Row(start_ms, record.key or b"", rev, status, published, partition, offset, due, value)

    # -- made ---------------------------------------------------------------------------------------------------------

    async def make(self, reader: LogReader, log: PartitionLag, sink: FrameSink | None, found: _Frames | None) -> None:
        """Run one partition's log through a lane of its own."""
        topic, partition = self._settings.topics.ticks, log.partition
        begin, end = await self._stretch(reader, log)
        committed = log.committed or 0
        lane = Lane(self.spec, Input(topic, partition, self._layout.ticks))
        async with aclosing(reader.read(topic, partition, begin, end)) as chunks:
            async for chunk in chunks:
                for records, due in _cut(chunk, committed):
                    made = self._wanted(lane, records)
                    self.result.records += len(records)
                    if due:
                        self._counted[partition] = (committed, lane.counts.records)
                    if found is not None:
                        rows = (self._row(frame, partition, at, published=False, due=due) for frame, at in made)
                        found.add([row for row in rows if row is not None])
                    if sink is not None and made:
                        await sink.write([frame for frame, _ in made])
                    self.result.made += len(made)
                self._say(f"{topic}[{partition}]: at offset {lane.position:,} of {end:,}, {self.result.made:,} frames")
                if self._nothing_more(lane):
                    break

    async def _stretch(self, reader: LogReader, log: PartitionLag) -> tuple[int, int]:
        topic = self._settings.topics.ticks
        begin, end = await reader.bounds(topic, log.partition)
        if begin > 0 and self._warm_up_ns is None:
            self.result.notes.append(
                f"{topic}[{log.partition}] begins at offset {begin:,}: what came before was deleted, and frames that "
                f"need it can't be recomputed"
            )
        if self._warm_up_ns is not None:
            earliest_ns = self._warm_up_ns - self.spec.tick.max_future_skew_ns
            if self.spec.fill_gaps_ns:  # an empty window shows the close of one so much earlier
                earliest_ns -= self.spec.fill_gaps_ns + self._longest_ns
            earliest_ns -= self.spec.end_reach_ns
            earliest_ms = earliest_ns // NS_PER_MS
            begin = await reader.offset_at(topic, log.partition, earliest_ms)
        return begin, end

    def _wanted(self, lane: Lane, records: Sequence[object]) -> list[tuple[OutRecord, int]]:
        """The frames wanted of those that the records bring out, with the offset up to which the lane had read."""
        frames = lane.process(records).frames  # type: ignore[arg-type]  # aiokafka is untyped
        wanted = []
        for frame in frames:
            if self._key is not None and frame.key != self._key:
                continue
            shown = orjson.loads(frame.value or b"")
            if shown["status"] != "provisional" and self._from_ms <= shown["start"] < self._to_ms:
                wanted.append((frame, lane.position - 1))
        return wanted

    def _nothing_more(self, lane: Lane) -> bool:
        """Whether every window wanted is gone for good: those of keys that stayed behind have expired, and a tick for
        one would be late however it came. Without ``key_ttl`` there is no such moment before the log's end: any symbol
        may still come with any time."""
        spec, reached_ns = self.spec, lane.partition_max_ns
        if spec.kind == "session" or spec.key_ttl_ns is None:  # sessions may go on for as long as they like
            return False
        longest_ns = self._longest_ns + spec.lag_ns + spec.lateness_ns + spec.key_ttl_ns
        return reached_ns is not None and reached_ns > self._to_ns + longest_ns

    # -- compared -----------------------------------------------------------------------------------------------------

    async def look_at_state(self, reader: LogReader) -> None:
        """See whether the stored state was made under these settings, and from the log's begin."""
        topic = self._settings.topics.changelog
        for partition in sorted(self._lag if self.home is None else {self.home}):
            problem = await stored_settings_problem(self._settings, reader, partition, self._layout.ticks)
            if problem is None:
                problem = await self._later_begin(reader, topic, partition)
            if problem is not None:
                self._problems_of_state[partition] = problem
        self.result.notes += sorted(set(self._problems_of_state.values()))

    async def _later_begin(self, reader: LogReader, topic: str, partition: int) -> str | None:
        value = await reader.last_value(topic, partition, META_KEY)
        if value is None or self._warm_up_ns is not None:
            return None
        meta, _ = read_state({META_KEY: value}, None, where=f"{topic}[{partition}]")
        offset, records = self._counted.get(partition, (_NO_PARTITION, 0))
        if meta is None or meta.offset != offset or meta.counts.records >= records:
            return None
        return (
            f"the state of {self._settings.topics.ticks}[{partition}] counts {meta.counts.records:,} records, its log "
            f"holds {records:,} up to the same offset: it was begun later than the log (state reset, or "
            "auto.offset.reset = latest)"
        )

    def compare(self, found: _Frames) -> None:
        """Go through all names; what is wrong goes into the result."""
        self.result.compared = True
        for made, published in found.by_name():
            if len(made) == len(published) == 1 and made[0].value == published[0].value:
                self.result.identical += 1
            else:
                self._compare_one(made, published)

    def _compare_one(self, made: list[_Row], published: list[_Row]) -> None:
        """Frames of one name: more than one where a key is on two partitions, or where frames were repeated."""
        left = list(published)
        unmatched = []
        for row in made:
            twin = next((each for each in left if each.value == row.value), None)
            if twin is None:
                unmatched.append(row)
            else:
                left.remove(twin)
                self.result.identical += 1
        values = {row.value for row in made}
        repeats = [row for row in left if row.value in values]
        others = [row for row in left if row.value not in values]
        for row in repeats:
            self.result.repeated += 1
            if self._settings.processing_guarantee == "exactly_once":
                self._problem("repeated", made[0], row, len(published))
        for row in unmatched:
            if others:
                self._problem("differing", row, others.pop(0), len(published))
            elif row.due:
                self._problem("missing", row, None, len(published))
            else:
                self.result.not_yet += 1
        for row in others:
            # Beside a right one under the same name, a wrong one differs from it; alone, it has no reason to be.
            self._problem("differing" if made else "extra", made[0] if made else None, row, len(published))

    def _problem(self, kind: Kind, made: _Row | None, published: _Row | None, copies: int) -> None:
        self.result.different += 1
        if len(self.result.problems) >= PROBLEMS_KEPT:
            return
        row = made or published
        assert row is not None
        expected = made.value if made is not None else None
        found = published.value if published is not None else None
        differing = kind == "differing" and expected is not None and found is not None
        self.result.problems.append(
            FrameProblem(
                kind,
                row.key.decode("utf-8", "backslashreplace"),
                row.start_ms,
                row.rev,
                row.status,
                expected,
                found,
                (made.partition, made.offset) if made is not None else None,
                (published.partition, published.offset) if published is not None else None,
                tuple(differences(expected or b"", found or b"")) if differing else (),
                self._cause(kind, row, made, published, copies),
            )
        )

    def _cause(self, kind: Kind, row: _Row, made: _Row | None, published: _Row | None, copies: int) -> str | None:
        home = made.partition if made is not None else partition_for(row.key, self._layout.ticks)
        if home in self._problems_of_state:
            return self._problems_of_state[home]
        if kind == "missing":
            return self._cause_of_absence(row)
        truncated = self._lag[home].begin > 0
        if kind == "repeated":
            return "published before a `workers state reset` and again after it, or written by something else"
        if copies > 1 and kind == "differing":
            return (
                f"published {copies} times, and not always the same: something else wrote to the frames topic, or the "
                "state was reset in between"
            )
        if truncated and (kind == "extra" or _count(published) > _count(made)):
            begin = self._lag[home].begin
            return f"{self._settings.topics.ticks}[{home}] begins at offset {begin:,}: its first ticks were deleted"
        if self._warm_up_ns is not None and (self.spec.pipeline or self.spec.max_jump_ns):
            return "operators, or tick.max_jump, remember more than --warm-up gave them; leave it out"
        if self._warm_up_ns is not None and self.spec.kind == "session":
            return "a session may have begun before --warm-up; leave it out"
        if kind == "extra" and self._key is not None:
            return f"only partition {home} was read: the symbol may have ticks on others; run without --symbol"
        if kind == "extra":
            return "no ticks in the log make it: something else wrote it, or it is from before the topic was recreated"
        return "something else wrote to the frames topic, or a worker with other settings did"

    def _cause_of_absence(self, row: _Row) -> str | None:
        topic = self._settings.topics.frames
        limit = self._layout.max_message_bytes.get(topic)
        if limit is not None and len(row.value) + len(row.key) + _RECORD_OVERHEAD_BYTES > limit:
            return f"at {len(row.value):,} bytes it is too large for {topic} ({limit:,}): it is among the dead letters"
        partition = partition_for(row.key, self._layout.frames)
        if self._frames_begin.get(partition, 0) > 0:
            return f"{topic}[{partition}] begins at offset {self._frames_begin[partition]:,}: older frames were deleted"
        return None

    def _say(self, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= PROGRESS_EVERY_S:
            self._said_s = now_s
            self._on_progress(text)


def _cut(chunk: Sequence[object], committed: int) -> Iterator[tuple[Sequence[object], bool]]:
    """The records before the committed offset, and those from it on."""
    at = next((n for n, record in enumerate(chunk) if record.offset >= committed), len(chunk))  # type: ignore[attr-defined]
    for records, due in ((chunk[:at], True), (chunk[at:], False)):
        if records:
            yield records, due


def _count(row: _Row | None) -> int:
    """Ticks that a frame says it has."""
    count: Mapping[str, object] = orjson.loads(row.value) if row is not None else {}
    found = count.get("count")
    return found if isinstance(found, int) else 0


# -- where frames can go ----------------------------------------------------------------------------------------------


class _FileSink:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, frames: Sequence[OutRecord]) -> None:
        self._file.writelines((frame.value or b"") + b"\n" for frame in frames)


@asynccontextmanager
async def writing_to_file(path: Path) -> AsyncIterator[FrameSink]:
    """A sink that writes frames to a file, one JSON object a line. Raises `ConfigError` where it can't be written."""
    try:
        with path.open("wb") as file:
            yield _FileSink(file)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror or error}") from error


class _TopicSink:
    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self._producer, self._topic, self._partitions = producer, topic, partitions

    async def write(self, frames: Sequence[OutRecord]) -> None:
        sent = [
            await self._producer.send(
                self._topic,
                frame.value,
                key=frame.key,
                partition=partition_for(frame.key or b"", self._partitions),
                timestamp_ms=frame.timestamp_ms,
            )
            for frame in frames
        ]
        for future in sent:
            await future


@asynccontextmanager
async def writing_to_topic(settings: Settings, topic: str) -> AsyncIterator[FrameSink]:
    """A sink that writes frames to a topic as a worker would, made if it is missing.

    It is no transaction: an interrupted replay leaves what it had written. Raises `TopicError` for a topic of the
    application itself, and where it can't be made; `BrokerError`.
    """
    topics = settings.topics
    own = (topics.ticks, topics.frames, topics.late, topics.dead_letters, topics.changelog, topics.feedback)
    if topic in (*own, *(name for operator in settings.pipeline for name in operator.topics())):
        raise TopicError(f"{topic} belongs to the application; recomputed frames go to a topic of their own")
    partitions = await prepare_topic(settings, topic)
    producer = AIOKafkaProducer(**producer_options(settings) | {"acks": "all", "enable_idempotence": True})
    try:
        async with connecting(settings):
            await producer.start()
        yield _TopicSink(producer, topic, partitions)
        await producer.flush()
    except (KafkaError, TimeoutError) as error:
        raise explain_connection_error(error, settings) from error
    finally:
        await stop_producer(producer)
