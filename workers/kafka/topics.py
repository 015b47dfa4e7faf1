"""The topics of an application: what they must be like, making them, and refusing those that would lose data.

| topic | partitions | kept |
|---|---|---|
| ticks | ``topics.partitions`` | for ever: a replay of old data must not be deleted while it is read |
| frames | ``topics.partitions`` | for ever: their timestamps are event times, and Kafka deletes by timestamp |
| late, dead letters | ``topics.partitions`` | for ever: the ledger of what was not counted |
| changelog | as many as ticks: partition i holds the state of input partition i | compacted |
| where operators route ticks to | ``topics.partitions`` | for ever |
| feedback | 1, so that producers see one order of levels | compacted |

"For ever" is what is created here; a topic that exists keeps its own configuration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidConfigurationError,
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from workers.errors import TopicError
from workers.kafka.acls import allowing, principal
from workers.kafka.connection import explain_connection_error
from workers.kafka.record_times import ANY_TIME, ahead_limit_ms

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = [
    "TopicLayout",
    "TopicPlan",
    "TopicState",
    "add_partitions",
    "delete_topics",
    "describe_topics",
    "ensure_topics",
    "fit_changelog",
    "planned_topics",
]

KEEP_FOR_EVER: Final = "-1"
_APPEAR_TIMEOUT_S: Final = 30.0
_HIDDEN_TIMEOUT_S: Final = 5.0  # metadata shows a topic a moment after it was made
_REQUEST_TIMEOUT_S: Final = 30.0
_MIN_RECORD_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as this application would create it; ``role`` is its name in the settings."""

    role: str
    name: str
    partitions: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster has it; ``id`` is Kafka's own, None where the broker tells none (before 2.8)."""

    name: str
    partitions: int
    ready: bool  # every partition has a leader
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """Numbers of partitions of an application's topics, and how long its frames topic keeps records.

    ``frames_retention_ms`` is -1 for ever, and None where the cluster does not tell this user.
    """

    ticks: int
    frames: int
    late: int
    dead_letters: int
    changelog: int
    feedback: int
    frames_retention_ms: int | None = None
    max_message_bytes: Mapping[str, int] = field(default_factory=dict)  # by topic name; absent where it isn't told
    ahead_limits_ms: Mapping[str, int] = field(default_factory=dict)  # by topic name; absent where there is none
    routed: Mapping[str, int] = field(default_factory=dict)  # by topic name
    ids: Mapping[str, str | None] = field(default_factory=dict, compare=False)  # Kafka's, by topic name
    created: tuple[str, ...] = field(default=(), compare=False)


def planned_topics(settings: Settings, *, tick_partitions: int | None = None) -> list[TopicPlan]:
    """The six topics as they would be created, and those that operators route ticks to.

    ``tick_partitions`` is what an existing ticks topic has.
    """
    topics = settings.topics
    # A dead letter is the original record and its headers, a late record quotes its tick: both may exceed the largest
    # tick, and a record that can't be written would stop its partition.
    kept = {
        "cleanup.policy": "delete",
        "retention.ms": KEEP_FOR_EVER,
        "max.message.bytes": str(max(_MIN_RECORD_BYTES, 2 * settings.kafka.max_request_size)),
    }
    compacted = {
        "cleanup.policy": "compact",
        "max.message.bytes": kept["max.message.bytes"],
        # Only closed segments are compacted: small and short-lived ones keep a restore short.
        "segment.bytes": str(64 * 1024 * 1024),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.1",
        "min.compaction.lag.ms": "0",
        # Every window leaves a tombstone. They must outlive a restore that is under way, not a day.
        "delete.retention.ms": "900000",
    }
    partitions = topics.partitions
    ticks, kept, compacted = kept, {**kept, **ANY_TIME}, {**compacted, **ANY_TIME}
    return [
        TopicPlan("ticks", topics.ticks, partitions, ticks),
        TopicPlan("frames", topics.frames, partitions, kept),
        TopicPlan("late", topics.late, partitions, kept),
        TopicPlan("dead_letters", topics.dead_letters, partitions, kept),
        TopicPlan("changelog", topics.changelog, tick_partitions or partitions, compacted),
        TopicPlan("feedback", topics.feedback, 1, compacted),
        *(TopicPlan("routed", name, partitions, kept) for name in _routed_topics(settings)),
    ]


def _routed_topics(settings: Settings) -> list[str]:
    return sorted({name for operator in settings.pipeline for name in operator.topics()})


async def ensure_topics(
    admin: AIOKafkaAdminClient, settings: Settings, *, create: bool, only: Iterable[str] | None = None
) -> TopicLayout:
    """See to it that the application's topics exist, have leaders, and fit together.

    Missing ones are created with ``create``; another process that creates them at the same time does no harm.
    ``only`` limits the creation and the checks to some roles; the layout then has 0 partitions for the others missing.

    Raises ``TopicError`` where topics are missing (and ``create`` is false), can't be created, don't get ready within
    half a minute, or would lose state: a changelog with another number of partitions than ticks, or that is not
    compacted. Raises ``BrokerError`` where the cluster does not answer.
    """
    roles = frozenset(only) if only is not None else None
    try:
        found = await describe_topics(admin)
        plans = [plan for plan in planned_topics(settings) if roles is None or plan.role in roles]
        missing = [plan for plan in plans if plan.name not in found]
        if missing and not create:
            raise _missing_error(missing, settings)
        if missing:
            await _create_missing(admin, settings, plans, missing)
        if _waiting_for(plans, found):
            found = await _until_ready(admin, settings, plans)
        configs = await _configs(admin, [plan.name for plan in plans])
    except KafkaError as error:
        raise explain_connection_error(error, settings) from error
    layout = _layout(settings, found, configs, tuple(plan.name for plan in missing))
    if roles is None:
        _check(settings, layout, configs.get(settings.topics.changelog, {}))
    return layout


async def describe_topics(admin: AIOKafkaAdminClient) -> dict[str, TopicState]:
    """All topics this user may see."""
    async with asyncio.timeout(_REQUEST_TIMEOUT_S):
        topics = await admin.describe_topics(None)
    states = {}
    for topic in topics:
        partitions = topic["partitions"]
        ready = bool(partitions) and all(partition["leader"] >= 0 for partition in partitions)
        states[topic["topic"]] = TopicState(topic["topic"], len(partitions), ready, topic.get("topic_id"))
    return states


async def fit_changelog(admin: AIOKafkaAdminClient, settings: Settings) -> str | None:
    """Make the changelog what the ticks topic needs, where its state is dropped anyway; what was done, if anything.

    Partitions that are missing are added. One with too many, or that is not compacted, is deleted and made again.
    Raises ``TopicError`` where the cluster refuses, ``BrokerError`` where it does not answer.
    """
    name = settings.topics.changelog
    try:
        found = await describe_topics(admin)
        changelog, ticks = found.get(name), found.get(settings.topics.ticks)
        if changelog is None or ticks is None:
            return None  # both are made as they should be
        policy = (await _configs(admin, [name])).get(name, {}).get("cleanup.policy")
        if changelog.partitions > ticks.partitions or not _is_compact(policy):
            await _make_again(admin, settings, changelog, ticks.partitions)
            return f"{name} was made again, with {ticks.partitions} partitions"
    except KafkaError as error:
        raise explain_connection_error(error, settings) from error
    if await add_partitions(admin, settings, name, ticks.partitions):
        return f"{name} was given {ticks.partitions} partitions, {changelog.partitions} before"
    return None


async def add_partitions(admin: AIOKafkaAdminClient, settings: Settings, name: str, partitions: int) -> bool:
    """See that a topic has as many partitions, all with leaders; whether any had to be added.

    Raises ``TopicError`` where there is no such topic or the cluster refuses, ``BrokerError`` where it does not answer.
    """
    try:
        found = (await describe_topics(admin)).get(name)
        if found is None:
            raise TopicError(f"there is no topic {name}")
        if found.partitions >= partitions:
            return False
        response = await admin.create_partitions({name: NewPartitions(partitions)})
        for _, code, message in response.topic_errors:
            if code:
                raise TopicError(f"{name} can't be given {partitions} partitions: {message or for_code(code).__name__}")
        await _until_it_is(admin, name, lambda now: now.partitions == partitions)
    except KafkaError as error:
        raise explain_connection_error(error, settings) from error
    return True


async def _make_again(admin: AIOKafkaAdminClient, settings: Settings, changelog: TopicState, partitions: int) -> None:
    await delete_topics(admin, [changelog.name])
    plans = [plan for plan in planned_topics(settings, tick_partitions=partitions) if plan.name == changelog.name]
    await _until_it_is(admin, changelog.name, None)
    await _create(admin, settings, plans)
    await _until_it_is(admin, changelog.name, lambda now: now.partitions == partitions)


async def _until_it_is(admin: AIOKafkaAdminClient, name: str, condition: Callable[[TopicState], bool] | None) -> None:
    """Wait until a topic has leaders and meets the condition; None: until it is gone. Raises ``TopicError``."""
    deadline_s = time.monotonic() + _APPEAR_TIMEOUT_S
    while True:
        now = (await describe_topics(admin)).get(name)
        if now is None if condition is None else (now is not None and now.ready and condition(now)):
            return
        if time.monotonic() > deadline_s:
            raise TopicError(f"topic {name} did not change within {_APPEAR_TIMEOUT_S:.0f} s; are enough brokers up?")
        await asyncio.sleep(0.05)


async def delete_topics(admin: AIOKafkaAdminClient, names: list[str]) -> list[str]:
    """Delete topics and return those that were there; a topic that is missing already is fine.

    Raises ``TopicError`` where the cluster refuses.
    """
    response = await admin.delete_topics(names)
    deleted = []
    for name, code in response.topic_error_codes:
        error = for_code(code)
        if error is UnknownTopicOrPartitionError:
            continue
        if code:
            raise TopicError(f"topic {name} can't be deleted: {error.description or error.__name__}")
        deleted.append(name)
    return deleted


async def _create_missing(
    admin: AIOKafkaAdminClient, settings: Settings, plans: list[TopicPlan], missing: list[TopicPlan]
) -> None:
    """Make the ticks topic, then the others: the changelog needs to know how many partitions the ticks topic really
    has, which somebody else may have made a moment ago."""
    await _create(admin, settings, [plan for plan in missing if plan.role == "ticks"])
    ticks = [plan for plan in plans if plan.role == "ticks"]
    found = await _until_ready(admin, settings, ticks)
    partitions = found[settings.topics.ticks].partitions if ticks else None
    replanned = {plan.name: plan for plan in planned_topics(settings, tick_partitions=partitions)}
    others = [replanned[plan.name] for plan in missing if plan.role != "ticks"]
    await _create(admin, settings, others)


async def _create(admin: AIOKafkaAdminClient, settings: Settings, plans: list[TopicPlan]) -> None:
    if not plans:
        return
    replication_factor = settings.topics.replication_factor
    requests = []
    for plan in plans:
        request = NewTopic(plan.name, plan.partitions, 1, topic_configs=dict(plan.configs))
        request.replication_factor = replication_factor  # -1, the broker's default, is refused by NewTopic alone
        requests.append(request)
    response = await admin.create_topics(requests)
    without: list[TopicPlan] = []
    by_name = {plan.name: plan for plan in plans}
    for name, code, message in response.topic_errors:
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            raise TopicError(
                f"topic {name} is missing, or not shown to {principal(settings)}, who may not create it. Create it, or "
                f"allow it: {allowing(settings, ('Create', 'Describe'), f'--topic {name}')}"
            )
        if error is InvalidReplicationFactorError:
            raise TopicError(
                f"topic {name} can't be created: {message}. Start more brokers, or set topics.replication_factor "
                f"({replication_factor}; -1: the brokers' default.replication.factor) to how many there are"
            )
        if error is InvalidConfigurationError and ANY_TIME.keys() & by_name[name].configs.keys():
            without.append(by_name[name])  # a broker that knows no limits of record times, and so has none
        elif code and error is not TopicAlreadyExistsError:
            raise TopicError(f"topic {name} can't be created: {message or error.description or error.__name__}")
    await _create(admin, settings, [_of_no_time(plan) for plan in without])


def _of_no_time(plan: TopicPlan) -> TopicPlan:
    return replace(plan, configs={name: value for name, value in plan.configs.items() if name not in ANY_TIME})


def _waiting_for(plans: list[TopicPlan], found: Mapping[str, TopicState]) -> list[str]:
    return [plan.name for plan in plans if plan.name not in found or not found[plan.name].ready]


def _hidden(names: list[str], settings: Settings) -> str:
    """Of topics that are there, as they were made or were there already, and that the cluster does not show."""
    commands = "; ".join(allowing(settings, ("Describe",), f"--topic {name}") for name in names)
    return (
        f"the cluster does not show {', '.join(names)} to {principal(settings)}, who lacks Describe on it, which Read "
        f"or Write imply. Allow it: {commands}"
    )


async def _until_ready(admin: AIOKafkaAdminClient, settings: Settings, plans: list[TopicPlan]) -> dict[str, TopicState]:
    """The topics once each has a leader for every partition; creation is answered before metadata shows it."""
    deadline_s = time.monotonic() + _APPEAR_TIMEOUT_S
    hidden_s = time.monotonic() + _HIDDEN_TIMEOUT_S
    while True:
        found = await describe_topics(admin)
        waiting = _waiting_for(plans, found)
        if not waiting:
            return found
        if time.monotonic() > hidden_s and (hidden := [name for name in waiting if name not in found]):
            raise TopicError(_hidden(hidden, settings))
        if time.monotonic() > deadline_s:
            raise TopicError(
                f"{', '.join(waiting)}: still without a leader for every partition after {_APPEAR_TIMEOUT_S:.0f} s; "
                "are enough brokers up?"
            )
        await asyncio.sleep(0.05)


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Configuration of topics by name; a topic whose configuration this user may not see is left out."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    async with asyncio.timeout(_REQUEST_TIMEOUT_S):
        responses = await admin.describe_configs(resources)
    configs = {}
    for response in responses:
        for code, _message, _kind, name, entries in response.resources:
            if not code:
                configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


def _layout(
    settings: Settings,
    found: Mapping[str, TopicState],
    configs: Mapping[str, Mapping[str, str]],
    created: tuple[str, ...],
) -> TopicLayout:
    def partitions(name: str) -> int:
        return found[name].partitions if name in found else 0

    topics = settings.topics
    retention = configs.get(topics.frames, {}).get("retention.ms")
    return TopicLayout(
        ticks=partitions(topics.ticks),
        frames=partitions(topics.frames),
        late=partitions(topics.late),
        dead_letters=partitions(topics.dead_letters),
        changelog=partitions(topics.changelog),
        feedback=partitions(topics.feedback),
        frames_retention_ms=int(retention) if retention is not None else None,
        max_message_bytes={
            name: int(config["max.message.bytes"]) for name, config in configs.items() if "max.message.bytes" in config
        },
        ahead_limits_ms={
            name: limit for name, config in configs.items() if (limit := ahead_limit_ms(config)) is not None
        },
        routed={name: partitions(name) for name in _routed_topics(settings)},
        ids={name: found[name].id for name in (topics.ticks, topics.frames, topics.changelog) if name in found},
        created=created,
    )


def _check(settings: Settings, layout: TopicLayout, changelog_configs: Mapping[str, str]) -> None:
    topics = settings.topics
    if layout.changelog != layout.ticks:
        raise TopicError(
            f"{topics.changelog} has {layout.changelog} partitions and {topics.ticks} has {layout.ticks}; expected the "
            "same number, since partition i of the changelog holds the state of input partition i. Where partitions "
            "were added to the ticks topic, its keys have moved between partitions. Stop all workers and move the "
            f"state with `workers state rescale --partitions {layout.ticks}`, or drop it with `workers state reset`"
        )
    policy = changelog_configs.get("cleanup.policy")
    if not _is_compact(policy):
        raise TopicError(
            f"{topics.changelog} has cleanup.policy={policy}; expected compact, or the state of quiet symbols would be "
            f"deleted. Set it with kafka-configs --alter --topic {topics.changelog} --add-config "
            "cleanup.policy=compact; or drop the state with `workers state reset`, which makes the topic again"
        )


def _is_compact(policy: str | None) -> bool:
    """Whether the topic keeps all state; where the cluster doesn't tell, it is taken to."""
    return policy is None or {word.strip() for word in policy.split(",")} == {"compact"}


def _missing_error(missing: list[TopicPlan], settings: Settings) -> TopicError:
    names = ", ".join(plan.name for plan in missing)
    command = f"workers topics create --bootstrap-servers {settings.bootstrap_servers}"
    if settings.application_id != "tick-workers":
        command += f" --application-id {settings.application_id}"
    return TopicError(
        f"the cluster at {settings.bootstrap_servers} has no {names} (or does not show them to this user). Create them "
        f"with: {command}"
    )
