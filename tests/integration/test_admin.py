"""Topics and lag against a real broker: made as they must be, refused where they would lose data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NodeNotReadyError
from aiokafka.structs import TopicPartition

from tests.integration.commands import workers
from workers.apps.broker import Broker, find_broker
from workers.errors import BrokerError, TopicError
from workers.kafka.clients import admin_client
from workers.kafka.connection import (
    _NotAsAdvertisedError,
    _unreachable,
    diagnose_connection_error,
    explain_connection_error,
)
from workers.kafka.group_offsets import LagReader
from workers.kafka.options import client_options
from workers.kafka.topics import TopicLayout, delete_topics, describe_topics, ensure_topics, planned_topics
from workers.settings import Settings, load_settings

pytestmark = pytest.mark.broker


def settings_for(broker: Broker, name: str, **more: object) -> Settings:
    topics = {"topics.ticks": f"{name}-ticks", "topics.frames": f"{name}-frames", "topics.partitions": 3}
    return load_settings(
        environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
        overrides={"application_id": name, **topics, **more},
    )


@pytest.fixture
def settings(broker: Broker, topic_name: str) -> Settings:
    return settings_for(broker, topic_name)


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    async with admin_client(settings) as client:
        yield client
        await delete_topics(client, [plan.name for plan in planned_topics(settings)])


async def configs(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


async def test_missing_topics_are_made_as_they_must_be(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    layout = await ensure_topics(admin, settings, create=True)
    partitions = (layout.ticks, layout.frames, layout.late, layout.dead_letters, layout.changelog, layout.feedback)
    assert partitions == (3, 3, 3, 3, 3, 1)
    assert layout.frames_retention_ms == -1
    assert len(layout.created) == 6
    frames, changelog = await configs(admin, settings.topics.frames), await configs(admin, settings.topics.changelog)
    assert (frames["retention.ms"], frames["cleanup.policy"]) == ("-1", "delete")
    assert (changelog["cleanup.policy"], changelog["min.compaction.lag.ms"]) == ("compact", "0")
    assert (await ensure_topics(admin, settings, create=False)).created == ()


async def test_topics_that_are_all_there_are_looked_at_once(
    admin: AIOKafkaAdminClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = await ensure_topics(admin, settings, create=True)
    look, looks = admin.describe_topics, []

    async def counted(names: None) -> object:
        looks.append(names)
        return await look(names)

    monkeypatch.setattr(admin, "describe_topics", counted)
    assert await ensure_topics(admin, settings, create=True) == layout
    assert len(looks) == 1


async def test_the_changelog_follows_a_ticks_topic_that_exists(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    await admin.create_topics([NewTopic(settings.topics.ticks, 5, 1)])
    layout = await ensure_topics(admin, settings, create=True)
    assert (layout.ticks, layout.changelog, layout.frames) == (5, 5, 3)


async def test_without_create_all_missing_topics_are_named_with_the_command_to_make_them(
    admin: AIOKafkaAdminClient, settings: Settings
) -> None:
    await admin.create_topics([NewTopic(settings.topics.ticks, 1, 1)])
    async with asyncio.timeout(10):
        while settings.topics.ticks not in await describe_topics(admin):
            await asyncio.sleep(0.05)
    with pytest.raises(TopicError, match="workers topics create") as caught:
        await ensure_topics(admin, settings, create=False)
    assert settings.topics.frames in str(caught.value)
    assert settings.topics.changelog in str(caught.value)
    assert f"{settings.topics.ticks}," not in str(caught.value)
    assert settings.topics.frames not in await describe_topics(admin)


async def test_a_changelog_of_another_shape_is_refused(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    compacted = {"cleanup.policy": "compact"}
    await admin.create_topics([NewTopic(settings.topics.changelog, 2, 1, topic_configs=compacted)])
    with pytest.raises(TopicError, match=r"has 2 partitions and .* has 3"):
        await ensure_topics(admin, settings, create=True)


async def test_a_changelog_that_forgets_is_refused(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    both = {"cleanup.policy": "compact,delete"}
    await admin.create_topics([NewTopic(settings.topics.changelog, 3, 1, topic_configs=both)])
    with pytest.raises(TopicError, match=r"cleanup\.policy=.*; expected compact"):
        await ensure_topics(admin, settings, create=True)


async def test_workers_that_start_together_do_not_trip_over_each_other(
    admin: AIOKafkaAdminClient, settings: Settings
) -> None:
    async def one() -> TopicLayout:
        async with admin_client(settings) as own:
            return await ensure_topics(own, settings, create=True)

    layouts = await asyncio.gather(*(one() for _ in range(4)))
    assert all(layout == layouts[0] for layout in layouts)


async def test_what_the_cluster_refuses_to_make_is_said(
    admin: AIOKafkaAdminClient, broker: Broker, topic_name: str
) -> None:
    greedy = settings_for(broker, f"{topic_name}-r", **{"topics.replication_factor": 100})
    with pytest.raises(TopicError, match="can't be created"):
        await ensure_topics(admin, greedy, create=True)


def test_the_commands_make_list_and_delete_topics(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    mine = (
        "--application-id",
        topic_name,
        "--set",
        f"topics.ticks={topic_name}-t",
        "--set",
        f"topics.frames={topic_name}-f",
    )

    def topics(*arguments: str) -> list[str]:
        done = workers(broker.bootstrap_servers, "topics", *arguments, *mine, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.lines

    assert all(line.endswith("missing") for line in topics("list"))
    assert len(topics("create", "--partitions", "2")) == 6
    assert topics("create") == []
    listed = {row["role"]: row["partitions"] for row in json.loads("\n".join(topics("list", "--json")))}
    assert listed == {"ticks": 2, "frames": 2, "late": 2, "dead_letters": 2, "changelog": 2, "feedback": 1}
    assert len(topics("delete", "--yes")) == 5
    assert topics("delete", "--yes", "--with-ticks") == [f"deleted {topic_name}-t"]


async def test_lag_is_what_the_group_has_not_committed(
    admin: AIOKafkaAdminClient, settings: Settings, broker: Broker, tmp_path: Path
) -> None:
    await ensure_topics(admin, settings, create=True)
    topic, group = settings.topics.ticks, settings.application_id
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for number in range(30):
            await producer.send_and_wait(topic, b"x", partition=number % 3)
    async with LagReader(settings, admin) as reader:
        before = await reader.read()
        assert (before.total, before.members, [p.committed for p in before.partitions]) == (30, 0, [None] * 3)
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=broker.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as member:
            await member.commit({TopicPartition(topic, 0): 10, TopicPartition(topic, 1): 4})
            after = await reader.read()
    assert [p.lag for p in after.partitions] == [0, 6, 10]
    assert (after.total, after.members) == (16, 1)

    mine = ("--application-id", group, "--set", f"topics.ticks={topic}")
    shown = await asyncio.to_thread(lambda: workers(broker.bootstrap_servers, "lag", *mine, cwd=tmp_path))
    assert shown.lines[-1].split() == ["total", "16"]
    found = await asyncio.to_thread(lambda: workers(broker.bootstrap_servers, "lag", "--json", *mine, cwd=tmp_path))
    report = json.loads(found.out)
    of_partition = {"partition": 1, "begin": 0, "committed": 4, "end": 10, "lag": 6, "lost": 0}
    assert (report["total"], report["partitions"][1]) == (16, of_partition)
    other = ("--application-id", f"{group}x", *mine[2:])
    nobody = await asyncio.to_thread(lambda: workers(broker.bootstrap_servers, "lag", *other, cwd=tmp_path))
    assert nobody.code == 1
    assert nobody.lines[-1].split() == ["total", "30"]
    assert f"there is no consumer group '{group}x'" in nobody.err


async def test_a_broker_that_answers_again_or_elsewhere_is_told_apart(settings: Settings) -> None:
    lost = NodeNotReadyError("attempt to send a request to a node that is not ready")
    assert "advertis" not in str(explain_connection_error(lost, settings))
    assert str(await diagnose_connection_error(lost, settings)).endswith(
        "it did not answer in time, but does now; try again"
    )
    host, _, port = settings.bootstrap_servers.rpartition(":")
    options = client_options(settings)
    kept = {name: options[name] for name in ("client_id", "request_timeout_ms", "security_protocol")}
    assert isinstance(await _unreachable([(host, int(port)), ("127.0.0.1", 1)], kept), _NotAsAdvertisedError)


@pytest.mark.slow
async def test_why_a_broker_can_not_be_used_is_said_in_terms_of_the_settings() -> None:
    config = {
        "listeners": "PLAINTEXT://127.0.0.1:0,SASL_PLAINTEXT://127.0.0.1:0",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="right";'
        ),
    }
    login = {"kafka.security.protocol": "SASL_PLAINTEXT", "kafka.sasl.username": "worker"}
    with find_broker(way="jvm", config=config) as secured:
        address = secured.listeners["SASL_PLAINTEXT"]

        async def connect(password: str | None = None, **more: object) -> None:
            environ = {"KAFKA_BOOTSTRAP_SERVERS": address} | ({"KAFKA_SASL_PASSWORD": password} if password else {})
            async with admin_client(load_settings(environ=environ, overrides=more)):
                pass

        await connect("right", **login)
        with pytest.raises(BrokerError, match="refuses the credentials of 'worker'") as caught:
            await connect("wrong", **login)
        assert "wrong" not in str(caught.value)
        with pytest.raises(BrokerError, match=r"does not offer kafka\.sasl\.mechanism = SCRAM-SHA-256"):
            await connect("right", **login, **{"kafka.sasl.mechanism": "SCRAM-SHA-256"})
        with pytest.raises(BrokerError, match=r"another kafka\.security\.protocol than PLAINTEXT"):
            await connect()
        with pytest.raises(BrokerError, match=r"kafka\.security\.protocol"):
            await connect(**{"kafka.security.protocol": "SSL"})
