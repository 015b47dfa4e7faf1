"""A real broker for tests, demos and benchmarks: found where one is given, started where not.

    with find_broker() as broker:
        use(broker.bootstrap_servers)

    find ─▶ KAFKA_BOOTSTRAP_SERVERS ─▶ container (Docker) ─▶ jvm (Java, jars by Maven) ─▶ BrokerUnavailableError
                                              └──── supervisor ─────┘ ─▶ guard: nothing is left behind

``python -m workers.apps.broker`` runs one in the foreground. Production clusters are none of this package's business.
"""

from __future__ import annotations

from workers.apps.broker.base import KAFKA_VERSION, Broker, BrokerWay
from workers.apps.broker.find import find_broker

__all__ = ["KAFKA_VERSION", "Broker", "BrokerWay", "find_broker"]
