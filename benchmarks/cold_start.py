"""How long workers that are started at once on a topic of many partitions take until all of it is served.

    python -m benchmarks.cold_start [--workers 4] [--partitions 64] [--rounds 4]

Each round: a new application, its workers started in the same moment, each a process of its own. Printed: seconds until
every worker was ready and the partitions that they own were all there are, the rebalances that the busiest saw, and the
client's warnings.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack
from pathlib import Path

from workers.apps.broker import find_broker
from workers.apps.broker.base import free_ports

LIMIT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with find_broker() as broker, tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            took_s, rebalances, warnings = one_round(
                broker.bootstrap_servers, options.workers, options.partitions, Path(folder) / str(number)
            )
            sys.stdout.write(f"{took_s:6.1f} s, {rebalances} rebalances, {warnings} warnings\n")
            sys.stdout.flush()


def one_round(bootstrap: str, count: int, partitions: int, logs: Path) -> tuple[float, int, int]:
    """Seconds, rebalances, warnings."""
    logs.mkdir()
    name = f"cold-{uuid.uuid4().hex[:8]}"
    settings = {"bootstrap_servers": bootstrap, "application_id": name, "topics.ticks": f"{name}-ticks"}
    settings |= {"topics.frames": f"{name}-frames", "topics.partitions": str(partitions), "logging.format": "json"}
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    subprocess.run(
        [sys.executable, "-m", "workers", "topics", "create", *flags], check=True, timeout=60, capture_output=True
    )
    ports = free_ports(count)
    with ExitStack() as stack:
        began_s = time.monotonic()
        for port in ports:
            log = stack.enter_context((logs / str(port)).open("wb"))
            argv = [sys.executable, "-m", "workers", "run", *flags, "--set", f"metrics.port={port}"]
            process = subprocess.Popen(argv, stdout=log, stderr=log)
            stack.callback(end, process)
        while not all_served(ports, partitions):
            if time.monotonic() - began_s > LIMIT_S:
                break
            time.sleep(0.05)
        took_s = time.monotonic() - began_s
        rebalances = max(int(value(metrics(port), "workers_rebalances_total")) for port in ports)
    text = "".join(path.read_text() for path in logs.iterdir())
    return took_s, rebalances, text.count('"level": "warning"')


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop it in order, and if it doesn't, by force."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def all_served(ports: list[int], partitions: int) -> bool:
    """Whether all are ready, and own together what there is."""
    try:
        ready = all(ask(port, "/readyz") == "ok\n" for port in ports)
        return ready and sum(value(metrics(port), "workers_partitions_owned") for port in ports) == partitions
    except (OSError, urllib.error.URLError):
        return False


def metrics(port: int) -> str:
    """The page of metrics."""
    return ask(port, "/metrics")


def ask(port: int, path: str) -> str:
    """What the worker answers; raises ``OSError`` where it doesn't."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def value(page: str, name: str) -> float:
    """A metric without labels."""
    found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
