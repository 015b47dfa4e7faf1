"""Where a partition that is opened reads on: state and group must agree, and the log must still have it."""

from __future__ import annotations

import asyncio

import pytest

from workers.errors import DataLossError, StateMismatchError
from workers.worker.opening import OffsetsDisagreeError, Origin, agreed_offset, side_by_side

EARLIEST = Origin("app", "ticks", "app-changelog", from_latest=False)
LATEST = Origin("app", "ticks", "app-changelog", from_latest=True)


@pytest.mark.parametrize(
    ("origin", "stored", "committed", "bounds", "expected"),
    [
        (EARLIEST, None, None, (3, 9), 3),  # a new group
        (LATEST, None, None, (3, 9), 9),
        (EARLIEST, None, 3, (3, 9), 3),  # as `workers state reset` leaves it
        (LATEST, 5, 5, (3, 9), 5),
        (EARLIEST, 5, None, (3, 9), 5),  # the group's offsets expired
        (EARLIEST, 3, 3, (3, 9), 3),
        (EARLIEST, 9, 9, (3, 9), 9),
    ],
)
def test_state_and_group_that_agree(
    origin: Origin, stored: int | None, committed: int | None, bounds: tuple[int, int], expected: int
) -> None:
    assert agreed_offset(origin, 0, stored, committed, bounds) == expected


@pytest.mark.parametrize(
    ("stored", "committed", "bounds", "error", "message"),
    [
        (None, 4, (3, 9), StateMismatchError, r"committed offset 4 of ticks\[7\], but app-changelog holds no state"),
        (None, 2, (3, 9), StateMismatchError, r"committed offset 2 of ticks\[7\], but app-changelog holds no state"),
        (5, 6, (3, 9), OffsetsDisagreeError, r"reflects offset 5 of ticks\[7\], but the group 'app' has committed 6"),
        (2, 2, (3, 9), DataLossError, r"ticks\[7\] begins at offset 3, but was processed only up to 2: 1 records"),
        (10, 10, (3, 9), StateMismatchError, r"offset 10 of ticks\[7\], which ends at 9: the topic was deleted"),
    ],
)
def test_what_does_not_agree_is_refused(
    stored: int | None, committed: int | None, bounds: tuple[int, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        agreed_offset(EARLIEST, 7, stored, committed, bounds)
    assert type(raised.value) is error


async def test_questions_are_asked_at_once() -> None:
    asked = asyncio.Barrier(3)

    async def answer(text: str) -> str:
        async with asyncio.timeout(10):
            await asked.wait()  # passed when all three are under way
        return text

    assert await side_by_side(answer("a"), answer("b"), answer("c")) == ("a", "b", "c")


async def test_when_a_question_fails_the_others_have_ended() -> None:
    ended = []

    async def unanswered(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # as what lets go of a connection
            ended.append(name)

    async def refused() -> None:
        await asyncio.sleep(0)
        raise OffsetsDisagreeError("no")

    with pytest.raises(OffsetsDisagreeError):
        await side_by_side(unanswered("first"), refused(), unanswered("third"))
    assert sorted(ended) == ["first", "third"]


async def test_whoever_is_cancelled_leaves_no_question_behind() -> None:
    ended = []

    async def unanswered(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    asking = asyncio.ensure_future(side_by_side(unanswered("a"), unanswered("b"), unanswered("c")))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert sorted(ended) == ["a", "b", "c"]
