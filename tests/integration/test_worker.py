"""The whole path on the real broker: what comes out is the oracle's, whatever goes in."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from structlog.testing import capture_logs

from tests.integration.apps import App, committed_through, send, wait_until
from tests.support import oracle
from tests.support.raw_batches import packed, with_header_names
from tests.support.verify import read_headers, read_topic, verify
from workers.apps.broker import Broker
from workers.backpressure.lag_reporter import GroupReporter
from workers.core.records import RawRecord
from workers.settings import Settings
from workers.telemetry.metrics import Metrics

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

SHARED = Path(__file__).parents[3] / "shared" / "data"
NOW_MS = 1_700_000_000_000
SECOND_NS = 10**9
CONFIG = oracle.Config(size_ns=5 * SECOND_NS, lag_ns=2 * SECOND_NS, allowed_lateness_ns=SECOND_NS)


def market(count: int, *, symbols: int = 50, seed: int = 1) -> list[tuple[bytes | None, bytes | None, int | None]]:
    """Ticks of a small market, out of order, some late; 2 ms apart."""
    rng = random.Random(seed)
    records: list[tuple[bytes | None, bytes | None, int | None]] = []
    for number in range(count):
        symbol = f"S{rng.randrange(symbols)}"
        ts = NOW_MS + 2 * number - int(rng.expovariate(1 / 800))
        tick = {"symbol": symbol, "ts": ts, "price": round(rng.uniform(1, 100), 2), "size": rng.randrange(1, 9)}
        records.append((symbol.encode(), orjson.dumps(tick), None))
    return records


def tick(symbol: str = "AAPL", **changed: object) -> bytes:
    return json.dumps({"symbol": symbol, "ts": NOW_MS, "price": 1.5, "size": 2, **changed}).encode()


BAD_RECORDS: list[tuple[str, bytes | None, bytes | None]] = [
    ("not JSON", b"AAPL", b"hello"),
    ("truncated JSON", b"AAPL", tick()[:-5]),
    ("an array", b"AAPL", b"[1, 2]"),
    ("a number", b"AAPL", b"42"),
    ("invalid UTF-8", b"AAPL", b'{"symbol": "\xff\xfe"}'),
    ("no price", b"AAPL", b'{"symbol": "AAPL", "ts": 1, "size": 1}'),
    ("price is a word", b"AAPL", tick(price="much")),
    ("price is null", b"AAPL", tick(price=None)),
    ("price is NaN", b"AAPL", b'{"symbol": "AAPL", "ts": 1, "price": NaN, "size": 1}'),
    ("price is infinite", b"AAPL", tick(price="1e999")),
    ("ts is a float", b"AAPL", tick(ts=1.5)),
    ("ts is a date without offset", b"AAPL", tick(ts="2026-01-01T00:00:00")),
    ("negative size", b"AAPL", tick(size=-1)),
    ("no key", None, tick()),
    ("another key", b"MSFT", tick("AAPL")),
    ("tombstone", b"AAPL", None),
    ("a megabyte of rubbish", b"AAPL", b"x" * 1_048_000),
    ("a megabyte in a string", b"AAPL", b'{"symbol": "AAPL", "note": "' + b"x" * 1_047_000 + b'"}'),
    ("far future", b"AAPL", tick(ts=4_000_000_000_000)),
    ("beyond 64 bits", b"AAPL", tick(ts=10**17)),
    ("deeply nested", b"AAPL", b"[" * 100_000),
    ("empty value", b"AAPL", b""),
]


async def run_to_the_end(app: App, records: list[tuple[bytes | None, bytes | None, int | None]], log: Path) -> None:
    assert app.run_command("topics", "create").returncode == 0
    await send(app, records)
    with app.worker(log) as worker:
        await committed_through(app, process=worker)


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_frames_late_and_dead_letters_are_those_of_the_oracle(
    broker: Broker, topic_name: str, tmp_path: Path, guarantee: str
) -> None:
    app = App(
        broker.bootstrap_servers,
        topic_name,
        settings={"processing_guarantee": guarantee, "window.allowed_lateness": "1s"},
    )
    await run_to_the_end(app, market(20_000), tmp_path / "worker.log")
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings
    assert findings.frames > 300
    assert findings.late > 50


async def test_a_worker_never_dies_of_a_record_and_says_what_was_wrong_with_it(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(broker.bootstrap_servers, topic_name, settings={"window.allowed_lateness": "1s"})
    good = market(500)
    records = [*good[:250], *((key, value, None) for _, key, value in BAD_RECORDS), *good[250:]]
    await run_to_the_end(app, records, tmp_path / "worker.log")
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings
    assert findings.rejected == len(BAD_RECORDS)


DEEP = b"[" * 1_000 + b"]" * 1_000
UNREADABLE_NAME = {"name-that-is-one": b"\xff\xfe-that-is-\xc3\x28one"}


def with_member(name: str, value: bytes) -> bytes:
    """A tick with one member more, or another one."""
    members = {each: orjson.dumps(found) for each, found in orjson.loads(tick()).items()}
    members[name] = value
    return b"{" + b",".join(b'"%s":%s' % (each.encode(), found) for each, found in members.items()) + b"}"


POISON: list[tuple[str, bytes | None]] = [
    ("malformed_json", DEEP),
    ("malformed_json", b'{"a":' * 1_000 + b"1" + b"}" * 1_000),
    *(("malformed_json", with_member(name, DEEP)) for name in ("price", "size", "ts", "symbol", "unknown", "id")),
    ("malformed_json", b"[" * 1_023 + b"9" * 20 + b"]" * 1_023),
    ("malformed_json", with_member("id", b"[" * 255 + b"]" * 255)),
    ("wrong_type", with_member("price", b"[" * 40 + b"]" * 40)),
    ("negative_size", with_member("size", b'"-1.' + b"0" * 100_000 + b'"')),
    ("timestamp_out_of_range", with_member("ts", b"9" * 300)),
    ("malformed_json", b"rubbish, with a header whose name is not UTF-8"),
]


async def send_poison(app: App) -> None:
    """40 ticks and the 14 records between them, all on partition 0; every batch has a header that clients choke on."""
    ticks = [tick(ts=NOW_MS + 500 * number) for number in range(40)]
    values = [*ticks[:20], *(value for _, value in POISON), *ticks[20:]]
    hostile = [(next(iter(UNREADABLE_NAME)), b"1"), ("without-a-value", None)]
    log = [
        RawRecord(number, NOW_MS + 60_000, b"AAPL", value, tuple(hostile) if number in (3, 33, 53) else ())
        for number, value in enumerate(values)
    ]
    client = AIOKafkaClient(bootstrap_servers=app.bootstrap)
    await client.bootstrap()
    try:
        await client.set_topics([app.topics.ticks])
        leader = client.cluster.leader_for_partition(TopicPartition(app.topics.ticks, 0))
        for begin in range(0, len(log), 9):
            some = [replace(each, offset=each.offset - begin) for each in log[begin : begin + 9]]
            data = with_header_names(packed(some), UNREADABLE_NAME)
            request = ProduceRequest(None, -1, 10_000, [(app.topics.ticks, [(0, data)])])
            response = await client.send(leader, request)
            ((_, ((_, error, *_),)),) = response.topics
            assert error == 0
    finally:
        await client.close()


@pytest.mark.parametrize("way", ["native", "plain", "pipeline", "corrections"])
async def test_records_that_programs_choke_on_take_out_nothing_but_themselves(
    broker: Broker, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("WORKERS_NATIVE", "0" if way == "plain" else "1")
    config = tmp_path / "workers.toml"
    config.write_text(
        {
            "pipeline": '[[pipeline]]\noperator = "deduplicate"\nfields = ["ts"]\nttl = "1h"\n',
            "corrections": '[corrections]\nfield = "kind"\ncancel = ["X"]\ncorrect = ["C"]\nid = "id"\n',
        }.get(way, "")
    )
    monkeypatch.setenv("WORKERS_CONFIG", str(config))
    payload = {"corrections": "items", "plain": "both"}.get(way, "ohlcv")
    app = App(broker.bootstrap_servers, topic_name, partitions=1, settings={"window.payload": payload})
    assert app.run_command("topics", "create").returncode == 0
    await send_poison(app)
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    letters = (await read_topic(app.bootstrap, app.topics.dead_letters))[0]
    headers = (await read_headers(app.bootstrap, app.topics.dead_letters))[0]
    reasons = [(each["workers.reason"] or b"").decode() for each in headers]
    assert [(reason, letter.value) for reason, letter in zip(reasons, letters, strict=True)] == POISON
    assert headers[-1]["\\xff\\xfe-that-is-\\xc3(one"] == b"1"
    frames = [orjson.loads(frame.value or b"") for frame in (await read_topic(app.bootstrap, app.topics.frames))[0]]
    counted = [frame["count"] for frame in frames if frame["status"] != "provisional"]
    assert counted == [10, 10, 10]
    assert "Traceback" not in worker.output()
    if way != "plain":
        return
    # Other readers of the log read it, too.
    replayed = app.run_command("replay", "--from", str(NOW_MS - 60_000), "--to", str(NOW_MS + 60_000))
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    explained = app.run_command("explain", "AAPL", str(NOW_MS))
    assert explained.returncode == 0, explained.stdout + explained.stderr


async def test_late_and_dead_letters_hold_the_original_and_explain(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(broker.bootstrap_servers, topic_name, partitions=1)
    late = tick(ts=NOW_MS - 60_000)
    await run_to_the_end(
        app, [(b"AAPL", tick(), None), (b"AAPL", late, None), (b"AAPL", b"rubbish", None)], tmp_path / "worker.log"
    )
    [entry] = [orjson.loads(each.value or b"") for each in (await read_topic(app.bootstrap, app.topics.late))[0]]
    assert entry["tick"] == orjson.loads(late)
    assert (entry["key"], entry["offset"], entry["reason"], entry["late_by_ns"]) == ("AAPL", 1, "watermark", 58 * 10**9)
    shown = app.run_command("tail", "dead-letters", "--from-beginning", "--exit-when-idle", "2", "--json")
    assert "malformed_json" in shown.stdout
    assert "rubbish" in shown.stdout


@pytest.mark.parametrize("name", ["bybit-2021-04-17.ndjson", "coinbase-2021-04-17.ndjson"])
async def test_real_trades_go_through_produce_run_and_tail(
    broker: Broker, topic_name: str, tmp_path: Path, name: str
) -> None:
    """Symbols lag one another by up to 107 s, which one clock per partition would drop."""
    trades = SHARED / name
    if not trades.exists():
        pytest.skip(f"no captured trades at {trades}")
    app = App(broker.bootstrap_servers, topic_name, partitions=2)
    produced = app.run_command("produce", "--file", str(trades))
    assert produced.returncode == 0, produced.stderr
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    tailed = app.run_command("tail", "frames", "--from-beginning", "--exit-when-idle", "2", "--json")
    config = oracle.Config(size_ns=5 * SECOND_NS, lag_ns=2 * SECOND_NS)
    expected = oracle.run_topic(config, await read_topic(app.bootstrap, app.topics.ticks))
    found: dict[str, list[bytes]] = {}
    for line in tailed.stdout.splitlines():
        frame = orjson.loads(line)
        if frame["status"] != "provisional":
            found.setdefault(frame["key"], []).append(line.encode())
    assert found == expected.wire()
    assert not expected.late
    findings = await verify(app.bootstrap, app.topics, config)
    assert not findings, findings


@pytest.mark.parametrize("batch_size", [1, 5_000])
async def test_batch_size_changes_no_byte(broker: Broker, topic_name: str, tmp_path: Path, batch_size: int) -> None:
    settings = {"window.allowed_lateness": "1s", "lane.batch_size": batch_size, "window.payload": "both"}
    app = App(broker.bootstrap_servers, topic_name, settings=settings)
    await run_to_the_end(app, market(3_000), tmp_path / "worker.log")
    config = oracle.Config(CONFIG.size_ns, CONFIG.lag_ns, CONFIG.allowed_lateness_ns, payload="both")
    findings = await verify(app.bootstrap, app.topics, config)
    assert not findings, findings


async def test_two_workers_give_the_frames_of_one(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app = App(broker.bootstrap_servers, topic_name, settings={"window.allowed_lateness": "1s"})
    assert app.run_command("topics", "create").returncode == 0
    records = market(12_000)
    with app.worker(tmp_path / "first.log") as first, app.worker(tmp_path / "second.log") as second:
        for worker in (first, second):
            await wait_until(lambda worker=worker: "partition ready" in worker.output(), "a worker has partitions")
        for begin in range(0, len(records), 3_000):
            await send(app, records[begin : begin + 3_000])
        await committed_through(app, process=first)
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings


@pytest.mark.parametrize("native", ["0", "1"])
async def test_a_topic_written_in_transactions_is_read_to_its_very_end(
    broker: Broker, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: str
) -> None:
    monkeypatch.setenv("WORKERS_NATIVE", native)
    app = App(broker.bootstrap_servers, topic_name, settings={"window.allowed_lateness": "1s"})
    assert app.run_command("topics", "create").returncode == 0
    records = market(4_000)
    with app.worker(tmp_path / "worker.log") as worker:
        for number in range(2):
            await send(app, records[number * 2_000 : number * 2_000 + 2_000], transactional_id=f"{topic_name}-{number}")
            await committed_through(app, process=worker)  # the transaction's end included
    with app.worker(tmp_path / "again.log") as worker:
        await wait_until(lambda: worker.output().count("partition ready") == app.partitions, "it goes on there")
        await committed_through(app, process=worker)
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings


async def test_partitions_that_were_processed_under_different_settings_are_told(
    broker: Broker, topic_name: str
) -> None:
    app = App(broker.bootstrap_servers, topic_name)
    assert app.run_command("topics", "create").returncode == 0
    consumer = AIOKafkaConsumer(bootstrap_servers=app.bootstrap, group_id=app.name, enable_auto_commit=False)
    await consumer.start()
    try:
        tps = [TopicPartition(app.topics.ticks, number) for number in range(app.partitions)]
        consumer.assign(tps)
        await consumer.commit({tp: (0, "one" if tp.partition else "another") for tp in tps})  # as workers note it
    finally:
        await consumer.stop()
    settings = Settings.model_validate(
        {"bootstrap_servers": app.bootstrap, "application_id": app.name, "topics": {"ticks": app.topics.ticks}}
    )
    reporter = GroupReporter(settings, Metrics())
    with capture_logs() as said:
        reporter.owns({0})
        await wait_until(lambda: any("different settings" in each["event"] for each in said), "the reporter's word")
        await reporter.close()


async def test_a_full_lane_pauses_its_partition_and_loses_nothing(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    settings = {"window.allowed_lateness": "1s", "lane.capacity": 40, "lane.batch_size": 7}
    app = App(broker.bootstrap_servers, topic_name, settings=settings)
    await run_to_the_end(app, market(3_000), tmp_path / "worker.log")
    findings = await verify(app.bootstrap, app.topics, CONFIG)
    assert not findings, findings
