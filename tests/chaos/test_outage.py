"""The broker is away for a while: nothing is lost or repeated, memory stays bounded, and SIGTERM is still obeyed."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

import psutil
import pytest
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from tests.chaos.arena import PARTITIONS, Arena
from tests.chaos.feed import Feed, produce
from workers.kafka.consumer import KafkaGroupConsumer
from workers.kafka.options import consumer_options
from workers.kafka.repairs import repair_client
from workers.settings import load_settings

MIB = 1024 * 1024
GROWTH_LIMIT_BYTES = 128 * MIB
BACKLOG_RECORDS = 40_000
ANSWERS_LIMIT_S = 150.0  # starting the broker has a limit of its own


@pytest.mark.parametrize(
    ("guarantee", "seconds"),
    [
        pytest.param("exactly_once", 8.0, id="exactly_once"),
        pytest.param("at_least_once", 8.0, id="at_least_once", marks=pytest.mark.soak),
        # Longer than the session and than the transaction timeout.
        pytest.param("exactly_once", 60.0, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(400)]),
    ],
)
async def test_an_outage_of_the_broker_loses_and_repeats_nothing(arena: Arena, guarantee: str, seconds: float) -> None:
    arena.configure(guarantee, lane__capacity=2_000, lane__batch_size=200)
    await arena.create_topics()
    feed = Feed(5, partitions=PARTITIONS)
    # Commits that were under way are given up during the outage, and their partitions restored after it.
    workers = [arena.start(COMMIT_TIMEOUT_S=seconds / 2), arena.start(COMMIT_TIMEOUT_S=seconds * 4)]
    for worker in workers:
        await arena.until_running(worker)
    # Ticks wait when the broker goes: lanes are full and commits are under way.
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=BACKLOG_RECORDS, seconds=1.0)
    before = [worker.rss_bytes for worker in workers]
    cpu_before_s = [_cpu_s(worker.process.pid) for worker in workers]
    await asyncio.to_thread(arena.broker.kill)
    highest = list(before)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        await asyncio.sleep(0.5)
        highest = [max(high, worker.rss_bytes) for high, worker in zip(highest, workers, strict=True)]
        arena.check()
    cpu_s = [_cpu_s(worker.process.pid) - was for worker, was in zip(workers, cpu_before_s, strict=True)]
    await arena.start_broker()
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=5_000, seconds=1.0)
    waited_s = await arena.until_committed()
    after = [worker.rss_bytes for worker in workers]
    await arena.stop_workers()
    arena.check()
    findings = await arena.verify()
    sys.stdout.write(
        f"\n{guarantee}, {seconds:.0f} s without a broker: RSS MiB before {_mib(before)}, highest {_mib(highest)}, "
        f"after {_mib(after)}; CPU s per worker while away {[round(each, 1) for each in cpu_s]}; "
        f"caught up in {waited_s:.1f} s; {findings.ticks} records, {findings.frames} frames, "
        f"{findings.repeated} repeated\n"
    )
    assert not findings, str(findings)
    assert all(high - was < GROWTH_LIMIT_BYTES for high, was in zip(highest, before, strict=True))


@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.soak)])
async def test_a_worker_ends_when_asked_though_the_broker_is_dead(arena: Arena, guarantee: str) -> None:
    arena.configure(guarantee)
    await arena.create_topics()
    worker = arena.start()
    await arena.until_running(worker)
    feed = Feed(6, partitions=PARTITIONS)
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=10_000, seconds=1.0)
    await asyncio.to_thread(arena.broker.kill)
    await asyncio.sleep(1.0)
    begun_s = time.monotonic()
    worker.terminate()
    await arena.ended(worker)
    sys.stdout.write(f"\n{guarantee}: ended {time.monotonic() - begun_s:.1f} s after SIGTERM without a broker\n")
    await arena.start_broker()
    arena.start()
    await arena.until_committed()
    await arena.stop_workers()
    arena.check()
    findings = await arena.verify()
    assert not findings, str(findings)


async def test_a_committed_offset_is_never_taken_for_missing_while_the_coordinator_loads(arena: Arena) -> None:
    arena.configure()
    await arena.create_topics()
    feed = Feed(8, partitions=PARTITIONS)
    await produce(arena.bootstrap, arena.topics.ticks, feed, per_second=5_000, seconds=1.0)
    arena.start()
    await arena.until_committed()
    await arena.stop_workers()
    wanted = await arena.committed()
    assert all(offset > 0 for offset in wanted.values())

    assigned = asyncio.Event()

    async def on_assigned(_: set[int]) -> None:
        assigned.set()

    async def on_revoked(_: set[int]) -> None:
        pass

    repair_client()
    settings = load_settings(overrides=arena.settings, environ={})
    options = {**consumer_options(settings), "retry_backoff_ms": 5}  # it looks for its coordinator as often
    source = KafkaGroupConsumer(
        arena.topics.ticks, arena.application_id, options, on_revoked=on_revoked, on_assigned=on_assigned
    )
    await source.start()
    answers, refusals = 0, Counter[str]()
    try:
        async with arena.within(30, "the group to give out its partitions"):
            await assigned.wait()
        await asyncio.to_thread(arena.broker.kill)
        starting = asyncio.ensure_future(arena.start_broker())
        async with arena.within(ANSWERS_LIMIT_S, "the coordinator's answers, from when the broker was started again"):
            while answers < 50 * PARTITIONS:
                for partition, offset in wanted.items():
                    try:
                        found = await source.committed(partition)
                    except KafkaError as error:
                        refusals[type(error).__name__] += 1
                        # Where none is known yet, nobody was asked, and the broker needs the processor for its start.
                        unknown = isinstance(error, GroupCoordinatorNotAvailableError)
                        await asyncio.sleep(0.02 if unknown else 0.001)
                        continue
                    answers += 1
                    assert found == offset, f"partition {partition}: {found} after {refusals}"
            await starting
    finally:
        sys.stdout.write(f"\n{answers} answers, refusals: {dict(refusals)}\n")
        await source.stop()
    assert refusals, "the broker was never away, so nothing was shown"


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _mib(sizes: list[int]) -> list[int]:
    return [size // MIB for size in sizes]
