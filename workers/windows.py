"""Event-time windows per key: which window a tick joins, and when each comes out. The rules, in full.

*Joining.* After the lateness rule (`workers.watermark`) a tick joins ``[start, start + size)``, with
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

*Expiry.* A key more than ``key_ttl`` behind its partition is emitted as it stands and forgotten. A tick that far behind
is late, and so is one whose window began that far behind: the window may have been forgotten with its key, and must
not come back with a ``rev`` that it already had.

*Why no key needs its clock stored:* the tick that set the clock is in a window that ends after it, and a window is only
dropped once the watermark, which trails the clock, reached its end. So a key with a clock always has that window, and
the clock is the greatest event time among the key's windows.

Provisional frames apart, what comes out for a key depends on the sequence of ticks alone. Nothing here reads a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from workers.watermark import is_late

__all__ = [
    "Emission",
    "Lateness",
    "Status",
    "Trigger",
    "Tumbling",
    "TumblingWindowSpec",
    "Window",
    "WindowEngine",
    "WindowRules",
]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

Status = Literal["provisional", "closed", "final"]
Trigger = Literal["watermark", "late", "idle", "timeout", "partial", "expiry", "end"]

LONG_AGO: Final = -(2**63)


@dataclass(frozen=True, slots=True)
class TumblingWindowSpec:
    """Windows of one size, side by side from the epoch. Raises ``ValueError`` where the size is not positive."""

    size: timedelta
    emit_partial: bool = False

    def __post_init__(self) -> None:
        if self.size <= timedelta(0):
            raise ValueError(f"size is {self.size}; expected more than zero")


class Assigner(Protocol):
    """Says which windows an event time belongs to, as half-open ``[start, end)`` in nanoseconds."""

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class Tumbling:
    """Side-by-side windows of ``size_ns`` from the epoch."""

    size_ns: int

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start = ts_ns // self.size_ns * self.size_ns
        return ((start, start + self.size_ns),)


@dataclass(frozen=True, slots=True)
class WindowRules:
    """When windows come out; durations in nanoseconds. ``idle_after_ns`` None: never provisionally for idleness.

    Raises ``ValueError`` where ``lag_ns + lateness_ns`` is 0: by the lateness rule every tick would then be late.
    """

    assigner: Assigner
    lag_ns: int
    lateness_ns: int = 0
    idle_after_ns: int | None = None
    key_ttl_ns: int | None = None
    emit: Literal["eager", "final"] = "eager"
    scope: Literal["key", "partition"] = "key"

    def __post_init__(self) -> None:
        if self.lag_ns < 0 or self.lateness_ns < 0 or self.lag_ns + self.lateness_ns == 0:
            raise ValueError(
                f"lag is {self.lag_ns} ns and allowed lateness {self.lateness_ns} ns; neither may be negative, and "
                "with both 0 every tick would be late (ts <= watermark - allowed lateness); 1 ns of lag is enough"
            )


@dataclass(slots=True, eq=False)
class Window(Generic[K]):
    """One window of one key while it is kept. ``rev`` is that of its next non-provisional frame."""

    key: K
    start_ns: int
    end_ns: int
    state: Any = None
    items: list[Any] | None = None
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    rev: int = 0
    closed: bool = False
    changed: bool = False  # since it was last emitted, in whatever status
    overdue: bool = False  # partition time has passed end + lag + idle_after
    dropped: bool = False
    stored_items: int = 0  # how many of the items the changelog holds
    stored_segments: int = 0
    stored: bool = False  # the changelog holds a record of this window


@dataclass(slots=True)
class _KeyState(Generic[K]):
    key: K
    max_ns: int
    windows: dict[int, Window[K]] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)  # heap of (watermark that acts, start); key scope only


@dataclass(frozen=True, slots=True)
class Lateness:
    """Why a tick joined no window, and by how much: ``watermark``: how far its time is below the threshold (0: on it,
    which is late); ``expired``: how much more than ``key_ttl`` the start of its window is behind the partition."""

    reason: Literal["watermark", "expired"]
    watermark_ns: int
    late_by_ns: int


@dataclass(frozen=True, slots=True)
class Emission(Generic[K]):
    """A window as it was when it came out."""

    key: K
    start_ns: int
    end_ns: int
    rev: int
    status: Status
    trigger: Trigger
    count: int
    first_ns: int
    last_ns: int
    result: Mapping[str, object]
    items: tuple[Any, ...] | None


class Folding(Protocol[T_contra]):
    """The part of an aggregation that the engine needs."""

    def create(self) -> Any: ...
    def add(self, state: Any, tick: T_contra) -> Any: ...
    def result(self, state: Any) -> Mapping[str, object]: ...


class WindowEngine(Generic[K, T]):
    """The windows of one partition (or one stream): ticks go in by `add`, what came out is taken by `take_emissions`.

    ``keep`` says what of an item its window keeps (None: nothing); ``track_changes`` collects what `take_changes`
    hands to a changelog.
    """

    def __init__(
        self,
        rules: WindowRules,
        *,
        folding: Folding[T] | None = None,
        keep: Callable[[T], Any] | None = None,
        emit_partial: bool = False,
        track_changes: bool = False,
    ) -> None:
        self._rules = rules
        self._folding = folding
        self._keep = keep
        self._keys: dict[K, _KeyState[K]] = {}
        self._partition_max_ns = LONG_AGO
        self._emissions: list[Emission[K]] = []
        self._tie_break = count()  # keys need not be comparable
        self._due: list[tuple[int, int, _KeyState[K], int]] = []  # partition scope
        self._idle_due: list[tuple[int, int, Window[K]]] = []  # heap of (end, tie-break, window)
        self._overdue_changed: dict[tuple[K, int], Window[K]] = {}
        self._unflushed: dict[tuple[K, int], Window[K]] | None = {} if emit_partial and rules.emit == "eager" else None
        self._expiry: list[tuple[int, int, _KeyState[K]]] = []  # heap of (max_ns when pushed, tie-break, key)
        self._changes: dict[tuple[K, int], Window[K]] | None = {} if track_changes else None

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
        if is_late(ts_ns, watermark_ns, rules.lateness_ns):
            return Lateness("watermark", watermark_ns, watermark_ns - rules.lateness_ns - ts_ns)
        windows = rules.assigner.assign(ts_ns)
        if rules.key_ttl_ns is not None and self._partition_max_ns - windows[0][0] > rules.key_ttl_ns:
            late_by_ns = self._partition_max_ns - rules.key_ttl_ns - windows[0][0]
            return Lateness("expired", watermark_ns, late_by_ns)
        if state is None:
            state = self._new_key(key, ts_ns)
        elif ts_ns > state.max_ns:
            state.max_ns = ts_ns
        for start_ns, end_ns in windows:
            self._join(state, start_ns, end_ns, ts_ns, value, watermark_ns)
        if rules.scope == "key":
            if state.due and state.due[0][0] <= watermark_ns:
                self._close_key(state, watermark_ns)
        elif self._due and self._due[0][0] <= watermark_ns:
            self._close_partition(watermark_ns)
        if ts_ns > self._partition_max_ns:
            self._partition_max_ns = ts_ns
            self._expire_keys()
        return None

    def settle(self, silence_ns: int = 0) -> None:
        """Emit provisionally what partition time, ``silence_ns`` of silence included, has made overdue."""
        rules = self._rules
        if rules.idle_after_ns is None or rules.emit == "final":
            return
        margin_ns = rules.lag_ns + rules.idle_after_ns
        by_events_ns = self._partition_max_ns - margin_ns
        while self._idle_due and self._idle_due[0][0] <= by_events_ns + silence_ns:
            window = heapq.heappop(self._idle_due)[2]
            window.overdue = True
            if window.changed:
                self._overdue_changed[window.key, window.start_ns] = window
        if self._overdue_changed:
            for window in self._overdue_changed.values():
                if window.changed and not window.closed and not window.dropped:
                    self._emit(window, "provisional", "idle" if window.end_ns <= by_events_ns else "timeout")
            self._overdue_changed.clear()

    def next_timeout_ns(self) -> int | None:
        """The silence after which `settle` would emit something more; None: silence brings nothing out."""
        rules = self._rules
        if rules.idle_after_ns is None or rules.emit == "final":
            return None
        while self._idle_due and (self._idle_due[0][2].closed or self._idle_due[0][2].dropped):
            heapq.heappop(self._idle_due)
        if not self._idle_due:
            return None
        return self._idle_due[0][0] + rules.lag_ns + rules.idle_after_ns - self._partition_max_ns

    def flush_partial(self) -> None:
        """Emit provisionally every open window that changed since it was last emitted."""
        if not self._unflushed:
            return
        for window in self._unflushed.values():
            if window.changed and not window.closed and not window.dropped:
                self._emit(window, "provisional", "partial")
        self._unflushed.clear()

    def finish(self) -> None:
        """The source has ended: emit every window not emitted yet, each key's by start. Nothing can be added after."""
        for state in self._keys.values():
            self._emit_rest(state, "end")
        self._keys.clear()
        self._due.clear()
        self._expiry.clear()
        self._idle_due.clear()

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
        return taken

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would give."""
        return len(self._changes) if self._changes is not None else 0

    def load(self, windows: Iterable[Window[K]], partition_max_ns: int) -> None:
        """Take over stored windows. Only for a new engine."""
        rules = self._rules
        self._partition_max_ns = partition_max_ns
        for window in windows:
            state = self._keys.get(window.key)
            if state is None:
                state = self._keys[window.key] = _KeyState(window.key, window.last_ns)
            state.max_ns = max(state.max_ns, window.last_ns)
            state.windows[window.start_ns] = window
            self._schedule(state, window)
            if self._unflushed is not None and window.changed:
                self._unflushed[window.key, window.start_ns] = window
        if rules.key_ttl_ns is not None:
            self._expiry = [(state.max_ns, next(self._tie_break), state) for state in self._keys.values()]
            heapq.heapify(self._expiry)

    def _new_key(self, key: K, ts_ns: int) -> _KeyState[K]:
        state = self._keys[key] = _KeyState(key, ts_ns)
        if self._rules.key_ttl_ns is not None:
            heapq.heappush(self._expiry, (ts_ns, next(self._tie_break), state))
        return state

    def _join(self, state: _KeyState[K], start_ns: int, end_ns: int, ts_ns: int, value: T, watermark_ns: int) -> None:
        rules = self._rules
        window = state.windows.get(start_ns)
        if window is None:
            # With emit="final" a window is closed only when it is emitted, at the end of its retention.
            window = self._open(state, start_ns, end_ns, ts_ns, closed=end_ns <= watermark_ns and rules.emit == "eager")
        elif ts_ns < window.first_ns:
            window.first_ns = ts_ns
        elif ts_ns > window.last_ns:
            window.last_ns = ts_ns
        if self._folding is not None:
            window.state = self._folding.add(window.state, value)
        if self._keep is not None and window.items is not None:
            window.items.append(self._keep(value))
        window.count += 1
        window.changed = True
        if self._changes is not None:
            self._changes[state.key, start_ns] = window
        if window.closed:
            self._emit(window, "closed", "late")
            return
        if window.overdue:
            self._overdue_changed[state.key, start_ns] = window
        if self._unflushed is not None:
            self._unflushed[state.key, start_ns] = window

    def _open(self, state: _KeyState[K], start_ns: int, end_ns: int, ts_ns: int, *, closed: bool) -> Window[K]:
        window = Window(state.key, start_ns, end_ns, first_ns=ts_ns, last_ns=ts_ns, closed=closed)
        if self._folding is not None:
            window.state = self._folding.create()
        if self._keep is not None:
            window.items = []
        state.windows[start_ns] = window
        self._schedule(state, window)
        return window

    def _schedule(self, state: _KeyState[K], window: Window[K]) -> None:
        keep_ns = self._rules.lateness_ns if window.closed or self._rules.emit == "final" else 0
        due_ns = window.end_ns + keep_ns
        if self._rules.scope == "key":
            heapq.heappush(state.due, (due_ns, window.start_ns))
        else:
            heapq.heappush(self._due, (due_ns, next(self._tie_break), state, window.start_ns))
        if self._rules.idle_after_ns is not None and self._rules.emit == "eager" and not window.closed:
            heapq.heappush(self._idle_due, (window.end_ns, next(self._tie_break), window))

    def _close_key(self, state: _KeyState[K], watermark_ns: int) -> None:
        while state.due and state.due[0][0] <= watermark_ns:
            _, start_ns = heapq.heappop(state.due)
            again_ns = self._act(state, state.windows[start_ns], watermark_ns)
            if again_ns is not None:
                heapq.heappush(state.due, (again_ns, start_ns))

    def _close_partition(self, watermark_ns: int) -> None:
        while self._due and self._due[0][0] <= watermark_ns:
            _, _, state, start_ns = heapq.heappop(self._due)
            window = state.windows.get(start_ns)
            if window is None:
                continue  # its key expired
            again_ns = self._act(state, window, watermark_ns)
            if again_ns is not None:
                heapq.heappush(self._due, (again_ns, next(self._tie_break), state, start_ns))

    def _act(self, state: _KeyState[K], window: Window[K], watermark_ns: int) -> int | None:
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
        del state.windows[window.start_ns]
        self._drop(window)
        if not state.windows and self._rules.scope == "partition":
            del self._keys[state.key]  # its clock is the partition's: nothing is left to remember
        return None

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

    def _emit_rest(self, state: _KeyState[K], trigger: Trigger) -> None:
        for start_ns in sorted(state.windows):
            window = state.windows[start_ns]
            if not window.closed:
                self._emit(window, "final", trigger)
            self._drop(window)
        state.windows.clear()

    def _drop(self, window: Window[K]) -> None:
        window.dropped = True
        if self._changes is not None:
            self._changes[window.key, window.start_ns] = window

    def _emit(self, window: Window[K], status: Status, trigger: Trigger) -> None:
        result = self._folding.result(window.state) if self._folding is not None else {}
        items = tuple(window.items) if window.items is not None else None
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
            result,
            items,
        )
        self._emissions.append(emission)
        window.changed = False
        if status != "provisional":
            window.rev += 1
