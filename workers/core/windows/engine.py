"""Event-time windows per key: which window a tick joins, and when each comes out. The rules, in full.

*Joining.* After the lateness rule (`workers.core.watermark`) a tick joins ``[start, start + size)``, with
``start = floor(ts / size) * size`` counted from the epoch; negative times floor too.

*Closing.* A window closes when its clock's watermark reaches its end, and is kept until the watermark reaches
``end + allowed_lateness``; a tick that joins a closed window emits it again, whole, with the next ``rev``.

    watermark ─────▶      end              end + allowed_lateness
    ──────────────────────┼────────────────┼──────────────▶
      open: collects      │ closed, kept:  │ gone: its ticks
                          │ late ticks     │ are late
                          │ re-emit it     │
                          ▼ emitted        ▼ (emit="final": emitted here, once)

*Provisional frames* show a window that would otherwise wait, and change nothing: they take the ``rev`` that the
window's next real frame will have, close nothing and judge nothing. A changed open window comes out provisionally when
*partition time* (the greatest accepted event time, plus the silence of a source that was read to its end) reaches
``end + lag + idle_after``, and, with ``emit_partial``, whenever the caller flushes.

*Expiry.* As a rule there is none: a key is kept for good, its clock in one window, and no other key's progress takes
anything from it. With a ``key_ttl`` a key more than that behind its partition is emitted as it stands and forgotten. A
tick that far behind is late, and so is one whose window began that far behind: the window may have been forgotten with
its key, and must not come back with a ``rev`` that it already had.

*The end of the input* (`end_of_input`) is part of the log, as a tick is. Every window that waits comes out ``final``;
no window comes out again. Each clock moves as far as makes late what is before the end of its last window, so that no
window can begin anew under a name that it had, while ticks of later windows go on as ever:

    watermark - allowed_lateness = end of the last window - 1 ns         (or more, where the clock was there already)

*Why no key needs its clock stored:* each window knows the greatest time that the clock was set to through it
(``clock_ns``), and the window that holds a key's clock is kept until another one does. So a key with a clock always has
that window, and the clock is the greatest ``clock_ns`` among the key's windows. For a tick that stays where it is the
rule costs nothing: its window ends after it, so the watermark can't have reached the end before the clock moved on.

Provisional frames apart, what comes out for a key depends on the sequence of ticks alone. Nothing here reads a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar, Unpack

from workers.core.reasons import Status, Trigger
from workers.core.steps import Portion, run_through
from workers.core.watermark import is_late
from workers.core.windows.idle import IdleQueue
from workers.core.windows.window import LONG_AGO, Emission, K, KeyState, Lateness, Window, WindowRules

__all__ = ["EngineOptions", "Folding", "T", "WindowEngine"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

NEVER: Final = 2**127  # behind by more than any two times can be
BYTES_OF_CHANGE: Final = 2_048  # of items: to write them takes about what it takes to write a window
STALE_EXPIRIES: Final = 1_000  # scheduled for keys that are gone, beside as many as there are keys


class Folding(Protocol[T_contra]):
    """The part of an aggregation that the engine needs."""

    def create(self) -> Any: ...
    def add(self, state: Any, tick: T_contra) -> Any: ...
    def result(self, state: Any) -> Mapping[str, object]: ...


class EngineOptions(TypedDict, Generic[T], total=False):
    """What windows hold, and what is told of them. ``keep`` says what of an item its window keeps (None: nothing);
    ``track_changes`` collects what `WindowEngine.take_changes` hands to a changelog."""

    folding: Folding[T] | None
    keep: Callable[[T], Any] | None
    emit_partial: bool
    track_changes: bool


class WindowEngine(Generic[K, T]):
    """The windows of one partition (or one stream): ticks go in by `add`, what came out is taken by `take_emissions`.

    ``name_unit_ns``: frames name windows by their starts in this unit, where starts may be finer.
    """

    def __init__(self, rules: WindowRules, *, name_unit_ns: int = 1, **options: Unpack[EngineOptions[T]]) -> None:
        self._rules = rules
        emits_partial = options.get("emit_partial", False) and rules.emit == "eager"
        self._name_unit_ns = name_unit_ns
        self._least_expired_ns = NEVER if rules.key_ttl_ns is None else rules.key_ttl_ns - name_unit_ns
        self._folding = options.get("folding")
        self._keep = options.get("keep")
        self._keys: dict[K, KeyState[K]] = {}
        self._partition_max_ns = LONG_AGO
        self._emissions: list[Emission[K]] = []
        self._tie_break = count()  # keys need not be comparable
        self._due: list[tuple[int, int, KeyState[K], int]] = []  # partition scope
        self._idle: IdleQueue[K] = IdleQueue()
        self._unflushed: dict[tuple[K, int], Window[K]] | None = {} if emits_partial else None
        self._expiry: list[tuple[int, int, KeyState[K]]] = []  # heap of (max_ns when pushed, tie-break, key)
        self._changes: dict[tuple[K, int], Window[K]] | None = {} if options.get("track_changes", False) else None
        self._fresh_bytes = 0  # of items kept since changes were taken

    @property
    def partition_max_ns(self) -> int:
        """The greatest accepted event time; -2**63 before any."""
        return self._partition_max_ns

    @property
    def key_count(self) -> int:
        """Keys with a clock."""
        return len(self._keys)

    def has_key(self, key: K) -> bool:
        """Whether the key has a clock."""
        return key in self._keys

    def windows_of(self, key: K) -> Sequence[Window[K]]:
        """The windows of one key that are kept, open or closed."""
        state = self._keys.get(key)
        return () if state is None else tuple(state.windows.values())

    def windows(self) -> Iterator[Window[K]]:
        """Every window kept, open or closed."""
        for state in self._keys.values():
            yield from state.windows.values()

    def watermark_ns(self, key: K) -> int | None:
        """The watermark that judges ``key``'s next tick; None before its clock has seen anything."""
        if self._rules.scope == "partition":
            return self._partition_max_ns - self._rules.lag_ns if self._partition_max_ns != LONG_AGO else None
        state = self._keys.get(key)
        return None if state is None else state.max_ns - self._rules.lag_ns

    def add(self, key: K, ts_ns: int, value: T) -> Lateness | None:
        """Observe, judge and place one tick; None when it was accepted."""
        rules = self._rules
        state = self._keys.get(key)
        clock_ns = (
            self._partition_max_ns if rules.scope == "partition" else (LONG_AGO if state is None else state.max_ns)
        )
        watermark_ns = (ts_ns if ts_ns > clock_ns else clock_ns) - rules.lag_ns
        windows = rules.assigner.assign(ts_ns)
        if not windows:
            self._pass_by(state, ts_ns, watermark_ns)
            return Lateness("outside_session", watermark_ns, 0)
        if is_late(ts_ns, watermark_ns, rules.lateness_ns):
            return Lateness("watermark", watermark_ns, watermark_ns - rules.lateness_ns - ts_ns)
        if self._partition_max_ns - windows[0][0] > self._least_expired_ns:
            expired = self._expired(windows[0][0], watermark_ns)
            if expired is not None:
                return expired
        if state is None:
            state = self._new_key(key, ts_ns)
        elif ts_ns > state.max_ns:
            state.max_ns = ts_ns
        for start_ns, end_ns in windows:
            self._join(state, start_ns, end_ns, ts_ns, value, watermark_ns)
        self._advance(state, ts_ns, watermark_ns)
        return None

    def _expired(self, start_ns: int, watermark_ns: int) -> Lateness | None:
        """Whether a window of that start, or another of its name, may have been forgotten with its key."""
        assert self._rules.key_ttl_ns is not None
        named_ns = start_ns - start_ns % self._name_unit_ns
        late_by_ns = self._partition_max_ns - self._rules.key_ttl_ns - named_ns
        return Lateness("expired", watermark_ns, late_by_ns) if late_by_ns > 0 else None

    def _advance(self, state: KeyState[K] | None, ts_ns: int, watermark_ns: int) -> None:
        """Let out what the watermark has reached, and move the partition's time."""
        if self._rules.scope == "partition":
            if self._due and self._due[0][0] <= watermark_ns:
                self._close_partition(watermark_ns)
        elif state is not None and state.due and state.due[0][0] <= watermark_ns:
            self._close_key(state, watermark_ns)
        if ts_ns > self._partition_max_ns:
            self._partition_max_ns = ts_ns
            self._expire_keys()

    def _pass_by(self, state: KeyState[K] | None, ts_ns: int, watermark_ns: int) -> None:
        """Observe a tick that no window is for: it moves the clocks as any tick does, so that what is over comes out.
        A key without windows has no clock that it could move."""
        if state is not None and ts_ns > state.max_ns:
            holder = max(state.windows.values(), key=lambda window: window.clock_ns)
            holder.clock_ns = state.max_ns = ts_ns
            if self._changes is not None:
                self._changes[state.key, holder.start_ns] = holder
        self._advance(state, ts_ns, watermark_ns)

    def settle(self, silence_ns: int = 0) -> None:
        """Emit provisionally what partition time, ``silence_ns`` of silence included, has made overdue."""
        rules = self._rules
        if rules.idle_after_ns is None or rules.emit == "final":
            return
        by_events_ns = self._partition_max_ns - rules.lag_ns - rules.idle_after_ns
        for window in self._idle.take_overdue(by_events_ns + silence_ns):
            self._emit(window, "provisional", "idle" if window.end_ns <= by_events_ns else "timeout")

    def next_timeout_ns(self) -> int | None:
        """The silence after which `settle` would emit something more; None: silence brings nothing out."""
        rules = self._rules
        if rules.idle_after_ns is None or rules.emit == "final":
            return None
        end_ns = self._idle.next_end_ns()
        return None if end_ns is None else end_ns + rules.lag_ns + rules.idle_after_ns - self._partition_max_ns

    def flush_partial(self) -> None:
        """Emit provisionally every open window that changed since it was last emitted."""
        if not self._unflushed:
            return
        for window in self._unflushed.values():
            if window.changed and not window.closed and not window.dropped:
                self._emit(window, "provisional", "partial")
        self._unflushed.clear()

    def end_of_input(self) -> None:
        """The input has ended, as far as it has come: emit every window that waits, by key and start. More may be added
        after. Keys must be comparable."""
        self._due.clear()
        self._idle.clear()
        if self._rules.scope == "partition" and self._keys:
            last_end_ns = max(window.end_ns for window in self.windows())
            self._partition_max_ns = max(self._partition_max_ns, self._clock_after_ns(last_end_ns))
        for key in sorted(self._keys):  # type: ignore[type-var]
            self._end_key(self._keys[key])
        self._expire_keys()

    def _end_key(self, state: KeyState[K]) -> None:
        """Emit what waits of a key, move its clock, and drop the windows that nothing needs any more."""
        state.due.clear()
        windows = [state.windows[start_ns] for start_ns in sorted(state.windows)]
        if self._rules.scope == "key":
            last = max(filter(self._is_real, windows), key=lambda each: each.end_ns, default=None)
            clock_ns = LONG_AGO if last is None else self._clock_after_ns(last.end_ns)
            if last is not None and clock_ns > state.max_ns:
                state.max_ns = last.clock_ns = clock_ns
            watermark_ns = state.max_ns - self._rules.lag_ns
        else:
            watermark_ns = self._partition_max_ns - self._rules.lag_ns
        for window in windows:
            self._end_window(state, window, watermark_ns)
        if not state.windows:
            del self._keys[state.key]

    def _end_window(self, state: KeyState[K], window: Window[K], watermark_ns: int) -> None:
        if not window.closed:
            self._emit(window, "final", "end")
        needed_ns = self._needed_until_ns(state, window, watermark_ns) if self._is_real(window) else None
        if needed_ns is None:
            self._drop(state, window)
            return
        window.closed = window.settled = True
        self._await(state, window, needed_ns)
        if self._changes is not None:
            self._changes[state.key, window.start_ns] = window

    def _clock_after_ns(self, last_end_ns: int) -> int:
        """The least clock by which all times before ``last_end_ns``, and no others, are late."""
        return last_end_ns - 1 + self._rules.lateness_ns + self._rules.lag_ns

    def _is_real(self, window: Window[K]) -> bool:
        """Whether it is more than a preview."""
        return True

    def finish(self) -> None:
        """The source has ended: emit every window not emitted yet, each key's by start. Nothing can be added after."""
        for state in self._keys.values():
            self._emit_rest(state, "end")
        self._keys.clear()
        self._due.clear()
        self._expiry.clear()
        self._idle.clear()

    @property
    def shows_something(self) -> bool:
        """Whether `take_emissions` has something to give."""
        return bool(self._emissions)

    def take_emissions(self) -> list[Emission[K]]:
        """What came out since the last call, in order."""
        taken, self._emissions = self._emissions, []
        return taken

    def take_changes(self) -> list[Window[K]]:
        """The windows that differ from what was taken last; the caller marks what it stored."""
        if not self._changes:
            return []
        taken = list(self._changes.values())
        self._changes.clear()
        self._fresh_bytes = 0
        return taken

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would give, and as many more as writing their new items would take time."""
        return len(self._changes) + self._fresh_bytes // BYTES_OF_CHANGE if self._changes is not None else 0

    def load(self, windows: Iterable[Window[K]], partition_max_ns: int) -> None:
        """Take over stored windows. Only for a new engine."""
        run_through(self.load_in_steps(windows, partition_max_ns))

    def load_in_steps(self, windows: Iterable[Window[K]], partition_max_ns: int) -> Generator[None, None, None]:
        """`load`, with a pause after each portion."""
        portion = Portion()
        self._partition_max_ns = partition_max_ns
        for window in windows:
            state = self._keys.get(window.key)
            if state is None:
                state = self._keys[window.key] = self._make_state(window.key, window.clock_ns)
            state.max_ns = max(state.max_ns, window.clock_ns)
            state.windows[window.start_ns] = window
            self._schedule(state, window)
            if self._unflushed is not None and window.changed:
                self._unflushed[window.key, window.start_ns] = window
            if portion.is_done():
                yield
        for state in self._keys.values():
            self._loaded(state)
            if portion.is_done(0.1 + 0.1 * len(state.windows)):
                yield

    def _loaded(self, state: KeyState[K]) -> None:
        """All windows of a key were taken from its stored state."""
        if self._rules.key_ttl_ns is not None:
            heapq.heappush(self._expiry, (state.max_ns, next(self._tie_break), state))

    def _make_state(self, key: K, max_ns: int) -> KeyState[K]:
        return KeyState(key, max_ns)

    def _new_key(self, key: K, ts_ns: int) -> KeyState[K]:
        state = self._keys[key] = self._make_state(key, ts_ns)
        if self._rules.key_ttl_ns is not None:
            heapq.heappush(self._expiry, (ts_ns, next(self._tie_break), state))
            if len(self._expiry) > 2 * len(self._keys) + STALE_EXPIRIES:
                self._sweep_expiry()
        return state

    def _sweep_expiry(self) -> None:
        """Let go of keys that are gone: with one clock for a partition a key goes with its last window and comes back
        with its next tick, and each visit would stay scheduled for all of ``key_ttl``. A sweep halves the heap at
        least, so it costs a push no more than a constant."""
        self._expiry = [entry for entry in self._expiry if self._keys.get(entry[2].key) is entry[2]]
        heapq.heapify(self._expiry)

    def _join(self, state: KeyState[K], start_ns: int, end_ns: int, ts_ns: int, value: T, watermark_ns: int) -> None:
        rules = self._rules
        window = state.windows.get(start_ns)
        if window is None:
            # With emit="final" a window is closed only when it is emitted, at the end of its retention.
            window = self._open(state, start_ns, end_ns, ts_ns, closed=end_ns <= watermark_ns and rules.emit == "eager")
        self._take_in(state, window, ts_ns, value)

    def _take_in(self, state: KeyState[K], window: Window[K], ts_ns: int, value: T) -> None:
        if ts_ns < window.first_ns:
            window.first_ns = ts_ns
        elif ts_ns > window.last_ns:
            window.last_ns = ts_ns
        if ts_ns > window.clock_ns:
            window.clock_ns = ts_ns
        if self._folding is not None:
            window.state = self._folding.add(window.state, value)
        if self._keep is not None and window.items is not None:
            kept = self._keep(value)
            window.items.append(kept)
            if self._changes is not None:
                self._fresh_bytes += len(kept)
        window.count += 1
        self._show_change(window, "late")

    def _show_change(self, window: Window[K], trigger: Trigger) -> None:
        """What a window holds has changed: a closed one comes out again, at once."""
        window.changed = True
        if self._changes is not None:
            self._changes[window.key, window.start_ns] = window
        if window.closed:
            self._emit(window, "closed", trigger)
            return
        if window.overdue:
            self._idle.changed[window.key, window.start_ns] = window
        if self._unflushed is not None:
            self._unflushed[window.key, window.start_ns] = window

    def _open(self, state: KeyState[K], start_ns: int, end_ns: int, ts_ns: int, *, closed: bool) -> Window[K]:
        window = Window(state.key, start_ns, end_ns, first_ns=ts_ns, last_ns=ts_ns, clock_ns=ts_ns, closed=closed)
        if self._folding is not None:
            window.state = self._folding.create()
        if self._keep is not None:
            window.items = []
        state.windows[start_ns] = window
        self._schedule(state, window)
        return window

    def _schedule(self, state: KeyState[K], window: Window[K]) -> None:
        keep_ns = self._rules.lateness_ns if window.closed or self._rules.emit == "final" else 0
        self._await(state, window, window.end_ns + keep_ns)
        if window.closed:
            window.overdue = True
        else:
            self._await_idle(window)

    def _await(self, state: KeyState[K], window: Window[K], due_ns: int) -> None:
        """Have the window looked at by `_act` when the watermark is ``due_ns``, and not before."""
        window.due_ns = due_ns
        if self._rules.scope == "key":
            heapq.heappush(state.due, (due_ns, window.start_ns))
        else:
            heapq.heappush(self._due, (due_ns, next(self._tie_break), state, window.start_ns))

    def _await_idle(self, window: Window[K]) -> None:
        if self._rules.idle_after_ns is not None and self._rules.emit == "eager":
            self._idle.put(window)

    def _close_key(self, state: KeyState[K], watermark_ns: int) -> None:
        while state.due and state.due[0][0] <= watermark_ns:
            due_ns, start_ns = heapq.heappop(state.due)
            self._act_if_due(state, start_ns, due_ns, watermark_ns)

    def _close_partition(self, watermark_ns: int) -> None:
        while self._due and self._due[0][0] <= watermark_ns:
            due_ns, _, state, start_ns = heapq.heappop(self._due)
            self._act_if_due(state, start_ns, due_ns, watermark_ns)

    def _act_if_due(self, state: KeyState[K], start_ns: int, due_ns: int, watermark_ns: int) -> None:
        window = state.windows.get(start_ns)
        if window is None or window.due_ns != due_ns:
            return  # its key expired, or the window was rescheduled since
        again_ns = self._act(state, window, watermark_ns)
        if again_ns is not None:
            self._await(state, window, again_ns)

    def _act(self, state: KeyState[K], window: Window[K], watermark_ns: int) -> int | None:
        """Close a window that is due, or drop a closed one; the watermark at which it is due again, or None."""
        gone_ns = window.end_ns + self._rules.lateness_ns
        if not window.closed:
            window.closed = True
            if self._rules.emit == "final":
                self._emit(window, "final", "watermark")
            else:
                self._emit(window, "final" if watermark_ns >= gone_ns else "closed", "watermark")
            if self._changes is not None:
                self._changes[state.key, window.start_ns] = window
        if watermark_ns < gone_ns:
            return gone_ns
        needed_ns = self._needed_until_ns(state, window, watermark_ns)
        if needed_ns is not None:
            return needed_ns
        self._drop(state, window)
        if not state.windows and self._rules.scope == "partition":
            del self._keys[state.key]  # its clock is the partition's: nothing is left to remember
        return None

    def _needed_until_ns(self, state: KeyState[K], window: Window[K], watermark_ns: int) -> int | None:
        """When to look again at a window that is past its retention and kept for what it knows; None: drop it."""
        holds_clock = window.clock_ns == state.max_ns and self._rules.scope == "key"
        return watermark_ns + 1 if holds_clock else None  # until the clock moves

    def _expire_keys(self) -> None:
        ttl_ns = self._rules.key_ttl_ns
        if ttl_ns is None:
            return
        while self._expiry and self._partition_max_ns - self._expiry[0][0] > ttl_ns:
            pushed_ns, tie, state = heapq.heappop(self._expiry)
            if self._keys.get(state.key) is not state:
                continue
            if state.max_ns > pushed_ns:
                heapq.heappush(self._expiry, (state.max_ns, tie, state))
                continue
            self._emit_rest(state, "expiry")
            del self._keys[state.key]

    def _emit_rest(self, state: KeyState[K], trigger: Trigger) -> None:
        for start_ns in sorted(state.windows):
            window = state.windows[start_ns]
            if not window.closed:
                self._emit(window, "final", trigger)
            self._drop(state, window)

    def _drop(self, state: KeyState[K], window: Window[K]) -> None:
        del state.windows[window.start_ns]
        window.dropped = True
        if self._changes is not None:
            self._changes[window.key, window.start_ns] = window

    def _result(self, window: Window[K]) -> Mapping[str, object]:
        """What a frame shows of a window; of one without ticks, nulls."""
        result = self._folding.result(window.state) if self._folding is not None else {}
        return result if window.count else dict.fromkeys(result)

    def _items(self, window: Window[K]) -> tuple[Any, ...] | None:
        """The items that a frame shows."""
        return tuple(window.items) if window.items is not None else None

    def _emit(self, window: Window[K], status: Status, trigger: Trigger, *, filled: bool = False) -> None:
        emission = Emission(
            window.key,
            window.start_ns,
            window.end_ns,
            window.rev,
            status,
            trigger,
            window.count,
            window.first_ns,
            window.last_ns,
            self._result(window),
            self._items(window),
            filled,
        )
        self._emissions.append(emission)
        window.changed = False
        if status != "provisional":
            window.rev += 1
