"""Producers in other languages must put a key where this project does: Kafka's own Java producer is the judge."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path

import pytest

from workers.apps.broker import Broker
from workers.apps.broker.jars import kafka_jars
from workers.apps.broker.jvm import find_java
from workers.core.partitioning import partition_for
from workers.errors import BrokerUnavailableError
from workers.kafka.clients import admin_client
from workers.kafka.topics import ensure_topics
from workers.settings import load_settings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SOURCE = Path(__file__).parents[1] / "java" / "ProduceKeys.java"


def _keys() -> list[bytes]:
    rng = random.Random(20210417)
    ascii_keys = [f"SYM{number:05d}".encode() for number in range(600)]
    lengths = [bytes(rng.randrange(256) for _ in range(size)) for size in range(200)]  # every remainder of 4, and empty
    unicode_keys = [("".join(rng.choices("äöüßé日本株価€🚀Ω", k=rng.randrange(1, 12)))).encode() for _ in range(300)]
    long_keys = [rng.randbytes(rng.randrange(1_000, 20_000)) for _ in range(20)]
    return [b"AAPL", b"MSFT", b"", *ascii_keys, *lengths, *unicode_keys, *long_keys]


async def test_the_java_producer_puts_every_key_on_the_partition_we_compute(broker: Broker, topic_name: str) -> None:
    try:
        java, jars = find_java(), kafka_jars()
    except BrokerUnavailableError as error:
        pytest.skip(str(error))
    topics = {f"{topic_name}-{partitions}": partitions for partitions in (1, 7, 32)}
    for topic, partitions in topics.items():
        settings = load_settings(
            environ={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
            overrides={"topics.ticks": topic, "topics.partitions": partitions, "topics.replication_factor": 1},
        )
        async with admin_client(settings) as admin:
            await ensure_topics(admin, settings, create=True, only=["ticks"])
    keys = _keys()
    assert len(keys) >= 1_000

    argv = [java, "-cp", f"{jars}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", str(SOURCE)]
    done = await asyncio.to_thread(
        subprocess.run,
        [*argv, broker.bootstrap_servers, *topics],
        input="".join(f"{key.hex()}\n" for key in keys),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    theirs = [int(line) for line in done.stdout.split()]
    assert theirs == [partition_for(key, partitions) for partitions in topics.values() for key in keys]
    for at, partitions in enumerate(topics.values()):
        assert len(set(theirs[at * len(keys) : (at + 1) * len(keys)])) == partitions
