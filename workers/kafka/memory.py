"""Kafka in memory: an application's topics, its group, and commits that are fenced. No client, no network, no waiting.

    append ──▶ logs ──▶ MemoryConsumer          MemorySink ──▶ frames, late, dead letters, changelog, offsets

`MemoryKafka` is what `workers.kafka.ports` asks of a cluster, held by ``tests/contract`` to the tests that the real one
passes. What decides is synchronous, so that `workers.testing` can use it without an event loop; the consumer and the
sink put the protocols' coroutines around it.

Not here: network failures, sessions that run out, brokers that die.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from workers.core.frames import OutRecord
from workers.core.snapshot import TopicIdentity
from workers.errors import DataLossError, FencedError, TopicReplacedError
from workers.kafka.ports import Commit, Fetched, KnownTopics, OutTopic, OversizedError, PartitionsCallback, Sighting

__all__ = ["LogRecord", "MemoryConsumer", "MemoryKafka", "MemorySink", "MemoryTopics"]


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of the simulated input topic; ``timestamp`` in ms, -1 for none."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True, slots=True)
class MemoryTopics:
    """The topics that results go to."""

    frames: OutTopic
    late: OutTopic
    dead_letters: OutTopic
    routed: Mapping[str, OutTopic] = field(default_factory=dict)


def _next_life(topic: TopicIdentity) -> TopicIdentity:
    return TopicIdentity(topic.name, f"{topic.id}+")


class MemoryKafka:
    """One application's topics and group. Outputs are lists of what a reader sees, in the order of the commits."""

    def __init__(
        self,
        topic: str = "ticks",
        partitions: int = 1,
        *,
        routed: Iterable[str] = (),
        max_record_bytes: int = sys.maxsize,
        shared: bool = False,
    ) -> None:
        """``routed``: the names of topics that operators send ticks to. ``shared``: partitions share a transaction, and
        who has one is decided by the group alone."""

        def out(name: str) -> OutTopic:
            return OutTopic(name, partitions, max_record_bytes)

        self.topic = topic
        self.topics = KnownTopics(
            partitions,
            MemoryTopics(out("frames"), out("late"), out("dead-letters"), {name: out(name) for name in routed}),
            identities={"ticks": TopicIdentity(topic, f"{topic}-1"), "changelog": TopicIdentity("changelog", "c-1")},
        )
        self.identities = dict(self.topics.identities)  # as they are now
        self.changelog_begins = [0] * partitions
        self.looks = 0  # how often a member looked at the topics
        self.frames: list[OutRecord] = []
        self.late: list[OutRecord] = []
        self.dead_letters: list[OutRecord] = []
        self.routed: dict[str, list[OutRecord]] = {}
        self.changelogs: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]  # compacted
        self.offsets: list[int | None] = [None] * partitions  # the group's
        self._max_record_bytes = max_record_bytes
        self._logs: list[list[LogRecord | None]] = [[] for _ in range(partitions)]  # None: deleted, or no record
        self._epochs = [0] * partitions
        self._shared = shared
        self._waiting: list[tuple[int, int, Commit, asyncio.Future[None]]] = []  # partition, epoch, work
        self._had: dict[int, MemoryConsumer] = {}  # who had each partition in the generation before
        self._members: list[MemoryConsumer] = []
        self._rebalancing = asyncio.Lock()
        self._appended = asyncio.Event()

    # -- the input ----------------------------------------------------------------------------------------------------

    def append(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int = -1,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """Write an input record; its offset."""
        log = self._logs[partition]
        log.append(LogRecord(len(log), timestamp_ms, key, value, headers))
        self._appended.set()
        return len(log) - 1

    def append_marker(self, partition: int) -> None:
        """Take up an offset with what is no record, as the end of a transaction does."""
        self._logs[partition].append(None)
        self._appended.set()

    def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset of the log, of which nothing is ever deleted here, and its end."""
        return 0, len(self._logs[partition])

    def log(self, partition: int) -> list[LogRecord]:
        """The records of an input partition. Raises ``IndexError`` where there is none."""
        return [record for record in self._logs[partition] if record is not None]

    def read(self, partition: int, offset: int, limit: int = sys.maxsize) -> tuple[list[LogRecord], int]:
        """At most ``limit`` records from an offset on, and the offset behind them and what is no record after them.

        Raises `DataLossError` where the log doesn't have the offset.
        """
        begin, end = self.bounds(partition)
        if not begin <= offset <= end:
            raise DataLossError(f"{self.topic}[{partition}] has offsets {begin} to {end}; {offset} was to be read next")
        found: list[LogRecord] = []
        for record in self._logs[partition][offset:]:
            if record is not None and len(found) == limit:
                break
            offset += 1
            if record is not None:
                found.append(record)
        return found, offset

    # -- accidents ----------------------------------------------------------------------------------------------------

    def replace_input(self) -> None:
        """Delete the input topic and make it again, empty; the group's offsets stay."""
        self.identities["ticks"] = _next_life(self.identities["ticks"])
        self._logs = [[] for _ in self._logs]

    def replace_changelog(self) -> None:
        """Delete the changelog and make it again."""
        self.identities["changelog"] = _next_life(self.identities["changelog"])
        self.changelogs = [{} for _ in self.changelogs]

    def cut_changelog(self, partition: int, keys: Collection[bytes]) -> None:
        """Delete the beginning of a changelog partition, and with it the last records of some keys."""
        self.changelog_begins[partition] += 1
        for key in keys:
            del self.changelogs[partition][key]

    # -- commits ------------------------------------------------------------------------------------------------------

    def take_over(self, partition: int) -> int:
        """Fence whoever owned the partition; the epoch to commit with."""
        self._epochs[partition] += 1
        return self._epochs[partition]

    def commit(self, partition: int, epoch: int, work: Commit) -> None:
        """Make all of it visible. Raises `FencedError` and `OversizedError`, after which nothing of it is."""
        self._check(partition, epoch, work)
        self.publish(work)
        changelog = self.changelogs[partition]
        for record in work.changes:
            assert record.key is not None
            if record.value is None:
                changelog.pop(record.key, None)
            else:
                changelog[record.key] = record.value
        self.offsets[partition] = work.offset

    async def write(self, partition: int, epoch: int, work: Commit) -> None:
        """As `commit`; as an answer from a broker does, it lets others in between."""
        if self._shared:
            await self._write_with_others(partition, epoch, work)
            return
        await asyncio.sleep(0)
        self.commit(partition, epoch, work)

    async def _write_with_others(self, partition: int, epoch: int, work: Commit) -> None:
        """In one go with all that wait by then; where one is refused, the others are made visible all the same."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((partition, epoch, work, done))
        await asyncio.sleep(0)
        works, self._waiting = self._waiting, []
        for number, its_epoch, its_work, its_done in works:
            try:
                self.commit(number, its_epoch, its_work)
            except (FencedError, OversizedError) as error:
                its_done.set_exception(error)
            else:
                its_done.set_result(None)
        await done

    def publish(self, work: Commit) -> None:
        """Make the results visible, without the state they come from: at least once, a crash leaves this behind."""
        self.frames.extend(work.frames)
        self.late.extend(work.late)
        self.dead_letters += work.dead_letters
        for name, records in work.routed.items():
            self.routed.setdefault(name, []).extend(records)

    def _check(self, partition: int, epoch: int, work: Commit) -> None:
        if epoch != self._epochs[partition]:
            raise FencedError(f"another worker has taken over {self.topic}[{partition}]")
        for records in (work.frames, work.late, work.dead_letters, *work.routed.values()):
            largest = max((record.size for record in records), default=0)
            if largest > self._max_record_bytes:
                raise OversizedError("a topic", self._max_record_bytes)

    # -- as `workers.kafka.ports.Kafka` -------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """The topics are there."""
        self.topics = replace(self.topics, identities=dict(self.identities))

    def doubt(self) -> None:
        """The limits are known."""

    async def refresh(self) -> None:
        """The limits are known."""

    def connecting(self) -> AbstractAsyncContextManager[None]:
        """Nothing has to be reached."""
        return contextlib.nullcontext()

    def consumer(
        self, *, on_revoked: PartitionsCallback, on_assigned: PartitionsCallback, batches: bool
    ) -> MemoryConsumer:
        """A new member of the group, not yet started. It hands out records, which lanes that take batches take too."""
        return MemoryConsumer(self, on_revoked, on_assigned)

    def sink(self, partition: int) -> MemorySink:
        """A new sink for a partition, not yet open."""
        return MemorySink(self, partition)

    async def read_changelog(self, partition: int, on_progress: Callable[[int], None]) -> Mapping[bytes, bytes]:
        """The last value of every key in a partition's changelog."""
        found = dict(self.changelogs[partition])
        if found:
            on_progress(len(found))
        return found

    # -- the group ----------------------------------------------------------------------------------------------------

    def is_member(self, consumer: MemoryConsumer) -> bool:
        """Whether the group has it."""
        return consumer in self._members

    async def join(self, consumer: MemoryConsumer) -> None:
        """Take a member into the group, and share the partitions out anew."""
        self._members.append(consumer)
        await self._rebalance()

    async def leave(self, consumer: MemoryConsumer) -> None:
        """Take a member out of the group, and share its partitions out."""
        if consumer in self._members:
            self._members.remove(consumer)
            await self._rebalance()

    async def wait_for_records(self, timeout_s: float) -> None:
        """Until something is appended, or the time is over."""
        self._appended.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._appended.wait(), timeout_s)

    async def _rebalance(self) -> None:
        """Eagerly: all give back what they have before anybody gets anything."""
        async with self._rebalancing:
            for member in list(self._members):
                await member.revoke()
            members = list(self._members)
            owners = {number: members[number % len(members)] for number in range(len(self._logs)) if members}
            for number, had in self._had.items():
                if self._shared and owners.get(number) is not had:
                    self._epochs[number] += 1  # the generation in which its works could be committed is over
            self._had = owners
            for member in members:
                await member.assign({number for number, owner in owners.items() if owner is member})


class MemoryConsumer:
    """A member of the group; see `workers.kafka.ports.GroupConsumer`."""

    def __init__(self, kafka: MemoryKafka, on_revoked: PartitionsCallback, on_assigned: PartitionsCallback) -> None:
        self._kafka = kafka
        self._topic = kafka.topics.identities["ticks"]
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._assigned: set[int] = set()
        self._positions: dict[int, int] = {}  # of what is read
        self._paused: set[int] = set()
        self._joining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Join the group, in the background."""
        self._joining = asyncio.create_task(self._kafka.join(self))

    async def stop(self) -> None:
        """Leave the group; ``on_revoked`` is not called."""
        if self._joining is not None:
            await asyncio.wait([self._joining])
        await self._kafka.leave(self)

    async def revoke(self) -> None:
        """A rebalance begins."""
        revoked, self._assigned = self._assigned, set()
        self._positions.clear()
        await self._on_revoked(revoked)

    async def assign(self, partitions: set[int]) -> None:
        """A rebalance ends."""
        self._positions.clear()
        self._paused.clear()
        self._assigned = partitions
        await self._on_assigned(set(partitions))

    def owns(self, partition: int) -> bool:
        """Whether the partition is assigned to this consumer now."""
        return partition in self._assigned

    async def look(self, partitions: Collection[int]) -> Sighting:
        """The topics as they are now."""
        kafka = self._kafka
        kafka.looks += 1
        begins = {number: kafka.changelog_begins[number] for number in partitions}
        return Sighting(dict(kafka.identities), len(kafka.changelogs), begins)

    def check(self) -> None:
        """Raise what a callback raised in the background, and `TopicReplacedError`."""
        was, now = self._topic, self._kafka.identities["ticks"]
        if was != now:
            raise TopicReplacedError(f"the topic {was.name} was deleted and made again ({was.id}, {now.id})")
        if self._joining is not None and self._joining.done():
            self._joining.result()

    async def confirm_membership(self, partition: int) -> bool:
        """Whether the partition is owned here; raises `FencedError` where this is no member any more."""
        if not self._kafka.is_member(self):
            raise FencedError(f"the group has not confirmed that {self._kafka.topic}[{partition}] is owned here")
        return self.owns(partition)

    def start_reading(self, partition: int, offset: int) -> None:
        """Hand out the partition's records from ``offset`` on."""
        assert self.owns(partition)
        self._positions[partition] = offset
        self._paused.discard(partition)

    def stop_reading(self, partition: int) -> None:
        """Hand out nothing of the partition until `start_reading`."""
        self._positions.pop(partition, None)

    def pause(self, partition: int) -> None:
        """Hand out no more for now."""
        self._paused.add(partition)

    def resume(self, partition: int) -> None:
        """Hand out again."""
        self._paused.discard(partition)

    async def stay(self) -> None:
        """Nobody asks."""

    async def poll(self, partitions: Collection[int], *, timeout_ms: int, max_records: int) -> dict[int, Fetched]:
        """The next records of the given partitions that are read. Raises `DataLossError` and as `check`."""
        self.check()
        found = self._read(partitions, max_records)
        if not found and timeout_ms:
            await self._kafka.wait_for_records(timeout_ms / 1000)
            self.check()
            found = self._read(partitions, max_records)
        return found

    def _read(self, partitions: Collection[int], limit: int) -> dict[int, Fetched]:
        found: dict[int, Fetched] = {}
        for partition in partitions:
            if partition not in self._positions or partition in self._paused or not limit:
                continue
            records, self._positions[partition] = self._kafka.read(partition, self._positions[partition], limit)
            limit -= len(records)
            if records:
                found[partition] = Fetched(records)
        return found

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset; None where it has none."""
        return self._kafka.offsets[partition]

    async def log_bounds(self, partition: int) -> tuple[int, int]:
        """The first offset of the log, of which nothing is ever deleted here, and its end."""
        return self._kafka.bounds(partition)

    async def at_end(self, partition: int) -> bool:
        """Whether everything has been handed out; False where nothing is read."""
        return partition in self._positions and self._positions[partition] >= self._kafka.bounds(partition)[1]

    async def position(self, partition: int) -> int | None:
        """The offset behind all that was handed out; None where nothing is read."""
        return self._positions.get(partition)


class MemorySink:
    """Where one partition's commits go; see `workers.kafka.ports.CommitSink`."""

    def __init__(self, kafka: MemoryKafka, partition: int) -> None:
        self._kafka = kafka
        self._partition = partition
        self._epoch: int | None = None

    async def open(self) -> None:
        """Fence whoever owned the partition before."""
        self._epoch = self._kafka.take_over(self._partition)

    async def commit(self, work: Commit) -> None:
        """Make ``work`` visible as a whole. Raises `FencedError` and `OversizedError`."""
        if self._epoch is None:
            raise FencedError(f"the sink of {self._kafka.topic}[{self._partition}] is closed")
        await self._kafka.write(self._partition, self._epoch, work)

    async def close(self) -> None:
        """Let go of it."""
        self._epoch = None
