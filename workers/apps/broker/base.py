"""What every way of getting a broker has in common: the handle, the pinned version, the settings of a test node."""

from __future__ import annotations

import os
import random
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from workers.errors import BrokerError

__all__ = [
    "KAFKA_VERSION",
    "NODE_PROPERTIES",
    "Broker",
    "BrokerWay",
    "GivenBroker",
    "free_ports",
    "heap_options",
    "say",
]

BrokerWay = Literal["env", "docker", "jvm"]

KAFKA_VERSION: Final = "4.3.1"
"""The Apache Kafka that tests, demos and benchmarks run on, in Docker or not; ``pom.xml`` names the same."""

NODE_PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # One node replicates to nobody.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Each partition of these is a folder of files to create before the first commit is answered.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.num.partitions": "1",
        # A misspelt topic is an error, as it should be in production.
        "auto.create.topics.enable": "false",
        # Tests kill members and transactions and wait for the broker to notice.
        "group.initial.rebalance.delay.ms": "0",
        "group.streams.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        # A node killed and started again may register only when its former self's session is over: 9 s by default.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # Kafka deletes by the records' own times: by default, ticks of last year go within minutes of being sent, when
        # the broker next looks. Topics that must keep less say so.
        "log.retention.ms": "-1",
        # The default takes 128 MiB of the heap at start for compaction that small topics do not need.
        "log.cleaner.dedupe.buffer.size": "16777216",
    }
)


class Broker(ABC):
    """A broker that answers at ``bootstrap_servers`` for as long as the context that gave it is open.

    ``listeners`` maps each listener's name (``PLAINTEXT``, ``SASL_PLAINTEXT``, ...) to its ``host:port``; the first is
    the bootstrap address. The controls at the end do harm on purpose, for tests of recovery: a started broker has
    them, a given cluster refuses them. All of them block until done, each within a bound.
    """

    way: BrokerWay

    def __init__(self, *, bootstrap_servers: str, description: str, listeners: Mapping[str, str]) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.description = description
        self.listeners = dict(listeners)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bootstrap_servers}: {self.description}>"

    @abstractmethod
    def running(self) -> bool:
        """Whether the broker's process exists (a paused one does). A given cluster is asked whether it answers."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the broker at once (SIGKILL); its data stay for ``start``."""

    @abstractmethod
    def stop(self) -> None:
        """Shuts the broker down in order (SIGTERM, and SIGKILL if that takes too long); its data stay."""

    @abstractmethod
    def start(self) -> None:
        """Starts the broker again at the same address on the same data; returns when clients can use it.

        Does nothing when it runs already. Raises ``BrokerError`` with the end of its log when it does not come up.
        """

    @abstractmethod
    def pause(self) -> None:
        """Freezes the broker (SIGSTOP): connections stay open and nothing answers."""

    @abstractmethod
    def resume(self) -> None:
        """Lets a frozen broker go on (SIGCONT)."""


class GivenBroker(Broker):
    """A cluster somebody else runs. It can be used, never harmed: every control raises ``BrokerError``."""

    way: BrokerWay = "env"

    def running(self) -> bool:
        from workers.apps.broker.probe import ProbeError, answers

        for address in self.bootstrap_servers.split(","):
            try:
                answers(address, timeout_s=5.0)
            except ProbeError:
                continue
            return True
        return False

    def _refuse(self) -> None:
        raise BrokerError(
            f"the cluster at {self.bootstrap_servers} was given, so it is not this test's to stop or freeze; "
            'find_broker(way="jvm") starts one that is'
        )

    kill = stop = start = pause = resume = _refuse


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody listens on, below the range the system gives to outgoing connections.

    Out of that range because a killed broker must get its port back: a client that keeps trying to connect to a port
    in it will one day be given that very port as its own, connect to itself, and hold it.
    """
    upper = 32_768
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ephemeral.exists():
        upper = int(ephemeral.read_text().split()[0])
    lower = 10_000
    if upper - lower < 1_000:
        lower, upper = 49_152, 65_536
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", random.randrange(lower, upper)))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
        return [candidate.getsockname()[1] for candidate in held]
    finally:
        for candidate in held:
            candidate.close()


def heap_options() -> str:
    """The JVM's heap: ``KAFKA_HEAP_OPTS`` as Kafka's own scripts take it, else one small enough to share a laptop."""
    return os.environ.get("KAFKA_HEAP_OPTS", "").strip() or "-Xmx768m -Xms256m"


def say(text: str) -> None:
    """Progress of something slow, on standard error: standard output belongs to whoever runs this."""
    sys.stderr.write(f"workers.apps.broker: {text}\n")
    sys.stderr.flush()
