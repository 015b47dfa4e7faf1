"""Where a worker's time goes: py-spy looks at it a few hundred times a second while it drains a topic.

usage: python -m benchmarks.where [--ticks 4000000] [--out DIR]

Each look is counted for the stage whose code is innermost: fetching (the client, its protocol and checksums), decoding
into columns, windows, frames, the commit, and what is left. With ``--out``, the collapsed stacks are kept there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.fill import create_topic, delete_topics, fill
from benchmarks.measure import worker_argv
from workers.apps.broker import find_broker

PARTITIONS = 4
RATE = 250
LIMIT_S = 120.0
DRAINED = '"before": "hard"'  # the worker\'s own log, when the lag is gone
START = "start: imports"
STAGES = (  # the first of which a mark is in the innermost frame that has any
    (START, ("<frozen importlib", "concurrent/futures/thread.py")),
    ("lane: decompress, decode, windows, frames", ("NativeLane._take_batch (", "NativeLane.process (")),
    ("lane: results as objects", ("NativeLane._collect (",)),
    ("rejected records", ("NativeLane._take_record (", "NativeLane._reject (", "workers/core/ledger.py")),
    ("commit: changelog records", ("take_changes",)),
    ("commit: pack, compress, send", ("workers/kafka/commit.py", "workers/kafka/lz4.py", "aiokafka/producer")),
    (
        "fetch: client, protocol, checksums",
        ("aiokafka/consumer", "workers/kafka/fetch_hook.py", "workers/kafka/consumer.py"),
    ),
    ("sockets and event loop", ("asyncio/", "aiokafka/conn.py", "aiokafka/client.py", "run (")),
    ("worker's loop", ("workers/worker/worker.py",)),
)


def stage_of(stack: str) -> str:
    """The stage of a collapsed stack, outermost frame first."""
    for frame in reversed(stack.split(";")):
        for name, marks in STAGES:
            if any(mark in frame for mark in marks):
                return name
    return "other"


def count(lines: Iterable[str]) -> Counter[str]:
    """Looks by stage, from py-spy's collapsed stacks."""
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, number = line.rpartition(" ")
        found[stage_of(stack)] += int(number)
    return found


def table(found: Counter[str]) -> str:
    """Markdown, the largest first; the start is given apart, since it is paid once."""
    started = found.pop(START, 0)
    total = max(found.total(), 1)
    lines = ["| stage | share of the time after the start |", "|---|---|"]
    lines += [f"| {name} | {number / total:.0%} |" for name, number in found.most_common()]
    return "\n".join([*lines, f"\n{START}: {started / RATE:.1f} s under the profiler"])


async def _run(bootstrap: str, ticks: int, stacks: Path) -> None:
    topic, name = f"where-{uuid.uuid4().hex[:8]}", f"where-out-{uuid.uuid4().hex[:8]}"
    await fill(bootstrap, topic, ticks, partitions=PARTITIONS)
    await create_topic(bootstrap, name, PARTITIONS)
    await asyncio.to_thread(_watch, worker_argv(bootstrap, topic, name, PARTITIONS), stacks, ticks)
    await delete_topics(bootstrap, [topic, name])


def _watch(argv: list[str], stacks: Path, ticks: int) -> None:
    spy = str(Path(sys.executable).parent / "py-spy")
    record = [spy, "record", "--rate", str(RATE), "--format", "raw", "--full-filenames", "-o", str(stacks), "--"]
    log = stacks.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen([*record, *argv], stdout=out, stderr=out, start_new_session=True)
    try:
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s and process.poll() is None and DRAINED not in log.read_text():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    if not stacks.exists() or DRAINED not in log.read_text():
        raise RuntimeError(f"the {ticks:,} ticks were not drained under py-spy:\n{log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=8_000_000)
    parser.add_argument("--out", type=Path, help="keep the collapsed stacks here")
    options = parser.parse_args()
    os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xms1g -Xmx1g")
    with tempfile.TemporaryDirectory(prefix="workers-where-") as folder, find_broker() as broker:
        stacks = (options.out or Path(folder)) / "where.stacks"
        stacks.parent.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(broker.bootstrap_servers, options.ticks, stacks))
        print(table(count(stacks.read_text().splitlines())))


if __name__ == "__main__":
    main()
