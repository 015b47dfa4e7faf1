"""``workers produce`` against a real broker: what is sent is there, once, on its partition, in order."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import orjson
import pytest
from aiokafka.structs import ConsumerRecord

from tests.integration.commands import start, workers
from workers.apps.broker import Broker, find_broker
from workers.apps.inspect.tail import tail
from workers.apps.produce.market import Market, arrivals, synthetic_ticks
from workers.apps.produce.send import produce
from workers.apps.produce.sources import GeneratedSource
from workers.core.partitioning import partition_for
from workers.errors import BrokerError
from workers.kafka.clients import admin_client
from workers.kafka.topics import ensure_topics
from workers.settings import Settings, load_settings

pytestmark = pytest.mark.broker

START_NS = 1_767_623_400 * 1_000_000_000


def settings_for(bootstrap_servers: str, topic: str, **more: object) -> Settings:
    overrides = {"topics.ticks": topic, "application_id": topic, "topics.replication_factor": 1, **more}
    return load_settings(environ={"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers}, overrides=overrides)


async def everything(settings: Settings, topic: str, *, idle_ns: int = 1_500_000_000) -> list[ConsumerRecord]:
    """All records of a topic, by partition and offset."""
    found = tail(settings, topic, stop=asyncio.Event(), from_beginning=True, idle_ns=idle_ns)
    records = [record async for batch in found for record in batch]
    return sorted(records, key=lambda record: (record.partition, record.offset))


def lines_of(records: list[ConsumerRecord]) -> list[bytes]:
    return sorted(record.value for record in records)


def made_up(count: int) -> list[bytes]:
    ticks = synthetic_ticks(Market(symbols=200, seed=5), arrivals(START_NS, 1_000))
    return [next(ticks)[1] for _ in range(count)]


async def test_a_file_arrives_byte_for_byte_in_order_on_murmur2s_partitions(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    values = made_up(20_000)
    path = tmp_path / "ticks.ndjson.gz"
    path.write_bytes(gzip.compress(b"\n".join(values)))
    before_ms = time.time_ns() // 1_000_000

    done = workers(broker.bootstrap_servers, "produce", "--file", path, "--topic", topic_name, cwd=tmp_path)

    assert done.code == 0, done.err
    assert "20,000 ticks sent" in done.err
    settings = settings_for(broker.bootstrap_servers, topic_name)
    records = await everything(settings, topic_name)
    expected: list[list[bytes]] = [[] for _ in range(8)]
    for value in values:
        expected[partition_for(orjson.loads(value)["symbol"].encode(), 8)].append(value)
    found = [[record.value for record in records if record.partition == partition] for partition in range(8)]
    assert found == expected
    assert all(record.key == orjson.loads(record.value)["symbol"].encode() for record in records)
    # The time of sending, not the event time: or Kafka would delete old data, and take no offence at wrong clocks.
    assert all(before_ms <= record.timestamp <= time.time_ns() // 1_000_000 for record in records)


async def test_the_topic_that_is_made_keeps_old_data_for_ever(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    done = workers(
        broker.bootstrap_servers,
        *("produce", "--synthetic", "--count", "10", "--rate", "0", "--topic", topic_name),
        *("--set", "topics.partitions=3"),
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    settings = settings_for(broker.bootstrap_servers, topic_name, **{"topics.frames": topic_name, "topics.ticks": "x"})
    async with admin_client(settings) as admin:
        layout = await ensure_topics(admin, settings, create=False, only=["frames"])
    assert (layout.frames, layout.frames_retention_ms) == (3, -1)


async def test_refused_lines_are_reported_and_everything_else_is_sent(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    good = made_up(3)
    data = b"\n".join([good[0], b"{oops", good[1], b'{"ts":1}', b"\x1b[2J", good[2]])
    done = workers(
        broker.bootstrap_servers, *("produce", "--file", "-", "--topic", topic_name), cwd=tmp_path, given=data
    )
    assert done.code == 1
    assert [line.split(":")[1] for line in done.err.splitlines() if line.startswith("standard input:")] == [
        "2",
        "4",
        "5",
    ]
    assert "3 lines refused" in done.err
    assert "\x1b" not in done.err
    records = await everything(settings_for(broker.bootstrap_servers, topic_name), topic_name)
    assert lines_of(records) == sorted(good)


async def test_a_csv_file_is_sent_as_ticks(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    path = tmp_path / "trades.csv"
    path.write_text("s,T,p,q\nAAPL,1700000000000,1.50,10\nMSFT,1700000000001,2,3\n")
    mapping = ("--field-map", "symbol=s,ts=T,price=p,size=q")
    done = workers(
        broker.bootstrap_servers, *("produce", "--file", path, "--topic", topic_name), *mapping, cwd=tmp_path
    )
    assert done.code == 0, done.err
    records = await everything(settings_for(broker.bootstrap_servers, topic_name), topic_name)
    assert lines_of(records) == [
        b'{"symbol":"AAPL","ts":1700000000000,"price":1.50,"size":10}',
        b'{"symbol":"MSFT","ts":1700000000001,"price":2,"size":3}',
    ]


async def test_one_wrong_date_in_a_file_is_not_sent_and_everything_else_is(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    times = [1_736_000_000_000 + number * 1_000 for number in range(200)]
    times[100] += 2 * 86_400_000
    path = tmp_path / "trades.csv"
    path.write_text("symbol,ts,price,size\n" + "".join(f"A,{ts},{place},1\n" for place, ts in enumerate(times)))
    done = workers(broker.bootstrap_servers, *("produce", "--file", path, "--topic", topic_name), cwd=tmp_path)
    assert done.code == 1
    assert f"{path}:102: its time, 2025-01-06T14:15:00Z, is far ahead" in done.err
    assert "1 rows not sent" in done.err
    records = await everything(settings_for(broker.bootstrap_servers, topic_name), topic_name)
    assert [orjson.loads(record.value)["price"] for record in records] == [n for n in range(200) if n != 100]


async def test_a_field_map_that_can_not_be_meant_sends_nothing(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    path = tmp_path / "ticks.ndjson"
    path.write_text('{"sym":"A","tme":1736000000123,"p":100,"q":1}\n' * 1_000)
    mapping = ("--field-map", "symbol=sym,ts=time,price=p,size=q")
    done = workers(
        broker.bootstrap_servers, *("produce", "--file", path, "--topic", topic_name), *mapping, cwd=tmp_path
    )
    assert done.code == 2
    assert "names time, which is not in the file" in done.err
    assert await everything(settings_for(broker.bootstrap_servers, topic_name), topic_name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_paced_file_that_is_interrupted_ends_at_once_with_what_it_says_that_it_sent(
    broker: Broker, topic_name: str, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "ticks.ndjson"
    path.write_bytes(b"\n".join(made_up(20_000)))
    process = start(
        broker.bootstrap_servers, *("produce", "--file", path, "--rate", "200", "--topic", topic_name), cwd=tmp_path
    )
    settings = settings_for(broker.bootstrap_servers, topic_name)
    try:
        found = tail(settings, topic_name, stop=asyncio.Event(), from_beginning=True, idle_ns=20_000_000_000)
        await anext(found)
        await found.aclose()
        process.send_signal(number)
        _out, err = await asyncio.to_thread(process.communicate, None, 20)
    finally:
        _end(process)
    assert process.returncode == 130, err
    sent = int(err.split(b" ticks sent")[0].splitlines()[-1].replace(b",", b""))
    assert 0 < sent == len(await everything(settings, topic_name)) < 20_000


async def test_a_synthetic_market_with_a_start_is_the_same_every_time(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    made = (
        "produce",
        "--synthetic",
        "--start",
        "2026-01-05T14:30:00Z",
        "--count",
        "5000",
        "--symbols",
        "200",
        "--seed",
        "5",
    )
    done = workers(broker.bootstrap_servers, *made, "--topic", topic_name, cwd=tmp_path)
    assert done.code == 0, done.err
    records = await everything(settings_for(broker.bootstrap_servers, topic_name), topic_name)
    assert lines_of(records) == sorted(made_up(5_000))


async def test_a_slow_stream_is_sent_tick_by_tick_at_once(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name)
    process = start(broker.bootstrap_servers, "produce", "--file", "-", "--topic", topic_name, cwd=tmp_path, stdin=-1)
    assert process.stdin is not None
    stop = asyncio.Event()
    try:
        found = tail(settings, topic_name, stop=stop, from_beginning=True, idle_ns=20_000_000_000)
        for number in range(4):
            process.stdin.write(b'{"symbol":"AAPL","n":%d}\n' % number)
            process.stdin.flush()
            sent_s = time.monotonic()
            [record] = await anext(found)
            assert record.value == b'{"symbol":"AAPL","n":%d}' % number
            assert number == 0 or time.monotonic() - sent_s < 1.0  # the first also waits for the topic
        await found.aclose()
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        _end(process)


async def test_an_interrupted_file_delivers_what_was_read_and_says_130(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    process = start(
        broker.bootstrap_servers, "produce", "--file", "-", "--topic", topic_name, cwd=tmp_path, stdin=reading
    )
    os.close(reading)
    settings = settings_for(broker.bootstrap_servers, topic_name)
    try:
        os.write(writing, b'{"symbol":"AAPL","n":1}\n{"symbol":"AAPL","n":2}\n')
        found = tail(settings, topic_name, stop=asyncio.Event(), from_beginning=True, idle_ns=20_000_000_000)
        await anext(found)
        await found.aclose()
        process.send_signal(signal.SIGINT)
        _out, err = await asyncio.to_thread(process.communicate, None, 20)
    finally:
        os.close(writing)
        _end(process)
    assert process.returncode == 130, err
    assert b"2 ticks sent" in err
    assert len(await everything(settings, topic_name)) == 2


async def test_an_endless_market_that_is_stopped_has_done_its_job(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    process = start(
        broker.bootstrap_servers, *("produce", "--synthetic", "--rate", "500", "--topic", topic_name), cwd=tmp_path
    )
    settings = settings_for(broker.bootstrap_servers, topic_name)
    try:
        found = tail(settings, topic_name, stop=asyncio.Event(), from_beginning=True, idle_ns=20_000_000_000)
        await anext(found)
        await found.aclose()
        process.send_signal(signal.SIGTERM)
        _out, err = await asyncio.to_thread(process.communicate, None, 20)
    finally:
        _end(process)
    assert process.returncode == 0, err
    sent = int(err.split(b" ticks sent")[0].splitlines()[-1].replace(b",", b""))
    assert len(await everything(settings, topic_name)) == sent > 0


async def test_a_cluster_that_refuses_a_batch_ends_it_with_the_number_delivered(
    broker: Broker, topic_name: str
) -> None:
    settings = settings_for(broker.bootstrap_servers, topic_name, **{"kafka.compression.type": "none"})
    async with admin_client(settings) as admin:
        from aiokafka.admin import NewTopic

        await admin.create_topics([NewTopic(topic_name, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    small, large = b'{"symbol":"A"}', b'{"symbol":"A","x":"%s"}' % (b"x" * 50_000)
    source = GeneratedSource(iter([(b"A", small), (b"A", large)]))
    with pytest.raises(BrokerError, match=r"max\.message\.bytes"):
        async with asyncio.timeout(30):
            await produce(settings, source, topic=topic_name, stop=asyncio.Event())


@pytest.mark.slow
async def test_an_outage_is_waited_out_said_once_and_nothing_is_lost_or_doubled(topic_name: str) -> None:
    notices: list[str] = []
    with find_broker(way="jvm") as own:
        settings = settings_for(own.bootstrap_servers, topic_name)
        market = synthetic_ticks(Market(symbols=50), arrivals(START_NS, 1_000))
        seen = 0

        def progress(added: int) -> None:
            nonlocal seen
            seen = added

        def away_until_noticed() -> None:
            own.kill()
            limit_s = time.monotonic() + 60
            while not notices and time.monotonic() < limit_s:
                time.sleep(0.05)
            own.start()

        outage = threading.Timer(2.0, away_until_noticed)
        outage.start()
        try:
            from workers.apps.produce.pacing import paced
            from workers.settings.lane import tick_format

            stop = asyncio.Event()
            source = paced(GeneratedSource(market, count=20_000), tick_format(settings.tick), stop, rate=2_000)
            async with asyncio.timeout(80):
                result = await produce(
                    settings, source, topic=topic_name, stop=stop, on_progress=progress, on_notice=notices.append
                )
        finally:
            await asyncio.to_thread(outage.join)
        assert seen == result.added == result.delivered == 20_000
        assert len(await everything(settings, topic_name)) == 20_000
    assert len(notices) == 2
    assert "has not answered" in notices[0]
    assert "answers again" in notices[1]


@pytest.mark.slow
async def test_a_stop_during_an_outage_ends_within_bounds_and_says_what_is_unconfirmed(topic_name: str) -> None:
    with find_broker(way="jvm") as own:
        settings = settings_for(own.bootstrap_servers, topic_name)
        stop = asyncio.Event()
        source = GeneratedSource(synthetic_ticks(Market(), arrivals(START_NS, 1_000)))
        added = 0

        def progress(number: int) -> None:
            nonlocal added
            added = number

        sending = asyncio.create_task(produce(settings, source, topic=topic_name, stop=stop, on_progress=progress))
        async with asyncio.timeout(60):
            while not added:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(own.pause)
            seen = -1
            while seen != added:  # until it holds as much as it may
                seen = added
                await asyncio.sleep(0.5)
        stop.set()
        try:
            async with asyncio.timeout(25):
                result = await sending
        finally:
            await asyncio.to_thread(own.resume)
    assert result.interrupted
    assert 0 < result.undelivered < 200_000  # bounded, though the source has no end


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(timeout=10)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def test_rejected_kinds_for_demos_can_be_asked_for(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    made = (
        "produce",
        "--synthetic",
        "--count",
        "2000",
        "--rate",
        "0",
        "--bad-fraction",
        "0.5",
        "--late-fraction",
        "0.1",
    )
    done = workers(broker.bootstrap_servers, *made, "--topic", topic_name, cwd=tmp_path)
    assert done.code == 0, done.err
    listed = workers(
        broker.bootstrap_servers,
        *("tail", "frames", "--json", "--from-beginning", "--max-messages", "2000"),
        *("--set", f"topics.frames={topic_name}"),
        cwd=tmp_path,
    )
    assert listed.code == 0, listed.err
    assert any(json.loads(line).get("size") == -10 for line in listed.lines if line.startswith("{"))
