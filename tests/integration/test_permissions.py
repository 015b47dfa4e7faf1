"""A cluster that denies something, or allows less than is asked for: the worker ends, and says what is missing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import NOW_MS, tick
from workers.apps.broker import Broker, find_broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

TOPIC, GROUP, TRANSACTIONAL_ID = 2, 3, 5
LITERAL, PREFIXED = 3, 4
ALL, READ, WRITE, CREATE, DESCRIBE = 2, 3, 4, 5, 8
DENY, ALLOW = 2, 3
AT_ONCE = 3
LIMIT_S = 40.0


@pytest.fixture(scope="module")
def guarded() -> Iterator[Broker]:
    """Whoever comes without a login may do all; ``worker`` may do what no ACL denies, and ask for less than usual."""
    config = {
        "listeners": "PLAINTEXT://127.0.0.1:0,SASL_PLAINTEXT://127.0.0.1:0",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="right";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
        "transaction.max.timeout.ms": "40000",
        "group.max.session.timeout.ms": "12000",
    }
    with find_broker(way="jvm", config=config) as started:
        yield started


@dataclass(frozen=True)
class Case:
    """What is denied, and what is said."""

    name: str
    resource: int
    suffix: str
    operation: int
    said: str
    pattern: int = LITERAL
    needs_state: bool = False  # it shows when there is something to be read


CASES = [
    Case("ticks-hidden", TOPIC, "-ticks", DESCRIBE, "Describe"),
    Case("ticks", TOPIC, "-ticks", READ, "--operation Read --topic {app}-ticks"),
    Case("frames", TOPIC, "-frames", WRITE, "--operation Write --topic {app}-frames"),
    Case("late", TOPIC, "-late", WRITE, "--operation Write --topic {app}-late"),
    Case("dead-letters", TOPIC, "-dead-letters", WRITE, "--operation Write --topic {app}-dead-letters"),
    Case(
        "changelog-read",
        TOPIC,
        "-changelog",
        READ,
        "--operation Read --operation Write --topic {app}-changelog",
        needs_state=True,
    ),
    Case("changelog-write", TOPIC, "-changelog", WRITE, "--operation Read --operation Write --topic {app}-changelog"),
    Case("group", GROUP, "", READ, "--operation Read --group {app}"),
    Case("transactions", TRANSACTIONAL_ID, "-", WRITE, "--transactional-id {app}-", PREFIXED),
]


async def deny(app: App, case: Case) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=app.bootstrap)
    await admin.start()
    try:
        for principal, operation, permission in (("User:*", ALL, ALLOW), ("User:worker", case.operation, DENY)):
            name = app.name + case.suffix
            request = CreateAclsRequest(case.resource, name, case.pattern, principal, "*", operation, permission)
            response = await admin._send_request(request)
            assert not any(code for code, *_ in response.creation_responses), response
    finally:
        await admin.close()


async def run_as_worker(guarded: Broker, app: App, **more: object) -> subprocess.CompletedProcess[str]:
    login = {
        "bootstrap_servers": guarded.listeners["SASL_PLAINTEXT"],
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.sasl.username": "worker",
    }
    argv = [sys.executable, "-m", "workers", "run", *app.flags(**login, **more)]
    environ = {**os.environ, "KAFKA_SASL_PASSWORD": "right"}
    return await asyncio.to_thread(
        subprocess.run, argv, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


async def test_what_is_denied_is_said_with_the_command_that_allows_it(
    guarded: Broker, topic_name: str, tmp_path: Path
) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def show(case: Case) -> str:
        app = App(guarded.bootstrap_servers, f"{topic_name[-12:]}-{case.name}", partitions=1)
        async with places:
            assert (await asyncio.to_thread(app.run_command, "topics", "create")).returncode == 0
            late, rubbish = tick(ts=NOW_MS - 60_000), b"rubbish"
            await send(
                app,
                [
                    (b"AAPL", tick(), None),
                    (b"AAPL", late, None),
                    (b"AAPL", rubbish, None),
                    (b"AAPL", tick(ts=NOW_MS + 60_000), None),
                ],
            )
            if case.needs_state:
                with app.worker(tmp_path / "before.log", tick__max_future_skew="365d") as worker:
                    await committed_through(app, process=worker)
            await deny(app, case)
            try:
                ended = await run_as_worker(guarded, app, tick__max_future_skew="365d")
            except subprocess.TimeoutExpired as expired:
                return f"{case.name}: still runs: {(expired.stdout or b'')[-600:]!r} {(expired.stderr or b'')[-600:]!r}"
        said = ended.stderr.strip()
        expected = case.said.format(app=app.name)
        if ended.returncode in (1, 3) and expected in said.splitlines()[-1] and "Traceback" not in said:
            return ""
        return f"{case.name}: {ended.returncode}, expected {expected!r}: {said[-1_500:]}"

    found = [problem for problem in await asyncio.gather(*map(show, CASES)) if problem]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("kafka.transaction.timeout.ms", 60_000, "transaction.max.timeout.ms"),
        ("kafka.session.timeout.ms", 20_000, "group.max.session.timeout.ms"),
    ],
)
async def test_a_limit_of_the_broker_that_a_setting_exceeds_is_named(
    guarded: Broker, topic_name: str, key: str, value: int, limit: str
) -> None:
    app = App(guarded.bootstrap_servers, topic_name, partitions=1)
    ended = await asyncio.to_thread(app.run_command, "run", **{key: value})
    assert ended.returncode == 3
    last = ended.stderr.splitlines()[-1]
    assert f"the broker refuses {key} = {value} (" in last
    assert limit in last
    assert "Traceback" not in ended.stderr
