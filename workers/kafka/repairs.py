"""aiokafka's clients, repaired where this package's promises need it, and ended within a bound.

What is repaired, in 0.14:

- A connection that breaks is written to once more before its reader notices. asyncio's transport only warns; uvloop's
  raises ``RuntimeError``, which no task of the client expects: the one that refreshes metadata, fetches, or joins the
  group ends for good, and the worker stalls without a word. Here it becomes the ``KafkaConnectionError`` that it is.
- Where a topic it reads is gone, the client asks for metadata again and again without a rest, some thousand times a
  second, for as long as it lives. Here ten requests a second are the most.
- It asks for topics so that the broker makes those that are missing (`workers.kafka.metadata`).
- The client loses sight of connections and leaves them open: of the one that it bootstraps over where that is
  cancelled, and of those that its tasks make while and after it closes. And its ``close`` waits without a limit for
  what was written to a peer that reads nothing, and half a minute for TLS's goodbye. Here a client knows every
  connection that it made, ``close`` closes them all within two seconds, and none is made after that.
- A node that can't be connected to is tried again without a rest, some hundred times a second by each of a client's
  tasks. Here each failure is followed by a rest, up to a second. And one that accepts a connection and does not answer
  keeps a client from all other nodes for a request's timeout, as it connects to one after the other: ten seconds here.
- A fetch that fails or is cancelled counts for ever as under way, so that a member that asks for nothing any more would
  not leave its group. Here it has ended.
- On level debug the client logs every request and answer in full: the password that it logs in with, and records.
  Here what is bytes is shown as how many there are, in every log and error.

What is bounded: ``stop`` of a producer waits for batches that can't be sent, ``stop`` of a consumer for a coordinator
that does not answer. And ``stop`` cancels the client's own tasks and awaits them, so that a ``CancelledError`` that
nobody sent can come out of it, before the connections are closed; it is called in a task of its own for that. Who is
cancelled while it stops a client passes that on when the client is stopped: nobody else knows of it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import ContextVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import client as library
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.types import Bytes, CompactBytes

from workers.kafka.backoff import Backoff
from workers.kafka.metadata import forbid_creation

__all__ = ["abandon", "close_connection", "repair_client", "stop_consumer", "stop_producer"]

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 3.0
FORCE_TIMEOUT_S = 1.0
GOODBYE_S = 0.1  # for a peer that has got all that was written to it
METADATA_UPDATES_A_SECOND = 10
CONNECT_TIMEOUT_S = 10.0  # with TLS and login
FIRST_REST_S, LONGEST_REST_S = 0.05, 1.0  # before a node is connected to again

_connecting: ContextVar[AIOKafkaClient] = ContextVar("the client that makes a connection")


def repair_client() -> None:
    """Put the repairs into the client library, for this process; calling it again changes nothing."""
    forbid_creation()
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
    SubscriptionState.fetch_context = _fetch_context
    Bytes.repr = CompactBytes.repr = staticmethod(_number_of_bytes)
    _repair_connections()


@contextlib.contextmanager
def _fetch_context(self: SubscriptionState) -> Iterator[None]:
    """As the client has it, but for the ``finally``."""
    self._fetch_count += 1
    try:
        yield
    finally:
        self._fetch_count -= 1
        if self._fetch_count == 0:
            self._last_fetch_ended = time.monotonic()


def _number_of_bytes(value: bytes | None) -> str:
    """What a request or an answer shows of a field that is bytes: a login, records, a part of the group protocol."""
    return "NULL" if value is None else f"<{len(value)} bytes>"


def _repair_connections() -> None:
    create_conn, bootstrap, get_conn = library.create_conn, AIOKafkaClient.bootstrap, AIOKafkaClient._get_conn

    async def create_known(host: str, port: int, **options: object) -> AIOKafkaConnection:
        client = _connecting.get()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await create_conn(host, port, **options)
        made = _connections(client)
        made -= {each for each in made if each._closed_fut.done()}
        made.add(connection)
        if client.__dict__.get("_ended"):
            connection.close()
            raise KafkaConnectionError(f"the client was closed while it connected to {host}:{port}")
        return connection

    def connects(method: Callable[..., Coroutine[object, object, object]]) -> Callable[..., Awaitable[object]]:
        @functools.wraps(method)
        async def connecting(self: AIOKafkaClient, *arguments: object, **options: object) -> object:
            if self.__dict__.get("_ended"):
                return None  # no connection; as to a node that can't be reached
            token = _connecting.set(self)
            try:
                return await method(self, *arguments, **options)
            finally:
                _connecting.reset(token)

        return connecting

    @functools.wraps(get_conn)
    async def get_conn_in_time(self: AIOKafkaClient, node: int, *, group: object = ConnectionGroup.DEFAULT) -> object:
        rests: dict[int, Backoff] = self.__dict__.setdefault("_rests", {})
        due: dict[int, float] = self.__dict__.setdefault("_due", {})
        known = self._conns.get((node, group))
        if known is None or not known.connected():
            while (rest_s := due.get(node, 0.0) - time.monotonic()) > 0:
                await asyncio.sleep(rest_s)
        connection = await get_conn(self, node, group=group)
        if connection is None:
            due[node] = time.monotonic() + rests.setdefault(node, Backoff(FIRST_REST_S, LONGEST_REST_S)).grow()
        elif due.pop(node, None) is not None:
            rests[node].reset()
        return connection

    library.create_conn = create_known
    AIOKafkaClient.bootstrap = connects(bootstrap)
    AIOKafkaClient._get_conn = connects(get_conn_in_time)
    AIOKafkaClient.close = _close


def _connections(client: AIOKafkaClient) -> set[AIOKafkaConnection]:
    """Those that a client made, but for some that are closed."""
    made: set[AIOKafkaConnection] = client.__dict__.setdefault("_made", set())
    return made


async def _close(client: AIOKafkaClient) -> None:
    """What a client's ``close`` should be: nothing is open after it, and it takes a bounded time."""
    client.__dict__["_ended"] = True
    try:
        synchronizer, client._sync_task = client._sync_task, None
        await _cancel([synchronizer])
    finally:
        made = _connections(client)
        made.update(client._conns.values())  # of a client that was opened before the repair
        await _until_closed(made)


async def close_connection(connection: AIOKafkaConnection) -> None:
    """Close a connection that belongs to no client; by force where the peer does not take what was written."""
    await _until_closed([connection])


async def _until_closed(connections: Iterable[AIOKafkaConnection]) -> None:
    # A connection forgets its transport when it is closed, but the protocol that reads from it doesn't.
    transports = {connection: connection._protocol._transport for connection in connections if connection._protocol}
    closing = {connection: connection.close(CloseReason.SHUTDOWN) for connection in transports}
    try:
        if closing:
            _, left_open = await asyncio.wait(closing.values(), timeout=GOODBYE_S)
            # With TLS, closing waits for the peer to say goodbye, too, and doesn't read it where reading is paused.
            if left_open and any(each.get_write_buffer_size() for each in transports.values()):
                await asyncio.wait(left_open, timeout=FORCE_TIMEOUT_S - GOODBYE_S)
    finally:
        left = [connection for connection, closed in closing.items() if not closed.done()]
        for connection in left:
            transports[connection].abort()
    if left:
        await asyncio.wait([closing[connection] for connection in left], timeout=FORCE_TIMEOUT_S)


async def abandon(producer: AIOKafkaProducer) -> None:
    """Let go of a producer within a bounded time, whatever it was doing; what it had not delivered is dropped.

    Its connections go first, so that requests under way fail instead of being waited for.
    """
    await _to_the_end(_abandon(producer))


async def _abandon(producer: AIOKafkaProducer) -> None:
    producer._closed = True  # there is nothing to flush, which is all that its own stop would do more
    _read_failures(producer)  # before closing makes the client forget some
    await _close(producer.client)
    await _cancel([producer._sender.sender_task])
    _read_failures(producer)
    metadata = producer.client._md_update_fut
    if metadata is not None:  # requests that wait for news from a cluster that this client no longer talks to
        metadata.cancel()
        await asyncio.sleep(0)


def _read_failures(producer: AIOKafkaProducer) -> None:
    """Look at the failures that nobody waits for, those to come as well: unread, each would be logged as never
    retrieved. The caller has the reason from the call that failed."""
    accumulator = producer._message_accumulator
    batches = [batch for queue in accumulator._batches.values() for batch in queue]
    futures = [
        future for batch in (*batches, *accumulator._pending_batches) for future in (batch._drain_waiter, batch.future)
    ]
    manager = producer._txn_manager
    if manager is not None:
        futures += [manager._transaction_waiter, *(future for *_, future in manager._pending_txn_offsets)]
    for future in futures:
        if future is not None:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())


async def stop_producer(producer: AIOKafkaProducer, *, within_s: float = STOP_TIMEOUT_S) -> None:
    """Deliver what is left and close; what isn't delivered ``within_s`` is dropped. Raises nothing."""
    await _to_the_end(_stop_producer(producer, within_s))


async def _stop_producer(producer: AIOKafkaProducer, within_s: float) -> None:
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait([stopping], timeout=within_s)
    await _abandon(producer)
    await _cancel([stopping])


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close, by force where that takes too long. Raises nothing."""
    await _to_the_end(_stop_consumer(consumer))


async def _stop_consumer(consumer: AIOKafkaConsumer) -> None:
    await _leave_while_joining(consumer)
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    # However that ended: an error, or the cancellation of its own tasks, keeps it from closing the connections.
    await _close(consumer._client)
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
    tasks = [getattr(coordinator, name, None) for name in names]
    await _cancel([stopping, *tasks, getattr(fetcher, "_fetch_task", None)])


async def _leave_while_joining(consumer: AIOKafkaConsumer) -> None:
    """Take a member that waits to be let into its group out of it: the client would wait on, and the group afterwards
    for a session. Asked on another connection, as the broker answers one after the other."""
    coordinator, client = consumer._coordinator, consumer._client
    if coordinator is None or consumer._group_id is None or consumer._group_instance_id is not None:
        return  # not started, in no group, or in it for good
    waits = consumer._subscription.reassignment_in_progress and coordinator.member_id
    if waits and coordinator.coordinator_id is not None:
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(FORCE_TIMEOUT_S):
                request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
                await client.send(coordinator.coordinator_id, request, group=ConnectionGroup.DEFAULT)


async def _to_the_end(work: Coroutine[object, object, None]) -> None:
    """Await what takes a bounded time, and pass on a cancellation that comes meanwhile when it is done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


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
