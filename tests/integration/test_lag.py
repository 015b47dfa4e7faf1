"""The group's lag, measured on a real broker."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.client import AIOKafkaClient

from tests.integration.commands import workers
from tests.integration.groups import commit, create, produce, settings_for, until
from workers.apps.broker import Broker
from workers.backpressure.lag import LagMonitor, LagSnapshot
from workers.core.partitioning import partition_for
from workers.errors import BrokerError, TopicError
from workers.kafka.clients import admin_client
from workers.kafka.group_offsets import LagReader

pytestmark = pytest.mark.broker


def tick(ts_ms: int) -> bytes:
    return orjson.dumps({"symbol": "AAPL", "ts": ts_ms, "price": 1.0, "size": 1})


async def test_lag_is_measured_by_partition_with_no_worker_in_sight(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic, 3)
    await produce(broker.bootstrap_servers, topic, [tick(i) for i in range(10)], partition=0)
    await produce(broker.bootstrap_servers, topic, [tick(i) for i in range(7)], partition=1)
    async with LagMonitor(settings) as monitor:
        nothing_committed = await monitor.measured()
        assert [item.lag for item in nothing_committed.group.partitions] == [10, 7, 0]
        assert nothing_committed.group.members == 0
        assert nothing_committed.drain_s == math.inf
        await commit(broker.bootstrap_servers, settings.application_id, topic, {0: 4})
        await until(lambda: monitor.latest is not None and monitor.latest.total == 13, "lag 6 + 7 + 0")
        latest = monitor.latest
        assert latest is not None
        assert [item.lag for item in latest.group.partitions] == [6, 7, 0]
        assert latest.committed_per_s > 0
        assert latest.drain_s == math.inf, "nobody is there to go on"


async def test_what_drains_is_what_is_committed_less_what_arrives(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    topic, group = settings.topics.ticks, settings.application_id
    await create(broker.bootstrap_servers, topic)
    await produce(broker.bootstrap_servers, topic, [tick(i) for i in range(100)])
    member = AIOKafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, group_id=group, enable_auto_commit=False
    )
    async with member, LagMonitor(settings) as monitor:
        await until(lambda: bool(member.assignment()), "a member of the group")
        await until(lambda: monitor.latest is not None and monitor.latest.group.members == 1, "it is seen")
        await member.commit({TopicPartition(topic, 0): 60})
        await until(lambda: monitor.latest is not None and monitor.latest.total == 40, "60 are committed")
        shrinking = monitor.latest
        assert shrinking is not None
        assert 0 < shrinking.drain_s < math.inf
        await produce(broker.bootstrap_servers, topic, [tick(i) for i in range(200)])
        await until(lambda: monitor.latest is not None and monitor.latest.total == 240, "200 more have come")
        growing = monitor.latest
        assert growing is not None
        assert growing.committed_per_s > 0
        assert growing.drain_s == math.inf


async def test_the_times_of_records_that_will_be_rejected_count_for_nothing(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name, tick__on_misrouted="reject")
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic, 2)
    home = partition_for(b"AAPL", 2)
    now_ms = time.time_ns() // 1_000_000
    tomorrow, year_ago = tick(now_ms + 86_400_000), now_ms - 365 * 86_400_000
    no_size = orjson.dumps({"symbol": "AAPL", "ts": year_ago, "price": 1.0})
    other = orjson.dumps({"symbol": "MSFT", "ts": year_ago, "price": 1.0, "size": 1})  # its key is not its symbol
    good = [tick(now_ms - 5_000 + 1_000 * second) for second in range(5)]
    await produce(
        broker.bootstrap_servers, topic, [no_size, other, *good[:3], tomorrow, *good[3:], tomorrow], partition=home
    )
    await produce(broker.bootstrap_servers, topic, [tick(year_ago), tick(now_ms)], partition=1 - home)
    async with LagMonitor(settings) as monitor:
        found = await monitor.measured()
    assert found.total == 11
    assert found.delays[home].event_lag_ns == 4_000_000_000
    assert found.delays[1 - home].event_lag_ns is None, "misrouted"


async def test_records_deleted_before_they_were_committed_are_told(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic, 2)
    await produce(broker.bootstrap_servers, topic, [tick(i) for i in range(10)])
    await commit(broker.bootstrap_servers, settings.application_id, topic, {0: 3})
    async with admin_client(settings) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=8)})
    arguments = ["lag", "--application-id", topic_name, "--set", f"topics.ticks={topic}"]
    shown = await asyncio.to_thread(workers, broker.bootstrap_servers, *arguments, "--json", cwd=tmp_path)
    report = orjson.loads(shown.out)
    assert (shown.code, report["total"], report["lost"]) == (0, 2, 5)
    assert report["partitions"][0] == {"partition": 0, "begin": 8, "committed": 3, "end": 10, "lag": 2, "lost": 5}
    assert f"up to 5 records of {topic} are lost" in shown.err
    async with LagMonitor(settings) as monitor:
        assert (await monitor.measured()).group.lost == 5
        await commit(broker.bootstrap_servers, settings.application_id, topic, {0: 8})
        await until(lambda: monitor.latest is not None and monitor.latest.group.lost == 0, "the group went on")


async def test_a_group_that_begins_at_the_end_is_behind_of_what_came_since(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name, kafka__auto__offset__reset="latest")
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic)
    await produce(broker.bootstrap_servers, topic, [tick(0)] * 10)
    async with LagMonitor(settings) as monitor:
        assert (await monitor.measured()).total == 0
        await produce(broker.bootstrap_servers, topic, [tick(0)] * 4)
        await until(lambda: monitor.latest is not None and monitor.latest.total == 4, "four came since")


async def test_records_of_an_open_transaction_are_not_there_to_be_processed(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic)
    await produce(broker.bootstrap_servers, topic, [tick(0)] * 3)
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=topic_name)
    async with producer, LagMonitor(settings) as monitor:
        await producer.begin_transaction()
        for _ in range(5):
            await producer.send_and_wait(topic, tick(0), partition=0)
        assert (await monitor.measured()).total == 3
        await producer.commit_transaction()
        await until(lambda: monitor.latest is not None and monitor.latest.total == 9, "8 records and a marker")


async def test_the_times_are_those_of_the_first_record_still_to_be_done(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    topic = settings.topics.ticks
    await create(broker.bootstrap_servers, topic, 2)
    sent_ms = time.time_ns() // 1_000_000 - 90_000
    last_year_ms = 1_700_000_000_000
    values = [tick(last_year_ms + 1_000 * second) for second in range(60)]
    await produce(broker.bootstrap_servers, topic, values, timestamp_ms=sent_ms)
    await commit(broker.bootstrap_servers, settings.application_id, topic, {0: 10})
    async with LagMonitor(settings) as monitor:
        found = await monitor.measured()
        assert found.waiting_ns is not None
        assert found.waiting_ns / 1e9 == pytest.approx(90, abs=15)
        assert found.event_lag_ns == 49_000_000_000
        await commit(broker.bootstrap_servers, settings.application_id, topic, {0: 60})
        await until(lambda: monitor.latest is not None and monitor.latest.total == 0, "all is done")
        assert monitor.latest is not None
        assert (monitor.latest.waiting_ns, monitor.latest.event_lag_ns, monitor.latest.drain_s) == (0, 0, 0)


async def test_ticks_that_cannot_be_read_have_a_waiting_time_and_no_event_time(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    await create(broker.bootstrap_servers, settings.topics.ticks)
    await produce(broker.bootstrap_servers, settings.topics.ticks, [b"not JSON"] * 3)
    async with LagMonitor(settings) as monitor:
        found = await monitor.measured()
    assert found.total == 3
    assert found.waiting_ns is not None
    assert found.event_lag_ns is None


async def test_a_measurement_takes_a_few_requests_however_many_partitions(
    broker: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    await create(broker.bootstrap_servers, settings.topics.ticks, 60)
    sent: list[str] = []
    original = AIOKafkaClient.send

    async def counted(self: AIOKafkaClient, node: int, request: object, **more: object) -> object:
        sent.append(type(request).__name__)
        return await original(self, node, request, **more)

    async with admin_client(settings) as admin, LagReader(settings, admin) as reader:
        await reader.read()
        monkeypatch.setattr(AIOKafkaClient, "send", counted)
        assert (await reader.read()).total == 0
    # coordinator twice, offsets, members, beginnings, ends; and metadata, if it was just then due
    assert 4 <= len([name for name in sent if "Metadata" not in name]) <= 6, sent


async def test_a_topic_that_is_missing_is_told_and_waited_for(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    async with LagMonitor(settings) as monitor:
        with pytest.raises(BrokerError, match="has no topic"):
            await monitor.measured(timeout_s=3)
        assert isinstance(monitor.failure, TopicError)
        await create(broker.bootstrap_servers, settings.topics.ticks)
        await produce(broker.bootstrap_servers, settings.topics.ticks, [tick(0)])
        assert (await monitor.measured()).total == 1
        assert monitor.failure is None


async def test_callbacks_that_fail_do_not_end_the_measuring(broker: Broker, topic_name: str) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    await create(broker.bootstrap_servers, settings.topics.ticks)

    def broken(_snapshot: LagSnapshot) -> None:
        raise RuntimeError("not my day")

    async with LagMonitor(settings, on_snapshot=broken) as monitor:
        first = await monitor.measured()
        assert await monitor.measured() is not first


@pytest.mark.slow
async def test_through_an_outage_no_lag_is_made_up(own_broker: Broker, topic_name: str) -> None:
    settings = settings_for(own_broker.bootstrap_servers, topic_name)
    topic = settings.topics.ticks
    await create(own_broker.bootstrap_servers, topic, 2)
    await produce(own_broker.bootstrap_servers, topic, [tick(0)] * 50)
    await commit(own_broker.bootstrap_servers, settings.application_id, topic, {0: 20})
    totals: list[int] = []
    failures: list[Exception] = []
    monitor = LagMonitor(
        settings, on_snapshot=lambda snapshot: totals.append(snapshot.total), on_failure=failures.append
    )
    async with monitor:
        await monitor.measured()
        own_broker.kill()
        await until(lambda: bool(failures), "the outage is noticed")
        assert monitor.latest is not None
        assert monitor.latest.total == 30
        await asyncio.to_thread(own_broker.start)
        before = len(totals)
        # The coordinator loads its offsets now; an answer without them must not become a lag.
        await until(lambda: len(totals) >= before + 10, "measurements after the outage")
        assert monitor.failure is None
    assert set(totals) == {30}
