"""Opening a partition: its state restored, and where to read on, on which state and group must agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from workers.core.lane import Lane
from workers.core.snapshot import LaneMeta
from workers.errors import DataLossError, StateMismatchError

__all__ = ["OffsetsDisagreeError", "Origin", "agreed_offset", "restore", "side_by_side"]


A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class OffsetsDisagreeError(StateMismatchError):
    """State and group name different offsets. Not at once believed: a broker that has just recovered from a crash was
    seen to tell the group's offset of a transaction before it showed the transaction's changelog record."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where partitions come from: names for messages, and whether a new group begins at the end of the log."""

    application_id: str
    topic: str
    changelog: str
    from_latest: bool


def agreed_offset(
    origin: Origin, partition: int, stored: int | None, committed: int | None, bounds: tuple[int, int]
) -> int:
    """Where to read on: the stored state's offset, with which the group's ``committed`` must agree.

    ``bounds`` are the first offset that the log still has, and its end. Raises `OffsetsDisagreeError` and other
    `StateMismatchError`, and `DataLossError` where records were deleted unread.
    """
    where, application = f"{origin.topic}[{partition}]", origin.application_id
    begin, end = bounds
    if stored is None:
        if committed is not None and committed != begin:  # which is what a reset leaves
            raise StateMismatchError(
                f"the group {application!r} has committed offset {committed} of {where}, but "
                f"{origin.changelog} holds no state for it. Restore the changelog topic, or "
                "start over with `workers state reset`"
            )
        return end if origin.from_latest else begin
    if committed is not None and committed != stored:
        raise OffsetsDisagreeError(
            f"the stored state reflects offset {stored} of {where}, but the group "
            f"{application!r} has committed {committed}: the group's offsets were changed separately from the state. "
            f"Set them back, or drop both with `workers state reset`"
        )
    if stored < begin:
        raise DataLossError(
            f"{where} begins at offset {begin}, but was processed only up to {stored}: {begin - stored} records "
            "were deleted unread (the topic's retention is shorter than the outage). Start over with "
            "`workers state reset`, which reads what is left"
        )
    if stored > end:
        raise StateMismatchError(
            f"the stored state reflects offset {stored} of {where}, which ends at {end}: the topic was deleted and "
            f"recreated. Start over with `workers state reset`"
        )
    return stored


async def side_by_side(first: Awaitable[A], second: Awaitable[B], third: Awaitable[C]) -> tuple[A, B, C]:
    """What three questions to the cluster give, asked at once. Where one fails, the others have ended, too, when its
    error is raised: whoever tries again is alone."""
    tasks = (asyncio.ensure_future(first), asyncio.ensure_future(second), asyncio.ensure_future(third))
    try:
        one, two, three = await asyncio.gather(*tasks)
        return one, two, three
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def restore(
    lane: Lane, entries: Mapping[bytes, bytes], where: str, note_step: Callable[[str, float], object]
) -> LaneMeta | None:
    """In steps: heartbeats and the other partitions get their turn in between."""
    steps = lane.restore_in_steps(entries, where=where)
    while True:
        began_s = time.perf_counter()
        try:
            next(steps)
        except StopIteration as done:
            meta: LaneMeta | None = done.value
            return meta
        finally:
            note_step("restore", began_s)
        await asyncio.sleep(0)
