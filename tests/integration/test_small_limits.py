"""Topics that take next to nothing: what can be shrunk is, and what can't ends the worker with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import NOW_MS, tick
from tests.support.verify import read_headers
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


async def limit(app: App, topic: str, configs: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": "200", **configs})
        await admin.alter_configs([resource])
    finally:
        await admin.close()


async def test_late_records_and_dead_letters_are_shrunk_to_what_their_topics_take(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(broker.bootstrap_servers, topic_name, partitions=1)
    assert app.run_command("topics", "create").returncode == 0
    for topic in (app.topics.late, app.topics.dead_letters):
        await limit(app, topic, {})
    late = tick(ts=NOW_MS - 60_000, note="x" * 3_000)
    await send(app, [(b"AAPL", tick(), None), (b"AAPL", late, None), (b"AAPL", b"rubbish" * 1_000, None)])
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    assert "commit failed" not in (tmp_path / "worker.log").read_text()
    for topic, reason in ((app.topics.late, b"watermark"), (app.topics.dead_letters, b"malformed_json")):
        [headers] = (await read_headers(app.bootstrap, topic))[0]
        assert headers["workers.reason"] == reason


async def test_state_that_its_topic_refuses_ends_the_worker_with_what_to_do(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(broker.bootstrap_servers, topic_name, partitions=1)
    assert app.run_command("topics", "create").returncode == 0
    await limit(app, app.topics.changelog, {"cleanup.policy": "compact"})
    await send(app, [(b"AAPL", tick(), None)])
    ended = app.run_command("run")
    assert ended.returncode == 1
    assert f"{app.topics.changelog} has refused a record as too large 3 times in a row" in ended.stderr
    assert f"kafka-configs --alter --topic {app.topics.changelog} --add-config max.message.bytes=" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (ended.stdout + ended.stderr).count("commit failed") == 2
