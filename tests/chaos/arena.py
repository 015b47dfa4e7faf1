"""The arena: one application's topics on a broker that may be harmed, and its workers as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psutil
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.support import oracle
from tests.support.verify import Findings, Model, Topics, read_topic, straight, verify
from workers.apps.broker import Broker
from workers.apps.broker.base import free_ports

__all__ = ["PARTITIONS", "SESSION_S", "Arena", "WorkerProcess", "broker_config"]

ROOT = Path(__file__).parents[2]
PARTITIONS = 8
MS = 1_000_000

SESSION_S = 1.5  # short: after a crash the group waits for the dead member's session to end
STOP_LIMIT_S = 40.0  # a worker that was asked to stop must be gone by then, whatever the broker does
DONE_LIMIT_S = 90.0
START_LIMIT_S = 60.0  # six at once, on two processors that do other things, too
READ_LIMIT_S = 90.0
BROKER_LIMIT_S = 120.0  # it has a shorter limit of its own, and then says what is in its log
_POLL_S = 0.05
_SHOWN_LINES = 40

SUSPICIOUS = re.compile(
    r"never retrieved|never awaited|Unclosed|Task was destroyed|Traceback|AssertionError|exception was never"
)

# The client's own traceback when a producer meets the end of its broker; the producer is then thrown away.
HARMLESS = ("Unexpected error in sender routine",)


def broker_config() -> tuple[dict[str, str], int]:
    """Server properties with a second listener that is advertised at a proxy's port; and that port.

    A client that starts at the proxy is sent to the proxy for everything, so one link can be cut for one worker.
    """
    plain, behind, proxy = free_ports(3)
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},PROXY://127.0.0.1:{behind}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},PROXY://127.0.0.1:{proxy}",
        "listener.security.protocol.map": "PROXY:PLAINTEXT",
        # A topic that was deleted is gone for good a moment later, and no longer looked through at the next start.
        "log.segment.delete.delay.ms": "500",
        "log.initial.task.delay.ms": "500",
    }, proxy


class WorkerProcess:
    """One worker as a process of its own, its log in a file."""

    def __init__(self, number: int, settings: Mapping[str, object], log: Path, env: Mapping[str, str]) -> None:
        self.number = number
        self.log_path = log
        self.frozen = False
        self.expected_to_die = "CRASH_AT_STEP" in env
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "dev", "-W", "default", "-m", "tests.chaos.worker_main", json.dumps(settings)]
                if os.environ.get("CHAOS_DEV")
                else [sys.executable, "-m", "tests.chaos.worker_main", json.dumps(settings)],
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        self.expected_to_die = True
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        self.frozen = True
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.frozen = False
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        self.process.terminate()
        if self.frozen:
            self.thaw()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def report(self) -> str:
        """What became of it; and the end of its log, unless it died or ended as it should."""
        code = self.process.poll()
        state = ("is frozen" if self.frozen else "runs") if code is None else f"ended with {code}"
        told = code is not None and (self.expected_to_die or code == 0)
        lines = [] if told else self.log().splitlines()[-_SHOWN_LINES:]
        return "\n".join([f"-- worker {self.number} {state}", *lines])


class Arena:
    """Workers of one application, started and harmed by number.

    Nothing here waits beyond ``deadline_s``, on `time.monotonic`'s clock, which is before pytest's own: a test that
    hangs says what it waited for.
    """

    def __init__(
        self, broker: Broker, proxy_port: int, logs: Path, *, deadline_s: float = math.inf, replication: int = 1
    ) -> None:
        self.broker = broker
        self.replication = replication
        self.deadline_s = deadline_s
        self.proxy_port = proxy_port
        self.behind_proxy_port = int(broker.listeners.get("PROXY", ":0").rpartition(":")[2])
        self.bootstrap = broker.bootstrap_servers
        self.workers: list[WorkerProcess] = []
        self._applications: list[str] = []
        self.configure()
        self._logs = logs
        self._logs.mkdir(parents=True, exist_ok=True)

    def configure(
        self,
        guarantee: str = "exactly_once",
        *,
        ticks: str | None = None,
        payload: str = "ohlcv",
        pipeline: str = "",
        model: Callable[[str], Model] | None = None,
        **more: object,
    ) -> None:
        """Begin a new application: names of its own, and settings whose windows close often.

        ``more`` are further settings, two underscores standing for a dot. ``pipeline`` is TOML, in which ``{app}`` is
        the application's name; ``model`` makes, of that name, what `verify` compares with.
        """
        app = f"chaos-{uuid.uuid4().hex[:8]}"
        self.application_id = app
        self._applications.append(app)
        self.topics = Topics(
            ticks or f"{app}-ticks", f"{app}-frames", f"{app}-late", f"{app}-dead-letters", f"{app}-changelog"
        )
        self.exactly_once = guarantee == "exactly_once"
        self.oracle = oracle.Config(
            1_000 * MS,
            500 * MS,
            500 * MS,
            key_ttl_ns=60_000 * MS,
            payload=payload,
            partitions=PARTITIONS,  # type: ignore[arg-type]
        )
        self.model = straight(self.oracle) if model is None else model(app)
        self._pipeline = pipeline.replace("{app}", app)
        self.settings: dict[str, object] = {
            "bootstrap_servers": self.bootstrap,
            "application_id": app,
            "processing_guarantee": guarantee,
            "topics.ticks": self.topics.ticks,
            "topics.frames": self.topics.frames,
            "topics.partitions": PARTITIONS,
            "window.size": "1s",
            "window.lag": "500ms",
            "window.allowed_lateness": "500ms",
            "window.key_ttl": "60s",
            "window.idle_after": "300ms",
            "window.payload": payload,
            "metrics.port": "off",
            "backpressure.enabled": False,
            "kafka.session.timeout.ms": int(SESSION_S * 1000),
            "kafka.heartbeat.interval.ms": int(SESSION_S * 300),
            "kafka.rebalance.timeout.ms": 12_000,
            "kafka.transaction.timeout.ms": 8_000,
            **{name.replace("__", "."): value for name, value in more.items()},
        }

    # -- workers ------------------------------------------------------------------------------------------------------

    def start(self, *, proxied: bool = False, **env: object) -> WorkerProcess:
        """One more worker; ``proxied`` ones reach the broker over the link alone, ``env`` are its switches."""
        number = len(self.workers)
        settings = dict(self.settings)
        if proxied:
            settings["bootstrap_servers"] = f"127.0.0.1:{self.proxy_port}"
        log = self._logs / f"{self.application_id}-{number}.log"
        if self._pipeline:  # a list of tables, which only a file can have
            env["CHAOS_CONFIG"] = file = self._logs / f"{self.application_id}.toml"
            file.write_text(self._pipeline, encoding="utf-8")
        found = WorkerProcess(number, settings, log, {name: str(value) for name, value in env.items()})
        self.workers.append(found)
        return found

    def running(self) -> list[WorkerProcess]:
        """Workers that live and are not frozen."""
        return [worker for worker in self.workers if worker.alive and not worker.frozen]

    async def stop_workers(self) -> None:
        """SIGTERM to all; each must end by itself, in time and with success."""
        alive = [worker for worker in self.workers if worker.alive]
        for worker in alive:
            worker.terminate()
        for worker in alive:
            await self.ended(worker)

    async def ended(self, worker: WorkerProcess) -> None:
        """Wait for a worker that was asked to stop."""
        await self.until(lambda: not worker.alive, f"worker {worker.number} to stop", within_s=STOP_LIMIT_S)
        self._excuse(worker)
        if not worker.expected_to_die and worker.process.returncode != 0:
            raise AssertionError(f"a worker that was asked to stop failed\n{worker.report()}")

    def _excuse(self, worker: WorkerProcess) -> None:
        """One that was asked to stop while it was still importing had not yet asked to be told of signals."""
        if worker.process.returncode == -signal.SIGTERM and not worker.log():
            worker.expected_to_die = True

    async def killed_itself(self, worker: WorkerProcess, *, within_s: float = START_LIMIT_S) -> None:
        """Wait for a worker whose switches make it die."""
        await self.until(lambda: not worker.alive, f"worker {worker.number} to kill itself", within_s=within_s)
        worker.expected_to_die = worker.process.returncode == -signal.SIGKILL
        assert worker.expected_to_die, worker.report()

    def check(self) -> None:
        """No worker may have ended by itself, nor complained of something that it should have dealt with."""
        for worker in self.workers:
            if not worker.alive:
                self._excuse(worker)
                if not worker.expected_to_die and worker.process.returncode != 0:
                    raise AssertionError(f"a worker ended by itself\n{worker.report()}")
            lines = worker.log().splitlines()
            for at, line in enumerate(lines):
                found = SUSPICIOUS.search(line)
                if found is not None and not any(known in line for known in HARMLESS):
                    around = "\n".join(lines[max(0, at - 10) : at + 30])
                    raise AssertionError(f"worker {worker.number} logged {found[0]!r}:\n{around}")

    def report(self) -> str:
        """The ends of the workers' logs, for the report of a test that failed."""
        return "\n".join([f"{self.application_id}:", *(worker.report() for worker in self.workers)])

    async def until(self, condition: Callable[[], bool], what: str, *, within_s: float) -> None:
        """Wait until the condition holds, or fail: ``what`` did not come about."""
        async with self.within(within_s, what):
            while not condition():
                await asyncio.sleep(_POLL_S)

    @contextlib.asynccontextmanager
    async def within(self, seconds: float, what: str) -> AsyncIterator[None]:
        """What is awaited here is done in time, or the test fails: it waited for ``what``."""
        begun_s = time.monotonic()
        seconds = min(seconds, self.deadline_s - begun_s)
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise AssertionError(f"waited {time.monotonic() - begun_s:.1f} s in vain for {what}") from None

    async def start_broker(self) -> None:
        """Start the broker that was killed again."""
        async with self.within(BROKER_LIMIT_S, "the broker, which was started again"):
            await asyncio.to_thread(self.broker.start)

    def close(self) -> None:
        """Kill what still runs; bring the broker back if a test left it down."""
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        if not self.broker.running():
            self.broker.start()

    # -- topics -------------------------------------------------------------------------------------------------------

    async def create_topics(self) -> None:
        """The ticks topic; workers make the others."""
        async with self.within(READ_LIMIT_S, f"{self.topics.ticks} to be made"), self._admin() as admin:
            topic = NewTopic(self.topics.ticks, PARTITIONS, self.replication, topic_configs={"retention.ms": "-1"})
            await admin.create_topics([topic])

    async def delete_topics(self) -> None:
        """All topics of all of this arena's applications: a broker that is killed looks through each when it starts."""
        async with asyncio.timeout(READ_LIMIT_S), self._admin() as admin:  # also where the test's time is up
            known = await admin.list_topics()
            await admin.delete_topics([topic for topic in known if topic.startswith(tuple(self._applications))])
        self._applications.clear()

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def committed(self) -> dict[int, int]:
        """What the group has committed, by partition; empty while the coordinator does not say."""
        wanted = [TopicPartition(self.topics.ticks, number) for number in range(PARTITIONS)]
        async with self._admin() as admin:
            try:
                offsets = await admin.list_consumer_group_offsets(self.application_id, partitions=wanted)
            except KafkaError:
                return {}
        return {tp.partition: max(found.offset, 0) for tp, found in offsets.items()}

    async def until_committed(self, *, within_s: float = DONE_LIMIT_S) -> float:
        """Wait until everything in the ticks topic is committed; the seconds that took."""
        begun_s = time.monotonic()
        async with self.within(READ_LIMIT_S, f"all of {self.topics.ticks} to be read"):
            ticks = await read_topic(self.bootstrap, self.topics.ticks)
        # Behind the last record, not the log's end: where frames are the input, that is a transaction's marker.
        left = {number: records[-1].offset + 1 for number, records in ticks.items() if records}
        try:
            async with self.within(within_s, "everything to be committed"):
                while left:
                    self.check()
                    await asyncio.sleep(4 * _POLL_S)
                    committed = await self.committed()
                    left = {number: end for number, end in left.items() if committed.get(number, 0) < end}
        except AssertionError as error:
            error.add_note(f"not committed up to these offsets, by partition: {left}")
            raise
        return time.monotonic() - begun_s

    async def until_running(self, worker: WorkerProcess) -> None:
        """Wait until the worker has its first partitions."""
        await self.until_logged(worker, "partition ready")

    async def until_logged(self, worker: WorkerProcess, event: str) -> None:
        """Wait until the worker's log has the event; it must not end before."""

        def logged() -> bool:
            self.check()
            return not worker.alive or event in worker.log()

        await self.until(logged, f"worker {worker.number} to log {event!r}", within_s=START_LIMIT_S)

    async def verify(self, **options: object) -> Findings:
        """What the independent verifier says."""
        async with self.within(math.inf, "the verifier to read all topics"):
            return await verify(self.bootstrap, self.topics, self.model, exactly_once=self.exactly_once, **options)  # type: ignore[arg-type]
