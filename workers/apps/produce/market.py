"""A synthetic market: ticks that look like an exchange's, the same ones for the same seed.

Symbols are traded by Zipf's law, prices are random walks in whole cents, sizes are round lots. An arrival is when a
tick reaches the producer; its event time is earlier by a random delay of at most the disorder, so ticks come out of
order by up to that much, and never by more unless asked for. Pure: arrivals enter as an argument.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson

from workers.core.ticks import TickFormat
from workers.times import NS_PER_SECOND

__all__ = ["Market", "arrivals", "symbol_names", "synthetic_ticks"]

# fmt: off
_KNOWN: Final = (
    "AAPL", "MSFT", "NVDA", "AMZN", "GOOGL", "META", "TSLA", "AVGO", "LLY", "JPM", "V", "XOM", "UNH", "MA", "COST",
    "HD", "PG", "JNJ", "WMT", "NFLX", "BAC", "CRM", "ORCL", "CVX", "KO", "AMD", "PEP", "ADBE", "TMO", "LIN", "MCD",
    "CSCO", "ABT", "WFC", "DIS", "INTC", "QCOM", "GE", "IBM", "CAT",
)
# fmt: on
_BLOCK: Final = 512
_CENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Market:
    """What is traded, and how untidily; durations in nanoseconds.

    ``late_fraction`` of the ticks are later than ``late_by_ns`` behind their symbol's newest (set it to the lag plus
    the allowed lateness, and they are dropped as late); ``bad_fraction`` are records that are no ticks at all, one
    kind after the other. Raises ``ValueError`` for values that can't be.
    """

    symbols: int = 100
    seed: int = 0
    disorder_ns: int = NS_PER_SECOND
    shape: Literal["uniform", "exponential"] = "uniform"
    late_fraction: float = 0.0
    late_by_ns: int = 2 * NS_PER_SECOND
    bad_fraction: float = 0.0
    zipf: float = 1.0
    tick: TickFormat = field(default_factory=TickFormat)

    def __post_init__(self) -> None:
        if not 1 <= self.symbols <= 10_000_000:
            raise ValueError(f"symbols is {self.symbols}; expected 1 to 10,000,000")
        if self.disorder_ns < 0 or self.late_by_ns < 0:
            raise ValueError("disorder and late_by are durations; expected 0 or more")
        for name, fraction in (("late_fraction", self.late_fraction), ("bad_fraction", self.bad_fraction)):
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} is {fraction}; expected 0 to 1")


def symbol_names(count: int) -> list[str]:
    """Names for ``count`` symbols: well-known ones first, the most traded ones, then ``SYM0001`` and so on."""
    return [*_KNOWN[:count], *(f"SYM{number:04d}" for number in range(1, count - len(_KNOWN) + 1))]


def arrivals(start_ns: int, rate: float) -> Iterator[int]:
    """Evenly spaced arrival times from ``start_ns``, ``rate`` a second, without end and without drift."""
    per_second = round(rate * 1_000_000)
    if per_second < 1:
        raise ValueError(f"rate is {rate}; expected at least one tick in a million seconds")
    return (start_ns + number * (NS_PER_SECOND * 1_000_000) // per_second for number in itertools.count())


def synthetic_ticks(market: Market, arrivals_ns: Iterable[int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the market's ticks, one for each arrival time (nanoseconds since the epoch).

    The same market and arrivals give the same bytes on every machine and run.
    """
    rng = random.Random(market.seed)
    names = symbol_names(market.symbols)
    weights = list(itertools.accumulate((rank + 1) ** -market.zipf for rank in range(len(names))))
    keys = [name.encode() for name in names]
    quoted = [orjson.dumps(name) for name in names]
    prices = [rng.randrange(1_000, 100_000) for _ in names]
    newest_ns = [0] * len(names)
    template = _template(market.tick)
    delay = _delays(market, rng)
    unit_ns, odd = market.tick.unit_ns, market.late_fraction + market.bad_fraction
    spoil = _spoiler(market)
    ranks = range(len(names))
    arrival_block = iter(arrivals_ns)
    while True:
        chosen = rng.choices(ranks, cum_weights=weights, k=_BLOCK)
        steps = rng.choices((-3, -2, -1, -1, 0, 0, 0, 1, 1, 2, 3), k=_BLOCK)
        lots = rng.choices((1, 1, 1, 2, 3, 5, 10, 25, 100), k=_BLOCK)
        for index, step, lot in zip(chosen, steps, lots, strict=True):
            arrival_ns = next(arrival_block, None)
            if arrival_ns is None:
                return
            ts_ns = arrival_ns - delay()
            price = prices[index] = max(prices[index] + step, 100)
            kind = rng.random() if odd else 1.0
            if kind < market.bad_fraction:
                yield keys[index], spoil(names[index], arrival_ns, price)
                continue
            if kind < odd and newest_ns[index]:
                ts_ns = newest_ns[index] - market.late_by_ns - rng.randrange(1, 10 * NS_PER_SECOND)
            elif ts_ns > newest_ns[index]:
                newest_ns[index] = ts_ns
            yield keys[index], template % (quoted[index], ts_ns // unit_ns, price // _CENTS, price % _CENTS, lot * 10)


def _template(form: TickFormat) -> bytes:
    """A tick's JSON with places for symbol, time, price (whole and cents) and size."""
    symbol, ts, price, size = (
        orjson.dumps(name).replace(b"%", b"%%") for name in (form.symbol, form.ts, form.price, form.size)
    )
    return b"{%s:%%b,%s:%%d,%s:%%d.%%02d,%s:%%d}" % (symbol, ts, price, size)


def _delays(market: Market, rng: random.Random) -> Callable[[], int]:
    """Draws how long before its arrival a tick happened, 0 to the disorder."""
    bound = market.disorder_ns
    if bound == 0:
        return lambda: 0
    draw = rng.random
    if market.shape == "uniform":
        return lambda: int(draw() * bound)
    exponential = rng.expovariate
    # Four means fit the bound, so that the long tail is cut off in under 2% of the draws.
    return lambda: min(int(exponential(4 / bound)), bound)


def _spoiler(market: Market) -> Callable[[str, int, int], bytes]:
    """Makes records that are no ticks, one of each kind in turn: what dead letters are for."""
    form = market.tick
    kinds = itertools.cycle(range(6))

    def spoil(symbol: str, arrival_ns: int, price_cents: int) -> bytes:
        fields: dict[str, object] = {
            form.symbol: symbol,
            form.ts: arrival_ns // form.unit_ns,
            form.price: price_cents / _CENTS,
            form.size: 10,
        }
        match next(kinds):
            case 0:
                return orjson.dumps(fields)[:-1]  # cut off: malformed_json
            case 1:
                del fields[form.price]  # missing_field
            case 2:
                fields[form.price] = "NaN"  # wrong_type
            case 3:
                fields[form.size] = -10  # negative_size
            case 4:
                fields[form.symbol] = symbol + "?"  # key_mismatch
            case 5:
                ahead_ns = form.max_future_skew_ns + 86_400 * NS_PER_SECOND
                fields[form.ts] = (arrival_ns + ahead_ns) // form.unit_ns  # future_timestamp, unless data are old
        return orjson.dumps(fields)

    return spoil
