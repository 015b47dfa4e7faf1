"""The asyncio around a partition: it tells a `Partition` what happens, and carries out what that asks for.

What a runner may use of what is around it is in its `Context`; it knows no worker and no other partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from workers.core.effects import Effects
from workers.core.lane import Lane
from workers.errors import BrokerError, FencedError, TopicError, WorkersError
from workers.kafka.backoff import Backoff
from workers.kafka.errors import PASSING, REFUSED
from workers.kafka.ports import CommitSink, Fetched, GroupConsumer, Kafka, OversizedError
from workers.worker.life import Action, Actions, LifeEvent, Phase
from workers.worker.opening import OffsetsDisagreeError, Origin, agreed_offset, restore, side_by_side
from workers.worker.partition import Partition, PartitionRules
from workers.worker.report import PartitionReport, WorkerReport
from workers.worker.setbacks import MAX_BACKOFF_S, Setbacks
from workers.worker.trouble import Trouble

__all__ = ["CLOSE_TIMEOUT_S", "Context", "PartitionRunner"]

OWNED_LOOK_S: Final = 0.05
DISAGREEING_LOOKS: Final = 6  # at state and group's offset, over some 3 s, before their disagreement is believed
CLOSE_TIMEOUT_S: Final = 5.0


class StateInDoubtError(WorkersError):
    """What is stored may not be whole any more."""


@dataclass(frozen=True, slots=True)
class Context:
    """All that a partition may ask of what is around it."""

    kafka: Kafka
    consumer: GroupConsumer
    report: WorkerReport
    rules: PartitionRules
    origin: Origin
    make_lane: Callable[[int], Lane]
    restoring: Callable[[], AbstractAsyncContextManager[None]]  # a place among the restores that run side by side
    opened: asyncio.Event  # to be set when a partition can be read
    is_full: Callable[[], bool]  # whether results of all partitions wait in such numbers that lanes have to
    fail: Callable[[BaseException], None]  # ends the worker


class PartitionRunner:
    """One owned partition: its state, its producer, and the tasks that serve it."""

    def __init__(self, number: int, context: Context) -> None:
        self.number = number
        self.state = Partition(number, context.rules, context.is_full)
        self._context = context
        self._consumer = context.consumer
        self._report = PartitionReport(number, context.report)
        self._sink: CommitSink | None = None
        self._doubt: str | None = None  # why the stored state may not be whole
        self._has_work = asyncio.Event()  # as the committer's attributes
        self._urgent = asyncio.Event()
        self._committing = asyncio.Lock()
        self.trouble: Trouble | None = None  # what keeps it from being opened
        self._setbacks = Setbacks()
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_once: Mapping[Action, Callable[[], None]] = {
            Action.OPEN: self.open,
            Action.COMMIT_WHEN_DUE: lambda: self._start(self._commit_when_due()),
            Action.START_READING: lambda: self._consumer.start_reading(number, self.state.next_offset),
            Action.STOP_READING: lambda: self._consumer.stop_reading(number),
            Action.PAUSE: lambda: self._consumer.pause(number),
            Action.RESUME: lambda: self._consumer.resume(number),
        }

    # -- actions ------------------------------------------------------------------------------------------------------

    def tell(self, event: LifeEvent) -> Actions:
        """Take an event and carry out what can be done at once; what is left takes time, and is for `finish`."""
        return self._begin(self.state.on(event, time.monotonic_ns()))

    async def finish(self, actions: Actions) -> None:
        """Carry out what `tell` left."""
        for action in actions:
            if action is Action.DISCARD:
                await self._discard()
            elif action is Action.CLOSE:
                await self._close()
            elif action is not Action.REPLACE:  # which is for whoever holds the partitions
                self._at_once[action]()

    async def close(self) -> None:
        """Stop all tasks and let go of the producer. Nothing is committed here."""
        await self.finish(self.tell(LifeEvent.STOPPED))

    def _begin(self, actions: Actions) -> Actions:
        done = 0
        while done < len(actions) and (do := self._at_once.get(actions[done])) is not None:
            do()
            done += 1
        return actions[done:]

    async def _close(self) -> None:
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
        await self._discard()

    async def _discard(self) -> None:
        sink, self._sink = self._sink, None
        self._doubt = None
        self.state.discard()
        self._has_work.clear()
        self._urgent.clear()
        if sink is not None:
            await sink.close()

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(self._guard(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, coroutine: Coroutine[None, None, None]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # Nobody cancelled this task: a client's own cancelled task leaked out of a stop().
                self._context.fail(BrokerError(f"a Kafka client ended partition {self.number}'s task unexpectedly"))
            raise
        except BaseException as error:
            self._context.fail(error)

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make producer and lane in a task, then start reading; repeated until it works or the partition is lost."""
        if self.state.phase is Phase.OPENING:
            self._start(self._open_until_done())

    async def _open_until_done(self) -> None:
        backoff, looks = Backoff(0.1, MAX_BACKOFF_S), 0
        await asyncio.sleep(self._setbacks.rest_s)
        while self.state.phase is Phase.OPENING:
            if not self._consumer.owns(self.number):
                await asyncio.sleep(OWNED_LOOK_S)  # a rebalance is under way, whose end decides
                continue
            try:
                async with self._context.restoring():
                    if not self._consumer.owns(self.number):  # while it waited for its turn
                        continue
                    if await self._consumer.confirm_membership(self.number):
                        await self._open_once()
                        self.trouble = None
                        return
                await asyncio.sleep(OWNED_LOOK_S)
                continue
            except (*REFUSED, TopicError):
                raise
            except OffsetsDisagreeError as error:
                looks += 1
                if looks == DISAGREEING_LOOKS:
                    raise
                failure: Exception = error
            except (*PASSING, FencedError, BrokerError) as error:
                failure = error
            self.trouble = Trouble.of(failure, self.trouble)
            await self.finish(self.tell(LifeEvent.OPENING_FAILED))
            self._report.opening_failed(self.trouble.text, backoff.rest_s)
            await asyncio.sleep(backoff.grow())

    async def _open_once(self) -> None:
        context, number, began_s = self._context, self.number, time.monotonic()
        await context.kafka.refresh()
        self._sink = sink = context.kafka.sink(number)
        await sink.open()  # fences the previous owner, so what is read next is the last that was committed
        lane = context.make_lane(number)
        entries, committed, bounds = await side_by_side(
            context.kafka.read_changelog(number, self._report.restored),
            self._consumer.committed(number),
            self._consumer.log_bounds(number),
        )
        meta = await restore(lane, entries, f"{context.origin.changelog}[{number}]", context.report.note_step)
        stored = meta.offset if meta is not None else None
        lane.position = agreed_offset(context.origin, number, stored, committed, bounds)
        owned = self._consumer.owns(number)
        left = self._begin(self.state.opened(lane, time.monotonic_ns(), owned=owned))
        self._report.opened(lane, time.monotonic() - began_s)
        context.opened.set()
        if meta is None:
            self.state.committer.note_progress()  # where a new group begins is committed at once, and so it is settled
            self._wake()
        await self.finish(left)

    # -- records ------------------------------------------------------------------------------------------------------

    def accept(self, fetched: Fetched) -> None:
        """Take fetched records into the backlog."""
        actions = self.state.accept(fetched, time.monotonic_ns())
        if actions:
            self._begin(actions)
            self._report.paused()

    def next_portion(self) -> Fetched | None:
        """The next records of the backlog, for the lane to `PartitionRunner.state.compute`; None: nothing to do."""
        portion = self.state.next_portion()
        self._wake()
        return portion

    def processed(self, effects: Effects, took_s: float) -> None:
        """Take what the lane made of a portion, in so many seconds."""
        self._report.processed(self.state.take(effects))
        self._begin(self.state.processed(effects.records, took_s))
        self._wake()

    async def show_overdue(self, now_ns: int) -> None:
        """Where the partition was read to its end, let the silence since bring windows out."""
        if self.state.is_overdue(now_ns) and await self._consumer.at_end(self.number):
            self._show("idle", lambda: self.state.show_overdue(now_ns))

    async def pass_markers(self) -> None:
        """Where the log goes on with what is no record, count it as done."""
        lane = self.state.lane_at_rest()
        if lane is None:
            return
        position = await self._consumer.position(self.number)
        if position is not None:
            self.state.pass_markers(lane, position)
            self._wake()

    def flush_partial(self) -> None:
        """Show open windows that changed."""
        self._show("flush", self.state.flush_partial)

    def _show(self, step: str, show: Callable[[], Effects | None]) -> None:
        began_s = time.perf_counter()
        effects = show()
        if effects is not None:
            self._report.processed(effects)
            self._context.report.note_step(step, began_s)
            self._wake()

    # -- commits ------------------------------------------------------------------------------------------------------

    def doubt(self, reason: str) -> None:
        """Have the partition opened again: whether its stored state is whole is known when it is restored."""
        self._doubt = reason
        self._has_work.set()
        self._urgent.set()

    def _wake(self) -> None:
        """Let the task that commits see what the committer says."""
        if self.state.committer.has_work:
            self._has_work.set()
        if self.state.committer.is_urgent:
            self._urgent.set()

    async def _commit_when_due(self) -> None:
        while True:
            await self._has_work.wait()
            wait_ns = self.state.committer.wait_ns(time.monotonic_ns())
            if wait_ns:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), wait_ns / 1e9)
            if not await self.commit():
                return

    async def commit(self) -> bool:
        """Commit what was processed so far; False when it failed and the partition is being opened again."""
        context = self._context
        async with self._committing:
            if self._doubt is not None and self._sink is not None:
                await self._recover(StateInDoubtError(self._doubt))
                return False
            sink, began_s = self._sink, time.perf_counter()
            under_way = None
            if sink is not None:
                under_way = self.state.begin_commit(context.kafka.topics.out, time.monotonic_ns())
            if sink is None or under_way is None:
                return sink is not None and self.state.lane is not None
            self._has_work.clear()
            self._urgent.clear()
            context.report.note_step("changes", began_s)
            try:
                await sink.commit(under_way.work)
            except REFUSED:
                raise
            except (*PASSING, WorkersError) as error:
                await self._recover(error)
                return False
            finally:
                self.state.committer.ended()
            self.state.committed(under_way)
            self._setbacks = Setbacks()
            self._report.committed(under_way, self.state.lane, (time.monotonic_ns() - under_way.began_ns) / 1e9)
            context.report.warn_of_short_retention(under_way.effects, context.kafka.topics.frames_retention_ms)
            return True

    async def _recover(self, error: BaseException) -> None:
        """After any failed commit: nothing of it may be trusted, so start again from what was committed."""
        try:
            self._setbacks.note(error)
        except TopicError:
            await self.close()  # the sink can't be used any more, not for a last commit either
            raise
        if isinstance(error, TimeoutError):
            self.state.took_too_long()
        self._report.commit_failed(error, self._setbacks.rest_s)
        if isinstance(error, OversizedError):
            self._context.kafka.doubt()
        await self.finish(self.tell(LifeEvent.COMMIT_FAILED))
