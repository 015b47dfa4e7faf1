"""More input partitions for an application that has state: its state moves along with the keys.

Partitions are added to a topic at once, and from then on the partitioner puts most keys elsewhere. What was read of
them, and is still open, lies in the old partition's state. So, while nobody works:

    1. every tick of a key that moves has been read     (or the rest of its ticks would be missed)
    2. the ticks topic and the changelog get their partitions
    3. each key's state moves, and the group's offsets say so, in one transaction
    4. the state is read back, and compared

It can be interrupted anywhere and run again. Until 3 the old state stands, and no worker would take it for more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from workers.apps.inspect.state import sink_spec
from workers.core.frames import OutRecord
from workers.core.lane import Input
from workers.core.partitioning import partition_for
from workers.core.rescale import Rescaled, rescale
from workers.core.snapshot import LaneMeta, TopicIdentity, read_meta
from workers.errors import StateMismatchError, TopicError, WorkersError
from workers.kafka.changelog import read_changelog
from workers.kafka.clients import admin_client
from workers.kafka.commit import Attempt, PartitionSink, SinkSpec, TransactionWriter
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import KafkaError
from workers.kafka.group_offsets import LagReader, PartitionLag
from workers.kafka.options import client_options
from workers.kafka.ports import DEFAULT_MAX_MESSAGE_BYTES, Commit, OutTopic
from workers.kafka.reading import reading
from workers.kafka.topics import add_partitions, describe_topics
from workers.settings import Settings
from workers.settings.lane import lane_spec

__all__ = ["RescalePlan", "plan_rescale", "rescale_state"]

TRANSACTION_S: Final = 600.0  # state of millions of windows takes a while
POLL_MS: Final = 500
Entries = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class RescalePlan:
    """What `rescale_state` would do: the state as it is, by old partition, with its offsets, and as it will be.

    ``target`` is None where the state is of that many partitions already. ``topics``: how many partitions each has.
    """

    old: int
    partitions: int
    states: Sequence[Entries]
    offsets: Sequence[int]
    target: Rescaled | None
    topics: Mapping[str, int]

    def changes(self, number: int) -> list[OutRecord]:
        """The changelog records that make a partition's state what it is to be."""
        assert self.target is not None
        before: Entries = self.states[number] if number < self.old else {}
        after = self.target.partitions[number]
        gone = [OutRecord(key, None) for key in before if key not in after]
        return [*(OutRecord(key, value) for key, value in after.items() if before.get(key) != value), *gone]


async def plan_rescale(
    settings: Settings, partitions: int, *, on_partition: Callable[[int, int], None] = lambda number, records: None
) -> RescalePlan:
    """See that the state can be that of ``partitions`` input partitions, and what it would be; nothing is changed.

    ``on_partition`` is told each partition that was read and its records. Raises `WorkersError` where the group has
    members, or ticks of keys that would move are still unread, `TopicError` where there is no state or the topic has
    more partitions, `StateMismatchError` for state that can't be moved, `StateFormatError` where it can't be read.
    """
    topics = settings.topics
    async with admin_client(settings) as admin, LagReader(settings, admin) as reader:
        found = await describe_topics(admin)
        lag = await reader.read()
    if lag.members:
        raise WorkersError(f"the group {settings.application_id!r} has {lag.members} members; stop its workers first")
    if len(lag.partitions) > partitions:
        raise TopicError(
            f"{topics.ticks} has {len(lag.partitions)} partitions; expected at most the {partitions} that are asked "
            "for, since Kafka takes none away"
        )
    changelog = found.get(topics.changelog)
    if changelog is None:
        raise TopicError(f"there is no topic {topics.changelog}: no worker of this application ever ran")
    states: list[Entries] = []
    for number in range(changelog.partitions):
        states.append(await read_changelog(topics.changelog, number, client_options(settings)))
        on_partition(number, len(states[-1]))
    metas = [read_meta(entries, where=f"{topics.changelog}[{number}]") for number, entries in enumerate(states)]
    old = _partitions_of(metas, topics.changelog)
    if old == partitions:
        return RescalePlan(old, partitions, states, [], None, {})
    _check_offsets(metas[:old], lag.partitions)
    await _check_unread(settings, lag.partitions[:old], partitions)
    identities = {
        role: TopicIdentity(name, found[name].id)
        for role, name in (("ticks", topics.ticks), ("changelog", topics.changelog))
    }
    target = rescale(states[:old], lane_spec(settings), Input(topics.ticks, 0, partitions, identities))
    offsets = [meta.offset if meta is not None else 0 for meta in metas[:old]]
    sizes = {name: topic.partitions for name, topic in found.items()}
    return RescalePlan(old, partitions, states, offsets, target, sizes)


async def rescale_state(
    settings: Settings, plan: RescalePlan, *, on_step: Callable[[str], None] = lambda what: None
) -> RescalePlan:
    """Carry out a plan that has a target, made anew when nobody can write any more; what was done.

    ``on_step`` is told what happens. Raises as `plan_rescale`, and `WorkersError` where what was written is not what is
    read back.
    """
    partitions = plan.partitions
    spec = _sink_spec(settings, plan)
    try:
        for number in range(plan.old):  # whoever still writes, unnoticed by the group, can't from now on
            sink = PartitionSink(spec, number)
            try:
                await sink.open()
            finally:
                await sink.close()
        plan = await plan_rescale(settings, partitions)
        async with admin_client(settings) as admin:
            for name in (settings.topics.ticks, settings.topics.changelog):
                if await add_partitions(admin, settings, name, partitions):
                    on_step(f"{name} has {partitions} partitions now")
        await _write(spec, plan)
    except (KafkaError, TimeoutError) as error:
        raise explain_connection_error(error, settings) from error
    on_step("the state is written; reading it back")
    await _verify(settings, plan)
    return plan


def _partitions_of(metas: Sequence[LaneMeta | None], changelog: str) -> int:
    """Of how many input partitions the state is."""
    said = {meta.fingerprint.get("input partitions") for meta in metas if meta is not None}
    if not said:
        raise TopicError(f"{changelog} holds no state: add partitions to the ticks topic, and start workers")
    if len(said) > 1:
        raise StateMismatchError(
            f"the partitions of {changelog} hold state of {sorted(map(str, said))} input partitions; expected the same "
            "of all. Start over with `workers state reset`"
        )
    (found,) = said
    assert isinstance(found, int)
    return found


def _check_offsets(metas: Sequence[LaneMeta | None], offsets: Sequence[PartitionLag]) -> None:
    for meta, found in zip(metas, offsets, strict=False):
        if meta is not None and meta.offset != found.committed:
            raise StateMismatchError(
                f"the state of partition {found.partition} reflects offset {meta.offset}, but the group has committed "
                f"{found.committed}; start a worker, which says what to do about it"
            )


async def _check_unread(settings: Settings, offsets: Sequence[PartitionLag], partitions: int) -> None:
    """Raise `WorkersError` where ticks that belong elsewhere from now on are not in the state yet."""
    topic = settings.topics.ticks
    async with reading(settings, topic, isolation_level=settings.kafka.isolation_level) as reader:
        for found in offsets:
            number = found.partition
            begin = found.begin if found.committed is None else max(found.committed, found.begin)
            reader.assign([number])
            reader.seek(number, begin)
            while await reader.position(number) < found.end:
                for record in (await reader.poll([number], timeout_ms=POLL_MS)).get(number, ()):
                    if record.key is None or partition_for(record.key, partitions) != number:
                        raise WorkersError(
                            f"{topic}[{number}] has unread ticks, the first at offset {record.offset}, that would be "
                            f"missed: their keys move, or they have none. Stop the producers, let the workers read to "
                            f"the end (`workers lag`), stop them, and try again. Where {topic} has its new partitions "
                            "already and workers refuse to start: `workers state reset`"
                        )


def _sink_spec(settings: Settings, plan: RescalePlan) -> SinkSpec:
    """As a worker writes, in transactions that may take long."""

    def size(name: str) -> int:
        return plan.topics.get(name, 0)

    spec = sink_spec(settings, size)
    timeout_ms = max(settings.kafka.transaction_timeout_ms, int(TRANSACTION_S * 1000))
    routed = (name for operator in settings.pipeline for name in operator.topics())
    return replace(
        spec,
        exactly_once=settings.processing_guarantee == "exactly_once",
        producer_options={**spec.producer_options, "transaction_timeout_ms": timeout_ms},
        routed={name: OutTopic(name, size(name), DEFAULT_MAX_MESSAGE_BYTES) for name in routed},
        commit_timeout_s=TRANSACTION_S,
    )


async def _write(spec: SinkSpec, plan: RescalePlan) -> None:
    """All partitions' changes and offsets, in one transaction."""
    assert plan.target is not None
    works = {
        number: Commit(
            plan.offsets[number] if number < plan.old else 0,
            changes=plan.changes(number),
            settings=plan.target.settings,
        )
        for number in range(plan.partitions)
    }
    writer = TransactionWriter(spec, f"{spec.group_id}-{spec.input_topic}-rescale")
    try:
        await writer.open(range(plan.partitions))
        await writer.write(Attempt(works))
    finally:
        await writer.close()


async def _verify(settings: Settings, plan: RescalePlan) -> None:
    assert plan.target is not None
    for number, expected in enumerate(plan.target.partitions):
        where = settings.topics.changelog
        found = await read_changelog(where, number, client_options(settings), to_the_end=True)
        if found != expected:
            raise WorkersError(
                f"{where}[{number}] holds {len(found)} records after it was written; expected the {len(expected)} that "
                "were. Somebody else writes to it; find out who, and start over with `workers state reset`"
            )
