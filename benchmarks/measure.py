"""Measures a command from outside: CPU and memory of its whole process tree, and when its output topic stopped growing.

The driver shares nothing with what it measures. CPU time is user plus system, of every process the command started;
memory is the sum of resident sizes, sampled, so shared pages count more than once: an upper bound.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition

__all__ = ["Measured", "measure_consumer", "measure_windower"]

SAMPLE_S = 0.05
SETTLED_S = 4.0


@dataclass(frozen=True)
class Measured:
    """One run; ``seconds`` and ``cpu_s`` from process start to the last frame (or, for a bare consumer, its exit)."""

    seconds: float
    cpu_s: float
    rss_mib: float
    frames: int


class _Tree:
    """CPU and memory of a process and its descendants, those that have ended included."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[int, float] = {}
        self.peak_rss = 0

    def sample(self) -> float:
        with contextlib.suppress(psutil.Error):
            rss = 0
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu_s[process.pid] = times.user + times.system
                    rss += process.memory_info().rss
            self.peak_rss = max(self.peak_rss, rss)
        return sum(self._cpu_s.values())


@contextlib.contextmanager
def _running(argv: Sequence[str], log: Path) -> object:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def measure_windower(argv: Sequence[str], bootstrap: str, out_topic: str, log: Path, *, limit_s: float) -> Measured:
    """Run until ``out_topic`` has not grown for a while; the figures are those at its last growth."""
    watcher = Consumer({"bootstrap.servers": bootstrap, "group.id": f"watch-{out_topic}"})
    partitions = [
        TopicPartition(out_topic, number) for number in watcher.list_topics(out_topic).topics[out_topic].partitions
    ]
    try:
        with _running(argv, log) as process:
            tree = _Tree(process.pid)  # type: ignore[attr-defined]
            started_s = time.monotonic()
            last_s, last_cpu_s, end = started_s, 0.0, 0
            while time.monotonic() - started_s < limit_s:
                cpu_s = tree.sample()
                now_s = time.monotonic()
                with contextlib.suppress(KafkaException):
                    found = sum(watcher.get_watermark_offsets(each, timeout=5)[1] for each in partitions)
                    if found != end:
                        end, last_s, last_cpu_s = found, now_s, cpu_s
                if end and now_s - last_s > SETTLED_S:
                    break
                if process.poll() is not None:  # type: ignore[attr-defined]
                    break
                time.sleep(SAMPLE_S)
            if not end or process.poll() is not None:  # type: ignore[attr-defined]
                raise RuntimeError(f"{argv[0]} wrote nothing or ended early; its log ends:\n{log.read_text()[-2000:]}")
            return Measured(last_s - started_s, last_cpu_s, tree.peak_rss / 2**20, end)
    finally:
        watcher.close()


def measure_consumer(argv: Sequence[str], log: Path, *, limit_s: float) -> Measured:
    """Run to the process's own end."""
    with _running(argv, log) as process:
        tree = _Tree(process.pid)  # type: ignore[attr-defined]
        started_s = time.monotonic()
        cpu_s = 0.0
        while process.poll() is None:  # type: ignore[attr-defined]
            cpu_s = tree.sample()
            if time.monotonic() - started_s > limit_s:
                raise RuntimeError(f"{argv[0]} did not end within {limit_s} s")
            time.sleep(SAMPLE_S)
        if process.returncode:  # type: ignore[attr-defined]
            raise RuntimeError(f"{argv} ended with {process.returncode}:\n{log.read_text()[-2000:]}")  # type: ignore[attr-defined]
        return Measured(time.monotonic() - started_s, cpu_s, tree.peak_rss / 2**20, 0)
