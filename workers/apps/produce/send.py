"""Sending ticks: what `workers.apps.produce.sources` give at a pace is packed into batches.

    file ─▶ parser ─┐
                    ├─▶ paced or not ─▶ sender: one open batch per partition ─▶ producer (idempotent)
    market ─────────┘                    at most one queued and one under way

A record's timestamp is the time of sending, never the event time: Kafka deletes by it, and the guard against wrong
clocks compares the two. Keys are symbols, placed by murmur2 as every other producer places them.

The end of the input is a control record in each partition (`workers.core.ticks.EndOfInput`), sent when every tick is
in.

What is held in memory is bounded: when the cluster does not take the batches, nothing more is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from workers.apps.produce.sender import TickSender
from workers.apps.produce.sources import TickSource
from workers.kafka.clients import admin_client, start_producer
from workers.kafka.lz4 import use_fast_lz4
from workers.kafka.options import producer_options
from workers.kafka.repairs import stop_producer
from workers.kafka.topics import ensure_topics

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["Produced", "StoppedError", "prepare_topic", "produce", "unless_stopped"]

T = TypeVar("T")

_TAKE: Final = 4096
_BATCH_BYTES: Final = 512 * 1024
_OPEN_BYTES: Final = 64 * 1024 * 1024
_SILENCE_S: Final = 5.0
_GRACE_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0


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
    source: TickSource,
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
    began_ns = time.monotonic_ns()
    producer = await unless_stopped(start_producer(settings, _options(settings, partitions)), stop)
    try:
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
    source: TickSource,
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
