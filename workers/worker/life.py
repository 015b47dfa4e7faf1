"""The life of an owned partition, as a table: in which phase which event leads where, and what is to be done then.

    OPENING ──opened──▶ RUNNING ◀──assigned── SUSPENDED
       ▲                 │  │ ───revoked────▶    │
       └─commit failed───┘  └───lost, stopped────┴──▶ CLOSED

Three rules are in it:

- A commit that fails takes the partition back to OPENING, where lane and producer are made again from what was
  committed. Failing while a rebalance is under way it closes: the partition may be another worker's by now.
- A partition that a rebalance took and gave back keeps its lane and reads on.
- CLOSED is for ever. What comes home late, such as a state that was still being restored, is thrown away.

What can't be has no place in the table; `Life.on` raises `LifeError`, with the events that led there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Final

__all__ = ["TABLE", "Action", "Actions", "Life", "LifeError", "LifeEvent", "Phase", "after"]

REMEMBERED: Final = 20  # events, for the message of a `LifeError`


class Phase(Enum):
    """Where an owned partition is in its life."""

    OPENING = "opening"  # producer and state are being made
    RUNNING = "running"
    SUSPENDED = "suspended"  # a rebalance is under way: it may come back
    CLOSED = "closed"


class LifeEvent(Enum):
    """What happens to a partition."""

    OPENED = "opened"  # its state is restored, and it is owned
    OPENED_UNOWNED = "opened while a rebalance is under way"  # whose end decides
    OPENING_FAILED = "opening failed"
    REVOKED = "revoked"  # a rebalance begins
    ASSIGNED = "assigned"  # a rebalance gave it to this process
    LOST = "lost"  # a rebalance gave it to another
    COMMIT_FAILED = "commit failed"
    STOPPED = "stopped"  # the worker ends, or a commit took too long


class Action(Enum):
    """What is to be done, in the order given."""

    OPEN = "make producer and lane, until it works or the phase is another"
    COMMIT_WHEN_DUE = "begin to commit what is processed"
    START_READING = "read from the offset behind what is here"
    STOP_READING = "read nothing more"
    PAUSE = "fetch no more for now"
    RESUME = "fetch again"
    DISCARD = "throw lane, backlog, results and producer away"
    CLOSE = "end all tasks, and discard"
    REPLACE = "begin another life for the partition"


Actions = tuple[Action, ...]

_O, _R, _S, _C = Phase.OPENING, Phase.RUNNING, Phase.SUSPENDED, Phase.CLOSED
_NOTHING: Final[Actions] = ()

TABLE: Final[Mapping[Phase, Mapping[LifeEvent, tuple[Phase, Actions]]]] = {
    _O: {
        LifeEvent.OPENED: (_R, (Action.COMMIT_WHEN_DUE, Action.START_READING)),
        LifeEvent.OPENED_UNOWNED: (_S, (Action.COMMIT_WHEN_DUE,)),
        LifeEvent.OPENING_FAILED: (_O, (Action.DISCARD,)),
        LifeEvent.REVOKED: (_O, _NOTHING),  # opening waits until the partition is owned again
        LifeEvent.ASSIGNED: (_O, _NOTHING),
        LifeEvent.LOST: (_C, (Action.CLOSE,)),
        LifeEvent.STOPPED: (_C, (Action.CLOSE,)),
        # COMMIT_FAILED: there is nothing to commit, and the one commit that ran is what led here.
    },
    _R: {
        LifeEvent.REVOKED: (_S, _NOTHING),
        LifeEvent.ASSIGNED: (_R, (Action.START_READING,)),  # a rebalance lost positions and pauses
        LifeEvent.LOST: (_C, (Action.CLOSE,)),
        LifeEvent.COMMIT_FAILED: (_O, (Action.STOP_READING, Action.DISCARD, Action.OPEN)),
        LifeEvent.STOPPED: (_C, (Action.CLOSE,)),
        # OPENED, OPENED_UNOWNED, OPENING_FAILED: what opened it has ended.
    },
    _S: {
        LifeEvent.REVOKED: (_S, _NOTHING),
        LifeEvent.ASSIGNED: (_R, (Action.START_READING,)),
        LifeEvent.LOST: (_C, (Action.CLOSE,)),
        LifeEvent.COMMIT_FAILED: (_C, (Action.DISCARD,)),  # reading is not stopped: the number may be another life's
        LifeEvent.STOPPED: (_C, (Action.CLOSE,)),
        # OPENED, OPENED_UNOWNED, OPENING_FAILED: what opened it has ended.
    },
    _C: {
        LifeEvent.OPENED: (_C, (Action.DISCARD,)),
        LifeEvent.OPENED_UNOWNED: (_C, (Action.DISCARD,)),
        LifeEvent.OPENING_FAILED: (_C, (Action.DISCARD,)),
        LifeEvent.REVOKED: (_C, _NOTHING),
        LifeEvent.ASSIGNED: (_C, (Action.CLOSE, Action.REPLACE)),
        LifeEvent.LOST: (_C, (Action.CLOSE,)),
        LifeEvent.COMMIT_FAILED: (_C, (Action.DISCARD,)),
        LifeEvent.STOPPED: (_C, (Action.CLOSE,)),
    },
}


class LifeError(RuntimeError):
    """An event that can't be in this phase: a fault of this program."""


def after(phase: Phase, event: LifeEvent) -> tuple[Phase, Actions] | None:
    """The phase after the event, and what is to be done; None for what can't be."""
    return TABLE[phase].get(event)


class Life:
    """The phase of one partition, and the latest of what led there."""

    def __init__(self) -> None:
        self.phase = Phase.OPENING
        self._past: deque[LifeEvent] = deque(maxlen=REMEMBERED)

    def on(self, event: LifeEvent) -> Actions:
        """Take an event; what is to be done. Raises `LifeError` for what can't be."""
        found = after(self.phase, event)
        if found is None:
            past = ", ".join(each.value for each in self._past) or "nothing"
            raise LifeError(f"a partition that is {self.phase.value} can't be told {event.value!r}; before: {past}")
        self._past.append(event)
        self.phase, actions = found
        return actions
