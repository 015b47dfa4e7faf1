"""Sums of decimals that are exact: 0.1 and 0.2 are 0.3, as whoever sent them says.

A price or a size arrives as a float64 and means the shortest decimal that is read as this float, the one that is
printed. Sums are made of these decimals, as an integer and a number of decimals: they don't depend on the order in
which they are made, and merging two is adding them. What is shown is the float nearest to the sum, rounded once.

*Where that ends.* An integer has 127 bits with its sign, and there are at most `MOST_DECIMALS` decimals: room for sums
of 8.5e21 in steps of 1e-16. A sum that finds no room goes on as a float64: the nearest to what it was, and what comes
then is added in floats, one at a time, in the order in which it comes, which is that of the log. It stays a float, and
so does what it is merged into. That, too, is a function of the log.

`native/src/sums.rs` is the same.
"""

from __future__ import annotations

import math
from functools import lru_cache
from struct import Struct
from typing import Final

__all__ = ["IS_FLOAT", "LIMIT", "MOST_DECIMALS", "SUM", "DecimalSum", "average", "decimal_of"]

MOST_DECIMALS: Final = 36
LIMIT: Final = 1 << 126
_POWERS: Final = tuple(10**power for power in range(MOST_DECIMALS + 1))

SUM: Final = Struct("<QqB")  # low and high word of the integer, decimals
IS_FLOAT: Final = 255  # in place of the decimals: then the low word is the bits of a float
_FLOAT: Final = Struct("<dqB")


@lru_cache(maxsize=1 << 14)  # prices and sizes come again and again
def decimal_of(value: float) -> tuple[int, int]:
    """The shortest decimal that is read as this float: an integer, and how many of its digits are decimals.

    Raises `ValueError` where the float is not finite.
    """
    value = float(value)  # aggregations may be used by hand, with integers or numpy's floats
    if value.is_integer() and abs(value) < 2**53:
        return int(value), 0
    digits, _, exponent = repr(value).partition("e")
    whole, _, fraction = digits.removesuffix(".0").partition(".")
    mantissa, decimals = int(whole + fraction), len(fraction) - int(exponent or 0)
    return (mantissa, decimals) if decimals >= 0 else (mantissa * 10**-decimals, 0)


class DecimalSum:
    """A sum of decimals, ``mantissa / 10**decimals``, or a float64 where that has no room. It is never changed."""

    __slots__ = ("approximate", "decimals", "mantissa")

    def __init__(self, mantissa: int = 0, decimals: int = 0, approximate: float | None = None) -> None:
        self.mantissa = mantissa
        self.decimals = decimals
        self.approximate = approximate

    def __float__(self) -> float:
        """The nearest float64."""
        return self.mantissa / _POWERS[self.decimals] if self.approximate is None else self.approximate

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecimalSum) and self.dump() == other.dump()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DecimalSum({self.mantissa}, {self.decimals}, {self.approximate})"

    def plus(self, value: float) -> DecimalSum:
        """The sum with one more value."""
        try:
            mantissa, decimals = decimal_of(value)
        except ValueError:
            return self._plus_float(value)
        return self._plus(mantissa, decimals, value)

    def plus_product(self, left: float, right: float) -> DecimalSum:
        """The sum with the product of two values, which is exact as well."""
        try:
            left_mantissa, left_decimals = decimal_of(left)
            right_mantissa, right_decimals = decimal_of(right)
        except ValueError:
            return self._plus_float(left * right)
        return self._plus(left_mantissa * right_mantissa, left_decimals + right_decimals, left * right)

    def merged(self, other: DecimalSum) -> DecimalSum:
        """The sum of two sums; a float where one of them is."""
        if other.approximate is not None:
            return self._plus_float(other.approximate)
        return self._plus(other.mantissa, other.decimals, float(other))

    def dump(self) -> bytes:
        """The bytes of a `SUM`."""
        if self.approximate is not None:
            return _FLOAT.pack(self.approximate, 0, IS_FLOAT)
        return SUM.pack(self.mantissa & (1 << 64) - 1, self.mantissa >> 64, self.decimals)

    @staticmethod
    def load(data: bytes) -> DecimalSum:
        """The sum that `dump` wrote. Raises `ValueError` where it can't be one, `struct.error` at another length."""
        low, high, decimals = SUM.unpack(data)
        if decimals == IS_FLOAT:
            return DecimalSum(0, 0, _FLOAT.unpack(data)[0])
        mantissa = high << 64 | low
        if decimals > MOST_DECIMALS or not -LIMIT <= mantissa < LIMIT:
            raise ValueError(f"a sum is {mantissa} with {decimals} decimals; expected 127 bits and {MOST_DECIMALS}")
        return DecimalSum(mantissa, decimals)

    def _plus(self, mantissa: int, decimals: int, value: float) -> DecimalSum:
        """The sum with one more decimal, or with the float for it where there is no room."""
        if self.approximate is not None:
            return DecimalSum(0, 0, self.approximate + value)
        if not mantissa:
            return self
        ours, most = self.mantissa, self.decimals
        if decimals < most:
            mantissa *= _POWERS[most - decimals]
        elif decimals > most:
            if decimals > MOST_DECIMALS:
                return self._plus_float(value)
            ours, most = ours * _POWERS[decimals - most], decimals
        total = ours + mantissa
        if -LIMIT <= total < LIMIT and -LIMIT <= mantissa < LIMIT and -LIMIT <= ours < LIMIT:
            return DecimalSum(total, most)
        return self._plus_float(value)

    def _plus_float(self, value: float) -> DecimalSum:
        return DecimalSum(0, 0, float(self) + value)


def average(notional: DecimalSum, volume: DecimalSum, low: float, high: float) -> float | None:
    """The volume-weighted average of prices from ``low`` to ``high``, which it never leaves; None without volume, and
    where a sum is beyond a float64."""
    value, weight = float(notional), float(volume)
    if weight == 0 or not (math.isfinite(value) and math.isfinite(weight)):
        return None
    return min(max(value / weight, low), high)
