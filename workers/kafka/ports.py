"""What a worker asks of Kafka, and what passes between them. No client is here.

    Kafka ─▶ GroupConsumer ─▶ Fetched ─▶ (lanes) ─▶ Commit ─▶ CommitSink

The real one is `workers.kafka.cluster`, one in memory is `workers.kafka.memory`; ``tests/contract`` holds both to the
same tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from workers.core.frames import OutRecord
from workers.core.packed import OutRecords
from workers.core.records import RawBatch, Record
from workers.core.snapshot import TopicIdentity
from workers.errors import BrokerError

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "Commit",
    "CommitSink",
    "Fetched",
    "GroupConsumer",
    "Kafka",
    "KnownTopics",
    "OutTopic",
    "OutTopics",
    "OversizedError",
    "PartitionsCallback",
    "Sighting",
]

DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_588  # Kafka's own, where the cluster doesn't tell

PartitionsCallback = Callable[[set[int]], Awaitable[None]]


class OversizedError(BrokerError):
    """A batch was refused as too large for ``topic``, which was believed to take records of ``limit_bytes``."""

    def __init__(self, topic: str, limit_bytes: int) -> None:
        super().__init__(f"{topic} refused a record as too large; it was believed to take {limit_bytes} bytes")
        self.topic, self.limit_bytes = topic, limit_bytes


class Fetched:
    """Records of one partition in log order, or whole batches of them; not empty. ``size_bytes`` is what they take in
    memory, batches as they were packed."""

    __slots__ = ("items", "records", "size_bytes")

    def __init__(self, items: Sequence[Record | RawBatch]) -> None:
        self.items = items
        self.records = sum(len(item) if isinstance(item, RawBatch) else 1 for item in items)
        self.size_bytes = sum(map(_size_of, items))

    @property
    def next_offset(self) -> int:
        """The offset after the last record."""
        last = self.items[-1]
        return last.next_offset if isinstance(last, RawBatch) else last.offset + 1

    def split(self, limit: int) -> tuple[Fetched, Fetched | None]:
        """The first ``limit`` records, and the rest; a batch is not divided, so it may be more."""
        if self.records <= limit:
            return self, None
        taken = count = 0
        while count < limit:
            item = self.items[taken]
            count += len(item) if isinstance(item, RawBatch) else 1
            taken += 1
        rest = self.items[taken:]
        return Fetched(self.items[:taken]), Fetched(rest) if rest else None


def _size_of(item: Record | RawBatch) -> int:
    return item.size_bytes if isinstance(item, RawBatch) else len(item.key or b"") + len(item.value or b"")


@dataclass(slots=True)
class OutTopic:
    """A topic that is written to: its partitions and the largest record it takes."""

    name: str
    partitions: int
    max_record_bytes: int
    ahead_limit_ms: int | None = None  # how far ahead of its brokers' clocks it takes records, where that is limited


class OutTopics(Protocol):
    """The topics that results go to."""

    @property
    def frames(self) -> OutTopic: ...

    @property
    def late(self) -> OutTopic: ...

    @property
    def dead_letters(self) -> OutTopic: ...

    @property
    def routed(self) -> Mapping[str, OutTopic]:
        """Where operators send ticks, by name."""


@dataclass(slots=True)
class Commit:
    """All that becomes visible together: results, state, and the input offset that they reflect."""

    offset: int
    frames: OutRecords = field(default_factory=list)
    late: OutRecords = field(default_factory=list)
    dead_letters: list[OutRecord] = field(default_factory=list)
    routed: dict[str, OutRecords] = field(default_factory=dict)
    changes: OutRecords = field(default_factory=list)
    settings: str = ""  # the lane's `settings_digest`, noted with the offset


@dataclass(frozen=True, slots=True)
class KnownTopics:
    """What the cluster tells of an application's topics. ``frames_retention_ms``: -1 for ever, None: not told.

    ``identities`` are those of the ticks topic and the changelog, under "ticks" and "changelog".
    """

    input_partitions: int
    out: OutTopics
    frames_retention_ms: int | None = None
    identities: Mapping[str, TopicIdentity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The ticks topic and the changelog as they are now: identities as in `KnownTopics`, without a topic that is gone;
    how many partitions the ticks topic has; and where partitions of the changelog begin."""

    identities: Mapping[str, TopicIdentity]
    input_partitions: int
    changelog_begins: Mapping[int, int]


class GroupConsumer(Protocol):
    """The input topic as one member of the group sees it; partitions are plain numbers. Rebalances are eager: each
    calls ``on_revoked`` with all partitions, then ``on_assigned`` with those that are owned from then on."""

    async def start(self) -> None:
        """Connect and subscribe; the group is joined in the background."""

    async def stop(self) -> None:
        """Leave the group; ``on_revoked`` is not called."""

    def owns(self, partition: int) -> bool:
        """Whether the partition is assigned to this consumer now; never while a rebalance is under way."""

    def check(self) -> None:
        """Raise what was found in the background; `TopicReplacedError` where the topic is not the one that `prepare`
        found."""

    async def look(self, partitions: Collection[int]) -> Sighting:
        """The topics as they are now, and where these partitions of the changelog begin."""

    async def confirm_membership(self, partition: int) -> bool:
        """Ask the group whether this process still owns the partition; False while a rebalance is under way, whose end
        decides, `FencedError` where the group has gone on without this process."""

    def start_reading(self, partition: int, offset: int) -> None:
        """Hand out the partition's records from ``offset`` on. The partition must be owned."""

    def stop_reading(self, partition: int) -> None:
        """Hand out nothing of the partition until `start_reading`."""

    def pause(self, partition: int) -> None:
        """Fetch no more for now."""

    def resume(self, partition: int) -> None:
        """Fetch again."""

    async def stay(self) -> None:
        """Show that this member is alive while it fetches nothing."""

    async def poll(self, partitions: Collection[int], *, timeout_ms: int, max_records: int) -> dict[int, Fetched]:
        """The next records of the given partitions that are read, in log order; waits ``timeout_ms`` for the first.

        Raises `DataLossError` where the log no longer has the position, and as `check` where the topic is another one.
        """

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset; None where it has none."""

    async def log_bounds(self, partition: int) -> tuple[int, int]:
        """The first offset that the log still has, and its end."""

    async def at_end(self, partition: int) -> bool:
        """Whether everything that the last fetch saw has been handed out; False where nothing is read."""

    async def position(self, partition: int) -> int | None:
        """The offset behind all that was handed out, and behind what is no record after it; None where nothing is
        read."""


class CommitSink(Protocol):
    """Where one partition's commits go. ``open`` fences whoever owned the partition before."""

    async def open(self) -> None:
        """After this the previous owner can commit nothing, and everybody can read what it did commit: until now that
        may have been a moment behind what was acknowledged."""

    async def commit(self, work: Commit) -> None:
        """Make ``work`` visible as a whole, or nothing of it. After any exception the sink must be discarded.

        Raises `FencedError` when another worker owns the partition, `OversizedError` when a record was refused as too
        large, the client's errors and ``TimeoutError`` otherwise.
        """

    async def close(self) -> None:
        """Let go of it; whatever was not committed is not."""


class Kafka(Protocol):
    """A cluster with an application's topics."""

    @property
    def topics(self) -> KnownTopics:
        """What `prepare` found."""

    async def prepare(self) -> None:
        """See that the topics are there and fit together; learn their partitions and the largest record each takes."""

    def doubt(self) -> None:
        """A record was refused as too large: `refresh` has to ask again."""

    async def refresh(self) -> None:
        """`prepare` again, if there is a doubt."""

    def connecting(self) -> AbstractAsyncContextManager[None]:
        """Around what reaches the cluster for the first time: its errors say what to look at."""

    def consumer(
        self, *, on_revoked: PartitionsCallback, on_assigned: PartitionsCallback, batches: bool
    ) -> GroupConsumer:
        """A new member of the group, not yet started. ``batches``: whole record batches are handed out."""

    def sink(self, partition: int) -> CommitSink:
        """A new sink for a partition, not yet open."""

    async def read_changelog(self, partition: int, on_progress: Callable[[int], None]) -> Mapping[bytes, bytes]:
        """The last value of every key in a partition's changelog; to be called after its sink was opened."""
