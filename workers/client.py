"""aiokafka's clients, repaired where this package's promises need it, and ended within a bound.

What is repaired, in 0.14:

- A connection that breaks is written to once more before its reader notices. asyncio's transport only warns; uvloop's
  raises ``RuntimeError``, which no task of the client expects: the one that refreshes metadata, fetches, or joins the
  group ends for good, and the worker stalls without a word. Here it becomes the ``KafkaConnectionError`` that it is.
- Where a topic it reads is gone, the client asks for metadata again and again without a rest, some thousand times a
  second, for as long as it lives. Here ten requests a second are the most.

What is bounded: ``stop`` of a producer waits for batches that can't be sent, ``stop`` of a consumer for a coordinator
that does not answer. And ``stop`` cancels the client's own tasks and awaits them, so that a ``CancelledError`` that
nobody sent can come out of it; it is called in a task of its own for that.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Iterable

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

__all__ = ["abandon", "repair_client", "stop_consumer"]

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 3.0
FORCE_TIMEOUT_S = 1.0
METADATA_UPDATES_A_SECOND = 10


def repair_client() -> None:
    """Put the repairs into the client library, for this process; calling it again changes nothing."""
    original = AIOKafkaConnection.send
    if hasattr(original, "__wrapped__"):
        return
    update = AIOKafkaClient._metadata_update

    @functools.wraps(update)
    async def metadata_update(self: AIOKafkaClient, cluster: ClusterMetadata, topics: object) -> object:
        times = self.__dict__.setdefault("_update_times", deque(maxlen=METADATA_UPDATES_A_SECOND))
        if len(times) == times.maxlen and (rest_s := times[0] + 1.0 - time.monotonic()) > 0:
            await asyncio.sleep(rest_s)
        times.append(time.monotonic())
        return await update(self, cluster, topics)

    AIOKafkaClient._metadata_update = metadata_update

    @functools.wraps(original)
    def send(self: AIOKafkaConnection, request: object, expect_response: bool = True) -> object:
        try:
            return original(self, request, expect_response)
        except KafkaError:  # a RuntimeError by descent
            raise
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error

    AIOKafkaConnection.send = send


async def abandon(producer: AIOKafkaProducer) -> None:
    """Let go of a producer within a bounded time, whatever it was doing; what it had not delivered is dropped.

    Its connections go first, so that requests under way fail instead of being waited for.
    """
    producer._closed = True  # there is nothing to flush, which is all that its own stop would do more
    await _close(producer.client)
    await _cancel([producer._sender.sender_task])
    _read_failures(producer)
    metadata = producer.client._md_update_fut
    if metadata is not None:  # requests that wait for news from a cluster that this client no longer talks to
        metadata.cancel()
        await asyncio.sleep(0)


def _read_failures(producer: AIOKafkaProducer) -> None:
    """Look at the failures that nobody waits for: unread, each would be logged as never retrieved. The caller has the
    reason from the call that failed."""
    accumulator = producer._message_accumulator
    batches = [batch for queue in accumulator._batches.values() for batch in queue]
    futures = [
        future for batch in (*batches, *accumulator._pending_batches) for future in (batch._drain_waiter, batch.future)
    ]
    for future in (getattr(producer._txn_manager, "_transaction_waiter", None), *futures):
        if future is not None and future.done() and not future.cancelled():
            future.exception()


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close, by force where that takes too long. Raises nothing."""
    stopping = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    if done:
        if not stopping.cancelled() and (error := stopping.exception()) is not None:
            log.debug("consumer stopped with an error", error=repr(error))
        return
    await _close(consumer._client)
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
    tasks = [getattr(coordinator, name, None) for name in names]
    await _cancel([stopping, *tasks, getattr(fetcher, "_fetch_task", None)])


async def _close(client: AIOKafkaClient) -> None:
    closing = asyncio.ensure_future(client.close())
    done, _ = await asyncio.wait([closing], timeout=FORCE_TIMEOUT_S)
    if not done:
        closing.cancel()
    elif not closing.cancelled() and (error := closing.exception()) is not None:
        log.debug("client closed with an error", error=repr(error))


async def _cancel(tasks: Iterable[asyncio.Future[object] | None]) -> None:
    """Cancel until they end: the client's tasks answer a first cancellation by waiting for what they began."""
    left = {task for task in tasks if task is not None}
    for _ in range(3):
        for task in left:
            task.cancel()
        if not left:
            return
        done, left = await asyncio.wait(left, timeout=FORCE_TIMEOUT_S / 3)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("client task ended with an error", error=repr(error))
