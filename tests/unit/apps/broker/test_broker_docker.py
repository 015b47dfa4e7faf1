"""The official image in Docker, where a daemon runs and has the image (no test pulls one)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_checks import eventually, read, round_trip
from workers.apps.broker import Broker, find_broker
from workers.apps.broker.container import KAFKA_IMAGE
from workers.errors import BrokerError, BrokerUnavailableError

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(autouse=True)
def without_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be shown is that containers are removed without it."""
    config = pytest.importorskip("testcontainers.core.config", reason="testcontainers is not installed")
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    monkeypatch.setattr(config.testcontainers_config, "ryuk_disabled", True)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)


def docker(*argv: str) -> str:
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True, scope="module")
def image() -> None:
    try:
        docker("image", "inspect", KAFKA_IMAGE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no Docker daemon with {KAFKA_IMAGE}: {error}")


@pytest.fixture
def contained() -> Iterator[Broker]:
    with find_broker(way="docker") as started:
        yield started


async def test_a_killed_container_comes_back_at_the_same_address_with_its_data(
    contained: Broker, topic_name: str
) -> None:
    values = [b"one", b"two"]
    address = contained.bootstrap_servers
    assert await round_trip(address, topic_name, values) == values
    contained.kill()
    assert not contained.running()
    for control in (contained.pause, contained.resume):
        with pytest.raises(BrokerError, match="does not run"):
            control()
    contained.start()
    assert await read(address, topic_name, 2) == values
    contained.pause()
    assert contained.running()
    contained.resume()
    assert await read(address, topic_name, 2) == values
    contained.pause()
    contained.stop()  # a frozen one too
    assert not contained.running()


def test_where_docker_runs_it_goes_before_java_and_takes_the_config() -> None:
    with find_broker(config={"log.segment.bytes": "2097152"}) as started:
        assert started.way == "docker"
        container = started.description.rpartition(" ")[2]
        assert "KAFKA_LOG_SEGMENT_BYTES=2097152" in docker("inspect", "-f", "{{.Config.Env}}", container)
    assert docker("ps", "-aq", "--filter", f"id={container}") == ""


def test_listeners_of_ones_own_are_not_for_docker() -> None:
    with (
        pytest.raises(BrokerUnavailableError, match="listeners"),
        find_broker(way="docker", config={"listeners": "SSL://:0"}),
    ):
        pytest.fail("the container's listeners are fixed")


def test_a_killed_owner_leaves_no_container() -> None:
    argv = [sys.executable, "-m", "workers.apps.broker", "--way", "docker"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        assert owner.stdout.readline().startswith("bootstrap=")
        container = owner.stderr.readline().partition("container ")[2].partition(";")[0]
        assert docker("ps", "-q", "--filter", f"id={container}") != ""
        owner.kill()
        owner.stderr.close()
    assert eventually(lambda: docker("ps", "-aq", "--filter", f"id={container}") == "")


def test_an_image_that_can_not_be_had_sends_the_search_on_to_java_and_says_why(tmp_path: Path) -> None:
    code = "from workers.apps.broker import find_broker\nwith find_broker() as started: print(started.way)"
    done = subprocess.run(
        ["env", "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX=registry.invalid/", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert done.stdout.strip() == "jvm"
    assert "not in Docker: registry.invalid/apache/kafka" in done.stderr
