"""A real Apache Kafka on Java: it serves, it comes back after harm, it is never left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from tests.support.broker_checks import eventually, gone, read, round_trip
from tests.support.certificates import make_certificate
from workers.apps.broker import Broker, find_broker
from workers.apps.broker.jvm import JvmBroker, find_java
from workers.errors import BrokerError, BrokerUnavailableError

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def java() -> None:
    try:
        find_java()
    except BrokerUnavailableError as error:
        pytest.skip(str(error))


# -- it serves ---------------------------------------------------------------------------------------------------------


async def test_what_is_produced_is_consumed(broker: Broker, topic_name: str) -> None:
    values = [f"tick {number}".encode() for number in range(10)]
    assert await round_trip(broker.bootstrap_servers, topic_name, values) == values


async def test_transactions_and_groups_work_on_one_node(broker: Broker, topic_name: str) -> None:
    bootstrap = broker.bootstrap_servers
    await round_trip(bootstrap, topic_name, [b"in"])
    async with (
        AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=topic_name) as producer,
        producer.transaction(),
    ):
        await producer.send_and_wait(topic_name, b"out", partition=0)
        await producer.send_offsets_to_transaction({TopicPartition(topic_name, 0): 1}, f"{topic_name}-group")
    async with AIOKafkaConsumer(
        topic_name, bootstrap_servers=bootstrap, group_id=f"{topic_name}-group", isolation_level="read_committed"
    ) as consumer:
        async with asyncio.timeout(30):
            assert (await consumer.getone()).value == b"out"


async def test_a_given_broker_is_used_as_it_is(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:1,{broker.bootstrap_servers}")
    with find_broker() as given:
        assert given.way == "env"
        assert given.bootstrap_servers == f"127.0.0.1:1,{broker.bootstrap_servers}"
        assert given.running()


def test_without_docker_the_search_ends_at_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    with find_broker() as started:
        assert started.way == "jvm"
        assert started.running()


# -- it comes back after harm ------------------------------------------------------------------------------------------


async def test_a_killed_broker_comes_back_at_the_same_address_with_its_data(
    own_broker: Broker, topic_name: str
) -> None:
    values = [b"one", b"two"]
    address = own_broker.bootstrap_servers
    await round_trip(address, topic_name, values)
    own_broker.kill()
    assert not own_broker.running()
    own_broker.start()
    assert own_broker.bootstrap_servers == address
    assert await read(address, topic_name, 2) == values
    own_broker.stop()
    assert not own_broker.running()
    own_broker.start()
    own_broker.start()  # does nothing
    assert await read(address, topic_name, 2) == values


async def test_a_paused_broker_answers_nobody_until_it_is_resumed(own_broker: Broker, topic_name: str) -> None:
    await round_trip(own_broker.bootstrap_servers, topic_name, [b"before"])
    own_broker.pause()
    assert own_broker.running()
    with pytest.raises((KafkaError, TimeoutError)):
        async with asyncio.timeout(2):
            await read(own_broker.bootstrap_servers, topic_name, 1, request_timeout_ms=1_000)
    own_broker.resume()
    assert await read(own_broker.bootstrap_servers, topic_name, 1) == [b"before"]
    own_broker.pause()
    own_broker.stop()  # a frozen one too
    assert not own_broker.running()
    for control in (own_broker.pause, own_broker.resume):
        with pytest.raises(BrokerError, match="does not run"):
            control()


# -- it is configured --------------------------------------------------------------------------------------------------


def test_a_property_kafka_refuses_is_an_error_with_kafkas_own_words() -> None:
    with (
        pytest.raises(BrokerError, match=r"num\.network\.threads"),
        find_broker(way="jvm", config={"num.network.threads": "0"}),
    ):
        pytest.fail("it can't have started")


async def test_a_sasl_listener_lets_in_who_knows_the_password(topic_name: str) -> None:
    config = {
        "listeners": "PLAINTEXT://127.0.0.1:0,SASL_PLAINTEXT://127.0.0.1:0",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="pass=w\u00f6rd \\\\ !";'
        ),
    }
    security = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "worker"}
    with find_broker(way="jvm", config=config) as secured:
        address = secured.listeners["SASL_PLAINTEXT"]
        right = {**security, "sasl_plain_password": "pass=w\u00f6rd \\ !"}
        assert await round_trip(address, topic_name, [b"secret"], **right) == [b"secret"]
        assert await read(secured.bootstrap_servers, topic_name, 1) == [b"secret"]  # the plain listener, the first
        with pytest.raises(KafkaError, match="Unable to bootstrap"):
            await read(address, topic_name, 1, **security, sasl_plain_password="wrong")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


async def test_a_tls_listener_alone_serves_with_the_certificate_it_was_given(
    topic_name: str, certificate: tuple[Path, Path]
) -> None:
    config = {
        "listeners": "SSL://127.0.0.1:0",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate[0].read_text(),
        "ssl.keystore.key": certificate[1].read_text(),
    }
    trusting = {"security_protocol": "SSL", "ssl_context": create_ssl_context(cafile=str(certificate[0]))}
    doubting = {"security_protocol": "SSL", "ssl_context": create_ssl_context()}
    with find_broker(way="jvm", config=config) as secured:
        assert list(secured.listeners) == ["SSL"]
        assert await round_trip(secured.bootstrap_servers, topic_name, [b"secret"], **trusting) == [b"secret"]
        with pytest.raises(KafkaError, match="Unable to bootstrap"):
            await read(secured.bootstrap_servers, topic_name, 1, **doubting)


# -- it is never left behind -------------------------------------------------------------------------------------------


class Owner:
    """Another process that started a broker: itself, its guard, the JVM and the data folder."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("bootstrap=")
        family = psutil.Process(self.process.pid).children(recursive=True)
        (self.jvm,) = (child.pid for child in family if "kafka.Kafka" in child.cmdline())
        (self.guard,) = (child.pid for child in family if any("guard.py" in part for part in child.cmdline()))
        self.folder = Path(psutil.Process(self.jvm).cmdline()[-1]).parent
        assert self.folder.is_dir()

    def assert_nothing_is_left(self) -> None:
        assert eventually(lambda: gone(self.jvm)), "the JVM outlived its owner"
        assert eventually(lambda: gone(self.guard)), "the guard outlived its owner"
        assert not self.folder.exists()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Callable[[list[str]], Owner]]:
    owners: list[Owner] = []

    def start(argv: list[str]) -> Owner:
        owners.append(Owner(argv))
        return owners[-1]

    yield start
    for owner in owners:
        owner.process.kill()
        owner.process.wait(30)
        assert owner.process.stdout is not None
        owner.process.stdout.close()


COMMAND = [sys.executable, "-m", "workers.apps.broker", "--way", "jvm"]

IN_A_THREAD_THAT_ENDS = """
import threading, time
from workers.apps.broker import find_broker

context = find_broker(way="jvm")

def start():
    print(f"bootstrap={context.__enter__().bootstrap_servers}", flush=True)

thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(600)
"""

WITH_A_FORKED_CHILD = """
import os, time
from workers.apps.broker import find_broker

with find_broker(way="jvm") as broker:
    if os.fork():
        print(f"bootstrap={broker.bootstrap_servers}", flush=True)
        time.sleep(600)
    else:
        os.close(1)
        time.sleep(20)
        os._exit(0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_well_when_asked_to_and_leaves_nothing(
    own: Callable[[list[str]], Owner], number: signal.Signals
) -> None:
    owner = own(COMMAND)
    owner.process.send_signal(number)
    assert owner.process.wait(30) == 0
    owner.assert_nothing_is_left()


def test_a_killed_owner_leaves_nothing(own: Callable[[list[str]], Owner]) -> None:
    owner = own(COMMAND)
    owner.process.kill()
    owner.assert_nothing_is_left()


def test_a_broker_started_by_a_thread_outlives_the_thread_but_not_the_process(
    own: Callable[[list[str]], Owner],
) -> None:
    owner = own([sys.executable, "-c", IN_A_THREAD_THAT_ENDS])
    time.sleep(0.5)
    assert not gone(owner.jvm)
    owner.process.terminate()  # nobody handles it, no context is closed
    owner.assert_nothing_is_left()


def test_a_forked_child_that_lives_on_does_not_keep_the_broker(own: Callable[[list[str]], Owner]) -> None:
    owner = own([sys.executable, "-c", WITH_A_FORKED_CHILD])
    owner.process.kill()
    owner.assert_nothing_is_left()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_guard_takes_the_broker_with_it_and_the_command_says_so(own: Callable[[list[str]], Owner]) -> None:
    owner = own(COMMAND)
    os.kill(owner.guard, signal.SIGKILL)
    assert eventually(lambda: gone(owner.jvm))
    assert owner.process.wait(30) == 1
    shutil.rmtree(owner.folder)  # the one thing nobody is left to do


def test_an_exception_in_the_context_ends_the_broker() -> None:
    seen: list[JvmBroker] = []

    def fail() -> None:
        with find_broker(way="jvm") as started:
            assert isinstance(started, JvmBroker)
            seen.append(started)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    (ended,) = seen
    assert ended.pid is not None
    assert gone(ended.pid)
    assert not ended.log_path.parent.exists()
