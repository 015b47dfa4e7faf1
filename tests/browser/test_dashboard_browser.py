"""The dashboard's page in a real browser: what a person sees, does, and is spared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from tests.integration.apps import App, Process, wait_until
from tests.support.boards import NOW_MS, board, frame
from workers.apps.broker import Broker
from workers.apps.dashboard import DashboardModel
from workers.apps.dashboard.readings import LagReading, Member, PartitionReading
from workers.core.effects import Counts
from workers.core.snapshot import LaneMeta, write_meta

pytest.importorskip("playwright", reason="playwright is not installed; it comes with the dev extra")

from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; apt-get install chromium brings one"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]

# fmt: off
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# fmt: on
LIMIT_MS = 20_000
SECOND = 1_000_000_000
TOKEN = "a-token-of-some-length"
HOSTILE = "<script>window.hurt=1</script><img src=x onerror=window.hurt=1>\u202egnp.exe\u0007"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield started
        finally:
            await started.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A fresh profile; anything that goes wrong in its pages, or asks another host, fails the test."""
    fresh = await browser.new_context(viewport={"width": 1366, "height": 768})
    fresh.set_default_timeout(LIMIT_MS)
    expect.set_options(timeout=LIMIT_MS)
    wrong: list[str] = []
    fresh.on("weberror", lambda error: wrong.append(str(error.error)))
    fresh.on("request", lambda request: None if "//127.0.0.1:" in request.url else wrong.append(request.url))
    fresh.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    yield fresh
    await fresh.close()
    assert not wrong


@pytest.fixture
async def page(context: BrowserContext) -> Page:
    return await context.new_page()


async def shows(page: Page, selector: str, text: str) -> None:
    await expect(page.locator(selector)).to_contain_text(text)


async def paint(page: Page) -> list[int]:
    """The candles' canvas as numbers, to tell whether it changed and whether there is anything on it."""
    found: list[int] = await page.evaluate(
        """async () => {
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const canvas = document.getElementById("candles");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let sum = 0, set = 0;
            for (let at = 3; at < pixels.length; at += 4) if (pixels[at]) {
                set += 1;
                sum = (sum * 31 + pixels[at - 1] + 7 * pixels[at - 2] + 13 * pixels[at - 3] + at) % 1000000007;
            }
            return [set, sum];
        }"""
    )
    return found


def fill(model: DashboardModel, symbol: str = "AAPL", bars: int = 40) -> None:
    for number in range(bars):
        model.take_frame(frame(symbol, number), 0, 0)


def late(symbol: str, **changed: object) -> bytes:
    fields = {
        "key": symbol,
        "ts": NOW_MS,
        "reason": "watermark",
        "late_by_ns": 1_500_000_000,
        "start": NOW_MS,
        "end": NOW_MS + 5_000,
        "topic": "ticks",
        "partition": 1,
        "offset": 7,
        "tick": {"symbol": symbol},
    }
    return orjson.dumps({**fields, **changed})


# -- bars -------------------------------------------------------------------------------------------------------------


async def test_bars_appear_and_a_revision_replaces_its_bar_before_ones_eyes(page: Page) -> None:
    async with board() as shown:
        await page.goto(shown.url)
        await shows(page, "#connection", "live")
        await shows(page, "#chart-empty", "Waiting for the first frame")
        nothing = await paint(page)
        assert nothing[0] == 0
        fill(shown.model)
        await shows(page, "#symbol", "AAPL")
        await shows(page, "#readout", "c 140.50")
        drawn = await paint(page)
        assert drawn[0] > 1_000
        await page.focus("#candles")
        await page.keyboard.press("End")
        await shows(page, "#facts", "closed")
        shown.model.take_frame(frame("AAPL", 39, rev=1, trigger="late", close=139.0, count=5), 0, 0)
        await shows(page, "#facts", "closed, revised (rev 1)")
        await shows(page, "#facts", "was (rev 0)")
        await shows(page, "#facts", "c 140.50")
        await shows(page, "#readout", "c 139.00")
        assert await paint(page) != drawn


async def test_statuses_look_different(page: Page) -> None:
    async with board() as shown:
        fill(shown.model)
        looks = set()
        await page.goto(shown.url)
        for status in ("closed", "final", "provisional"):
            shown.model.take_frame(frame("AAPL", 39, status=status), 0, 0)
            await shows(page, "#readout", status)
            looks.add(tuple(await paint(page)))
        assert len(looks) == 3


async def test_larger_windows_are_merged_from_the_frames(page: Page) -> None:
    async with board() as shown:
        for number in range(-NOW_MS // 5_000 % 12, 30):  # from a full minute on
            shown.model.take_frame(frame("AAPL", number), 0, 0)
        await page.goto(shown.url)
        await expect(page.locator("#sizes button")).to_have_text(["5s", "15s", "1m", "5m"])
        await page.get_by_role("button", name="1m").click()
        await page.focus("#candles")
        await page.keyboard.press("Home")
        await shows(page, "#facts", "windows12")
        first = -NOW_MS // 5_000 % 12
        await shows(page, "#facts", f"open{100.5 + first:.2f}")
        await shows(page, "#facts", f"close{101.5 + first + 11:.2f}")
        await shows(page, "#facts", "ticks48")


# -- search and filters -----------------------------------------------------------------------------------------------


async def test_five_thousand_symbols_are_searched_by_keyboard(page: Page) -> None:
    async with board() as shown:
        for number in range(5_000):
            shown.model.take_frame(frame(f"SYM{number:04d}", 0, count=number + 1), 0, 0)
        shown.model.take_late(late("SYM0007"), NOW_MS * 1_000_000)
        await page.goto(shown.url)
        await shows(page, "#known", "5,000")
        await expect(page.locator("#symbol-list button").first).to_contain_text("SYM4999")
        await page.keyboard.press("/")
        await page.keyboard.type("sym123")
        await shows(page, "#known", "10 of 5,000")
        await page.keyboard.press("Enter")
        await shows(page, "#symbol", "SYM1239")
        await page.fill("#search", "")
        await page.get_by_role("button", name="most late").click()
        await expect(page.locator("#symbol-list button").first).to_contain_text("SYM0007")
        await page.fill("#search", "no such symbol")
        await shows(page, "#symbol-list", "No symbol contains that")


async def test_the_ledger_is_filtered_by_kind_reason_and_text(page: Page) -> None:
    async with board() as shown:
        for symbol in ("AAPL", "MSFT", "NVDA"):
            shown.model.take_late(late(symbol), NOW_MS * 1_000_000)
        for reason in (b"malformed_json", b"wrong_type"):
            shown.model.take_dead_letter(b"AAPL", b"{", [("workers.reason", reason)], NOW_MS * 1_000_000)
        rows = page.locator("#ledger-rows tr")
        await page.goto(shown.url)
        await expect(rows).to_have_count(5)
        await page.get_by_role("button", name="dead letters").click()
        await expect(rows).to_have_count(2)
        await page.select_option("#reason", "wrong_type")
        await expect(rows).to_have_count(1)
        await shows(page, "#ledger-rows", "wrong_type")
        await page.locator("[data-kind=late]").click()
        await expect(rows).to_have_count(3)  # the reason is none of these, so it is no filter any more
        await page.fill("#ledger-text", "msf")
        await expect(rows).to_have_count(1)
        await page.fill("#ledger-text", "nothing like that")
        await shows(page, "#ledger-empty", "Nothing matches the filter")


# -- the group and the sum --------------------------------------------------------------------------------------------


async def test_owners_levels_and_the_sum_show_and_a_broken_sum_is_red(page: Page) -> None:
    def sum_of(**counts: int) -> bytes:
        value = write_meta(LaneMeta(1, NOW_MS * 1_000_000, {}, Counts(**counts))).value
        assert value is not None
        return value

    async with board() as shown:
        model = shown.model
        await page.goto(shown.url)
        await shows(page, "#sum", "No commit seen yet")
        model.take_meta(0, sum_of(records=10, aggregated=8, late=1, rejected=1), 0)
        await shows(page, "#sum", "10 records = 8 aggregated + 1 late + 1 rejected")
        await expect(page.locator("#sum")).to_have_class("sum good")
        model.take_meta(0, sum_of(records=11, aggregated=8, late=1, rejected=1), 0)
        await shows(page, "#sum", "DOES NOT ADD UP: 1 unaccounted for, partitions 0")
        await expect(page.locator("#sum")).to_have_class("sum bad")
        partitions = tuple(PartitionReading(number, 0, 2_000_000, 2_000_000) for number in range(2))
        model.take_lag(LagReading(partitions, 5 * SECOND, SECOND, 9.0, 100.0, NOW_MS * 1_000_000))
        first, second = Member("app-aaaaaa", "app", "10.0.0.1", (0, 1)), Member("app-bbbbbb", "app", "10.0.0.2", ())
        model.take_group("Stable", [first, second], NOW_MS * 1_000_000)
        await shows(page, '[data-tile="level"]', "HARD")
        await shows(page, '[data-tile="rate scale"]', "producers stopped")
        await expect(page.locator("#partitions tbody tr")).to_have_count(2)
        await shows(page, "#partitions tbody", "app·aaaaaa")
        moved = [Member("app-aaaaaa", "app", "10.0.0.1", (0,)), Member("app-bbbbbb", "app", "10.0.0.2", (1,))]
        model.take_group("Stable", moved, NOW_MS * 1_000_000)
        await shows(page, "#events", "partition 1: app·aaaaaa → app·bbbbbb")
        await shows(page, "#partitions tbody tr:nth-child(2)", "app·bbbbbb")


# -- outages ----------------------------------------------------------------------------------------------------------


async def test_the_page_says_that_the_server_is_gone_and_comes_back_with_it(page: Page) -> None:
    async with board() as shown:
        fill(shown.model)
        await page.goto(shown.url)
        await shows(page, "#readout", "c 140.50")
        port = shown.port
    await shows(page, "#connection", "connecting")
    await shows(page, "#notice", "Not connected to the dashboard's server")
    assert "lost" in (await page.locator("body").get_attribute("class") or "")
    async with board(port=port) as again:
        fill(again.model, bars=45)
        await shows(page, "#connection", "live")
        await shows(page, "#readout", "c 145.50")
        await expect(page.locator("body")).not_to_have_class("lost")


async def test_sources_that_fail_and_a_market_that_is_quiet_are_told(page: Page) -> None:
    async with board() as shown:
        await page.goto(shown.url)
        shown.model.set_source("frames", "waiting", "topic frames does not exist yet")
        await shows(page, "#notice", "frames: topic frames does not exist yet")
        shown.model.set_source("frames", "ok")
        await expect(page.locator("#notice")).to_be_hidden()
        fill(shown.model)
        shown.model.sample(NOW_MS * 1_000_000, SECOND)
        await shows(page, "#notice", "Stale: no frame has come for")


# -- safety -----------------------------------------------------------------------------------------------------------


async def test_hostile_symbols_and_payloads_are_text(page: Page) -> None:
    async with board() as shown:
        fill(shown.model, HOSTILE)
        fill(shown.model, "x" * 10_240, bars=1)
        shown.model.take_late(late(HOSTILE, reason=HOSTILE, topic=HOSTILE, tick={"a": HOSTILE}), NOW_MS * 1_000_000)
        headers = [("workers.reason", HOSTILE.encode()), ("__streams.errors.message", HOSTILE.encode())]
        shown.model.take_dead_letter(HOSTILE.encode(), HOSTILE.encode() * 500, headers, NOW_MS * 1_000_000)
        shown.model.take_group("Stable", [Member(HOSTILE, HOSTILE, HOSTILE, (0,))], NOW_MS * 1_000_000)
        shown.model.set_source("frames", "failed", HOSTILE)
        await page.goto(shown.url)
        await shows(page, "#symbol", "<script>window.hurt=1</script>")
        await shows(page, "#symbol", "\\u{202e}")
        await expect(page.locator("#ledger-rows tr")).to_have_count(2)
        await page.focus("#candles")
        await page.keyboard.press("End")
        await page.keyboard.press("Enter")
        await page.fill("#search", HOSTILE[:20])
        await shows(page, "#known", "1 of 2")
        assert await page.evaluate("window.hurt") is None
        assert await page.locator("main img, main script, header script, [onerror]").count() == 0
        body = await page.locator("body").inner_text()
        assert "\u202e" not in body
        assert "\u0007" not in body
        wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0


async def test_the_page_is_refused_without_the_token_and_opens_with_it(page: Page) -> None:
    async with board(token=TOKEN) as shown:
        fill(shown.model)
        await page.goto(shown.url)
        await expect(page.locator("#candles")).to_have_count(0)
        await page.fill("#token", "wrong-token-of-some-length")
        await page.get_by_role("button", name="Look").click()
        await expect(page.locator("#token")).to_have_value("")
        await page.fill("#token", TOKEN)
        await page.get_by_role("button", name="Look").click()
        await shows(page, "#readout", "c 140.50")
        assert TOKEN not in page.url
        assert await page.evaluate("document.cookie") == ""


async def test_inline_script_and_foreign_addresses_are_blocked_by_the_policy(browser: Browser) -> None:
    async with board() as shown:
        page = await browser.new_page()
        await page.goto(shown.url)
        blocked = await page.evaluate(
            """async () => {
                const script = document.createElement("script");
                try { script.textContent = "window.hurt = 1"; document.head.append(script); } catch {}
                const kept = [window.hurt === undefined];
                try { document.body.innerHTML = "<b>x</b>"; kept.push(false); } catch { kept.push(true); }
                try { await fetch("http://127.0.0.2:9/"); kept.push(false); } catch { kept.push(true); }
                return kept;
            }"""
        )
        assert blocked == [True, True, True]
        await page.close()


async def test_light_and_dark_follow_the_system_until_chosen(context: BrowserContext) -> None:
    async with board() as shown:
        page = await context.new_page()
        backs = []
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.goto(shown.url)
            backs.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert backs[0] != backs[1]
        await page.click("#theme")
        await expect(page.locator("#theme")).to_have_text("☀ light")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == backs[0]
        await page.reload()
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == backs[0]


async def test_everything_that_can_be_clicked_can_be_reached_by_keyboard(page: Page) -> None:
    async with board() as shown:
        fill(shown.model, bars=5)
        await page.goto(shown.url)
        await shows(page, "#symbol", "AAPL")
        reached = set()
        for _ in range(40):
            await page.keyboard.press("Tab")
            name = "document.activeElement.id || document.activeElement.textContent || document.activeElement.ariaLabel"
            reached.add(str(await page.evaluate(name))[:20])
        assert reached >= {"theme", "search", "most active", "candles", "5s", "late", "reason", "ledger-text"}


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.timeout(240)
async def test_bars_move_while_ticks_flow_through_a_real_worker(
    broker: Broker, topic_name: str, tmp_path: Path, page: Page
) -> None:
    app = App(broker.bootstrap_servers, topic_name[-40:], settings={"window.size": "1s", "window.lag": "500ms"})
    argv = [sys.executable, "-m", "workers"]
    shown = Process([*argv, "dashboard", "--port", "0", *app.flags()], tmp_path / "dashboard.log")
    market = ["produce", "--synthetic", "--symbols", "20", "--rate", "200", "--disorder", "200ms"]
    try:
        await wait_until(lambda: "http://" in shown.output(), "the dashboard listens")
        await page.goto(shown.output().partition("dashboard: ")[2].split()[0])
        await shows(page, "#notice", "does not exist yet")
        with app.worker(tmp_path / "worker.log") as worker:
            await wait_until(lambda: "partition ready" in worker.output(), "the worker is ready")
            producer = Process([*argv, *market, "--duration", "60s", *app.flags()], tmp_path / "producer.log")
            try:
                await expect(page.locator("#readout")).to_contain_text("final", timeout=60_000)
                await shows(page, "#known", "20")
                looks = set()
                for _ in range(8):
                    looks.add(tuple(await paint(page)))
                    await page.wait_for_timeout(1_000)
                assert len(looks) >= 4
                await expect(page.locator("#sum")).to_have_class("sum good")
                await shows(page, "#members", "4 of 4")
                await page.focus("#candles")
                await page.keyboard.press("Home")
                await page.keyboard.press("Enter")
                await expect(page.locator("#explained")).to_contain_text("✓ as recomputed", timeout=60_000)
                await shows(page, "#explained", "joined")
            finally:
                producer.kill()
        shown.stop()
    finally:
        shown.kill()
