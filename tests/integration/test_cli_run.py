"""``workers run`` as a process: it starts, works, stops when asked, and says why where it can't start."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.integration.commands import start, workers
from tests.integration.groups import LIMIT_S, members_of
from workers.apps.broker import Broker

pytestmark = pytest.mark.broker


@pytest.fixture
def mine(topic_name: str) -> list[str]:
    """Flags of an application of its own."""
    topics = ["--set", f"topics.ticks={topic_name}-t", "--set", f"topics.frames={topic_name}-f"]
    return ["--application-id", topic_name, "--set", "topics.partitions=2", *topics]


def members(broker: Broker, mine: list[str], cwd: Path) -> int:
    done = workers(broker.bootstrap_servers, "lag", "--json", *mine, cwd=cwd)
    return int(json.loads(done.out)["members"]) if done.code == 0 else 0


async def _joined(process: subprocess.Popen[bytes], broker: Broker, mine: list[str]) -> None:
    """Wait until the group has a member. Asked here: the command, again and again, would keep the worker from it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        deadline_s = time.monotonic() + LIMIT_S
        while not await members_of(admin, mine[1]):
            assert time.monotonic() < deadline_s, "the worker joined no group"
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


def test_ticks_in_frames_out_and_a_clean_stop(broker: Broker, mine: list[str], tmp_path: Path) -> None:
    process = start(broker.bootstrap_servers, "run", *mine, "--set", "metrics.port=off", cwd=tmp_path)
    try:
        asyncio.run(_joined(process, broker, mine))
        made = ("produce", "--synthetic", "--start", "2026-01-05T14:30:00Z", "--count", "20000", "--rate", "1000")
        assert workers(broker.bootstrap_servers, *made, "--symbols", "3", *mine, cwd=tmp_path).code == 0
        watched = ("tail", "frames", "--from-beginning", "--json", "--max-messages", "9")
        shown = workers(broker.bootstrap_servers, *watched, *mine, cwd=tmp_path)
        assert shown.code == 0, shown.err
        frames = [json.loads(line) for line in shown.lines]
        assert {frame["key"] for frame in frames} <= {"AAPL", "MSFT", "NVDA"}
        assert all(frame["end"] - frame["start"] == 5_000 and frame["count"] > 0 for frame in frames)
        process.send_signal(signal.SIGTERM)
        _out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    said = [line for line in err.decode().splitlines() if not line.startswith("workers: ")]
    assert all(json.loads(line)["event"] for line in said)  # nobody is at the terminal: JSON lines
    assert members(broker, mine, tmp_path) == 0


def test_without_its_topics_and_not_allowed_to_make_them_it_says_how(
    broker: Broker, mine: list[str], tmp_path: Path
) -> None:
    done = workers(broker.bootstrap_servers, "run", "--no-create-topics", *mine, cwd=tmp_path)
    assert done.code == 1
    assert "workers topics create" in done.err
    assert "Traceback" not in done.err


def test_a_second_signal_ends_it_at_once(broker: Broker, mine: list[str], tmp_path: Path) -> None:
    process = start(broker.bootstrap_servers, "run", *mine, "--set", "metrics.port=off", cwd=tmp_path)
    try:
        asyncio.run(_joined(process, broker, mine))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        pytest.fail("two signals did not end the worker")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode in (0, 130)  # 0 where it was faster than the second signal
