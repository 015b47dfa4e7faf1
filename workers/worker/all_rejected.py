"""Noticing that nothing of what comes in is a tick, which is mostly a setting that is forgotten or wrong.

Each such record is in the dead letters with its reason; but who starts a worker looks at its log first. And saying what
made this program fail of a record, which is worth a traceback, but not one for each of a million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from workers.core.failures import Failure
from workers.core.lane import Effects
from workers.core.ledger import MESSAGE_HEADER, REASON_HEADER
from workers.core.reasons import Reason

__all__ = ["AllRejected", "FailureWatch", "RejectionWatch"]

WORTH_SAYING_RECORDS: Final = 100
SAID_EVERY_S: Final = 60.0
FAILURE_SAID_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class AllRejected:
    """All of the last ``records`` of a partition were rejected, ``number`` for ``reason``; ``message`` is of one."""

    records: int
    number: int
    reason: str
    message: str

    @property
    def text(self) -> str:
        """As a log says it."""
        most = f", {self.number:,} of them" if self.number < self.records else ""
        return f"all of the last {self.records:,} records were rejected{most} as {self.reason}: {self.message}"


class RejectionWatch:
    """Looks at what a partition's lane made of its records, and tells when it was nothing but rejections."""

    def __init__(self) -> None:
        self._records = 0
        self._reasons: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._said_s: float | None = None

    def note(self, effects: Effects, now_s: float) -> AllRejected | None:
        """Take the effects of the next records; ``now_s`` is monotonic. Something to say at most once a minute."""
        if not effects.records:
            return None
        if sum(effects.rejected.values()) < effects.records:
            if self._records:
                self._records, self._reasons, self._messages = 0, Counter(), {}
            return None
        self._records += effects.records
        self._reasons.update(effects.rejected)
        for letter in effects.dead_letters:
            headers = dict(letter.headers)  # ours come after those that the record had
            name, message = headers[REASON_HEADER] or b"", headers[MESSAGE_HEADER] or b""
            self._messages[name.decode()] = message.decode("utf-8", "replace")
        if self._records < WORTH_SAYING_RECORDS:
            return None
        if self._said_s is not None and now_s - self._said_s < SAID_EVERY_S:
            return None
        self._said_s = now_s
        [(reason, number)] = self._reasons.most_common(1)
        return AllRejected(self._records, number, reason, self._messages[reason])


class FailureWatch:
    """Picks what is said of a partition's records that could not be processed: one every ten seconds."""

    def __init__(self) -> None:
        self._unsaid = 0
        self._said_s: float | None = None

    def note(self, effects: Effects, now_s: float) -> Iterator[tuple[Failure, int]]:
        """A failure worth saying, and how many others there were since the last that was said."""
        self._unsaid += effects.rejected.get(Reason.PROCESSING_FAILED, 0)
        if not effects.failures or (self._said_s is not None and now_s - self._said_s < FAILURE_SAID_EVERY_S):
            return
        others, self._unsaid, self._said_s = self._unsaid - 1, 0, now_s
        yield effects.failures[0], others
