"""Where a worker's time goes: py-spy looks at it a few hundred times a second while it drains a topic.

usage: python -m benchmarks.where [--ticks 4000000] [--out DIR]

Each look is counted for the stage whose code is innermost: fetching (the client, its protocol and checksums), decoding
into columns, windows, frames, the commit, and what is left. With ``--out``, the collapsed stacks are kept there.
"""

from __future__ import annotations

import argparse
import asyncio
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
from benchmarks.growth import _argv
from workers.broker import find_broker

PARTITIONS = 4
RATE = 250
LIMIT_S = 120.0
STAGES = (  # the first whose mark is in a stack's innermost frames of ours
    ("decode into columns", ("_take_batches (workers/batch_lane.py",)),
    ("decompress", ("payload (workers/rawbatch.py", "lz4_decode")),
    ("windows", ("_take_rows (workers/batch_lane.py", "_settle (workers/batch_lane.py")),
    ("frames", ("_take_emissions (workers/batch_lane.py",)),
    ("state for the changelog", ("take_changes (workers/batch_lane.py",)),
    ("late and rejected records", ("_report_late", "_decode_flagged", "_reject (workers")),
    ("commit: pack and send", ("workers/sink.py", "aiokafka/producer")),
    ("fetch: client and protocol", ("aiokafka/consumer", "aiokafka/conn.py", "workers/batches.py", "aiokafka/record")),
    ("worker's loop", ("workers/worker.py",)),
    ("start: imports and loading compiled code", ("<frozen importlib", "numba", "workers/jit.py")),
)


def stage_of(stack: str) -> str:
    """The stage of a collapsed stack, outermost frame first."""
    for frame in reversed(stack.split(";")):
        for name, marks in STAGES:
            if any(mark in frame for mark in marks):
                return name
    return "other: event loop, sockets, system"


def count(lines: Iterable[str]) -> Counter[str]:
    """Looks by stage, from py-spy's collapsed stacks."""
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, number = line.rpartition(" ")
        found[stage_of(stack)] += int(number)
    return found


def table(found: Counter[str]) -> str:
    """Markdown, the largest first."""
    total = found.total()
    return "\n".join(
        ["| stage | share of the worker's time |", "|---|---|"]
        + [f"| {name} | {number / total:.0%} |" for name, number in found.most_common()]
    )


async def _run(bootstrap: str, ticks: int, stacks: Path) -> None:
    topic, name = f"where-{uuid.uuid4().hex[:8]}", f"where-out-{uuid.uuid4().hex[:8]}"
    await fill(bootstrap, topic, ticks, partitions=PARTITIONS)
    await create_topic(bootstrap, name, PARTITIONS)
    await asyncio.to_thread(_watch, _argv(bootstrap, topic, name, PARTITIONS), stacks, ticks)
    await delete_topics(bootstrap, [topic, name])


def _watch(argv: list[str], stacks: Path, ticks: int) -> None:
    spy = str(Path(sys.executable).parent / "py-spy")
    record = [spy, "record", "--rate", str(RATE), "--format", "raw", "--full-filenames", "-o", str(stacks), "--"]
    process = subprocess.Popen([*record, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    deadline_s = time.monotonic() + LIMIT_S
    os.set_blocking(process.stderr.fileno(), False)
    seen = ""
    while time.monotonic() < deadline_s and process.poll() is None:
        seen += process.stderr.read() or ""
        if '"before": "hard"' in seen or "hard -> ok" in seen:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    if not stacks.exists():
        raise RuntimeError(f"py-spy wrote nothing of {ticks} ticks:\n{seen[-2000:]}")


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
