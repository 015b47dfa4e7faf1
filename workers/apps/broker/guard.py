"""A small process that outlives its owner just long enough to clean up after it.

A broker must never be left behind, however its owner ends: by a closed context, an exception, Ctrl-C, SIGTERM without
a handler, or SIGKILL. Nothing inside the owner can promise that, so the owner starts this program first and lets it
do the starting. It is one thread, standard library only (Docker's client apart, which it needs just for containers),
and it is run as a file, so that it is up in some 60 ms whatever the package imports.

    owner ──socket on fd 0──▶ guard ──child──▶ JVM            guard dies: the kernel kills the JVM (Linux)
                                    └─label──▶ container       owner dies: the guard kills, removes, exits

The end of the owner shows in two ways, and either is enough: the socket reaches its end, or the owner's process is
gone. The second matters when a forked child of the owner still holds a copy of the socket.

One request a line, one reply a line, both JSON:

    {"do": "start", "argv": [...], "log": path}   ->  {"pid": 123}      one child at a time
    {"do": "signal", "number": 9}                 ->  {"sent": true}    false: no child is running
    {"do": "status"}                              ->  {"running": true} or {"running": false, "code": -9}
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1
_POLL_S = 1.0  # only matters where a process can't be watched by descriptor; elsewhere the wake-up is immediate


class _Guard:
    """The owner's socket on one side, at most one child process and one label of containers on the other."""

    def __init__(self, owner_pid: int, directory: Path | None, label: str | None) -> None:
        self._owner_pid = owner_pid
        self._directory = directory
        self._label = label
        self._socket = socket.socket(fileno=0)
        self._child: subprocess.Popen[bytes] | None = None
        self._owner_fd = _open_process(owner_pid)

    def run(self) -> None:
        """Serves requests until the owner is gone or asks for the end by closing its socket."""
        self._reply({"directory": str(self._directory) if self._directory else None})
        pending = b""
        while self._owner_lives():
            chunk = self._receive()
            if chunk is None:
                continue
            if not chunk:
                return
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self._reply(self._answer(json.loads(line)))

    def clean_up(self) -> None:
        """Kills the child, removes the labelled containers and the directory. Never raises: each step is tried."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            self._child.wait()
        if self._label is not None:
            _remove_containers(self._label)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _owner_lives(self) -> bool:
        # getppid changes the moment the owner ends; a process id alone could already belong to somebody else.
        return os.getppid() == self._owner_pid

    def _receive(self) -> bytes | None:
        """What the owner sent; ``b""`` at its end; ``None`` when there was nothing to read yet."""
        watched = [0] if self._owner_fd is None else [0, self._owner_fd]
        readable, _, _ = select.select(watched, [], [], _POLL_S)
        if 0 not in readable:
            return None
        try:
            return self._socket.recv(65_536)
        except ConnectionResetError:
            return b""

    def _reply(self, reply: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the owner's end is noticed when reading
            self._socket.sendall(json.dumps(reply).encode() + b"\n")

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        match request:
            case {"do": "start", "argv": [*argv], "log": str(log)}:
                return self._start([str(part) for part in argv], log)
            case {"do": "signal", "number": int(number)}:
                return {"sent": self._signal(number)}
            case {"do": "status"}:
                code = self._child.poll() if self._child else None
                return {"running": self._running(), "code": code}
        return {"error": f"the guard knows no request {request!r}"}

    def _running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _start(self, argv: list[str], log: str) -> dict[str, object]:
        if self._running():
            return {"error": "a process is running already"}
        try:
            with Path(log).open("ab") as output:
                self._child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_die_with_parent
                )
        except OSError as error:
            return {"error": f"{argv[0]}: {error}"}
        return {"pid": self._child.pid}

    def _signal(self, number: int) -> bool:
        if self._child is None or not self._running():
            return False
        self._child.send_signal(number)
        return True


def _die_with_parent() -> None:
    """Runs in the child before exec: asks Linux to kill it when the guard ends, whatever ends the guard.

    The kernel means the *thread* that forked; the guard has one only, so here the two are the same.
    """
    if sys.platform != "linux":
        return
    guard_pid = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard_pid:  # it ended between fork and prctl
        os._exit(1)


def _open_process(pid: int) -> int | None:
    """A descriptor that turns readable when the process ends; ``None`` where the system has no such thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _remove_containers(label: str) -> None:
    try:
        import docker  # type: ignore[import-untyped]

        client = docker.from_env(timeout=30)
        try:
            for container in client.containers.list(all=True, filters={"label": label}):
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
        finally:
            client.close()
    except Exception as error:  # the last thing this process does; whoever reads standard error can still act
        sys.stderr.write(f"workers.apps.broker: containers labelled {label} could not be removed: {error}\n")


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--owner", type=int, required=True)
    parser.add_argument("--directory-prefix", help="make a temporary directory, report it, remove it at the end")
    parser.add_argument("--label", help="remove containers with this label at the end")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    prefix = options.directory_prefix
    directory = Path(tempfile.mkdtemp(prefix=prefix)) if prefix else None
    guard = _Guard(options.owner, directory, options.label)
    try:
        guard.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # cleaning up is what such a signal asks for; let it finish
        guard.clean_up()


if __name__ == "__main__":
    _main()
