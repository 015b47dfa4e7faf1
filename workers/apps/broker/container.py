"""The official Apache Kafka image in Docker, by testcontainers."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from workers.apps.broker.base import KAFKA_VERSION, NODE_PROPERTIES, Broker, BrokerWay, free_ports, heap_options, say
from workers.apps.broker.probe import is_ready, wait_until
from workers.apps.broker.supervisor import Supervisor
from workers.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.docker_client import DockerClient

__all__ = ["KAFKA_IMAGE", "ContainerBroker", "open_container"]

KAFKA_IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"

_DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"
_DAEMON_TIMEOUT_S = 5
_CALL_TIMEOUT_S = 60
_FIRST_SIGN_S = 20.0  # a registry that is reachable at all answers within this
_PULL_TIMEOUT_S = 600.0
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30
_LOG_TAIL_LINES = 15
_LABEL = "tick-workers.broker"
_KAFKA_PORT = 9092
_ADVERTISED_FILE = "/tmp/tick-workers-advertised"

# The image is configured by variables, all of them or none: with one set, its own defaults are not used. The address
# that clients see is known only after the container has started, so its command waits for it.
_LISTENERS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": "1@localhost:9093",
    "controller.listener.names": "CONTROLLER",
    "listeners": f"PLAINTEXT://:{_KAFKA_PORT},INTERNAL://localhost:9094,CONTROLLER://localhost:9093",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "INTERNAL",
    "log.dirs": "/var/lib/kafka/data",
}
_COMMAND: Final = (
    f"while [ ! -f {_ADVERTISED_FILE} ]; do sleep 0.05; done; "
    f'KAFKA_ADVERTISED_LISTENERS="$(cat {_ADVERTISED_FILE})" exec /etc/kafka/docker/run'
)


class ContainerBroker(Broker):
    """One container. Its port on the host is fixed, so it has the same address after ``kill`` and ``start``."""

    way: BrokerWay = "docker"

    def __init__(self, container: DockerContainer) -> None:
        self._container = container
        host, port = _client_address(container)
        container.copy_into_container(f"PLAINTEXT://{host}:{port},INTERNAL://localhost:9094".encode(), _ADVERTISED_FILE)
        short_id = container.get_container_id()[:12]
        super().__init__(
            bootstrap_servers=f"{host}:{port}",
            description=f"{container.image} in Docker, container {short_id}",
            listeners={"PLAINTEXT": f"{host}:{port}"},
        )

    def running(self) -> bool:
        self._container.reload()
        return self._container.status in ("running", "paused")

    def wait_ready(self) -> None:
        """Returns when clients can use the broker; raises ``BrokerError`` with its log's end when that is not soon."""
        up = wait_until(
            lambda: is_ready(self.bootstrap_servers, timeout_s=2.0) or not self.running(),
            timeout_s=_START_TIMEOUT_S,
            every_s=0.1,
        )
        if not up or not self.running():
            how = "ended while starting" if up else f"did not answer within {_START_TIMEOUT_S:.0f} s"
            raise BrokerError(f"{self.description} {how}:\n{self.log_tail()}")

    def kill(self) -> None:
        if self.running():
            self._container.get_wrapped_container().kill()
            self._container.get_wrapped_container().wait(timeout=_STOP_TIMEOUT_S)

    def stop(self) -> None:
        if self.running():
            self._resume_if_paused()
            self._container.get_wrapped_container().stop(timeout=_STOP_TIMEOUT_S)

    def start(self) -> None:
        if not self.running():
            self._container.get_wrapped_container().start()
            self.wait_ready()

    def pause(self) -> None:
        self._refuse_unless_running("pause")
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._refuse_unless_running("resume")
        self._resume_if_paused()

    def log_tail(self) -> str:
        """The last lines the container wrote."""
        log: bytes = self._container.get_wrapped_container().logs(tail=_LOG_TAIL_LINES)
        return log.decode(errors="replace").strip()

    def _resume_if_paused(self) -> None:
        self._container.reload()
        if self._container.status == "paused":
            self._container.get_wrapped_container().unpause()

    def _refuse_unless_running(self, what: str) -> None:
        if not self.running():
            raise BrokerError(f"the broker at {self.bootstrap_servers} does not run, so there is nothing to {what}")


@contextlib.contextmanager
def open_container(config: Mapping[str, str]) -> Iterator[ContainerBroker]:
    """A broker in a container of its own, removed with its data when the context ends or this process does.

    Raises ``BrokerUnavailableError`` when testcontainers, the daemon or the image is missing, and when ``config`` asks
    for listeners (the container's are fixed); ``BrokerError`` when Kafka does not start.
    """
    for key in (*_LISTENERS, "advertised.listeners"):
        if key in config:
            raise BrokerUnavailableError(f'a broker in Docker can\'t be given its own {key}; use way="jvm"')
    with contextlib.ExitStack() as stack:
        container = _prepare(stack)
        label = f"{_LABEL}={uuid.uuid4().hex}"
        # Before the container exists, so that there is no moment in which it could be left behind.
        stack.enter_context(Supervisor(label=label))
        properties = {**NODE_PROPERTIES, **config, **_LISTENERS}
        container.with_envs(
            **{_variable(key): value for key, value in properties.items()}, KAFKA_HEAP_OPTS=heap_options()
        )
        container.with_kwargs(labels=dict([label.split("=", 1)]), entrypoint=["sh", "-c"])
        container.with_command([_COMMAND])
        try:
            container.start()
        except Exception as error:  # the Docker client's errors have no common root that is ours to import
            raise BrokerError(f"{container.image} could not be started in Docker: {error}") from error
        broker = ContainerBroker(container)
        broker.wait_ready()
        yield broker


def _prepare(stack: contextlib.ExitStack) -> DockerContainer:
    """A container that can be started: testcontainers is there, a daemon answers, the images are present."""
    try:
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.docker_client import DockerClient, get_docker_host
    except ImportError as error:
        raise BrokerUnavailableError(
            f"testcontainers is not installed: {error}; tick-workers[docker] has it"
        ) from error
    try:
        _knock(get_docker_host() or _DEFAULT_DOCKER_HOST)
        client = DockerClient(timeout=_DAEMON_TIMEOUT_S)
    except Exception as error:
        raise BrokerUnavailableError(f"no Docker daemon answers: {error}") from error
    stack.callback(client.client.close)
    _ensure_image(client, testcontainers_config.hub_image_name_prefix + KAFKA_IMAGE)
    # testcontainers' own reaper is one more image to pull, and the guard removes what is started here all the same.
    testcontainers_config.ryuk_disabled = True
    container = DockerContainer(KAFKA_IMAGE, docker_client_kw={"timeout": _CALL_TIMEOUT_S})
    stack.callback(container.get_docker_client().client.close)
    if client.get_connection_mode().use_mapped_port:
        (port,) = free_ports(1)
        container.with_bind_ports(_KAFKA_PORT, port)
    else:
        container.with_exposed_ports(_KAFKA_PORT)
    return container


def _knock(docker_host: str) -> None:
    """Raises ``OSError`` when nobody listens on the daemon's Unix socket; other addresses are left to the client.

    The client would say the same, but leave its socket open, and a test run that takes warnings for errors would
    fail some time later for want of a daemon.
    """
    if docker_host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(_DAEMON_TIMEOUT_S)
            knocking.connect("/" + docker_host.removeprefix("unix://").lstrip("/"))


def _client_address(container: DockerContainer) -> tuple[str, int]:
    """Where this process reaches the broker, by testcontainers' own rules (a remote daemon, Docker in Docker)."""
    host = container.get_container_host_ip()
    port = container.get_exposed_port(_KAFKA_PORT)
    return ("127.0.0.1" if host == "localhost" else host), port


def _variable(key: str) -> str:
    """The image's spelling of a property: ``a.b-c_d`` is ``KAFKA_A_B___C__D``."""
    return "KAFKA_" + key.replace("_", "__").replace("-", "___").replace(".", "_").upper()


def _ensure_image(client: DockerClient, image: str) -> None:
    """Returns when the daemon has the image; pulls it if need be, within bounds.

    Raises ``BrokerUnavailableError``, soon where the registry does not answer at all.
    """
    images = client.client.images
    if images.list(name=image):
        return
    say(f"pulling {image} ...")
    progress: queue.Queue[str | Exception | None] = queue.Queue()
    # The Docker client waits for a pull without a limit of its own, so it waits in a thread that can be left.
    threading.Thread(target=_pull, args=(client, image, progress), daemon=True).start()
    started_s = time.monotonic()
    limit_s = _FIRST_SIGN_S
    while True:
        left_s = started_s + limit_s - time.monotonic()
        try:
            event = progress.get(timeout=max(left_s, 0.0))
        except queue.Empty:
            raise BrokerUnavailableError(f"{image} is not here and its pull took more than {limit_s:.0f} s") from None
        if isinstance(event, Exception):
            raise BrokerUnavailableError(f"{image} is not here and can't be pulled: {event}") from event
        if event is None:
            return
        limit_s = _PULL_TIMEOUT_S


def _pull(client: DockerClient, image: str, progress: queue.Queue[str | Exception | None]) -> None:
    repository, _, tag = image.rpartition(":")
    try:
        for line in client.client.api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise BrokerUnavailableError(str(line["error"]))
            progress.put(str(line.get("status", "")))
    except Exception as error:
        progress.put(error)
    else:
        progress.put(None)
