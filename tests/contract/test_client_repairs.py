"""What is repaired in aiokafka's client: without it, each of these fails."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import client as library
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from tests.chaos.link import Link
from tests.support.certificates import make_certificate
from workers.apps.broker import Broker
from workers.apps.broker.base import free_ports
from workers.kafka import repairs
from workers.kafka.repairs import (
    METADATA_UPDATES_A_SECOND,
    abandon,
    close_connection,
    repair_client,
    stop_consumer,
    stop_producer,
)

WATCHED_S = 2.0
CLOSE_LIMIT_S = 6.0


@pytest.fixture(autouse=True)
def repaired() -> None:
    repair_client()


@pytest.mark.timeout(60)
async def test_a_client_whose_topic_is_gone_asks_for_it_at_a_bounded_rate(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"gone-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    try:
        await admin.create_topics([NewTopic(topic, 2, 1)])
        consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        await consumer.start()
        await consumer.getmany(timeout_ms=500)
        await admin.delete_topics([topic])
        await asyncio.sleep(1.5)
        asked = 0
        send = AIOKafkaConnection.send

        def counting(self: AIOKafkaConnection, request: object, expect_response: bool = True) -> object:
            nonlocal asked
            asked += isinstance(request, MetadataRequest)
            return send(self, request, expect_response)

        monkeypatch.setattr(AIOKafkaConnection, "send", counting)
        for _ in range(int(WATCHED_S / 0.2)):
            await consumer.getmany(timeout_ms=200)
    finally:
        await consumer.stop()
        await admin.close()
    assert asked <= METADATA_UPDATES_A_SECOND * (WATCHED_S + 1)


async def test_a_node_that_can_not_be_connected_to_is_tried_again_after_a_rest(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap_servers)
    await client.bootstrap()
    tried = 0

    async def refused(*_: object, **__: object) -> None:
        nonlocal tried
        tried += 1
        raise ConnectionRefusedError

    try:
        [node] = [each.nodeId for each in client.cluster.brokers()]
        with monkeypatch.context() as patched:
            patched.setattr(repairs, "FIRST_REST_S", 600.0)
            patched.setattr(library, "create_conn", refused)
            assert not await client.ready(node)
            waiting = asyncio.ensure_future(client.ready(node))
            for _ in range(100):
                await asyncio.sleep(0)
            assert (tried, waiting.done()) == (1, False)
            waiting.cancel()
            await asyncio.wait([waiting])
        client._due.clear()  # its rest is over
        assert await client.ready(node)
        assert not client._due
    finally:
        await client.close()


async def test_a_node_that_accepts_and_does_not_answer_keeps_a_client_from_others_for_a_short_time(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "CONNECT_TIMEOUT_S", 0.1)
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap_servers)
    await client.bootstrap()
    silent = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, and nobody answers
    try:
        [known] = client.cluster.brokers()
        client.cluster._brokers[99] = known._replace(nodeId=99, port=silent.getsockname()[1])
        async with asyncio.timeout(CLOSE_LIMIT_S):
            assert not await client.ready(99)
            monkeypatch.setattr(repairs, "CONNECT_TIMEOUT_S", 10.0)
            assert await client.ready(known.nodeId)
    finally:
        await client.close()
        silent.close()


# -- connections ------------------------------------------------------------------------------------------------------


def connections(port: int) -> int:
    """Sockets of this process that are connected to a port, in whatever state."""
    return sum(bool(each.raddr) and each.raddr.port == port for each in psutil.Process().net_connections(kind="tcp"))


def port_of(bootstrap_servers: str) -> int:
    return int(bootstrap_servers.rpartition(":")[2])


@contextlib.asynccontextmanager
async def answering_once(
    bootstrap_servers: str, tls: ssl.SSLContext | None = None, *, reads_on: bool = True
) -> AsyncIterator[int]:
    """The port of a proxy that passes on one request and its answer of each connection, and nothing after that."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        writers = [writer]
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port_of(bootstrap_servers))
            writers.append(their_writer)
            for incoming, outgoing in ((reader, their_writer), (their_reader, writer)):
                size = await incoming.readexactly(4)
                outgoing.write(size + await incoming.readexactly(int.from_bytes(size, "big")))
            if not reads_on:
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a stream's writer it can be
                await asyncio.Event().wait()
            while await reader.read(65_536):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            for each in writers:
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.mark.timeout(60)
async def test_a_start_that_is_given_up_leaves_no_connection(broker: Broker) -> None:
    async with answering_once(broker.bootstrap_servers) as port:
        for make, stop in (
            (AIOKafkaConsumer, stop_consumer),
            (AIOKafkaProducer, stop_producer),
            (AIOKafkaAdminClient, AIOKafkaAdminClient.close),
        ):
            client = make(bootstrap_servers=f"127.0.0.1:{port}")
            with pytest.raises(TimeoutError) as kept:
                await asyncio.wait_for(client.start(), 0.5)
            await stop(client)
            assert connections(port) == 0, make
            del kept


@contextlib.asynccontextmanager
async def unheard(client: AIOKafkaClient, broker: Broker) -> AsyncIterator[int]:
    """Connect the client to its broker over a proxy that stops passing anything on, with more written than it takes.

    Yields the proxy's port.
    """
    (port,) = free_ports(1)
    link = Link(port, port_of(broker.bootstrap_servers))
    await link.start()
    try:
        await client.bootstrap()
        node = client.get_random_node()
        client.cluster._brokers[node] = client.cluster._brokers[node]._replace(host="127.0.0.1", port=port)
        assert await client.ready(node)
        await link.cut("silence")
        (connection,) = client._conns.values()
        connection._writer.write(bytes(64 * 1024 * 1024))
        yield port
    finally:
        await link.heal()
        await link.stop()


@pytest.mark.timeout(60)
async def test_closing_does_not_wait_for_a_peer_that_reads_nothing(broker: Broker) -> None:
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap_servers)
    async with unheard(client, broker) as port:
        began_s = time.monotonic()
        await client.close()
        assert time.monotonic() - began_s < CLOSE_LIMIT_S
        assert connections(port) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stop", [stop_producer, abandon])
async def test_who_is_cancelled_while_it_stops_a_client_leaves_it_stopped(
    broker: Broker, stop: Callable[[AIOKafkaProducer], Awaitable[None]]
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    async with unheard(producer.client, broker) as port:
        stopping = asyncio.ensure_future(stop(producer))
        await asyncio.sleep(0.1)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert connections(port) == 0


@pytest.mark.timeout(60)
async def test_nothing_connects_for_a_client_that_is_closed(broker: Broker, topic_name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, retry_backoff_ms=1)
    try:
        await admin.create_topics([NewTopic(topic_name, 1, 1)])
        await producer.start()
        await producer.send_and_wait(topic_name, b"first")
        before = connections(port_of(broker.bootstrap_servers))
        node = producer.client.get_random_node()
        await producer.client.close()
        connecting = [asyncio.ensure_future(producer.client.ready(node)) for _ in range(3)]
        assert await asyncio.gather(*connecting) == [False] * 3
        await abandon(producer)
        assert connections(port_of(broker.bootstrap_servers)) < before
    finally:
        await abandon(producer)
        await admin.close()
    assert connections(port_of(broker.bootstrap_servers)) == 0


@pytest.mark.timeout(60)
async def test_a_consumer_whose_stop_is_ended_by_its_own_tasks_is_closed(broker: Broker) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
    await consumer.start()
    # Before its first step, so that it can't catch this: `stop` awaits the task, and ends there with a CancelledError.
    consumer._coordinator._reset_committed_task.cancel()
    await stop_consumer(consumer)
    assert connections(port_of(broker.bootstrap_servers)) == 0


@pytest.mark.timeout(60)
async def test_closing_does_not_wait_for_a_goodbye_of_tls_that_does_not_come(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer answers what a connection begins with, and then reads nothing more."""
    certificate, key = make_certificate(tmp_path)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, key)
    monkeypatch.setattr(repairs, "FORCE_TIMEOUT_S", 600.0)  # what closing falls back on
    async with answering_once(broker.bootstrap_servers, serving, reads_on=False) as port:
        trusting = ssl.create_default_context(cafile=str(certificate))
        connection = await create_conn("127.0.0.1", port, security_protocol="SSL", ssl_context=trusting)
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await close_connection(connection)
        assert connections(port) == 0
