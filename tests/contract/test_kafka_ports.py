"""What a worker relies on in Kafka: the same tests over the one in memory and the real one.

A difference found here is a fault of `workers.kafka.memory`, or something that a new client or broker does otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.transaction_manager import PidAndEpoch

from tests.support.verify import read_topic
from workers.apps.broker import Broker
from workers.core.frames import OutRecord
from workers.core.partitioning import partition_for
from workers.errors import DataLossError, FencedError
from workers.kafka.cluster import Cluster
from workers.kafka.commit import PartitionSink
from workers.kafka.errors import PASSING, KafkaError, is_forgotten
from workers.kafka.memory import MemoryKafka
from workers.kafka.ports import Commit, CommitSink, Kafka, OversizedError
from workers.settings import Settings
from workers.testing import TestDriver
from workers.worker.worker import Worker

LIMIT_S = 40.0
PARTITIONS = 2
LARGEST_BYTES = 1_100_000
Pairs = list[tuple[bytes | None, bytes | None]]


def settings_for(name: str, bootstrap: str = "127.0.0.1:1", scope: str = "partition") -> Settings:
    return Settings.model_validate(
        {
            "application_id": name,
            "bootstrap_servers": bootstrap,
            "topics": {"ticks": f"{name}-ticks", "frames": f"{name}-frames", "partitions": PARTITIONS},
            "metrics": {"port": -1},
            "backpressure": {"enabled": False},
            "kafka": {"session.timeout.ms": 4_000, "heartbeat.interval.ms": 500},
            "commit_interval": "50ms",
            "commit_scope": scope,
        }
    )


class Place(Protocol):
    """A Kafka, and what a test does to it from outside."""

    settings: Settings
    kafka: Kafka

    async def append(self, partition: int, *records: tuple[bytes, bytes]) -> None: ...

    async def append_and_abort(self, partition: int) -> None:
        """Leave in the log what is no record."""

    async def frames(self) -> Pairs:
        """What readers of committed frames see."""

    def another(self) -> Kafka:
        """The same cluster, as another process has it."""


class InMemory:
    def __init__(self, scope: str) -> None:
        self.settings = settings_for("memory", scope=scope)
        self.kafka = MemoryKafka(
            self.settings.topics.ticks, PARTITIONS, max_record_bytes=LARGEST_BYTES, shared=scope == "process"
        )

    async def append(self, partition: int, *records: tuple[bytes, bytes]) -> None:
        for key, value in records:
            self.kafka.append(partition, key, value)

    async def append_and_abort(self, partition: int) -> None:
        self.kafka.append_marker(partition)

    async def frames(self) -> Pairs:
        return [(record.key, record.value) for record in self.kafka.frames]

    def another(self) -> Kafka:
        return self.kafka


class OnBroker:
    def __init__(self, bootstrap: str, name: str, scope: str) -> None:
        self.settings = settings_for(name, bootstrap, scope)
        self.kafka = Cluster(self.settings, lambda step, began_s: None)
        self._bootstrap = bootstrap

    def another(self) -> Kafka:
        return Cluster(self.settings, lambda step, began_s: None)

    async def append(self, partition: int, *records: tuple[bytes, bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap) as producer:
            for key, value in records:
                await producer.send(self.settings.topics.ticks, value, key, partition)

    async def append_and_abort(self, partition: int) -> None:
        topic = self.settings.topics.ticks
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap, transactional_id=f"{topic}-test") as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"aborted", b"A", partition)
            await producer.abort_transaction()

    async def frames(self) -> Pairs:
        found = await read_topic(self._bootstrap, self.settings.topics.frames)
        return [(record.key, record.value) for _, records in sorted(found.items()) for record in records]


IN_BOTH_SCOPES = pytest.mark.parametrize("scope", ["partition", "process"])


@pytest.fixture
def scope() -> str:
    """Whether each partition commits by itself; tests about commits ask for both."""
    return "partition"


@pytest.fixture(params=["memory", pytest.param("broker", marks=pytest.mark.broker)])
async def place(request: pytest.FixtureRequest, scope: str) -> Place:
    if request.param == "memory":
        return InMemory(scope)
    bootstrap = request.getfixturevalue("broker").bootstrap_servers
    made = OnBroker(bootstrap, request.getfixturevalue("topic_name"), scope)
    await made.kafka.prepare()
    for partition in range(PARTITIONS):
        await settled(made.kafka, partition)
    return made


async def settled(kafka: Kafka, partition: int) -> None:
    """Topics that are new answer with passing errors for a moment, which workers wait out."""
    limit_s = time.monotonic() + LIMIT_S
    while True:
        try:
            async with opened(kafka, partition):
                await kafka.read_changelog(partition, lambda records: None)
                return
        except PASSING:
            assert time.monotonic() < limit_s
            await asyncio.sleep(0.2)


async def until(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.01)


class Member:
    """A member of the group, and what it was told."""

    def __init__(self, kafka: Kafka) -> None:
        self.told: list[tuple[str, set[int]]] = []
        self.owned: set[int] = set()
        self.owned_while_revoked = False
        self.consumer = kafka.consumer(on_revoked=self._revoked, on_assigned=self._assigned, batches=False)

    async def _revoked(self, partitions: set[int]) -> None:
        self.owned = set()
        self.owned_while_revoked |= any(map(self.consumer.owns, range(PARTITIONS)))
        self.told.append(("revoked", partitions))

    async def _assigned(self, partitions: set[int]) -> None:
        self.owned = partitions
        self.told.append(("assigned", partitions))

    async def read(self, number: int) -> list[tuple[int, bytes | None]]:
        """So many records of all partitions, and not one more for a moment."""
        found: list[tuple[int, bytes | None]] = []
        limit_s, quiet = time.monotonic() + LIMIT_S, 0
        while quiet < 3:
            assert time.monotonic() < limit_s, f"{len(found)} of {number} within {LIMIT_S} s"
            polled = await self.consumer.poll(range(PARTITIONS), timeout_ms=50, max_records=100)
            for fetched in polled.values():
                found += [(each.offset, each.value) for each in fetched.items]  # type: ignore[union-attr]
            quiet = 0 if polled or len(found) < number else quiet + 1
        return found


@asynccontextmanager
async def member(kafka: Kafka, owning: Sequence[int] = range(PARTITIONS)) -> AsyncIterator[Member]:
    """A member of the group once it owns what is given."""
    made = Member(kafka)
    await made.consumer.start()
    try:
        await until(lambda: made.owned == set(owning), f"{owning} assigned")
        yield made
    finally:
        await made.consumer.stop()


@asynccontextmanager
async def opened(kafka: Kafka, partition: int = 0) -> AsyncIterator[CommitSink]:
    sink = kafka.sink(partition)
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


def work(offset: int, *frames: bytes, changes: Sequence[tuple[bytes, bytes | None]] = ()) -> Commit:
    return Commit(
        offset,
        frames=[OutRecord(b"A", frame, 1_000) for frame in frames],
        changes=[OutRecord(key, value) for key, value in changes],
        settings="digest",
    )


@pytest.mark.timeout(180)
class TestKafka:
    """The contract of `workers.kafka.ports`."""

    async def test_a_member_alone_is_assigned_everything_and_reads_from_where_it_is_told(self, place: Place) -> None:
        await place.append(0, (b"A", b"0"), (b"A", b"1"), (b"A", b"2"))
        async with member(place.kafka) as reader:
            assert reader.told[-1] == ("assigned", {0, 1})
            assert all(map(reader.consumer.owns, range(PARTITIONS)))
            assert not reader.consumer.owns(7)
            assert await reader.read(0) == [], "nothing is handed out before reading is begun"
            reader.consumer.start_reading(0, 1)
            assert await reader.read(2) == [(1, b"1"), (2, b"2")]
            reader.consumer.start_reading(0, 0)
            assert await reader.read(3) == [(0, b"0"), (1, b"1"), (2, b"2")]
            reader.consumer.check()
            await reader.consumer.stay()

    async def test_a_look_shows_the_topics_as_they_were_found_at_the_start(self, place: Place) -> None:
        async with member(place.kafka) as reader:
            seen = await reader.consumer.look({1})
        known = place.kafka.topics.identities
        assert dict(seen.identities) == dict(known)
        assert all(topic.id for topic in known.values())
        assert seen.input_partitions == place.kafka.topics.input_partitions == PARTITIONS
        assert seen.changelog_begins == {1: 0}

    async def test_what_is_paused_or_no_longer_read_is_not_handed_out(self, place: Place) -> None:
        async with member(place.kafka) as reader:
            for partition in range(PARTITIONS):
                reader.consumer.start_reading(partition, 0)
            reader.consumer.pause(0)
            reader.consumer.stop_reading(1)
            await place.append(0, (b"A", b"0"))
            await place.append(1, (b"B", b"1"))
            assert await reader.read(0) == []
            reader.consumer.resume(0)
            assert await reader.read(1) == [(0, b"0")]
            reader.consumer.start_reading(1, 0)
            assert await reader.read(1) == [(0, b"1")]

    async def test_starting_to_read_ends_a_pause(self, place: Place) -> None:
        await place.append(0, (b"A", b"0"))
        async with member(place.kafka) as reader:
            reader.consumer.start_reading(0, 0)
            reader.consumer.pause(0)
            reader.consumer.start_reading(0, 0)
            assert await reader.read(1) == [(0, b"0")]

    async def test_the_end_and_the_position_are_known_where_something_is_read(self, place: Place) -> None:
        await place.append(0, (b"A", b"0"), (b"A", b"1"))
        async with member(place.kafka) as reader:
            assert await reader.consumer.log_bounds(0) == (0, 2)
            assert not await reader.consumer.at_end(0)
            assert await reader.consumer.position(0) is None
            reader.consumer.start_reading(0, 0)
            await reader.read(2)
            assert await reader.consumer.at_end(0)
            assert await reader.consumer.position(0) == 2
            reader.consumer.stop_reading(0)
            assert not await reader.consumer.at_end(0)
            assert await reader.consumer.position(0) is None

    async def test_the_position_passes_what_is_no_record(self, place: Place) -> None:
        await place.append(0, (b"A", b"0"))
        await place.append_and_abort(0)
        async with member(place.kafka) as reader:
            reader.consumer.start_reading(0, 0)
            assert await reader.read(1) == [(0, b"0")]
            limit_s = time.monotonic() + LIMIT_S
            # The end is what is committed: it may come to the marker a moment after the abort.
            while (end := (await reader.consumer.log_bounds(0))[1]) < 2 or await reader.consumer.position(0) != end:
                assert time.monotonic() < limit_s
                await reader.read(0)

    async def test_a_position_that_the_log_does_not_have_is_lost_data(self, place: Place) -> None:
        await place.append(0, (b"A", b"0"))
        async with member(place.kafka) as reader:
            reader.consumer.start_reading(0, 1_000)
            with pytest.raises(DataLossError):
                await reader.read(1)

    @pytest.mark.parametrize("native", ["1", "0"])
    async def test_a_changelog_is_read_the_same_with_native_code_and_without(
        self, place: Place, native: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORKERS_NATIVE", native)
        async with opened(place.kafka) as sink:
            for first in range(0, 300, 100):
                numbers = range(first, first + 100)
                changes = [(b"k%d" % (number % 150), b"%d" % number if number % 7 else None) for number in numbers]
                await sink.commit(work(first + 1, changes=changes))
        held = {}
        for number in range(300):
            held[b"k%d" % (number % 150)] = b"%d" % number if number % 7 else None
        async with opened(place.kafka):
            found = await place.kafka.read_changelog(0, lambda records: None)
        assert found == {key: value for key, value in held.items() if value is not None}

    @IN_BOTH_SCOPES
    async def test_a_commit_makes_results_state_and_offset_visible(self, place: Place) -> None:
        async with member(place.kafka) as reader:
            assert await reader.consumer.committed(0) is None
            async with opened(place.kafka) as sink:
                await sink.commit(work(5, b"one", b"two", changes=[(b"a", b"1"), (b"b", b"1")]))
                await sink.commit(work(8, b"three", changes=[(b"a", b"2"), (b"b", None)]))
            async with opened(place.kafka):
                # Not before: a broker answers a commit a moment before everybody can see all of it.
                assert await reader.consumer.committed(0) == 8
                assert await reader.consumer.committed(1) is None
                assert await place.frames() == [(b"A", b"one"), (b"A", b"two"), (b"A", b"three")]
                read: list[int] = []
                assert await place.kafka.read_changelog(0, read.append) == {b"a": b"2"}
                assert sum(read) > 0
                assert await place.kafka.read_changelog(1, read.append) == {}

    @IN_BOTH_SCOPES
    async def test_the_next_owner_fences_the_one_before_and_nothing_of_its_commit_is_visible(
        self, place: Place
    ) -> None:
        async with member(place.kafka), opened(place.kafka) as before, opened(place.kafka, 1) as other:
            await before.commit(work(1, b"mine", changes=[(b"a", b"1")]))
            async with opened(place.kafka) as after:
                with pytest.raises(FencedError):
                    await before.commit(work(2, b"a zombie's", changes=[(b"a", b"2")]))
                await after.commit(work(2, b"theirs"))
                await other.commit(work(1, b"of another partition"))
                assert await place.kafka.read_changelog(0, lambda records: None) == {b"a": b"1"}
            async with opened(place.kafka), opened(place.kafka, 1):
                pass
        values = [value for _, value in await place.frames()]
        assert sorted(value or b"" for value in values) == [b"mine", b"of another partition", b"theirs"]

    @IN_BOTH_SCOPES
    async def test_a_sink_that_is_closed_commits_nothing(self, place: Place) -> None:
        async with member(place.kafka), opened(place.kafka) as sink:
            await sink.close()
            with pytest.raises(FencedError):
                await sink.commit(work(1, b"late"))
        assert await place.frames() == []

    @pytest.mark.parametrize("scope", ["process"])
    async def test_what_the_group_has_given_away_can_not_be_committed_any_more(self, place: Place) -> None:
        """Though nobody has opened it since."""
        kafka = place.another()
        await kafka.prepare()
        async with member(place.kafka) as first, opened(place.kafka) as zero, opened(place.kafka, 1) as one:
            await asyncio.gather(zero.commit(work(1, b"a0")), one.commit(work(1, b"a1")))
            second = Member(kafka)
            await second.consumer.start()
            try:
                await until(lambda: len(first.owned) == len(second.owned) == 1, "one partition each")
                (gone,) = second.owned
                sinks, outcome = (zero, one), [None, None]
                for number, sink in enumerate(sinks):
                    with contextlib.suppress(FencedError):
                        await sink.commit(work(2, b"b%d" % number))
                        outcome[number] = b"b%d" % number
                assert outcome[gone] is None
                assert outcome[1 - gone] is not None, "what stayed goes on"
                async with opened(kafka, gone) as theirs:
                    await theirs.commit(work(2, b"c%d" % gone))
            finally:
                await second.consumer.stop()
        expected = {b"a0", b"a1", b"b%d" % (1 - gone), b"c%d" % gone}
        assert {value for _, value in await place.frames()} == expected

    @IN_BOTH_SCOPES
    async def test_a_record_that_is_too_large_fails_its_own_partition_alone(self, place: Place) -> None:
        large = random.Random(5).randbytes(place.kafka.topics.out.frames.max_record_bytes + 100_000)
        async with member(place.kafka) as reader, opened(place.kafka) as bad, opened(place.kafka, 1) as good:
            outcome = await asyncio.gather(
                bad.commit(work(7, b"small", large, changes=[(b"a", b"1")])),
                good.commit(work(7, b"of the other", changes=[(b"b", b"1")])),
                return_exceptions=True,
            )
            assert isinstance(outcome[0], OversizedError)
            assert outcome[1] is None
            async with opened(place.kafka), opened(place.kafka, 1):
                assert await place.frames() == [(b"A", b"of the other")]
                assert await place.kafka.read_changelog(0, lambda records: None) == {}
                assert await place.kafka.read_changelog(1, lambda records: None) == {b"b": b"1"}
                assert [await reader.consumer.committed(number) for number in range(PARTITIONS)] == [None, 7]

    async def test_a_second_member_takes_its_share_and_gives_it_back(self, place: Place) -> None:
        async with member(place.kafka) as first:
            second = Member(place.kafka)
            await second.consumer.start()
            try:
                await until(lambda: len(first.owned) == len(second.owned) == 1, "one partition each")
                assert first.owned | second.owned == {0, 1}
                assert ("revoked", {0, 1}) in first.told
                (theirs,) = second.owned
                assert await second.consumer.confirm_membership(theirs)
                assert not await first.consumer.confirm_membership(theirs)
            finally:
                told = len(second.told)
                await second.consumer.stop()
            assert len(second.told) == told, "who leaves is not asked to give anything back"
            await until(lambda: first.owned == {0, 1}, "all of them again")
            assert not first.owned_while_revoked
            assert await first.consumer.position(0) is None, "positions don't survive a rebalance"

    @IN_BOTH_SCOPES
    async def test_workers_that_come_and_go_write_what_one_would(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The whole worker: one reads a part, another joins it, the first leaves, and a third reads the rest."""
        monkeypatch.setenv("WORKERS_NATIVE", "0")
        driver = TestDriver(place.settings)
        parts = [[ticks(number) for number in range(begin, begin + 40)] for begin in (0, 40, 80)]
        ends = [0] * PARTITIONS

        async def send(part: list[tuple[bytes, bytes]]) -> None:
            for key, value in part:
                partition = partition_for(key, PARTITIONS)
                driver.send_raw(key, value, partition=partition)
                ends[partition] += 1
            for partition in range(PARTITIONS):
                await place.append(
                    partition, *(each for each in part if partition_for(each[0], PARTITIONS) == partition)
                )

        await send(parts[0])
        async with working(place) as first:
            await read_through(first, ends)
            async with working(place) as second:
                await until(lambda: len(second.partitions) == 1, "shared")
                await send(parts[1])
                await read_through_both((first, second), ends)
        await send(parts[2])
        async with working(place) as third:
            await read_through(third, ends)
        async with opened(place.kafka), opened(place.kafka, 1):
            pass
        driver.commit()
        found = [orjson.loads(value or b"") for _, value in await place.frames()]
        expected = driver.frames(provisional=False)
        assert len(expected) > 20
        assert ordered([frame for frame in found if frame["status"] != "provisional"]) == ordered(expected)


def ticks(number: int) -> tuple[bytes, bytes]:
    """The tick of such a number; a window is over with every twelfth."""
    key = f"S{number % 6}".encode()
    tick = {"symbol": key.decode(), "ts": 1_700_000_000_000 + 1_000 * number, "price": 1 + number, "size": 2}
    return key, orjson.dumps(tick)


def ordered(frames: list[dict[str, object]]) -> list[dict[str, object]]:
    return sorted(frames, key=lambda frame: (frame["key"], frame["start"], frame["rev"]))


@asynccontextmanager
async def working(place: Place) -> AsyncIterator[Worker]:
    """A worker that is stopped at the end, and must not have failed."""
    kafka = place.kafka if isinstance(place.kafka, MemoryKafka) else None
    worker, stop = Worker(place.settings, kafka=kafka), asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield worker
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT_S)


async def read_through(worker: Worker, ends: Sequence[int]) -> None:
    await read_through_both((worker,), ends)


async def read_through_both(workers: Sequence[Worker], ends: Sequence[int]) -> None:
    def committed() -> dict[int, int]:
        return {
            runner.number: runner.state.committed_offset
            for worker in workers
            for runner in worker.partitions.values()
            if runner.state.is_running
        }

    await until(lambda: committed() == dict(enumerate(ends)), f"committed up to {ends}")


@pytest.mark.broker
async def test_a_producer_that_the_cluster_has_forgotten_is_known_as_such(broker: Broker, topic_name: str) -> None:
    """As after a week without a tick; here it names an id that the cluster never gave."""
    place = OnBroker(broker.bootstrap_servers, topic_name, "partition")
    await place.kafka.prepare()
    await settled(place.kafka, 0)
    async with opened(place.kafka) as sink:
        assert isinstance(sink, PartitionSink)
        assert sink._writer._producer is not None
        sink._writer._producer._txn_manager._pid_and_epoch = PidAndEpoch(10**15, 0)
        with pytest.raises(PASSING) as caught:
            await sink.commit(work(1, b"late"))
    assert is_forgotten(caught.value)
    assert not is_forgotten(KafkaError("of another kind"))


@pytest.mark.broker
async def test_a_transaction_that_fails_under_a_commit_fails_the_commit_alone(
    broker: Broker, topic_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a node is frozen: the client learns of it in the background, between two of a commit's steps."""
    place = OnBroker(broker.bootstrap_servers, topic_name, "partition")
    await place.kafka.prepare()
    await settled(place.kafka, 0)
    for failed_at in (1, 2, 3):
        async with opened(place.kafka) as sink:
            assert isinstance(sink, PartitionSink)

            def fail(
                step: int, producer: AIOKafkaProducer = sink._writer._producer, failed_at: int = failed_at
            ) -> None:
                if step == failed_at:
                    producer._txn_manager.error_transaction(KafkaError("a coordinator that is gone"))

            monkeypatch.setattr("workers.kafka.commit.reached", fail)
            with pytest.raises(PASSING):
                await sink.commit(work(1, b"mine", changes=[(b"a", b"1")]))
