"""What a process tells about itself over HTTP: ``/metrics``, ``/healthz`` and ``/readyz``.

A server of its own on the process's event loop, on purpose: a thread would go on answering for a loop that hangs, and
the answer to "is it alive" would mean nothing.

| path | answer |
|---|---|
| ``/metrics`` | the series, as Prometheus's text or, where the scraper asks for it, OpenMetrics |
| ``/healthz`` | 200 while the loop turns and nothing fatal has happened; 503 with the reasons otherwise |
| ``/readyz`` | 200 once the process does its work; 503 with what it still waits for |

Bounded: 8 KiB a request, five seconds for it, 64 connections at once, one request a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client.exposition import choose_encoder

from workers.errors import ConfigError
from workers.settings import METRICS_OFF

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from workers.settings import MetricsSettings

__all__ = ["HealthServer", "Reasons"]

log = structlog.get_logger(__name__)

Reasons = Callable[[], Sequence[str]]
"""Why a process is not well, in sentences; nothing when it is."""

MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 64
MAX_DISCARDED_BYTES: Final = 256 * 1024
_REQUEST_TIMEOUT_S: Final = 5.0
_FULL_TIMEOUT_S: Final = 0.5
_TEXT: Final = "text/plain; charset=utf-8"


def _nothing() -> Sequence[str]:
    return ()


class HealthServer:
    """Serves one process's metrics and health while it is open.

    async with HealthServer(settings.metrics, metrics.registry, ready=worker.not_ready) as server:
        print(server.port)
    """

    def __init__(
        self,
        settings: MetricsSettings,
        registry: CollectorRegistry,
        *,
        alive: Reasons = _nothing,
        ready: Reasons = _nothing,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """``alive`` and ``ready`` give the reasons against; ``refresh`` is called before metrics are written."""
        self._settings = settings
        self._registry = registry
        self._alive, self._ready, self._refresh = alive, ready, refresh
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self.port: int | None = None
        """Where it listens; None where ``metrics.port`` is off."""

    async def __aenter__(self) -> HealthServer:
        """Listen. A port that is taken is replaced by a free one, with a warning: a second worker on a host must not
        fail for its metrics. Raises ``ConfigError`` where the address is not of this host, or not allowed."""
        if self._settings.port == METRICS_OFF:
            return self
        try:
            self._server = await self._listen(self._settings.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"metrics.host = {self._settings.host}, metrics.port = {self._settings.port}: can't listen there: "
                    f"{error.strerror or error}"
                ) from error
            self._server = await self._listen(0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        if self._settings.port not in (0, self.port):
            log.warning("metrics.port is in use; using a free port instead", wanted=self._settings.port, port=self.port)
        log.info("serving metrics and health", host=self._settings.host, port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers, timeout=_REQUEST_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                await self._server.wait_closed()

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._connected, self._settings.host, port, limit=MAX_REQUEST_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        full = len(self._handlers) > MAX_CONNECTIONS
        try:
            async with asyncio.timeout(_FULL_TIMEOUT_S if full else _REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")  # unread, it would turn the answer into a reset
                if full:
                    writer.write(_response(HTTPStatus.SERVICE_UNAVAILABLE, b"too many connections\n"))
                else:
                    writer.write(self._answer(request))
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"request too large\n"))
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_FULL_TIMEOUT_S):
                    await reader.read(MAX_DISCARDED_BYTES)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass  # a client that went away, or never said what it wanted
        finally:
            self._handlers.discard(handler)
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await writer.wait_closed()

    def _answer(self, request: bytes) -> bytes:
        first, *lines = request.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method not in ("GET", "HEAD"):
            response = _response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n", extra="Allow: GET, HEAD\r\n")
        else:
            response = self._get(path, headers.get("accept", ""))
        return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else response

    def _get(self, path: str, accept: str) -> bytes:
        if path == "/metrics":
            return self._metrics(accept)
        if path == "/healthz":
            return _verdict(self._alive)
        if path == "/readyz":
            return _verdict(lambda: [*self._alive(), *self._ready()])
        if path == "/":
            return _response(HTTPStatus.OK, b"/metrics\n/healthz\n/readyz\n")
        return _response(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

    def _metrics(self, accept: str) -> bytes:
        try:
            if self._refresh is not None:
                self._refresh()
            encode, content_type = choose_encoder(accept)
            body = encode(self._registry)
        except Exception as error:
            log.exception("can't render the metrics")
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error!r}\n".encode())
        return _response(HTTPStatus.OK, body, content_type)


def _verdict(reasons: Reasons) -> bytes:
    try:
        found = list(reasons())
    except Exception as error:
        log.exception("a health check failed")
        found = [f"the check itself failed: {error!r}"]
    if not found:
        return _response(HTTPStatus.OK, b"ok\n")
    return _response(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{reason}\n" for reason in found).encode())


def _response(status: HTTPStatus, body: bytes, content_type: str = _TEXT, *, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + body
