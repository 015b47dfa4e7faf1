"""Looking at stored state, and dropping it, from outside the workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.snapshot import LaneMeta, TopicIdentity, count_in_steps, read_meta
from workers.core.steps import run_through
from workers.core.windows.window import Window
from workers.errors import StateFormatError, StateMismatchError, TopicError, WorkersError
from workers.kafka.changelog import read_changelog
from workers.kafka.clients import admin_client
from workers.kafka.commit import PartitionSink, SinkSpec
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import NEW_TOPIC, KafkaError
from workers.kafka.group_offsets import LagReader
from workers.kafka.options import consumer_options, producer_options
from workers.kafka.ports import DEFAULT_MAX_MESSAGE_BYTES, Commit, OutTopic
from workers.kafka.topics import describe_topics, ensure_topics, fit_changelog
from workers.settings import Settings
from workers.settings.lane import lane_spec

__all__ = ["PartitionState", "reset_state", "show_state", "sink_spec"]

_SETTLED_S = 20.0


@dataclass(frozen=True, slots=True)
class PartitionState:
    """The stored state of one input partition; ``meta`` is None where there is none, ``problem`` says why a worker with
    these settings would refuse it."""

    partition: int
    records: int
    meta: LaneMeta | None
    windows: tuple[Window[str], ...]
    committed: int | None
    end: int
    problem: str | None


async def show_state(settings: Settings) -> list[PartitionState]:
    """Read the state of every partition as a worker would, with the offsets beside it.

    Raises `TopicError` where there is no changelog, `StateFormatError` where it can't be read.
    """
    async with admin_client(settings) as admin, LagReader(settings, admin) as reader:
        topics = await describe_topics(admin)
        changelog = topics.get(settings.topics.changelog)
        if changelog is None:
            raise TopicError(f"there is no topic {settings.topics.changelog}: no worker of this application ever ran")
        lag = await reader.read()
    identities = {
        "ticks": TopicIdentity(settings.topics.ticks, topics[settings.topics.ticks].id),
        "changelog": TopicIdentity(changelog.name, changelog.id),
    }
    options = consumer_options(settings)
    found = []
    for offsets in lag.partitions:
        if offsets.partition >= changelog.partitions:
            break
        where = f"{settings.topics.changelog}[{offsets.partition}]"
        entries = await read_changelog(settings.topics.changelog, offsets.partition, options)
        source = Input(settings.topics.ticks, offsets.partition, len(lag.partitions), identities)
        lane = Lane(lane_spec(settings), source)
        meta = read_meta(entries, where=where)
        problem = _problem(lane, meta, entries, where) if meta is not None else None
        windows: list[Window[str]] = []
        with contextlib.suppress(*(() if problem is None else (StateFormatError,))):  # parts may be missing
            windows = lane.peek(entries, where=where)[1]
        if meta is not None and problem is None and offsets.committed != meta.offset:
            problem = f"the state reflects offset {meta.offset}, the group has committed {offsets.committed}"
        found.append(
            PartitionState(
                offsets.partition, len(entries), meta, tuple(windows), offsets.committed, offsets.end, problem
            )
        )
    return found


def _problem(lane: Lane, meta: LaneMeta, entries: Mapping[bytes, bytes], where: str) -> str | None:
    """Why a worker with these settings would refuse the state."""
    try:
        lane.check(meta, where=where)
        lane.check_whole(meta, run_through(count_in_steps(entries)), where=where)
    except StateMismatchError as error:
        return str(error)
    return None


async def reset_state(
    settings: Settings,
    *,
    only: Collection[int] = (),
    on_partition: Callable[[int, int], None] = lambda number, keys: None,
    on_topic: Callable[[str], None] = lambda what: None,
) -> None:
    """Drop the state of every partition and set the group's offsets back, so that workers begin as new.

    ``only``: of these partitions alone. A changelog that does not fit the ticks topic, as where partitions were added,
    is made to, which ``on_topic`` is told. Each partition's transactional id is taken over first, so that a worker that
    still runs unnoticed can't write state back. Interrupted, it can simply be run again. ``on_partition`` is told
    partition and records dropped. Raises `WorkersError` while the group has members, and for partitions there aren't.
    """
    async with admin_client(settings) as admin, LagReader(settings, admin) as reader:
        lag = await reader.read()
        if lag.members:
            raise WorkersError(
                f"the group {settings.application_id!r} has {lag.members} members; stop its workers first"
            )
        unknown = set(only) - {offsets.partition for offsets in lag.partitions}
        if unknown:
            raise WorkersError(
                f"{settings.topics.ticks} has no partition {min(unknown)}; it has 0 to {len(lag.partitions) - 1}"
            )
        if not only and (done := await fit_changelog(admin, settings)) is not None:
            on_topic(done)
        # A group whose topics were deleted still has offsets that are to be set back, by a commit that needs them all.
        layout = (
            await ensure_topics(admin, settings, create=True)
            if lag.exists
            else await ensure_topics(admin, settings, create=False, only=["ticks", "changelog"])
        )
        for offsets in lag.partitions[: layout.changelog]:
            if only and offsets.partition not in only:
                continue
            on_partition(offsets.partition, await _drop(settings, offsets.partition, layout.changelog, offsets.begin))


def sink_spec(settings: Settings, partitions_of: Callable[[str], int]) -> SinkSpec:
    """To write state and offsets as a worker does, exactly once, but no ticks that operators route."""
    topics = settings.topics

    def out(name: str) -> OutTopic:
        return OutTopic(name, partitions_of(name), DEFAULT_MAX_MESSAGE_BYTES)

    return SinkSpec(
        topics.ticks,
        settings.application_id,
        out(topics.frames),
        out(topics.late),
        out(topics.dead_letters),
        out(topics.changelog),
        exactly_once=True,
        producer_options=producer_options(settings),
    )


async def _drop(settings: Settings, partition: int, partitions: int, begin: int) -> int:
    """Delete a partition's state and set the group's offset to the log's begin, in one transaction."""
    topics = settings.topics
    spec = sink_spec(settings, lambda name: partitions)
    deadline_s = time.monotonic() + _SETTLED_S
    while True:
        sink = PartitionSink(spec, partition)
        try:
            await sink.open()
            entries = await read_changelog(topics.changelog, partition, consumer_options(settings))
            await sink.commit(Commit(begin, changes=[OutRecord(key, None) for key in entries]))
            return len(entries)
        except NEW_TOPIC as error:
            if time.monotonic() > deadline_s:
                raise explain_connection_error(error, settings) from error
            await asyncio.sleep(0.1)
        except (KafkaError, TimeoutError) as error:
            raise explain_connection_error(error, settings) from error
        finally:
            with contextlib.suppress(KafkaError):
                await sink.close()
