"""The store writer on a real broker and real databases: the table equals the topic, whatever is killed or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson
import psutil
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from tests.integration.apps import App, Process, wait_until
from tests.support.fixtures_postgres import PostgresServer
from tests.support.verify import end_offsets, read_topic
from workers.apps.broker import Broker
from workers.core.partitioning import partition_for

pytestmark = pytest.mark.broker

PARTITIONS = 3
COLUMNS = ("key", "start_ms", "rev", "status", "count", "close", "origin_offset")
Row = tuple[object, ...]


@dataclass(frozen=True)
class Database:
    """Where a test's store keeps its frames: flags for the command, and queries past the program."""

    flags: tuple[str, ...]
    query: Callable[[str], list[Row]]

    def count(self) -> int:
        """Rows; 0 before there is a table."""
        try:
            return int(str(self.query("SELECT count(*) FROM frames")[0][0]))
        except (sqlite3.OperationalError, psycopg.Error):
            return 0

    def frames(self) -> dict[tuple[object, object], Row]:
        rows = self.query(f"SELECT {', '.join(COLUMNS)} FROM frames")
        assert len({row[:2] for row in rows}) == len(rows)
        return {(row[0], row[1]): row[2:] for row in rows}

    def everything(self) -> list[list[str]]:
        """All that is stored, times of storing and offsets apart."""
        rejected = "SELECT origin_topic, origin_partition, origin_offset, reason, value FROM rejected_frames"
        return [sorted(map(repr, self.query(sql))) for sql in ("SELECT * FROM frames", rejected)]

    def offsets(self) -> dict[object, object]:
        return dict(self.query("SELECT partition, next_offset FROM store_offsets"))  # type: ignore[arg-type]


def in_sqlite(path: Path) -> Database:
    def query(sql: str) -> list[Row]:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    return Database(("--sqlite", str(path)), query)


def in_postgres(dsn: str) -> Database:
    def query(sql: str) -> list[Row]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            done = connection.execute(sql)
            return done.fetchall() if done.description else []

    return Database(("--postgres", dsn), query)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return in_sqlite(tmp_path / "frames.db")
    return in_postgres(request.getfixturevalue("postgres_dsn"))


@pytest.fixture
def app(broker: Broker, topic_name: str) -> App:
    """An application whose topics are there."""
    made = App(broker.bootstrap_servers, topic_name[-80:], PARTITIONS)
    created = made.run_command("topics", "create")
    assert created.returncode == 0, created.stderr
    return made


def frame(key: str, start_ms: int, rev: int, status: str, ticks: int, **more: object) -> bytes:
    """A frame as a worker writes it; its numbers follow from its name."""
    price = round(random.Random(f"{key} {start_ms} {rev} {status} {ticks}").uniform(1, 100), 2)
    bar = dict.fromkeys(("open", "high", "low", "close", "vwap"), price) | {"volume": ticks * 1.5}
    trigger = "watermark" if status != "provisional" else "partial"
    head = {"key": key, "start": start_ms, "end": start_ms + 5_000, "rev": rev, "status": status, "trigger": trigger}
    return orjson.dumps({**head, **bar, "count": ticks, "first_ts": start_ms, "last_ts": start_ms + 4_999, **more})


def a_market(seed: int, symbols: int, windows: int) -> Iterator[tuple[str, bytes]]:
    """Frames of some windows, with previews and revisions, in the order in which workers emit them."""
    noise = random.Random(seed)
    for number in range(windows):
        for symbol in range(symbols):
            key, start_ms, ticks = f"SYM{symbol}", number * 5_000, 0
            for rev in range(noise.choice([1, 1, 1, 2, 3])):
                for _ in range(noise.choice([0, 0, 1, 2])):
                    ticks += 1
                    yield key, frame(key, start_ms, rev, "provisional", ticks)
                ticks += 1
                yield key, frame(key, start_ms, rev, noise.choice(["closed", "final"]), ticks)


async def write(app: App, frames: Iterable[tuple[str, bytes]], *, commit: bool | None = None) -> None:
    """Write frames; in a transaction where ``commit`` says how that ends."""
    transaction = {} if commit is None else {"transactional_id": f"{app.name}-{random.random()}"}
    producer = AIOKafkaProducer(bootstrap_servers=app.bootstrap, linger_ms=5, **transaction)
    await producer.start()
    try:
        if commit is not None:
            await producer.begin_transaction()
        await asyncio.gather(*[await _send(producer, app, each) for each in frames])
        if commit is not None:
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    finally:
        await producer.stop()


async def _send(producer: AIOKafkaProducer, app: App, frame: tuple[str, bytes]) -> asyncio.Future[object]:
    key, value = frame
    partition = partition_for(key.encode(), PARTITIONS)
    sent: asyncio.Future[object] = await producer.send(app.topics.frames, value, key.encode(), partition=partition)
    return sent


@asynccontextmanager
async def a_market_that_goes_on(app: App, seed: int) -> AsyncIterator[None]:
    """Frames are written, some thousand a second, as long as this lasts."""
    producer = AIOKafkaProducer(bootstrap_servers=app.bootstrap, linger_ms=5)
    await producer.start()
    stop = asyncio.Event()

    async def go_on() -> None:
        frames = iter(a_market(seed, 40, 10_000))
        while not stop.is_set():
            for each in islice(frames, 100):
                await _send(producer, app, each)
            await asyncio.sleep(0.05)
        await producer.flush()

    going = asyncio.create_task(go_on())
    try:
        yield
    finally:
        stop.set()
        try:
            async with asyncio.timeout(30):
                await going
        finally:
            await producer.stop()


def store(app: App, database: Database, log: Path, **more: object) -> Process:
    argv = [sys.executable, "-m", "workers", "store", *database.flags, *app.flags(**more)]
    return Process(argv, log)


async def table_of(app: App) -> dict[tuple[object, object], Row]:
    """What the table must be: of each window in the topic the last frame by (rev, not provisional), of provisional
    ones that with most ticks; the first of several that are equal in that."""
    last: dict[tuple[object, object], tuple[tuple[int, bool, int], Row]] = {}
    for records in (await read_topic(app.bootstrap, app.topics.frames)).values():
        for record in records:
            try:
                found = orjson.loads(record.value or b"")
                window = (found["key"], found["start"])
            except (orjson.JSONDecodeError, TypeError, KeyError):
                continue
            provisional = found["status"] == "provisional"
            order = (found["rev"], not provisional, found["count"] if provisional else 0)
            if window not in last or order > last[window][0]:
                row = (found["rev"], found["status"], found["count"], found["close"], record.offset)
                last[window] = order, row
    return {window: row for window, (_, row) in last.items()}


async def stored_to_the_end(app: App, database: Database, limit_s: float = 60.0) -> None:
    """Wait until the database's offsets are behind the last record of each partition."""
    records = await read_topic(app.bootstrap, app.topics.frames)
    ends = {partition: found[-1].offset + 1 for partition, found in records.items() if found}

    def done() -> bool:
        try:
            offsets = database.offsets()
        except (sqlite3.OperationalError, psycopg.Error):
            return False
        return all(int(str(offsets.get(partition, 0))) >= end for partition, end in ends.items())

    await wait_until(done, f"offsets {ends} stored", limit_s)


async def feedback(app: App) -> list[tuple[bytes | None, dict[str, object] | None]]:
    """All that is on the feedback topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=app.bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer._client.add_topic(f"{app.name}-feedback")
        topic = TopicPartition(f"{app.name}-feedback", 0)
        consumer.assign([topic])
        end = (await consumer.end_offsets([topic]))[topic]
        found: list[tuple[bytes | None, dict[str, object] | None]] = []
        async with asyncio.timeout(20):
            while await consumer.position(topic) < end:
                record = await consumer.getone()
                found.append((record.key, None if record.value is None else orjson.loads(record.value)))
        return found
    finally:
        await consumer.stop()


async def test_the_table_is_the_last_word_of_the_topic(app: App, database: Database, tmp_path: Path) -> None:
    await write(app, a_market(1, 20, 20))
    await write(app, a_market(2, 20, 20), commit=False)
    await write(app, [("NEW", frame("NEW", 0, 0, "final", 7, mad=0.25)), ("BAD", b"{"), ("BAD", b"[]")], commit=True)
    process = store(app, database, tmp_path / "log")
    try:
        await stored_to_the_end(app, database)
        await write(app, a_market(3, 25, 22))
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    assert database.frames() == await table_of(app)
    assert [
        json.loads(str(extra)) if isinstance(extra, str) else extra
        for (extra,) in database.query("SELECT extra FROM frames WHERE key = 'NEW'")
    ] == [{"mad": 0.25}]
    rejected = database.query("SELECT reason, value FROM rejected_frames ORDER BY origin_offset")
    assert rejected == [("malformed_json", b"{"), ("not_a_frame", b"[]")]
    assert "rejected_frames" in process.output()


async def test_a_replay_changes_nothing(app: App, database: Database, tmp_path: Path) -> None:
    await write(app, [*a_market(4, 10, 30), ("BAD", b"no frame")])
    before = None
    for _ in range(2):
        process = store(app, database, tmp_path / "log")
        try:
            await wait_until(lambda: "store started" in process.output(), "the store to start")  # noqa: B023
            await stored_to_the_end(app, database)
            process.stop()
        finally:
            process.kill()
        assert before in (None, database.everything())
        before = database.everything()
        database.query("DELETE FROM store_offsets")
    assert database.frames() == await table_of(app)


async def test_kill_9_in_the_middle_loses_and_repeats_nothing(app: App, database: Database, tmp_path: Path) -> None:
    # As a static member a new process takes the killed one's place at once, instead of after the session's timeout.
    small = {"store.batch_size": 50, "store.flush_interval": "5ms", "kafka.group.instance.id": "only"}
    noise = random.Random(5)
    async with a_market_that_goes_on(app, 5):
        for kill in range(5):
            before = database.count()
            process = store(app, database, tmp_path / f"log{kill}", **small)
            try:
                await wait_until(lambda: database.count() > before, f"store {kill} to get on")  # noqa: B023
                await asyncio.sleep(noise.uniform(0, 0.3))
                assert process.exit_code is None, process.output()
            finally:
                process.kill()
    process = store(app, database, tmp_path / "log")
    try:
        # The last one may have stored all there is: a SIGTERM before the handlers are in place just kills.
        await wait_until(lambda: "store started" in process.output(), "the store to start")
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    assert database.frames() == await table_of(app)


@pytest.mark.slow
async def test_a_database_that_stops_is_waited_for_and_nothing_is_lost(
    app: App, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    database = in_postgres(own_postgres.dsn())
    limits = {"store.queue_capacity": 2_000, "store.batch_size": 500, "backpressure.min_dwell": "1s"}
    process = store(app, database, tmp_path / "log", **limits)
    try:
        await write(app, a_market(6, 10, 10))
        await stored_to_the_end(app, database)
        small_rss = psutil.Process(process.pid).memory_info().rss
        own_postgres.stop()
        await write(app, a_market(6, 100, 150))  # some twenty times what the queue holds
        await wait_until(lambda: "can't be used" in process.output(), "the outage noticed")
        await asyncio.sleep(4)
        assert process.exit_code is None
        grown = psutil.Process(process.pid).memory_info().rss - small_rss
        own_postgres.start()
        await stored_to_the_end(app, database)
        await asyncio.sleep(2.5)  # the level may relax
        process.stop()
    finally:
        process.kill()
    assert database.frames() == await table_of(app)
    assert grown < 60 * 1024 * 1024, f"{grown / 1e6:.0f} MB more than before the outage"
    assert process.output().count("can't be used") == 1, "an outage is one line, however often it is tried"
    assert process.output().count("is back") == 1
    said = await feedback(app)
    events = [event for _, event in said if event is not None]
    assert [event["level"] for event in events][-1] == "ok"
    assert "hard" in {event["level"] for event in events}
    assert all(0 <= int(str(event["queue_size"])) <= 2_000 for event in events)
    assert all(event["source"] == "store" and event["capacity"] == 2_000 for event in events)
    assert said[-1][1] is None, "a clean stop withdraws what was said"
    assert len({key for key, _ in said}) == 1


@pytest.mark.slow
async def test_a_database_that_neither_answers_nor_fails_is_said_to_be_silent(
    app: App, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    database = in_postgres(own_postgres.dsn())
    process = store(app, database, tmp_path / "log")
    try:
        await write(app, a_market(6, 10, 10))
        await stored_to_the_end(app, database)
        own_postgres.freeze()
        try:
            await write(app, a_market(6, 100, 20))
            await wait_until(lambda: "is unresponsive" in process.output(), "the silence noticed")
            assert process.exit_code is None
        finally:
            own_postgres.thaw()
        await wait_until(lambda: "is back" in process.output(), "its end noticed")
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    assert database.frames() == await table_of(app)
    assert process.output().count("is unresponsive") == 1


@pytest.mark.slow
async def test_a_store_that_slept_through_a_rebalance_harms_nothing(
    app: App, postgres_dsn: str, tmp_path: Path
) -> None:
    database = in_postgres(postgres_dsn)
    quick = {"store.batch_size": 100, "store.flush_interval": "5ms"}
    sleeper = store(app, database, tmp_path / "sleeper", **quick)
    other = None
    try:
        async with a_market_that_goes_on(app, 7):
            await wait_until(lambda: database.count() > 50, "the first store to get on")
            os.kill(sleeper.pid, signal.SIGSTOP)
            reached = database.count()
            other = store(app, database, tmp_path / "other", **quick)
            await wait_until(lambda: database.count() > reached + 1_000, "the second store to take over")
            os.kill(sleeper.pid, signal.SIGCONT)
            await asyncio.sleep(2)
        await stored_to_the_end(app, database)
        assert sleeper.exit_code is None
        sleeper.stop()
        other.stop()
    finally:
        for process in filter(None, (sleeper, other)):
            process.kill()
    assert database.frames() == await table_of(app)


async def test_two_stores_share_the_partitions(app: App, database: Database, tmp_path: Path) -> None:
    await write(app, a_market(8, 30, 20))
    both = [store(app, database, tmp_path / f"log{number}") for number in range(2)]
    try:
        await wait_until(lambda: all("partitions assigned" in each.output() for each in both), "both to join")
        await write(app, a_market(9, 35, 25))
        await stored_to_the_end(app, database)
        for process in both:
            process.stop()
    finally:
        for process in both:
            process.kill()
    assert database.frames() == await table_of(app)
    owners = Counter(row[0] for row in database.query("SELECT partition FROM store_offsets"))
    assert owners == Counter(range(PARTITIONS))


async def test_a_frame_that_postgres_refuses_is_put_aside_and_the_others_are_stored(
    app: App, postgres_dsn: str, tmp_path: Path
) -> None:
    database = in_postgres(postgres_dsn)
    unindexable = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9_000))
    await write(app, [*a_market(10, 10, 5), (unindexable, frame(unindexable, 0, 0, "final", 1)), *a_market(11, 12, 6)])
    process = store(app, database, tmp_path / "log")
    try:
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    expected = await table_of(app)
    del expected[unindexable, 0]
    assert database.frames() == expected
    ((reason, value),) = database.query("SELECT reason, value FROM rejected_frames")
    assert reason == "refused_by_database"
    assert value == frame(unindexable, 0, 0, "final", 1)


async def test_the_stores_group_shows_its_lag_to_kafka(app: App, tmp_path: Path) -> None:
    database = in_sqlite(tmp_path / "frames.db")
    await write(app, a_market(12, 10, 10))
    process = store(app, database, tmp_path / "log")
    try:
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    consumer = AIOKafkaConsumer(bootstrap_servers=app.bootstrap, group_id=f"{app.name}-store", enable_auto_commit=False)
    await consumer.start()
    try:
        for partition, end in (await end_offsets(app.bootstrap, app.topics.frames)).items():
            if end:
                assert await consumer.committed(TopicPartition(app.topics.frames, partition)) == end
    finally:
        await consumer.stop()


async def test_show_reads_back_what_is_stored(app: App, database: Database, tmp_path: Path) -> None:
    await write(app, [("AAPL", frame("AAPL", n * 5_000, 0, "final", n + 1, mad=n)) for n in range(5)])
    await write(app, [("MSFT", frame("MSFT", 0, 2, "provisional", 3)), ("MSFT", b"{")])
    process = store(app, database, tmp_path / "log")
    try:
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    table = app.run_command("store", "show", "--symbol", "MSFT", *database.flags)
    assert table.returncode == 0, table.stderr
    title, line = table.stdout.splitlines()
    assert title.split()[:3] == ["symbol", "start", "end"]
    assert line.split()[:3] == ["MSFT", "1970-01-01T00:00:00Z", "1970-01-01T00:00:05Z"]
    assert line.endswith("provisional rev=2")
    lines = app.run_command("store", "show", "--symbol", "AAPL", "-n", "2", "--json", *database.flags).stdout
    found = [json.loads(line) for line in lines.splitlines()]
    assert [(bar["start"], bar["count"], bar["mad"]) for bar in found] == [(15_000, 4, 3), (20_000, 5, 4)]
    aside = app.run_command("store", "show", "--rejected", *database.flags).stdout
    assert json.loads(aside)["reason"] == "malformed_json"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("next_offset = next_offset - 1", 1, "records were deleted before they were stored"),
        ("next_offset = next_offset + 1000", 2, "the topic was deleted and recreated"),
        ("topic_id = 'before'", 2, "that was deleted and made again since (its id was before, is "),
    ],
    ids=["deleted unread", "made again, shorter", "made again"],
)
async def test_a_topic_that_no_longer_fits_the_database_ends_the_store_with_what_to_do(
    app: App, tmp_path: Path, change: str, code: int, said: str
) -> None:
    database = in_sqlite(tmp_path / "frames.db")
    await write(app, a_market(13, 10, 10))
    process = store(app, database, tmp_path / "log")
    try:
        await stored_to_the_end(app, database)
        process.stop()
    finally:
        process.kill()
    ends = await end_offsets(app.bootstrap, app.topics.frames)
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        everything = {TopicPartition(app.topics.frames, number): RecordsToDelete(end) for number, end in ends.items()}
        await admin.delete_records(everything)
    finally:
        await admin.close()
    database.query(f"UPDATE store_offsets SET {change}")
    process = store(app, database, tmp_path / "log2")
    try:
        await wait_until(lambda: process.exit_code is not None, "the store to end")
        assert process.exit_code == code
        assert said in process.output()
    finally:
        process.kill()


async def test_a_store_without_its_database_waits_and_can_be_stopped(app: App, tmp_path: Path) -> None:
    nowhere = Database(("--postgres", "postgresql://nobody@127.0.0.1:1/nothing"), lambda sql: [])
    process = store(app, nowhere, tmp_path / "log")
    try:
        await wait_until(lambda: "can't be used; waiting" in process.output(), "the absence noticed")
        await asyncio.sleep(0.5)
        assert process.exit_code is None
        process.stop(15)
    finally:
        process.kill()
    assert "Traceback" not in process.output()
    assert process.output().count("waiting for it") == 1
