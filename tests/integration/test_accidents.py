"""What operators do to topics: on the real broker, nothing is lost or counted twice without a word."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.integration.apps import App, Process, committed_through, send, wait_until
from tests.support.verify import end_offsets, read_topic
from workers.apps.broker import Broker
from workers.kafka.repairs import repair_client
from workers.kafka.topics import describe_topics

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

STATE_ERROR = 2


def ticks(begin: int, end: int) -> list[tuple[bytes | None, bytes | None, int | None]]:
    """A tick every 100 ms, of four symbols in turn, without disorder: the last window of each stays open."""
    return [
        (
            f"S{number % 4}".encode(),
            orjson.dumps({"symbol": f"S{number % 4}", "ts": 1_700_000_000_000 + 100 * number, "price": 1, "size": 1}),
            None,
        )
        for number in range(begin, end)
    ]


def app_of(broker: Broker, name: str, **settings: object) -> App:
    # Nothing comes out by the clock: what is open stays in the state.
    return App(broker.bootstrap_servers, name, partitions=2, settings={"window.idle_after": "1h", **settings})


@asynccontextmanager
async def administrator(app: App) -> AsyncIterator[AIOKafkaAdminClient]:
    repair_client()
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def made_again(app: App, name: str, **configs: str) -> None:
    """Delete a topic and make it again, as one who wants to empty it."""
    async with administrator(app) as admin, asyncio.timeout(60):
        before = (await describe_topics(admin))[name].id
        await admin.delete_topics([name])
        while True:
            await admin.create_topics([NewTopic(name, app.partitions, 1, topic_configs=configs)])
            found = (await describe_topics(admin)).get(name)
            if found is not None and found.ready and found.id != before:
                return
            await asyncio.sleep(0.05)


async def cut(app: App, topic: str, to: Mapping[int, int]) -> None:
    """Delete a compacted topic's records before these offsets. Kafka does so only where the topic may
    also delete."""

    async def clean(policy: str) -> None:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": policy})])

    async with administrator(app) as admin:
        await clean("compact,delete")
        await admin.delete_records(
            {TopicPartition(topic, number): RecordsToDelete(offset) for number, offset in to.items()}
        )
        await clean("compact")


async def ended(process: Process) -> str:
    """What a worker says that ends by itself, for its state."""
    await wait_until(lambda: process.exit_code is not None, "the worker ends")
    assert process.exit_code == STATE_ERROR, process.output()[-3000:]
    return process.output()


async def frames_of(app: App) -> Counter[bytes]:
    found = await read_topic(app.bootstrap, app.topics.frames)
    return Counter(record.value or b"" for records in found.values() for record in records)


async def frames_since(app: App, before: Counter[bytes]) -> list[dict[str, Any]]:
    return [json.loads(value) for value in (await frames_of(app) - before).elements()]


async def test_a_changelog_that_is_made_again_under_a_worker_ends_it(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    process = Process(app.argv(), tmp_path / "worker.log")
    try:
        await committed_through(app, process=process)
        await made_again(app, app.topics.changelog, **{"cleanup.policy": "compact"})
        said = await ended(process)
    finally:
        process.kill()
    assert f"the topic {app.topics.changelog} was deleted and made again while this worker ran" in said
    assert "`workers state reset`" in said
    refused = app.run_command("run")
    assert refused.returncode == STATE_ERROR
    assert f"{app.topics.changelog} holds no state for it" in refused.stderr + refused.stdout


async def test_a_changelog_that_lost_its_beginning_is_refused_and_reset_gives_all_frames(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    with app.worker(tmp_path / "first.log") as worker:
        await committed_through(app, process=worker)
    until = await end_offsets(app.bootstrap, app.topics.changelog)
    await send(app, ticks(400, 401))  # one symbol's windows are written again, the others are not
    with app.worker(tmp_path / "second.log") as worker:
        await committed_through(app, process=worker)
    before = await frames_of(app)
    now = await end_offsets(app.bootstrap, app.topics.changelog)
    await cut(app, app.topics.changelog, {number: end for number, end in until.items() if now[number] > end})
    refused = app.run_command("run")
    assert refused.returncode == STATE_ERROR, refused.stdout
    said = refused.stderr + refused.stdout
    assert f"the changelog {app.topics.changelog}[" in said
    assert "is not whole: found" in said
    shown = app.run_command("state", "show")
    assert (shown.returncode, "is not whole: found" in shown.stdout) == (1, True), shown.stdout + shown.stderr
    assert app.run_command("state", "reset", "--yes").returncode == 0
    await send(app, ticks(401, 500))
    with app.worker(tmp_path / "third.log") as worker:
        await committed_through(app, process=worker)
    again = await frames_since(app, before)
    assert {frame["start"] for frame in again} == {1_700_000_000_000 + 5_000 * n for n in range(9)}
    assert all(frame["count"] in (12, 13) for frame in again)


async def test_a_changelog_that_is_cut_under_a_worker_is_noticed_while_it_runs(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    process = Process(app.argv(logging__level="debug"), tmp_path / "worker.log")
    try:
        await committed_through(app, process=process)
        await wait_until(lambda: "looked at the topics" in process.output(), "a first look")
        await cut(app, app.topics.changelog, await end_offsets(app.bootstrap, app.topics.changelog))
        said = await ended(process)
    finally:
        process.kill()
    assert "holds no state for it" in said or "is not whole" in said


async def test_a_ticks_topic_that_is_made_again_longer_is_refused_by_a_running_worker_and_by_the_next(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    process = Process(app.argv(), tmp_path / "first.log")
    try:
        await committed_through(app, process=process)
        before = await frames_of(app)
        await made_again(app, app.topics.ticks)
        await send(app, ticks(10_000, 11_000))
        said = await ended(process)
    finally:
        process.kill()
    assert f"the topic {app.topics.ticks} was deleted and made again while this worker" in said
    assert await frames_of(app) == before, "frames of a log that begins in the middle"
    refused = app.run_command("run")
    assert refused.returncode == STATE_ERROR
    assert f"the topic {app.topics.ticks} was deleted and made again since" in refused.stderr + refused.stdout
    assert app.run_command("state", "reset", "--yes").returncode == 0
    with app.worker(tmp_path / "again.log") as worker:
        await committed_through(app, process=worker)
    again = await frames_since(app, before)
    assert min(frame["start"] for frame in again) == 1_700_001_000_000


async def test_another_ticks_topic_under_the_same_application_is_refused(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    other = f"{topic_name}-other"
    refused = app.run_command("run", topics__ticks=other)
    assert refused.returncode == STATE_ERROR
    said = refused.stderr + refused.stdout
    assert f"was made of the topic {app.topics.ticks}, and topics.ticks is {other}" in said


async def test_ticks_between_a_clean_stop_and_the_next_start_are_read_also_from_the_end_on(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name, **{"kafka.auto.offset.reset": "latest"})
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 40))
    with app.worker(tmp_path / "first.log") as worker:
        await committed_through(app, process=worker)  # though it has processed nothing
    await send(app, ticks(100, 400))
    with app.worker(tmp_path / "second.log") as worker:
        await committed_through(app, process=worker)
    assert sum(frame["count"] for frame in await frames_since(app, Counter())) > 200


async def test_after_partitions_were_added_a_worker_ends_and_reset_works_as_it_says(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    await send(app, ticks(0, 400))
    process = Process(app.argv(), tmp_path / "first.log")
    try:
        await committed_through(app, process=process)
        async with administrator(app) as admin:
            await admin.create_partitions({app.topics.ticks: NewPartitions(4)})
        await wait_until(lambda: process.exit_code is not None, "the worker ends")
    finally:
        process.kill()
    assert f"{app.topics.ticks} now has 4 partitions, and had 2" in process.output()
    refused = app.run_command("run")
    assert refused.returncode == 1
    assert "`workers state reset`" in refused.stderr + refused.stdout
    lag = app.run_command("lag")
    assert "partitions were added" in lag.stderr
    done = app.run_command("state", "reset", "--yes")
    assert done.returncode == 0, done.stderr
    grown = replace(app, partitions=4)
    with grown.worker(tmp_path / "again.log") as worker:
        await send(grown, ticks(400, 800))
        await committed_through(grown, process=worker)
