"""Reaching the cluster, and saying in the user's terms why it can't be reached.

aiokafka logs the reason of a failed connection and raises an error that names neither the reason nor the setting to
look at. So a failed start is followed by one more attempt at each address, on which the reason does show.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn

from workers.errors import BrokerError, TopicError, WorkersError
from workers.kafka.errors import REFUSED, chain
from workers.kafka.metadata import SafeMetadataRequest
from workers.kafka.options import client_options
from workers.kafka.refusals import refusal
from workers.kafka.repairs import close_connection, repair_client

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["connecting", "diagnose_connection_error", "explain_connection_error"]

_CONNECT_TIMEOUT_S: Final = 15.0
_PROBE_TIMEOUT_S: Final = 5.0

_LOGIN_ERRORS = (
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.AuthenticationFailedError,
    kafka_errors.IllegalSaslStateError,
)


@asynccontextmanager
async def connecting(settings: Settings) -> AsyncIterator[None]:
    """Bounds the start of a client and turns its failure into a ``BrokerError`` that gives the reason.

    The client must be stopped after that, too: it may have come far enough to hold connections.
    """
    repair_client()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            yield
    except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
        raise await diagnose_connection_error(error, settings) from error


async def diagnose_connection_error(error: BaseException, settings: Settings) -> WorkersError:
    """What went wrong, for an error that a client of aiokafka raised at its start; connects once more to find out."""
    if isinstance(error, WorkersError):
        return error
    vague = isinstance(error, kafka_errors.KafkaConnectionError | kafka_errors.NodeNotReadyError | TimeoutError)
    found = await _first_failure(settings) if vague else None
    return explain_connection_error(found or error, settings)


def explain_connection_error(error: BaseException, settings: Settings) -> WorkersError:
    """The error of this package that says what an exception of aiokafka means for the user; nothing is tried out.

    The result is a ``BrokerError`` (a ``TopicError`` for an unknown topic); one of this package comes back unchanged.
    """
    if isinstance(error, WorkersError):
        return error
    where, kafka = settings.bootstrap_servers, settings.kafka
    for cause in chain(error, implied=True):
        if isinstance(cause, _LOGIN_ERRORS):
            return BrokerError(
                f"the broker at {where} refuses the credentials of {kafka.sasl_username or 'the JAAS login'!r}: "
                f"{_words(cause)}. Check kafka.sasl.username, kafka.sasl.password and kafka.sasl.mechanism "
                f"({kafka.sasl_mechanism})"
            )
        if isinstance(cause, kafka_errors.UnsupportedSaslMechanismError):
            return BrokerError(f"the broker at {where} does not offer kafka.sasl.mechanism = {kafka.sasl_mechanism}")
        if isinstance(cause, REFUSED):
            return refusal(cause, settings)
        if isinstance(cause, ssl.SSLError):
            return BrokerError(
                f"no TLS connection to {where}: {cause.reason or cause}. Check kafka.security.protocol "
                f"({kafka.security_protocol}) and kafka.ssl.ca.location"
            )
        if isinstance(cause, kafka_errors.UnknownTopicOrPartitionError):
            return TopicError(f"a topic is unknown to the cluster at {where}, or this user may not see it")
    return BrokerError(f"can't reach a broker at {where}: {_reach_reason(error, settings)}")


def _reach_reason(error: BaseException, settings: Settings) -> str:
    for cause in chain(error, implied=True):
        if isinstance(cause, socket.gaierror):
            return f"unknown host name ({cause.strerror})"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused. Is a broker running there? Set it with --bootstrap-servers"
        if isinstance(cause, _NotAsAdvertisedError):
            return f"it answers, but not at the address that it advertises, {cause} (the broker's advertised.listeners)"
        if isinstance(cause, _SilentError):
            return "it accepts connections, but does not answer. Is it a broker, and not frozen or overloaded?"
        if isinstance(cause, _AnswersNowError):
            return "it did not answer in time, but does now; try again"
        if isinstance(cause, kafka_errors.NodeNotReadyError):
            return "the connection to a broker was lost, or could not be made"
        if isinstance(cause, TimeoutError | kafka_errors.RequestTimedOutError):
            return "timed out"
    if any(
        isinstance(cause, kafka_errors.KafkaConnectionError | ConnectionError) for cause in chain(error, implied=True)
    ):
        protocol = settings.kafka.security_protocol
        return f"it closed the connection. Does it expect another kafka.security.protocol than {protocol}?"
    return _words(error)


class _NotAsAdvertisedError(Exception):
    """A broker answers where it was asked, but nobody at the address that it gives for itself, which the text names."""


class _SilentError(Exception):
    """Connections are accepted, and nothing that is asked on them is answered."""


class _AnswersNowError(Exception):
    """All that failed before works by now."""


async def _first_failure(settings: Settings) -> BaseException | None:
    """The exception that plain connections meet, to the addresses and to those that the brokers give for themselves."""
    options = client_options(settings)
    for name in ("bootstrap_servers", "metadata_max_age_ms", "retry_backoff_ms", "connections_max_idle_ms"):
        options.pop(name)
    failure: BaseException | None = None
    for host, port in _addresses(settings):
        connection = None
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                connection = await create_conn(host, port, **options)
                # A listener that wants a login answers the handshake without one, and hangs up at the next request.
                found = await connection.send(SafeMetadataRequest([]))
        except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and await _accepts(host, port):
                error = _SilentError()
            failure = failure or error
        else:
            return await _unreachable(((host, port) for _node, host, port, *_ in found.brokers), options)
        finally:
            if connection is not None:
                await close_connection(connection)
    return failure


async def _accepts(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _unreachable(advertised: Iterable[tuple[str, int]], options: Mapping[str, Any]) -> BaseException:
    """That one of the addresses can't be connected to, or that all can, after all."""
    for host, port in advertised:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await close_connection(await create_conn(host, port, **options))
        except (kafka_errors.KafkaError, OSError, TimeoutError):
            return _NotAsAdvertisedError(f"{host}:{port}")
    return _AnswersNowError()


def _addresses(settings: Settings) -> Iterator[tuple[str, int]]:
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.rpartition(":")
        yield host.strip("[]"), int(port)


def _words(error: BaseException) -> str:
    """What an exception says, without Kafka's error numbers and Python's class names where there is text."""
    text = " ".join(str(argument) for argument in error.args if isinstance(argument, str))
    return text or getattr(error, "description", "") or type(error).__name__
