"""The HTTP server of metrics and health, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from workers.backpressure.levels import Level
from workers.errors import ConfigError
from workers.settings import METRICS_OFF, MetricsSettings
from workers.telemetry.health import MAX_CONNECTIONS, HealthServer
from workers.telemetry.metrics import Metrics


async def ask(port: int | None, request: str) -> tuple[int, dict[str, str], str]:
    """Send a request as it is; the answer's status, headers and body."""
    assert port is not None
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode())
        answer = (await reader.read()).decode()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def get(path: str, *, accept: str = "*/*", method: str = "GET") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: here\r\nAccept: {accept}\r\n\r\n"


def free() -> MetricsSettings:
    return MetricsSettings(port=0)


async def test_metrics_come_as_text_and_where_asked_for_as_openmetrics() -> None:
    metrics = Metrics()
    metrics.ticks_in.labels("ticks", "0").inc(3)
    async with HealthServer(free(), metrics.registry) as server:
        status, headers, body = await ask(server.port, get("/metrics"))
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        found = {sample.name: sample.value for family in parse_text(body) for sample in family.samples}
        assert found["workers_ticks_in_total"] == 3
        status, headers, body = await ask(
            server.port, get("/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        )
        assert headers["content-type"].startswith("application/openmetrics-text")
        found = {sample.name: sample.value for family in parse_openmetrics(body) for sample in family.samples}
        assert found["workers_ticks_in_total"] == 3
        assert "process_resident_memory_bytes" in found
        assert "workers_build_info" in found


async def test_metrics_are_refreshed_before_they_are_written() -> None:
    metrics, looks = Metrics(), 0

    def refresh() -> None:
        nonlocal looks
        looks += 1
        metrics.lane_depth.labels("ticks", "0").set(looks)

    async with HealthServer(free(), metrics.registry, refresh=refresh) as server:
        for expected in (1, 2):
            _, _, body = await ask(server.port, get("/metrics"))
            assert f'workers_lane_depth_records{{partition="0",topic="ticks"}} {expected}.0' in body


async def test_health_says_what_is_wrong() -> None:
    alive: list[str] = []
    ready = ["ticks[3] is opening"]
    async with HealthServer(free(), Metrics().registry, alive=lambda: alive, ready=lambda: ready) as server:
        assert (await ask(server.port, get("/healthz")))[::2] == (200, "ok\n")
        assert (await ask(server.port, get("/readyz")))[::2] == (503, "ticks[3] is opening\n")
        ready.clear()
        assert (await ask(server.port, get("/readyz")))[::2] == (200, "ok\n")
        alive.append("failed: no broker")
        assert (await ask(server.port, get("/healthz")))[::2] == (503, "failed: no broker\n")
        assert (await ask(server.port, get("/readyz")))[::2] == (503, "failed: no broker\n")


async def test_a_check_that_fails_is_no_good_sign() -> None:
    def broken() -> list[str]:
        raise RuntimeError("no idea")

    async with HealthServer(free(), Metrics().registry, ready=broken, refresh=broken) as server:
        status, _, body = await ask(server.port, get("/readyz"))
        assert status == 503
        assert "no idea" in body
        assert (await ask(server.port, get("/metrics")))[0] == 500
        assert (await ask(server.port, get("/healthz")))[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/metrics", method="POST"), 405),
        (get("/elsewhere"), 404),
        (get("/"), 200),
        (get("/healthz?verbose"), 200),
        (get("/healthz", method="HEAD"), 200),
        ("GET /healthz HTTP/1.1\r\nCookie: " + "x" * 20_000 + "\r\n\r\n", 431),
        ("\r\n\r\n", 405),
    ],
)
async def test_other_requests_are_answered_too(request_: str, status: int) -> None:
    async with HealthServer(free(), Metrics().registry) as server:
        found, _, body = await ask(server.port, request_)
        assert found == status
        assert not (request_.startswith("HEAD") and body)


async def test_a_client_that_says_nothing_holds_up_nobody_and_many_are_turned_away() -> None:
    async with HealthServer(free(), Metrics().registry) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS - 1)]
        assert (await ask(server.port, get("/healthz")))[0] == 200
        silent.append(await asyncio.open_connection("127.0.0.1", server.port))
        assert (await ask(server.port, get("/healthz")))[0] == 503
        for _, writer in silent:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        async with HealthServer(MetricsSettings(port=wanted), Metrics().registry) as server:
            assert server.port != wanted
            assert (await ask(server.port, get("/healthz")))[0] == 200


async def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.host = 203\.0\.113\.1"):
        await HealthServer(MetricsSettings(host="203.0.113.1", port=0), Metrics().registry).__aenter__()


async def test_no_port_is_opened_where_metrics_are_off() -> None:
    async with HealthServer(MetricsSettings(port=METRICS_OFF), Metrics().registry) as server:
        assert server.port is None


def exported(metrics: Metrics) -> set[str]:
    return {sample.name + str(sample.labels) for family in metrics.registry.collect() for sample in family.samples}


def test_a_lost_partitions_gauges_vanish_and_its_counters_stay() -> None:
    metrics = Metrics()
    for partition in ("0", "1"):
        metrics.ticks_in.labels("ticks", partition).inc()
        metrics.keys.labels("ticks", partition).set(5)
        metrics.watermark_delay.labels("ticks", partition).set(5)
    before = exported(metrics)
    metrics.forget_partition("ticks", 1)
    metrics.forget_partition("ticks", 7)
    gone = before - exported(metrics)
    assert len(gone) == 2
    assert all("'partition': '1'" in name and ("keys" in name or "watermark" in name) for name in gone)


def test_pressure_is_exported_under_the_names_that_dashboards_know() -> None:
    metrics = Metrics()
    metrics.show_pressure("producer", Level.SOFT, 0.5)
    assert metrics.registry.get_sample_value("pipeline_backpressure_state", {"provider": "producer"}) == 1
    assert metrics.registry.get_sample_value("pipeline_rate_scale_factor", {"provider": "producer"}) == 0.5


def test_every_metric_has_a_help_text_and_its_unit_last() -> None:
    rows = Metrics().rows
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.help
        if row.kind == "counter":
            assert row.name.endswith("_total")
        if row.kind == "histogram":
            assert row.name.endswith("_seconds")
