"""A broker that accepts connections and answers nothing: every wait ends, and says what it waited for."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.integration.test_record_times import send, settings_for
from workers.apps.broker import Broker, find_broker
from workers.apps.inspect import tail as tail_module
from workers.commands.cli import app
from workers.commands.common import report
from workers.errors import BrokerError, WorkersError
from workers.kafka import connection
from workers.kafka.clients import admin_client
from workers.kafka.topics import ensure_topics
from workers.telemetry.logs import CLIENT_LOGGER
from workers.worker import worker as worker_module
from workers.worker.worker import Worker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

LIMIT_S = 60.0
COMMANDS = (
    ("run", "--set", "metrics.port=off"),
    ("produce", "--synthetic", "--count", "3"),
    ("tail", "frames"),
    ("lag",),
    ("lag", "--watch"),
    ("topics", "list"),
    ("topics", "create"),
    ("topics", "delete", "--yes"),
    ("state", "show"),
    ("state", "reset", "--yes"),
    ("explain", "AAPL", "12:00:00"),
    ("replay", "--from", "12:00:00", "--to", "13:00:00"),
)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a socket whose connections the kernel accepts, and nobody else."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("KAFKA_", "WORKERS_"))]:
        monkeypatch.delenv(name)
    root, client = logging.getLogger(), logging.getLogger(CLIENT_LOGGER)
    before = [(each, each.level, each.propagate, list(each.handlers)) for each in (root, client)]
    yield
    for each, level, propagate, handlers in before:
        each.setLevel(level)
        each.propagate, each.handlers = propagate, handlers
    structlog.reset_defaults()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_that_gets_no_answer_ends_and_says_so(
    silent: str, command: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection, "_PROBE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("workers.commands.run.calm_collector", lambda: None)
    code = 0
    try:
        app([*command, "--bootstrap-servers", silent], prog_name="workers", standalone_mode=False)
    except WorkersError as error:
        code = report(error)
    assert code == 3
    assert f"can't reach a broker at {silent}: it accepts connections, but does not answer" in capfd.readouterr().err


@pytest.fixture(scope="module")
def freezing() -> Iterator[Broker]:
    with find_broker(way="jvm") as started:
        yield started


async def test_a_tail_says_that_the_broker_is_silent_and_a_worker_stops_all_the_same(
    freezing: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit_s in (("_SILENCE_S", 0.1), ("_ANSWER_S", 0.5)):
        monkeypatch.setattr(tail_module, name, limit_s)
    monkeypatch.setattr(worker_module, "STOP_TIMEOUT_S", 0.5)  # for the last commits
    frozen = asyncio.Event()
    monkeypatch.setattr(tail_module._Idle, "passed", lambda self: self._limit_ns is not None and frozen.is_set())
    settings = settings_for(freezing, topic_name)
    async with admin_client(settings) as admin:
        await ensure_topics(admin, settings, create=True)
    await send(settings, time.time_ns() // 1_000_000)
    worker, stop, told = Worker(settings), asyncio.Event(), asyncio.Queue[str]()
    run = asyncio.ensure_future(worker.run(stop))
    following = asyncio.ensure_future(
        read(tail_module.tail(settings, settings.topics.frames, stop=stop, on_notice=told.put_nowait))
    )
    ending = asyncio.ensure_future(
        read(tail_module.tail(settings, settings.topics.frames, stop=asyncio.Event(), idle_ns=1))
    )
    async with asyncio.timeout(LIMIT_S):
        while not any(runner.state.is_running for runner in worker.partitions.values()):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(freezing.pause)
        frozen.set()
        try:
            while "has not answered for" not in await told.get():
                pass
            with pytest.raises(BrokerError, match="whether something has come is not known"):
                await ending
            await asyncio.to_thread(freezing.resume)
            while "answers again" not in await told.get():
                pass
            await asyncio.to_thread(freezing.pause)
            stop.set()
            await run
        finally:
            await asyncio.to_thread(freezing.resume)
        await following


async def read(batches: object) -> None:
    async for _ in batches:  # type: ignore[attr-defined]
        pass
