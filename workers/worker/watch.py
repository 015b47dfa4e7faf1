"""What operators do to topics under a running worker: seen within seconds, decided here without I/O.

| what was done | what follows |
|---|---|
| the ticks topic or the changelog was deleted and made again | the worker ends, and commits nothing more |
| one of them was deleted, and stays away | a warning, and the worker ends after `MISSING_LIMIT_S` |
| partitions were added to the ticks topic | the worker ends: keys have moved |
| records were deleted from the changelog | the partition is restored, which says whether the state is still whole |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from workers.core.snapshot import TopicIdentity
from workers.errors import TopicError, TopicReplacedError
from workers.kafka.ports import Sighting

__all__ = ["MISSING_LIMIT_S", "TopicWatch", "partitions_added"]

log = structlog.get_logger(__name__)

MISSING_LIMIT_S: Final = 30.0  # a broker that starts may not know of a topic for a moment


def partitions_added(topic: str, known: int, found: int) -> TopicError:
    """What to raise where the ticks topic has more partitions than its state began with."""
    return TopicError(
        f"{topic} now has {found} partitions, and had {known} when its state began: its keys have moved between "
        f"partitions. Stop all workers and move the state with `workers state rescale --partitions {found}`, or drop "
        "it with `workers state reset`"
    )


class TopicWatch:
    """The topics as they were found at the start, held against what is seen later."""

    def __init__(self, identities: Mapping[str, TopicIdentity], input_partitions: int) -> None:
        self._identities = identities
        self._input_partitions = input_partitions
        self._missing_since_s: dict[str, float] = {}
        self._begins: dict[int, int] = {}  # of the changelog's partitions that are owned

    def note(self, seen: Sighting, now_s: float) -> Sequence[tuple[int, str]]:
        """Take a sighting; the partitions whose state is in doubt, each with the reason.

        Raises `TopicReplacedError` where a topic is another one, `TopicError` where one is gone for good or keys have
        moved.
        """
        for role, known in self._identities.items():
            self._compare(role, known, seen.identities.get(role), now_s)
        if "ticks" in seen.identities and seen.input_partitions > self._input_partitions:
            raise partitions_added(self._identities["ticks"].name, self._input_partitions, seen.input_partitions)
        doubts = [
            (
                number,
                f"{self._identities['changelog'].name}[{number}] begins at offset {begin:,}, and began at "
                f"{self._begins[number]:,} before: records were deleted from it",
            )
            for number, begin in seen.changelog_begins.items()
            if begin > self._begins.get(number, begin)
        ]
        self._begins = dict(seen.changelog_begins)
        return doubts

    def _compare(self, role: str, known: TopicIdentity, found: TopicIdentity | None, now_s: float) -> None:
        if found is None:
            self._missing(role, known, now_s)
            return
        self._missing_since_s.pop(role, None)
        if known.id is not None and found.id is not None and known.id != found.id:
            raise TopicReplacedError(
                f"the topic {known.name} was deleted and made again while it was in use (its id was {known.id}, is "
                f"{found.id}); what was not committed by then is dropped. {_MENDED[role]}"
            )

    def _missing(self, role: str, known: TopicIdentity, now_s: float) -> None:
        since_s = self._missing_since_s.get(role)
        if since_s is None:
            self._missing_since_s[role] = now_s
            log.warning("the topic is gone: deleted, or not shown to this user any more", topic=known.name)
        elif now_s - since_s >= MISSING_LIMIT_S:
            raise TopicError(
                f"the topic {known.name} has been gone for {MISSING_LIMIT_S:.0f} s: it was deleted, or this user may "
                "not see it any more (its ACLs). If it was deleted, make it with `workers topics create`. "
                f"{_MENDED[role]}"
            )


_MENDED: Final = {
    "ticks": "Drop the state with `workers state reset`: then all that the topic holds is processed from its beginning",
    "changelog": "Put back a whole copy of it, or drop the state with `workers state reset`: then what the ticks topic "
    "still holds is processed again",
}
