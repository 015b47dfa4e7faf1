"""The tables that compiled code works on: what each column means, and the two hash tables.

State is kept in rows of plain integer and float arrays, so that a million keys are a million rows and no Python object:

    keys     a row per symbol: hash, where its bytes are, its clock, its oldest, newest and oldest open window
    windows  a row of integers and a row of floats per window; a key's windows are a list, linked in order of start, and
             a treap over the same order, by which a place in the middle of the list is found
    head     one row of scalars: sizes, free lists, partition time

Rows are numbered and reused; ``-1`` is no row. A hash table is an array of ``hash31 << 32 | row`` with linear probing,
so that it can be grown without looking at what it refers to: that of keys when it is half full, that of windows at two
thirds, so that they don't grow at the same moment. Nothing here allocates: a function that
finds no room returns before it changed anything, and the caller makes room and calls again.
"""

from __future__ import annotations

# Compiled: the declared signatures give every cell and variable a width, which Python's annotations don't know.
# mypy: disable-error-code="arg-type, assignment, call-arg, no-any-return, return-value, var-annotated"
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from workers.compiled.jit import BYTES, INTS, INTS2, READ_BYTES, compiled, inlined, load64

# What is in an array's cells is declared by the signature it is compiled for; mypy would see numpy scalars everywhere.
Ints = npt.NDArray[Any]
Floats = npt.NDArray[Any]
Bytes = npt.NDArray[Any]
U: Final = np.uint64

NONE: Final = -1
LONG_AGO: Final = -(2**63)
NEVER: Final = 2**63 - 1

# -- head: scalars ----------------------------------------------------------------------------------------------------
(
    H_PARTITION_MAX,  # greatest accepted event time
    H_TIE,  # numbers keys and windows in the order they came
    H_KEYS,  # keys with windows
    H_KEY_ROWS,  # key rows ever used; those above are blank
    H_KEY_FREE,  # first of the list of freed key rows, linked by K_NEWEST
    H_KEY_NAMED,  # key rows in the hash table
    H_NAMES,  # bytes of the names array in use
    H_NAMES_DEAD,  # of these, bytes of freed keys
    H_UNUSED_KEYS,  # length of the list of keys that may be freed
    H_WINDOWS,  # windows kept
    H_WINDOW_ROWS,
    H_WINDOW_FREE,  # linked by W_NEWER
    H_IDLE,  # length of the heap of windows by end
    H_EXPIRY,  # length of the heap of keys by clock
    H_CHANGED,  # first of the list of changed windows
    H_CHANGED_LAST,
    H_CHANGES,  # and its length
    H_OVERDUE,  # length of the list of overdue windows that changed
    H_OVERDUE_DONE,  # how many of them were shown
    H_UNFLUSHED,
    H_UNFLUSHED_DONE,
    H_EMITTED,  # rows of emissions
    H_LATE,
    H_MISROUTED,
    H_AGGREGATED,
    H_FLAGGED,  # records left to the plain decoder
    H_NEED,  # what there was no room for
    H_SIZE,
) = range(28)

NEED_NOTHING, NEED_KEYS, NEED_NAMES, NEED_WINDOWS, NEED_EMISSIONS, NEED_IDLE, NEED_OVERDUE, NEED_UNFLUSHED = range(8)
NEED_LATE, NEED_MISROUTED, NEED_EXPIRY = range(8, 11)

# -- keys -------------------------------------------------------------------------------------------------------------
(
    K_HASH,
    K_NAME,  # where its bytes begin in names
    K_LENGTH,
    K_FLAGS,
    K_MAX,  # greatest event time
    K_OLDEST,
    K_NEWEST,
    K_OPEN,  # oldest window that is not closed
    K_RECENT,  # the window that took the last tick
    K_DUE,  # the watermark that closes or drops the next window
    K_WINDOWS,  # windows kept
    K_ROWS,  # window rows that refer to the key: kept, or dropped and not yet taken as changes
    K_ROOT,  # of the treap of its windows
    K_SIZE,
) = range(14)

KEY_MISROUTED, KEY_PLAIN, KEY_UNUSED = 1, 2, 4

# -- windows ----------------------------------------------------------------------------------------------------------
(
    W_KEY,
    W_START,
    W_FLAGS,
    W_REV,
    W_COUNT,
    W_FIRST,
    W_LAST,
    W_OPENED,  # event time of the open price
    W_CLOSED,  # and of the close price
    W_VOLUME,  # three columns each: a sum of `workers.compiled.decimals`
    _,
    _,
    W_NOTIONAL,
    _,
    _,
    W_OLDER,
    W_NEWER,
    W_TIE,  # -1 in a free row: how lists that outlive a window know
    W_CHANGED_BEFORE,
    W_CHANGED_AFTER,
    W_PARENT,  # in the treap
    W_LEFT,
    W_RIGHT,
    W_CLOCK,  # with OWN_CLOCK: the time that the key's clock was set to through it; else that is W_LAST
    W_SIZE,
) = range(25)

F_OPEN, F_HIGH, F_LOW, F_CLOSE, F_SIZE = range(5)

CLOSED, CHANGED, OVERDUE, STORED, DROPPED, IN_CHANGES, IN_OVERDUE, IN_UNFLUSHED = (1 << bit for bit in range(8))
SETTLED, OWN_CLOCK = 1 << 8, 1 << 9  # its input has ended

# -- parameters -------------------------------------------------------------------------------------------------------
(
    P_SIZE_NS,
    P_OFFSET_NS,
    P_LAG,
    P_LATENESS,
    P_IDLE_AFTER,
    P_TTL,  # `NEVER`: keys don't expire
    P_FINAL,
    P_PARTIAL,
    P_REJECT_MISROUTED,
    P_UNIT,
    P_SKEW,
    P_SMALLEST_TS,  # in the tick's unit
    P_LARGEST_TS,
    P_PARTITION,
    P_PARTITIONS,
    P_SEED,
    P_SIZE,
) = range(17)

# -- columns: a row per record ----------------------------------------------------------------------------------------
C_KEY, C_TS, C_OFFSET, C_POSITION, C_BATCH, C_PRICE, C_AMOUNT, C_SIZE = range(8)  # price and size as packed decimals
V_PRICE, V_SIZE, V_COLUMNS = range(3)

# -- what comes out ---------------------------------------------------------------------------------------------------
E_KEY, E_START, E_REV, E_KIND, E_COUNT, E_FIRST, E_LAST, E_VOLUME, _, _, E_NOTIONAL, _, _, E_SIZE = range(14)
L_RECORD, L_EXPIRED, L_WATERMARK, L_PARTITION_MAX, L_SIZE = range(5)


@inlined
def load_some(data: Bytes, position: int, length: int) -> np.uint64:
    """Up to eight bytes as a little-endian integer, without touching what is behind the end of the array."""
    if position + 8 <= data.shape[0]:
        word = load64(data, position)
        if length >= 8:
            return U(word)
        return U(word & ((U(1) << U(8 * length)) - U(1)))
    word = U(0)
    for index in range(min(length, 8)):
        word |= U(data[position + index]) << U(8 * index)
    return word


@inlined
def same_bytes(left: Bytes, left_position: int, right: Bytes, right_position: int, length: int) -> bool:
    """Whether two stretches of ``length`` bytes are equal."""
    done = 0
    while done < length:
        rest = length - done
        if load_some(left, left_position + done, rest) != load_some(right, right_position + done, rest):
            return False
        done += 8
    return True


@inlined
def hash_bytes(data: Bytes, position: int, length: int, seed: int) -> int:
    """31 bits; the seed is the process's own, so that nobody can choose symbols that collide."""
    mixed = U(seed) ^ (U(length) * U(0x9E3779B97F4A7C15))
    done = 0
    while done < length:
        mixed = (mixed ^ load_some(data, position + done, length - done)) * U(0x9E3779B97F4A7C15)
        mixed ^= mixed >> U(29)
        done += 8
    mixed *= U(0xBF58476D1CE4E5B9)
    return np.int64(mixed >> U(33))


@inlined
def hash_window(key: int, number: int) -> int:
    """31 bits for window ``number`` (start / size) of a key row."""
    mixed = (U(key) * U(0x9E3779B97F4A7C15)) ^ (U(number) * U(0xC2B2AE3D27D4EB4F))
    mixed ^= mixed >> U(32)
    mixed *= U(0xBF58476D1CE4E5B9)
    return np.int64(mixed >> U(33))


@inlined
def put_row(table: Ints, hash31: int, row: int) -> None:
    """Enter a row that the table does not have. The table must have room."""
    mask = table.shape[0] - 1
    place = hash31 & mask
    while table[place] != NONE:
        place = (place + 1) & mask
    table[place] = (hash31 << 32) | row


@inlined
def remove_row(table: Ints, hash31: int, row: int) -> None:
    """Take a row out, and move those behind it up, so that no search ends early."""
    mask = table.shape[0] - 1
    entry = (hash31 << 32) | row
    hole = hash31 & mask
    while table[hole] != entry:
        hole = (hole + 1) & mask
    place = hole
    while True:
        place = (place + 1) & mask
        other = table[place]
        if other == NONE:
            break
        home = (other >> 32) & mask
        if ((place - home) & mask) >= ((place - hole) & mask):
            table[hole] = other
            hole = place
    table[hole] = NONE


@compiled(INTS, INTS, returns=types.void)
def copy_table(old: Ints, new: Ints) -> None:
    """Enter all rows of one hash table in another, which is empty and larger."""
    mask = new.shape[0] - 1
    for index in range(old.shape[0]):
        entry = old[index]
        if entry != NONE:
            place = (entry >> 32) & mask
            while new[place] != NONE:
                place = (place + 1) & mask
            new[place] = entry


@inlined
def find_key(data: Bytes, position: int, length: int, hash31: int, keys: Ints, names: Bytes, table: Ints) -> int:
    """The row of the key with these bytes, or -1."""
    mask = table.shape[0] - 1
    place = hash31 & mask
    while True:
        entry = table[place]
        if entry == NONE:
            return NONE
        if (entry >> 32) == hash31:
            row = entry & 0xFFFFFFFF
            if keys[row, K_LENGTH] == length and same_bytes(data, position, names, keys[row, K_NAME], length):
                return row
        place = (place + 1) & mask


@inlined
def murmur2(data: Bytes, position: int, length: int) -> int:
    """Kafka's murmur2, as `workers.core.partitioning.murmur2`; always unsigned 32 bits."""
    low = U(0xFFFFFFFF)
    mixer = U(0x5BD1E995)
    mixed = (U(0x9747B28C) ^ U(length)) & low
    whole = length & ~3
    for at in range(position, position + whole, 4):
        k = U(data[at]) | U(data[at + 1]) << U(8) | U(data[at + 2]) << U(16) | U(data[at + 3]) << U(24)
        k = (k * mixer) & low
        k ^= k >> U(24)
        k = (k * mixer) & low
        mixed = ((mixed * mixer) & low) ^ k
    if length > whole:
        for at in range(whole, length):
            mixed ^= U(data[position + at]) << U(8 * (at - whole))
        mixed = (mixed * mixer) & low
    mixed ^= mixed >> U(13)
    mixed = (mixed * mixer) & low
    return np.int64(mixed ^ (mixed >> U(15)))


@inlined
def is_plain(data: Bytes, position: int, length: int, highest: int) -> bool:
    """Whether a symbol stands in JSON as it is: no quote, backslash or control character, nothing above ``highest``."""
    for at in range(position, position + length):
        byte = data[at]
        if byte < 32 or byte == 34 or byte == 92 or byte > highest:
            return False
    return True


@inlined
def new_key(
    data: Bytes,
    position: int,
    length: int,
    hash31: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    names: Bytes,
    table: Ints,
    unused: Ints,
) -> int:
    """A row for a key that has none; -1 and ``H_NEED`` where there is no room."""
    if head[H_NAMES] + length + 8 > names.shape[0]:
        head[H_NEED] = NEED_NAMES
        return NONE
    row = head[H_KEY_FREE]
    if (row == NONE and head[H_KEY_ROWS] >= keys.shape[0]) or 2 * head[H_KEY_NAMED] >= table.shape[0]:
        head[H_NEED] = NEED_KEYS
        return NONE
    if row != NONE:
        head[H_KEY_FREE] = keys[row, K_NEWEST]
    else:
        row = head[H_KEY_ROWS]
        head[H_KEY_ROWS] += 1
    begin = head[H_NAMES]
    for index in range(length):
        names[begin + index] = data[position + index]
    head[H_NAMES] += length
    flags = KEY_PLAIN if is_plain(data, position, length, 255) else 0
    if (murmur2(data, position, length) & 0x7FFFFFFF) % params[P_PARTITIONS] != params[P_PARTITION]:
        flags |= KEY_MISROUTED
    keys[row, K_HASH], keys[row, K_NAME], keys[row, K_LENGTH] = hash31, begin, length
    keys[row, K_FLAGS] = flags | KEY_UNUSED
    keys[row, K_MAX] = LONG_AGO
    keys[row, K_OLDEST] = keys[row, K_NEWEST] = keys[row, K_OPEN] = keys[row, K_RECENT] = keys[row, K_ROOT] = NONE
    keys[row, K_DUE] = NEVER
    keys[row, K_WINDOWS] = keys[row, K_ROWS] = 0
    put_row(table, hash31, row)
    head[H_KEY_NAMED] += 1
    unused[head[H_UNUSED_KEYS]] = row  # until it has a window; `free_unused` looks again
    head[H_UNUSED_KEYS] += 1
    return row


@compiled(READ_BYTES, INTS, types.int64, INTS, INTS, INTS2, BYTES, INTS, INTS, INTS, returns=types.int64)
def enter_keys(
    data: Bytes,
    bounds: Ints,
    begin: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    names: Bytes,
    table: Ints,
    unused: Ints,
    rows: Ints,
) -> int:
    """The rows of the keys that stand end to end in ``data``, made where new; how many were done, all if room was."""
    head[H_NEED] = NEED_NOTHING
    for index in range(begin, bounds.shape[0] - 1):
        position, length = bounds[index], bounds[index + 1] - bounds[index]
        hash31 = hash_bytes(data, position, length, params[P_SEED])
        row = find_key(data, position, length, hash31, keys, names, table)
        if row == NONE:
            row = new_key(data, position, length, hash31, params, head, keys, names, table, unused)
            if row == NONE:
                return index
        rows[index] = row
    return bounds.shape[0] - 1


@compiled(INTS, INTS2, INTS, INTS, returns=types.void)
def free_unused(head: Ints, keys: Ints, table: Ints, unused: Ints) -> None:
    """Free the rows of keys that have no window and are in no change waiting to be stored.

    Only between batches: until then columns, emissions and late ticks refer to them.
    """
    for index in range(head[H_UNUSED_KEYS]):
        row = unused[index]
        keys[row, K_FLAGS] &= ~KEY_UNUSED
        if keys[row, K_ROWS] == 0:
            remove_row(table, keys[row, K_HASH], row)
            head[H_KEY_NAMED] -= 1
            head[H_NAMES_DEAD] += keys[row, K_LENGTH]
            keys[row, K_LENGTH] = NONE
            keys[row, K_NEWEST] = head[H_KEY_FREE]
            head[H_KEY_FREE] = row
    head[H_UNUSED_KEYS] = 0


@compiled(INTS, INTS2, BYTES, BYTES, returns=types.void)
def copy_names(head: Ints, keys: Ints, old: Bytes, new: Bytes) -> None:
    """Move the names of all keys to another array, without the dead ones between them."""
    end = 0
    for row in range(head[H_KEY_ROWS]):
        length = keys[row, K_LENGTH]
        if length != NONE:
            begin = keys[row, K_NAME]
            keys[row, K_NAME] = end
            for index in range(length):
                new[end + index] = old[begin + index]
            end += length
    head[H_NAMES] = end
    head[H_NAMES_DEAD] = 0
