"""What running processes tell over HTTP, on a real broker."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from tests.integration.apps import App, Process, committed_through, send
from tests.integration.groups import http, samples, until
from tests.support.verify import read_topic
from workers.apps.broker import Broker
from workers.apps.broker.base import free_ports

pytestmark = pytest.mark.broker

PARTITIONS = 4
Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def application(broker: Broker, name: str, **more: object) -> App:
    app = App(
        broker.bootstrap_servers,
        name,
        PARTITIONS,
        {"backpressure.poll_interval": "200ms", **{key.replace("__", "."): value for key, value in more.items()}},
    )
    assert app.run_command("topics", "create").returncode == 0
    return app


def ticks(count: int) -> list[tuple[bytes | None, bytes | None, int | None]]:
    now_ms = time.time_ns() // 1_000_000
    return [
        (b"S%d" % (i % 20), b'{"symbol":"S%d","ts":%d,"price":1,"size":1}' % (i % 20, now_ms + i), None)
        for i in range(count)
    ]


def total(found: list[Found], name: str) -> float:
    """A metric's sum over everything that some processes export."""
    return sum(value for each in found for (metric, _labels), value in each.items() if metric == name)


def partitions(found: Found, name: str) -> set[str]:
    return {dict(labels)["partition"] for metric, labels in found if metric == name}


@pytest.mark.slow
async def test_a_workers_health_and_its_counts(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    app = application(broker, topic_name, metrics__port=port)
    bad = [(b"S1", b"{no tick", None), (b"S2", b'{"symbol":"other","ts":1,"price":1,"size":1}', None)]
    await send(app, [*ticks(500), *bad])
    with app.worker(tmp_path / "worker.log") as process:
        await until(lambda: http(port, "/healthz") == (200, "ok\n"), "alive")
        await until(lambda: http(port, "/readyz") == (200, "ok\n"), "ready")
        await committed_through(app, process=process)
        await until(lambda: total([samples(port)], "workers_ticks_in_total") == 502, "all records are counted")
        found = samples(port)
        counts = {
            name: total([found], f"workers_ticks_{name}_total") for name in ("in", "aggregated", "late", "rejected")
        }
        assert counts["in"] == counts["aggregated"] + counts["late"] + counts["rejected"]
        assert counts["rejected"] == 2
        assert total([found], "workers_partitions_owned") == PARTITIONS
        assert partitions(found, "workers_lane_depth_records") == set(map(str, range(PARTITIONS)))
        assert 0 <= max(value for (name, _), value in found.items() if name == "workers_watermark_delay_seconds") < 120
        assert total([found], "workers_commit_duration_seconds_count") > 0
        assert total([found], "workers_restore_duration_seconds_count") == PARTITIONS
        lag = ("kafka_consumergroup_lag_sum", (("consumergroup", app.name), ("topic", app.topics.ticks)))
        await until(lambda: samples(port).get(lag) == 0, "the lag is measured, and none is left")
        assert partitions(samples(port), "kafka_consumergroup_lag") == set(map(str, range(PARTITIONS)))


@pytest.mark.slow
async def test_sums_over_workers_stay_right_when_partitions_move(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    ports = free_ports(2)
    app = application(broker, topic_name)
    await send(app, ticks(400))

    def look() -> list[Found]:
        return [samples(port) for port in ports]

    def shared() -> bool:
        """Every partition at one worker, and every worker with some."""
        depth = [partitions(found, "workers_lane_depth_records") for found in look()]
        return all(depth) and sum(map(len, depth)) == PARTITIONS and len(set().union(*depth)) == PARTITIONS

    with app.worker(tmp_path / "one.log", metrics__port=ports[0]) as first:
        await until(lambda: total(look(), "workers_ticks_in_total") == 400, "all by the first")
        with app.worker(tmp_path / "two.log", metrics__port=ports[1]):
            await until(shared, "each has a share")
            for name in ("workers_keys", "workers_partition_time_seconds", "workers_watermark_delay_seconds"):
                shown = [partitions(found, name) for found in look()]
                assert not shown[0] & shown[1], f"two workers show {name} of a partition"
            assert total(look(), "workers_partitions_owned") == PARTITIONS
            await send(app, ticks(400))
            await committed_through(app, process=first)
            await until(lambda: total(look(), "workers_ticks_in_total") == 800, "none twice, none lost")
            reporters = [found for found in look() if partitions(found, "kafka_consumergroup_lag")]
            assert len(reporters) == 1, "the group's lag is told by one worker"
            await until(
                lambda: len([found for found in look() if total([found], "kafka_consumergroup_members") == 2]) == 1,
                "two members, told once",
            )
        await until(lambda: total(look(), "workers_partitions_owned") == PARTITIONS, "the first has them all again")


@pytest.mark.slow
async def test_a_taken_port_stops_no_worker(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app = application(broker, topic_name, metrics__port=taken.getsockname()[1])
        with app.worker(tmp_path / "worker.log") as process:
            await until(lambda: "metrics.port is in use; using a free port instead" in process.output(), "a warning")
            await until(lambda: "partitions assigned" in process.output(), "it works all the same")


@pytest.mark.slow
async def test_a_producer_serves_metrics_where_it_is_told_to(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    app = application(broker, topic_name)
    argv = ["produce", "--synthetic", "--rate", "1000", "--adaptive", "--metrics-port", str(port)]
    producer = Process([sys.executable, "-m", "workers", *argv, *app.flags()], tmp_path / "produce.log")
    try:
        await until(lambda: total([samples(port)], "workers_ticks_sent_total") > 100, "ticks are sent and counted")
        scale = ("pipeline_rate_scale_factor", (("provider", "producer"),))
        await until(lambda: samples(port).get(scale) == 1, "the pace is shown")
        assert http(port, "/healthz")[0] == 200
        producer.stop()
    finally:
        producer.kill()


@pytest.mark.slow
async def test_a_store_tells_when_it_stores(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    app = application(broker, topic_name, metrics__port=port)
    argv = ["store", "--sqlite", str(tmp_path / "frames.db")]
    store = Process([sys.executable, "-m", "workers", *argv, *app.flags()], tmp_path / "store.log")
    try:
        await until(lambda: http(port, "/readyz") == (200, "ok\n"), "ready")
        assert http(port, "/healthz") == (200, "ok\n")
        assert total([samples(port)], "workers_store_partitions_owned") == PARTITIONS
        assert total([samples(port)], "workers_store_up") == 1
        store.stop()
    finally:
        store.kill()


async def test_the_lag_is_exported_where_backpressure_is_off_and_nothing_is_published(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    app = application(
        broker,
        topic_name,
        metrics__port=port,
        backpressure__enabled=False,
        backpressure__soft_lag=1,
        backpressure__hard_lag=2,
    )
    await send(app, ticks(500))
    with app.worker(tmp_path / "worker.log") as process:
        await committed_through(app, process=process)
        lag = ("kafka_consumergroup_lag_sum", (("consumergroup", app.name), ("topic", app.topics.ticks)))
        await until(lambda: samples(port).get(lag) == 0, "the lag is measured, and none is left")
        assert total([samples(port)], "kafka_consumergroup_members") == 1
        assert not [name for name, _ in samples(port) if name == "pipeline_backpressure_state"]
    assert not any((await read_topic(app.bootstrap, f"{app.name}-feedback")).values())
