"""The client's errors, by what is done about them."""

from __future__ import annotations

from typing import Final

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

__all__ = ["FROM_CLIENT", "PASSING", "REFUSED"]

FROM_CLIENT: Final = KafkaError
"""Whatever the cluster or the client says."""

PASSING: Final = (KafkaError, TimeoutError, OSError, AssertionError)
"""What may be over when it is tried again; the client asserts where its connections change under it."""

REFUSED: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed)
"""What will not change by itself: rights that are missing. To be looked for before the others, which include it."""
