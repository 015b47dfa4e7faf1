"""The window rules of `workers.core.windows.engine`, compiled, over the tables of `workers.compiled.tables`; clocks are
per key.

The work of a tick does not depend on how many keys and windows there are: a hash finds the key, the key's most recent
window is nearly always the one, `K_DUE` says without looking whether anything closes. What is ordered by time waits in
heaps (windows by end, for idleness; keys by clock, for expiry) and is looked at when its time has come.

Every function first makes sure that there is room for all it may write, and returns with ``H_NEED`` set where there is
not, having changed nothing of the record at hand; the caller makes room and calls again.
"""

from __future__ import annotations

# Compiled: the declared signatures give every cell and variable a width, which Python's annotations don't know.
# mypy: disable-error-code="arg-type, assignment, call-arg, no-any-return, return-value, var-annotated"
from typing import Final

import numpy as np
from numba import types

from workers.compiled.decimals import add_tick, sum_as_float
from workers.compiled.jit import (
    BYTES,
    FLOATS2,
    INTS,
    INTS2,
    READ_BYTES,
    bits_of,
    compiled,
    float_of,
    inlined,
    load64,
    store64,
)
from workers.compiled.numbers import FLOAT_BYTES, put_float, put_int
from workers.compiled.tables import (
    C_AMOUNT,
    C_KEY,
    C_PRICE,
    C_TS,
    CHANGED,
    CLOSED,
    DROPPED,
    E_COUNT,
    E_FIRST,
    E_KEY,
    E_KIND,
    E_LAST,
    E_NOTIONAL,
    E_REV,
    E_START,
    E_VOLUME,
    F_CLOSE,
    F_HIGH,
    F_LOW,
    F_OPEN,
    F_SIZE,
    H_AGGREGATED,
    H_CHANGED,
    H_CHANGED_LAST,
    H_CHANGES,
    H_EMITTED,
    H_EXPIRY,
    H_IDLE,
    H_KEY_ROWS,
    H_KEYS,
    H_LATE,
    H_MISROUTED,
    H_NEED,
    H_OVERDUE,
    H_OVERDUE_DONE,
    H_PARTITION_MAX,
    H_TIE,
    H_UNFLUSHED,
    H_UNFLUSHED_DONE,
    H_UNUSED_KEYS,
    H_WINDOW_FREE,
    H_WINDOW_ROWS,
    H_WINDOWS,
    IN_CHANGES,
    IN_OVERDUE,
    IN_UNFLUSHED,
    K_DUE,
    K_FLAGS,
    K_LENGTH,
    K_MAX,
    K_NAME,
    K_NEWEST,
    K_OLDEST,
    K_OPEN,
    K_RECENT,
    K_ROOT,
    K_ROWS,
    K_WINDOWS,
    KEY_MISROUTED,
    KEY_UNUSED,
    L_EXPIRED,
    L_PARTITION_MAX,
    L_RECORD,
    L_WATERMARK,
    LONG_AGO,
    NEED_EMISSIONS,
    NEED_EXPIRY,
    NEED_IDLE,
    NEED_LATE,
    NEED_MISROUTED,
    NEED_NOTHING,
    NEED_OVERDUE,
    NEED_UNFLUSHED,
    NEED_WINDOWS,
    NEVER,
    NONE,
    OVERDUE,
    OWN_CLOCK,
    P_FINAL,
    P_IDLE_AFTER,
    P_LAG,
    P_LATENESS,
    P_OFFSET_NS,
    P_PARTIAL,
    P_REJECT_MISROUTED,
    P_SEED,
    P_SIZE_NS,
    P_TTL,
    P_UNIT,
    SETTLED,
    STORED,
    V_PRICE,
    V_SIZE,
    W_CHANGED_AFTER,
    W_CHANGED_BEFORE,
    W_CLOCK,
    W_CLOSED,
    W_COUNT,
    W_FIRST,
    W_FLAGS,
    W_KEY,
    W_LAST,
    W_LEFT,
    W_NEWER,
    W_OLDER,
    W_OPENED,
    W_PARENT,
    W_REV,
    W_RIGHT,
    W_START,
    W_TIE,
    W_VOLUME,
    Bytes,
    Floats,
    Ints,
    U,
    find_key,
    hash_bytes,
    hash_window,
    new_key,
    put_row,
    remove_row,
)
from workers.core.reasons import Status, Trigger

__all__ = [
    "KINDS",
    "end_of_input",
    "flush",
    "format_frames",
    "load_windows",
    "run",
    "settle",
    "timeout",
    "write_changes",
]

KINDS: Final[tuple[tuple[Status, Trigger], ...]] = (
    ("closed", "watermark"),
    ("final", "watermark"),
    ("closed", "late"),
    ("final", "expiry"),
    ("final", "end"),
    ("provisional", "idle"),
    ("provisional", "timeout"),
    ("provisional", "partial"),
)
BY_WATERMARK, BY_WATERMARK_FINAL, BY_LATE, BY_EXPIRY, BY_END, BY_IDLE, BY_TIMEOUT, BY_PARTIAL = range(8)

NS_PER_MS: Final = 1_000_000
NEAR: Final = 8  # windows looked at one by one, before the hash table or the treap is asked


# -- heaps of (time, tie, row), the smallest first --------------------------------------------------------------------


@inlined
def _before(heap: Ints, left: int, time: int, tie: int) -> bool:
    return heap[left, 0] < time or (heap[left, 0] == time and heap[left, 1] < tie)


@inlined
def _push(heap: Ints, length: int, time: int, tie: int, row: int) -> None:
    place = length
    while place > 0:
        parent = (place - 1) >> 1
        if _before(heap, parent, time, tie):
            break
        heap[place, 0], heap[place, 1], heap[place, 2] = heap[parent, 0], heap[parent, 1], heap[parent, 2]
        place = parent
    heap[place, 0], heap[place, 1], heap[place, 2] = time, tie, row


@inlined
def _sink(heap: Ints, length: int, time: int, tie: int, row: int) -> None:
    """Put an entry in place of the smallest."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= length:
            break
        if child + 1 < length and _before(heap, child + 1, heap[child, 0], heap[child, 1]):
            child += 1
        if not _before(heap, child, time, tie):
            break
        heap[place, 0], heap[place, 1], heap[place, 2] = heap[child, 0], heap[child, 1], heap[child, 2]
        place = child
    heap[place, 0], heap[place, 1], heap[place, 2] = time, tie, row


@inlined
def _pop(heap: Ints, length: int) -> None:
    last = length - 1
    if last > 0:
        _sink(heap, last, heap[last, 0], heap[last, 1], heap[last, 2])


# -- windows of a key -------------------------------------------------------------------------------------------------


@inlined
def _lookup(key: int, start: int, params: Ints, windows: Ints, table: Ints) -> int:
    hash31 = hash_window(key, start // params[P_SIZE_NS])
    mask = table.shape[0] - 1
    place = hash31 & mask
    while True:
        entry = table[place]
        if entry == NONE:
            return NONE
        if (entry >> 32) == hash31:
            row = entry & 0xFFFFFFFF
            if windows[row, W_KEY] == key and windows[row, W_START] == start:
                return row
        place = (place + 1) & mask


@inlined
def _find(key: int, start: int, params: Ints, keys: Ints, windows: Ints, table: Ints) -> int:
    """The key's window that begins at ``start``, or -1."""
    row = keys[key, K_NEWEST]
    for _ in range(NEAR):
        if row == NONE or windows[row, W_START] < start:
            return NONE
        if windows[row, W_START] == start:
            return row
        row = windows[row, W_OLDER]
    return _lookup(key, start, params, windows, table)


@inlined
def _older_neighbour(key: int, start: int, keys: Ints, windows: Ints) -> int:
    """The key's newest window that begins before ``start``, or -1."""
    row = keys[key, K_NEWEST]
    for _ in range(NEAR):
        if row == NONE or windows[row, W_START] < start:
            return row
        row = windows[row, W_OLDER]
    row, found = keys[key, K_ROOT], NONE
    while row != NONE:
        if windows[row, W_START] < start:
            row, found = windows[row, W_RIGHT], row
        else:
            row = windows[row, W_LEFT]
    return found


# The treap: a search tree by start that is a heap by rank, and ranks are as good as random, so it is some 2 log2(n)
# deep whatever order windows come and go in. A place at either end, the usual case, is found without it, and entering
# or leaving it there takes two steps on average.


@inlined
def _rank(row: int, params: Ints, windows: Ints) -> np.uint64:
    mixed = (U(windows[row, W_TIE]) ^ U(params[P_SEED])) * U(0x9E3779B97F4A7C15)
    mixed ^= mixed >> U(32)
    return mixed * U(0xBF58476D1CE4E5B9)


@inlined
def _put_below(parent: int, old: int, new: int, key: int, keys: Ints, windows: Ints) -> None:
    """Make ``new`` (-1: nothing) the child of ``parent`` (-1: the root) that ``old`` was."""
    if parent == NONE:
        keys[key, K_ROOT] = new
    elif windows[parent, W_LEFT] == old:
        windows[parent, W_LEFT] = new
    else:
        windows[parent, W_RIGHT] = new
    if new != NONE:
        windows[new, W_PARENT] = parent


@inlined
def _lift(row: int, key: int, keys: Ints, windows: Ints) -> None:
    """Rotate a row into its parent's place."""
    parent = windows[row, W_PARENT]
    _put_below(windows[parent, W_PARENT], parent, row, key, keys, windows)
    if windows[parent, W_LEFT] == row:
        inner = windows[row, W_RIGHT]
        windows[parent, W_LEFT], windows[row, W_RIGHT] = inner, parent
    else:
        inner = windows[row, W_LEFT]
        windows[parent, W_RIGHT], windows[row, W_LEFT] = inner, parent
    windows[parent, W_PARENT] = row
    if inner != NONE:
        windows[inner, W_PARENT] = parent


@inlined
def _enter(row: int, key: int, older: int, newer: int, params: Ints, keys: Ints, windows: Ints) -> None:
    """Enter a row between its neighbours, of which one has room below it, and lift it to where its rank belongs."""
    windows[row, W_LEFT] = windows[row, W_RIGHT] = windows[row, W_PARENT] = NONE
    if older != NONE and windows[older, W_RIGHT] == NONE:
        windows[older, W_RIGHT], windows[row, W_PARENT] = row, older
    elif newer != NONE:
        windows[newer, W_LEFT], windows[row, W_PARENT] = row, newer
    else:
        keys[key, K_ROOT] = row
    rank = _rank(row, params, windows)
    while windows[row, W_PARENT] != NONE and _rank(windows[row, W_PARENT], params, windows) < rank:
        _lift(row, key, keys, windows)


@inlined
def _leave(row: int, key: int, params: Ints, keys: Ints, windows: Ints) -> None:
    """Take a row out: lift its children over it until it has one at most."""
    while windows[row, W_LEFT] != NONE and windows[row, W_RIGHT] != NONE:
        left, right = windows[row, W_LEFT], windows[row, W_RIGHT]
        higher = left if _rank(left, params, windows) > _rank(right, params, windows) else right
        _lift(higher, key, keys, windows)
    child = windows[row, W_LEFT] if windows[row, W_LEFT] != NONE else windows[row, W_RIGHT]
    _put_below(windows[row, W_PARENT], row, child, key, keys, windows)


@inlined
def _new_window(key: int, start: int, params: Ints, head: Ints, keys: Ints, windows: Ints, table: Ints) -> int:
    """A blank row, linked in order of start and entered in the table. There must be room."""
    row = head[H_WINDOW_FREE]
    if row != NONE:
        head[H_WINDOW_FREE] = windows[row, W_NEWER]
    else:
        row = head[H_WINDOW_ROWS]
        head[H_WINDOW_ROWS] += 1
    older = _older_neighbour(key, start, keys, windows)
    newer = keys[key, K_OLDEST] if older == NONE else windows[older, W_NEWER]
    windows[row, W_OLDER], windows[row, W_NEWER] = older, newer
    if older == NONE:
        keys[key, K_OLDEST] = row
    else:
        windows[older, W_NEWER] = row
    if newer == NONE:
        keys[key, K_NEWEST] = row
    else:
        windows[newer, W_OLDER] = row
    windows[row, W_KEY], windows[row, W_START], windows[row, W_FLAGS] = key, start, 0
    windows[row, W_REV] = windows[row, W_COUNT] = 0
    windows[row, W_TIE] = head[H_TIE]
    head[H_TIE] += 1
    _enter(row, key, older, newer, params, keys, windows)
    keys[key, K_WINDOWS] += 1
    keys[key, K_ROWS] += 1
    head[H_WINDOWS] += 1
    put_row(table, hash_window(key, start // params[P_SIZE_NS]), row)
    return row


@inlined
def _find_due(key: int, params: Ints, keys: Ints, windows: Ints) -> None:
    """The watermark at which the key's next window closes or goes. Closed windows are all older than open ones."""
    due = NEVER
    row = keys[key, K_OPEN]
    if row != NONE:
        due = windows[row, W_START] + params[P_SIZE_NS] + (params[P_LATENESS] if params[P_FINAL] else 0)
    row = keys[key, K_OLDEST]
    if row != NONE and windows[row, W_FLAGS] & CLOSED:
        due = min(due, windows[row, W_START] + params[P_SIZE_NS] + params[P_LATENESS])
    keys[key, K_DUE] = due


@inlined
def _free_row(row: int, head: Ints, keys: Ints, windows: Ints, unused: Ints) -> None:
    key = windows[row, W_KEY]
    windows[row, W_TIE] = NONE
    windows[row, W_NEWER] = head[H_WINDOW_FREE]
    head[H_WINDOW_FREE] = row
    keys[key, K_ROWS] -= 1
    if keys[key, K_ROWS] == 0 and not keys[key, K_FLAGS] & KEY_UNUSED:
        keys[key, K_FLAGS] |= KEY_UNUSED
        unused[head[H_UNUSED_KEYS]] = key
        head[H_UNUSED_KEYS] += 1


@inlined
def _drop(row: int, params: Ints, head: Ints, keys: Ints, windows: Ints, table: Ints, unused: Ints) -> None:
    """Take a window out of its key; its row stays until the deletion of what was stored of it is taken as a change."""
    key = windows[row, W_KEY]
    older, newer = windows[row, W_OLDER], windows[row, W_NEWER]
    if older == NONE:
        keys[key, K_OLDEST] = newer
    else:
        windows[older, W_NEWER] = newer
    if newer == NONE:
        keys[key, K_NEWEST] = older
    else:
        windows[newer, W_OLDER] = older
    _leave(row, key, params, keys, windows)
    if keys[key, K_OPEN] == row:
        keys[key, K_OPEN] = newer
    if keys[key, K_RECENT] == row:
        keys[key, K_RECENT] = keys[key, K_NEWEST]
    keys[key, K_WINDOWS] -= 1
    if keys[key, K_WINDOWS] == 0:
        head[H_KEYS] -= 1
    head[H_WINDOWS] -= 1
    remove_row(table, hash_window(key, windows[row, W_START] // params[P_SIZE_NS]), row)
    windows[row, W_FLAGS] |= DROPPED
    if windows[row, W_FLAGS] & STORED:
        _note_change(row, head, windows)
    else:
        if windows[row, W_FLAGS] & IN_CHANGES:
            _forget_change(row, head, windows)
        _free_row(row, head, keys, windows, unused)


# -- changes ----------------------------------------------------------------------------------------------------------


@inlined
def _note_change(row: int, head: Ints, windows: Ints) -> None:
    if windows[row, W_FLAGS] & IN_CHANGES:
        return
    windows[row, W_FLAGS] |= IN_CHANGES
    last = head[H_CHANGED_LAST]
    windows[row, W_CHANGED_BEFORE], windows[row, W_CHANGED_AFTER] = last, NONE
    if last == NONE:
        head[H_CHANGED] = row
    else:
        windows[last, W_CHANGED_AFTER] = row
    head[H_CHANGED_LAST] = row
    head[H_CHANGES] += 1


@inlined
def _forget_change(row: int, head: Ints, windows: Ints) -> None:
    before, after = windows[row, W_CHANGED_BEFORE], windows[row, W_CHANGED_AFTER]
    if before == NONE:
        head[H_CHANGED] = after
    else:
        windows[before, W_CHANGED_AFTER] = after
    if after == NONE:
        head[H_CHANGED_LAST] = before
    else:
        windows[after, W_CHANGED_BEFORE] = before
    windows[row, W_FLAGS] &= ~IN_CHANGES
    head[H_CHANGES] -= 1


# -- emissions --------------------------------------------------------------------------------------------------------


@inlined
def _emit(row: int, kind: int, head: Ints, windows: Ints, sums: Floats, out: Ints, out_sums: Floats) -> None:
    at = head[H_EMITTED]
    head[H_EMITTED] += 1
    out[at, E_KEY], out[at, E_START], out[at, E_REV] = windows[row, W_KEY], windows[row, W_START], windows[row, W_REV]
    out[at, E_KIND], out[at, E_COUNT] = kind, windows[row, W_COUNT]
    out[at, E_FIRST], out[at, E_LAST] = windows[row, W_FIRST], windows[row, W_LAST]
    for column in range(F_SIZE):
        out_sums[at, column] = sums[row, column]
    for column in range(6):
        out[at, E_VOLUME + column] = windows[row, W_VOLUME + column]
    windows[row, W_FLAGS] &= ~CHANGED
    if kind < BY_IDLE:
        windows[row, W_REV] += 1


@inlined
def _close(
    key: int,
    watermark: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    windows: Ints,
    sums: Floats,
    table: Ints,
    unused: Ints,
    out: Ints,
    out_sums: Floats,
) -> None:
    """Close and drop what the watermark has reached, in order of the watermark that does it."""
    size, lateness, final = params[P_SIZE_NS], params[P_LATENESS], params[P_FINAL]
    while True:
        row, due = keys[key, K_OPEN], NEVER
        if row != NONE:
            due = windows[row, W_START] + size + (lateness if final else 0)
        oldest = keys[key, K_OLDEST]
        if oldest != NONE and windows[oldest, W_FLAGS] & CLOSED and windows[oldest, W_START] + size + lateness <= due:
            if windows[oldest, W_START] + size + lateness > watermark:
                break
            _drop(oldest, params, head, keys, windows, table, unused)
            continue
        if due > watermark:
            break
        gone = windows[row, W_START] + size + lateness
        windows[row, W_FLAGS] |= CLOSED
        keys[key, K_OPEN] = windows[row, W_NEWER]
        _emit(row, BY_WATERMARK_FINAL if watermark >= gone else BY_WATERMARK, head, windows, sums, out, out_sums)
        _note_change(row, head, windows)
        if watermark >= gone:
            _drop(row, params, head, keys, windows, table, unused)
    _find_due(key, params, keys, windows)


@inlined
def _expire(
    limit: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    windows: Ints,
    sums: Floats,
    table: Ints,
    unused: Ints,
    expiry: Ints,
    out: Ints,
    out_sums: Floats,
) -> bool:
    """Emit and forget the keys whose clock is before ``limit``, the furthest behind first; False where room ran out."""
    while head[H_EXPIRY] > 0 and expiry[0, 0] < limit:
        key = expiry[0, 2]
        if keys[key, K_MAX] > expiry[0, 0]:
            _sink(expiry, head[H_EXPIRY], keys[key, K_MAX], expiry[0, 1], key)
            continue
        if head[H_EMITTED] + keys[key, K_WINDOWS] > out.shape[0]:
            head[H_NEED] = NEED_EMISSIONS
            return False
        _pop(expiry, head[H_EXPIRY])
        head[H_EXPIRY] -= 1
        while keys[key, K_OLDEST] != NONE:
            row = keys[key, K_OLDEST]
            if not windows[row, W_FLAGS] & CLOSED:
                _emit(row, BY_EXPIRY, head, windows, sums, out, out_sums)
            _drop(row, params, head, keys, windows, table, unused)
        keys[key, K_MAX], keys[key, K_DUE] = LONG_AGO, NEVER
    return True


@inlined
def _expired_before(partition_max: int, params: Ints) -> int:
    """The time before which a window may have been forgotten with its key; `LONG_AGO` where none is."""
    if params[P_TTL] == NEVER or partition_max == LONG_AGO:
        return LONG_AGO
    return partition_max - params[P_TTL]


# -- ticks ------------------------------------------------------------------------------------------------------------


@inlined
def _fold(row: int, index: int, columns: Ints, values: Floats, windows: Ints, sums: Floats) -> None:
    """Add the tick of a row to a window, as `workers.core.aggregates.Ohlcv` does."""
    ts, price, amount = columns[index, C_TS], values[index, V_PRICE], values[index, V_SIZE]
    if windows[row, W_COUNT] == 0:
        windows[row, W_FIRST] = windows[row, W_LAST] = windows[row, W_OPENED] = windows[row, W_CLOSED] = ts
        sums[row, F_OPEN] = sums[row, F_HIGH] = sums[row, F_LOW] = sums[row, F_CLOSE] = price
        for column in range(W_VOLUME, W_VOLUME + 6):
            windows[row, column] = 0
    else:
        if ts < windows[row, W_FIRST]:
            windows[row, W_FIRST] = ts
        if ts > windows[row, W_LAST]:
            windows[row, W_LAST] = ts
        if ts < windows[row, W_OPENED]:
            windows[row, W_OPENED] = ts
            sums[row, F_OPEN] = price
        if ts >= windows[row, W_CLOSED]:
            windows[row, W_CLOSED] = ts
            sums[row, F_CLOSE] = price
        if price > sums[row, F_HIGH]:
            sums[row, F_HIGH] = price
        if price < sums[row, F_LOW]:
            sums[row, F_LOW] = price
    add_tick(row, columns[index, C_PRICE], price, columns[index, C_AMOUNT], amount, windows)
    windows[row, W_COUNT] += 1


@compiled(
    *(INTS2, FLOATS2, types.int64, types.int64, INTS, INTS, INTS2, INTS2, FLOATS2, INTS, INTS),
    *(INTS2, INTS2, INTS2, INTS2, INTS2, FLOATS2, INTS2, INTS),
    returns=types.int64,
)
def run(
    columns: Ints,
    values: Floats,
    begin: int,
    end: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    windows: Ints,
    sums: Floats,
    table: Ints,
    unused: Ints,
    idle: Ints,
    expiry: Ints,
    overdue: Ints,
    unflushed: Ints,
    out: Ints,
    out_sums: Floats,
    late: Ints,
    misrouted: Ints,
) -> int:
    """Observe, judge and place the ticks of rows ``begin`` to ``end``; where it stopped, for want of ``H_NEED``.

    Rows without a key are passed over. Expiry left unfinished for want of room goes on with the next call.
    """
    head[H_NEED] = NEED_NOTHING
    size, lag, lateness, final = params[P_SIZE_NS], params[P_LAG], params[P_LATENESS], params[P_FINAL]
    partition_max = head[H_PARTITION_MAX]
    expired = _expired_before(partition_max, params)
    if not _expire(expired, params, head, keys, windows, sums, table, unused, expiry, out, out_sums):
        return begin
    for index in range(begin, end):
        key = columns[index, C_KEY]
        if key == NONE:
            continue
        ts = columns[index, C_TS]
        known = keys[key, K_WINDOWS] > 0
        if not known and keys[key, K_FLAGS] & KEY_MISROUTED:
            if head[H_MISROUTED] >= misrouted.shape[0]:
                head[H_NEED] = NEED_MISROUTED
                return index
            misrouted[head[H_MISROUTED]] = index
            if params[P_REJECT_MISROUTED]:
                head[H_MISROUTED] += 1
                continue
        key_max = max(keys[key, K_MAX], ts)
        watermark = key_max - lag
        row = keys[key, K_RECENT]
        if row != NONE and windows[row, W_START] <= ts < windows[row, W_START] + size:
            start = windows[row, W_START]
        else:
            row = NONE
            start = (ts - params[P_OFFSET_NS]) // size * size + params[P_OFFSET_NS]
        is_late = ts <= watermark - lateness
        if is_late or start < expired:
            if head[H_LATE] >= late.shape[0]:
                head[H_NEED] = NEED_LATE
                return index
            at = head[H_LATE]
            head[H_LATE] += 1
            late[at, L_RECORD], late[at, L_EXPIRED] = index, 0 if is_late else 1
            late[at, L_WATERMARK], late[at, L_PARTITION_MAX] = watermark, partition_max
            if not known and keys[key, K_FLAGS] & KEY_MISROUTED:
                head[H_MISROUTED] += 1
            continue
        if head[H_EMITTED] + keys[key, K_WINDOWS] + 2 > out.shape[0]:
            head[H_NEED] = NEED_EMISSIONS
            return index
        if row == NONE and known:
            row = _find(key, start, params, keys, windows, table)
        if row == NONE:
            if (head[H_WINDOW_FREE] == NONE and head[H_WINDOW_ROWS] >= windows.shape[0]) or (
                3 * head[H_WINDOWS] >= 2 * table.shape[0]
            ):
                head[H_NEED] = NEED_WINDOWS
                return index
            if head[H_IDLE] >= idle.shape[0]:
                head[H_NEED] = NEED_IDLE
                return index
            if params[P_TTL] != NEVER and head[H_EXPIRY] >= expiry.shape[0]:
                head[H_NEED] = NEED_EXPIRY
                return index
        elif windows[row, W_FLAGS] & OVERDUE and head[H_OVERDUE] >= overdue.shape[0]:
            head[H_NEED] = NEED_OVERDUE
            return index
        if params[P_PARTIAL] and head[H_UNFLUSHED] >= unflushed.shape[0]:
            head[H_NEED] = NEED_UNFLUSHED
            return index
        # There is room: from here on nothing can stop this tick.
        if not known:
            if keys[key, K_FLAGS] & KEY_MISROUTED:
                head[H_MISROUTED] += 1
            head[H_KEYS] += 1
            if params[P_TTL] != NEVER:
                _push(expiry, head[H_EXPIRY], ts, head[H_TIE], key)
                head[H_EXPIRY] += 1
                head[H_TIE] += 1
        keys[key, K_MAX] = key_max
        if row == NONE:
            row = _new_window(key, start, params, head, keys, windows, table)
            if start + size <= watermark and not final:
                windows[row, W_FLAGS] = CLOSED
            else:
                opened = keys[key, K_OPEN]
                if opened == NONE or start < windows[opened, W_START]:
                    keys[key, K_OPEN] = row
                if not final:
                    _push(idle, head[H_IDLE], start + size, windows[row, W_TIE], row)
                    head[H_IDLE] += 1
            _find_due(key, params, keys, windows)
        keys[key, K_RECENT] = row
        _fold(row, index, columns, values, windows, sums)
        head[H_AGGREGATED] += 1
        flags = windows[row, W_FLAGS] | CHANGED
        windows[row, W_FLAGS] = flags
        if not flags & IN_CHANGES:
            _note_change(row, head, windows)
        if flags & CLOSED:
            _emit(row, BY_LATE, head, windows, sums, out, out_sums)
        else:
            if flags & OVERDUE and not flags & IN_OVERDUE:
                windows[row, W_FLAGS] |= IN_OVERDUE
                overdue[head[H_OVERDUE], 0], overdue[head[H_OVERDUE], 1] = row, windows[row, W_TIE]
                head[H_OVERDUE] += 1
            if params[P_PARTIAL] and not flags & IN_UNFLUSHED:
                windows[row, W_FLAGS] |= IN_UNFLUSHED
                unflushed[head[H_UNFLUSHED], 0], unflushed[head[H_UNFLUSHED], 1] = row, windows[row, W_TIE]
                head[H_UNFLUSHED] += 1
        if watermark >= keys[key, K_DUE]:
            _close(key, watermark, params, head, keys, windows, sums, table, unused, out, out_sums)
        if ts > partition_max:
            partition_max = head[H_PARTITION_MAX] = ts
            expired = _expired_before(ts, params)
            if (
                head[H_EXPIRY] > 0
                and expiry[0, 0] < expired
                and not _expire(expired, params, head, keys, windows, sums, table, unused, expiry, out, out_sums)
            ):
                return index + 1
    return end


# -- windows that would wait ------------------------------------------------------------------------------------------


@compiled(types.int64, types.int64, INTS, INTS, INTS2, FLOATS2, INTS2, INTS2, INTS2, FLOATS2, returns=types.int64)
def settle(
    silence: int,
    budget: int,
    params: Ints,
    head: Ints,
    windows: Ints,
    sums: Floats,
    idle: Ints,
    overdue: Ints,
    out: Ints,
    out_sums: Floats,
) -> int:
    """Emit what partition time has made overdue, looking at no more than ``budget`` windows; what is left of that.

    Stops for want of ``H_NEED``; what is over the budget comes with the next call.
    """
    head[H_NEED] = NEED_NOTHING
    if params[P_FINAL] or head[H_PARTITION_MAX] == LONG_AGO:
        return budget
    by_events = head[H_PARTITION_MAX] - params[P_LAG] - params[P_IDLE_AFTER]
    while head[H_IDLE] > 0 and idle[0, 0] <= by_events + silence and budget > 0:
        if head[H_OVERDUE] >= overdue.shape[0]:
            head[H_NEED] = NEED_OVERDUE
            return budget
        row, tie = idle[0, 2], idle[0, 1]
        _pop(idle, head[H_IDLE])
        head[H_IDLE] -= 1
        budget -= 1
        if windows[row, W_TIE] != tie:
            continue
        flags = windows[row, W_FLAGS] | OVERDUE
        if flags & CHANGED and not flags & (IN_OVERDUE | CLOSED | DROPPED):
            flags |= IN_OVERDUE
            overdue[head[H_OVERDUE], 0], overdue[head[H_OVERDUE], 1] = row, tie
            head[H_OVERDUE] += 1
        windows[row, W_FLAGS] = flags
    while head[H_OVERDUE_DONE] < head[H_OVERDUE]:
        if head[H_EMITTED] >= out.shape[0]:
            head[H_NEED] = NEED_EMISSIONS
            return budget
        row, tie = overdue[head[H_OVERDUE_DONE], 0], overdue[head[H_OVERDUE_DONE], 1]
        head[H_OVERDUE_DONE] += 1
        if windows[row, W_TIE] != tie:
            continue
        flags = windows[row, W_FLAGS] & ~IN_OVERDUE
        windows[row, W_FLAGS] = flags
        if flags & CHANGED and not flags & (CLOSED | DROPPED):
            kind = BY_IDLE if windows[row, W_START] + params[P_SIZE_NS] <= by_events else BY_TIMEOUT
            _emit(row, kind, head, windows, sums, out, out_sums)
    head[H_OVERDUE] = head[H_OVERDUE_DONE] = 0
    return budget


@compiled(
    *(INTS, types.int64, INTS, INTS, INTS2, INTS2, FLOATS2, INTS, INTS, INTS2, FLOATS2),
    returns=types.int64,
)
def end_of_input(
    order: Ints,
    begin: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    windows: Ints,
    sums: Floats,
    table: Ints,
    unused: Ints,
    out: Ints,
    out_sums: Floats,
) -> int:
    """The input has ended: emit what waits of the keys ``order[begin:]``; where room for emissions ended.

    Of each key the last window stays, for its clock; nothing waits for idleness any more.
    """
    head[H_NEED] = NEED_NOTHING
    head[H_IDLE] = 0
    for index in range(begin, order.shape[0]):
        key = order[index]
        if head[H_EMITTED] + keys[key, K_WINDOWS] > out.shape[0]:
            head[H_NEED] = NEED_EMISSIONS
            return index
        last = keys[key, K_NEWEST]
        clock = windows[last, W_START] + params[P_SIZE_NS] - 1 + params[P_LATENESS] + params[P_LAG]
        if clock > keys[key, K_MAX]:
            keys[key, K_MAX] = windows[last, W_CLOCK] = clock
            windows[last, W_FLAGS] |= OWN_CLOCK
        row = keys[key, K_OLDEST]
        while row != NONE:
            newer = windows[row, W_NEWER]
            if not windows[row, W_FLAGS] & CLOSED:
                windows[row, W_FLAGS] |= CLOSED
                _emit(row, BY_END, head, windows, sums, out, out_sums)
            if row == last:
                windows[row, W_FLAGS] |= SETTLED
                _note_change(row, head, windows)
            else:
                _drop(row, params, head, keys, windows, table, unused)
            row = newer
        keys[key, K_OPEN] = NONE
        _find_due(key, params, keys, windows)
    return order.shape[0]


@compiled(types.int64, INTS, INTS, INTS2, INTS2, returns=types.int64)
def timeout(budget: int, params: Ints, head: Ints, windows: Ints, idle: Ints) -> int:
    """The silence at which `settle` has a window to look at; `NEVER` where there is none."""
    if params[P_FINAL]:
        return NEVER
    while head[H_IDLE] > 0 and budget > 0:
        row = idle[0, 2]
        if windows[row, W_TIE] == idle[0, 1] and not windows[row, W_FLAGS] & (CLOSED | DROPPED):
            break
        _pop(idle, head[H_IDLE])
        head[H_IDLE] -= 1
        budget -= 1
    if head[H_IDLE] == 0:
        return NEVER
    return idle[0, 0] + params[P_LAG] + params[P_IDLE_AFTER] - head[H_PARTITION_MAX]


@compiled(types.int64, INTS, INTS2, FLOATS2, INTS2, INTS2, FLOATS2, returns=types.int64)
def flush(budget: int, head: Ints, windows: Ints, sums: Floats, unflushed: Ints, out: Ints, out_sums: Floats) -> int:
    """Emit open windows that changed, looking at no more than ``budget``; what is left of that."""
    head[H_NEED] = NEED_NOTHING
    while head[H_UNFLUSHED_DONE] < head[H_UNFLUSHED] and budget > 0:
        if head[H_EMITTED] >= out.shape[0]:
            head[H_NEED] = NEED_EMISSIONS
            return budget
        row, tie = unflushed[head[H_UNFLUSHED_DONE], 0], unflushed[head[H_UNFLUSHED_DONE], 1]
        head[H_UNFLUSHED_DONE] += 1
        budget -= 1
        if windows[row, W_TIE] != tie:
            continue
        flags = windows[row, W_FLAGS] & ~IN_UNFLUSHED
        windows[row, W_FLAGS] = flags
        if flags & CHANGED and not flags & (CLOSED | DROPPED):
            _emit(row, BY_PARTIAL, head, windows, sums, out, out_sums)
    if head[H_UNFLUSHED_DONE] == head[H_UNFLUSHED]:
        head[H_UNFLUSHED] = head[H_UNFLUSHED_DONE] = 0
    return budget


# -- frames -----------------------------------------------------------------------------------------------------------


def _texts(*texts: bytes) -> tuple[Bytes, Ints]:
    bounds = np.cumsum([0, *map(len, texts)])
    return np.frombuffer(b"".join(texts) + bytes(8), np.uint8), bounds.astype(np.int64)


_LABELS = (
    b'{"key":"',
    b'","start":',
    b',"end":',
    b',"rev":',
    b',"open":',
    b',"high":',
    b',"low":',
    b',"close":',
    b',"volume":',
    b',"vwap":',
    b',"count":',
    b',"first_ts":',
    b',"last_ts":',
)
_LABEL_BYTES, _LABEL_BOUNDS = _texts(
    *_LABELS, *(f',"status":"{status}","trigger":"{trigger}"'.encode() for status, trigger in KINDS)
)
T_KEY, T_START, T_END, T_REV, T_OPEN, T_HIGH, T_LOW, T_CLOSE, T_VOLUME, T_VWAP = range(10)
T_COUNT, T_FIRST, T_LAST, T_KIND = range(10, 14)
FRAME_BYTES: Final = len(b"".join(_LABELS)) + 2 + 48 + 8 + 6 * FLOAT_BYTES + 6 * 20
"""The most that a frame takes beside its key, which takes seven times its length: as it is, and escaped."""

_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHORT_ESCAPES: Final = np.zeros(128, np.uint8)
for _byte, _letter in ((8, "b"), (9, "t"), (10, "n"), (12, "f"), (13, "r"), (34, '"'), (92, "\\")):
    _SHORT_ESCAPES[_byte] = ord(_letter)


@inlined
def _put_text(out: Bytes, position: int, text: int) -> int:
    begin, length = _LABEL_BOUNDS[text], _LABEL_BOUNDS[text + 1] - _LABEL_BOUNDS[text]
    for index in range(0, length, 8):  # whole words; what is too much is written over, or was room to spare
        store64(out, position + index, load64(_LABEL_BYTES, begin + index))
    return position + length


@inlined
def _put_escaped(out: Bytes, position: int, names: Bytes, begin: int, length: int) -> int:
    for index in range(begin, begin + length):
        byte = names[index]
        if byte < 128 and (byte < 32 or byte == 34 or byte == 92):
            out[position] = 92
            if _SHORT_ESCAPES[byte] != 0:
                out[position + 1] = _SHORT_ESCAPES[byte]
                position += 2
            else:
                out[position + 1], out[position + 2], out[position + 3] = 117, 48, 48
                out[position + 4], out[position + 5] = _HEX[byte >> 4], _HEX[byte & 15]
                position += 6
        else:
            out[position] = byte
            position += 1
    return position


@inlined
def _sum_of(table: Ints, row: int, at: int) -> float:
    return sum_as_float(U(table[row, at]), U(table[row, at + 1]), table[row, at + 2])


@inlined
def _average(notional: float, volume: float, low: float, high: float) -> float:
    """As `workers.core.decimals.average`; NaN where there is none."""
    if volume == 0.0 or not (np.isfinite(notional) and np.isfinite(volume)):
        return np.nan
    found = notional / volume
    if low > found:
        found = low
    return high if high < found else found


@compiled(INTS2, FLOATS2, types.int64, types.int64, INTS, INTS2, BYTES, BYTES, INTS, INTS, returns=types.int64)
def format_frames(
    emissions: Ints,
    emitted: Floats,
    begin: int,
    end: int,
    params: Ints,
    keys: Ints,
    names: Bytes,
    out: Bytes,
    bounds: Ints,
    timestamps: Ints,
) -> int:
    """Write key and frame of each emission from ``begin`` on; where room ended. ``bounds`` gets where each ends.

    Byte for byte what `workers.core.frames.FrameEncoder` writes.
    """
    position = 0
    bounds[0] = 0
    for index in range(begin, end):
        key = emissions[index, E_KEY]
        name, length = keys[key, K_NAME], keys[key, K_LENGTH]
        at = index - begin
        if position + FRAME_BYTES + 7 * length > out.shape[0] or 2 * at + 2 >= bounds.shape[0]:
            return index
        for offset in range(length):
            out[position + offset] = names[name + offset]
        position += length
        bounds[2 * at + 1] = position
        start = emissions[index, E_START]
        end_ms = (start + params[P_SIZE_NS]) // NS_PER_MS
        position = _put_escaped(out, _put_text(out, position, T_KEY), names, name, length)
        position = put_int(out, _put_text(out, position, T_START), start // NS_PER_MS)
        position = put_int(out, _put_text(out, position, T_END), end_ms)
        position = put_int(out, _put_text(out, position, T_REV), emissions[index, E_REV])
        position = _put_text(out, position, T_KIND + emissions[index, E_KIND])
        for column in range(F_SIZE):
            position = put_float(out, _put_text(out, position, T_OPEN + column), emitted[index, column])
        volume = _sum_of(emissions, index, E_VOLUME)
        vwap = _average(_sum_of(emissions, index, E_NOTIONAL), volume, emitted[index, F_LOW], emitted[index, F_HIGH])
        position = put_float(out, _put_text(out, position, T_VOLUME), volume)
        position = put_float(out, _put_text(out, position, T_VWAP), vwap)
        position = put_int(out, _put_text(out, position, T_COUNT), emissions[index, E_COUNT])
        position = put_int(out, _put_text(out, position, T_FIRST), emissions[index, E_FIRST] // params[P_UNIT])
        position = put_int(out, _put_text(out, position, T_LAST), emissions[index, E_LAST] // params[P_UNIT])
        out[position] = 125
        position += 1
        bounds[2 * at + 2] = position
        timestamps[at] = max(end_ms, 0)
    return end


# -- stored state: the records of `workers.core.snapshot` --------------------------------------------------------------

FORMAT: Final = 1
STORED_CLOSED, STORED_CHANGED, STORED_OWN_CLOCK, STORED_SETTLED = 1, 2, 4, 64
WINDOW_KEY_BYTES: Final = 9  # "w" and the start, before the symbol
SUM_BYTES: Final = 17
SUMS_AT: Final = (90, 90 + SUM_BYTES)
WINDOW_VALUE_BYTES: Final = 90 + 2 * SUM_BYTES  # and eight more with a clock of its own, which come before 42


@inlined
def _swap(word: np.uint64) -> np.uint64:
    word = ((word & U(0x00FF00FF00FF00FF)) << U(8)) | ((word >> U(8)) & U(0x00FF00FF00FF00FF))
    word = ((word & U(0x0000FFFF0000FFFF)) << U(16)) | ((word >> U(16)) & U(0x0000FFFF0000FFFF))
    return (word << U(32)) | (word >> U(32))


@inlined
def _write_window(row: int, params: Ints, windows: Ints, sums: Floats, out: Bytes, position: int) -> int:
    """Write a window's value; where it ends."""
    flags = windows[row, W_FLAGS]
    out[position] = FORMAT
    out[position + 1] = (
        (STORED_CLOSED if flags & CLOSED else 0)
        | (STORED_CHANGED if flags & CHANGED else 0)
        | (STORED_OWN_CLOCK if flags & OWN_CLOCK else 0)
        | (STORED_SETTLED if flags & SETTLED else 0)
    )
    store64(out, position + 2, U(windows[row, W_REV]))  # four bytes of it; the count comes over the rest
    store64(out, position + 6, U(windows[row, W_COUNT]))
    store64(out, position + 14, U(windows[row, W_START] + params[P_SIZE_NS]))
    store64(out, position + 22, U(windows[row, W_FIRST]))
    store64(out, position + 30, U(windows[row, W_LAST]))
    for index in range(38, 42):
        out[position + index] = 0
    if flags & OWN_CLOCK:
        store64(out, position + 42, U(windows[row, W_CLOCK]))
        position += 8
    store64(out, position + 42, U(windows[row, W_OPENED]))
    store64(out, position + 50, U(windows[row, W_CLOSED]))
    for index in range(F_SIZE):
        store64(out, position + 58 + 8 * index, bits_of(sums[row, index]))
    for index in range(2):
        at, column = position + SUMS_AT[index], W_VOLUME + 3 * index
        store64(out, at, U(windows[row, column]))
        store64(out, at + 8, U(windows[row, column + 1]))
        out[at + 16] = windows[row, column + 2]
    return position + WINDOW_VALUE_BYTES


@compiled(INTS, INTS, INTS2, BYTES, INTS2, FLOATS2, INTS, BYTES, INTS, returns=types.int64)
def write_changes(
    params: Ints,
    head: Ints,
    keys: Ints,
    names: Bytes,
    windows: Ints,
    sums: Floats,
    unused: Ints,
    out: Bytes,
    bounds: Ints,
) -> int:
    """Write the changelog records of changed windows, as many as there is room for; how many were written.

    ``bounds`` gets where each key and value ends; a deletion's value ends where it begins.
    """
    position = written = 0
    bounds[0] = 0
    while head[H_CHANGED] != NONE:
        row = head[H_CHANGED]
        key = windows[row, W_KEY]
        length = keys[key, K_LENGTH]
        if position + WINDOW_KEY_BYTES + length + WINDOW_VALUE_BYTES + 16 > out.shape[0]:
            break
        if 2 * written + 2 >= bounds.shape[0]:
            break
        _forget_change(row, head, windows)
        out[position] = 119
        store64(out, position + 1, _swap(U(windows[row, W_START])))
        for index in range(length):
            out[position + WINDOW_KEY_BYTES + index] = names[keys[key, K_NAME] + index]
        position += WINDOW_KEY_BYTES + length
        bounds[2 * written + 1] = position
        flags = windows[row, W_FLAGS]
        if flags & DROPPED:
            _free_row(row, head, keys, windows, unused)
        else:
            windows[row, W_FLAGS] = flags | STORED
            position = _write_window(row, params, windows, sums, out, position)
        bounds[2 * written + 2] = position
        written += 1
    return written


@compiled(
    *(READ_BYTES, INTS, READ_BYTES, INTS, types.int64, types.int64, INTS, INTS, INTS2, BYTES, INTS, INTS2, FLOATS2),
    *(INTS, INTS, INTS2, INTS2),
    returns=types.int64,
)
def load_windows(
    stored_keys: Bytes,
    bounds: Ints,
    stored: Bytes,
    places: Ints,
    begin: int,
    end: int,
    params: Ints,
    head: Ints,
    keys: Ints,
    names: Bytes,
    key_table: Ints,
    windows: Ints,
    sums: Floats,
    table: Ints,
    unused: Ints,
    idle: Ints,
    unflushed: Ints,
) -> int:
    """Take over stored windows, keys and values end to end, each beginning where ``bounds`` and ``places`` say; where
    it stopped for ``H_NEED``."""
    head[H_NEED] = NEED_NOTHING
    size = params[P_SIZE_NS]
    for index in range(begin, end):
        if (head[H_WINDOW_FREE] == NONE and head[H_WINDOW_ROWS] >= windows.shape[0]) or (
            3 * head[H_WINDOWS] >= 2 * table.shape[0]
        ):
            head[H_NEED] = NEED_WINDOWS
            return index
        if head[H_IDLE] >= idle.shape[0]:
            head[H_NEED] = NEED_IDLE
            return index
        if params[P_PARTIAL] and head[H_UNFLUSHED] >= unflushed.shape[0]:
            head[H_NEED] = NEED_UNFLUSHED
            return index
        name = bounds[index] + WINDOW_KEY_BYTES
        length = bounds[index + 1] - name
        hash31 = hash_bytes(stored_keys, name, length, params[P_SEED])
        key = find_key(stored_keys, name, length, hash31, keys, names, key_table)
        if key == NONE:
            key = new_key(stored_keys, name, length, hash31, params, head, keys, names, key_table, unused)
            if key == NONE:
                return index
        if keys[key, K_WINDOWS] == 0:
            head[H_KEYS] += 1
        start = np.int64(_swap(load64(stored_keys, bounds[index] + 1)))
        at = places[index]
        row = _new_window(key, start, params, head, keys, windows, table)
        closed = stored[at + 1] & STORED_CLOSED != 0
        changed = stored[at + 1] & STORED_CHANGED != 0
        windows[row, W_FLAGS] = STORED | (CLOSED if closed else 0) | (CHANGED if changed else 0)
        windows[row, W_REV] = np.int64(load64(stored, at + 2) & U(0xFFFFFFFF))
        windows[row, W_COUNT] = np.int64(load64(stored, at + 6))
        windows[row, W_FIRST] = np.int64(load64(stored, at + 22))
        windows[row, W_LAST] = np.int64(load64(stored, at + 30))
        clock = windows[row, W_LAST]
        if stored[at + 1] & STORED_SETTLED != 0:
            windows[row, W_FLAGS] |= SETTLED
        if stored[at + 1] & STORED_OWN_CLOCK != 0:
            clock = windows[row, W_CLOCK] = np.int64(load64(stored, at + 42))
            windows[row, W_FLAGS] |= OWN_CLOCK
            at += 8
        windows[row, W_OPENED] = np.int64(load64(stored, at + 42))
        windows[row, W_CLOSED] = np.int64(load64(stored, at + 50))
        for column in range(F_SIZE):
            sums[row, column] = float_of(load64(stored, at + 58 + 8 * column))
        for number in range(2):
            begun, column = at + SUMS_AT[number], W_VOLUME + 3 * number
            windows[row, column] = np.int64(load64(stored, begun))
            windows[row, column + 1] = np.int64(load64(stored, begun + 8))
            windows[row, column + 2] = np.int64(stored[begun + 16])
        keys[key, K_MAX] = max(keys[key, K_MAX], clock)
        keys[key, K_RECENT] = keys[key, K_NEWEST]
        opened = keys[key, K_OPEN]
        if not closed:
            if opened == NONE or start < windows[opened, W_START]:
                keys[key, K_OPEN] = row
            if not params[P_FINAL]:
                _push(idle, head[H_IDLE], start + size, windows[row, W_TIE], row)
                head[H_IDLE] += 1
        if params[P_PARTIAL] and changed:
            windows[row, W_FLAGS] |= IN_UNFLUSHED
            unflushed[head[H_UNFLUSHED], 0], unflushed[head[H_UNFLUSHED], 1] = row, windows[row, W_TIE]
            head[H_UNFLUSHED] += 1
        _find_due(key, params, keys, windows)
    return end


@compiled(INTS, INTS2, INTS2, returns=types.int64)
def load_expiry(head: Ints, keys: Ints, expiry: Ints) -> int:
    """Schedule the expiry of all keys just loaded, in the order they came; 0, or `NEED_EXPIRY`."""
    head[H_NEED] = NEED_NOTHING
    if head[H_KEY_ROWS] > expiry.shape[0]:
        head[H_NEED] = NEED_EXPIRY
        return 0
    for key in range(head[H_KEY_ROWS]):
        _push(expiry, head[H_EXPIRY], keys[key, K_MAX], head[H_TIE], key)
        head[H_EXPIRY] += 1
        head[H_TIE] += 1
    return 0
