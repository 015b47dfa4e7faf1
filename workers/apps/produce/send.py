"""Sending ticks: sources that say what is due, and a sender that packs it into batches.

    file ─▶ parser ─┐
                    ├─▶ paced or not ─▶ sender: one open batch per partition ─▶ producer (idempotent)
    market ─────────┘                    at most one queued and one under way

A record's timestamp is the time of sending, never the event time: Kafka deletes by it, and the guard against wrong
clocks compares the two. Keys are symbols, placed by murmur2 as every other producer places them.

The end of the input is a control record in each partition (`workers.core.ticks.EndOfInput`), sent when every tick is
in.

Batches are built here rather than record by record in the client, which costs ten times less. What is held in memory
is bounded by that: when the cluster does not take the batches, nothing more is read.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder

from workers.apps.produce.files import TickInput
from workers.core.partitioning import partition_for
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT, TickFormat
from workers.errors import BrokerError, WorkersError
from workers.kafka.connection import connecting
from workers.kafka.lz4 import use_fast_lz4
from workers.kafka.repairs import stop_producer
from workers.kafka.topics import admin_client, ensure_topics
from workers.settings.all import producer_options
from workers.times import NS_PER_SECOND, parse_rfc3339

if TYPE_CHECKING:
    from workers.settings.all import Settings

__all__ = [
    "FileSource",
    "GeneratedSource",
    "Produced",
    "RateLimited",
    "Replayed",
    "Slowed",
    "Source",
    "StoppedError",
    "TickSender",
    "blocks_of",
    "event_time_ns",
    "paced",
    "prepare_topic",
    "produce",
    "unless_stopped",
]

T = TypeVar("T")

Ticks = list[tuple[bytes, bytes]]

_TAKE: Final = 4096
_STEP_NS: Final = 5_000_000
_BURST_NS: Final = NS_PER_SECOND // 10
_LOOK_NS: Final = NS_PER_SECOND // 4  # a wait is no longer, to notice a changed scale
_CATCH_UP_NS: Final = NS_PER_SECOND
_BATCH_BYTES: Final = 512 * 1024
_OPEN_BYTES: Final = 64 * 1024 * 1024
_SILENCE_S: Final = 5.0
_GRACE_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0


# -- sources ----------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Where ticks come from, at the pace at which they are to be sent."""

    async def take(self, limit: int) -> Ticks:
        """Up to ``limit`` ticks that are due; waits for the first. Empty at the end, and when asked to stop."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing more is due just now, so that what was taken should not wait for company."""
        ...


class GeneratedSource:
    """Ticks out of an iterator, at most ``count`` and for at most ``duration_ns``, as fast as they are taken."""

    def __init__(
        self, ticks: Iterator[tuple[bytes, bytes]], *, count: int | None = None, duration_ns: int | None = None
    ) -> None:
        self._ticks = ticks if count is None else islice(ticks, count)
        self._duration_ns = duration_ns
        self._deadline_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `Source`. The duration begins at the first call."""
        if self._duration_ns is not None:
            self._deadline_ns = self._deadline_ns or time.monotonic_ns() + self._duration_ns
            if time.monotonic_ns() >= self._deadline_ns:
                return []
        return list(islice(self._ticks, limit))

    @property
    def idle(self) -> bool:
        """Never: an iterator has more at once."""
        return False


class FileSource:
    """Ticks of a file. A pipe is read by a thread, since nobody can know when it has something."""

    def __init__(self, file: TickInput, stop: asyncio.Event) -> None:
        self._file = file
        self._stop = stop
        self._held: Ticks = []
        self._taken = 0
        self._ended = False
        self._pipe = _PipeReader(file) if file.size is None else None

    async def take(self, limit: int) -> Ticks:
        """See `Source`. Raises ``WorkersError`` where the file is damaged."""
        while self._taken >= len(self._held) and not self._ended:
            block = await self._pipe.next(self._stop) if self._pipe else self._file.read_block()
            if block is None:
                return []
            self._ended = not block
            self._held, self._taken = self._file.parse(block), 0
        ticks = self._held[self._taken : self._taken + limit]
        self._taken += len(ticks)
        return ticks

    @property
    def idle(self) -> bool:
        """True for a pipe that has nothing more to read at the moment."""
        return self._pipe is not None and self._taken >= len(self._held) and self._pipe.empty


async def blocks_of(file: TickInput, stop: asyncio.Event) -> AsyncIterator[bytes]:
    """A file's blocks and at its end an empty one, until asked to stop. Raises ``WorkersError`` where it is damaged."""
    pipe = _PipeReader(file) if file.size is None else None
    while not stop.is_set():
        block = await pipe.next(stop) if pipe else file.read_block()
        if block is None:
            return
        yield block
        if not block:
            return
        await asyncio.sleep(0)  # so that the stop can come


class _PipeReader:
    """Reads a pipe in a thread, at most a few blocks ahead. The thread ends with the process: a blocked read of
    standard input can't be called off."""

    def __init__(self, file: TickInput) -> None:
        self._file = file
        self._blocks: queue.Queue[bytes | WorkersError] = queue.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        threading.Thread(target=self._read, name="ticks-reader", daemon=True).start()

    def _read(self) -> None:
        while True:
            item: bytes | WorkersError
            try:
                item = self._file.read_block()
            except WorkersError as error:
                item = error
            self._blocks.put(item)
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                return
            if not item or isinstance(item, WorkersError):
                return

    @property
    def empty(self) -> bool:
        return self._blocks.empty()

    async def next(self, stop: asyncio.Event) -> bytes | None:
        """The next block, empty at the end; None when asked to stop first."""
        while True:
            self._arrived.clear()
            try:
                item = self._blocks.get_nowait()
            except queue.Empty:
                await _first_of(self._arrived, stop)
                if stop.is_set():
                    return None
                continue
            if isinstance(item, WorkersError):
                raise item
            return item


class RateLimited:
    """Gives out ``rate`` ticks a second, times the scale that the group asks of its producers.

    A pause (the cluster was away, the group was full) is made good for a tenth of a second's worth, not more: whoever
    was in trouble must not meet a flood when it recovers.
    """

    def __init__(self, source: Source, rate: float, stop: asyncio.Event, scale: Callable[[], float]) -> None:
        if not rate > 0:
            raise ValueError(f"rate is {rate}; expected more than 0 ticks a second")
        self._source, self._rate, self._stop, self._scale = source, rate, stop, scale
        self._allowance = 1.0
        self._seen_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `Source`."""
        while not self._stop.is_set():
            self._refill()
            if self._allowance >= 1:
                ticks = await self._source.take(min(limit, int(self._allowance)))
                self._allowance -= len(ticks)
                return ticks
            await _sleep(self._wait_ns(), self._stop)
        return []

    @property
    def idle(self) -> bool:
        """True once what is due has been taken."""
        return self._allowance < 1 or self._source.idle

    def _refill(self) -> None:
        now_ns = time.monotonic_ns()
        passed_ns = now_ns - (self._seen_ns if self._seen_ns is not None else now_ns)
        self._seen_ns = now_ns
        burst = max(self._rate * _BURST_NS / NS_PER_SECOND, 1.0)
        self._allowance = min(self._allowance + passed_ns * self._rate * self._scale() / NS_PER_SECOND, burst)

    def _wait_ns(self) -> int:
        """Until the next tick is due, but long enough for a few, and short enough to notice a changed scale."""
        rate = self._rate * self._scale()
        due_ns = int((1 - self._allowance) * NS_PER_SECOND / rate) if rate > 0 else _BURST_NS
        return min(max(due_ns, _STEP_NS), _LOOK_NS)


class Replayed:
    """Gives out ticks at the pace of their event times, ``speed`` times as fast as they happened.

    Ticks keep their order; one that is earlier than those before it is due with them. A tick whose time can't be read
    goes with the one before. The replay has a clock of its own, which goes slower by the ``scale`` (0 to 1) that the
    group asks of its producers and stands still at 0; what was not sent meanwhile is due later, not all at once. For
    the same reason the clock passes over what a pause of the cluster took beyond a second.
    """

    def __init__(
        self,
        source: Source,
        form: TickFormat,
        speed: float,
        stop: asyncio.Event,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed is {speed}; expected more than 0")
        self._source, self._form, self._speed, self._stop, self._scale = source, form, speed, stop, scale
        self._held: Ticks = []
        self._due_ns: list[int] = []
        self._taken = 0
        self._first_ns: int | None = None
        self._newest_ns = 0
        self._clock_ns = 0
        self._seen_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `Source`."""
        if self._taken >= len(self._held):
            await self._next(limit)
        if not self._held:
            return []
        while (left_ns := self._due_ns[self._taken] - self._now_ns()) > 0 or self._scale() <= 0:
            scale = self._scale()
            await _sleep(min(int(left_ns / scale), _LOOK_NS) if scale > 0 else _LOOK_NS, self._stop)
            if self._stop.is_set():
                return []
        end = self._taken
        while end < len(self._held) and end - self._taken < limit and self._due_ns[end] <= self._clock_ns:
            end += 1
        ticks = self._held[self._taken : end]
        self._taken = end
        return ticks

    @property
    def idle(self) -> bool:
        """True while the next tick is not yet due."""
        if self._taken >= len(self._held):
            return self._source.idle
        return self._due_ns[self._taken] > self._now_ns()

    async def _next(self, limit: int) -> None:
        """More ticks of the source. Time spent waiting for it passes in full: it is the ticks that were slow."""
        before_ns = self._now_ns()
        asked_ns = time.monotonic_ns()
        self._held, self._taken = await self._source.take(limit), 0
        self._seen_ns = time.monotonic_ns()
        self._clock_ns = before_ns + self._seen_ns - asked_ns
        self._due_ns = [self._due(value) for _key, value in self._held]

    def _now_ns(self) -> int:
        """The replay's own time."""
        now_ns = time.monotonic_ns()
        if self._seen_ns is not None:
            self._clock_ns += int(min(now_ns - self._seen_ns, _CATCH_UP_NS) * self._scale())
        self._seen_ns = now_ns
        return self._clock_ns

    def _due(self, value: bytes) -> int:
        ts_ns = event_time_ns(value, self._form)
        if ts_ns is not None:
            if self._first_ns is None:
                self._first_ns, self._newest_ns = ts_ns, ts_ns
                self._clock_ns = 0
            self._newest_ns = max(self._newest_ns, ts_ns)
        if self._first_ns is None:
            return 0
        return int((self._newest_ns - self._first_ns) / self._speed)


class Slowed:
    """A source that goes as fast as it can, but only for the share of the time that ``scale`` (0 to 1) allows."""

    def __init__(self, source: Source, stop: asyncio.Event, scale: Callable[[], float]) -> None:
        self._source, self._stop, self._scale = source, stop, scale
        self._taken_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `Source`."""
        worked_ns = 0 if self._taken_ns is None else time.monotonic_ns() - self._taken_ns
        while (share := self._scale()) <= 0 and not self._stop.is_set():
            await _sleep(NS_PER_SECOND // 10, self._stop)
        if share < 1:
            await _sleep(int(worked_ns * (1 / max(share, 0.001) - 1)), self._stop)
        self._taken_ns = time.monotonic_ns()
        return await self._source.take(limit)

    @property
    def idle(self) -> bool:
        """Whether the source is, or has to be."""
        return self._source.idle or self._scale() < 1


def paced(
    source: Source,
    form: TickFormat,
    stop: asyncio.Event,
    *,
    rate: float | None = None,
    speed: float | None = None,
    scale: Callable[[], float] | None = None,
) -> Source:
    """A source at a pace: ``rate`` ticks a second, ``speed`` times the speed at which they happened, or neither.

    ``scale`` (0 to 1) is asked again and again for the share of its pace that the group leaves to this producer.
    Raises ``ValueError`` where rate or speed is not above 0, or both are given.
    """
    if rate is not None and speed is not None:
        raise ValueError("rate and speed are both given; use one of them")
    if rate is not None:
        return RateLimited(source, rate, stop, scale or (lambda: 1.0))
    if speed is not None:
        return Replayed(source, form, speed, stop, scale or (lambda: 1.0))
    return source if scale is None else Slowed(source, stop, scale)


def event_time_ns(value: bytes, form: TickFormat) -> int | None:
    """The event time of a tick's JSON; None where it can't be read."""
    try:
        found = orjson.loads(value)[form.ts]
        return int(found) * form.unit_ns if isinstance(found, int) else parse_rfc3339(found)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _sleep(wait_ns: int, stop: asyncio.Event) -> None:
    """Sleep, but not beyond a request to stop."""
    try:
        async with asyncio.timeout(wait_ns / NS_PER_SECOND):
            await stop.wait()
    except TimeoutError:
        pass


# -- sending ----------------------------------------------------------------------------------------------------------


class TickSender:
    """Packs ticks into one open batch per partition and hands full ones to the producer.

    Order within a partition is the order of `add`. Bounded: the producer takes a partition's next batch only when the
    one before is under way, and `send` waits for that.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._open: list[BatchBuilder] = [producer.create_batch() for _ in range(partitions)]
        self._full: deque[tuple[int, BatchBuilder]] = deque()
        self._under_way: dict[asyncio.Future[object], tuple[int, float]] = {}
        self._failure: BaseException | None = None
        self.added = 0
        self.delivered = 0
        self.ended = False
        """Whether every partition has been told that the input has ended."""

    def add(self, ticks: Ticks) -> None:
        """Pack ticks, stamped with the time of now; call `send` afterwards."""
        now_ms = time.time_ns() // 1_000_000
        count = self._partitions
        appends = [batch.append for batch in self._open]
        for key, value in ticks:
            partition = partition_for(key, count)
            if appends[partition](timestamp=now_ms, key=key, value=value) is None:
                self._full.append((partition, self._open[partition]))
                batch = self._open[partition] = self._producer.create_batch()
                appends[partition] = batch.append
                batch.append(timestamp=now_ms, key=key, value=value)
        self.added += len(ticks)

    async def send(self, *, everything: bool = False) -> None:
        """Hand over full batches, with ``everything`` also those not yet full; waits while the cluster takes none.

        Raises ``BrokerError`` once the cluster has refused a batch for good; what came before was delivered.
        """
        if everything:
            for partition, batch in enumerate(self._open):
                if batch.record_count():
                    self._open[partition] = self._producer.create_batch()
                    self._full.append((partition, batch))
        while self._full:
            partition, batch = self._full[0]
            await self._hand_over(partition, batch, ticks=batch.record_count())
            self._full.popleft()
        self._raise_failure()

    async def finish(self) -> None:
        """Hand over everything and wait until it is delivered. Raises ``BrokerError`` as `send` does."""
        await self.send(everything=True)
        await self._until_delivered()

    async def end_input(self) -> None:
        """Say in every partition that the input has ended, behind all that was delivered, and wait until it is there.

        Raises ``BrokerError`` as `send` does. A partition may then have the record and another not; it does no harm to
        send it again.
        """
        assert not self._under_way, "what is under way would come after the end"
        now_ms = time.time_ns() // 1_000_000
        for partition in range(self._partitions):
            batch = self._producer.create_batch()
            batch.append(timestamp=now_ms, key=None, value=None, headers=[(CONTROL_HEADER, END_OF_INPUT)])
            await self._hand_over(partition, batch, ticks=0)
        await self._until_delivered()
        self.ended = True

    async def _until_delivered(self) -> None:
        while self._under_way:
            await asyncio.wait(list(self._under_way), return_when=asyncio.FIRST_EXCEPTION)
            self._raise_failure()
        self._raise_failure()

    @property
    def waiting_s(self) -> float:
        """How long the oldest batch under way has been waiting for its answer; 0 with none under way."""
        oldest = min((sent_s for _count, sent_s in self._under_way.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    async def _hand_over(self, partition: int, batch: BatchBuilder, *, ticks: int) -> None:
        self._raise_failure()
        while True:
            try:
                future = await self._producer.send_batch(batch, self._topic, partition=partition)
            except KafkaTimeoutError:
                continue  # the queue has been full for a request's timeout: the cluster is away, and will come back
            except KafkaError as error:
                raise self._explain(error) from error
            break
        self._under_way[future] = (ticks, time.monotonic())
        future.add_done_callback(self._settle)

    def _settle(self, future: asyncio.Future[object]) -> None:
        count, _sent_s = self._under_way.pop(future)
        if future.cancelled():
            return
        failure = future.exception()
        if failure is None:
            self.delivered += count
        else:
            self._failure = self._failure or failure

    def _raise_failure(self) -> None:
        # After a refused batch the broker would take the next ones as out of order: there is no going on.
        if self._failure is not None:
            raise self._explain(self._failure) from self._failure

    def _explain(self, error: BaseException) -> WorkersError:
        why = str(error) or type(error).__name__
        if isinstance(error, MessageSizeTooLargeError):
            why = "a batch is larger than the topic's max.message.bytes"
        return BrokerError(f"topic {self._topic} does not take the ticks: {why}; {self.delivered:,} were delivered")


class StoppedError(Exception):
    """A stop was asked for before the cluster was reached: nothing was sent."""


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T:
    """What the work returns or raises. Raises `StoppedError` when asked to stop first, the work given up: whoever wants
    to stop does not wait for a cluster that does not answer."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise StoppedError
        return task.result()
    finally:
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_CLOSE_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Produced:
    """What came of it: ticks read and delivered, whether it was stopped before the source ended, and whether every
    partition was told that the input has ended."""

    topic: str
    partitions: int
    added: int
    delivered: int
    duration_ns: int
    interrupted: bool
    input_ended: bool = False

    @property
    def undelivered(self) -> int:
        """Ticks that were read but of which the cluster did not say that it has them."""
        return self.added - self.delivered


async def produce(
    settings: Settings,
    source: Source,
    *,
    topic: str,
    stop: asyncio.Event,
    on_progress: Callable[[int], None] = lambda added: None,
    on_notice: Callable[[str], None] = lambda text: None,
    may_end_input: Callable[[], bool] = lambda: False,
) -> Produced:
    """Send a source's ticks to a topic, made if it is missing, until the source ends or ``stop`` is set.

    When the source has ended and all its ticks are delivered, ``may_end_input`` is asked whether to tell every
    partition that the input has ended.

    ``on_progress`` gets the number of ticks packed so far, ``on_notice`` what a person should know, such as that the
    cluster does not answer.

    Raises ``BrokerError`` where the cluster can't be reached at the start or refuses ticks for good, ``TopicError``
    where the topic can't be made, `StoppedError` when asked to stop before that is known, and what the source raises.
    An outage on the way is waited out.
    """
    partitions = await unless_stopped(prepare_topic(settings, topic), stop)
    use_fast_lz4()
    producer = AIOKafkaProducer(**_options(settings, partitions))
    began_ns = time.monotonic_ns()
    try:
        async with connecting(settings):
            await unless_stopped(producer.start(), stop)
        sender = TickSender(producer, topic, partitions)
        watch = asyncio.create_task(_watch(sender, settings, on_notice))
        pump = asyncio.create_task(_pump(source, sender, stop, on_progress, may_end_input))
        try:
            ended = await _until_done(pump, stop)
        finally:
            watch.cancel()
    finally:
        await stop_producer(producer, within_s=_CLOSE_TIMEOUT_S)  # while the cluster is away it would wait for ever
    elapsed_ns = time.monotonic_ns() - began_ns
    return Produced(topic, partitions, sender.added, sender.delivered, elapsed_ns, not ended, sender.ended)


async def prepare_topic(settings: Settings, topic: str) -> int:
    """Make the topic if it is missing; its number of partitions. Raises ``BrokerError``, ``TopicError``."""
    chosen = settings.model_copy(update={"topics": settings.topics.model_copy(update={"ticks": topic})})
    async with admin_client(settings) as admin:
        layout = await ensure_topics(admin, chosen, create=settings.topics.create, only=("ticks",))
    return layout.ticks


def _options(settings: Settings, partitions: int) -> dict[str, object]:
    options = producer_options(settings)
    # Idempotent whatever kafka.acks says: a retry after an outage must not put ticks in twice.
    options |= {"acks": "all", "enable_idempotence": True, "linger_ms": 0}
    options["max_batch_size"] = min(settings.kafka.batch_size, _BATCH_BYTES, max(_OPEN_BYTES // partitions, 16_384))
    return options


async def _pump(
    source: Source,
    sender: TickSender,
    stop: asyncio.Event,
    progress: Callable[[int], None],
    may_end_input: Callable[[], bool],
) -> bool:
    """Moves ticks until the source ends (True) or the stop is asked for (False), then sees the rest off."""
    while not stop.is_set():
        ticks = await source.take(_TAKE)
        if not ticks:
            break
        sender.add(ticks)
        await sender.send(everything=source.idle)
        progress(sender.added)
        await asyncio.sleep(0)  # a file is read without waiting: let the producer's own task run
    stopped = stop.is_set()
    await sender.finish()
    if not stopped and may_end_input():
        await sender.end_input()
    return not stopped


async def _until_done(pump: asyncio.Task[bool], stop: asyncio.Event) -> bool:
    """The pump's result; after a stop it has a grace to deliver what it holds, and is then given up (False)."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({pump, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not pump.done():
            await asyncio.wait({pump}, timeout=_GRACE_S)
        if not pump.done():
            return False
        return pump.result()
    finally:
        stopped.cancel()
        pump.cancel()
        await asyncio.wait({pump})
        if not pump.cancelled():
            pump.exception()  # seen: whoever is given up on has nobody else to tell


async def _watch(sender: TickSender, settings: Settings, notice: Callable[[str], None]) -> None:
    """Says once that the cluster has gone silent, and once that it is back."""
    silent = False
    while True:
        await asyncio.sleep(0.25)
        waiting = sender.waiting_s
        if not silent and waiting > _SILENCE_S:
            silent = True
            notice(
                f"the broker at {settings.bootstrap_servers} has not answered for {waiting:.0f} s; waiting, with "
                f"{sender.added - sender.delivered:,} ticks in hand"
            )
        elif silent and waiting < _SILENCE_S / 2:
            silent = False
            notice("the broker answers again")
