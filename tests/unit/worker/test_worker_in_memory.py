"""The whole worker over a Kafka in memory whose commits fail: what is written is what an undisturbed one writes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import orjson
import pytest

from workers.core.effects import Effects
from workers.core.lane import Lane
from workers.core.partitioning import partition_for
from workers.core.portions import StepLimit
from workers.core.records import RawBatch, Record
from workers.errors import (
    BrokerError,
    ConfigError,
    FencedError,
    StateMismatchError,
    TopicReplacedError,
    WorkersError,
)
from workers.kafka.memory import MemoryConsumer, MemoryKafka, MemorySink
from workers.kafka.ports import Commit, OversizedError
from workers.settings import Settings
from workers.testing import TestDriver
from workers.worker.life import Phase
from workers.worker.worker import Worker

LIMIT_S = 20.0
PARTITIONS = 3
SETTINGS = Settings.model_validate(
    {
        "application_id": "memory",
        "topics": {"ticks": "ticks", "frames": "frames", "partitions": PARTITIONS},
        "metrics": {"port": -1},
        "backpressure": {"enabled": False},
        "commit_interval": "20ms",
    }
)


@pytest.fixture(autouse=True)
def _plain_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS_NATIVE", "0")


class FailingSink(MemorySink):
    """Fails as it is told, before or after everything is visible."""

    def __init__(self, kafka: FailingKafka, partition: int) -> None:
        super().__init__(kafka, partition)
        self._failing = kafka

    async def open(self) -> None:
        self._failing.raise_for("open")
        await super().open()

    async def commit(self, work: Commit) -> None:
        self._failing.raise_for("before")
        await super().commit(work)
        self._failing.raise_for("after")


class FailingKafka(MemoryKafka):
    """``failures``: what to raise, by where, until there is none left."""

    def __init__(self, failures: Mapping[str, list[Exception]] | None = None) -> None:
        super().__init__(SETTINGS.topics.ticks, PARTITIONS)
        self._failures = {where: list(errors) for where, errors in (failures or {}).items()}
        self.raised: Counter[str] = Counter()
        self.doubts = 0

    def raise_for(self, where: str) -> None:
        if self._failures.get(where):
            self.raised[where] += 1
            raise self._failures[where].pop()

    def doubt(self) -> None:
        self.doubts += 1

    def sink(self, partition: int) -> FailingSink:
        return FailingSink(self, partition)


def send(kafka: MemoryKafka, driver: TestDriver, begin: int, end: int) -> None:
    draw = random.Random(begin)
    for number in range(begin, end):
        key = f"S{number % 9}"
        ts = 1_700_000_000_000 + 200 * number - int(draw.expovariate(1 / 600))
        value = orjson.dumps({"symbol": key, "ts": ts, "price": 1 + number % 7, "size": 2})
        kafka.append(partition_for(key.encode(), PARTITIONS), key.encode(), value)
        driver.send_raw(key.encode(), value)


@asynccontextmanager
async def working(kafka: MemoryKafka, settings: Settings = SETTINGS) -> AsyncIterator[Worker]:
    worker, stop = Worker(settings, kafka=kafka), asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield worker
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT_S)


async def until(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.005)


def read_through(kafka: MemoryKafka) -> Callable[[], bool]:
    return lambda: all(kafka.offsets[number] == kafka.bounds(number)[1] for number in range(PARTITIONS))


class StandingStill(FailingKafka):
    """Never gets past a phase; ``reached`` is set when it is there."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase
        self.reached = asyncio.Event()

    async def _stand_still_in(self, phase: str) -> None:
        if phase == self._phase:
            self.reached.set()
            await asyncio.Event().wait()

    async def prepare(self) -> None:
        await self._stand_still_in("looking at the topics")

    @asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        yield

    def consumer(self, **callbacks: object) -> MemoryConsumer:  # type: ignore[override]
        made = super().consumer(**callbacks)  # type: ignore[arg-type]
        start, confirm = made.start, made.confirm_membership

        async def started() -> None:
            await self._stand_still_in("connecting")
            await start()

        async def confirmed(partition: int) -> bool:
            await self._stand_still_in("asking the group")
            return await confirm(partition)

        made.start, made.confirm_membership = started, confirmed  # type: ignore[method-assign]
        return made

    def sink(self, partition: int) -> FailingSink:
        made = super().sink(partition)
        open_it, commit = made.open, made.commit

        async def opened() -> None:
            await self._stand_still_in("opening")
            await open_it()

        async def committed(work: Commit) -> None:
            await self._stand_still_in("committing")
            await commit(work)

        made.open, made.commit = opened, committed  # type: ignore[method-assign]
        return made

    async def read_changelog(self, partition: int, on_progress: Callable[[int], None]) -> Mapping[bytes, bytes]:
        await self._stand_still_in("restoring")
        return await super().read_changelog(partition, on_progress)


@pytest.mark.parametrize(
    "phase", ["looking at the topics", "connecting", "asking the group", "opening", "restoring", "committing"]
)
async def test_a_worker_that_is_told_to_stop_does_in_every_phase(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker.worker.STOP_TIMEOUT_S", 0.05)  # for the last commits
    kafka, driver = StandingStill(phase), TestDriver(SETTINGS)
    send(kafka, driver, 0, 60)
    async with working(kafka):
        await asyncio.wait_for(kafka.reached.wait(), LIMIT_S)


async def test_a_partition_is_read_as_soon_as_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker.worker.POLL_TIMEOUT_MS", 10 * LIMIT_S * 1000)  # nobody looks by himself
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 60)
    async with working(kafka):
        await until(read_through(kafka), "reading what was there")
        monkeypatch.undo()
        send(kafka, driver, 60, 61)  # ends the wait for more


def final(frames: list[dict[str, object]]) -> list[dict[str, object]]:
    found = [frame for frame in frames if frame["status"] != "provisional"]
    return sorted(found, key=lambda frame: (frame["key"], frame["start"], frame["rev"]))


def same(kafka: MemoryKafka, driver: TestDriver) -> None:
    driver.commit()
    expected = final(driver.frames())
    assert len(expected) > 30
    assert final([orjson.loads(frame.value or b"") for frame in kafka.frames]) == expected
    late = [orjson.loads(each.value or b"") for each in kafka.late]
    assert sorted((each["partition"], each["offset"]) for each in late) == sorted(
        (each["partition"], each["offset"]) for each in driver.late()
    )


@pytest.mark.parametrize("seed", range(4))
async def test_no_failure_of_a_commit_or_of_an_opening_changes_what_is_written(seed: int) -> None:
    draw = random.Random(seed)
    errors = [
        TimeoutError("late"),
        FencedError("taken over"),
        OSError("gone"),
        OversizedError("frames", 1_000),
        BrokerError("?"),
    ]
    kafka = FailingKafka({where: draw.choices(errors, k=draw.randrange(1, 4)) for where in ("open", "before", "after")})
    driver = TestDriver(SETTINGS)
    async with working(kafka) as worker:
        for begin in range(0, 1_200, 100):
            send(kafka, driver, begin, begin + 100)
            await asyncio.sleep(0.01)
        await until(lambda: all(kafka.raised[where] for where in ("open", "before", "after")), "all failures")
        await until(read_through(kafka), "read through")
        assert worker.failure is None
        assert all(runner.state.phase is Phase.RUNNING for runner in worker.partitions.values())
    same(kafka, driver)
    failures = sum(
        sample.value
        for family in worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "workers_commit_failures_total"
    )
    assert failures == kafka.raised["before"] + kafka.raised["after"]


async def test_a_record_that_was_too_large_makes_the_limits_be_asked_for_again() -> None:
    kafka = FailingKafka({"before": [OversizedError("frames", 1_000)]})
    driver = TestDriver(SETTINGS)
    async with working(kafka):
        send(kafka, driver, 0, 600)
        await until(read_through(kafka), "read through")
    assert kafka.doubts == 1
    same(kafka, driver)


async def test_members_that_join_and_leave_under_load_write_what_one_would() -> None:
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    async with working(kafka) as first:
        send(kafka, driver, 0, 400)
        async with working(kafka) as second:
            send(kafka, driver, 400, 800)
            await until(lambda: len(second.partitions) == 1 and len(first.partitions) == 2, "shared")
            async with working(kafka) as third:
                await until(lambda: len(third.partitions) == 1, "shared by three")
                send(kafka, driver, 800, 1_200)
        await until(lambda: len(first.partitions) == PARTITIONS, "all of them again")
        send(kafka, driver, 1_200, 1_500)
        await until(read_through(kafka), "read through")
    same(kafka, driver)


@pytest.mark.parametrize("native", ["0", "1"])
async def test_nothing_is_committed_of_a_lane_that_raised_and_all_of_the_others(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that raises has moved on: its step's frames are lost, so what it would commit is, too."""
    monkeypatch.setenv("WORKERS_NATIVE", native)
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 900)
    lane = SETTINGS.lane.model_copy(update={"capacity": 200, "batch_size": 40})
    worker = Worker(SETTINGS.model_copy(update={"lane": lane}), kafka=kafka)
    make, steps = worker._make_lane, 0

    def failing(number: int) -> Lane:
        lane = make(number)
        process = lane.process

        def raises(records: Sequence[Record | RawBatch], limit: StepLimit) -> Effects:
            nonlocal steps
            effects = process(records, limit)
            steps += number == 1
            if steps == 3:
                raise BrokerError("the batch is broken")
            return effects

        lane.process = raises  # type: ignore[method-assign,assignment]
        return lane

    worker._make_lane = failing  # type: ignore[method-assign]
    with pytest.raises(BrokerError, match="the batch is broken"):
        await asyncio.wait_for(worker.run(asyncio.Event()), LIMIT_S)
    assert steps == 3
    async with working(kafka):
        await until(read_through(kafka), "read through")
    same(kafka, driver)


async def test_a_lane_is_paused_at_its_high_watermark_and_goes_on_at_its_low_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        "WORKERS_NATIVE", "0"
    )  # the memory has no batches, of which a native lane is given a few at once
    lane = SETTINGS.lane.model_copy(update={"capacity": 200, "batch_size": 40})
    settings = SETTINGS.model_copy(update={"lane": lane})
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 6_000)
    async with working(kafka, settings) as worker:
        await until(read_through(kafka), "read through")
    paused = worker.metrics.registry.get_sample_value("workers_lane_pauses_total", {"topic": "ticks", "partition": "0"})
    assert paused is not None
    assert paused > 1
    same(kafka, driver)


@pytest.mark.parametrize(
    ("offset", "error", "message"),
    [(5, StateMismatchError, "holds no state for it"), (None, None, "")],
)
async def test_offsets_without_state_end_the_worker(
    offset: int | None, error: type[WorkersError] | None, message: str
) -> None:
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 600)
    kafka.offsets[1] = offset
    if error is None:
        async with working(kafka):
            await until(read_through(kafka), "read through")
        same(kafka, driver)
        return
    with pytest.raises(ConfigError, match=message) as raised:
        await asyncio.wait_for(Worker(SETTINGS, kafka=kafka).run(asyncio.Event()), LIMIT_S)
    assert type(raised.value) is error
    assert all(not frames for frames in (kafka.frames, kafka.changelogs[1]))


async def test_an_error_that_is_nobodys_to_try_again_ends_the_worker() -> None:
    kafka, driver = FailingKafka({"before": [ZeroDivisionError()]}), TestDriver(SETTINGS)
    send(kafka, driver, 0, 600)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(Worker(SETTINGS, kafka=kafka).run(asyncio.Event()), LIMIT_S)


# -- operators' accidents ---------------------------------------------------------------------------------------------


@pytest.fixture
def _watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker.worker.LOOK_EVERY_S", 0.01)


async def looked(kafka: MemoryKafka) -> None:
    """Wait until the worker has seen the topics as they are."""
    before = kafka.looks
    await until(lambda: kafka.looks > before + 1, "a look at the topics")


def started(kafka: MemoryKafka) -> tuple[Worker, asyncio.Task[None]]:
    """A worker that ends only by an error."""
    worker = Worker(SETTINGS, kafka=kafka)
    return worker, asyncio.create_task(worker.run(asyncio.Event()))


async def ends_with(kafka: MemoryKafka) -> BaseException:
    """What a worker that is started now ends with."""
    with pytest.raises(WorkersError) as caught:
        await asyncio.wait_for(started(kafka)[1], LIMIT_S)
    return caught.value


@pytest.mark.parametrize("what", ["replace_input", "replace_changelog"])
@pytest.mark.usefixtures("_watchful")
async def test_a_topic_that_is_made_again_ends_a_running_worker_which_commits_no_more(what: str) -> None:
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 60)
    _, running = started(kafka)
    await until(read_through(kafka), "reading what was there")
    frames, offsets = list(kafka.frames), list(kafka.offsets)
    getattr(kafka, what)()
    send(kafka, driver, 60, 400)
    with pytest.raises(TopicReplacedError, match="was deleted and made again"):
        await asyncio.wait_for(running, LIMIT_S)
    if what == "replace_input":
        assert kafka.frames == frames
        assert kafka.offsets == offsets
    found = await ends_with(kafka)
    assert isinstance(found, StateMismatchError)
    assert "`workers state reset`" in str(found)


@pytest.mark.usefixtures("_watchful")
async def test_a_changelog_that_is_cut_under_a_worker_is_noticed_by_it_and_by_the_next() -> None:
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 60)
    _, running = started(kafka)
    await until(read_through(kafka), "reading what was there")
    await looked(kafka)
    kafka.cut_changelog(1, [key for key in kafka.changelogs[1] if key[:1] == b"w"])
    with pytest.raises(StateMismatchError, match=r"the changelog memory-changelog\[1\] is not whole: found 0 windows"):
        await asyncio.wait_for(running, LIMIT_S)
    assert "is not whole" in str(await ends_with(kafka))


@pytest.mark.usefixtures("_watchful")
async def test_a_changelog_that_lost_nothing_of_the_state_goes_on() -> None:
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 600)
    async with working(kafka) as worker:
        await until(read_through(kafka), "reading what was there")
        await looked(kafka)
        before = worker.partitions[1].state.lane
        kafka.cut_changelog(1, [])
        await until(lambda: worker.partitions[1].state.lane not in (None, before), "restoring it")
        send(kafka, driver, 600, 1_200)
        await until(read_through(kafka), "reading the rest")
    same(kafka, driver)


async def test_where_a_new_group_begins_is_committed_at_once() -> None:
    settings = SETTINGS.model_copy(update={"kafka": SETTINGS.kafka.model_copy(update={"auto_offset_reset": "latest"})})
    kafka, driver = FailingKafka(), TestDriver(SETTINGS)
    send(kafka, driver, 0, 60)
    begins = [kafka.bounds(number)[1] for number in range(PARTITIONS)]
    async with working(kafka, settings) as worker:
        await until(lambda: kafka.offsets == begins, "committing where it begins")
        assert worker.failure is None
    send(kafka, driver, 60, 120)  # while no worker runs
    async with working(kafka, settings) as worker:
        await until(read_through(kafka), "reading what came meanwhile")
        counted = sum(runner.state.lane.counts.records for runner in worker.partitions.values() if runner.state.lane)
    assert counted == 60
