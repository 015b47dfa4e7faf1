"""One worker, run; and its health and gauges, looked up when somebody asks: they cost nothing in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from workers.settings import Settings
from workers.telemetry.health import HealthServer
from workers.worker.trouble import raise_descriptor_limit
from workers.worker.worker import Worker

__all__ = ["not_alive", "not_ready", "refresh", "run_worker", "serving"]

STUCK_AFTER_S: Final = 60.0  # a lane's batch takes milliseconds, an answer of the client at most its request timeout
OWN_TROUBLE_S: Final = 60.0  # after which a partition that can't be opened for want of descriptors is no passing thing
_SHOWN: Final = 5


def not_alive(worker: Worker) -> Sequence[str]:
    """Why the worker should be started again; nothing while it is well."""
    reasons = []
    error = worker.failure
    if error is not None:
        reasons.append(f"failed: {error}")
    if worker.turned_s is not None and (silent_s := time.monotonic() - worker.turned_s) > STUCK_AFTER_S:
        reasons.append(f"the event loop has been stuck for {silent_s:.0f} s")
    for number, runner in worker.partitions.items():
        trouble = runner.trouble
        if trouble is not None and trouble.is_own and trouble.lasts_s() > OWN_TROUBLE_S:
            reasons.append(f"{worker.topic}[{number}] can't be opened: {trouble.text}")
            break
    return reasons


def not_ready(worker: Worker) -> Sequence[str]:
    """What the worker still waits for before it does all its work; a member without partitions is ready."""
    if not worker.joined:
        return [f"not in the group {worker.settings.application_id}, or a rebalance is under way"]
    waiting = [runner for runner in worker.partitions.values() if not runner.state.is_running]
    reasons = [
        f"{worker.topic}[{each.number}] is {each.state.phase.value}"
        + (f": {each.trouble.text}" if each.trouble else "")
        for each in waiting[:_SHOWN]
    ]
    if len(waiting) > _SHOWN:
        reasons.append(f"and {len(waiting) - _SHOWN} more")
    return reasons


def refresh(worker: Worker) -> None:
    """Set the gauges of every partition that the worker owns."""
    metrics, now_ns = worker.metrics, time.time_ns()
    for partition in (runner.state for runner in worker.partitions.values()):
        labels = (worker.topic, str(partition.number))
        metrics.lane_depth.labels(*labels).set(partition.waiting.records)
        metrics.lane_paused.labels(*labels).set(int(partition.paused))
        lane = partition.lane
        if lane is None:
            continue
        metrics.keys.labels(*labels).set(lane.key_count)
        newest_ns = lane.partition_max_ns
        if newest_ns is not None:
            metrics.partition_time.labels(*labels).set(newest_ns / 1e9)
            metrics.watermark_delay.labels(*labels).set((now_ns - newest_ns + worker.lane_spec.lag_ns) / 1e9)


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[HealthServer]:
    """Metrics and health of a worker over HTTP, where ``metrics.port`` says. Raises ``ConfigError`` as the server."""
    server = HealthServer(
        worker.settings.metrics,
        worker.metrics.registry,
        alive=lambda: not_alive(worker),
        ready=lambda: not_ready(worker),
        refresh=lambda: refresh(worker),
    )
    async with server:
        yield server


async def run_worker(settings: Settings, *, stop: asyncio.Event) -> None:
    """Run one worker until ``stop`` is set. Raises what `Worker.run` raises."""
    raise_descriptor_limit()
    worker = Worker(settings)
    async with serving(worker):
        await worker.run(stop)
