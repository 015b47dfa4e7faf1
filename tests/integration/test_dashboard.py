"""``workers dashboard``: who may look, and what a browser is told of a real application."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import orjson
import pytest
import websockets.exceptions
from websockets.asyncio.client import ClientConnection, connect

from tests.integration.apps import App, Process, committed_through, send, wait_until
from tests.support.boards import board, frame
from workers.apps.broker import Broker
from workers.apps.dashboard import server

TOKEN = "a-token-of-some-length"


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer here, not something to follow."""

    def redirect_request(self, *_: object) -> None:
        return None


async def ask(url: str, *, data: bytes | None = None, **headers: str) -> tuple[int, Message, str]:
    """One HTTP request; ``_`` in a header's name stands for the hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=data, headers=named)

    def go() -> tuple[int, Message, str]:
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    return await asyncio.to_thread(go)


async def refused(port: int, **options: Any) -> int:
    """The status with which the socket refuses a connection."""
    with pytest.raises(websockets.exceptions.InvalidStatus) as found:
        async with connect(f"ws://127.0.0.1:{port}/live", **options):
            pass
    return found.value.response.status_code


async def gone(browser: ClientConnection, *, asking: bool = False) -> None:
    """Wait until the server has closed the connection, asking without end until then if so wanted."""
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        async with asyncio.timeout(20):
            while True:
                if asking:
                    await browser.send("{}")
                    await asyncio.sleep(0)
                else:
                    await browser.recv()


async def hear(
    browser: ClientConnection, enough: Callable[[dict[str, Any]], bool], what: str, limit_s: float = 60.0
) -> dict[str, Any]:
    """Take messages, keeping the last of each part, until they suffice; fails with ``what`` after the limit."""
    known: dict[str, Any] = {}
    try:
        async with asyncio.timeout(limit_s):
            while not enough(known):
                message = orjson.loads(await browser.recv())
                bars = known.get("bars")
                if bars is not None and "bars" in message and not message["bars"]["reset"]:
                    message["bars"]["rows"] = bars["rows"] + message["bars"]["rows"]
                if "events" in message:
                    message["events"] = known.get("events", []) + message["events"]
                known |= message
    except TimeoutError:
        pytest.fail(f"not within {limit_s} s: {what}; known are {orjson.dumps(known)[:3000]!r}")
    return known


# -- who may look -----------------------------------------------------------------------------------------------------


async def test_every_answer_forbids_foreign_content_and_the_page_names_no_other_host() -> None:
    async with board() as shown:
        for path in (
            "",
            "page.js",
            "candles.js",
            "curves.js",
            "link.js",
            "text.js",
            "style.css",
            "icon.svg",
            "nothing",
        ):
            status, headers, text = await ask(shown.url + path)
            assert status == (404 if path == "nothing" else 200)
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            foreign = re.findall(r"(?:https?|wss?):\/\/(?!www\.w3\.org/2000/svg)[\w.]+", text)
            assert not foreign, f"{path} names {foreign}"


async def test_the_page_makes_no_markup_of_text() -> None:
    async with board() as shown:
        for path in ("page.js", "candles.js", "curves.js", "link.js", "text.js"):
            _, _, text = await ask(shown.url + path)
            found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            assert not found, path


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.1.2.3"])
async def test_a_request_under_another_name_is_refused(host: str) -> None:
    async with board() as shown:
        status, _, text = await ask(shown.url, Host=host)
        assert (status, host in text) == (421, True)
        named = host.partition(":")[0]
        with pytest.raises(websockets.exceptions.InvalidStatus) as found:
            await connect(f"ws://{named}:{shown.port}/live", host="127.0.0.1", port=shown.port)
        assert found.value.response.status_code == 403


async def test_a_foreign_page_gets_no_socket() -> None:
    async with board() as shown:
        assert await refused(shown.port, origin="http://evil.example") == 403
        async with connect(f"ws://127.0.0.1:{shown.port}/live", origin=f"http://127.0.0.1:{shown.port}") as browser:
            await hear(browser, lambda known: "hello" in known, "a greeting")


async def test_without_the_token_there_is_a_sign_in_and_nothing_else() -> None:
    async with board(token=TOKEN) as shown:
        status, _, text = await ask(shown.url)
        assert (status, 'type="password"' in text, "page.js" in text) == (401, True, False)
        assert (await ask(shown.url + "page.js"))[0] == 401
        assert (await ask(shown.url + "style.css"))[0] == 200
        assert await refused(shown.port) == 403
        assert await refused(shown.port, additional_headers={"Authorization": "Bearer wrong"}) == 403
        assert await refused(shown.port, additional_headers={"Cookie": f"workers-dashboard={TOKEN}"}) == 403


async def test_the_token_is_traded_for_a_cookie_that_opens_page_and_socket() -> None:
    async with board(token=TOKEN) as shown:
        for request in (
            {"url": f"{shown.url}?token={TOKEN}"},
            {"url": f"{shown.url}sign-in", "data": f"token={TOKEN}".encode()},
        ):
            status, headers, _ = await ask(**request)  # type: ignore[arg-type]
            cookie = headers["set-cookie"]
            assert (status, headers["location"]) == (303, "/")
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert TOKEN not in cookie
            given = cookie.partition(";")[0]
            assert (await ask(shown.url, Cookie=given))[0] == 200
            async with connect(f"ws://127.0.0.1:{shown.port}/live", additional_headers={"Cookie": given}) as browser:
                await hear(browser, lambda known: "hello" in known, "a greeting")
        async with connect(
            f"ws://127.0.0.1:{shown.port}/live", additional_headers={"Authorization": f"Bearer {TOKEN}"}
        ) as browser:
            await hear(browser, lambda known: "hello" in known, "a greeting")


async def test_a_wrong_token_takes_its_time_and_sets_no_cookie() -> None:
    async with board(token=TOKEN) as shown:
        began_s = time.monotonic()
        status, headers, _ = await ask(f"{shown.url}sign-in", data=b"token=wrong")
        assert (status, headers["set-cookie"]) == (401, None)
        assert time.monotonic() - began_s > 0.4
        status, _, _ = await ask(f"{shown.url}sign-in", data=f"token={TOKEN}".encode(), Origin="http://evil.example")
        assert status == 403
        assert (await ask(f"{shown.url}sign-in", data=b"x" * 100_000))[0] == 413


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_one_browser_too_many_is_told_so_and_the_others_stay() -> None:
    async with board(max_clients=2) as shown:
        url = f"ws://127.0.0.1:{shown.port}/live"
        async with connect(url) as first, connect(url) as second:
            for browser in (first, second):
                await hear(browser, lambda known: "hello" in known, "a greeting")
            async with connect(url) as third:
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    await third.recv()
                assert third.close_code == 4029
            shown.model.take_frame(frame("STILL"), 0, 0)
            await hear(first, lambda known: "STILL" in str(known.get("symbols")), "news for the first")
        async with connect(url) as fourth:
            await hear(fourth, lambda known: "hello" in known, "a place that became free", 10)


@pytest.mark.parametrize("message", ["{", '{"symbol": 1}', b"\x00\x01", "[" * 5_000])
async def test_a_browser_that_sends_nonsense_is_let_go(message: str | bytes) -> None:
    async with board() as shown, connect(f"ws://127.0.0.1:{shown.port}/live") as browser:
        await browser.send(message)
        await gone(browser)
        assert browser.close_code == 4000
        await wait_until(lambda: shown.dashboard.clients == 0, "the place is free again", 10)


async def test_a_browser_that_asks_without_end_is_let_go() -> None:
    async with board() as shown, connect(f"ws://127.0.0.1:{shown.port}/live") as browser:
        await gone(browser, asking=True)
        assert browser.close_code == 4000


async def test_a_browser_that_takes_nothing_slows_nobody_and_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_TIMEOUT_S", 2.0)
    async with board() as shown:
        for number in range(1_400):
            shown.model.take_frame(frame(number=number), 0, 0)
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            stuck.connect(("127.0.0.1", shown.port))
            request = (
                "GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            wish = b'{"symbol":"AAPL"}'
            stuck.sendall(request.encode())
            assert b"101 Switching" in await asyncio.to_thread(stuck.recv, 100)
            stuck.sendall(bytes([0x81, 0x80 | len(wish), 0, 0, 0, 0]) + wish)  # the last it does
            await wait_until(lambda: shown.dashboard.clients == 1, "it is connected", 10)
            async with connect(f"ws://127.0.0.1:{shown.port}/live") as other:
                await other.send('{"symbol":"AAPL"}')
                await hear(other, lambda known: "bars" in known, "bars for the other", 10)
                began_s = time.monotonic()
                for number in range(8):
                    # A bar for everybody each time: what the stuck one is owed must not pile up.
                    for other_number in range(1_400):
                        shown.model.take_frame(frame(number=other_number, rev=number + 1), 0, 0)
                    await hear(other, lambda known: "bars" in known, "news for the other", 5)
                assert time.monotonic() - began_s < 20
                await wait_until(lambda: shown.dashboard.clients == 1, "the stuck one is let go", 20)


# -- a real application -----------------------------------------------------------------------------------------------


def tick(symbol: str, ts: int, price: float = 10.0) -> tuple[bytes, bytes, None]:
    return symbol.encode(), orjson.dumps({"symbol": symbol, "ts": ts, "price": price, "size": 1}), None


async def address(process: Process) -> str:
    """Where a dashboard says that it listens."""
    await wait_until(lambda: "dashboard: http://" in process.output(), f"an address; it says {process.output()}", 60)
    found = re.search(r"dashboard: http://(\S+)/", process.output())
    assert found is not None
    return found[1]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_browser_is_told_of_bars_late_ticks_dead_letters_the_group_and_the_sum(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = App(broker.bootstrap_servers, topic_name[-40:], settings={"window.allowed_lateness": "3s"})
    argv = [sys.executable, "-m", "workers", "dashboard", "--port", "0", *app.flags()]
    shown = Process(argv, tmp_path / "dashboard.log")
    try:
        host = await address(shown)
        async with connect(f"ws://{host}/live") as browser:
            await browser.send('{"symbol":"AAPL"}')
            # Before anything is there.
            await hear(browser, lambda known: known.get("sources", {}).get("frames", [""])[0] == "waiting", "waiting")
            with app.worker(tmp_path / "worker.log") as worker:
                now_ms = time.time_ns() // 1_000_000 // 5_000 * 5_000 - 60_000
                await wait_until(lambda: "partition ready" in worker.output(), "the worker is ready")
                await send(app, [tick("AAPL", now_ms + at * 1_000, 10.0 + at) for at in (0, 1, 7, 14)])
                await send(app, [tick("MSFT", now_ms), (b"AAPL", b"{no tick", None), tick("AAPL", now_ms)])
                await committed_through(app, process=worker)
                known = await hear(
                    browser,
                    lambda known: (
                        known.get("sum", {}).get("counts", {}).get("records") == 7
                        and len(known.get("ledger", {}).get("rows", [])) == 2
                        and len(known.get("bars", {}).get("rows", [])) >= 2
                        and len(known.get("group", {}).get("members", [])) == 1
                        and known["group"]["lag"] == 0
                        and len(known["symbols"]["rows"]) == 2
                    ),
                    "all of it",
                )
                by_start = {row[0]: row for row in known["bars"]["rows"]}
                assert by_start[now_ms][8:12] == [10.0, 11.0, 10.0, 11.0]
                assert {row[0] for row in known["symbols"]["rows"]} == {"AAPL", "MSFT"}
                assert {(row[1], row[3], row[4]) for row in known["ledger"]["rows"]} == {
                    ("late", "AAPL", "watermark"),
                    ("dead", "AAPL", "malformed_json"),
                }
                assert (
                    known["sum"]["balance"],
                    known["sum"]["counts"]["late"],
                    known["sum"]["counts"]["rejected"],
                ) == (
                    0,
                    1,
                    1,
                )
                assert known["group"]["members"][0][2] == [0, 1, 2, 3]
                assert {row[1] for row in known["group"]["partitions"]} == {known["group"]["members"][0][0]}
                assert (known["group"]["level"], known["group"]["scale"]) == ("OK", 1.0)
                with app.worker(tmp_path / "second.log"):
                    known = await hear(
                        browser,
                        lambda known: (
                            len(known.get("group", {}).get("members", [])) == 2
                            and all(len(member[2]) == 2 for member in known["group"]["members"])
                            and {event[1] for event in known.get("events", [])} >= {"joined", "moved"}
                        ),
                        "a rebalance",
                    )
        shown.stop()
    finally:
        shown.kill()
    assert "Traceback" not in shown.output()


def run_dashboard(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "workers", "dashboard", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_refuses_to_show_itself_to_everybody_without_a_token() -> None:
    done = run_dashboard("--host", "0.0.0.0", "--port", "0")
    assert (done.returncode, "needs a token" in done.stderr) == (2, True)


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_dashboard("--port", str(taken.getsockname()[1]))
    assert (done.returncode, "can't listen there" in done.stderr) == (2, True)
