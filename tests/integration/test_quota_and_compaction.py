"""What a cluster's operator may do to a running application without harm: slow its producers, compact its changelog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import CONFIG, market
from tests.support.verify import verify
from workers.apps.broker import Broker, find_broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tidy() -> Iterator[Broker]:
    """A broker that compacts at once."""
    config = {"log.cleaner.backoff.ms": "100", "log.initial.task.delay.ms": "100", "log.roll.ms": "1000"}
    with find_broker(way="jvm", config=config) as started:
        yield started


class _QuotasResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "entries",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
            ),
        ),
    )


class _QuotasStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = _QuotasResponse
    SCHEMA = Schema(
        (
            "entries",
            Array(
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
                ("ops", Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean))),
            ),
        ),
        ("validate_only", Boolean),
    )


class _Quotas(Request[_QuotasStruct]):
    """AlterClientQuotas, which the client does not know."""

    API_KEY = 49

    def __init__(self, client_id: str, bytes_per_s: float) -> None:
        self._entry = ([("client-id", client_id)], [("producer_byte_rate", bytes_per_s, False)])

    def build(self, request_struct_class: type[_QuotasStruct]) -> _QuotasStruct:
        return request_struct_class([self._entry], False)


async def limit_producers(app: App, bytes_per_s: float) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        node = admin._client.get_random_node()
        connection = await admin._client._get_conn(node)
        response = await connection.send(_Quotas(app.name, bytes_per_s))
        assert not response.entries[0][0], response
    finally:
        await admin.close()


async def test_a_producer_quota_slows_a_worker_and_nothing_fails(tidy: Broker, topic_name: str, tmp_path: Path) -> None:
    app = App(
        tidy.bootstrap_servers,
        topic_name[-40:],
        settings={"window.allowed_lateness": "1s", "kafka.compression.type": "none"},
    )
    assert app.run_command("topics", "create").returncode == 0
    await limit_producers(app, 100_000)
    await send(app, market(20_000))
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
        assert "commit failed" not in worker.output()
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings
    assert findings.frames > 300


async def compacted(app: App, partition: int) -> tuple[int, int]:
    """Records that the changelog partition still has, and its end."""
    tp = TopicPartition(app.topics.changelog, partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=app.bootstrap, isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([tp])
        end, count = (await consumer.end_offsets([tp]))[tp], 0
        await consumer.seek_to_beginning(tp)
        while await consumer.position(tp) < end:
            count += sum(map(len, (await consumer.getmany(timeout_ms=500)).values()))
        return count, end
    finally:
        await consumer.stop()


async def test_state_is_whole_after_its_small_segments_were_compacted(
    tidy: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(
        tidy.bootstrap_servers,
        topic_name[-40:],
        partitions=1,
        settings={"window.allowed_lateness": "1s", "commit_interval": "50ms", "lane.batch_size": 100},
    )
    assert app.run_command("topics", "create").returncode == 0
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    small = {
        "cleanup.policy": "compact",
        "segment.ms": "500",
        "min.cleanable.dirty.ratio": "0.01",
        "delete.retention.ms": "0",
    }
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, app.topics.changelog, configs=small)])
    await admin.close()
    records = market(6_000)
    for begin in range(0, 6_000, 1_000):
        await send(app, records[begin : begin + 1_000])
        with app.worker(tmp_path / "worker.log") as worker:  # each restores what the one before left
            await committed_through(app, process=worker)
    kept, end = await compacted(app, 0)
    assert kept < end / 2, f"{kept} of {end} records are left: nothing was compacted, so nothing was shown"
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings
    assert findings.frames > 50
