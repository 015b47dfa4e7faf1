"""Make the pictures of the dashboard in docs/img, from a real run: python docs/make_pictures.py

Needs a broker (or what starts one), the [dev] extra and a Chromium. Takes about two minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import sync_playwright

from workers.apps.broker import find_broker

IMAGES = Path(__file__).parent / "img"
FILL_S = 75  # so that there are some bars to see
# fmt: off
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
MARKET = ["produce", "--synthetic", "--symbols", "200", "--rate", "400", "--disorder", "2200ms",
          "--late-fraction", "0.004", "--bad-fraction", "0.002", "--duration", "300s"]
# fmt: on


def main() -> None:
    """Run an application, look at it, and keep what was seen."""
    with ExitStack() as stack:
        broker = stack.enter_context(find_broker())
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pictures-")))
        name = f"market-{uuid.uuid4().hex[:4]}"
        values = {
            "bootstrap_servers": broker.bootstrap_servers,
            "application_id": name,
            "topics.ticks": f"{name}-ticks",
            "topics.frames": f"{name}-frames",
            "topics.partitions": 4,
            "window.allowed_lateness": "3s",
            "metrics.port": "off",
        }
        flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]

        def start(role: str, *arguments: str) -> Path:
            log = logs / f"{role}.log"
            with log.open("wb") as out:
                argv = [sys.executable, "-m", "workers", *arguments, *flags]
                process = subprocess.Popen(argv, stdout=out, stderr=out)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            return log

        start("worker", "run")
        told = start("dashboard", "dashboard", "--port", "0")
        time.sleep(10)
        start("producer", *MARKET)
        time.sleep(FILL_S / 3)
        start("second-worker", "run")  # a rebalance to see
        time.sleep(FILL_S)
        take(told.read_text().partition("dashboard: ")[2].split()[0])


def take(address: str) -> None:
    """One picture in either theme, with a bar chosen."""
    IMAGES.mkdir(exist_ok=True)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1440, "height": 860}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(address)
            page.wait_for_selector("#symbol-list button.row")
            page.wait_for_timeout(5_000)
            page.focus("#candles")
            for _ in range(5):
                page.keyboard.press("ArrowLeft")
            page.keyboard.press("Enter")
            page.wait_for_timeout(12_000)
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=IMAGES / f"dashboard-{scheme}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
