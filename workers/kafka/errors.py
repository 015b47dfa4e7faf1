"""The Kafka client's errors that the rest of this package knows, under its own names, and sorted by what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    IllegalStateError,
    InvalidProducerIdMapping,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeout,
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownProducerId,
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
    "chain",
    "is_forgotten",
    "told",
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

PASSING: Final = (KafkaError, TimeoutError, OSError, AssertionError, IllegalOperation)
"""What may be over when it is tried again. The client asserts where its connections change under it, and its producer
calls what is asked of it illegal where its transaction has failed meanwhile."""

REFUSED: Final = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeout,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
"""Rights that are missing, and limits of the broker that settings exceed, which doesn't change by itself; in words by
`workers.kafka.refusals`. To be looked for first: these are among `PASSING`, too."""


def told(error: BaseException) -> str:
    """An error for a log: what it says, and what led to it, where it doesn't say that itself."""
    causes = (each for each in chain(error) if not isinstance(each, asyncio.CancelledError))
    return " from ".join(dict.fromkeys(map(repr, causes)))


def is_forgotten(error: BaseException) -> bool:
    """Whether the cluster has forgotten a producer that was idle for longer than ``transactional.id.expiration.ms``,
    as it should; a new one goes on."""
    return any(isinstance(each, InvalidProducerIdMapping | UnknownProducerId) for each in chain(error))


def chain(error: BaseException | None, *, implied: bool = False) -> Iterator[BaseException]:
    """The error and those that it was raised from, outermost first; with ``implied``, those too in whose handling it
    was raised. Bounded, since causes can form a ring."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or (error.__context__ if implied else None)
