"""Producers and workers that keep to the pace of those behind them, on a real broker."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest

from tests.integration.apps import App, Process, committed_through, send
from tests.integration.groups import commit, create, http, produce, samples, settings_for, until
from tests.support.verify import end_offsets, read_topic
from workers import AdaptiveThrottle
from workers.apps.broker import Broker
from workers.apps.broker.base import free_ports
from workers.backpressure.feedback import FeedbackListener, FeedbackPublisher
from workers.backpressure.levels import STORE_SOURCE, FeedbackEvent, Level, LevelPolicy
from workers.backpressure.producer_throttle import ThrottleState
from workers.errors import BrokerError

pytestmark = pytest.mark.broker

POLICY = LevelPolicy(soft=100, hard=1_000, release=0.5, min_dwell_ns=0)
TICK = b'{"symbol":"AAPL","ts":1700000000000,"price":1,"size":1}'


async def prepared(broker: Broker, name: str) -> None:
    await create(broker.bootstrap_servers, f"{name}-ticks")
    await create(broker.bootstrap_servers, f"{name}-feedback")


def throttled(broker: Broker, name: str, **more: object) -> AdaptiveThrottle:
    settings = settings_for(broker.bootstrap_servers, name)
    return AdaptiveThrottle(settings, policy=POLICY, rate=10_000, **more)  # type: ignore[arg-type]


def commit_all(broker: Broker, name: str, offset: int) -> asyncio.Task[None]:
    return asyncio.create_task(commit(broker.bootstrap_servers, name, f"{name}-ticks", {0: offset}))


async def granted(throttle: AdaptiveThrottle, seconds: float) -> int:
    """How many records are let through in a time."""
    count, until_s = 0, time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left_s):
                await throttle.acquire(10)
        except TimeoutError:
            break
        count += 10
    return count


async def test_a_producer_slows_and_stops_with_the_groups_lag_and_recovers(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    changes: list[ThrottleState] = []
    async with throttled(broker, topic_name, on_change=changes.append) as throttle:
        assert throttle.scale() == 1.0
        assert await granted(throttle, 1) > 7_000
        await produce(broker.bootstrap_servers, f"{topic_name}-ticks", [TICK] * 200)
        await until(lambda: throttle.scale() == 0.5, "half the pace")
        assert await granted(throttle, 1) == pytest.approx(5_000, rel=0.35)
        await produce(broker.bootstrap_servers, f"{topic_name}-ticks", [TICK] * 1_000)
        await until(lambda: throttle.scale() == 0.0, "no pace at all")
        await granted(throttle, 0.2)  # what had been saved up
        assert await granted(throttle, 1) == 0
        await commit_all(broker, topic_name, 1_200)
        await asyncio.wait_for(throttle.acquire(10), 10)
        await until(lambda: throttle.scale() == 1.0, "the full pace, along the ramp")
    assert [change.level for change in changes] == [Level.SOFT, Level.HARD, Level.OK]
    assert "lag of group" in changes[0].reason
    assert "200 records, no worker is running" in changes[0].reason


async def test_waiting_for_the_group_costs_no_cpu(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    await produce(broker.bootstrap_servers, f"{topic_name}-ticks", [TICK] * 1_000)
    async with throttled(broker, topic_name) as throttle:
        await until(lambda: throttle.scale() == 0.0, "stopped")
        await granted(throttle, 0.2)
        began_s = time.process_time()
        assert await granted(throttle, 2) == 0
        assert time.process_time() - began_s < 0.8, "measuring ten times a second is all it does"


async def test_calls_are_served_in_their_order(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    served: list[int] = []

    async def one(number: int) -> None:
        await throttle.acquire(500)
        served.append(number)

    async with throttled(broker, topic_name) as throttle:
        await asyncio.gather(*(one(number) for number in range(12)))
    assert served == list(range(12))


async def test_the_stores_feedback_counts_as_much_as_the_lag(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    settings = settings_for(broker.bootstrap_servers, topic_name)
    async with (
        throttled(broker, topic_name) as throttle,
        FeedbackPublisher(settings, coordinator_id="store-1", source=STORE_SOURCE) as store,
    ):
        assert await store.say(Level.HARD, queue_size=9_000, capacity=10_000)
        await until(lambda: throttle.scale() == 0.0, "stopped by the store")
        assert throttle.state.reason == "store store-1 holds 9,000 of 10,000 records"
        await store.say(Level.SOFT, queue_size=6_000, capacity=10_000)
        await until(lambda: throttle.scale() == 0.5, "half, as the store says")
        await store.close()  # a store that leaves withdraws what it said
        await until(lambda: throttle.scale() == 1.0, "nobody says anything any more")


async def test_garbage_in_the_feedback_topic_stops_nobody(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    settings = settings_for(broker.bootstrap_servers, topic_name)
    await produce(broker.bootstrap_servers, settings.topics.feedback, [b"hard", b"{}", b'{"level":"hard"}'])
    async with FeedbackListener(settings) as listener:
        await until(lambda: listener.book.bad == 3, "three records that are no events")
        assert listener.level() is Level.OK


async def test_a_listener_waits_for_a_topic_that_is_not_there_yet(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    async with (
        FeedbackListener(settings) as listener,
        FeedbackPublisher(settings, coordinator_id="store-1", source=STORE_SOURCE) as store,
    ):
        assert not await store.say(Level.HARD, queue_size=1, capacity=1)
        assert "there is no topic" in str(store.failure)
        await create(broker.bootstrap_servers, settings.topics.feedback)
        assert await store.say(Level.HARD, queue_size=1, capacity=1)
        await until(lambda: listener.level() is Level.HARD, "the topic is found")


async def test_a_producer_without_a_cluster_is_told_at_once() -> None:
    (port,) = free_ports(1)
    began_s = time.monotonic()
    with pytest.raises(BrokerError, match="can't reach a broker"):
        async with AdaptiveThrottle(bootstrap_servers=f"127.0.0.1:{port}", group_id="nobody", rate=1):
            pass
    assert time.monotonic() - began_s < 20


async def test_acquire_needs_a_rate_and_a_count(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    async with AdaptiveThrottle(settings_for(broker.bootstrap_servers, topic_name)) as throttle:
        with pytest.raises(ValueError, match="acquire needs a rate"):
            await throttle.acquire()
        with pytest.raises(ValueError, match="count is 0"):
            await throttle.acquire(0)


@pytest.mark.slow
async def test_a_producer_that_cannot_see_slows_says_why_and_recovers(own_broker: Broker, topic_name: str) -> None:
    await prepared(own_broker, topic_name)
    await commit_all(own_broker, topic_name, 0)
    changes: list[ThrottleState] = []
    async with throttled(own_broker, topic_name, on_change=changes.append) as throttle:
        own_broker.kill()
        await until(lambda: throttle.scale() == 0.5, "slowed")
        assert "has been unknown for" in throttle.state.reason
        assert await granted(throttle, 1) > 3_000, "slowed, not stopped: what is not sent is lost"
        await asyncio.to_thread(own_broker.start)
        await until(lambda: throttle.scale() == 1.0, "recovered")
    assert [change.level for change in changes] == [Level.SOFT, Level.OK]


async def test_a_group_that_is_deleted_counts_as_having_everything_to_do(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    await produce(broker.bootstrap_servers, f"{topic_name}-ticks", [TICK] * 1_200)
    await commit_all(broker, topic_name, 1_200)
    changes: list[ThrottleState] = []
    async with throttled(broker, topic_name, on_change=changes.append) as throttle:
        assert throttle.scale() == 1.0
        await _delete_group(broker, topic_name)
        await until(lambda: throttle.scale() == 0.0, "stopped")
        assert "1,200 records, no worker is running" in throttle.state.reason
        await commit_all(broker, topic_name, 1_200)
        await until(lambda: throttle.scale() == 1.0, "recovered")
    assert [change.level for change in changes] == [Level.HARD, Level.OK]


async def _delete_group(broker: Broker, group: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(group)
        answer = await admin._send_request_to_node(coordinator, DeleteGroupsRequest([group]))
        assert answer.results == [(group, 0)]
    finally:
        await admin.close()


@pytest.mark.slow
async def test_produce_adaptive_says_that_it_is_blind_slows_and_delivers_everything_once(
    own_broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(own_broker.bootstrap_servers, topic_name, 2, {"backpressure.poll_interval": "200ms"})
    assert app.run_command("topics", "create").returncode == 0
    argv = ["produce", "--synthetic", "--adaptive", "--rate", "1000", "--count", "12000"]
    producer = Process([sys.executable, "-m", "workers", *argv, *app.flags()], tmp_path / "produce.log")
    try:
        await _until_ticks(app, 1_000)
        own_broker.pause()
        try:
            await until(lambda: "has been unknown for" in producer.output(), "the producer says that it can't see")
        finally:
            own_broker.resume()
        await until(lambda: "ok, 100% of the full pace" in producer.output(), "the producer sees again")
        await until(lambda: producer.exit_code is not None, "all is sent", 60)
        assert producer.exit_code == 0, producer.output()
        assert await _ticks(app) == 12_000
    finally:
        producer.kill()
    said = producer.output()
    assert "soft, 50% of the full pace" in said
    assert "Traceback" not in said


async def _until_ticks(app: App, count: int) -> None:
    async with asyncio.timeout(45):
        while await _ticks(app) < count:
            await asyncio.sleep(0.2)


# -- workers ----------------------------------------------------------------------------------------------------------


def worker_value(port: int, name: str) -> float:
    """The sum of a metric's series that a worker exports."""
    return sum(value for (found, _labels), value in samples(port).items() if found == name)


@pytest.mark.slow
async def test_a_worker_stops_reading_while_the_store_is_full_and_stays_in_the_group(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    app = App(
        broker.bootstrap_servers,
        topic_name,
        2,
        {
            "metrics.port": port,
            "backpressure.poll_interval": "200ms",
            "backpressure.min_dwell": "0s",
            "backpressure.soft_lag": 10,
            "backpressure.hard_lag": 50,
            "kafka.max.poll.interval.ms": 3_000,
        },
    )
    assert app.run_command("topics", "create").returncode == 0
    settings = settings_for(broker.bootstrap_servers, topic_name)
    now_ms = time.time_ns() // 1_000_000
    ticks = [(b"AAPL", b'{"symbol":"AAPL","ts":%d,"price":1,"size":1}' % (now_ms + i), None) for i in range(100)]
    async with FeedbackPublisher(settings, coordinator_id="store-1", source=STORE_SOURCE) as store:
        await store.say(Level.HARD, queue_size=10, capacity=10)
        with app.worker(tmp_path / "worker.log") as process:
            state = ("pipeline_backpressure_state", (("provider", "worker"),))
            await until(lambda: samples(port).get(state) == 2, "the worker has heard of it")
            await send(app, ticks)
            held_s = time.monotonic()
            while time.monotonic() - held_s < 7:  # beyond max.poll.interval.ms, on which others leave the group
                await store.say(Level.HARD, queue_size=10, capacity=10)
                assert worker_value(port, "workers_ticks_in_total") == 0
                await asyncio.sleep(0.25)
            assert http(port, "/readyz") == (200, "ok\n")
            assert worker_value(port, "workers_rebalances_total") == 1
            assert worker_value(port, "kafka_consumergroup_lag_sum") == 100
            assert samples(port)[("pipeline_feedback_queue_depth", (("source", "store"),))] == 10
            await _group_has_said(broker, settings.topics.feedback, Level.HARD)
            await store.say(Level.OK, queue_size=0, capacity=10)
            await committed_through(app, process=process)
            await until(lambda: worker_value(port, "workers_ticks_in_total") == 100, "all ticks are counted")
            assert worker_value(port, "workers_held_seconds_total") > 5
            assert "reading pace changed" in process.output()
            await _group_has_said(broker, settings.topics.feedback, Level.OK)


async def _group_has_said(broker: Broker, topic: str, level: Level) -> None:
    """Wait until the worker has published the group's lag at this level."""
    async with asyncio.timeout(30):
        while True:
            (records,) = (await read_topic(broker.bootstrap_servers, topic)).values()
            events = [FeedbackEvent.decode(record.value) for record in records if record.value is not None]
            if [event.level for event in events if event.source == "group"][-1:] == [level]:
                return
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_produce_adaptive_stops_while_nobody_works_and_goes_on_when_somebody_does(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(
        broker.bootstrap_servers,
        topic_name,
        2,
        {
            "backpressure.poll_interval": "100ms",
            "backpressure.min_dwell": "500ms",
            "backpressure.soft_lag": 500,
            "backpressure.hard_lag": 2_000,
        },
    )
    assert app.run_command("topics", "create").returncode == 0
    argv = ["produce", "--synthetic", "--adaptive", "--rate", "2000", "--count", "12000"]
    log = tmp_path / "produce.log"
    producer = Process([sys.executable, "-m", "workers", *argv, *app.flags()], log)
    try:
        await until(lambda: "hard" in producer.output().lower(), "the producer stops")
        await asyncio.sleep(2)
        held = await _ticks(app)
        await asyncio.sleep(2)
        assert await _ticks(app) == held < 6_000, "nothing is sent while nobody works"
        with app.worker(tmp_path / "worker.log") as worker:
            await until(lambda: producer.exit_code is not None or worker.exit_code is not None, "all is sent", 90)
            assert worker.exit_code is None, worker.output()[-3000:]
            assert producer.exit_code == 0, producer.output()
            assert await _ticks(app) == 12_000
    finally:
        producer.kill()
    assert "records, no worker is running" in producer.output()


async def _ticks(app: App) -> int:
    return sum((await end_offsets(app.bootstrap, app.topics.ticks)).values())


async def test_a_users_own_producer_needs_no_settings_object(broker: Broker, topic_name: str) -> None:
    await prepared(broker, topic_name)
    ticks = f"{topic_name}-ticks"
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    throttle = AdaptiveThrottle(
        bootstrap_servers=broker.bootstrap_servers,
        group_id=topic_name,
        ticks_topic=ticks,
        feedback_topic=f"{topic_name}-feedback",
        rate=1_000,
    )
    async with producer, throttle:
        began_s = time.monotonic()
        for _ in range(30):
            await throttle.acquire(10)
            await producer.send(ticks, TICK, key=b"AAPL")
        assert 0.15 < time.monotonic() - began_s < 5, "300 at 1,000 a second, 100 of them saved up"
        await producer.flush()
