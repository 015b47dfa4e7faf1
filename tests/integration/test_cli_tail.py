"""``workers tail`` against a real broker: committed records only, from wherever, and a quiet end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic

from tests.integration.commands import environment, start, workers
from workers.apps.broker import Broker
from workers.kafka.clients import admin_client
from workers.settings import Settings, load_settings

pytestmark = pytest.mark.broker


def frame(key: str, number: int, **changed: object) -> bytes:
    start_ms = 1_700_000_000_000 + 5_000 * number
    fields: dict[str, object] = {
        "key": key,
        "start": start_ms,
        "end": start_ms + 5_000,
        "rev": 0,
        "status": "final",
        "trigger": "watermark",
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 10.0,
        "vwap": 1.2,
        "count": 3,
    }
    return orjson.dumps({**fields, **changed})


async def write(bootstrap_servers: str, topic: str, records: list[tuple[bytes, bytes]], **options: object) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, **options) as producer:
        for key, value in records:
            await producer.send_and_wait(topic, value, key)


async def make_topic(settings: Settings, topic: str, partitions: int = 2) -> None:
    async with admin_client(settings) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1)])


@pytest.fixture
async def frames(broker: Broker, topic_name: str) -> str:
    """A frames topic with two frames of AAPL, and one that would like to drive the terminal."""
    settings = load_settings(environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
    await make_topic(settings, topic_name)
    hostile = "X\x1b[2J\u202e"
    records = [
        (b"AAPL", frame("AAPL", 0)),
        (b"AAPL", frame("AAPL", 1, status="provisional", trigger="idle")),
        (hostile.encode(), frame(hostile, 0, rev=2)),
    ]
    await write(broker.bootstrap_servers, topic_name, records)
    return topic_name


def tail(broker: Broker, topic: str, *arguments: str, cwd: Path) -> tuple[int, list[str], str]:
    done = workers(broker.bootstrap_servers, "tail", "frames", "--set", f"topics.frames={topic}", *arguments, cwd=cwd)
    return done.code, done.lines, done.err


def test_frames_are_shown_in_words_and_nothing_reaches_the_terminal(
    broker: Broker, frames: str, tmp_path: Path
) -> None:
    code, lines, err = tail(broker, frames, "--from-beginning", "--exit-when-idle", "2s", cwd=tmp_path)
    assert code == 0, err
    shown = sorted(line.partition("] ")[2] for line in lines)
    assert shown == [
        "AAPL 2023-11-14 22:13:20..22:13:25 count=3 o=1 h=2 l=0.5 c=1.5 v=10",
        "AAPL 2023-11-14 22:13:25..22:13:30 count=3 o=1 h=2 l=0.5 c=1.5 v=10 provisional (idle)",
        "X\\x1b[2J\\u202e 2023-11-14 22:13:20..22:13:25 count=3 o=1 h=2 l=0.5 c=1.5 v=10 rev=2",
    ]


def test_json_is_the_value_itself_and_a_symbol_can_be_picked(broker: Broker, frames: str, tmp_path: Path) -> None:
    arguments = ("--from-beginning", "--json", "--symbol", "AAPL", "--max-messages", "2")
    code, lines, err = tail(broker, frames, *arguments, cwd=tmp_path)
    assert code == 0, err
    expected = [frame("AAPL", 0), frame("AAPL", 1, status="provisional", trigger="idle")]
    assert [line.encode() for line in lines] == expected


def test_without_from_beginning_only_what_is_new_is_shown(broker: Broker, frames: str, tmp_path: Path) -> None:
    code, lines, err = tail(broker, frames, "--exit-when-idle", "1s", cwd=tmp_path)
    assert (code, lines) == (0, []), err


async def test_a_topic_that_is_not_there_is_waited_for_and_never_made(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    settings = load_settings(environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
    arguments = ("tail", "frames", "--json", "--from-beginning", "--max-messages", "1")
    process = start(broker.bootstrap_servers, *arguments, "--set", f"topics.frames={topic_name}", cwd=tmp_path)
    try:
        assert process.stderr is not None
        said = await asyncio.to_thread(process.stderr.readline)
        assert said.decode().strip() == f"workers: topic {topic_name} does not exist yet; waiting for it"
        async with admin_client(settings) as admin:
            assert topic_name not in await admin.list_topics()
        await make_topic(settings, topic_name)
        await write(broker.bootstrap_servers, topic_name, [(b"A", frame("A", 0))])
        out, err = await asyncio.to_thread(process.communicate, None, 30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out) == (0, frame("A", 0) + b"\n"), err


async def test_what_is_not_committed_is_not_shown(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    settings = load_settings(environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
    await make_topic(settings, topic_name, 1)
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=topic_name, retry_backoff_ms=10
    ) as producer:
        for number, keep in enumerate((True, False)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic_name, frame("A", number), b"A")
            await (producer.commit_transaction() if keep else producer.abort_transaction())
    code, lines, err = await asyncio.to_thread(
        lambda: tail(broker, topic_name, "--json", "--from-beginning", "--exit-when-idle", "2s", cwd=tmp_path)
    )
    assert (code, lines) == (0, [frame("A", 0).decode()]), err


async def test_a_reader_that_has_had_enough_is_no_failure(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    settings = load_settings(environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
    await make_topic(settings, topic_name, 1)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, max_batch_size=1_000_000) as producer:
        for number in range(20_000):
            await producer.send(topic_name, frame("A", number), b"A")
    command = f"{sys.executable} -m workers tail frames --from-beginning --set topics.frames={topic_name} | head -2"
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=environment(broker.bootstrap_servers),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")
