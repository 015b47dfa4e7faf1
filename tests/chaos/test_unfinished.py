"""A transaction that the broker decided and never finished is finished by the partition's next owner, as decided."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.arena import PARTITIONS, Arena, broker_config
from tests.chaos.feed import Feed, produce
from workers.apps.broker import find_broker
from workers.apps.broker.jvm import find_java
from workers.errors import BrokerUnavailableError

DEATH_LIMIT_S = 40.0


@pytest.fixture
def lax_arena(tmp_path: Path) -> Iterator[Arena]:
    """A broker that takes records of transactions that it was not told of: so one can be left hanging on purpose."""
    try:
        find_java()
    except BrokerUnavailableError as error:
        pytest.skip(f"a broker of its own needs Java: {error}")
    config, proxy_port = broker_config()
    config["transaction.partition.verification.enable"] = "false"
    with find_broker(way="jvm", config=config) as broker:
        arena = Arena(broker, proxy_port, tmp_path)
        try:
            yield arena
        finally:
            arena.close()


async def test_a_transaction_left_hanging_ends_as_its_coordinator_decided(lax_arena: Arena) -> None:
    arena = lax_arena
    for outcome in ("commit", "abort"):
        arena.workers.clear()
        arena.configure()
        await arena.create_topics()
        feed = Feed(21, partitions=PARTITIONS)
        dying = arena.start(LOSE_MARKERS=outcome)
        limit_s = time.monotonic() + DEATH_LIMIT_S
        while dying.alive:
            assert time.monotonic() < limit_s, dying.log()[-3000:]
            await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=3_000, seconds=0.5)
        assert dying.process.returncode == -9, dying.log()[-3000:]
        dying.expected_to_die = True
        successor = arena.start()
        await arena.until_committed()
        await arena.stop_workers()
        arena.check()
        assert f'"outcome": "{outcome}"' in successor.log(), "nothing hung, so nothing was shown"
        findings = await arena.verify()
        sys.stdout.write(f"\n{outcome}: {findings.frames} frames, {findings.late} late\n")
        assert not findings, f"{outcome}: {findings}"
