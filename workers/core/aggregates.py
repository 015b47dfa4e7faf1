"""What a window computes from its ticks. Aggregations are pluggable: subclass `Aggregation`.

A result must depend on nothing but the ticks, in the order given, which is that of the log; then frames are a pure
function of the log.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from struct import Struct
from typing import ClassVar, Generic, TypeVar

import msgspec

from workers.core.decimals import SUM, DecimalSum, average
from workers.core.prices import Prices, join_later
from workers.core.ticks import Tick
from workers.errors import ConfigError

__all__ = ["Aggregation", "Ohlcv", "OhlcvState", "can_merge", "load_aggregation"]

S = TypeVar("S")


class Aggregation(ABC, Generic[S]):
    """Folds the ticks of one window into a state, and a state into the fields of a frame.

    The state is stored between commits by `dump` and read by `load`: MessagePack unless overridden, so a state made of
    dicts, lists, strings and numbers needs neither. ``version`` is stored beside it; raise it when the state's shape or
    meaning changes, and old state is refused instead of misread.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def create(self) -> S:
        """The state of a window without ticks."""

    @abstractmethod
    def add(self, state: S, tick: Tick) -> S:
        """The state with one more tick; it may be the same object, changed."""

    @abstractmethod
    def result(self, state: S) -> Mapping[str, object]:
        """The fields that a frame shows, in wire order.

        Values must be representable in JSON; NaN and infinities become null. A frame's own fields are reserved:
        ``key``, ``start``, ``end``, ``rev``, ``status``, ``trigger``, ``count``, ``first_ts``, ``last_ts``, ``items``
        and ``filled``. The first frame with one of them stops the worker (`CallbackError`).
        """

    def merge(self, state: S, later: S) -> S:
        """The state of the ticks of both; those of ``later`` have the greater event times, all of them.

        Only session windows need it, as one tick may make one session of two. It may be ``state``, changed; ``later``
        must stay as it is.
        """
        raise NotImplementedError(f"the aggregation {self.name!r} has no merge(), which session windows need")

    def dump(self, state: S) -> bytes:
        """Bytes from which `load` makes an equal state."""
        return msgspec.msgpack.encode(state)

    def load(self, data: bytes) -> S:
        """The state that `dump` wrote."""
        state: S = msgspec.msgpack.decode(data)
        return state


class OhlcvState(Prices):
    """Open, high, low, close, volume and notional of a window, with the event times that opened and closed it."""

    __slots__ = ("notional", "volume")

    def __init__(self) -> None:
        super().__init__()
        self.volume = self.notional = DecimalSum()


OHLCV_STATE = Struct(f"<qqdddd{SUM.size}s{SUM.size}s")


class Ohlcv(Aggregation[OhlcvState]):
    """Bars. Open and close go by event time; at equal times the first in the log opens and the last closes.

    Volume, and the notional that vwap is made of, are sums of decimals (`workers.core.decimals`).
    """

    name = "ohlcv"
    version = 2

    def create(self) -> OhlcvState:
        return OhlcvState()

    def add(self, state: OhlcvState, tick: Tick) -> OhlcvState:
        state.add(tick.price, tick.ts_ns)
        state.volume = state.volume.plus(tick.size)
        state.notional = state.notional.plus_product(tick.price, tick.size)
        return state

    def merge(self, state: OhlcvState, later: OhlcvState) -> OhlcvState:
        join_later(state, later)
        state.close_ns = later.close_ns
        state.volume = state.volume.merged(later.volume)
        state.notional = state.notional.merged(later.notional)
        return state

    def empty_after(self, state: OhlcvState) -> OhlcvState:
        """A bar without ticks that follows one with ``state``: its close, and no volume
        (`workers.core.windows.gaps`)."""
        empty = OhlcvState()
        empty.open = empty.high = empty.low = empty.close = state.close
        return empty

    def result(self, state: OhlcvState) -> Mapping[str, object]:
        return {
            "open": state.open,
            "high": state.high,
            "low": state.low,
            "close": state.close,
            "volume": float(state.volume),
            "vwap": average(state.notional, state.volume, state.low, state.high),
        }

    def dump(self, state: OhlcvState) -> bytes:
        return OHLCV_STATE.pack(
            state.open_ns or 0,
            state.close_ns,
            state.open,
            state.high,
            state.low,
            state.close,
            state.volume.dump(),
            state.notional.dump(),
        )

    def load(self, data: bytes) -> OhlcvState:
        state = OhlcvState()
        (
            state.open_ns,
            state.close_ns,
            state.open,
            state.high,
            state.low,
            state.close,
            volume,
            notional,
        ) = OHLCV_STATE.unpack(data)
        state.volume, state.notional = DecimalSum.load(volume), DecimalSum.load(notional)
        return state


def can_merge(folding: object) -> bool:
    """Whether an aggregation merges states, as session windows ask."""
    found = getattr(type(folding), "merge", None)
    return found is not None and found is not Aggregation.merge


def load_aggregation(name: str) -> Aggregation[object]:
    """The aggregation of a name: ``ohlcv``, or ``package.module:Class`` for one's own.

    Raises `ConfigError` where there is nothing importable of that name, or it is no `Aggregation`.
    """
    if name == Ohlcv.name:
        return Ohlcv()  # type: ignore[return-value]  # invariant S: the engine never looks into a state
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        made = found() if isinstance(found, type) else found
    except Exception as error:
        raise ConfigError(
            f"window.aggregation is {name!r}, which can't be loaded ({type(error).__name__}: {error}); "
            'expected "ohlcv" or an importable "package.module:Class"'
        ) from error
    if not isinstance(made, Aggregation):
        raise ConfigError(f"window.aggregation {name!r} is a {type(made).__name__}; expected a workers.Aggregation")
    return made
