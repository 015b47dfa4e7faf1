"""How far the consumer group is behind: committed offsets against the ends of the partitions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from workers.errors import BrokerError, TopicError
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import NO_COORDINATOR_YET
from workers.kafka.reading import TopicReader, reading
from workers.kafka.topics import describe_topics

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = [
    "GroupLag",
    "LagReader",
    "PartitionLag",
    "added_partitions_problem",
    "lost_records_problem",
    "no_group_problem",
]

_NO_OFFSET: Final = -1
_COORDINATOR_TIMEOUT_S: Final = 30.0  # a first group makes the broker create its offsets topic
_REQUEST_TIMEOUT_S: Final = 30.0
_LOOK_AGAIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition: offsets, and the records between them.

    ``committed`` is None before the group's first commit; then everything the partition holds is still to be done, or
    everything since ``first_seen_end`` where a group begins at the end (``auto.offset.reset = latest``). ``settings``
    is the digest of those under which it was processed, as its worker noted it; "" where nothing is noted.
    """

    partition: int
    begin: int
    committed: int | None
    end: int
    first_seen_end: int | None = None
    settings: str = ""

    @property
    def next_offset(self) -> int:
        """The offset of the first record that is still to be done.

        A commit beyond the end is of another life of the topic (deleted and made again) and says nothing of this one.
        """
        if self.committed is not None and self.committed <= self.end:
            return max(self.committed, self.begin)
        if self.committed is None and self.first_seen_end is not None:
            return max(self.first_seen_end, self.begin)
        return self.begin

    @property
    def lag(self) -> int:
        """Records not yet committed."""
        return max(self.end - self.next_offset, 0)

    @property
    def lost(self) -> int:
        """Offsets that the group had not committed when retention deleted them: at most so many records are lost."""
        if self.committed is None or self.committed > self.end:
            return 0
        return max(self.begin - self.committed, 0)


@dataclass(frozen=True, slots=True)
class GroupLag:
    """A group's lag on one topic, its state in Kafka's words (``Stable``, ``Empty``, ``Dead``) and its members."""

    group: str
    topic: str
    state: str
    members: int
    partitions: tuple[PartitionLag, ...]
    changelog: str = ""
    state_partitions: int | None = None  # of the changelog; None where there is none

    @property
    def total(self) -> int:
        """Records not yet committed, over all partitions."""
        return sum(partition.lag for partition in self.partitions)

    @property
    def lost(self) -> int:
        """Offsets deleted before they were committed, over all partitions."""
        return sum(partition.lost for partition in self.partitions)

    @property
    def deserted(self) -> bool:
        """Whether the cluster is sure that the group has no members."""
        return self.state in ("Empty", "Dead")

    @property
    def exists(self) -> bool:
        """Whether the cluster knows the group: it has members, or has committed something."""
        return self.state != "Dead" or any(partition.committed is not None for partition in self.partitions)

    @property
    def by_settings(self) -> Mapping[str, Sequence[int]]:
        """Which partitions were processed under which settings; more than one entry means that workers disagree."""
        found: dict[str, list[int]] = {}
        for each in self.partitions:
            if each.settings:
                found.setdefault(each.settings, []).append(each.partition)
        return found


def no_group_problem(found: GroupLag) -> str | None:
    """Says that there is no such group, where the cluster is sure of it."""
    if found.exists:
        return None
    return (
        f"there is no consumer group {found.group!r}: no worker of this application has committed anything, or its "
        f"application_id is different"
    )


def lost_records_problem(found: GroupLag) -> str | None:
    """Says which records retention deleted before the group had committed them; None where there are none."""
    lost = [item for item in found.partitions if item.lost]
    if not lost:
        return None
    shown = ", ".join(
        f"{item.partition} (committed {item.committed:,}, the log begins at {item.begin:,})" for item in lost[:10]
    )
    more = f" and {len(lost) - 10:,} more" if len(lost) > 10 else ""
    return (
        f"up to {found.lost:,} records of {found.topic} are lost to group {found.group}: the topic's retention deleted "
        f"them before they were committed, on partition{'s' if len(lost) > 1 else ''} {shown}{more}"
    )


def added_partitions_problem(found: GroupLag) -> str | None:
    """Says that the topic has other partitions than the state; None where it has the same, or there is no state."""
    partitions = len(found.partitions)
    if found.state_partitions in (None, partitions):
        return None
    return (
        f"{found.topic} has {partitions} partitions and the state, {found.changelog}, has {found.state_partitions}: "
        "partitions were added, and keys have moved between them. Stop all workers and move the state with "
        f"`workers state rescale --partitions {partitions}`, or drop it with `workers state reset`"
    )


class LagReader:
    """Reads the lag of the application's group on its ticks topic, without being a member.

    Use as ``async with LagReader(settings, admin) as reader``; ``admin`` must be started. ``first_seen_ends`` carries
    over, from one reader to the next, where partitions ended that a group beginning at the end has not committed.
    """

    def __init__(
        self, settings: Settings, admin: AIOKafkaAdminClient, *, first_seen_ends: dict[int, int] | None = None
    ) -> None:
        self._settings = settings
        self._admin = admin
        self._known_partitions = 0
        self._state_partitions: int | None = None
        self._looked_s = 0.0
        self._first_seen_ends = first_seen_ends if first_seen_ends is not None else {}
        # Ends are the last stable offsets, as the worker reads: an open transaction is not yet there to be processed.
        self._opened = reading(settings, isolation_level=settings.kafka.isolation_level)
        self._ends: TopicReader

    async def __aenter__(self) -> LagReader:
        self._ends = await self._opened.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, traceback)

    async def read(self) -> GroupLag:
        """The lag now. Raises ``TopicError`` where there is no ticks topic, ``BrokerError`` where nobody answers."""
        topic, group = self._settings.topics.ticks, self._settings.application_id
        try:
            async with asyncio.timeout(_COORDINATOR_TIMEOUT_S + _REQUEST_TIMEOUT_S):
                wanted = range(await self._partitions(topic))
                committed = await self._committed(group, [TopicPartition(topic, number) for number in wanted])
                state, members = await self._members(group)
                await self._ends.turn_to(topic)
                begins = await self._ends.begins(wanted)
                ends = await self._ends.ends(wanted)  # last, so that no commit is beyond them
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, self._settings) from error
        if self._settings.kafka.auto_offset_reset == "latest":
            for number in wanted:
                self._first_seen_ends.setdefault(number, ends[number])
        partitions = tuple(
            PartitionLag(
                number,
                begins[number],
                committed[number][0],
                ends[number],
                self._first_seen_ends.get(number),
                committed[number][1],
            )
            for number in wanted
        )
        return GroupLag(
            group, topic, state, members, partitions, self._settings.topics.changelog, self._state_partitions
        )

    async def _partitions(self, topic: str) -> int:
        """How many partitions the topic has, looked up now and then: the answer lists every topic of the cluster."""
        now_s = time.monotonic()
        if not self._known_partitions or now_s - self._looked_s > _LOOK_AGAIN_S:
            topics = await describe_topics(self._admin)
            found, changelog = topics.get(topic), topics.get(self._settings.topics.changelog)
            self._state_partitions = changelog.partitions if changelog is not None else None
            if found is None or not found.partitions:
                raise TopicError(
                    f"the cluster at {self._settings.bootstrap_servers} has no topic {topic}, so there is no lag to "
                    f"measure"
                )
            self._known_partitions, self._looked_s = found.partitions, now_s
        return self._known_partitions

    async def _committed(self, group: str, wanted: list[TopicPartition]) -> dict[int, tuple[int | None, str]]:
        """Committed offsets, and what was noted with each.

        The client overlooks the answer's own error, on which partitions asked for are missing."""
        deadline_s = time.monotonic() + _COORDINATOR_TIMEOUT_S
        while True:
            try:
                offsets = await self._admin.list_consumer_group_offsets(group, partitions=wanted)
            except NO_COORDINATOR_YET:
                offsets = {}
            if all(tp in offsets for tp in wanted):
                return {tp.partition: _noted(offsets[tp]) for tp in wanted}
            if time.monotonic() > deadline_s:
                raise BrokerError(
                    f"the coordinator of group {group} gave no offsets for {_COORDINATOR_TIMEOUT_S:.0f} s; is "
                    "__consumer_offsets available, and may this user describe the group?"
                )
            await asyncio.sleep(0.1)

    async def _members(self, group: str) -> tuple[str, int]:
        for response in await self._admin.describe_consumer_groups([group]):
            for code, _group, state, _protocol_type, _protocol, members, *_ in response.groups:
                error = for_code(code)
                if error in NO_COORDINATOR_YET:
                    return "Unknown", 0
                return state or "Dead", len(members)
        return "Unknown", 0


def _noted(found: OffsetAndMetadata) -> tuple[int | None, str]:
    return (None, "") if found.offset == _NO_OFFSET else (found.offset, found.metadata or "")
