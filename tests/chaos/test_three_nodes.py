"""A cluster of three nodes, of which one at a time is restarted, killed or frozen: nothing is lost or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce
from workers.apps.broker.nodes import JvmCluster, open_cluster

pytestmark = pytest.mark.timeout(400)
FROZEN_S = 12.0  # longer than a broker's session, and than it takes a client to give up a connection


@pytest.fixture(scope="module")
def cluster() -> Iterator[JvmCluster]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KAFKA_HEAP_OPTS", "-Xmx256m -Xms128m -XX:TieredStopAtLevel=1")
        with open_cluster({}) as found:
            yield found


@pytest.fixture
def arena(cluster: JvmCluster, tmp_path: Path) -> Iterator[Arena]:
    made = Arena(cluster, 0, tmp_path, replication=3)
    try:
        yield made
    finally:
        made.close()
        asyncio.run(made.delete_topics())


async def kill(cluster: JvmCluster, number: int) -> None:
    await asyncio.to_thread(cluster.nodes[number].kill)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(cluster.nodes[number].start)


async def freeze(cluster: JvmCluster, number: int) -> None:
    await asyncio.to_thread(cluster.nodes[number].pause)
    await asyncio.sleep(FROZEN_S)
    await asyncio.to_thread(cluster.nodes[number].resume)


async def restart_in_turn(cluster: JvmCluster, _number: int) -> None:
    for node in cluster.nodes:
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)


@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("harm", "number"),
    [
        pytest.param(kill, 0, id="one is killed"),
        *(pytest.param(kill, number, id=f"node {number} is killed", marks=pytest.mark.soak) for number in (1, 2)),
        *(pytest.param(freeze, number, id=f"node {number} is frozen", marks=pytest.mark.soak) for number in range(3)),
        pytest.param(restart_in_turn, 0, id="rolling restart", marks=pytest.mark.soak),
    ],
)
async def test_one_node_at_a_time_may_fail(
    arena: Arena, cluster: JvmCluster, guarantee: str, harm: object, number: int
) -> None:
    arena.configure(guarantee)
    await arena.create_topics()
    feed = Feed(11 + number, partitions=PARTITIONS)
    workers = [arena.start(), arena.start()]
    for worker in workers:
        await arena.until_running(worker)
    harming = asyncio.ensure_future(harm(cluster, number))  # type: ignore[operator]
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=3_000, seconds=3.0)
    await harming
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=3_000, seconds=1.0)
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    findings = await arena.verify()
    assert not findings, str(findings)
