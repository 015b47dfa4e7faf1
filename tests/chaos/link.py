"""A worker's link to the broker, as a TCP proxy on loopback that can be cut and healed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

__all__ = ["Link"]

Cut = Literal["silence", "reset"]


class Link:
    """Forwards ``port`` to ``target_port``.

    ``cut("reset")`` closes what is open and refuses what is new. ``cut("silence")`` keeps connections open and holds
    every byte back until ``heal``, which delivers them late: what a cable that was pulled for a while does.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self._port = port
        self._target_port = target_port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._hang_up()

    async def cut(self, how: Cut) -> None:
        """Interrupt the link."""
        if how == "silence":
            self._open.clear()
        else:
            await self.stop()

    async def heal(self) -> None:
        """Let the link work again."""
        self._open.set()
        if self._server is None:
            await self.start()

    async def _hang_up(self) -> None:
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it came in while the link was cut
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        writers = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(their_writer)
            pumps = [
                asyncio.ensure_future(self._pump(reader, their_writer)),
                asyncio.ensure_future(self._pump(their_reader, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # the broker is away, or the link was cut: either way the caller's connection ends
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            self._serving.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
