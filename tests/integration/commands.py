"""Running the ``workers`` command as users do: a process of its own, with nothing of the caller's environment that
could configure it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finished", "environment", "start", "workers"]

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output by lines."""
        return self.out.splitlines()


def environment(bootstrap_servers: str) -> dict[str, str]:
    """The caller's environment without settings, but with the broker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "WORKERS_"))}
    return kept | {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers}


def start(
    bootstrap_servers: str, *arguments: str | Path, cwd: Path, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start ``workers`` with these arguments and come back at once."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "workers", *map(str, arguments)],
        cwd=cwd,  # no config/workers.toml there: tests see the defaults
        env=environment(bootstrap_servers),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def workers(bootstrap_servers: str, *arguments: str | Path, cwd: Path, given: bytes | None = None) -> Finished:
    """Run ``workers`` with these arguments to its end; a hanging one is killed and fails the test."""
    process = start(
        bootstrap_servers, *arguments, cwd=cwd, stdin=subprocess.DEVNULL if given is None else subprocess.PIPE
    )
    try:
        out, err = process.communicate(given, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"workers {arguments} hung; it said {err.decode()!r}") from None
    return Finished(process.returncode, out.decode(), err.decode())
