"""Several Kafka nodes on this machine's Java, one cluster: each is broker and controller, and can be harmed alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from workers.apps.broker.base import Broker, BrokerWay, free_ports
from workers.apps.broker.jars import kafka_jars
from workers.apps.broker.jvm import JvmBroker, Node, find_java
from workers.apps.broker.supervisor import Supervisor

__all__ = ["JvmCluster", "open_cluster"]

_REPLICATED: Final[Mapping[str, str]] = {
    "default.replication.factor": "3",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "share.coordinator.state.topic.replication.factor": "3",
    "min.insync.replicas": "2",
    "transaction.state.log.min.isr": "2",
}


class JvmCluster(Broker):
    """The nodes, in order of their numbers; the controls do to all what a node's do to it."""

    way: BrokerWay = "jvm"

    def __init__(self, nodes: list[JvmBroker]) -> None:
        self.nodes = nodes
        super().__init__(
            bootstrap_servers=",".join(node.bootstrap_servers for node in nodes),
            description=f"{len(nodes)} nodes of {nodes[0].description}",
            listeners=nodes[0].listeners,
        )

    def running(self) -> bool:
        return all(node.running() for node in self.nodes)

    def start(self) -> None:
        self._each(JvmBroker.start)

    def kill(self) -> None:
        self._each(JvmBroker.kill)

    def stop(self) -> None:
        self._each(JvmBroker.stop)

    def pause(self) -> None:
        self._each(JvmBroker.pause)

    def resume(self) -> None:
        self._each(JvmBroker.resume)

    def _each(self, do: Callable[[JvmBroker], None]) -> None:
        """Side by side: none gets up alone."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            for done in [pool.submit(do, node) for node in self.nodes]:
                done.result()


@contextlib.contextmanager
def open_cluster(config: Mapping[str, str], *, count: int = 3) -> Iterator[JvmCluster]:
    """Nodes of their own, ended and their data removed with the context. Topics have three replicas by default, of
    which two must have a record. Raises as `workers.apps.broker.jvm.open_jvm` does."""
    java, jars = find_java(), kafka_jars()
    controllers = dict(zip(range(1, count + 1), free_ports(count), strict=True))
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in controllers:
            supervisor = stack.enter_context(Supervisor(directory_prefix="tick-workers-kafka-"))
            node = JvmBroker(supervisor, java, jars, {**_REPLICATED, **config}, Node(number, controllers))
            node.format()
            nodes.append(node)
        cluster = JvmCluster(nodes)
        cluster.start()
        yield cluster
