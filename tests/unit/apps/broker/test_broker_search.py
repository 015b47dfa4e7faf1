"""Where a broker comes from, and what is said when none can be had. Real sockets, processes and programs throughout."""

from __future__ import annotations

import http.server
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from workers.apps.broker import KAFKA_VERSION, find_broker
from workers.apps.broker.base import GivenBroker, free_ports
from workers.apps.broker.container import KAFKA_IMAGE
from workers.apps.broker.jars import POM, kafka_jars
from workers.apps.broker.jvm import find_java
from workers.apps.broker.probe import ProbeError, answers, split_address
from workers.errors import BrokerError, BrokerUnavailableError, ConfigError


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where no Docker daemon runs: its socket does not exist."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder on the PATH, empty so far; with it an empty cache and no JAVA_HOME."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@contextmanager
def web_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# -- a given cluster ---------------------------------------------------------------------------------------------------


def test_a_given_cluster_that_does_not_answer_is_an_error_and_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{port}")
    with pytest.raises(BrokerUnavailableError, match=rf"KAFKA_BOOTSTRAP_SERVERS.*127\.0\.0\.1:{port}"), find_broker():
        pytest.fail("no broker is there")


def test_a_given_address_where_something_else_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server() as address:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
        with pytest.raises(BrokerUnavailableError, match="no Kafka broker answers"), find_broker():
            pytest.fail("that was a web server")


def test_a_given_address_that_accepts_and_stays_silent_is_given_up_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent, pytest.raises(ProbeError, match="timed out"):
        answers(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


def test_asking_for_a_given_cluster_when_none_is_given_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(BrokerUnavailableError, match="KAFKA_BOOTSTRAP_SERVERS is not set"), find_broker(way="env"):
        pytest.fail("none is given")


def test_server_properties_for_a_given_cluster_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    with (
        pytest.raises(BrokerUnavailableError, match=r"log\.segment\.bytes"),
        find_broker(config={"log.segment.bytes": "1048576"}),
    ):
        pytest.fail("it can't be configured from here")


def test_a_given_cluster_refuses_every_control() -> None:
    given = GivenBroker(bootstrap_servers="127.0.0.1:1", description="", listeners={})
    for control in (given.kill, given.stop, given.start, given.pause, given.resume):
        with pytest.raises(BrokerError, match="was given"):
            control()
    assert not given.running()


@pytest.mark.parametrize("address", ["", "host", "host:", ":9092", "host:0", "host:65536", "host:٣", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ProbeError, match="host:port"):
        split_address(address)


def test_an_ipv6_address_is_read_without_its_brackets() -> None:
    assert split_address("[::1]:9092") == ("::1", 9092)


def test_a_tls_listener_counts_as_an_answer(tmp_path: Path, openssl_certificate: tuple[Path, Path]) -> None:
    certificate, key = openssl_certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(listener: socket.socket) -> None:
        for _ in range(2):  # the plain attempt, then the TLS one
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        answers(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=5.0)
        thread.join()


@pytest.fixture
def openssl_certificate(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key


# -- nothing to start one with -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_docker", "programs")
def test_without_anything_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(BrokerUnavailableError) as caught, find_broker():
        pytest.fail("there is nothing to start one with")
    message = str(caught.value)
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "tick-workers[docker]", "Java 17", "Maven", "no Docker daemon answers"):
        assert name in message


def test_without_a_docker_daemon_the_docker_way_says_so(no_docker: None) -> None:
    pytest.importorskip("testcontainers")
    with pytest.raises(BrokerUnavailableError, match="no Docker daemon answers"), find_broker(way="docker"):
        pytest.fail("no daemon is there")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="auto"), find_broker(way="podman"):  # type: ignore[arg-type]
        pytest.fail("there is no such way")


@pytest.mark.parametrize(
    ("says", "is_too_old"),
    [
        ('java version "1.8.0_392"', "Java 8"),
        ('openjdk version "11.0.21" 2023-10-17', "Java 11"),
        ('openjdk version "17.0.9" 2023-10-17', None),
        ('openjdk version "21" 2023-09-19', None),
        ('openjdk version "25-ea" 2025-09-16', None),
    ],
)
def test_java_older_than_17_is_refused(programs: Path, says: str, is_too_old: str | None) -> None:
    install(programs, "java", f"echo '{says}' >&2")
    if is_too_old is None:
        assert find_java() == str(programs / "java")
        return
    with pytest.raises(BrokerUnavailableError, match=f"{is_too_old}.*17 or newer"):
        find_java()


def test_java_home_goes_before_the_path(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "jdk"
    (home / "bin").mkdir(parents=True)
    for folder in (programs, home / "bin"):
        install(folder, "java", "echo 'openjdk version \"21\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java() == str(home / "bin" / "java")


def test_java_without_maven_and_without_jars_names_maven(programs: Path) -> None:
    install(programs, "java", "echo 'openjdk version \"21\"' >&2")
    with pytest.raises(BrokerUnavailableError, match=r"Maven \(mvn\)"), find_broker(way="jvm"):
        pytest.fail("there are no jars")


def test_when_maven_fails_its_own_words_are_in_the_error_and_nothing_is_kept(programs: Path, tmp_path: Path) -> None:
    install(programs, "mvn", "echo 'no route to the repository'; exit 7")
    with pytest.raises(BrokerUnavailableError, match=r"(?s)exit code 7.*no route to the repository"):
        kafka_jars()
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]


def test_maven_that_ends_well_without_the_jars_has_failed(programs: Path) -> None:
    install(programs, "mvn", "exit 0")
    with pytest.raises(BrokerUnavailableError, match="could not fetch"):
        kafka_jars()


def test_processes_that_need_the_jars_at_the_same_time_fetch_them_once(programs: Path, tmp_path: Path) -> None:
    """Maven is slow here and writes a jar a time, so a reader that does not wait would see half of them."""
    install(
        programs,
        "mvn",
        f"""/bin/echo run >>{tmp_path}/runs
        for part in "$@"; do case "$part" in -DoutputDirectory=*) out="${{part#*=}}";; esac; done
        /bin/mkdir -p "$out"; : >"$out/first.jar"; /bin/sleep 0.5; : >"$out/kafka_2.13-{KAFKA_VERSION}.jar"
        /bin/sleep 0.5; : >"$out/last.jar" """,
    )
    code = "from workers.apps.broker.jars import kafka_jars; print(*sorted(p.name for p in kafka_jars().iterdir()))"
    others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    seen = [other.communicate(timeout=60)[0].split() for other in others]
    assert seen == [["first.jar", f"kafka_2.13-{KAFKA_VERSION}.jar", "last.jar"]] * 3
    assert (tmp_path / "runs").read_text().split() == ["run"]


def test_what_a_killed_fetch_left_is_removed_by_the_next(programs: Path, tmp_path: Path) -> None:
    install(programs, "mvn", "exit 1")
    left = tmp_path / "cache" / "tick-workers" / f"kafka-{KAFKA_VERSION}" / "partial-abc"
    left.mkdir(parents=True)
    with pytest.raises(BrokerUnavailableError):
        kafka_jars()
    assert not left.exists()


# -- one version, one place --------------------------------------------------------------------------------------------


def test_the_pom_and_the_image_name_the_pinned_version() -> None:
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ElementTree.parse(POM).getroot()
    assert pom.findtext("m:properties/m:kafka.version", namespaces=space) == KAFKA_VERSION
    assert f"apache/kafka:{KAFKA_VERSION}" == KAFKA_IMAGE


def test_ports_lie_where_no_outgoing_connection_can_take_them() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(socket.create_connection(listener.getsockname())) as outgoing,
    ):
        assert max(ports) < outgoing.getsockname()[1] or min(ports) >= 49_152


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"node.id": "7"}, r"node\.id"),
        ({"listeners": "PLAINTEXT//:1"}, "NAME://host:port"),
        ({"listeners": "CONTROLLER://127.0.0.1:0"}, "CONTROLLER"),
        ({"listeners": "A://:0,A://:0"}, "of its own"),
        ({"listener.security.protocol.map": "A:TLS"}, "SASL_SSL"),
    ],
)
def test_a_config_a_single_node_can_not_have_is_refused(config: dict[str, str], says: str) -> None:
    from workers.apps.broker.jvm import _Layout

    with pytest.raises(ConfigError, match=says):
        _Layout(config, Path("data"))
