"""Volume and vwap, written apart from the package: sums of the shortest decimals of floats, by `decimal`.

A sum is exact as long as it, what it is made of, and the next term are below ``2**126`` in steps of its last decimal,
of which there are at most 36. From then on it is a float to which floats are added, in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Context, Decimal

__all__ = ["Total", "totals_of", "vwap_of"]

_EXACT = Context(prec=5_000, Emax=10_000, Emin=-10_000)


class Total:
    """One sum. ``rough`` is its float where it is not exact any more."""

    def __init__(self) -> None:
        self.exact = Decimal(0)
        self.places = 0
        self.rough: float | None = None

    @property
    def value(self) -> float:
        return float(self.exact) if self.rough is None else self.rough

    def add(self, value: float) -> None:
        if math.isfinite(value):
            decimal = _shortest(value)
            self._take(decimal, _places(decimal), value)
        else:
            self.rough = self.value + value

    def add_product(self, price: float, size: float) -> None:
        if math.isfinite(price) and math.isfinite(size):
            one, other = _shortest(price), _shortest(size)
            self._take(_EXACT.multiply(one, other), _places(one) + _places(other), price * size)
        else:
            self.rough = self.value + price * size

    def add_total(self, other: Total) -> None:
        if other.rough is None:
            self._take(other.exact, other.places, other.value)
        else:
            self.rough = self.value + other.rough

    def _take(self, term: Decimal, places: int, rough: float) -> None:
        if self.rough is not None:
            self.rough += rough
            return
        if term == 0:
            return
        most, total = max(self.places, places), _EXACT.add(self.exact, term)
        if most <= 36 and all(_fits(each, most) for each in (self.exact, term, total)):
            self.exact, self.places = total, most
        else:
            self.rough = self.value + rough


def totals_of(ticks: Iterable[tuple[float, float]]) -> tuple[Total, Total]:
    """Volume and notional of prices and sizes."""
    volume, notional = Total(), Total()
    for price, size in ticks:
        volume.add(size)
        notional.add_product(price, size)
    return volume, notional


def vwap_of(volume: Total, notional: Total, low: float, high: float) -> float | None:
    """The quotient, held between low and high; None where there is none."""
    if volume.value == 0 or not math.isfinite(volume.value) or not math.isfinite(notional.value):
        return None
    found = max(notional.value / volume.value, low)
    return high if found > high else found


def _shortest(value: float) -> Decimal:
    return Decimal(repr(value)).normalize(_EXACT)


def _places(decimal: Decimal) -> int:
    exponent = decimal.as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _fits(decimal: Decimal, places: int) -> bool:
    scaled = int(decimal.scaleb(places, _EXACT))
    return -(2**126) <= scaled < 2**126
