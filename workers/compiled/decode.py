"""Decoding record batches into columns, in one compiled loop.

A row per record: key row, event time, price, size, offset. Accepted here is only what is certain to be what
`workers.core.formats.json.tick_decoder` would have made of it: a JSON object whose four fields are there once, the
symbol as it stands between its quotes and equal to the record's key, the numbers short enough that
``mantissa / 10**digits`` is the nearest float (both exact in a float64, one rounding). Everything else is *flagged*,
key row -1, and goes to the plain decoder: escapes, nested values, exponents, RFC 3339, whatever is wrong in any way. So
reasons and their order are given in one place.

Producers write the same shape over and over. The text between the values of one record is remembered (the *shape*),
and a record that has the same text in the same places needs no parsing beyond its values.
"""

from __future__ import annotations

# Compiled: the declared signatures give every cell and variable a width, which Python's annotations don't know.
# mypy: disable-error-code="arg-type, assignment, call-arg, no-any-return, return-value, var-annotated"
from typing import Final

import numpy as np
from numba import types

from workers.compiled.decimals import packed
from workers.compiled.jit import BYTES, FLOATS2, INTS, INTS2, READ_BYTES, compiled, inlined, load64
from workers.compiled.tables import (
    C_AMOUNT,
    C_BATCH,
    C_KEY,
    C_OFFSET,
    C_POSITION,
    C_PRICE,
    C_TS,
    H_FLAGGED,
    H_NEED,
    K_FLAGS,
    KEY_PLAIN,
    NEED_NOTHING,
    NONE,
    P_LARGEST_TS,
    P_SEED,
    P_SKEW,
    P_SMALLEST_TS,
    P_UNIT,
    V_PRICE,
    V_SIZE,
    Bytes,
    Floats,
    Ints,
    U,
    find_key,
    hash_bytes,
    is_plain,
    load_some,
    new_key,
    same_bytes,
)

__all__ = ["decode"]

# A row per record batch of the payload.
B_BEGIN, B_END, B_OFFSET, B_TIMESTAMP, B_FIXED_TIMESTAMP, B_COUNT, B_START_OFFSET, B_SIZE = range(8)

# Where decoding stands.
D_BATCH, D_POSITION, D_LEFT, D_NEXT_OFFSET, D_STATUS, D_SIZE = range(6)
D_DONE, D_FULL, D_NO_ROOM, D_CORRUPT, D_BACKWARDS = range(5)

FIELDS: Final = 4
SYMBOL, TS, PRICE, SIZE = range(FIELDS)

# The shape: [known, misses, order * 4, length * 5]; its words and their masks are 32 per text.
S_KNOWN, S_MISSES, S_ORDER, S_LENGTH, S_SIZE = 0, 1, 2, 6, 11
SHAPE_WORDS: Final = 32
MISSES_BEFORE_LEARNING: Final = 32

EXACT_MANTISSA: Final = 2**53
MOST_DIGITS: Final = 18
LARGEST_SENT_MS: Final = 2**63 // 10**6 - 366 * 86_400_000  # with a skew of a year it still fits

_TENS: Final = np.array([10.0**power for power in range(23)])


@inlined
def _varint(data: Bytes, position: int, end: int) -> tuple[int, int]:
    """A zigzag varint and the position after it, -1 where there is none."""
    result, shift = U(0), U(0)
    while position < end and shift <= U(63):
        byte = U(data[position])
        position += 1
        result |= (byte & U(127)) << shift
        if byte < U(128):
            return np.int64(result >> U(1)) ^ -np.int64(result & U(1)), position
        shift += U(7)
    return np.int64(0), np.int64(NONE)


@inlined
def _headers_end(data: Bytes, position: int, end: int, headers: int) -> int:
    """The position after so many headers; -1 where they don't fit. What their names say is the reader's business."""
    while headers > 0:
        for _ in range(2):  # its name and its value, -1 bytes long where there is none
            length, position = _varint(data, position, end)
            if position == NONE or length > end - position:
                return NONE
            position += max(length, 0)
        headers -= 1
    return position


@inlined
def _digits(data: Bytes, position: int, end: int, mantissa: int) -> tuple[int, int]:
    """The digits at a position appended to a mantissa (which wraps beyond 18 of them), and the position after them."""
    while position + 8 <= end:
        word = load64(data, position)
        if ((word & U(0xF0F0F0F0F0F0F0F0)) | (((word + U(0x0606060606060606)) & U(0xF0F0F0F0F0F0F0F0)) >> U(4))) != U(
            0x3333333333333333
        ):
            break
        word = (word & U(0x0F0F0F0F0F0F0F0F)) * U(2561) >> U(8)
        word = (word & U(0x00FF00FF00FF00FF)) * U(6553601) >> U(16)
        word = (word & U(0x0000FFFF0000FFFF)) * U(42949672960001) >> U(32)
        mantissa = mantissa * 100_000_000 + np.int64(word)
        position += 8
    while position < end:
        digit = np.int64(data[position]) - 48
        if digit < 0 or digit > 9:
            break
        mantissa = mantissa * 10 + digit
        position += 1
    return mantissa, position


@inlined
def _number(data: Bytes, position: int, end: int) -> tuple[int, int, int]:
    """A JSON number without exponent and of at most 18 digits: position after it (-1: none), mantissa, decimals."""
    nothing = (np.int64(NONE), np.int64(0), np.int64(0))
    negative = position < end and data[position] == 45
    if negative:
        position += 1
    begin = position
    mantissa, position = _digits(data, position, end, np.int64(0))
    digits = position - begin
    if digits == 0 or (digits > 1 and data[begin] == 48):
        return nothing
    decimals = np.int64(0)
    if position < end and data[position] == 46:
        begin = position + 1
        mantissa, position = _digits(data, begin, end, mantissa)
        decimals = position - begin
        if decimals == 0:
            return nothing
        digits += decimals
    if digits > MOST_DIGITS or (position < end and data[position] | 32 == 101):
        return nothing
    if negative:
        if mantissa == 0:
            return nothing  # a negative zero, which is a float or an integer
        mantissa = -mantissa
    return position, mantissa, decimals


@inlined
def _space(data: Bytes, position: int, end: int) -> int:
    while position < end and (
        data[position] == 32 or data[position] == 10 or data[position] == 13 or data[position] == 9
    ):
        position += 1
    return position


@inlined
def _string_end(data: Bytes, position: int, end: int, highest: int) -> int:
    """The position of the quote that ends a string without escapes; -1 where it has any, or bytes above ``highest``."""
    while position < end:
        byte = data[position]
        if byte == 34:
            return position
        if byte < 32 or byte == 92 or byte > highest:
            return NONE
        position += 1
    return NONE


@inlined
def _literal_end(data: Bytes, position: int, end: int) -> int:
    """The position after true, false or null; -1 where there is none of them."""
    word = load_some(data, position, min(4, end - position))
    if word == U(0x65757274) or word == U(0x6C6C756E):
        return position + 4
    if word == U(0x736C6166) and position + 4 < end and data[position + 4] == 101:
        return position + 5
    return NONE


@inlined
def _field(data: Bytes, begin: int, end: int, names: Bytes, bounds: Ints) -> int:
    """Which of the four fields has this name, or -1."""
    for field in range(FIELDS):
        length = bounds[field + 1] - bounds[field]
        if length == end - begin and same_bytes(data, begin, names, bounds[field], length):
            return field
    return NONE


@inlined
def _parse(data: Bytes, position: int, end: int, names: Bytes, bounds: Ints, cores: Ints) -> bool:
    """Find the four values of a JSON object; whether it is one that this decoder takes.

    ``cores`` gets, per field, where its value begins and ends, quotes left out; then mantissa and decimals of it.
    """
    for field in range(FIELDS):
        cores[4 * field] = NONE
    position = _space(data, position, end)
    if position >= end or data[position] != 123:
        return False
    while True:
        position = _space(data, position + 1, end)
        if position >= end or data[position] != 34:
            return False
        begin = position + 1
        position = _string_end(data, begin, end, 126)
        if position == NONE:
            return False
        field = _field(data, begin, position, names, bounds)
        if field != NONE and cores[4 * field] != NONE:
            return False
        position = _space(data, position + 1, end)
        if position >= end or data[position] != 58:
            return False
        position = _value(data, _space(data, position + 1, end), end, field, cores)
        if position == NONE:
            return False
        position = _space(data, position, end)
        if position >= end:
            return False
        if data[position] == 125:
            break
        if data[position] != 44:
            return False
    if _space(data, position + 1, end) != end:
        return False
    return cores[0] != NONE and cores[4] != NONE and cores[8] != NONE and cores[12] != NONE


@inlined
def _value(data: Bytes, position: int, end: int, field: int, cores: Ints) -> int:
    """The position after a value, which is noted in ``cores`` if it is that of a field; -1 where it isn't taken."""
    if position >= end:
        return NONE
    byte = data[position]
    if byte != 34 and byte != 45 and (byte < 48 or byte > 57):
        return _literal_end(data, position, end) if field == NONE else NONE
    quoted = byte == 34
    begin = position + 1 if quoted else position
    if quoted and field in (NONE, SYMBOL):
        stop = _string_end(data, begin, end, 126 if field == NONE else 255)
        if stop == NONE:
            return NONE
    elif field == SYMBOL or (quoted and field == TS):
        return NONE
    else:
        stop, mantissa, decimals = _number(data, begin, end)
        if stop == NONE or (quoted and (stop >= end or data[stop] != 34)):
            return NONE
        if field != NONE:
            if field == TS and decimals > 0:
                return NONE
            cores[4 * field + 2], cores[4 * field + 3] = mantissa, decimals
    if field != NONE:
        cores[4 * field], cores[4 * field + 1] = begin, stop
    return stop + 1 if quoted else stop


@inlined
def _learn(data: Bytes, begin: int, end: int, cores: Ints, shape: Ints, words: Ints, masks: Ints) -> None:
    """Remember the texts between the values of a record."""
    shape[S_KNOWN] = 0
    position, after = begin, NONE
    for place in range(FIELDS + 1):
        field = NONE
        if place < FIELDS:
            for candidate in range(FIELDS):
                if cores[4 * candidate] > after and (field == NONE or cores[4 * candidate] < cores[4 * field]):
                    field = candidate
            shape[S_ORDER + place] = field
            after = cores[4 * field]
        length = (after if place < FIELDS else end) - position
        if length > 8 * SHAPE_WORDS:
            return
        shape[S_LENGTH + place] = length
        for index in range(0, length, 8):
            some = min(8, length - index)
            words[place * SHAPE_WORDS + index // 8] = np.int64(load_some(data, position + index, some))
            masks[place * SHAPE_WORDS + index // 8] = -1 if some == 8 else (1 << (8 * some)) - 1
        if place < FIELDS:
            position = cores[4 * field + 1]
    shape[S_KNOWN] = 1


@inlined
def _match(
    data: Bytes,
    position: int,
    end: int,
    key_begin: int,
    key_length: int,
    shape: Ints,
    words: Ints,
    masks: Ints,
    cores: Ints,
) -> bool:
    """Whether a value has the shape, its symbol being the key; its numbers are noted in ``cores``.

    At least eight bytes must follow ``end``.
    """
    for place in range(FIELDS + 1):
        length = shape[S_LENGTH + place]
        if position + length > end:
            return False
        word = place * SHAPE_WORDS
        for index in range(0, length, 8):
            if (np.int64(load64(data, position + index)) & masks[word]) != words[word]:
                return False
            word += 1
        position += length
        if place == FIELDS:
            return position == end
        field = shape[S_ORDER + place]
        if field == SYMBOL:
            if position + key_length > end or not same_bytes(data, position, data, key_begin, key_length):
                return False
            position += key_length
            continue
        position, mantissa, decimals = _number(data, position, end)
        if position == NONE or (field == TS and decimals > 0):
            return False
        cores[4 * field + 2], cores[4 * field + 3] = mantissa, decimals
    return False


@compiled(
    *(READ_BYTES, INTS2, INTS, INTS, BYTES, INTS, INTS, INTS, INTS),
    *(INTS, INTS2, BYTES, INTS, INTS, INTS2, FLOATS2, INTS, INTS),
    returns=types.int64,
)
def decode(
    data: Bytes,
    batches: Ints,
    state: Ints,
    params: Ints,
    field_names: Bytes,
    field_bounds: Ints,
    shape: Ints,
    words: Ints,
    masks: Ints,
    head: Ints,
    keys: Ints,
    names: Bytes,
    table: Ints,
    unused: Ints,
    columns: Ints,
    values: Floats,
    flagged: Ints,
    cores: Ints,
) -> int:
    """Decode on from ``state`` into as many rows as there are; the rows filled. ``D_STATUS`` says why it stopped."""
    limit = columns.shape[0]
    size = data.shape[0]
    filled = 0
    head[H_FLAGGED] = 0
    head[H_NEED] = NEED_NOTHING
    batch, position, left, next_offset = state[D_BATCH], state[D_POSITION], state[D_LEFT], state[D_NEXT_OFFSET]
    status = D_DONE
    while True:
        if left == 0:
            if batch >= 0 and position != batches[batch, B_END]:
                status = D_CORRUPT
                break
            if batch + 1 >= batches.shape[0]:
                break
            batch += 1
            position, left = batches[batch, B_BEGIN], batches[batch, B_COUNT]
            continue
        if filled == limit:
            status = D_FULL
            break
        end = batches[batch, B_END]
        length, at = _varint(data, position, end)
        stop = at + length
        if at == NONE or length < 0 or stop > end or at >= stop:
            status = D_CORRUPT
            break
        ts_delta, at = _varint(data, at + 1, stop)  # behind the attributes, one byte that means nothing yet
        if at == NONE:
            status = D_CORRUPT
            break
        offset_delta, at = _varint(data, at, stop)
        if at == NONE:
            status = D_CORRUPT
            break
        key_length, at = _varint(data, at, stop)
        key_begin = at
        if at == NONE or key_length > stop - at:
            status = D_CORRUPT
            break
        value_length, at = _varint(data, at + max(key_length, 0), stop)
        value_begin = at
        if at == NONE or value_length > stop - at:
            status = D_CORRUPT
            break
        value_end = value_begin + max(value_length, 0)
        headers, at = _varint(data, value_end, stop)
        if at == NONE or headers < 0 or (headers > 0 and _headers_end(data, at, stop, headers) != stop):
            status = D_CORRUPT
            break
        if headers == 0 and at != stop:
            status = D_CORRUPT
            break
        offset = batches[batch, B_OFFSET] + offset_delta
        if offset < batches[batch, B_START_OFFSET]:
            position, left = stop, left - 1
            continue
        if offset < next_offset:
            status = D_BACKWARDS
            break
        row = np.int64(NONE)
        if key_length >= 0 and value_length >= 0:
            good = False
            if shape[S_KNOWN] and value_end + 8 <= size:
                good = _match(data, value_begin, value_end, key_begin, key_length, shape, words, masks, cores)
            if not good and _parse(data, value_begin, value_end, field_names, field_bounds, cores):
                good = cores[1] - cores[0] == key_length and same_bytes(data, cores[0], data, key_begin, key_length)
                shape[S_MISSES] += 1
                if good and (not shape[S_KNOWN] or shape[S_MISSES] >= MISSES_BEFORE_LEARNING):
                    _learn(data, value_begin, value_end, cores, shape, words, masks)
                    shape[S_MISSES] = 0
            ts, price, amount = cores[4 * TS + 2], cores[4 * PRICE + 2], cores[4 * SIZE + 2]
            if good:
                good = (
                    params[P_SMALLEST_TS] <= ts <= params[P_LARGEST_TS]
                    and -EXACT_MANTISSA < price < EXACT_MANTISSA
                    and 0 <= amount < EXACT_MANTISSA
                )
            if good:
                ts *= params[P_UNIT]
                sent_ms = batches[batch, B_FIXED_TIMESTAMP]
                if sent_ms < 0:
                    sent_ms = batches[batch, B_TIMESTAMP] + ts_delta
                if sent_ms != -1 and sent_ms <= LARGEST_SENT_MS:
                    good = sent_ms >= 0 and ts <= sent_ms * 1_000_000 + params[P_SKEW]
            if good:
                hash31 = hash_bytes(data, key_begin, key_length, params[P_SEED])
                row = find_key(data, key_begin, key_length, hash31, keys, names, table)
                if row != NONE:
                    if not keys[row, K_FLAGS] & KEY_PLAIN:
                        row = np.int64(NONE)
                elif is_plain(data, key_begin, key_length, 126):
                    row = new_key(data, key_begin, key_length, hash31, params, head, keys, names, table, unused)
                    if row == NONE:
                        status = D_NO_ROOM
                        break
                if row != NONE:
                    values[filled, V_PRICE] = np.float64(price) / _TENS[cores[4 * PRICE + 3]]
                    values[filled, V_SIZE] = np.float64(amount) / _TENS[cores[4 * SIZE + 3]]
                    columns[filled, C_TS] = ts
                    columns[filled, C_PRICE] = packed(price, cores[4 * PRICE + 3])
                    columns[filled, C_AMOUNT] = packed(amount, cores[4 * SIZE + 3])
        if row == NONE:
            flagged[head[H_FLAGGED]] = filled
            head[H_FLAGGED] += 1
        columns[filled, C_KEY] = row
        columns[filled, C_OFFSET] = offset
        columns[filled, C_POSITION] = position
        columns[filled, C_BATCH] = batch
        filled += 1
        next_offset = offset + 1
        position, left = stop, left - 1
    state[D_BATCH], state[D_POSITION], state[D_LEFT], state[D_NEXT_OFFSET] = batch, position, left, next_offset
    state[D_STATUS] = status
    return filled
