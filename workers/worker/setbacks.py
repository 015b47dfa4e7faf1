"""Commits of a partition that fail one after another: how long to rest before the next attempt, and when to give up.

Only rests end by themselves: a broker that is away comes back. A topic that refuses what was shrunk to fit it does not.
"""

from __future__ import annotations

from typing import Final

from workers.errors import TopicError
from workers.kafka.backoff import Backoff
from workers.kafka.ports import DEFAULT_MAX_MESSAGE_BYTES, OversizedError

__all__ = ["MAX_BACKOFF_S", "Setbacks"]

MAX_BACKOFF_S: Final = 5.0
REFUSALS: Final = 3  # in a row; after the first the topics are asked again what they take


class Setbacks:
    """What went wrong since the last commit that did not: ``rest_s`` is to be waited before the partition is opened
    again, nothing after the first failure."""

    def __init__(self) -> None:
        self.rest_s = 0.0
        self._backoff = Backoff(0.1, MAX_BACKOFF_S)
        self._failed = self._refused = 0

    def note(self, error: BaseException) -> None:
        """A commit failed. Raises `TopicError` where its topic has refused what is written again and again."""
        self._failed += 1
        if self._failed > 1:
            self.rest_s = self._backoff.grow()
        self._refused = self._refused + 1 if isinstance(error, OversizedError) else 0
        if isinstance(error, OversizedError) and self._refused == REFUSALS:
            raise TopicError(
                f"{error.topic} has refused a record as too large {REFUSALS} times in a row, the last when its "
                f"max.message.bytes was {error.limit_bytes}. State can't be shrunk, other records no further than to "
                f"their reason. Nothing is lost: raise the limit with kafka-configs --alter --topic {error.topic} "
                f"--add-config max.message.bytes={DEFAULT_MAX_MESSAGE_BYTES} and start again"
            ) from error
