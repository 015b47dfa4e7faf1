"""The suite's own promises: who leaves a socket fails, files stay together, and what is left out is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.fixtures_scheduling import FilesTogether, left_out

ROOT = Path(__file__).parents[2]

LEAKING = """
import asyncio, socket, threading
import pytest

kept = []


@pytest.fixture(scope="module")
def lasting():
    with socket.socket() as lasts:
        yield lasts


def test_before(lasting):
    pass


def test_that_refers_to_it():
    kept.append(socket.create_server(("127.0.0.1", 0)))


async def test_that_lost_it():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    ring = [await asyncio.open_connection(*server.sockets[0].getsockname())]
    ring.append(ring)
    server.close()


def test_whose_thread_closes_it_a_little_later():
    lasts = socket.socket()
    threading.Timer(0.2, lasts.close).start()


def test_after(lasting):
    import gc
    gc.collect()
"""

SKIPPING = """
import pytest


@pytest.mark.parametrize("number", range(3))
def test_of_docker(number):
    pytest.skip("no Docker daemon with apache/kafka")


def test_of_postgres():
    pytest.skip("no PostgreSQL server programs (initdb, pg_ctl) here")


def test_of_nothing():
    pass
"""


def pytest_on(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a file of tests with this suite's plugins and settings."""
    (folder / "tests").mkdir()
    (folder / "tests" / "unit").mkdir()
    (folder / "tests" / "unit" / "test_it.py").write_text(body)
    plugins = (
        "-p",
        "tests.support.fixtures_leaks",
        "-p",
        "tests.support.fixtures_scheduling",
        "-p",
        "no:cacheprovider",
    )
    where = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder))
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *where, *arguments, str(folder / "tests")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_socket_that_is_left_fails_the_test_that_left_it(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, LEAKING, "-q", "-n", "0")
    blamed = re.findall(r"^ERROR \S+::(\w+)", done.stdout, re.MULTILINE)
    assert blamed == ["test_that_refers_to_it", "test_that_lost_it"], done.stdout
    assert re.search(r"leaves 1 sockets open:\s+AF_INET \('127.0.0.1', \d+\)", done.stdout), done.stdout
    assert re.search(r"unclosed transport", done.stdout), "what Python says of it belongs to the message"
    assert "5 passed, 2 errors" in done.stdout


def test_the_last_line_says_what_was_left_out_for_want_of_what(tmp_path: Path) -> None:
    for arguments in (("-n", "0"), ("-n", "2")):
        folder = tmp_path / arguments[1]
        folder.mkdir()
        done = pytest_on(folder, SKIPPING, *arguments)
        told = [line for line in done.stdout.splitlines() if line.startswith("Left out")]
        assert told == ["Left out 4 tests, for want of: Docker (3), PostgreSQL (1)"], done.stdout
        assert done.returncode == 0


def test_a_reason_that_names_no_known_program_is_told_as_it_is() -> None:
    assert left_out(["Skipped: the moon is full"]) == "Left out 1 test, for want of: the moon is full (1)"
    assert left_out(["Skipped: all but what needs CLIENT_JARS was run"]).endswith("Java and Maven (1)")


def test_files_stay_together_but_for_unit_tests() -> None:
    scope = FilesTogether._split_scope
    assert scope(None, "tests/load/test_load.py::test_a[x::y]") == "tests/load/test_load.py"
    assert scope(None, "tests/chaos/test_chaos.py::test_a") == scope(None, "tests/chaos/test_outage.py::test_b")
    assert scope(None, "tests/unit/core/test_lane.py::test_a[x::y]") == "tests/unit/core/test_lane.py::test_a[x::y]"


def test_what_ci_would_install_is_everything_that_tests_start(tmp_path: Path) -> None:
    for program in ("bash", "python3"):
        (tmp_path / program).symlink_to(Path("/usr/bin/env") if program == "python3" else Path("/bin/bash"))
    (tmp_path / "id").write_text("#!/bin/bash\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(ROOT / ".ci" / "install-programs")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for package in (
        "make",
        "default-jre-headless",
        "maven",
        "openssl",
        "prometheus",
        "chromium",
        "cargo-web",
        "python3-venv",
    ):
        assert package in done.stdout.split(), package


def test_ci_tries_once() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] != "#"]
    assert commands[-3:] == [".ci/install-programs", "make check", "make test"]
    assert "--last-failed" not in (ROOT / "Makefile").read_text()
