"""Clock jumps: a tick far ahead of all before it is held until its key's next tick says whether to believe it.

One wrong date ends a symbol: it moves that symbol's clock, and all that follows is late. No tick alone tells a wrong
date from the first trade after a weekend; the next one does.

    let through ──────▶ time             time + max_jump
    ────────────────────┼────────────────┼──────────────▶ event time of a tick
         goes on        │    goes on     │   is held

*Time* is the greatest event time let through, of any key: a key that comes back after a silence is not ahead of others
that went on. Before the first tick there is none, so the first is believed whatever it says.

*Held* is one tick of a key at most. Its key's next tick decides:

- it goes back by more than ``max_jump``, or to where it need not be held itself: the held tick is *contradicted*, and
  goes nowhere. (So a date that is off by a day is found with a ``max_jump`` of a day.) Going back by no more than
  ``disorder``, what ticks are out of order anyway, contradicts nothing;
- else it *confirms* it: the held tick goes on first, and then the next one is judged, which may be held itself.

A held tick also goes on, unconfirmed, once time comes within ``max_jump`` of it: by then it would not have been held.
Those that go on together do so in the order in which they came. What is let through moves time, which may let through
more of them.

So what happens depends on the log alone. The price: the first tick of a key behind a gap longer than ``max_jump`` waits
for the second, or for another key's second. Two wrong dates in a row that agree are believed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["Contradiction", "Judged", "JumpGuard", "Suspect"]

T = TypeVar("T")

_STALE_ENTRIES: Final = 64  # of the heap, beyond as many as are held, before it is made anew


@dataclass(frozen=True, slots=True)
class Suspect(Generic[T]):
    """A tick that is held, or was. ``order`` is its place in the log; ``item`` whatever the caller knows it by."""

    key: str
    ts_ns: int
    order: int
    item: T


class Contradiction(NamedTuple):
    """The tick that a held one was not believed for: the next of its key, which goes back."""

    ts_ns: int
    order: int


class Judged(NamedTuple, Generic[T]):
    """What is to be done with an item now: it goes on, or it is contradicted and does not."""

    item: T
    ts_ns: int
    contradicted_by: Contradiction | None = None


class JumpGuard(Generic[T]):
    """The rules of this module, for one partition, or one file; ``0 <= disorder_ns <= max_jump_ns``, which is above 0.

    `judge` is called for every tick in order, and gives back those that are decided by then, in the order in which they
    are to go on.
    """

    def __init__(self, max_jump_ns: int, disorder_ns: int = 0) -> None:
        if max_jump_ns <= 0 or not 0 <= disorder_ns <= max_jump_ns:
            raise ValueError(
                f"max_jump_ns is {max_jump_ns} and disorder_ns {disorder_ns}; expected max_jump_ns above 0, and "
                "disorder_ns from 0 to that"
            )
        self._max_jump_ns = max_jump_ns
        self._disorder_ns = disorder_ns
        self._held: dict[str, Suspect[T]] = {}
        self._waiting: list[tuple[int, int, str]] = []  # heap of (time, order, key); of what is no longer held, too
        self._changed: set[str] = set()
        self.clock_ns: int | None = None
        """The greatest event time let through; None before any."""

    def __len__(self) -> int:
        """How many are held."""
        return len(self._held)

    def held(self, key: str) -> Suspect[T] | None:
        """The key's tick that is held, if one is."""
        return self._held.get(key)

    def judge(self, key: str, ts_ns: int, order: int, item: T) -> list[Judged[T]]:
        """Judge the next tick, and what it decides of those held."""
        decided: list[Judged[T]] = []
        held = self._held.get(key)
        if held is not None:
            self._take_out(held)
            if self._contradicts(ts_ns, held):
                decided.append(Judged(held.item, held.ts_ns, Contradiction(ts_ns, order)))
            else:
                decided += _in_order([held, *self._move_time(held.ts_ns)])
        if self._is_ahead(ts_ns):
            self._hold(Suspect(key, ts_ns, order, item))
            return decided
        decided.append(Judged(item, ts_ns))
        if self.clock_ns is None or ts_ns > self.clock_ns:
            decided += _in_order(self._move_time(ts_ns))
        return decided

    def release_all(self) -> list[Judged[T]]:
        """Nothing more will come: what is held goes on, in the order in which it came."""
        rest = list(self._held.values())
        if rest:
            self.clock_ns = max(suspect.ts_ns for suspect in rest)  # each is ahead of what was let through
        self._changed.update(self._held)
        self._held.clear()
        self._waiting.clear()
        return list(_in_order(rest))

    def discard(self, key: str) -> None:
        """Forget the key's held tick: the caller knows what it was."""
        self._take_out(self._held[key])

    def put(self, key: str, item: T) -> None:
        """Have the key's held tick be another item, of the same time and order."""
        self._held[key] = replace(self._held[key], item=item)
        self._changed.add(key)

    def take_changed(self) -> Iterator[tuple[str, Suspect[T] | None]]:
        """The keys whose held tick is another than at the last call, with the one held now, in order of the keys."""
        changed = sorted(self._changed)
        self._changed.clear()
        for key in changed:
            yield key, self._held.get(key)

    @property
    def changes_waiting(self) -> int:
        """How many keys `take_changed` would give."""
        return len(self._changed)

    def load(self, clock_ns: int | None, suspects: Iterable[Suspect[T]]) -> None:
        """Take over what was held. Only for a new guard."""
        self.clock_ns = clock_ns
        self._held = {suspect.key: suspect for suspect in suspects}
        self._renew_heap()

    def _is_ahead(self, ts_ns: int) -> bool:
        return self.clock_ns is not None and ts_ns - self.clock_ns > self._max_jump_ns

    def _contradicts(self, ts_ns: int, held: Suspect[T]) -> bool:
        back_ns = held.ts_ns - ts_ns
        return back_ns > self._max_jump_ns or (back_ns > self._disorder_ns and not self._is_ahead(ts_ns))

    def _hold(self, suspect: Suspect[T]) -> None:
        self._held[suspect.key] = suspect
        self._changed.add(suspect.key)
        heapq.heappush(self._waiting, (suspect.ts_ns, suspect.order, suspect.key))

    def _take_out(self, suspect: Suspect[T]) -> None:
        del self._held[suspect.key]
        self._changed.add(suspect.key)
        if len(self._waiting) > 2 * len(self._held) + _STALE_ENTRIES:  # those of far times would stay for good
            self._renew_heap()

    def _renew_heap(self) -> None:
        self._waiting = [(suspect.ts_ns, suspect.order, suspect.key) for suspect in self._held.values()]
        heapq.heapify(self._waiting)

    def _move_time(self, ts_ns: int) -> list[Suspect[T]]:
        """Let time reach ``ts_ns``, and take out the held that are near by then, and those that are near these."""
        clock_ns = ts_ns if self.clock_ns is None else max(self.clock_ns, ts_ns)
        near: list[Suspect[T]] = []
        while self._waiting and self._waiting[0][0] - clock_ns <= self._max_jump_ns:
            held_ns, order, key = heapq.heappop(self._waiting)
            held = self._held.get(key)
            if held is None or held.order != order:
                continue  # it was decided since
            self._take_out(held)
            near.append(held)
            clock_ns = max(clock_ns, held_ns)
        self.clock_ns = clock_ns
        return near


def _in_order(suspects: list[Suspect[T]]) -> Iterator[Judged[T]]:
    for suspect in sorted(suspects, key=attrgetter("order")):
        yield Judged(suspect.item, suspect.ts_ns)
