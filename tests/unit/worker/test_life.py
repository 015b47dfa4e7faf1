"""The life of a partition: every phase with every event, and what is promised of all of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.worker.life import TABLE, Action, Life, LifeError, LifeEvent, Phase, after

OPENING, RUNNING, SUSPENDED, CLOSED = Phase.OPENING, Phase.RUNNING, Phase.SUSPENDED, Phase.CLOSED
CLOSE = (CLOSED, (Action.CLOSE,))
DISCARD = (CLOSED, (Action.DISCARD,))

# What is to become of each, written by hand and not taken from the table. None: it can't be.
EXPECTED = {
    (OPENING, LifeEvent.OPENED): (RUNNING, (Action.COMMIT_WHEN_DUE, Action.START_READING)),
    (OPENING, LifeEvent.OPENED_UNOWNED): (SUSPENDED, (Action.COMMIT_WHEN_DUE,)),
    (OPENING, LifeEvent.OPENING_FAILED): (OPENING, (Action.DISCARD,)),
    (OPENING, LifeEvent.REVOKED): (OPENING, ()),
    (OPENING, LifeEvent.ASSIGNED): (OPENING, ()),
    (OPENING, LifeEvent.LOST): CLOSE,
    (OPENING, LifeEvent.COMMIT_FAILED): None,
    (OPENING, LifeEvent.STOPPED): CLOSE,
    (RUNNING, LifeEvent.OPENED): None,
    (RUNNING, LifeEvent.OPENED_UNOWNED): None,
    (RUNNING, LifeEvent.OPENING_FAILED): None,
    (RUNNING, LifeEvent.REVOKED): (SUSPENDED, ()),
    (RUNNING, LifeEvent.ASSIGNED): (RUNNING, (Action.START_READING,)),
    (RUNNING, LifeEvent.LOST): CLOSE,
    (RUNNING, LifeEvent.COMMIT_FAILED): (OPENING, (Action.STOP_READING, Action.DISCARD, Action.OPEN)),
    (RUNNING, LifeEvent.STOPPED): CLOSE,
    (SUSPENDED, LifeEvent.OPENED): None,
    (SUSPENDED, LifeEvent.OPENED_UNOWNED): None,
    (SUSPENDED, LifeEvent.OPENING_FAILED): None,
    (SUSPENDED, LifeEvent.REVOKED): (SUSPENDED, ()),
    (SUSPENDED, LifeEvent.ASSIGNED): (RUNNING, (Action.START_READING,)),
    (SUSPENDED, LifeEvent.LOST): CLOSE,
    (SUSPENDED, LifeEvent.COMMIT_FAILED): DISCARD,
    (SUSPENDED, LifeEvent.STOPPED): CLOSE,
    (CLOSED, LifeEvent.OPENED): DISCARD,
    (CLOSED, LifeEvent.OPENED_UNOWNED): DISCARD,
    (CLOSED, LifeEvent.OPENING_FAILED): DISCARD,
    (CLOSED, LifeEvent.REVOKED): (CLOSED, ()),
    (CLOSED, LifeEvent.ASSIGNED): (CLOSED, (Action.CLOSE, Action.REPLACE)),
    (CLOSED, LifeEvent.LOST): CLOSE,
    (CLOSED, LifeEvent.COMMIT_FAILED): DISCARD,
    (CLOSED, LifeEvent.STOPPED): CLOSE,
}


def test_every_phase_with_every_event_is_decided_here() -> None:
    assert set(EXPECTED) == set(itertools.product(Phase, LifeEvent))


@pytest.mark.parametrize(("phase", "event"), EXPECTED, ids=lambda each: each.name.lower())
def test_each_phase_takes_each_event(phase: Phase, event: LifeEvent) -> None:
    assert after(phase, event) == EXPECTED[phase, event]
    life = Life()
    life.phase = phase
    expected = EXPECTED[phase, event]
    if expected is None:
        with pytest.raises(LifeError, match=f"that is {phase.value} can't be told '{event.value}'"):
            life.on(event)
        assert life.phase is phase
    else:
        assert life.on(event) == expected[1]
        assert life.phase is expected[0]


def test_what_can_not_be_is_told_with_what_came_before() -> None:
    life = Life()
    life.on(LifeEvent.OPENED)
    life.on(LifeEvent.REVOKED)
    with pytest.raises(LifeError, match=r"is suspended can't be told 'opened'; before: opened, revoked"):
        life.on(LifeEvent.OPENED)


def test_every_action_is_asked_for_or_is_the_backlogs() -> None:
    asked = {action for events in TABLE.values() for _, actions in events.values() for action in actions}
    assert set(Action) - asked == {Action.PAUSE, Action.RESUME}


@given(st.lists(st.sampled_from(list(LifeEvent)), max_size=40))
def test_whatever_happens_one_opening_is_under_way_at_a_time_and_closed_is_for_ever(events: list[LifeEvent]) -> None:
    """The producer, the tasks and the reading that the actions leave behind, over any history."""
    life = Life()
    opening, reading = True, False  # whoever makes a partition opens it
    for event in events:
        before = life.phase
        if after(before, event) is None:
            continue
        if event in (LifeEvent.OPENED, LifeEvent.OPENED_UNOWNED):
            if not opening:
                continue  # nobody is there to tell it
            opening = False
        for action in life.on(event):
            if action is Action.OPEN:
                assert not opening, "two tasks make the same producer"
                opening = True
            elif action is Action.CLOSE:
                opening = reading = False
            elif action is Action.START_READING:
                reading = True
            elif action in (Action.STOP_READING, Action.DISCARD):
                reading = False
        assert before is not CLOSED or life.phase is CLOSED
        assert (life.phase is RUNNING) <= reading, "a lane that runs gets its records"
        assert not (life.phase is OPENING and reading), "records without a lane"
        assert (life.phase is OPENING) <= opening, "nobody opens it"
