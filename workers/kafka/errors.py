"""The Kafka client's errors that the rest of this package knows, under its own names, and sorted by what to do."""

from __future__ import annotations

from typing import Final

from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
)

from workers.errors import FencedError, WorkersError

__all__ = [
    "NEW_TOPIC",
    "NO_COORDINATOR_YET",
    "OUTAGE",
    "PASSING",
    "REFUSED",
    "GroupAuthorizationFailedError",
    "IllegalStateError",
    "KafkaError",
    "KafkaTimeoutError",
    "MessageSizeTooLargeError",
    "OffsetOutOfRangeError",
    "StaleMemberError",
    "TopicAuthorizationFailedError",
    "TransactionalIdAuthorizationFailed",
    "UnstableOffsetError",
]


class StaleMemberError(FencedError):
    """The group has gone on to another generation, or without this member: nothing of its transaction was taken."""


class UnstableOffsetError(KafkaError):  # type: ignore[misc]  # aiokafka is untyped
    """A transaction that may change the group's committed offset is not over."""


OUTAGE: Final = (WorkersError, KafkaError, OSError, TimeoutError)
"""What whoever only watches waits out: the cluster is away, or not as it should be, and may be well again later."""

NO_COORDINATOR_YET: Final = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)
"""What a coordinator's broker answers until it is one."""

NEW_TOPIC: Final = (LeaderNotAvailableError, NotLeaderForPartitionError, UnknownTopicOrPartitionError)
"""What a topic answers for a moment after it was made."""

PASSING: Final = (KafkaError, TimeoutError, OSError, AssertionError)
"""What may be over when it is tried again; the client asserts where its connections change under it."""

REFUSED: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed)
"""Rights that are missing, which doesn't change by itself. To be looked for first: these are among `PASSING`, too."""
