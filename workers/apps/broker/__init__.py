"""A real broker for tests, demos and benchmarks: found where one is given, started where not.

    with find_broker() as broker:
        use(broker.bootstrap_servers)

    find ─▶ KAFKA_BOOTSTRAP_SERVERS ─▶ container (Docker) ─▶ jvm (Java, jars by Maven) ─▶ BrokerUnavailableError
                                              └──── supervisor ─────┘ ─▶ guard: nothing is left behind

``python -m workers.apps.broker`` runs one in the foreground. Production clusters are none of this package's business.

- `base`: what every way of getting a broker has in common: the handle, the pinned version, the settings of a test
  node
- `container`: the official Apache Kafka image in Docker, by testcontainers
- `find`: the search for a broker: the one that is given, else Docker's, else one on Java, else a clear error
- `guard`: a small process that outlives its owner just long enough to clean up after it
- `jars`: Apache Kafka's jars, fetched once by Maven and kept in the user's cache
- `jvm`: a real Apache Kafka on this machine's Java: one KRaft node on loopback, its data in a temporary folder
- `nodes`: several Kafka nodes on this machine's Java, one cluster: each is broker and controller, and can be harmed
  alone
- `probe`: asks an address whether a Kafka broker is behind it, in a few bytes and without an event loop
- `supervisor`: the owner's side of `workers.apps.broker.guard`: start it, talk to it, end it
"""

from __future__ import annotations

from workers.apps.broker.base import KAFKA_VERSION, Broker, BrokerWay
from workers.apps.broker.find import find_broker

__all__ = ["KAFKA_VERSION", "Broker", "BrokerWay", "find_broker"]
