"""A real Apache Kafka on this machine's Java: one KRaft node on loopback, its data in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.apps.broker.base import KAFKA_VERSION, NODE_PROPERTIES, Broker, BrokerWay, free_ports, heap_options
from workers.apps.broker.jars import kafka_jars
from workers.apps.broker.probe import is_ready, wait_until
from workers.apps.broker.supervisor import Supervisor
from workers.errors import BrokerError, BrokerUnavailableError, ConfigError

__all__ = ["JvmBroker", "Node", "find_java", "open_jvm"]

_JAVA_MIN: Final = 17
_START_TIMEOUT_S = 90.0  # 3 s on two idle cores
_STOP_TIMEOUT_S = 30.0
_FORMAT_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 15
_PORT_TRIES = 3
_CLUSTER_ID = "dGljay13b3JrZXJzLTAwMQ"  # 16 bytes, base64; two nodes never meet, so one id serves all
_SECURITY_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_INTERNAL, _CONTROLLER = "INTERNAL", "CONTROLLER"
_OWN_KEYS: Final = ("process.roles", "node.id", "controller.quorum.bootstrap.servers", "controller.listener.names")

# Not -XX:TieredStopAtLevel=1: it saves 0.6 s of a 2.5 s start and costs every benchmark its throughput.
_JVM_OPTIONS: Final = ("-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError", "-Xshare:auto")
_LOGGING: Final = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")


@dataclass(frozen=True, slots=True)
class Node:
    """One of several nodes: its number, and the controllers' ports by number."""

    number: int
    controller_ports: Mapping[int, int]

    @property
    def controller_port(self) -> int:
        """Its own."""
        return self.controller_ports[self.number]


class JvmBroker(Broker):
    """The node's process, started and ended through a supervisor that outlives this process."""

    way: BrokerWay = "jvm"

    def __init__(
        self, supervisor: Supervisor, java: str, jars: Path, config: Mapping[str, str], node: Node | None = None
    ) -> None:
        """``node``: which of several it is; it then gets up when most of them are there."""
        self._supervisor = supervisor
        self._node = node
        self._java = [java, "-cp", f"{jars}/*", *_LOGGING]
        self.log_path = supervisor.directory / "broker.log"
        self.pid: int | None = None
        self._layout = _Layout(config, supervisor.directory / "data", node)
        self._properties = supervisor.directory / "server.properties"
        self._properties.write_text(_as_properties_file(self._layout.properties), encoding="ascii")
        names = [name for name in self._layout.addresses if name not in (_INTERNAL, _CONTROLLER)]
        listeners = {name: self._layout.addresses[name] for name in names}
        super().__init__(
            bootstrap_servers=listeners[names[0]],
            description=f"Apache Kafka {KAFKA_VERSION} (KRaft) on {java}, data in {supervisor.directory}",
            listeners=listeners,
        )

    def format(self) -> None:
        """Makes the empty data folder a KRaft node's. Raises ``BrokerError`` with the tool's own words."""
        tool = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(self._properties)]
        if self._node is None:
            tool.append("--standalone")
        self._supervisor.start([self._java[0], "-XX:TieredStopAtLevel=1", *self._java[1:], *tool], log=self.log_path)
        if not wait_until(lambda: not self._supervisor.running(), timeout_s=_FORMAT_TIMEOUT_S):
            raise BrokerError(f"formatting Kafka's data folder took more than {_FORMAT_TIMEOUT_S:.0f} s")
        if self._supervisor.exit_code() != 0:
            raise BrokerError(f"Kafka's data folder could not be formatted:\n{self.log_tail()}")

    def running(self) -> bool:
        return self._supervisor.running()

    def start(self) -> None:
        if self._supervisor.running():
            return
        argv = [
            self._java[0],
            *shlex.split(heap_options()),
            *_JVM_OPTIONS,
            *self._java[1:],
            "kafka.Kafka",
            str(self._properties),
        ]
        self.pid = self._supervisor.start(argv, log=self.log_path)
        address = self._layout.plaintext_address
        up = wait_until(
            lambda: is_ready(address, timeout_s=2.0) or not self._supervisor.running(), timeout_s=_START_TIMEOUT_S
        )
        code = self._supervisor.exit_code()
        if code is not None:
            raise BrokerError(f"Apache Kafka ended while starting (exit code {code}):\n{self.log_tail()}")
        if not up:
            self.kill()
            raise BrokerError(f"Apache Kafka did not answer within {_START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def kill(self) -> None:
        self._supervisor.signal(signal.SIGKILL)
        self._await_end(_KILL_TIMEOUT_S, "SIGKILL")

    def stop(self) -> None:
        self._supervisor.signal(signal.SIGTERM)
        self._supervisor.signal(signal.SIGCONT)  # a frozen one could not act on the other signal
        if not wait_until(lambda: not self._supervisor.running(), timeout_s=_STOP_TIMEOUT_S):
            self.kill()

    def pause(self) -> None:
        self._signal_running(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_running(signal.SIGCONT)

    def log_tail(self) -> str:
        """The last lines of the broker's log (warnings and errors only)."""
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    def _signal_running(self, number: signal.Signals) -> None:
        if not self._supervisor.signal(number):
            raise BrokerError(f"the broker at {self.bootstrap_servers} does not run, so {number.name} can't reach it")

    def _await_end(self, timeout_s: float, sent: str) -> None:
        if not wait_until(lambda: not self._supervisor.running(), timeout_s=timeout_s, every_s=0.005):
            raise BrokerError(f"the broker (process {self.pid}) still runs {timeout_s:.0f} s after {sent}")


class _Layout:
    """Listeners, ports and the resulting server.properties.

    ``listeners`` of the caller's ``config`` may name port 0, which becomes a free one; the controller's listener is
    always added, and a plaintext one of our own where the caller's first is not plaintext: the node talks to itself
    over it (transaction markers), and readiness is asked there.
    """

    def __init__(self, config: Mapping[str, str], data: Path, node: Node | None = None) -> None:
        for key in _OWN_KEYS:
            if key in config:
                raise ConfigError(f"broker config {key} = {config[key]!r}: a single node's {key} is fixed")
        listeners = _parse_listeners(config.get("listeners", "PLAINTEXT://127.0.0.1:0"))
        protocols = _parse_protocols(config.get("listener.security.protocol.map", ""))
        first_plain = protocols.get(next(iter(listeners)), "?") == "PLAINTEXT"
        if not first_plain:
            listeners[_INTERNAL] = ("127.0.0.1", 0)
        listeners[_CONTROLLER] = ("127.0.0.1", node.controller_port if node is not None else 0)
        ports = iter(free_ports(len(listeners)))
        self.addresses = {name: f"{host}:{port or next(ports)}" for name, (host, port) in listeners.items()}
        inter_broker = next(iter(listeners)) if first_plain else _INTERNAL
        self.plaintext_address = self.addresses[inter_broker]
        self.properties: dict[str, str] = {
            **NODE_PROPERTIES,
            "inter.broker.listener.name": inter_broker,
            **config,
            "process.roles": "broker,controller",
            "node.id": "1" if node is None else str(node.number),
            **self._quorum(node),
            "controller.listener.names": _CONTROLLER,
            "listeners": ",".join(f"{name}://{address}" for name, address in self.addresses.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "log.dirs": str(data),
        }

    def _quorum(self, node: Node | None) -> dict[str, str]:
        if node is None:
            return {"controller.quorum.bootstrap.servers": self.addresses[_CONTROLLER]}
        voters = (f"{number}@127.0.0.1:{port}" for number, port in node.controller_ports.items())
        return {"controller.quorum.voters": ",".join(voters)}


def _parse_listeners(text: str) -> dict[str, tuple[str, int]]:
    """``NAME://host:port,...`` by name, in order; an empty host means loopback. Raises ``ConfigError``."""
    listeners: dict[str, tuple[str, int]] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)://([^:/]*|\[[^\]]*\]):(\d+)\s*", part)
        if match is None or match[1] in (_INTERNAL, _CONTROLLER) or match[1] in listeners:
            raise ConfigError(
                f"broker config listeners = {text!r}: {part!r} is not NAME://host:port with a name of its own "
                f"(and neither {_INTERNAL} nor {_CONTROLLER})"
            )
        listeners[match[1]] = (match[2] or "127.0.0.1", int(match[3]))
    return listeners


def _parse_protocols(text: str) -> dict[str, str]:
    """``NAME:PROTOCOL,...`` by name, over Kafka's own names and ours. Raises ``ConfigError``."""
    protocols = {name: name for name in _SECURITY_PROTOCOLS} | {_INTERNAL: "PLAINTEXT", _CONTROLLER: "PLAINTEXT"}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, protocol = part.partition(":")
        if not colon or protocol not in _SECURITY_PROTOCOLS:
            raise ConfigError(
                f"broker config listener.security.protocol.map = {text!r}: {part!r} is not NAME:PROTOCOL "
                f"with a protocol of {', '.join(_SECURITY_PROTOCOLS)}"
            )
        protocols[name] = protocol
    return protocols


def _as_properties_file(properties: Mapping[str, str]) -> str:
    """A Java properties file: backslashes and line ends escaped (a PEM key has those), ASCII only."""

    def escape(value: str) -> str:
        value = value.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
        if value.startswith(" "):
            value = "\\" + value
        units = value.encode("utf-16-be")
        codes = (int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2))
        return "".join(chr(code) if code < 0x80 else f"\\u{code:04x}" for code in codes)

    return "".join(f"{key}={escape(value)}\n" for key, value in properties.items())


def find_java() -> str:
    """The path of a Java 17 or newer: ``$JAVA_HOME``'s if set, else the PATH's.

    Raises ``BrokerUnavailableError`` when there is none or it is older.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None:
        raise BrokerUnavailableError("Java is not on the PATH and JAVA_HOME is not set")
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerUnavailableError(f"{java} can't be run: {error}") from error
    match = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr + done.stdout)
    if match is None:
        raise BrokerUnavailableError(f"{java} -version does not say a version: {(done.stderr + done.stdout)[:200]!r}")
    major = int(match[2] or 0) if match[1] == "1" else int(match[1])  # Java 8 called itself 1.8
    if major < _JAVA_MIN:
        raise BrokerUnavailableError(f"{java} is Java {major}; Apache Kafka {KAFKA_VERSION} needs {_JAVA_MIN} or newer")
    return java


@contextlib.contextmanager
def open_jvm(config: Mapping[str, str]) -> Iterator[JvmBroker]:
    """A node of its own, ended and its data removed with the context.

    Raises ``BrokerUnavailableError`` without Java, Maven or jars; ``ConfigError`` or ``BrokerError`` when Kafka does
    not start with this ``config``.
    """
    java, jars = find_java(), kafka_jars()
    with contextlib.ExitStack() as stack:
        broker = _start_somewhere(stack, java, jars, config)
        yield broker


def _start_somewhere(stack: contextlib.ExitStack, java: str, jars: Path, config: Mapping[str, str]) -> JvmBroker:
    """Starts the node, on other ports when somebody took one between choosing and using it."""
    for tries_left in reversed(range(_PORT_TRIES)):
        with contextlib.ExitStack() as attempt:
            supervisor = attempt.enter_context(Supervisor(directory_prefix="tick-workers-kafka-"))
            broker = JvmBroker(supervisor, java, jars, config)
            broker.format()
            try:
                broker.start()
            except BrokerError as error:
                if not tries_left or "Address already in use" not in str(error):
                    raise
                continue
            stack.push(attempt.pop_all())
            return broker
    raise AssertionError("unreachable: the last try returns or raises")
