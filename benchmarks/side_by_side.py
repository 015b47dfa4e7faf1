"""The side-by-side benchmark: the same topic, everybody in turn, medians.

usage: python -m benchmarks.side_by_side [--quick] [--ticks N] [--short N] [--repeats N] [--only NAME,...] [--json FILE]

Each contestant drains a short and a long topic, again and again, interleaved, so that a disturbance hits all alike.
The marginal cost per tick is (CPU of long - CPU of short) / (ticks of long - ticks of short): start-up, compilation
and warm-up cancel out; the whole process from start to last frame is given beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fill import create_topic, delete_topics, fill
from benchmarks.measure import Measured, measure_consumer, measure_windower, worker_argv
from workers.apps.broker import find_broker

PARTITIONS = 4
RUN_LIMIT_S = 300.0
PEERS = Path(__file__).parents[2] / "shared" / "peers"


@dataclass
class Contestant:
    """Something to measure: ``command`` gives its argv for (bootstrap, in topic, out topic, count)."""

    name: str
    command: Callable[[str, str, str, int], list[str]]
    windows: bool = True
    short: list[Measured] = field(default_factory=list)
    long: list[Measured] = field(default_factory=list)


def worker(guarantee: str) -> Callable[[str, str, str, int], list[str]]:
    return lambda bootstrap, topic, out, _count: worker_argv(bootstrap, topic, out, PARTITIONS, guarantee)


def bare(module: str) -> Callable[[str, str, str, int], list[str]]:
    return lambda bootstrap, topic, _out, count: [sys.executable, "-m", module, bootstrap, topic, str(count)]


def peer(folder: Path, guarantee: str, *more: str) -> Callable[[str, str, str, int], list[str]]:
    return lambda bootstrap, topic, out, _count: [
        *("bash", str(folder / "run.sh"), bootstrap, topic, out, "1", guarantee, *more)
    ]


def contestants(work: Path, *, peers: bool) -> list[Contestant]:
    """Everybody who can take part on this machine."""
    found = [
        Contestant("worker, exactly once", worker("exactly_once")),
        Contestant("worker, at least once", worker("at_least_once")),
        Contestant("aiokafka getmany, bare", bare("benchmarks.bare_getmany"), windows=False),
        Contestant("confluent-kafka consume, bare", bare("benchmarks.bare_rdkafka"), windows=False),
    ]
    if not peers:
        return found
    if not PEERS.is_dir():
        print(f"no peers at {PEERS}: Rust by hand, Flink and Kafka Streams are left out", file=sys.stderr)
        return found
    for name, folder, guarantee, *more in (
        ("Rust on librdkafka, by hand, exactly once", "rustloop", "eos"),
        ("Rust on the bare protocol, by hand, exactly once", "rustloop", "eos", "--fetch", "raw"),
        ("Flink, at least once", "flink", "alo"),
        ("Kafka Streams, at least once", "kafka-streams", "alo"),
    ):
        mine = work / folder  # the peers build beside their sources, which may be read-only
        if not mine.exists():
            shutil.copytree(PEERS / folder, mine)
        found.append(Contestant(name, peer(mine, guarantee, *more)))
    return found


async def measure(each: Contestant, bootstrap: str, topic: str, count: int, work: Path) -> Measured:
    """One run on fresh output topics, which are removed afterwards."""
    out = f"bench-{uuid.uuid4().hex[:8]}"
    log = work / f"{out}.log"
    argv = each.command(bootstrap, topic, out, count)
    if not each.windows:
        return await asyncio.to_thread(measure_consumer, argv, log, limit_s=RUN_LIMIT_S)
    await create_topic(bootstrap, out, PARTITIONS)
    try:
        return await asyncio.to_thread(measure_windower, argv, bootstrap, out, log, limit_s=RUN_LIMIT_S)
    finally:
        await delete_topics(bootstrap, [out])


def summarise(each: Contestant, short: int, long: int) -> dict[str, float | str]:
    """Medians of one contestant."""
    s_cpu, s_seconds = (statistics.median(getattr(run, name) for run in each.short) for name in ("cpu_s", "seconds"))
    l_cpu, l_seconds = (statistics.median(getattr(run, name) for run in each.long) for name in ("cpu_s", "seconds"))
    return {
        "name": each.name,
        "cpu_us_per_tick": (l_cpu - s_cpu) / (long - short) * 1e6,
        "ticks_per_s": (long - short) / max(l_seconds - s_seconds, 1e-9),
        "start_to_last_s": l_seconds,
        "cpu_s": l_cpu,
        "rss_mib": statistics.median(run.rss_mib for run in each.long),
        "frames": statistics.median(run.frames for run in each.long),
    }


def table(rows: list[dict[str, float | str]]) -> str:
    """A markdown table, with ratios to the same job done by hand in Rust, where that took part."""
    base = next((float(row["cpu_us_per_tick"]) for row in rows if "on librdkafka" in str(row["name"])), None)
    lines = [
        "| | CPU-µs per tick | × Rust on librdkafka | ticks/s | start to last frame, s | CPU-s | peak RSS, MiB "
        "| frames |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{float(row['cpu_us_per_tick']) / base:.2f}" if base else "-"
        lines.append(
            f"| {row['name']} | {row['cpu_us_per_tick']:.2f} | {ratio} | {row['ticks_per_s']:,.0f} | "
            f"{row['start_to_last_s']:.1f} | {row['cpu_s']:.1f} | {row['rss_mib']:.0f} | {row['frames']:,.0f} |"
        )
    return "\n".join(lines)


async def run(options: argparse.Namespace, bootstrap: str, work: Path) -> list[dict[str, float | str]]:
    """Fill the topics, run everybody in turn, and sum up."""
    topics = {size: f"bench-ticks-{size}-{uuid.uuid4().hex[:6]}" for size in (options.short, options.ticks)}
    for size, topic in topics.items():
        seconds = await fill(bootstrap, topic, size, partitions=PARTITIONS)
        print(f"filled {topic}: {size:,} ticks in {seconds:.1f} s, {size / seconds:,.0f} a second", file=sys.stderr)
    everybody = contestants(work, peers=not options.no_peers)
    if options.only:
        everybody = [each for each in everybody if any(name in each.name for name in options.only.split(","))]
    for number in range(1 if options.quick else 0, options.repeats + 1):
        for each in everybody:
            for size, runs in ((options.short, each.short), (options.ticks, each.long)):
                if number == 0 and size != options.short:
                    continue  # the first round, on the short topic, builds and compiles; it does not count
                found = await measure(each, bootstrap, topics[size], size, work)
                if number:
                    runs.append(found)
                print(
                    f"{number}/{options.repeats} {each.name}, {size:,}: {found.seconds:.1f} s, "
                    f"{found.cpu_s:.1f} CPU-s, {found.rss_mib:.0f} MiB",
                    file=sys.stderr,
                )
    return [summarise(each, options.short, options.ticks) for each in everybody]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small topics, one repeat, two contestants: one minute")
    parser.add_argument("--ticks", type=int, default=8_000_000)
    parser.add_argument("--short", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="names, or parts of them, with commas")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.quick:
        options.ticks, options.short, options.repeats, options.no_peers = 1_500_000, 300_000, 1, True
        options.only = options.only or "worker,confluent"
    os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xms1g -Xmx1g")
    started_s = time.monotonic()
    with find_broker() as broker, tempfile.TemporaryDirectory(prefix="workers-bench-") as folder:
        rows = asyncio.run(run(options, broker.bootstrap_servers, Path(folder)))
    print(table(rows))
    print(
        f"\n{options.ticks:,} and {options.short:,} ticks, medians of {options.repeats}; "
        f"{os.cpu_count()} cores with the broker on them; {time.monotonic() - started_s:.0f} s in all"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
