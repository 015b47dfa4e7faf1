"""Where a partition that is opened reads on: state and group must agree, and the log must still have it."""

from __future__ import annotations

import pytest

from workers.errors import DataLossError, StateMismatchError
from workers.worker.opening import OffsetsDisagreeError, Origin, agreed_offset

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
