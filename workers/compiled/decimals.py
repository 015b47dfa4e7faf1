"""Sums of decimals, compiled: the same as those of `workers.core.decimals`, to the bit of the state.

A sum is three columns of a window's row: low and high word of a signed integer of 128 bits, and its number of decimals.
Where that is `IS_FLOAT` the low word is the bits of a float. Terms are magnitudes and a sign.

A value that was decoded as an integer of fewer than 16 digits is handed over as that, *packed* with its decimals: no
shorter decimal is read as its float. For others it is `NONE`, and the digits are those that the float is printed with.
"""

from __future__ import annotations

# Compiled: the declared signatures give every cell and variable a width, which Python's annotations don't know.
# mypy: disable-error-code="arg-type, assignment, call-arg, no-any-return, return-value, var-annotated"
from typing import Final

import numpy as np

from workers.compiled.jit import bits_of, float_of, inlined, mulhi
from workers.compiled.numbers import shortest
from workers.compiled.tables import NONE, W_NOTIONAL, W_VOLUME, Ints, U
from workers.core.decimals import IS_FLOAT, LIMIT, MOST_DECIMALS

__all__ = ["add_tick", "packed", "sum_as_float"]

PACKED_BELOW: Final = 10**15
PACKED_BITS: Final = 5
PACKED_DECIMALS: Final = (1 << PACKED_BITS) - 1

_0, _1, _63, _64 = U(0), U(1), U(63), U(64)
_LIMIT: Final = LIMIT >> 64  # of the high word
_SIGN: Final = U(1 << 63)
_LARGEST_STEP: Final = 19
_POWERS: Final = np.array([10**power for power in range(_LARGEST_STEP + 1)], np.uint64)
_TENS: Final = np.array([10.0**power for power in range(23)])
# Divisors, shifted until they have 127 bits: high word, low word, and by how much.
_SHIFTS: Final = np.array([127 - (10**power).bit_length() for power in range(MOST_DECIMALS + 1)], np.int64)
_DIVISORS: Final = np.array(
    [
        ((10**power << int(shift)) >> 64, (10**power << int(shift)) & (2**64 - 1))
        for power, shift in enumerate(_SHIFTS.tolist())
    ],
    np.uint64,
)


@inlined
def packed(mantissa: int, decimals: int) -> int:
    """An integer and its decimals (at most 18) as one column, without the zeros at its end; or ``NONE``."""
    while decimals > 0:
        rest = mantissa // 10
        if rest * 10 != mantissa:
            break
        mantissa = rest
        decimals -= 1
    if -PACKED_BELOW < mantissa < PACKED_BELOW:
        return (mantissa << PACKED_BITS) | decimals
    return NONE


@inlined
def _term(packed_value: int, value: float) -> tuple[bool, np.uint64, int]:
    """Sign, digits and decimals of a value; decimals are below 0 where zeros follow."""
    if packed_value != NONE:
        mantissa = packed_value >> PACKED_BITS
        return mantissa < 0, U(abs(mantissa)), packed_value & PACKED_DECIMALS
    bits = bits_of(value)
    negative = bits >> _63 != _0
    bits &= ~_SIGN
    if bits == _0:
        return False, _0, np.int64(0)
    digits, power = shortest(bits)
    rest = digits // U(10)
    while rest * U(10) == digits:
        digits = rest
        power += 1
        rest = digits // U(10)
    return negative, digits, -power


@inlined
def _scaled(high: np.uint64, low: np.uint64, power: int) -> tuple[bool, np.uint64, np.uint64]:
    """A magnitude times ``10**power``; whether it has room, and high and low word."""
    fits = high < U(_LIMIT)
    while power > 0 and fits:
        factor = _POWERS[min(power, _LARGEST_STEP)]
        carried = mulhi(low, factor)
        low *= factor
        raised = high * factor + carried
        fits = mulhi(high, factor) == _0 and carried <= raised < U(_LIMIT)
        high = raised
        power -= _LARGEST_STEP
    return fits, high, low


@inlined
def _negated(high: np.uint64, low: np.uint64) -> tuple[np.uint64, np.uint64]:
    return ~high + (_1 if low == _0 else _0), ~low + _1


@inlined
def _add(
    row: int,
    at: int,
    negative: bool,
    high: np.uint64,
    low: np.uint64,
    decimals: int,
    zeros: int,
    value: float,
    sums: Ints,
) -> None:
    """Add a magnitude that ``zeros`` zeros follow, or the float for it where there is no room."""
    before = sums[row, at + 2]
    if before == IS_FLOAT:
        sums[row, at] = np.int64(bits_of(float_of(U(sums[row, at])) + value))
        return
    if high == _0 and low == _0:
        return
    most = max(before, decimals)
    if most <= MOST_DECIMALS:
        fits, high, low = _scaled(high, low, zeros + most - decimals)
        our_low, our_high = U(sums[row, at]), U(sums[row, at + 1])
        if most > before:
            minus = our_high & _SIGN != _0
            if minus:
                our_high, our_low = _negated(our_high, our_low)
            has_room, our_high, our_low = _scaled(our_high, our_low, most - before)
            fits = fits and has_room
            if minus:
                our_high, our_low = _negated(our_high, our_low)
        if negative:
            high, low = _negated(high, low)
        low += our_low
        high += our_high + (_1 if low < our_low else _0)
        if fits and -_LIMIT <= np.int64(high) < _LIMIT:
            sums[row, at], sums[row, at + 1], sums[row, at + 2] = np.int64(low), np.int64(high), most
            return
    total = sum_as_float(U(sums[row, at]), U(sums[row, at + 1]), before) + value
    sums[row, at], sums[row, at + 1], sums[row, at + 2] = np.int64(bits_of(total)), 0, IS_FLOAT


@inlined
def add_tick(row: int, packed_price: int, price: float, packed_size: int, size: float, windows: Ints) -> None:
    """Add a tick to volume and notional."""
    if packed_price >= 0 and packed_size >= 0:  # as nearly always: price and size are short, not below 0, and fit in
        price_digits, size_digits = U(packed_price >> PACKED_BITS), U(packed_size >> PACKED_BITS)
        size_decimals = packed_size & PACKED_DECIMALS
        volume_power = windows[row, W_VOLUME + 2] - size_decimals
        notional_power = windows[row, W_NOTIONAL + 2] - size_decimals - (packed_price & PACKED_DECIMALS)
        product = price_digits * size_digits
        if (
            0 <= volume_power < _LARGEST_STEP
            and 0 <= notional_power < _LARGEST_STEP
            and mulhi(price_digits, size_digits) == _0
        ):
            volume_low, volume_high = _raised(row, W_VOLUME, size_digits, _POWERS[volume_power], windows)
            notional_low, notional_high = _raised(row, W_NOTIONAL, product, _POWERS[notional_power], windows)
            if -_LIMIT <= volume_high < _LIMIT and -_LIMIT <= notional_high < _LIMIT:
                windows[row, W_VOLUME], windows[row, W_VOLUME + 1] = volume_low, volume_high
                windows[row, W_NOTIONAL], windows[row, W_NOTIONAL + 1] = notional_low, notional_high
                return
    add_value(row, W_VOLUME, packed_size, size, windows)
    add_product(row, W_NOTIONAL, packed_price, price, packed_size, size, windows)


@inlined
def _raised(row: int, at: int, term: np.uint64, factor: np.uint64, sums: Ints) -> tuple[int, int]:
    """Low and high word of a sum and a term times a factor, which together have 127 bits at most."""
    low, added = U(sums[row, at]), term * factor
    low += added
    return np.int64(low), sums[row, at + 1] + np.int64(mulhi(term, factor) + (_1 if low < added else _0))


@inlined
def add_value(row: int, at: int, packed_value: int, value: float, sums: Ints) -> None:
    """Add a value to the sum at column ``at``."""
    negative, digits, decimals = _term(packed_value, value)
    _add(row, at, negative, _0, digits, max(decimals, 0), max(-decimals, 0), value, sums)


@inlined
def add_product(row: int, at: int, packed_left: int, left: float, packed_right: int, right: float, sums: Ints) -> None:
    """Add the product of two values to the sum at column ``at``."""
    left_negative, left_digits, left_decimals = _term(packed_left, left)
    right_negative, right_digits, right_decimals = _term(packed_right, right)
    decimals = max(left_decimals, 0) + max(right_decimals, 0)
    zeros = max(-left_decimals, 0) + max(-right_decimals, 0)
    high, low = mulhi(left_digits, right_digits), left_digits * right_digits
    _add(row, at, left_negative != right_negative, high, low, decimals, zeros, left * right, sums)


@inlined
def sum_as_float(low: np.uint64, high: np.uint64, decimals: int) -> float:
    """The float64 nearest to a sum."""
    if decimals == IS_FLOAT:
        return float_of(low)
    negative = high & _SIGN != _0
    if negative:
        high, low = _negated(high, low)
    if high == _0 and low < U(1 << 53) and decimals <= 22:  # both are floats: one rounding
        found = np.float64(low) / _TENS[decimals]
    else:
        found = _divided(high, low, decimals)
    return -found if negative else found


@inlined
def _divided(high: np.uint64, low: np.uint64, decimals: int) -> float:
    """A magnitude by ``10**decimals``, rounded once: its bits one by one, and whether anything is left."""
    if high == _0 and low == _0:
        return 0.0
    shift = _SHIFTS[decimals]
    while high < U(_LIMIT):
        high = high << _1 | low >> _63
        low <<= _1
        shift -= 1
    top, bottom = _DIVISORS[decimals, 0], _DIVISORS[decimals, 1]
    bits = np.int64(0)
    for _ in range(55):  # the quotient is between 1/2 and 2: these are 54 bits of it or 55
        bits <<= 1
        if high > top or (high == top and low >= bottom):
            high -= top + (_1 if low < bottom else _0)
            low -= bottom
            bits |= 1
        high = high << _1 | low >> _63
        low <<= _1
    sticky = np.int64(high != _0 or low != _0)
    scale = float_of(U(1023 - 55 + shift) << U(52))
    return np.float64(bits << 1 | sticky) * scale
