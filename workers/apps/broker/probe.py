"""Asks an address whether a Kafka broker is behind it, in a few bytes and without an event loop.

`find_broker` is synchronous and may be called inside a running event loop, where no client of this project's could be
used; and a client would retry for long where one honest look is wanted.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable

from workers.errors import BrokerError

__all__ = ["ProbeError", "answers", "is_ready", "split_address", "wait_until"]

_API_VERSIONS, _METADATA = 18, 3
_CORRELATION_ID = 1
_REPLY_MAX_BYTES = 1 << 20  # anything longer is another protocol's text read as a length


class ProbeError(BrokerError):
    """Nothing answers at the address, or what answers does not speak Kafka's protocol."""


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` in its parts; raises ``ProbeError`` for anything else."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ProbeError(f"{address!r} is not an address; expected host:port")
    return host.strip("[]"), int(port)


def answers(address: str, *, timeout_s: float) -> None:
    """Returns when a Kafka listener of any security protocol answers at ``address``.

    A listener without TLS answers an ApiVersions request even before authentication; one with TLS at least talks TLS.
    Raises ``ProbeError`` with the reason otherwise.
    """
    try:
        _exchange(address, _API_VERSIONS, 0, b"", timeout_s)
    except ProbeError as plain:
        if not _talks_tls(address, timeout_s):
            raise plain from None


def is_ready(address: str, *, timeout_s: float) -> bool:
    """Whether the plaintext listener at ``address`` names at least one live broker, as clients need it to."""
    try:
        # Metadata version 1 with no topics: the reply begins with the number of brokers.
        body = _exchange(address, _METADATA, 1, struct.pack(">i", 0), timeout_s)
    except ProbeError:
        return False
    return len(body) >= 4 and int(struct.unpack_from(">i", body)[0]) > 0


def wait_until(condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.03) -> bool:
    """Polls ``condition`` until it holds (True) or ``timeout_s`` has passed (False)."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(every_s)
    return True


def _exchange(address: str, api: int, version: int, body: bytes, timeout_s: float) -> bytes:
    """One request with a version-1 header, one reply; returns what follows the correlation id."""
    request = struct.pack(">hhih", api, version, _CORRELATION_ID, -1) + body
    host, port = split_address(address)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            if connection.getsockname() == connection.getpeername():  # loopback met itself on a port nobody listens on
                raise ConnectionRefusedError("connection refused")
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read_exactly(connection, 4, address))
            if not 4 <= size <= _REPLY_MAX_BYTES:
                raise ProbeError(f"{address}: what answers does not speak Kafka's protocol")
            reply = _read_exactly(connection, size, address)
    except OSError as error:
        raise ProbeError(f"{address}: {error}") from error
    if struct.unpack_from(">i", reply)[0] != _CORRELATION_ID:
        raise ProbeError(f"{address}: what answers does not speak Kafka's protocol")
    return reply[4:]


def _read_exactly(connection: socket.socket, size: int, address: str) -> bytes:
    received = b""
    while len(received) < size:
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise ProbeError(f"{address}: the connection was closed without an answer")
        received += chunk
    return received


def _talks_tls(address: str, timeout_s: float) -> bool:
    """Whether a TLS server is there; certificates are none of this probe's business, real clients check them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = split_address(address)
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error).upper()  # it refused us in TLS, so it speaks it
    except OSError:
        return False
