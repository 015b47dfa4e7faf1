"""What keeps a partition from being opened shows in the worker's health and, sparingly, in its log."""

from __future__ import annotations

import errno
import resource
import time
from types import SimpleNamespace

import pytest

from workers.errors import BrokerError
from workers.telemetry.spared import SAID_EVERY_S, Spared
from workers.worker import trouble
from workers.worker.life import Phase
from workers.worker.main import OWN_TROUBLE_S, not_alive, not_ready
from workers.worker.trouble import Trouble, raise_descriptor_limit


def out_of_descriptors() -> Exception:
    """As the client tells it: without a word of the reason, which is in what led there."""
    try:
        raise OSError(errno.EMFILE, "Too many open files")
    except OSError:
        try:
            raise BrokerError("Unable to bootstrap")
        except BrokerError as error:
            return error


def worker_with(found: Trouble | None) -> SimpleNamespace:
    state = SimpleNamespace(number=3, is_running=found is None, phase=Phase.OPENING)
    runner = SimpleNamespace(number=3, state=state, trouble=found)
    return SimpleNamespace(failure=None, turned_s=time.monotonic(), joined=True, topic="ticks", partitions={3: runner})


def test_a_process_without_descriptors_is_not_ready_and_after_a_while_not_alive() -> None:
    found = Trouble.of(out_of_descriptors(), None)
    working = worker_with(found)
    assert not_ready(working)[0].startswith("ticks[3] is opening: this process is out of file descriptors")
    assert "ulimit -n" in found.text
    assert not not_alive(working)
    lasting = worker_with(Trouble(found.text, found.is_own, time.monotonic() - OWN_TROUBLE_S - 1))
    assert not_alive(lasting)[0].startswith("ticks[3] can't be opened: this process is out of file descriptors")


def test_what_lies_with_the_cluster_is_said_and_starting_again_would_not_help() -> None:
    found = Trouble.of(BrokerError("no broker coordinates the transactions"), None)
    long_ago = Trouble(found.text, found.is_own, 0.0)
    assert not_ready(worker_with(long_ago)) == ["ticks[3] is opening: no broker coordinates the transactions"]
    assert not not_alive(worker_with(long_ago))
    assert Trouble.of(TimeoutError(), long_ago).since_s == 0.0  # it goes on
    assert Trouble.of(out_of_descriptors(), long_ago).since_s > 0.0  # this is another


def test_a_process_that_has_nearly_none_left_is_out_of_them_whatever_the_client_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trouble, "_open_descriptors", lambda: 95)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    assert Trouble.of(TimeoutError(), None).is_own


def test_the_limit_is_raised_as_far_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    for found in ((256, 4_096), (1_024, resource.RLIM_INFINITY), (70_000, 100_000), (4_096, 4_096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, found=found: found)
        raise_descriptor_limit()
    assert limits == [(4_096, 4_096), (65_536, resource.RLIM_INFINITY)]


def test_of_many_that_fail_alike_one_is_said_now_and_then() -> None:
    now_s = 0.0
    spared = Spared(clock=lambda: now_s)
    said = [spared.note("away") for _ in range(64)]
    assert said == [0] + [None] * 63
    assert spared.note("another reason") == 0
    now_s = SAID_EVERY_S
    assert spared.note("away") == 63
