"""The dashboard's HTTP side: the page, the sign-in, and one WebSocket per browser.

A browser's socket has two halves. One reads wishes; the other takes from its `View`, four times a second at most, and
sends. Sending waits for the browser (the transport's own flow control), so a slow one gets fewer and newer messages,
and one that takes nothing for ``SEND_TIMEOUT_S`` is let go. Nothing is queued for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from workers.apps.dashboard.access import COOKIE, Access
from workers.apps.dashboard.views import View, Wish, WishError, read_wish
from workers.errors import ConfigError, WorkersError
from workers.times import NS_PER_MS, NS_PER_SECOND, format_duration

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from workers.apps.dashboard.model import DashboardModel
    from workers.settings import Settings, WindowSettings

__all__ = ["Dashboard", "listen", "serve"]

MAX_CLIENTS: Final = 32
SEND_TIMEOUT_S: Final = 15.0
SEND_EVERY_S: Final = 0.25
EXPLAIN_TIMEOUT_S: Final = 30.0
EXPLAIN_READ_ON_NS: Final = 60 * NS_PER_SECOND  # of the log, after the window was over
EXPLAINED_TICKS: Final = 300
MAX_EXPLAINED_BYTES: Final = 256 * 1024
_MAX_WISHES_PER_S: Final = 40
_MAX_FORM_BYTES: Final = 4 * 1024
_WRONG_TOKEN_DELAY_S: Final = 0.5
_TOO_MANY, _NOT_UNDERSTOOD, _TOO_SLOW = 4029, 4000, 4008  # close codes, told apart by the page

_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without any, the sign-in form's Origin would be null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_Explain = Callable[[str, int], Awaitable[dict[str, object]]]
_OPEN_FILES: Final = frozenset({"style.css", "icon.svg"})  # the sign-in page needs them


class Dashboard:
    """The application that a server runs: ``app`` is ASGI. ``clients`` is how many browsers are connected."""

    def __init__(
        self, settings: Settings, model: DashboardModel, access: Access, *, max_clients: int = MAX_CLIENTS
    ) -> None:
        self._settings, self._model, self._access = settings, model, access
        self._max_clients = max_clients
        self._files = _static_files()
        self._explaining = asyncio.Semaphore(1)
        self.clients = 0
        self._app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/sign-in", self._sign_in, methods=["POST"]),
                Route("/{name:str}", self._file),
                WebSocketRoute("/live", self._live),
            ]
        )
        self.app: ASGIApp = self._guarded

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every request: the Host header first, and the headers of every answer."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        host = Headers(scope=scope).get("host")
        if self._access.right_host(host):
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send_guarded).close()  # before it was accepted: answered with 403
        else:
            text = (
                f"The Host header is {(host or '')[:100]!r}; this dashboard is reached under another name. "
                "Start it with --allow-host NAME if this one is right.\n"
            )
            await PlainTextResponse(text, 421)(scope, receive, send_guarded)

    def _may_look(self, connection: Request | WebSocket) -> bool:
        headers = connection.headers
        return self._access.may_look(connection.cookies.get(COOKIE), headers.get("authorization"))

    async def _page(self, request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None:
            return await self._trade(given)
        if self._may_look(request):
            return self._static("index.html")
        return self._static("sign-in.html", 401)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files or name.endswith(".html"):
            return PlainTextResponse("Not found.\n", 404)
        if name not in _OPEN_FILES and not self._may_look(request):
            return PlainTextResponse("Sign in first.\n", 401)
        return self._static(name)

    async def _sign_in(self, request: Request) -> Response:
        if not self._access.right_origin(request.headers.get("origin"), request.headers.get("host")):
            return PlainTextResponse("This form belongs to another page.\n", 403)
        form = b""
        async for chunk in request.stream():
            form += chunk
            if len(form) > _MAX_FORM_BYTES:
                return PlainTextResponse("The token is too long.\n", 413)
        return await self._trade(parse_qs(form.decode("utf-8", "replace")).get("token", [""])[0])

    async def _trade(self, given: str) -> Response:
        """The token for a cookie, and the way to the page without it."""
        if not self._access.right_token(given):
            if self._access.token is None:
                return RedirectResponse("/", 303)
            await asyncio.sleep(_WRONG_TOKEN_DELAY_S)  # guessing takes its time
            return self._static("sign-in.html", 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._access.cookie, max_age=30 * 86_400, httponly=True, samesite="strict")
        return answer

    def _static(self, name: str, status: int = 200) -> Response:
        suffix = name[name.rindex(".") :]
        return Response(self._files[name], status, media_type=_TYPES[suffix])

    # -- the socket ---------------------------------------------------------------------------------------------------

    async def _live(self, browser: WebSocket) -> None:
        headers = browser.headers
        if not self._may_look(browser) or not self._access.right_origin(headers.get("origin"), headers.get("host")):
            await browser.close()
            return
        await browser.accept()
        if self.clients >= self._max_clients:
            await browser.close(_TOO_MANY, f"{self.clients} browsers are connected already")
            return
        self.clients += 1
        try:
            await _Client(browser, View(self._model), self._hello(), self._explain).run()
        finally:
            self.clients -= 1

    def _hello(self) -> dict[str, object]:
        settings = self._settings
        window, pressure = settings.window, settings.backpressure
        return {
            "application": settings.application_id,
            "version": _version(),
            "topics": {
                "ticks": settings.topics.ticks,
                "frames": settings.topics.frames,
                "late": settings.topics.late,
                "dead": settings.topics.dead_letters,
            },
            "window_ms": window.size // NS_PER_MS if window.kind in ("tumbling", "hopping") else 0,  # 0: of any length
            "window": _windows_text(window),
            "lag": format_duration(window.lag),
            "allowed_lateness": format_duration(window.allowed_lateness),
            "mergeable": window.kind == "tumbling" and window.offset == 0 and window.time_zone is None,
            "soft_lag": pressure.soft_lag if pressure.enabled else None,
            "hard_lag": pressure.hard_lag if pressure.enabled else None,
            "explain": importlib.util.find_spec("workers.apps.inspect.explain") is not None,
        }

    async def _explain(self, symbol: str, start_ms: int) -> dict[str, object]:
        """What became of the ticks of a bar, as ``workers explain`` tells it, or why that can't be told."""
        if importlib.util.find_spec("workers.apps.inspect.explain") is None:
            return {"error": "this installation has no workers explain"}
        if self._explaining.locked():
            return {"error": "another browser is being answered; try again in a moment"}
        async with self._explaining:
            try:
                # Reading a log again is work: in a thread with a loop of its own, it delays nobody's bars.
                told = await asyncio.to_thread(lambda: asyncio.run(_explained(self._settings, symbol, start_ms)))
            except TimeoutError:
                return {"error": f"no answer within {EXPLAIN_TIMEOUT_S:.0f} s; use `workers explain` on a terminal"}
            except (WorkersError, ValueError, OverflowError) as error:
                return {"error": str(error)[:2_000]}
        if len(told) > MAX_EXPLAINED_BYTES:
            return {"error": f"the answer is {len(told):,} bytes; use `workers explain` on a terminal"}
        return {"told": orjson.Fragment(told)}


def _windows_text(window: WindowSettings) -> str:
    """Which windows these are, in a few words."""
    size = format_duration(window.size)
    if window.kind == "hopping":
        return f"hopping {size} every {format_duration(window.hop)}"
    if window.kind == "session":
        return f"session (gap {format_duration(window.gap)})"
    if window.kind == "calendar":
        return f"{window.calendar} ({window.session} session)"
    return f"tumbling {size}" if window.time_zone is None else f"tumbling {size} ({window.time_zone})"


async def _explained(settings: Settings, symbol: str, start_ms: int) -> bytes:
    """The answer as JSON. Raises ``TimeoutError``, and what ``explain`` raises."""
    from workers.apps.inspect.explain import explain

    async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
        found = await explain(
            settings,
            symbol,
            start_ms * NS_PER_MS,
            around_ns=NS_PER_MS if settings.window.kind == "session" else 0,  # it starts within that millisecond
            read_on_ns=EXPLAIN_READ_ON_NS,
            everywhere=False,
            tick_limit=EXPLAINED_TICKS,
        )
    return orjson.dumps(found.to_dict(), default=str)


class _Client:
    """One browser, from its acceptance to its end."""

    def __init__(self, browser: WebSocket, view: View, hello: dict[str, object], explain: _Explain) -> None:
        self._browser, self._view, self._hello, self._explain = browser, view, hello, explain
        self._wanted = asyncio.Event()
        self._answers: dict[str, object] | None = None
        self._asked: asyncio.Task[None] | None = None

    async def run(self) -> None:
        halves = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            code, reason = next(iter(done)).result()
            if code:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._browser.close(code, reason)
        finally:
            tasks = [*halves, *([self._asked] if self._asked is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> tuple[int, str]:
        """Wishes, until there are no more; returns why it ended."""
        window_s, taken = time.monotonic(), 0
        try:
            while True:
                wish = read_wish(await self._browser.receive_text())
                now_s = time.monotonic()
                if now_s - window_s >= 1.0:
                    window_s, taken = now_s, 0
                taken += 1
                if taken > _MAX_WISHES_PER_S:
                    return _NOT_UNDERSTOOD, f"more than {_MAX_WISHES_PER_S} wishes in a second"
                self._want(wish)
        except WebSocketDisconnect:
            return 0, ""
        except WishError as error:
            return _NOT_UNDERSTOOD, str(error)[:100]
        except KeyError:
            return _NOT_UNDERSTOOD, "a binary message; expected text"

    def _want(self, wish: Wish) -> None:
        self._view.want(wish)
        if wish.explain is not None and (self._asked is None or self._asked.done()):
            self._asked = asyncio.create_task(self._ask(wish.explain.symbol, wish.explain.start))
        self._wanted.set()

    async def _ask(self, symbol: str, start_ms: int) -> None:
        answer = await self._explain(symbol, start_ms)
        self._answers = {"symbol": symbol, "start": start_ms, **answer}
        self._wanted.set()

    async def _write(self) -> tuple[int, str]:
        """What changed, at most every ``SEND_EVERY_S``; at least the time once a second, as a sign of life."""
        first: dict[str, object] = {"hello": self._hello}
        sent_s = 0.0
        while True:
            message = first | self._view.message(time.time_ns(), time.monotonic_ns())
            first = {}
            if self._answers is not None:
                message["explained"], self._answers = self._answers, None
            if len(message) > 1 or time.monotonic() - sent_s >= 1.0:
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await self._browser.send_text(orjson.dumps(message).decode())
                except TimeoutError:
                    return _TOO_SLOW, "the browser stopped reading"
                except WebSocketDisconnect:
                    return 0, ""
                sent_s = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEND_EVERY_S):
                    await self._wanted.wait()
            if self._wanted.is_set():
                self._wanted.clear()
                await asyncio.sleep(0.02)  # a burst of wishes gets one answer


# -- running ----------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ``ConfigError`` where that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Bounds what the kernel holds for a browser that takes nothing; its next message is the newest all the sooner.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted sockets have it too: one whose browser takes nothing ends, with what is still to be sent.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2_000 * SEND_TIMEOUT_S))
        opened.bind((host.strip("[]"), port))
        opened.listen(128)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        raise ConfigError(f"--host {host} --port {port}: can't listen there: {error.strerror or error}") from error
    return opened


class _Server(uvicorn.Server):
    """Signals are the command's business, which ends the server by ``should_exit``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(dashboard: Dashboard, opened: socket.socket, stop: asyncio.Event) -> None:
    """Serve on a listening socket until ``stop`` is set; browsers that are still connected are told goodbye."""
    config = uvicorn.Config(
        dashboard.app,
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http="h11",
        ws="websockets-sansio",
        ws_max_size=64 * 1024,
        ws_per_message_deflate=False,
        limit_concurrency=256,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 * 1024,
        proxy_headers=False,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[opened]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        stopping.cancel()
        await serving


def _static_files() -> dict[str, bytes]:
    folder = files("workers.apps.dashboard") / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(tuple(_TYPES))}


def _version() -> str:
    try:
        return version("tick-workers")
    except PackageNotFoundError:
        return "unknown"
