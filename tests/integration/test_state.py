"""Stored state: shown, refused under other settings, dropped."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import CONFIG, market, run_to_the_end
from tests.support.verify import read_topic, verify
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def app_of(broker: Broker, name: str) -> App:
    return App(broker.bootstrap_servers, name, partitions=2, settings={"window.allowed_lateness": "1s"})


async def test_a_restarted_worker_goes_on_where_the_last_one_committed(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    records = market(4_000)
    await run_to_the_end(app, records[:2_500], tmp_path / "first.log")
    await send(app, records[2_500:])
    with app.worker(tmp_path / "second.log") as worker:
        await committed_through(app, process=worker)
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings


async def test_state_show_tells_what_is_stored(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(1_000), tmp_path / "worker.log")
    shown = app.run_command("state", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    states = [json.loads(line) for line in shown.stdout.splitlines()]
    assert sum(state["counts"]["records"] for state in states) == 1_000
    assert all(state["offset"] == state["committed"] for state in states)
    of_symbol = app.run_command("state", "show", "--symbol", "S1")
    assert " S1 2023-11-14T22:13:2" in of_symbol.stdout


async def test_other_window_settings_over_existing_state_are_refused_and_explained(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(500), tmp_path / "worker.log")
    for setting in ({"window__size": "10s"}, {"window__lag": "3s"}, {"window__payload": "items"}):
        refused = app.run_command("run", **setting)
        assert refused.returncode == 2, setting
        assert "made under other settings" in refused.stderr
        assert "workers state reset" in refused.stderr
        shown = app.run_command("state", "show", **setting)
        assert shown.returncode == 1, setting
        assert "would be refused" in shown.stdout


async def test_state_of_a_newer_format_is_refused_not_misread(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(500), tmp_path / "worker.log")
    changelog = await read_topic(app.bootstrap, app.topics.changelog)
    [meta] = [record.value for record in changelog[0] if record.key == b"m" and record.value is not None][-1:]
    newer = json.dumps({**json.loads(meta), "format": 99}).encode()
    producer = AIOKafkaProducer(bootstrap_servers=app.bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(app.topics.changelog, newer, key=b"m", partition=0)
    finally:
        await producer.stop()
    refused = app.run_command("run")
    assert refused.returncode == 1
    assert "format is 99" in refused.stderr


async def test_reset_drops_state_and_the_next_worker_begins_as_new(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(1_500), tmp_path / "worker.log")
    first = await read_topic(app.bootstrap, app.topics.frames)
    assert app.run_command("state", "reset").returncode == 2  # it asks, and there is nobody to answer
    done = app.run_command("state", "reset", "--yes")
    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in app.run_command("state", "show", "--json").stdout.splitlines()]
    assert [state["offset"] for state in shown] == [None, None]
    with app.worker(tmp_path / "again.log") as worker:
        await committed_through(app, process=worker)
    again = await read_topic(app.bootstrap, app.topics.frames)
    for partition, records in again.items():
        values = [record.value for record in records]
        half = len(first[partition])
        assert values[:half] == values[half:]


async def test_after_its_topics_were_deleted_an_application_can_be_reset_and_begins_as_new(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(4_000), tmp_path / "worker.log")
    first = await read_topic(app.bootstrap, app.topics.frames)
    deleted = app.run_command("topics", "delete", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert f"the offsets of the group {app.name} stay" in deleted.stderr
    assert "`workers state reset`" in deleted.stderr
    done = app.run_command("state", "reset", "--yes")
    assert done.returncode == 0, done.stderr
    with app.worker(tmp_path / "again.log") as worker:
        await committed_through(app, process=worker)
    again = await read_topic(app.bootstrap, app.topics.frames)
    promised = [
        [record.value for record in found if b'"status":"provisional"' not in (record.value or b"")]
        for topic in (first, again)
        for _, found in sorted(topic.items())
    ]
    assert promised[:2] == promised[2:]
    assert all(promised)


async def test_ticks_in_another_unit_than_said_are_told_by_the_workers_log(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    records = [
        (key, json.dumps({**json.loads(value), "ts": 1_700_000_000_000_000_000 + n}).encode(), None)
        for n, (key, value, _) in enumerate(market(1_500))
        if value is not None
    ]
    await run_to_the_end(app, records, tmp_path / "worker.log")
    said = [line for line in (tmp_path / "worker.log").read_text().splitlines() if "all of the last" in line]
    assert 1 <= len(said) <= 2, said  # one for each partition
    assert all("were rejected as timestamp_out_of_range: ts is 17" in line for line in said)


async def test_reset_is_refused_while_workers_run(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, market(100))
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
        refused = app.run_command("state", "reset", "--yes")
    assert refused.returncode == 1
    assert "stop its workers first" in refused.stderr


async def test_offsets_changed_apart_from_the_state_are_noticed(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(500), tmp_path / "worker.log")
    tp = TopicPartition(app.topics.ticks, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=app.bootstrap, group_id=app.name, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.commit({tp: 3})
    finally:
        await consumer.stop()
    refused = app.run_command("run")
    assert refused.returncode == 2
    assert "has committed 3" in refused.stderr


async def test_one_partition_can_be_reset_and_the_others_stay(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(400), tmp_path / "worker.log")
    before = [json.loads(line) for line in app.run_command("state", "show", "--json").stdout.splitlines()]
    unknown = app.run_command("state", "reset", "--yes", "--partition", "9")
    assert unknown.returncode == 1
    assert f"{app.topics.ticks} has no partition 9; it has 0 to {app.partitions - 1}" in unknown.stderr
    done = app.run_command("state", "reset", "--yes", "--partition", "1")
    assert done.returncode == 0, done.stderr
    after = [json.loads(line) for line in app.run_command("state", "show", "--json").stdout.splitlines()]
    assert [state["offset"] for state in after] == [
        None if state["partition"] == 1 else state["offset"] for state in before
    ]
    assert after[0] == before[0]
    with app.worker(tmp_path / "again.log") as worker:
        await committed_through(app, process=worker)


async def test_a_changelog_that_came_back_with_the_brokers_defaults_is_made_again_by_reset(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    await run_to_the_end(app, market(400), tmp_path / "worker.log")
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([app.topics.changelog])
        async with asyncio.timeout(60):
            while (await admin.create_topics([NewTopic(app.topics.changelog, 7, 1)])).topic_errors[0][1]:
                await asyncio.sleep(0.1)
    finally:
        await admin.close()
    refused = app.run_command("run")
    assert refused.returncode == 1
    assert "has 7 partitions" in refused.stderr + refused.stdout
    assert "`workers state reset`" in refused.stderr + refused.stdout
    done = app.run_command("state", "reset", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{app.topics.changelog} was made again, with {app.partitions} partitions" in done.stderr
    with app.worker(tmp_path / "again.log") as worker:
        await committed_through(app, process=worker)
