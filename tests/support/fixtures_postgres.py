"""A real PostgreSQL for tests: a cluster of its own in a temporary directory, on a free port, gone with the session.

``postgres`` is the session's server; ``postgres_dsn`` a fresh database on it. ``own_postgres`` is a server that a test
may stop and start. PostgreSQL refuses to run as root, so that root's tests run it as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

__all__ = ["PostgresServer", "own_postgres", "postgres", "postgres_dsn", "postgres_server"]

LIMIT_S = 60
MISSING = "no PostgreSQL server programs (initdb, pg_ctl) here; .ci/install-programs installs Debian's"


def _programs() -> Path | None:
    """The directory of initdb and pg_ctl; Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].split(".")[0]))
    on_path = shutil.which("initdb")
    candidates = [*found, *([Path(on_path).resolve()] if on_path else [])]
    return next((path.parent for path in reversed(candidates) if (path.parent / "pg_ctl").exists()), None)


class PostgresServer:
    """One server. Use ``start`` and ``stop`` as often as needed; the data stays until ``remove``."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = _unprivileged_user()
        self._directory = Path(tempfile.mkdtemp(prefix="workers-postgres-"))
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        self._data = self._directory / "data"
        self.port = _free_port()
        self._run("initdb", "-D", self._data, "-U", "workers", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        # The socket's directory keeps the server away from the host's; fsync guards against nothing that tests do.
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._directory} -c fsync=off"
        )
        log = self._directory / "log"
        self._run("pg_ctl", "-D", self._data, "-l", log, "-o", options, "-w", "-t", str(LIMIT_S), "start")

    def stop(self) -> None:
        """Stop as a crash would: no transaction under way is finished."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "-t", str(LIMIT_S), "stop")

    def freeze(self) -> None:
        """SIGSTOP to all its processes: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().splitlines()[0]))
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that was about to end, when the postmaster went on
                process.send_signal(number)

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://workers@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """A new database's address."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "workers", name)
        return self.dsn(name)

    def remove(self) -> None:
        """Stop it where it runs, and delete the data."""
        try:
            if (self._data / "postmaster.pid").exists():
                self.stop()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        # Output goes to a file: a pipe would be held open by the server for as long as it runs.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [str(self._programs / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=LIMIT_S,
                check=False,
                user=self._user,
                cwd=self._directory,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            )
            output.seek(0)
            assert done.returncode == 0, f"{program} failed with {done.returncode}:\n{output.read()}"


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's server; not to be stopped."""
    yield from _server()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server for this test alone, started; it may be stopped and started again."""
    yield from _server()


def _server() -> Iterator[PostgresServer]:
    programs = _programs()
    if programs is None:
        pytest.skip(MISSING)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


postgres_server = contextmanager(_server)
"""A server outside of fixtures, for benchmarks; raises ``pytest.skip.Exception`` where there are no programs for it."""


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> str:
    """The address of a fresh database."""
    return postgres.create_database()
