"""Apache Kafka's jars, fetched once by Maven and kept in the user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from workers.apps.broker.base import KAFKA_VERSION, say
from workers.errors import BrokerUnavailableError

__all__ = ["POM", "cache_folder", "kafka_jars"]

POM: Final = Path(__file__).with_name("pom.xml")
_MAVEN_TIMEOUT_S = 900.0  # some 55 MB, on a slow line


def cache_folder() -> Path:
    """Where things worth keeping between runs lie: ``$XDG_CACHE_HOME`` or ``~/.cache``, in a folder of our own."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # An unset, empty or relative value means the default: so the XDG specification has it.
    base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
    return base / "tick-workers" / f"kafka-{KAFKA_VERSION}"


def kafka_jars() -> Path:
    """The folder with the jars, filled by Maven if this is the first time; other processes wait for that one.

    The folder is named by the pom's content, so another pom never finds the jars of this one, and it appears by a
    rename, so whoever sees it sees all of it. Raises ``BrokerUnavailableError`` when Maven is missing or fails.
    """
    folder = cache_folder() / hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailableError(f"Maven (mvn) is not on the PATH, and {folder} does not hold Kafka's jars yet")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / "lock"):
            if not folder.is_dir():
                _resolve(maven, folder)
    except OSError as error:
        raise BrokerUnavailableError(f"Kafka's jars can't be kept in {folder.parent}: {error}") from error
    return folder


def _resolve(maven: str, folder: Path) -> None:
    """Has Maven copy the jars next to ``folder``, then renames them into place. The lock is held."""
    for abandoned in folder.parent.glob("partial-*"):  # whoever made it died: we hold the lock
        shutil.rmtree(abandoned, ignore_errors=True)
    say(f"fetching Apache Kafka {KAFKA_VERSION} with Maven, once (about 55 MB) ...")
    started_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        shutil.copyfile(POM, work / "pom.xml")  # Maven wants to write beside it; the package may be read-only
        argv = [maven, "-q", "-B", "-f", str(work / "pom.xml"), "dependency:copy-dependencies"]
        argv.append(f"-DoutputDirectory={work / 'jars'}")
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_MAVEN_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrokerUnavailableError(f"Maven did not finish within {_MAVEN_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0 or not (work / "jars" / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise BrokerUnavailableError(
                f"Maven could not fetch Apache Kafka {KAFKA_VERSION} (exit code {done.returncode}):\n{tail}"
            )
        (work / "jars").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"... done in {time.monotonic() - started_s:.0f} s; kept in {folder}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file's lock; a lock ends with its process, so nobody can leave one behind."""
    deadline_s = time.monotonic() + _MAVEN_TIMEOUT_S
    with path.open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise BrokerUnavailableError(
                        f"another process has held {path} for {_MAVEN_TIMEOUT_S:.0f} s; end it, then try again"
                    ) from None
            if not told:
                say("another process is fetching Apache Kafka; waiting for it ...")
                told = True
            time.sleep(0.1)
        yield
