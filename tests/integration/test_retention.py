"""Kafka deletes by record timestamp: a worker says so before frames of old windows vanish."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration.apps import App
from tests.integration.test_worker import market, run_to_the_end
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.mark.parametrize(("retention_ms", "warns"), [("604800000", True), ("-1", False)])
async def test_a_worker_warns_of_frames_older_than_their_topic_keeps(
    broker: Broker, topic_name: str, tmp_path: Path, retention_ms: str, warns: bool
) -> None:
    app = App(broker.bootstrap_servers, topic_name)
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(app.topics.frames, 4, 1, topic_configs={"retention.ms": retention_ms})])
    finally:
        await admin.close()
    log = tmp_path / "worker.log"
    await run_to_the_end(app, market(8_000), log)
    assert ("deletes frames as old as these" in log.read_text()) is warns
