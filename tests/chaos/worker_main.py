"""The process under test: the real worker, and switches that no user has.

    python -m tests.chaos.worker_main '{"application_id": "...", ...}'

CHAOS_CONFIG=file        a configuration file, for what only that can say
CRASH_AT_STEP=n          kill this process (SIGKILL) right after step n of a commit, ...
CRASH_ON_COMMIT=k        ... of the k-th commit that gets there (default 1)
COMMIT_TIMEOUT_S=s       give a commit up after so long, so that short outages end some in mid-air
PENDING_LIMIT_RECORDS=n  so few results may wait for a commit that lanes stop for them
SPLIT_COMMIT=order       commit in two transactions, "results_first" or "state_first"; step 3 lies between them, where
                         there are frames

LOSE_MARKERS=outcome     write a transaction that its coordinator does not know, after one that it decided to "commit"
                         or "abort", and die: what a broker leaves that crashed and forgot a transaction's markers

The switches replace functions of the package here, in this process; the package knows nothing of them.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import math
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import structlog
from aiokafka import TopicPartition

from workers.commands.common import run_async
from workers.errors import WorkersError
from workers.kafka import cluster, hanging
from workers.kafka import commit as sink
from workers.settings import load_settings
from workers.telemetry.logs import configure_logging
from workers.worker import main as running
from workers.worker import worker
from workers.worker.committer import WaitingLimits

_PR_SET_PDEATHSIG = 1

log = structlog.get_logger("chaos")


def main() -> int:
    if sys.platform == "linux":  # a killed test run leaves no workers behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    file = os.environ.get("CHAOS_CONFIG")
    settings = load_settings(Path(file) if file else None, overrides=json.loads(sys.argv[1]), environ={})
    configure_logging(settings.logging)
    step = os.environ.get("CRASH_AT_STEP")
    if step is not None:
        _crash_at(int(step), int(os.environ.get("CRASH_ON_COMMIT", "1")))
    order = os.environ.get("SPLIT_COMMIT")
    if order is not None:
        _split_commits(order)

    if "PENDING_LIMIT_RECORDS" in os.environ:
        worker.WAITING_LIMITS = WaitingLimits(records=int(os.environ["PENDING_LIMIT_RECORDS"]))
    if "COMMIT_TIMEOUT_S" in os.environ:
        limit_s = float(os.environ["COMMIT_TIMEOUT_S"])
        cluster.SinkSpec = functools.partial(sink.SinkSpec, commit_timeout_s=limit_s)  # type: ignore[misc,assignment]

    if "LOSE_MARKERS" in os.environ:
        _lose_markers(os.environ["LOSE_MARKERS"])

    async def run(stop: asyncio.Event) -> None:
        await running.run_worker(settings, stop=stop)

    try:
        run_async(run, patience_s=math.inf)
    except WorkersError as error:
        log.exception("worker failed", error=repr(error))
        return 1
    return 0


def _crash_at(step: int, on_commit: int) -> None:
    left = on_commit

    def reached(number: int) -> None:
        nonlocal left
        left -= number == step
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    sink.reached = reached


def _split_commits(order: str) -> None:
    async def write(self: sink.TransactionWriter, attempt: sink.Attempt) -> None:
        producer, spec, works = self._producer, self.spec, attempt.works
        assert producer is not None

        async def results() -> None:
            await sink._acknowledged(
                {number: await self._send_results(producer, number, works[number]) for number in works}
            )

        async def state() -> None:
            await sink._acknowledged(
                {
                    number: await self._send(producer, spec.changelog, work.changes, number, to=number)
                    for number, work in works.items()
                }
            )
            await self._send_offsets(producer, attempt)

        first, second = (results, state) if order == "results_first" else (state, results)
        await producer.begin_transaction()
        await first()
        await producer.commit_transaction()
        if any(work.frames for work in works.values()):
            sink.reached(3)
        await producer.begin_transaction()
        await second()
        await producer.commit_transaction()

    sink.TransactionWriter._write = write  # type: ignore[method-assign]


def _lose_markers(outcome: str) -> None:
    original = sink.TransactionWriter._write
    commits: Counter[sink.TransactionWriter] = Counter()
    chosen: sink.TransactionWriter | None = None

    async def write(self: sink.TransactionWriter, attempt: sink.Attempt) -> None:
        nonlocal chosen
        commits[self] += 1
        works = attempt.works
        if chosen is None and commits[self] > 2 and any(work.frames and work.late for work in works.values()):
            chosen = self
        if chosen is not self:
            await original(self, attempt)
            return
        producer, spec = self._producer, self.spec
        assert producer is not None
        changelogs = [TopicPartition(spec.changelog.name, number) for number in works]
        transaction = producer._txn_manager
        if outcome == "abort":
            await producer.begin_transaction()
            transaction.maybe_add_partition_to_txn(changelogs[0])
            await producer.abort_transaction()
        # The markers of the last transaction come a moment after its end, and would end this one.
        await hanging.last_decision(producer.client, producer._txn_manager.transactional_id)
        await producer.begin_transaction()
        transaction._txn_partitions.update((*changelogs, *spec.result_partitions))  # as if they had been added
        transaction._txn_consumer_group = spec.group_id
        await sink._acknowledged(
            {
                number: [
                    *await self._send_results(producer, number, work),
                    *await self._send(producer, spec.changelog, work.changes, number, to=number),
                ]
                for number, work in works.items()
            }
        )
        await self._send_offsets(producer, attempt)
        assert set(changelogs) == set(await hanging.open_transactions(producer.client, changelogs))
        log.info("left hanging", partitions=sorted(works), outcome=outcome)
        os.kill(os.getpid(), signal.SIGKILL)

    sink.TransactionWriter._write = write  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
