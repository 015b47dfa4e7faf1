"""Measures a command from outside: CPU and memory of its whole process tree, and when its last result could be read.

The driver shares nothing with what it measures. CPU time is user plus system, of every process the command started;
memory is the sum of resident sizes, sampled, so shared pages count more than once: an upper bound.

The last result is the last that the data caused. Frames marked ``"status":"provisional"`` are left out: the last of
them are brought out by the wall clock, seconds after the log's end, and say nothing of speed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition

__all__ = ["Measured", "measure_consumer", "measure_windower", "worker_argv"]

SAMPLE_S = 0.05
SETTLED_S = 4.0
PROVISIONAL = b'"status":"provisional"'


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
def _running(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
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


def worker_argv(bootstrap: str, topic: str, name: str, partitions: int, guarantee: str = "exactly_once") -> list[str]:
    """`workers run` over a topic, as an application of its own; ``name`` is also its frames topic's."""
    values = {
        "bootstrap_servers": bootstrap,
        "application_id": name,
        "topics.ticks": topic,
        "topics.frames": name,
        "topics.partitions": partitions,
        "processing_guarantee": guarantee,
        "metrics.port": "off",
    }
    flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "workers", "run", *flags]


def measure_windower(argv: Sequence[str], bootstrap: str, out_topic: str, log: Path, *, limit_s: float) -> Measured:
    """Run until ``out_topic`` has not grown for a while; the figures are those when its last result was committed."""
    watcher = Consumer({"bootstrap.servers": bootstrap, "group.id": f"watch-{out_topic}"})
    numbers = sorted(watcher.list_topics(out_topic).topics[out_topic].partitions)
    samples: list[tuple[float, float, tuple[int, ...]]] = []  # seconds, CPU seconds, committed ends
    try:
        with _running(argv, log) as process:
            tree = _Tree(process.pid)
            started_s = grown_s = time.monotonic()
            while time.monotonic() - started_s < limit_s and process.poll() is None:
                cpu_s, now_s = tree.sample(), time.monotonic()
                with contextlib.suppress(KafkaException):
                    ends = tuple(_end(watcher, out_topic, number) for number in numbers)
                    if any(ends) and (not samples or ends != samples[-1][2]):
                        samples.append((now_s - started_s, cpu_s, ends))
                        grown_s = now_s
                if samples and now_s - grown_s > SETTLED_S:
                    break
                time.sleep(SAMPLE_S)
            if not samples or process.poll() is not None:
                raise RuntimeError(f"{argv[0]} wrote nothing or ended early; its log ends:\n{log.read_text()[-2000:]}")
        frames, last = _results(watcher, out_topic, samples[-1][2])
        for seconds, cpu_s, ends in samples:
            if all(end > offset for end, offset in zip(ends, last, strict=True)):
                return Measured(seconds, cpu_s, tree.peak_rss / 2**20, frames)
        raise RuntimeError(f"the results of {argv[0]} end at {last}, behind the ends that were seen: {samples[-1][2]}")
    finally:
        watcher.close()


def _end(watcher: Consumer, topic: str, number: int) -> int:
    found: tuple[int, int] = watcher.get_watermark_offsets(TopicPartition(topic, number), timeout=5)
    return found[1]


def _results(reader: Consumer, topic: str, ends: Sequence[int]) -> tuple[int, list[int]]:
    """How many frames that are not provisional there are before ``ends``, and the offset of each partition's last."""
    last = [-1] * len(ends)
    frames = 0
    reader.assign([TopicPartition(topic, number, 0) for number, end in enumerate(ends) if end])
    quiet_s = time.monotonic() + SETTLED_S
    while time.monotonic() < quiet_s:
        for message in reader.consume(10_000, timeout=0.5):
            quiet_s = time.monotonic() + 1.0
            number, offset, value = message.partition(), message.offset(), message.value()
            if number is None or offset is None or value is None or message.error() is not None:
                continue
            if offset < ends[number] and PROVISIONAL not in value:
                frames += 1
                last[number] = max(last[number], offset)
    return frames, last


def measure_consumer(argv: Sequence[str], log: Path, *, limit_s: float) -> Measured:
    """Run to the process's own end."""
    with _running(argv, log) as process:
        tree = _Tree(process.pid)
        started_s = time.monotonic()
        cpu_s = 0.0
        while process.poll() is None:
            cpu_s = tree.sample()
            if time.monotonic() - started_s > limit_s:
                raise RuntimeError(f"{argv[0]} did not end within {limit_s} s")
            time.sleep(SAMPLE_S)
        if process.returncode:
            raise RuntimeError(f"{argv} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        return Measured(time.monotonic() - started_s, cpu_s, tree.peak_rss / 2**20, 0)
