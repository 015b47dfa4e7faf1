"""What a cluster refuses for good, in the user's words: who lacks which right, or which limit of the broker is too low,
and the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeout,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from workers.errors import BrokerError
from workers.kafka.acls import allowing, principal, worker_topics

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["refusal"]


def refusal(error: KafkaError, settings: Settings) -> BrokerError:
    """What to raise for an error that is one of `workers.kafka.errors.REFUSED`."""
    group, who = settings.application_id, principal(settings)
    if isinstance(error, InvalidTransactionTimeout):
        return BrokerError(
            f"the broker refuses kafka.transaction.timeout.ms = {settings.kafka.transaction_timeout_ms} "
            f"({settings.source_of('kafka.transaction.timeout.ms')}): it is more than the broker's "
            "transaction.max.timeout.ms. Lower the one, or raise the other, in each broker's configuration"
        )
    if isinstance(error, InvalidSessionTimeoutError):
        return BrokerError(
            f"the broker refuses kafka.session.timeout.ms = {settings.kafka.session_timeout_ms} "
            f"({settings.source_of('kafka.session.timeout.ms')}): it is not between the broker's "
            "group.min.session.timeout.ms and group.max.session.timeout.ms. Change the one, or the others, in each "
            "broker's configuration"
        )
    if isinstance(error, TransactionalIdAuthorizationFailed):
        # Of what a coordinator answers, that is also what it says of an id that it may not describe.
        command = allowing(settings, ("Write",), f"--transactional-id {group}- --resource-pattern-type prefixed")
        return BrokerError(f"{who} may not write with transactional ids {group}-*. Allow it: {command}")
    if isinstance(error, GroupAuthorizationFailedError):
        command = allowing(settings, ("Read",), f"--group {group}")
        return BrokerError(f"{who} may not read in the group {group}. Allow it: {command}")
    if isinstance(error, TopicAuthorizationFailedError):
        return _topic_refusal(error, settings)
    return BrokerError(f"the cluster at {settings.bootstrap_servers} denied this to {who}: {error!r}; check its ACLs")


def _topic_refusal(error: TopicAuthorizationFailedError, settings: Settings) -> BrokerError:
    needed = worker_topics(settings)
    said = " ".join(str(argument) for argument in error.args)
    # The client names topics within other words, or names none: then all that could be meant are shown.
    named = sorted((name for name in needed if name in said), key=len)[-1:] or [name for name in needed if not said]
    if not named:
        return BrokerError(
            f"the cluster at {settings.bootstrap_servers} denied {principal(settings)} a topic: {said}; check its ACLs"
        )
    commands = "; ".join(allowing(settings, needed[name], f"--topic {name}") for name in named)
    rights = ", ".join(f"{' and '.join(needed[name])} on topic {name}" for name in named)
    return BrokerError(f"{principal(settings)} lacks {rights}. Allow it: {commands}")
