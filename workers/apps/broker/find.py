"""The search for a broker: the one that is given, else Docker's, else one on Java, else a clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Literal

from workers.apps.broker.base import KAFKA_VERSION, Broker, GivenBroker, say
from workers.apps.broker.container import KAFKA_IMAGE, open_container
from workers.apps.broker.jvm import open_jvm
from workers.apps.broker.probe import ProbeError, answers
from workers.errors import BrokerError, BrokerUnavailableError

__all__ = ["find_broker"]

_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
_GIVEN_TIMEOUT_S = 5.0


@contextlib.contextmanager
def find_broker(
    *, config: Mapping[str, str] | None = None, way: Literal["auto", "env", "docker", "jvm"] = "auto"
) -> Iterator[Broker]:
    """A broker for tests, demos and benchmarks, found or started; a started one ends with the context.

    ``way="auto"`` takes the first that works: ``KAFKA_BOOTSTRAP_SERVERS`` if it is set (and then no other: whoever set
    it means it), a container where a Docker daemon answers, a process of this machine's Java. A broker that was
    started never outlives this process, however that ends, and its data go with it.

    ``config`` holds Kafka's own server properties, over those of `workers.apps.broker.base.NODE_PROPERTIES`. On the JVM
    ``listeners`` may be among them, port 0 standing for a free one. It can't be applied to a given cluster.

    Raises ``BrokerUnavailableError`` when there is no broker to be had (the message names what to install),
    ``ConfigError`` for a ``config`` that can't be, ``BrokerError`` when Kafka does not start with it.
    """
    with contextlib.ExitStack() as stack:
        yield _open(stack, dict(config or {}), way)


def _open(stack: contextlib.ExitStack, config: dict[str, str], way: Literal["auto", "env", "docker", "jvm"]) -> Broker:
    match way:
        case "env":
            return _given(config)
        case "docker":
            return stack.enter_context(open_container(config))
        case "jvm":
            return stack.enter_context(open_jvm(config))
        case "auto":
            return _given(config) if os.environ.get(_VARIABLE) else _start(stack, config)
    raise ValueError(f'way is {way!r}; expected "auto", "env", "docker" or "jvm"')


def _start(stack: contextlib.ExitStack, config: dict[str, str]) -> Broker:
    reasons: list[str] = []
    try:
        return stack.enter_context(open_container(config))
    except BrokerError as error:
        reasons.append(f"Docker: {error}")
        if "no Docker daemon answers" not in str(error) and "not installed" not in str(error):
            say(f"not in Docker: {error}")  # there is one, so its user will wonder why it was not used
    try:
        return stack.enter_context(open_jvm(config))
    except BrokerUnavailableError as error:
        reasons.append(f"Java: {error}")
    raise BrokerUnavailableError(
        "no Kafka broker could be found or started. One of these helps:\n"
        f"  - set {_VARIABLE} to the address of a running cluster\n"
        f"  - start Docker, and install tick-workers[docker] ({KAFKA_IMAGE} is used)\n"
        f"  - install Java 17 or newer and Maven (Apache Kafka {KAFKA_VERSION} is fetched once)\n"
        "What was tried:\n" + "\n".join(f"  - {reason}" for reason in reasons)
    )


def _given(config: dict[str, str]) -> GivenBroker:
    """The cluster that the environment names, if one of its addresses answers."""
    bootstrap = os.environ.get(_VARIABLE, "").strip()
    if not bootstrap:
        raise BrokerUnavailableError(f"{_VARIABLE} is not set; expected host:port of a running cluster")
    if config:
        raise BrokerUnavailableError(
            f"{_VARIABLE} names a running cluster, which can't be given server properties "
            f'({", ".join(sorted(config))}); use way="docker" or way="jvm"'
        )
    refusals: list[str] = []
    for address in bootstrap.split(","):
        try:
            answers(address.strip(), timeout_s=_GIVEN_TIMEOUT_S)
        except ProbeError as error:
            refusals.append(str(error))
        else:
            return GivenBroker(
                bootstrap_servers=bootstrap,
                description=f"the cluster that {_VARIABLE} names",
                listeners={"given": bootstrap},
            )
    raise BrokerUnavailableError(
        f"{_VARIABLE} is {bootstrap!r}, but no Kafka broker answers there: {'; '.join(refusals)}"
    )
