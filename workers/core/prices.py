"""Open, high, low and close: the one fold from which all bars are made.

Open and close go by event time; at equal times the first price in the order given opens, and the last one closes.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Prices", "join_later"]


class Prices:
    """Open, high, low and close of the prices so far, with the times (ns) that opened and closed them.

    ``open_ns`` is None while there are none.
    """

    __slots__ = ("close", "close_ns", "high", "low", "open", "open_ns")

    def __init__(self) -> None:
        self.open = self.high = self.low = self.close = 0.0
        self.open_ns: int | None = None
        self.close_ns = 0

    def add(self, price: float, ts_ns: int) -> None:
        """Take one more price in."""
        if self.open_ns is None:
            self.open = self.high = self.low = self.close = price
            self.open_ns = self.close_ns = ts_ns
            return
        if ts_ns < self.open_ns:
            self.open, self.open_ns = price, ts_ns
        if ts_ns >= self.close_ns:
            self.close, self.close_ns = price, ts_ns
        if price > self.high:
            self.high = price
        if price < self.low:
            self.low = price


class _Range(Protocol):
    """What a bar is to those that come before and after it."""

    high: float
    low: float
    close: float


class _LaterRange(Protocol):
    @property
    def high(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def close(self) -> float: ...


def join_later(bar: _Range, later: _LaterRange) -> None:
    """Make ``bar`` that of its own prices and of those of ``later``, all of which came after them."""
    bar.close = later.close
    if later.high > bar.high:
        bar.high = later.high
    if later.low < bar.low:
        bar.low = later.low
