"""Why a partition can't be opened, for whoever asks after the worker's health, and whether it lies in this process."""

from __future__ import annotations

import contextlib
import errno
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from workers.errors import WorkersError
from workers.kafka.errors import chain, told

__all__ = ["Trouble", "raise_descriptor_limit", "words"]

_OUT: Final = (errno.EMFILE, errno.ENFILE)
_SPARE: Final = 8  # descriptors; with as few left, connections fail whatever the client says of them
_WANTED: Final = 65_536


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a partition from being opened. ``is_own``: it lies in this process, and not with the cluster."""

    text: str
    is_own: bool
    since_s: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, error: BaseException, before: Trouble | None) -> Trouble:
        """Of an attempt that failed; ``before``: of the attempt before it."""
        out = _out_of_descriptors(error)
        new = cls(out or words(error), is_own=out is not None)
        if before is not None and before.is_own == new.is_own:
            return cls(new.text, new.is_own, before.since_s)
        return new

    def lasts_s(self) -> float:
        """For how long it has been so."""
        return time.monotonic() - self.since_s


def words(error: BaseException) -> str:
    """An error for people: this package's own have sentences."""
    return str(error) if isinstance(error, WorkersError) else told(error)


def raise_descriptor_limit() -> None:
    """Let this process have as many open files and connections as the system lets it ask for, as Java does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _out_of_descriptors(error: BaseException) -> str | None:
    """The sentence for a process that has no more file descriptors, if this is one."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not _says_so(error) and (limit == resource.RLIM_INFINITY or _open_descriptors() < limit - _SPARE):
        return None
    return (
        f"this process is out of file descriptors: its limit is {limit}. Raise it with ulimit -n, LimitNOFILE in a "
        "systemd unit or --ulimit nofile of a container, or run more workers with fewer partitions each"
    )


def _says_so(error: BaseException) -> bool:
    return any(isinstance(each, OSError) and each.errno in _OUT for each in chain(error, implied=True))


def _open_descriptors() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError as error:  # where there is no /proc; or there is no descriptor left to look
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] if error.errno in _OUT else 0
