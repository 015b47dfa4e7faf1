"""One reader at one page: a shell that goes on from block to block, and terminals beside it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.docs.pages import ROOT, Block, lines_of, misses

__all__ = ["Session"]

LINE_LIMIT_S: Final = 90.0
PASTE_LIMIT_S: Final = 150.0  # a first start compiles
START_LIMIT_S: Final = 90.0  # a first start compiles
STOP_LIMIT_S: Final = 30.0
SLACK: Final = 3  # what a page says of times is for a machine that does nothing else
METRICS_PORT: Final = "9404"  # pages name the default; here several workers run side by side
# Names that pages give get a suffix, so that runs on one cluster don't meet.
_NAMES: Final = re.compile(r"(--application-id[ =]|topics\.frames=|--to-topic[ =])([\w.-]+)")


class Session:
    """What a page's blocks do, in a folder of its own and with topics of its own, until it is left."""

    def __init__(self, name: str, bootstrap_servers: str, folder: Path, extra: Mapping[str, str] | None = None) -> None:
        self.suffix = uuid.uuid4().hex[:8]
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("KAFKA_", "WORKERS_"))}
        application = f"docs-{name}-{self.suffix}"
        self.environ = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONWARNINGS": "error",
            "PYTHONPATH": str(ROOT),
            "PROJECT": str(ROOT),
            "COLUMNS": "200",
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            # A dead worker is noticed sooner than by default: nobody waits here for its own sake.
            "KAFKA_SESSION_TIMEOUT_MS": "6000",
            "KAFKA_HEARTBEAT_INTERVAL_MS": "1000",
            "WORKERS__APPLICATION_ID": application,
            "WORKERS__TOPICS__TICKS": f"{application}-ticks",
            "WORKERS__TOPICS__FRAMES": f"{application}-frames",
            "WORKERS__TOPICS__PARTITIONS": "4",
            "WORKERS__TOPICS__REPLICATION_FACTOR": "1",
            "WORKERS__METRICS__PORT": "0",
            **(extra or {}),
        }
        self.output = ""
        self._port = _free_port()
        self._terminals: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._say("set -m")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process, _log in self._terminals:
            _signal(process, signal.SIGTERM)
        for process, _log in self._terminals:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait(10)
        # With job control every job is a process group of its own, which outlives the shell.
        self._say("kill -9 $(jobs -p) 2> /dev/null; exit")
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        _signal(self._shell, signal.SIGKILL)
        self._shell.wait(10)
        self._shell.stdout.close()

    # -- blocks -------------------------------------------------------------------------------------------------------

    def play(self, block: Block) -> None:
        """Do what the reader of the block does. Raises ``AssertionError`` where something else happens than is said."""
        match block.verb:
            case "run" | "needs":
                self._lines(block, lines_of(block.body), 0)
            case "ends":
                self._lines(block, lines_of(block.body), block.number)
            case "instead":
                self._lines(block, [block.what], 0)
            case "pasted":
                self._pasted(block)
            case "wait":
                self._until(block)
            case "background":
                self._background(block)
            case "output":
                wrong = list(misses(block.body, self.output, in_order=not block.what))
                assert not wrong, f"{block.where}: {wrong} is not in the output:\n{self.output}{self._logs()}"
            case "file":
                (self.folder / block.what).write_text(block.body)
            case "not run":
                check_syntax(block)

    def _lines(self, block: Block, lines: list[str], last_code: int) -> None:
        self.output = ""
        for number, line in enumerate(lines):
            code, said = self._command(line)
            self.output += said
            wanted = last_code if number == len(lines) - 1 else 0
            assert code == wanted, f"{block.where}: `{line}` ended with {code}, not {wanted}:\n{said}{self._logs()}"

    def _pasted(self, block: Block) -> None:
        """Paste a block: a command that never ends, or reads what is typed, keeps the lines after it from running."""
        if not (self.folder / "docs").exists():
            (self.folder / "docs").symlink_to(ROOT / "docs")  # its reader is in a checkout
        log = self.folder / "pasted.log"
        with log.open("wb") as out:
            shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            shell.communicate(f"set -m\n{self._renamed(block.body)}".encode(), timeout=PASTE_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{block.where}: did not end:\n{log.read_text(errors='replace')}") from None
        finally:
            _end_session(shell.pid)
            shell.wait(10)
        self.output = log.read_text(errors="replace")
        assert shell.returncode == 0, f"{block.where}: ended with {shell.returncode}:\n{self.output}"

    def _until(self, block: Block) -> None:
        limit_s = time.monotonic() + block.number * SLACK
        while True:
            self.output = ""
            codes = []
            for line in lines_of(block.body):
                code, said = self._command(line)
                codes.append(code)
                self.output += said
            if not any(codes) and not list(misses(block.what, self.output, in_order=True)):
                return
            assert time.monotonic() < limit_s, (
                f"{block.where}: not within {block.number} s: {block.what}; it ended with {codes}:\n"
                f"{self.output}{self._logs()}"
            )
            time.sleep(0.5)

    def _background(self, block: Block) -> None:
        (command,) = lines_of(block.body)
        log = self.folder / f"terminal-{len(self._terminals) + 1}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {self._renamed(command)}"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._terminals.append((process, log))
        limit_s = time.monotonic() + START_LIMIT_S
        while block.what not in log.read_text(errors="replace"):
            assert process.poll() is None, f"{block.where}: it ended with {process.returncode}:\n{self._logs()}"
            assert time.monotonic() < limit_s, f"{block.where}: it never said {block.what!r}:\n{self._logs()}"
            time.sleep(0.05)

    def _logs(self) -> str:
        return "".join(
            f"\n--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for _process, log in self._terminals
        )

    # -- the shell ----------------------------------------------------------------------------------------------------

    def _renamed(self, command: str) -> str:
        return _NAMES.sub(rf"\g<1>\g<2>-{self.suffix}", command).replace(METRICS_PORT, str(self._port))

    def _say(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\n".encode())
        self._shell.stdin.flush()

    def _command(self, line: str) -> tuple[int, str]:
        """Run a line in the page's shell, to its end: its exit code and what it said."""
        mark = f"end-of-line-{uuid.uuid4().hex}"
        # A command must not read the lines that are for the shell.
        self._say(f"{{ {self._renamed(line)}\n}} < /dev/null; printf '\\n%s %d\\n' {mark} $?")
        said = self._read_to(re.compile(rf"\n{mark} (\d+)\n".encode()), line)
        text, code = said
        return code, text

    def _read_to(self, end: re.Pattern[bytes], line: str) -> tuple[str, int]:
        assert self._shell.stdout is not None
        got = b""
        limit_s = time.monotonic() + LINE_LIMIT_S
        while (found := end.search(got)) is None:
            left_s = limit_s - time.monotonic()
            ready = left_s > 0 and select.select([self._shell.stdout], [], [], left_s)[0]
            assert ready, f"`{line}` did not end within {LINE_LIMIT_S:.0f} s; it said:\n{got.decode(errors='replace')}"
            piece = os.read(self._shell.stdout.fileno(), 65_536)
            assert piece, f"`{line}` ended the shell; it said:\n{got.decode(errors='replace')}"
            got += piece
        return got[: found.start()].decode(errors="replace"), int(found[1])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def _end_session(session: int) -> None:
    """Kill what is left of a session: with job control its jobs are process groups of their own."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(path.name)) == session:
                os.kill(int(path.name), signal.SIGKILL)


def check_syntax(block: Block) -> None:
    """Look at a block that is not run: a shell and Python read it, and its words can be told apart."""
    if block.language == "python":
        compile(block.body, block.where, "exec")
        return
    assert block.language in ("console", "sh"), f"{block.where}: {block.language} can't be looked at without running it"
    done = subprocess.run(["bash", "-n"], input=block.body, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, f"{block.where}: {done.stderr}"
    for line in lines_of(block.body):
        assert shlex.split(line, comments=True), f"{block.where}: {line!r} does nothing"
