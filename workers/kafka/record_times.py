"""Times of records that a topic refuses: how far ahead of its brokers' clocks they may be, and what is said of it.

Since Kafka 4.0 brokers refuse, by default, records that are stamped more than an hour ahead of their clocks. Frames
carry event times, and what has none the time of this host's clock; so topics that are made here take any time, and of
others the limit is looked at when a worker starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from workers.errors import BrokerError
from workers.kafka.ports import OutTopic
from workers.times import NS_PER_MS, format_duration

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["ANY_TIME", "ahead_limit_ms", "refused_time_error", "too_near"]

_AFTER_MAX: Final = "message.timestamp.after.max.ms"
_NO_LIMIT: Final = 2**63 - 1
ANY_TIME: Final[Mapping[str, str]] = {_AFTER_MAX: str(_NO_LIMIT), "message.timestamp.before.max.ms": str(_NO_LIMIT)}
"""The configuration of a topic that takes records of any time. Brokers before Kafka 3.6 don't know it and need none."""


def ahead_limit_ms(config: Mapping[str, str]) -> int | None:
    """How far ahead of its brokers' clocks a topic takes records; None: as far as may be, or the cluster doesn't tell.

    ``config`` is what the cluster tells of the topic.
    """
    limit = int(config.get(_AFTER_MAX, _NO_LIMIT))
    return None if limit == _NO_LIMIT or config.get("message.timestamp.type") == "LogAppendTime" else limit


def too_near(frames: OutTopic, settings: Settings) -> str | None:
    """What to say of a frames topic that would refuse the frames of ticks that are taken; None where it takes them."""
    limit_ms, ahead_ns = frames.ahead_limit_ms, settings.tick.max_future_skew
    if limit_ms is None or limit_ms * NS_PER_MS >= ahead_ns or settings.tick.format == "frames":
        return None
    return (
        f"{frames.name} refuses records more than {_words(limit_ms)} ahead of its brokers' clocks ({_AFTER_MAX} = "
        f"{limit_ms}), but tick.max_future_skew takes ticks {format_duration(ahead_ns)} ahead: their frames can't be "
        f"written. {_mend(frames.name, settings.bootstrap_servers)}"
    )


def refused_time_error(topic: OutTopic, bootstrap_servers: object) -> BrokerError:
    """What a topic's refusal of a record for its time means."""
    limit_ms = topic.ahead_limit_ms
    found = f"{_AFTER_MAX} = {limit_ms}, {_words(limit_ms)}" if limit_ms is not None else _AFTER_MAX
    return BrokerError(
        f"{topic.name} refuses a record for its time: it is further ahead of the brokers' clocks than the topic allows "
        f"({found}), or further behind than its message.timestamp.before.max.ms. Either the clock of this host or of "
        f"the ticks is ahead, or the topic allows too little. {_mend(topic.name, bootstrap_servers)}"
    )


def _mend(topic: str, bootstrap_servers: object) -> str:
    configs = ",".join(f"{name}={value}" for name, value in ANY_TIME.items())
    return (
        f"Set it with kafka-configs --bootstrap-server {bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {topic} --add-config {configs}"
    )


def _words(limit_ms: int) -> str:
    return format_duration(limit_ms * NS_PER_MS)
