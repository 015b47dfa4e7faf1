"""No secret reaches a log, an error or a screen: with every way to log in, every command, and everything logged."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

from workers.apps.broker import Broker, find_broker
from workers.commands.cli import app
from workers.commands.common import report
from workers.errors import WorkersError
from workers.settings import load_settings
from workers.settings.process import LoggingSettings
from workers.telemetry.logs import CLIENT_LOGGER, configure_logging
from workers.worker.worker import Worker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

SECRET = "tr0ub4dor&3-of-the-worker"
WRONG = "a-wrong-one-of-the-worker"
MECHANISMS = {"PLAIN": 0, "SCRAM-SHA-256": 1, "SCRAM-SHA-512": 2}  # Kafka's numbers of them
HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
COMMANDS = (
    ("topics", "create"),
    ("produce", "--synthetic", "--count", "200", "--rate", "0", "--start", "2026-01-05T14:30:00Z"),
    ("topics", "list"),
    ("lag",),
    ("tail", "frames", "--from-beginning", "--exit-when-idle", "10ms"),
    ("state", "show"),
    ("state", "reset", "--yes"),
    ("explain", "AAPL", "2026-01-05T14:30:00Z"),
    ("replay", "--from", "2026-01-05T14:30:00Z", "--to", "2026-01-05T14:31:00Z"),
    ("config", "show"),
    ("config", "check"),
    ("topics", "delete", "--yes"),
)


class _AlterScramResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY, API_VERSION = 51, 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScramStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION, API_KEY, API_VERSION = True, 51, 0
    RESPONSE_TYPE = _AlterScramResponse
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScramRequest(Request[_AlterScramStruct]):  # type: ignore[misc]
    API_KEY = 51

    def __init__(self, mechanism: str) -> None:
        self._mechanism = mechanism

    def build(self, request_struct_class: type[_AlterScramStruct]) -> _AlterScramStruct:
        salted = hashlib.pbkdf2_hmac(HASHES[self._mechanism], SECRET.encode(), b"salt", 4096)
        return request_struct_class([], [("worker", MECHANISMS[self._mechanism], 4096, b"salt", salted, {})], {})


async def give_scram_logins(bootstrap_servers: str) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    try:
        for mechanism in HASHES:
            response = await client.send(client.cluster.controller.nodeId, _AlterScramRequest(mechanism))
            assert [code for _, code, *_ in response.results] == [0], response
    finally:
        await client.close()


@pytest.fixture(scope="module")
def secured() -> Iterator[Broker]:
    """One that lets in who knows the secret, by any mechanism; for this whole file."""
    config = {
        "listeners": "PLAINTEXT://127.0.0.1:0,SASL_PLAINTEXT://127.0.0.1:0",
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="{SECRET}";'
        ),
        **{
            f"listener.name.sasl_plaintext.{name.lower()}.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            )
            for name in HASHES
        },
    }
    with find_broker(way="jvm", config=config) as found:
        asyncio.run(give_scram_logins(found.bootstrap_servers))
        yield found


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """All that is logged at any level, whatever commands make of the loggers, and as it was given to them."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    root, client = logging.getLogger(), logging.getLogger(CLIENT_LOGGER)
    before = [(each, each.level, each.propagate, list(each.handlers)) for each in (root, client)]
    for each in (root, client):
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    yield heard
    for each, level, propagate, handlers in before:
        each.setLevel(level)
        each.propagate, each.handlers = propagate, handlers
    structlog.reset_defaults()


def login(secured: Broker, way: str, password: str = SECRET) -> dict[str, str]:
    """The environment of a login; a way that ends in JAAS is written as Java clients write it."""
    mechanism = way.removesuffix(" JAAS")
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": secured.listeners["SASL_PLAINTEXT"],
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": mechanism,
        "WORKERS__LOGGING__LEVEL": "debug",
    }
    if way.endswith("JAAS"):
        module = "plain.PlainLoginModule" if mechanism == "PLAIN" else "scram.ScramLoginModule"
        return environ | {
            "KAFKA_SASL_JAAS_CONFIG": (
                f'org.apache.kafka.common.security.{module} required username="worker" password="{password}";'
            )
        }
    return environ | {"KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": password}


def assert_nothing_is_told(text: str) -> None:
    for secret in (SECRET, WRONG):
        told = [secret, repr(secret)[1:-1], base64.b64encode(secret.encode()).decode(), secret.encode().hex()]
        told.append(base64.b64encode(f"worker\0worker\0{secret}".encode()).decode())
        for form in told:
            assert form not in text, next(line for line in text.splitlines() if form in line)
    assert "b'n,,n=" not in text, "SCRAM's own messages allow to guess the password without the broker"


WAYS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512 JAAS", "PLAIN JAAS")
WAYS_OF_ALL = ("PLAIN", "SCRAM-SHA-512 JAAS")  # with every command: how they log in is written once


@pytest.mark.parametrize("way", WAYS)
def test_no_command_tells_the_secret_it_logs_in_with(
    secured: Broker,
    way: str,
    topic_name: str,
    logged: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in login(secured, way).items():
        monkeypatch.setenv(name, value)
    names = ["--set", f"topics.ticks={topic_name}", "--set", f"topics.frames={topic_name}.frames"]
    names += ["--set", "topics.partitions=1"]
    for command in COMMANDS if way in WAYS_OF_ALL else COMMANDS[:1]:
        assert run(*command, "--application-id", topic_name, *names) in (0, 1), command  # 1: it looked, and found none
    monkeypatch.setenv("KAFKA_SASL_JAAS_CONFIG" if "JAAS" in way else "KAFKA_SASL_PASSWORD", "")
    for name, value in login(secured, way, WRONG).items():
        monkeypatch.setenv(name, value)
    for command in (("topics", "list"), ("lag",)):
        assert run(*command, "--application-id", topic_name, *names) == 3
    out, err = capfd.readouterr()
    assert "refuses the credentials" in err
    assert "SaslAuthenticateRequest" in logged.getvalue(), "nothing was logged of what is looked at"
    assert_nothing_is_told(out + err + logged.getvalue())


def run(*arguments: str) -> int:
    """The command's exit code; what it says goes to the terminal."""
    try:
        app([*arguments], prog_name="workers", standalone_mode=False)
    except WorkersError as error:
        return report(error)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("way", WAYS_OF_ALL)
async def test_no_worker_tells_the_secret_it_logs_in_with_at_any_level(
    secured: Broker, way: str, topic_name: str, logged: io.StringIO
) -> None:
    settings = load_settings(
        environ=login(secured, way),
        overrides={"application_id": topic_name, "topics.ticks": topic_name, "topics.partitions": 1},
    )
    for level in ("debug", "info", "warning", "error"):
        for form in ("json", "console"):
            stream = io.StringIO()
            configure_logging(LoggingSettings(level=level, format=form), stream=stream)  # type: ignore[arg-type]
            worker, stop = Worker(settings), asyncio.Event()
            working = asyncio.ensure_future(worker.run(stop))
            if level == "debug":
                async with asyncio.timeout(60):
                    while not worker.joined and not working.done():
                        await asyncio.sleep(0.01)
            stop.set()
            await working
            assert_nothing_is_told(stream.getvalue() + repr(settings) + str(dict(os.environ)))
            assert level != "debug" or "SaslAuthenticateRequest" in stream.getvalue()
    assert_nothing_is_told(logged.getvalue())
