"""Streams: async iterators that a timeout does not end, over sources that they own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Final, Generic, Literal, TypeVar

from workers.errors import WorkersError
from workers.streams.channel import DRAINED, Drained, Pipe
from workers.streams.waiters import wait_to_be_woken, wake_one

__all__ = ["OwnedSource", "Stream", "current_task"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Line(Pipe[T]):
    """Between the task that makes a stream's items and whoever reads them.

    An item is made when a reader waits for it and none is there, or as long as fewer than ``ahead`` are. A reader that
    is cancelled leaves what was begun for it to the next.
    """

    def __init__(self, ahead: int) -> None:
        super().__init__(max(ahead, 1))
        self._ahead = ahead
        self._waiting = 0
        self._makers: deque[asyncio.Future[None]] = deque()

    async def next(self) -> T | Literal[Drained.DRAINED]:
        """The next item, or the end; raises what the line failed with, after the items before it."""
        self._waiting += 1
        try:
            if self.is_wanting():
                wake_one(self._makers)
            return await self._take()
        finally:
            self._waiting -= 1
            if self._ahead and self.is_wanting():
                wake_one(self._makers)

    async def wanting(self) -> bool:
        """Wait until an item is to be made; False once none will be."""
        while not self._closed and not self.is_wanting():
            await wait_to_be_woken(self._makers, self.is_wanting)
        return not self._closed

    def is_wanting(self) -> bool:
        """Whether another item is to be made."""
        return len(self._items) < max(self._ahead, self._waiting)

    def abandon(self, runner: asyncio.Task[None]) -> None:
        """Nobody reads any more: end the task. A reader that waits all the same is told so."""
        if self._waiting:
            self.fail(WorkersError("the stream was closed while an anext waited for its next item"))
        self.close()
        runner.cancel()


_runners: Final[set[asyncio.Task[None]]] = set()
"""The tasks of all streams: an event loop holds its tasks weakly, and these must outlive their readers to clean up."""


class Stream(AsyncIterator[T_co]):
    """The items of a source, one by one as they are asked for: an async iterator that a timeout does not end.

        stream = map_async(source, fn)
        try:
            item = await asyncio.wait_for(anext(stream), 0.5)
        except TimeoutError:
            ...  # nothing came yet; the next anext goes on where this one was

    Source and functions run in a task of the stream's own, which begins with the first ``anext`` and ends with the
    stream. So a cancelled ``anext`` cancels nothing but itself: what it waited for is given to the next one, once, in
    order. Several may wait at a time, and share the items. What the source or a function raises is raised by every
    ``anext`` from there on; a ``CancelledError`` of theirs as the cause of a `WorkersError`, because it is not the
    reader that was cancelled.

    To stop early, `aclose` it, or let go of it: either ends the task and closes the source. Not for use by several
    event loops or threads.

    An item costs two turns of the event loop, some 20 µs, because nothing is read before it is asked for. A chain of
    streams pays that once, and one that ends in `workers.buffer_async`, which reads ahead, hardly at all.
    """

    def __init__(self, items: AsyncGenerator[T_co, None], ahead: int = 0) -> None:
        self._items = items
        self._line: _Line[T_co] = _Line(ahead)
        self._lazy = not ahead
        self._runner: asyncio.Task[None] | None = None
        self._ended = False
        self._owned = False  # by another stream, in whose task it is read

    async def __anext__(self) -> T_co:
        if self._owned:
            raise RuntimeError("this stream is the source of another one, which reads it; read that")
        if self._ended:
            raise StopAsyncIteration
        if self._runner is None:
            self._runner = _start(self._items, self._line)
        item = await self._line.next()
        if item is DRAINED:
            self._ended = True
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the stream and close its source; what was not read is dropped. Closing again changes nothing.

        Raises what the closing of the source raised, and ``RuntimeError`` where a function of the stream calls it,
        which would have to wait for itself. An ``anext`` that waits elsewhere raises a `WorkersError`.
        """
        runner = self._runner
        if runner is not None and runner is current_task():
            raise RuntimeError("a stream can't be closed by its own source or functions; raise an exception instead")
        already, self._ended = self._ended, True
        if runner is None:
            await self._items.aclose()
            return
        if not runner.done():
            self._line.abandon(runner)
            await asyncio.wait({runner})
        if not already and not runner.cancelled():
            runner.result()  # raises what the closing of the source raised

    def __del__(self) -> None:
        runner = getattr(self, "_runner", None)  # missing where the constructor failed
        if runner is None or runner.done():
            return
        loop = runner.get_loop()
        if not loop.is_closed():  # the garbage collector may run in any thread
            loop.call_soon_threadsafe(self._line.abandon, runner)

    def _handed_over(self) -> AsyncIterator[T_co]:
        """This stream for the one that will own it: while nothing was read, its items without a task of their own."""
        if self._runner is not None or self._ended or self._owned or not self._lazy:
            return self
        self._owned = True
        return self._items


def _start(items: AsyncGenerator[T, None], line: _Line[T]) -> asyncio.Task[None]:
    runner = asyncio.get_running_loop().create_task(_make(items, line), name="workers.stream")

    def on_done(_: asyncio.Task[None]) -> None:
        _runners.discard(runner)
        if not line.closed:  # cancelled by somebody else before its first step: nobody else would tell the reader
            line.fail(asyncio.CancelledError())

    _runners.add(runner)
    runner.add_done_callback(on_done)
    return runner


async def _make(items: AsyncGenerator[T, None], line: _Line[T]) -> None:
    try:
        try:
            while await line.wanting():
                line.add_beyond(await anext(items))
        except StopAsyncIteration:
            pass  # by a generator that is the end, and nothing else: what it raises of that kind is a RuntimeError
        finally:
            await items.aclose()
    except BaseException as error:
        if line.closed:  # nobody reads it any more
            raise
        line.fail(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
    else:
        line.close()


class OwnedSource(Generic[T]):
    """A source while it is read: an async context manager that closes it at the end, where it can be closed.

    A stream owns what it reads: a generator that holds a connection must let go of it when the stream is closed, not
    when the garbage collector comes by.
    """

    def __init__(self, source: AsyncIterable[T]) -> None:
        self._source = source

    async def __aenter__(self) -> AsyncIterator[T]:
        self._iterator = aiter(self._source)
        if isinstance(self._iterator, Stream):
            self._iterator = self._iterator._handed_over()
        return self._iterator

    async def __aexit__(self, *_: object) -> None:
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is not None:
            await aclose()


def current_task() -> asyncio.Task[object] | None:
    """The task that runs; None outside of an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # closed outside a loop
