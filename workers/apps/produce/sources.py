"""Where the ticks to send come from: files, pipes and iterators."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Protocol

from workers.apps.produce.files import TickInput
from workers.errors import WorkersError

__all__ = ["FileSource", "GeneratedSource", "TickSource", "Ticks", "blocks_of"]

Ticks = list[tuple[bytes, bytes]]


class TickSource(Protocol):
    """Where ticks come from, at the pace at which they are to be sent."""

    async def take(self, limit: int) -> Ticks:
        """Up to ``limit`` ticks that are due; waits for the first. Empty at the end, and when asked to stop."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing more is due just now, so that what was taken should not wait for company."""
        ...


class GeneratedSource:
    """Ticks out of an iterator, at most ``count`` and for at most ``duration_ns``, as fast as they are taken."""

    def __init__(
        self, ticks: Iterator[tuple[bytes, bytes]], *, count: int | None = None, duration_ns: int | None = None
    ) -> None:
        self._ticks = ticks if count is None else islice(ticks, count)
        self._duration_ns = duration_ns
        self._deadline_ns: int | None = None

    async def take(self, limit: int) -> Ticks:
        """See `TickSource`. The duration begins at the first call."""
        if self._duration_ns is not None:
            self._deadline_ns = self._deadline_ns or time.monotonic_ns() + self._duration_ns
            if time.monotonic_ns() >= self._deadline_ns:
                return []
        return list(islice(self._ticks, limit))

    @property
    def idle(self) -> bool:
        """Never: an iterator has more at once."""
        return False


class FileSource:
    """Ticks of a file. A pipe is read by a thread, since nobody can know when it has something."""

    def __init__(self, file: TickInput, stop: asyncio.Event) -> None:
        self._file = file
        self._stop = stop
        self._held: Ticks = []
        self._taken = 0
        self._ended = False
        self._pipe = _PipeReader(file) if file.size is None else None

    async def take(self, limit: int) -> Ticks:
        """See `TickSource`. Raises ``WorkersError`` where the file is damaged."""
        while self._taken >= len(self._held) and not self._ended:
            block = await self._pipe.next(self._stop) if self._pipe else self._file.read_block()
            if block is None:
                return []
            self._ended = not block
            self._held, self._taken = self._file.parse(block), 0
        ticks = self._held[self._taken : self._taken + limit]
        self._taken += len(ticks)
        return ticks

    @property
    def idle(self) -> bool:
        """True for a pipe that has nothing more to read at the moment."""
        return self._pipe is not None and self._taken >= len(self._held) and self._pipe.empty


async def blocks_of(file: TickInput, stop: asyncio.Event) -> AsyncIterator[bytes]:
    """A file's blocks and at its end an empty one, until asked to stop. Raises ``WorkersError`` where it is damaged."""
    pipe = _PipeReader(file) if file.size is None else None
    while not stop.is_set():
        block = await pipe.next(stop) if pipe else file.read_block()
        if block is None:
            return
        yield block
        if not block:
            return
        await asyncio.sleep(0)  # so that the stop can come


class _PipeReader:
    """Reads a pipe in a thread, at most a few blocks ahead. The thread ends with the process: a blocked read of
    standard input can't be called off."""

    def __init__(self, file: TickInput) -> None:
        self._file = file
        self._blocks: queue.Queue[bytes | WorkersError] = queue.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        threading.Thread(target=self._read, name="ticks-reader", daemon=True).start()

    def _read(self) -> None:
        while True:
            item: bytes | WorkersError
            try:
                item = self._file.read_block()
            except WorkersError as error:
                item = error
            self._blocks.put(item)
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                return
            if not item or isinstance(item, WorkersError):
                return

    @property
    def empty(self) -> bool:
        return self._blocks.empty()

    async def next(self, stop: asyncio.Event) -> bytes | None:
        """The next block, empty at the end; None when asked to stop first."""
        while True:
            self._arrived.clear()
            try:
                item = self._blocks.get_nowait()
            except queue.Empty:
                await _first_of(self._arrived, stop)
                if stop.is_set():
                    return None
                continue
            if isinstance(item, WorkersError):
                raise item
            return item


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
