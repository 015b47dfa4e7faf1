"""The Kafka client's errors that the rest of this package knows, under its own names, and sorted by what to do."""

from __future__ import annotations

from typing import Final

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    IllegalStateError,
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
    UnknownTopicOrPartitionError,
)

from workers.errors import WorkersError

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
    "TopicAuthorizationFailedError",
    "TransactionalIdAuthorizationFailed",
]

OUTAGE: Final = (WorkersError, KafkaError, OSError, TimeoutError)
"""What whoever only watches waits out: the cluster is away, or not as it should be, and may be well again later."""

NO_COORDINATOR_YET: Final = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)
"""What a coordinator's broker answers until it is one."""

NEW_TOPIC: Final = (LeaderNotAvailableError, NotLeaderForPartitionError, UnknownTopicOrPartitionError)
"""What a topic answers for a moment after it was made."""

PASSING: Final = (KafkaError, TimeoutError, OSError, AssertionError)
"""What may be over when it is tried again; the client asserts where its connections change under it."""

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
