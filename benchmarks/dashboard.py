"""How the dashboard bears a busy market: the page's answer to input, and the memory of both sides, over a minute.

    python -m benchmarks.dashboard [--seconds 60] [--rate 4000] [--symbols 5000]

Needs the [dashboard] extra, playwright and a Chromium. Everything is real: a broker, two workers, a producer, the
dashboard's process and a browser. "Input to paint" is from a key press in the search field or on the chart until the
second animation frame after it; it is measured inside the page.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

from workers.apps.broker import find_broker

__all__: list[str] = []

# fmt: off
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--enable-precise-memory-info"]
# fmt: on
PROBE = """() => {
    window.delays = []; window.tasks = [];
    addEventListener("keydown", (event) => {
        const began = event.timeStamp;
        requestAnimationFrame(() => requestAnimationFrame((now) => window.delays.push(performance.now() - began)));
    }, true);
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => window.tasks.push(entry.duration)))
        .observe({ type: "longtask" });
}"""


def main() -> None:
    """Measure, and print what was found."""
    options = _options()
    with ExitStack() as stack:
        broker = stack.enter_context(find_broker())
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dashboard-bench-")))
        name = f"board-{uuid.uuid4().hex[:8]}"
        sets = {
            "bootstrap_servers": broker.bootstrap_servers,
            "application_id": name,
            "topics.ticks": f"{name}-ticks",
            "topics.frames": f"{name}-frames",
            "topics.partitions": 4,
            "metrics.port": "off",
            "window.allowed_lateness": "2s",
        }
        flags = [flag for key, value in sets.items() for flag in ("--set", f"{key}={value}")]

        def start(role: str, *arguments: str) -> subprocess.Popen[bytes]:
            with (logs / f"{role}.log").open("wb") as log:
                argv = [sys.executable, "-m", "workers", *arguments, *flags]
                process = subprocess.Popen(argv, stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            return process

        for number in range(2):
            start(f"worker-{number}", "run")
        dashboard = start("dashboard", "dashboard", "--port", "0")
        address = _address(logs / "dashboard.log")
        time.sleep(8)
        # fmt: off
        start("producer", "produce", "--synthetic", "--symbols", str(options.symbols), "--rate", str(options.rate),
              "--disorder", "2500ms", "--late-fraction", "0.002", "--bad-fraction", "0.001",
              "--duration", f"{options.seconds + 60}s")
        # fmt: on
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 860})
            page.goto(address)
            page.wait_for_selector("#symbol-list button.row", timeout=60_000)
            page.wait_for_timeout(10_000)
            _measure(page, psutil.Process(dashboard.pid), options.seconds)
            browser.close()


def _measure(page: Page, process: psutil.Process, seconds: int) -> None:
    page.evaluate(PROBE)
    process.cpu_percent()
    began_s, looks = time.monotonic(), []
    while time.monotonic() - began_s < seconds:
        page.focus("#search")
        page.keyboard.type("sym1", delay=120)
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.focus("#candles")
        for _ in range(8):
            page.keyboard.press("ArrowLeft")
            page.wait_for_timeout(120)
        page.evaluate("window.gc && window.gc()")
        heap: Any = page.evaluate("performance.memory.usedJSHeapSize")
        looks.append(
            (time.monotonic() - began_s, process.memory_info().rss / 2**20, heap / 2**20, process.cpu_percent())
        )
    delays = sorted(page.evaluate("window.delays"))
    tasks = page.evaluate("window.tasks")
    tiles = [
        page.locator(f'[data-tile="{name}"] .value').inner_text() for name in ("ticks/s", "frames/s", "lag, records")
    ]
    print(f"symbols {page.locator('#known').inner_text()}, ticks/s, frames/s, lag: {', '.join(tiles)}")
    print(f"load of the machine, 1 min: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99) - 1]
    print(f"input to paint: {len(delays)} key presses, p50 {p50:.0f} ms, p99 {p99:.0f} ms, worst {delays[-1]:.0f} ms")
    print(f"long tasks (> 50 ms): {len(tasks)}, the longest {max(tasks, default=0):.0f} ms")
    print("second, server MiB, page heap MiB, server CPU %")
    for look in looks[:: max(1, len(looks) // 8)]:
        print("  " + "  ".join(f"{value:7.1f}" for value in look))


def _address(log: Path) -> str:
    limit_s = time.monotonic() + 60
    while time.monotonic() < limit_s:
        text = log.read_text()
        if "dashboard: http" in text:
            return text.partition("dashboard: ")[2].split()[0]
        time.sleep(0.2)
    raise SystemExit(f"the dashboard did not start: {log.read_text()}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rate", type=int, default=4_000)
    parser.add_argument("--symbols", type=int, default=5_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
