"""Numbers as JSON text, compiled: byte for byte what orjson writes.

Floats take the shortest digits that read back as the same float (Raffaello Giulietti's Schubfach: one multiplication by
a 128-bit power of ten, rounded to odd, tells the candidates apart).
"""

from __future__ import annotations

# Compiled: the declared signatures give every cell and variable a width, which Python's annotations don't know.
# mypy: disable-error-code="arg-type, assignment, call-arg, no-any-return, return-value, var-annotated"
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import types

from workers.compiled.jit import BYTES, bits_of, compiled, float_of, inlined, mulhi

__all__ = ["FLOAT_BYTES", "put_float", "put_int", "shortest", "write_floats"]

FLOAT_BYTES: Final = 25
"""The most that a float takes; the most that a 64-bit integer takes is less."""

_SMALLEST_POWER: Final = -292
_LARGEST_POWER: Final = 324
_HIDDEN_BIT: Final = np.uint64(1 << 52)
_FRACTION: Final = np.uint64((1 << 52) - 1)
U: Final = np.uint64
_0, _1, _2, _4, _10, _40 = U(0), U(1), U(2), U(4), U(10), U(40)


def _powers_of_ten() -> npt.NDArray[np.uint64]:
    """Each power of ten as the upper 128 bits of its binary form, rounded up: a row of upper and lower half."""
    rows = []
    for power in range(_SMALLEST_POWER, _LARGEST_POWER + 1):
        shift = 127 - ((power * 1741647) >> 19)  # 127 - floor(log2(10**power))
        top, bottom = 10 ** max(power, 0), 10 ** max(-power, 0)
        top, bottom = (top << shift, bottom) if shift >= 0 else (top, bottom << -shift)
        rounded = -(-top // bottom)
        assert rounded.bit_length() == 128
        rows.append((rounded >> 64, rounded & (2**64 - 1)))
    return np.array(rows, dtype=np.uint64)


_POWERS: Final = _powers_of_ten()
_PAIRS: Final = np.frombuffer(b"".join(b"%02d" % pair for pair in range(100)), np.uint8)


@inlined
def _times_power(power: int, factor: np.uint64) -> np.uint64:
    high, low = _POWERS[power - _SMALLEST_POWER, 0], _POWERS[power - _SMALLEST_POWER, 1]
    carried = mulhi(low, factor)
    middle = high * factor + carried
    top = mulhi(high, factor) + (_1 if middle < carried else _0)
    return top | (_1 if middle > _1 else _0)  # to odd: what was cut off stays visible in the last bit


@inlined
def shortest(bits: np.uint64) -> tuple[np.uint64, int]:
    """Digits and decimal exponent of a positive, finite float."""
    fraction = bits & _FRACTION
    biased = np.int64((bits >> U(52)) & U(0x7FF))
    if biased != 0:
        digits, exponent = fraction | _HIDDEN_BIT, biased - 1075
        if -53 < exponent <= 0 and (digits & ((_1 << U(-exponent)) - _1)) == _0:
            return digits >> U(-exponent), np.int64(0)
    else:
        digits, exponent = fraction, np.int64(-1074)
    odd = digits & _1  # an even float owns the edges of its interval
    closer = fraction == _0 and biased > 1  # the float below is only half as far
    power = (exponent * 1262611 - (524031 if closer else 0)) >> 22
    shift = U(exponent + ((-power * 1741647) >> 19) + 1)
    lower = _times_power(-power, (_4 * digits - (_1 if closer else _2)) << shift) + odd
    value = _times_power(-power, (_4 * digits) << shift)
    upper = _times_power(-power, (_4 * digits + _2) << shift) - odd
    whole = value >> _2
    if whole >= _10:
        tens = whole // _10
        below, above = lower <= _40 * tens, _40 * tens + _40 <= upper
        if below != above:
            return tens + (_1 if above else _0), power + 1
    below, above = lower <= _4 * whole, _4 * whole + _4 <= upper
    if below != above:
        return whole + (_1 if above else _0), power
    middle = _4 * whole + _2
    up = value > middle or (value == middle and (whole & _1) != _0)
    return whole + (_1 if up else _0), power


@inlined
def _put_digits(out: npt.NDArray[np.uint8], position: int, digits: np.uint64, length: int) -> None:
    place = position + length
    while place - 2 >= position:
        rest = digits // U(100)
        pair = np.int64(digits - rest * U(100)) * 2
        place -= 2
        out[place], out[place + 1] = _PAIRS[pair], _PAIRS[pair + 1]
        digits = rest
    if place > position:
        out[position] = np.uint8(digits + U(48))


@inlined
def _length(digits: np.uint64) -> int:
    length, bound = 1, _10
    while length < 20 and digits >= bound:
        length += 1
        bound *= _10
        if length == 20:
            break
    return length


@inlined
def put_int(out: npt.NDArray[np.uint8], position: int, value: int) -> int:
    """Write an integer; the position after it. 20 bytes are enough."""
    magnitude = U(value)
    if value < 0:
        out[position] = 45
        position += 1
        magnitude = _0 - magnitude
    length = _length(magnitude)
    _put_digits(out, position, magnitude, length)
    return position + length


@inlined
def put_float(out: npt.NDArray[np.uint8], position: int, value: float) -> int:
    """Write a float, ``null`` where JSON has no word for it; the position after it. Needs `FLOAT_BYTES`."""
    bits = bits_of(value)
    if (bits >> U(52)) & U(0x7FF) == U(0x7FF):
        out[position], out[position + 1], out[position + 2], out[position + 3] = 110, 117, 108, 108
        return position + 4
    if bits >> U(63) != _0:
        out[position] = 45
        position += 1
        bits &= U(0x7FFFFFFFFFFFFFFF)
    if bits == _0:
        out[position], out[position + 1], out[position + 2] = 48, 46, 48
        return position + 3
    digits, power = _0, np.int64(-2)
    magnitude = float_of(bits)
    if magnitude < 1e13:
        # A number of cents? Decimals of at most 15 digits each have a float of their own: no shorter one can be it.
        cents = np.int64(magnitude * 100.0 + 0.5)
        if np.float64(cents) / 100.0 == magnitude:
            digits = U(cents)
    if digits == _0:
        digits, power = shortest(bits)
    rest = digits // _10
    while rest * _10 == digits:
        digits = rest
        power += 1
        rest = digits // _10
    length = _length(digits)
    point = length + power  # where the decimal point is, counted from the first digit
    if power >= 0 and point <= 16:
        _put_digits(out, position, digits, length)
        for place in range(position + length, position + point):
            out[place] = 48
        out[position + point], out[position + point + 1] = 46, 48
        return position + point + 2
    if 0 < point <= 16:
        _put_digits(out, position + 1, digits, length)
        for place in range(position, position + point):
            out[place] = out[place + 1]
        out[position + point] = 46
        return position + length + 1
    if -5 < point <= 0:
        out[position], out[position + 1] = 48, 46
        for place in range(position + 2, position + 2 - point):
            out[place] = 48
        _put_digits(out, position + 2 - point, digits, length)
        return position + 2 - point + length
    return _put_scientific(out, position, digits, length, point - 1)


@inlined
def _put_scientific(out: npt.NDArray[np.uint8], position: int, digits: np.uint64, length: int, exponent: int) -> int:
    if length == 1:
        out[position] = np.uint8(digits + U(48))
        position += 1
    else:
        _put_digits(out, position + 1, digits, length)
        out[position] = out[position + 1]
        out[position + 1] = 46
        position += length + 1
    out[position] = 101
    out[position + 1] = 45 if exponent < 0 else 43
    position += 2
    magnitude = U(abs(exponent))
    length = _length(magnitude)
    _put_digits(out, position, magnitude, length)
    return position + length


@compiled(types.Array(types.float64, 1, "C"), BYTES, returns=types.int64)
def write_floats(values: npt.NDArray[np.float64], out: npt.NDArray[np.uint8]) -> int:
    """All values as a JSON array; the bytes written. ``out`` needs `FLOAT_BYTES` + 1 for each value, and two."""
    out[0] = 91
    position = 1
    for index in range(values.shape[0]):
        if index:
            out[position] = 44
            position += 1
        position = put_float(out, position, values[index])
    out[position] = 93
    return position + 1
