"""All benchmarks, one after the other, into one report.

usage: python -m benchmarks [--quick] [--out DIR] [PART ...]

Parts: side_by_side (the worker, bare consumers, Flink and Kafka Streams), growth (keys, disorder, payload, partitions),
kinds (operators and kinds of windows, against plain tumbling ones), stalls (longest steps), memory (over event time),
freshness (how soon a frame can be read), where (a profile). Without parts, all: about 45 minutes. With ``--quick`` two
minutes, without growth, stalls, memory and where, for a look. What is printed is also in `DIR/report.md`, drawings
beside it. Each part is a module with more options: `python -m benchmarks.growth -h`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

PARTS: dict[str, tuple[str, list[str], list[str] | None]] = {
    "side_by_side": ("Side by side", [], ["--quick"]),
    "growth": ("How cost grows", [], None),
    "kinds": ("Operators and kinds of windows", [], ["--quick"]),
    "stalls": ("Longest steps", [], None),
    "memory": ("Memory over event time", [], None),
    "freshness": ("Freshness", [], ["--seconds", "30", "--idle-after", "1s"]),
    "where": ("Where the time goes", [], None),
}
# Title, arguments, and those of a quick run, which leaves out what has none.
DRAWS = ("growth", "freshness", "where")


def run_part(name: str, out: Path, *, quick: bool) -> str | None:
    """A part's Markdown; None where it failed. Its progress goes to the screen."""
    title, full, short = PARTS[name]
    if quick and short is None:
        return f"## {title}\n\nLeft out of a quick run."
    print(f"\n## {title}\n", flush=True)
    argv = [sys.executable, "-m", f"benchmarks.{name}", *(short if quick and short else full)]
    if name in DRAWS:
        argv += ["--out", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return f"## {title}\n\n{''.join(lines)}" if process.wait() == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of forty-five")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), metavar="DIR")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    report = [f"# Benchmarks\n\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {machine}"]
    failed = []
    for part in options.parts or PARTS:
        found = run_part(part, options.out, quick=options.quick)
        if found is None:
            failed.append(part)
        else:
            report.append(found)
        (options.out / "report.md").write_text("\n\n".join(report) + "\n")
    print(f"\nreport: {options.out / 'report.md'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
