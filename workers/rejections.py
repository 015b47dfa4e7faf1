"""Noticing that nothing of what comes in is a tick, which is mostly a setting that is forgotten or wrong.

Each such record is in the dead letters with its reason; but who starts a worker looks at its log first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from workers.lane import Effects
from workers.ledger import MESSAGE_HEADER, REASON_HEADER

__all__ = ["AllRejected", "RejectionWatch"]

WORTH_SAYING_RECORDS: Final = 100
SAID_EVERY_S: Final = 60.0


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
            self._messages[headers[REASON_HEADER].decode()] = headers[MESSAGE_HEADER].decode("utf-8", "replace")
        if self._records < WORTH_SAYING_RECORDS:
            return None
        if self._said_s is not None and now_s - self._said_s < SAID_EVERY_S:
            return None
        self._said_s = now_s
        [(reason, number)] = self._reasons.most_common(1)
        return AllRejected(self._records, number, reason, self._messages[reason])
