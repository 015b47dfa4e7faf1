"""The owner's side of `workers.apps.broker.guard`: start it, talk to it, end it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.errors import BrokerError

__all__ = ["Supervisor"]

_GUARD = Path(__file__).with_name("guard.py")
_REPLY_TIMEOUT_S = 20.0
_CLOSE_TIMEOUT_S = 60.0  # removing a container or a big data directory on a busy machine


class Supervisor:
    """One guard process. Closing it, or the end of this process for whatever reason, ends all it started.

    Safe to use from several threads: requests are made one after the other.
    """

    def __init__(self, *, directory_prefix: str | None = None, label: str | None = None) -> None:
        """Starts the guard; with ``directory_prefix`` it makes ``self.directory`` and removes it at the end; with
        ``label`` (``name=value``) it removes the containers that carry it.

        Raises ``BrokerError`` when the guard does not come up.
        """
        self._lock = threading.Lock()
        self._received = b""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_REPLY_TIMEOUT_S)
        # -P: the guard's own folder must not shadow the standard library. A session of its own: Ctrl-C in a terminal
        # goes to the owner alone, which then decides what happens to the broker.
        argv = [sys.executable, "-P", str(_GUARD), "--owner", str(os.getpid())]
        argv += ["--directory-prefix", directory_prefix] if directory_prefix else []
        argv += ["--label", label] if label else []
        try:
            with theirs:
                self._guard = subprocess.Popen(
                    argv, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
                )
        except BaseException:
            self._socket.close()
            raise
        try:
            hello = self._read_reply()
        except BaseException:
            self.close()
            raise
        directory = hello.get("directory")
        self.directory = Path(directory) if isinstance(directory, str) else Path(os.devnull)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, argv: Sequence[str], *, log: Path) -> int:
        """Starts the one child, its output appended to ``log``; returns its process id.

        Raises ``BrokerError`` when it can't be started or one is running already.
        """
        pid = self._request({"do": "start", "argv": list(argv), "log": str(log)})["pid"]
        assert isinstance(pid, int)
        return pid

    def signal(self, number: int) -> bool:
        """Sends a signal to the child; False when none is running. Never hits a process that took over its id."""
        return self._request({"do": "signal", "number": int(number)})["sent"] is True

    def exit_code(self) -> int | None:
        """The child's exit code (minus the signal that ended it); ``None`` while it runs or before the first one."""
        code = self._request({"do": "status"})["code"]
        return code if isinstance(code, int) else None

    def running(self) -> bool:
        """Whether the child runs (a paused one does)."""
        return self._request({"do": "status"})["running"] is True

    def close(self) -> None:
        """Ends the child, removes what the guard was told to remove, and waits for that. May be called twice."""
        with self._lock:
            self._socket.close()
        try:
            self._guard.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
            raise BrokerError(f"cleaning up after a broker took more than {_CLOSE_TIMEOUT_S:.0f} s") from None

    def _request(self, request: dict[str, object]) -> dict[str, object]:
        with self._lock:
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
                reply = self._read_reply()
            except OSError as error:
                raise BrokerError(f"the broker's guard process is gone: {error}") from error
        if "error" in reply:
            raise BrokerError(f"the broker's process: {reply['error']}")
        return reply

    def _read_reply(self) -> dict[str, object]:
        while b"\n" not in self._received:
            chunk = self._socket.recv(65_536)
            if not chunk:
                raise BrokerError("the broker's guard process ended unexpectedly; its reason is on standard error")
            self._received += chunk
        line, self._received = self._received.split(b"\n", 1)
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply
