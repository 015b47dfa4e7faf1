"""Making frames again from the input topic, and comparing them with those that were published.

    ticks[p] ─▶ a lane of its own ─▶ made ──┐
                                            ├─▶ by (start, key, rev, status): identical, or why not
    frames ──────────────────────▶ published┘

Provisional frames are left out, because they depend on the clock on the wall. What is compared, by
`workers.apps.inspect.comparison`, waits on disk, so that memory is bounded by the lanes' state, however long the log
is.

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

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

from workers.apps.inspect.comparison import Comparison, FrameTable, ReplayResult, row_of
from workers.apps.inspect.explain import stored_settings_problem
from workers.apps.produce.send import prepare_topic
from workers.core.frames import OutRecord, frame_name
from workers.core.lane import Input, Lane
from workers.core.partitioning import partition_for
from workers.core.snapshot import META_KEY, read_meta
from workers.core.spec import LaneSpec
from workers.core.ticks import is_end_of_input
from workers.errors import ConfigError, TopicError
from workers.kafka.clients import Producer, admin_client, start_producer
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import KafkaError
from workers.kafka.group_offsets import GroupLag, LagReader, PartitionLag
from workers.kafka.log_reader import LogReader
from workers.kafka.options import producer_options
from workers.kafka.repairs import stop_producer
from workers.kafka.topics import describe_topics, ensure_topics
from workers.settings.lane import lane_spec
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS

if TYPE_CHECKING:
    from workers.kafka.reading import KafkaRecord
    from workers.kafka.topics import TopicLayout
    from workers.settings import Settings

__all__ = ["FrameSink", "replay", "writing_to_file", "writing_to_topic"]

PROGRESS_EVERY_S: Final = 2.0
_NO_PARTITION: Final = -1


class FrameSink(Protocol):
    """Takes the frames that were made again, those of a key in order."""

    async def write(self, frames: Sequence[OutRecord]) -> None: ...


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
        found = stack.enter_context(closing(FrameTable())) if compare else None
        if found is not None:
            await work.collect(frames, found)
        for log in lag.partitions:
            if work.home is None or log.partition == work.home:
                await work.make(ticks, log, sink, found)
        if found is not None:
            if settings.topics.changelog in await describe_topics(admin):
                await work.look_at_state(frames)
            work.comparison.compare(found)
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
        self._longest_ns = self.spec.window.assigner().longest_ns
        self._settings, self._layout, self._warm_up_ns = settings, layout, warm_up_ns
        self._lag = {log.partition: log for log in lag.partitions}
        self._from_ns, self._to_ns = from_ns, to_ns
        self._from_ms, self._to_ms = -(-from_ns // NS_PER_MS), -(-to_ns // NS_PER_MS)
        self._key = symbol.encode() if symbol is not None else None
        self.home = partition_for(self._key, len(lag.partitions)) if self._key is not None else None
        self.comparison = Comparison(settings, self.spec, layout, self._lag, self._key, warm_up_ns, self.result)
        self._on_progress = on_progress
        self._said_s = time.monotonic()
        self._counted: dict[int, tuple[int, int]] = {}  # partition -> (offset committed, records before it)

    # -- published ----------------------------------------------------------------------------------------------------

    async def collect(self, reader: LogReader, found: FrameTable) -> None:
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
            self.comparison.frames_begin[partition], ends[partition] = await reader.bounds(topic, partition)
        foreign = 0
        for partition in partitions:
            begin = await reader.offset_at(topic, partition, earliest_ms)
            async for chunk in reader.read(topic, partition, begin, ends[partition]):
                rows = []
                for record in chunk:
                    if is_end_of_input(record) or (self._key is not None and record.key != self._key):
                        continue
                    row = row_of(OutRecord(record.key, record.value), partition, record.offset, published=True)
                    foreign += row is None
                    if row is not None and row.status != "provisional" and self._from_ms <= row.start_ms < self._to_ms:
                        rows.append(row)
                found.add(rows)
                self._say(f"{topic}[{partition}]: at offset {chunk[-1].offset:,} of {ends[partition]:,}")
        if foreign:
            self.result.notes.append(f"{foreign:,} records of {topic} are not frames; something else writes to it")

    # -- made ---------------------------------------------------------------------------------------------------------

    async def make(
        self, reader: LogReader, log: PartitionLag, sink: FrameSink | None, found: FrameTable | None
    ) -> None:
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
                        rows = (row_of(frame, partition, at, published=False, due=due) for frame, at in made)
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
            earliest_ns -= self.spec.window.looks_back_ns + self.spec.end_reach_ns
            earliest_ms = earliest_ns // NS_PER_MS
            begin = await reader.offset_at(topic, log.partition, earliest_ms)
        return begin, end

    def _wanted(self, lane: Lane, records: Sequence[KafkaRecord]) -> list[tuple[OutRecord, int]]:
        """The frames wanted of those that the records bring out, with the offset up to which the lane had read."""
        frames = lane.process(records).frames
        wanted = []
        for frame in frames:
            if self._key is not None and frame.key != self._key:
                continue
            start_ms, _, status = frame_name(frame.value)
            assert start_ms is not None, "a lane's own frame"
            if status != "provisional" and self._from_ms <= start_ms < self._to_ms:
                wanted.append((frame, lane.position - 1))
        return wanted

    def _nothing_more(self, lane: Lane) -> bool:
        """Whether every window wanted is gone for good: those of keys that stayed behind have expired, and a tick for
        one would be late however it came. Without ``key_ttl`` there is no such moment before the log's end: any symbol
        may still come with any time."""
        spec, reached_ns = self.spec, lane.partition_max_ns
        if spec.window.merges or spec.key_ttl_ns is None:  # sessions may go on for as long as they like
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
                self.comparison.problems_of_state[partition] = problem
        self.result.notes += sorted(set(self.comparison.problems_of_state.values()))

    async def _later_begin(self, reader: LogReader, topic: str, partition: int) -> str | None:
        value = await reader.last_value(topic, partition, META_KEY)
        if value is None or self._warm_up_ns is not None:
            return None
        meta = read_meta({META_KEY: value}, where=f"{topic}[{partition}]")
        offset, records = self._counted.get(partition, (_NO_PARTITION, 0))
        if meta is None or meta.offset != offset or meta.counts.records >= records:
            return None
        return (
            f"the state of {self._settings.topics.ticks}[{partition}] counts {meta.counts.records:,} records, its log "
            f"holds {records:,} up to the same offset: it was begun later than the log (state reset, or "
            "auto.offset.reset = latest)"
        )

    def _say(self, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= PROGRESS_EVERY_S:
            self._said_s = now_s
            self._on_progress(text)


def _cut(chunk: Sequence[KafkaRecord], committed: int) -> Iterator[tuple[Sequence[KafkaRecord], bool]]:
    """The records before the committed offset, and those from it on."""
    at = next((n for n, record in enumerate(chunk) if record.offset >= committed), len(chunk))
    for records, due in ((chunk[:at], True), (chunk[at:], False)):
        if records:
            yield records, due


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
    def __init__(self, producer: Producer, topic: str, partitions: int) -> None:
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
    options = producer_options(settings) | {"acks": "all", "enable_idempotence": True}
    producer = await start_producer(settings, options)
    try:
        yield _TopicSink(producer, topic, partitions)
        await producer.flush()
    except (KafkaError, TimeoutError) as error:
        raise explain_connection_error(error, settings) from error
    finally:
        await stop_producer(producer)
