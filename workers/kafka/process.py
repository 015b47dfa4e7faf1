"""One transactional producer for all partitions of a process: what waits is committed together.

    ProcessSink.commit ──▶ queue ──▶ one transaction ──▶ all of it visible
                             ▲             │ fails
                             └─ the rest ──┴─▶ alone: what was refused, each in a transaction of its own

While one transaction is under way, the next one's works gather. Who owns a partition is decided by the group: offsets
are committed as a member in a generation, and the broker refuses those of another. A partition's *claim*, taken when
its sink was opened, is looked at before each transaction: a lane may outlive a rebalance, but only if nobody else can
have owned its partition in between.

After a transaction that failed nothing is taken on trust. Its producer is abandoned, and the coordinator asked what was
decided: committed after all, or aborted, and then the same works are committed in another transaction. Those whose
batches were refused or never acknowledged go alone, and alone they stay until one of them succeeds: a partition that
can't be written to holds the others up once.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from aiokafka.client import AIOKafkaClient

from workers.errors import FencedError
from workers.kafka.commit import Attempt, SinkSpec, TransactionWriter, explained
from workers.kafka.errors import StaleMemberError
from workers.kafka.hanging import Decision, end_and_decide
from workers.kafka.ports import Commit
from workers.kafka.protocol import Membership
from workers.kafka.takeover import take_over

__all__ = ["Member", "ProcessCommitter", "ProcessSink"]

log = structlog.get_logger(__name__)

ALONE_AT_ONCE: Final = 4  # works that were refused, each with a producer of its own
TRIES: Final = 2  # of what was not refused, together
PATIENCE: Final = 3  # of a work, in commit timeouts


class Member(Protocol):
    """A member of the group, as `workers.kafka.consumer.KafkaGroupConsumer` tells of itself."""

    @property
    def client(self) -> AIOKafkaClient: ...

    @property
    def membership(self) -> Membership | None: ...

    def claim(self, partition: int) -> object | None: ...


@dataclass(eq=False, slots=True)
class _Item:
    """A work on its way; ``done`` ends with what became of it."""

    sink: ProcessSink
    work: Commit
    done: asyncio.Future[None]
    is_out: bool = False  # at least once: its results are acknowledged

    @property
    def partition(self) -> int:
        return self.sink.partition

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # who waited for it may have gone


class ProcessSink:
    """Where one partition's commits go; `ProcessCommitter` has them all."""

    def __init__(self, committer: ProcessCommitter, partition: int) -> None:
        self.partition = partition
        self.claim: object | None = None
        self._committer = committer

    async def open(self) -> None:
        """See that whoever owned the partition before can commit nothing any more, and has nothing open."""
        await self._committer.enter(self)

    async def commit(self, work: Commit) -> None:
        """Make ``work`` visible as a whole, or nothing of it. After any exception the sink must be discarded.

        Raises `FencedError` when another worker owns the partition, `OversizedError` when the broker refused a record
        as too large, ``KafkaError`` or ``TimeoutError`` otherwise.
        """
        await self._committer.commit(self, work)

    async def close(self) -> None:
        """Let go of it; the last one that is closed ends the producer."""
        await self._committer.leave(self)


class ProcessCommitter:
    """The sinks of a process, and the one producer behind them, which lives as long as one of them is open."""

    def __init__(self, spec: SinkSpec, member: Member) -> None:
        self.transactional_id = f"{spec.group_id}-{uuid.uuid4().hex}"
        self._spec = spec
        self._member = member
        self._sinks: dict[int, ProcessSink] = {}  # open, by partition
        self._queue: list[_Item] = []
        self._under_way: dict[int, _Item] = {}
        self._refused: set[int] = set()  # partitions whose next work goes alone
        self._few = asyncio.Semaphore(ALONE_AT_ONCE)
        self._lone: set[asyncio.Task[None]] = set()
        self._lone_writers = [self._lone_writer(number) for number in range(ALONE_AT_ONCE)]
        self._waiting = asyncio.Event()
        self._starting = asyncio.Lock()
        self._writer: TransactionWriter | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def spec(self) -> SinkSpec:
        """Where results go, and how large a record may be there."""
        return self._spec

    @spec.setter
    def spec(self, spec: SinkSpec) -> None:
        self._spec = spec
        if self._writer is not None:
            self._writer.spec = spec

    def sink(self, partition: int) -> ProcessSink:
        """A new sink for a partition, not yet open."""
        return ProcessSink(self, partition)

    # -- sinks --------------------------------------------------------------------------------------------------------

    async def enter(self, sink: ProcessSink) -> None:
        """Open a sink: what is committed through another one of this partition is refused from now on, wherever.

        Raises `FencedError` where the group has not given the partition to this process, `DataLossError` and
        ``KafkaError`` as `take_over`.
        """
        sink.claim = self._member.claim(sink.partition)
        if sink.claim is None:
            raise self._not_owned(sink)
        self._sinks[sink.partition] = sink
        async with asyncio.timeout(PATIENCE * self._spec.commit_timeout_s):
            under_way = self._under_way.get(sink.partition)
            if under_way is not None:  # of an earlier sink; what becomes of it is what is read next
                await asyncio.wait([under_way.done])
            await self._start()
            await take_over(self._member.client, self._spec, [sink.partition], own=self.transactional_id, fence=True)

    async def commit(self, sink: ProcessSink, work: Commit) -> None:
        """Have the work written with others. Raises as `ProcessSink.commit`."""
        item = _Item(sink, work, asyncio.get_running_loop().create_future())
        if not self._may_commit(item):
            raise self._not_owned(sink)
        if sink.partition in self._refused:
            self._send_alone(item)
        else:
            self._queue.append(item)
            self._waiting.set()
        try:
            async with asyncio.timeout(PATIENCE * self._spec.commit_timeout_s):
                await asyncio.shield(item.done)
        finally:
            if item in self._queue:
                self._queue.remove(item)
                item.done.cancel()

    async def leave(self, sink: ProcessSink) -> None:
        """Close a sink, and the producer with the last one. Done before a cancellation of it is passed on."""
        sink.claim = None
        if self._sinks.get(sink.partition) is sink:
            del self._sinks[sink.partition]
        if self._sinks:
            return
        stopping = asyncio.ensure_future(self._stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping  # takes a bounded time
            raise

    def _may_commit(self, item: _Item) -> bool:
        """Whether nobody else can have owned its partition since its sink was opened."""
        sink = item.sink
        is_open = sink.claim is not None and self._sinks.get(sink.partition) is sink
        return is_open and self._member.claim(sink.partition) is sink.claim

    def _not_owned(self, sink: ProcessSink) -> FencedError:
        return FencedError(
            f"the group has given {self._spec.input_topic}[{sink.partition}] away, or its sink is closed; "
            "nothing after the last commit was published"
        )

    # -- the producer -------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        async with self._starting:
            if self._writer is None:
                await self._open_writer()
            if self._loop is None:
                self._loop = asyncio.create_task(self._run())

    async def _open_writer(self) -> Decision:
        writer = TransactionWriter(self._spec, self.transactional_id)
        decision = await writer.open(sorted(self._sinks), again=True)
        self._writer = writer
        return decision

    async def _stop(self) -> None:
        async with self._starting:
            if self._sinks:
                return  # one was opened meanwhile
            tasks = [*self._lone, *([self._loop] if self._loop is not None else [])]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._loop = None
            for item in (*self._queue, *self._under_way.values()):
                item.fail(self._not_owned(item.sink))
            self._queue.clear()
            self._under_way.clear()
            self._refused.clear()
            await self._close_lone_writers()
            await self._close_writer()

    async def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    # -- transactions -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._waiting.wait()
            await asyncio.sleep(0)  # the works of partitions that are due at the same time come along
            self._waiting.clear()
            items, self._queue = self._queue, []
            self._under_way |= {item.partition: item for item in items}
            await self._write_together(items)
            self._over(items)

    def _over(self, items: Iterable[_Item]) -> None:
        for item in items:
            if item.done.done() and self._under_way.get(item.partition) is item:
                del self._under_way[item.partition]

    async def _write_together(self, items: Sequence[_Item]) -> None:
        """One transaction for all; where it fails, what was not refused is tried again."""
        for trying in range(1, TRIES + 1):
            items = self._owned(items)
            if not items:
                return
            attempt = self._attempt(items)
            try:
                failure = await self._write(attempt)
                is_committed = failure is None or await self._was_committed(attempt, failure)
            except Exception as error:
                for item in items:
                    item.fail(error)
                return
            if is_committed:
                for item in items:
                    item.succeed()
                return
            assert failure is not None
            for item in items:
                item.is_out = item.partition in attempt.out
            items = self._sorted_out(items, attempt, failure, is_last=trying == TRIES)

    def _attempt(self, items: Sequence[_Item]) -> Attempt:
        return Attempt(
            {item.partition: item.work for item in items},
            self._member.membership,
            {item.partition for item in items if item.is_out},
        )

    def _owned(self, items: Iterable[_Item]) -> list[_Item]:
        """Those that may still be committed; the others are told."""
        found = []
        for item in items:
            if self._may_commit(item):
                found.append(item)
            else:
                item.fail(self._not_owned(item.sink))
        return found

    async def _write(self, attempt: Attempt) -> Exception | None:
        """Try it; why it failed."""
        async with self._starting:
            if self._writer is None:
                await self._open_writer()
            writer = self._writer
        assert writer is not None
        try:
            await writer.write(attempt)
        except Exception as error:
            return error
        return None

    async def _was_committed(self, attempt: Attempt, failure: Exception) -> bool:
        """Begin again with the producer, and find out what became of the transaction. Raises `FencedError` where
        nobody knows any more, ``KafkaError`` and ``TimeoutError`` where nobody answers."""
        begun_s = time.monotonic()
        async with self._starting:
            await self._close_writer()
            decision = await self._open_writer()
        if not attempt.is_ending:
            decision = Decision.ABORT  # whatever the one before was decided to be
        log.warning(
            "a transaction failed",
            error=repr(failure),
            outcome=decision.value,
            partitions=sorted(attempt.works),
            refused=sorted(attempt.suspects()),
            settled_in_ms=round((time.monotonic() - begun_s) * 1000),
        )
        if decision is Decision.UNKNOWN:
            raise FencedError(f"another worker has ended transaction {self.transactional_id}") from failure
        return decision is Decision.COMMIT

    def _sorted_out(
        self, items: Sequence[_Item], attempt: Attempt, failure: Exception, *, is_last: bool
    ) -> Sequence[_Item]:
        """What is to be tried together again, after a transaction that was aborted; the rest goes alone, or fails."""
        suspects = attempt.suspects()
        is_stale = isinstance(failure, StaleMemberError)
        if is_stale and not is_last and self._member.membership != attempt.membership:
            return items  # the group has gone on with this member: claims decide
        if is_stale or len(items) == 1 or (isinstance(failure, TimeoutError) and len(suspects) in (0, len(items))):
            if not is_stale:
                self._refused |= attempt.works.keys() & suspects
            for item in items:
                item.fail(explained(failure, self._spec, item.partition))
            return ()
        if not suspects or len(suspects) == len(items):
            if not is_last:
                return items
            suspects = set(attempt.works)
        for item in items:
            if item.partition in suspects:
                self._send_alone(item)
        return [item for item in items if item.partition not in suspects]

    # -- alone --------------------------------------------------------------------------------------------------------

    def _send_alone(self, item: _Item) -> None:
        self._refused.add(item.partition)
        self._under_way[item.partition] = item
        task = asyncio.create_task(self._write_alone(item))
        self._lone.add(task)
        task.add_done_callback(self._lone.discard)

    async def _write_alone(self, item: _Item) -> None:
        """A transaction of its own, of a producer that no other partition waits for: it may take its time."""
        try:
            async with self._few:
                writer = self._lone_writers.pop()
                try:
                    await self._write_with(writer, item)
                finally:
                    self._lone_writers.append(writer)
        except Exception as error:
            item.fail(explained(error, self._spec, item.partition))
        else:
            self._refused.discard(item.partition)
            item.succeed()
        finally:
            self._over([item])
        if not self._refused:
            await self._close_lone_writers()

    async def _write_with(self, writer: TransactionWriter, item: _Item) -> None:
        if not self._may_commit(item):
            raise self._not_owned(item.sink)
        attempt = self._attempt([item])
        writer.spec = self._spec
        try:
            if not writer.is_open:
                await writer.open(sorted(self._sinks))
            await writer.write(attempt)
        except Exception:
            await writer.close()
            # Open, its transaction would be in the way of whoever opens the partition next.
            decision = await end_and_decide(self._member.client, writer.transactional_id)
            if decision is not Decision.COMMIT or not attempt.is_ending:
                raise
        except BaseException:
            await writer.close()
            raise

    def _lone_writer(self, number: int) -> TransactionWriter:
        return TransactionWriter(self._spec, f"{self.transactional_id}-{number}")

    async def _close_lone_writers(self) -> None:
        for writer in self._lone_writers:
            await writer.close()
