"""Every error this package raises on purpose.

    WorkersError                    anything a user can act on
    ├── ConfigError                 a setting is unknown, malformed or impossible with another one
    │   └── StateMismatchError      stored state is of other settings or topics than those given, or not whole
    │       └── TopicReplacedError  a topic was deleted and made again under a running worker
    ├── StateFormatError            stored state is of a newer or foreign format, or damaged
    ├── BrokerError                 the cluster can't be reached, refuses the credentials, lacks a topic
    │   ├── BrokerUnavailableError  no broker could be found or started for a test or demo
    │   └── TopicError              a topic is missing or has the wrong shape
    ├── DataLossError               the log no longer holds records that were never processed
    ├── FencedError                 another worker owns the partition now; nothing of ours was committed
    ├── ChannelClosed               a channel was closed and is drained, or was put to after close
    └── CallbackError               a user's callable raised; the original is its ``__cause__``

Bad *records* are never exceptions: they are values (`workers.core.ticks.Rejection`), because a record must not be able
to end a worker.
"""

from __future__ import annotations

__all__ = [
    "BrokerError",
    "BrokerUnavailableError",
    "CallbackError",
    "ChannelClosed",
    "ConfigError",
    "DataLossError",
    "FencedError",
    "StateFormatError",
    "StateMismatchError",
    "TopicError",
    "TopicReplacedError",
    "WorkersError",
]


class WorkersError(Exception):
    """Base of all errors raised on purpose; the message says what, where, what was expected and what was found."""


class ConfigError(WorkersError):
    """A setting is unknown, malformed, or impossible together with another."""


class StateMismatchError(ConfigError):
    """Stored state was written under settings that give windows another meaning, is of another topic, or not whole."""


class TopicReplacedError(StateMismatchError):
    """A topic was deleted and made again while it was used: nothing more may be committed."""


class StateFormatError(WorkersError):
    """Stored state can't be read: newer or foreign format, or damaged."""


class BrokerError(WorkersError):
    """The Kafka cluster can't be used as asked."""


class BrokerUnavailableError(BrokerError):
    """No broker could be found or started."""


class TopicError(BrokerError):
    """A topic is missing or its shape (partitions, cleanup policy) is wrong."""


class DataLossError(WorkersError):
    """The log no longer holds records that were never processed."""


class FencedError(WorkersError):
    """Another worker has taken the partition over; nothing more of ours can be committed."""


class ChannelClosed(WorkersError):
    """The channel is closed: for ``get``, also drained; for ``put``, nothing was added."""


class LaneError(WorkersError):
    """A native lane failed, for a fault of this program; it was discarded, and nothing of what it did was committed."""


class CallbackError(WorkersError):
    """A callable supplied by the user raised; the original exception is the ``__cause__``."""
