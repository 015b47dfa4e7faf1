"""The store's one connection to its database: whose turn it is, and whether the database can be used."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import structlog

from workers.apps.store.base import StoreUnavailableError

if TYPE_CHECKING:
    from workers.apps.store.base import Store
    from workers.apps.store.metrics import StoreMetrics

__all__ = ["DatabaseTurn"]

log = structlog.get_logger(__name__)

SILENT_S: Final = 5.0  # a transaction without an answer for this long counts as an outage


class DatabaseTurn:
    """A connection does one thing at a time. ``available`` is None until the database was tried."""

    def __init__(self, store: Store, metrics: StoreMetrics) -> None:
        self._store, self._metrics = store, metrics
        self._lock = asyncio.Lock()
        self._down_since_s = 0.0
        self.available: bool | None = None

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        async with self._lock:
            pass

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The database's turn, and its state as it shows: logged when it changes, and only then.

        One that neither answers nor fails (a frozen server, a lock somebody holds) is waited for without end, since
        giving up could not tell whether the transaction was made; so that, too, has to show.
        """
        async with self._lock:
            reason = f"unresponsive for {SILENT_S:.0f} s"
            silent = asyncio.get_running_loop().call_later(SILENT_S, self._outage, "is unresponsive", reason)
            try:
                yield
            except StoreUnavailableError as error:
                self._outage("can't be used", str(error))
                raise
            finally:
                silent.cancel()
            if not self.available:
                if self.available is False:
                    seconds = round(time.monotonic() - self._down_since_s, 1)
                    log.info("the database is back", store=self._store.name, after_seconds=seconds)
                self.available = True
                self._metrics.up.set(1)

    def _outage(self, what: str, reason: str) -> None:
        """One line for each outage, however often it is met."""
        if self.available is False:
            return
        self.available = False
        self._down_since_s = time.monotonic()
        self._metrics.up.set(0)
        self._metrics.outages.inc()
        log.warning(f"the database {what}; waiting for it", store=self._store.name, reason=reason)
