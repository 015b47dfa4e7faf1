"""A dashboard's server in the test's own loop, on a real socket; its model is fed by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from workers.apps.dashboard import DashboardModel
from workers.apps.dashboard.access import Access
from workers.apps.dashboard.feed import model_for
from workers.apps.dashboard.server import Dashboard, listen, serve
from workers.settings import load_settings

__all__ = ["NOW_MS", "Board", "board", "frame"]

NOW_MS = 1_700_000_000_000


@dataclass
class Board:
    """A running server, and the model that it shows."""

    model: DashboardModel
    dashboard: Dashboard
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def board(
    *, token: str | None = None, model: DashboardModel | None = None, port: int = 0, max_clients: int = 32
) -> AsyncIterator[Board]:
    """Serve on loopback until the block ends."""
    settings = load_settings(environ={}, overrides={"window.allowed_lateness": "3s"})
    model = model if model is not None else model_for(settings)
    dashboard = Dashboard(settings, model, Access.to("127.0.0.1", token), max_clients=max_clients)
    stop = asyncio.Event()
    with listen("127.0.0.1", port) as opened:
        serving = asyncio.create_task(serve(dashboard, opened, stop))
        try:
            yield Board(model, dashboard, opened.getsockname()[1])
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await serving


def frame(key: str = "AAPL", number: int = 0, **changed: object) -> bytes:
    """A frame of five seconds as the frames topic holds it, rising a little with its number."""
    start = NOW_MS + 5_000 * number
    low = 100.0 + number
    fields: dict[str, object] = {
        "key": key,
        "start": start,
        "end": start + 5_000,
        "rev": 0,
        "status": "closed",
        "trigger": "watermark",
        "open": low + 0.5,
        "high": low + 2.0,
        "low": low,
        "close": low + 1.5,
        "volume": 100.0 + number % 7,
        "vwap": low + 1.0,
        "count": 4,
        "first_ts": start + 1,
        "last_ts": start + 4_000,
    }
    return orjson.dumps({**fields, **changed})
