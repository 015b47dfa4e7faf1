"""What waits is committed together; where that fails, what was refused fails alone, and nothing else is thrown away.

The producer is stood in for, so that each way to fail can be had at will; ``tests/contract`` has some of them for real.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from aiokafka.errors import KafkaError, OutOfOrderSequenceNumber

from workers.errors import FencedError
from workers.kafka import process
from workers.kafka.commit import Attempt, SinkSpec
from workers.kafka.errors import StaleMemberError
from workers.kafka.hanging import Decision
from workers.kafka.ports import Commit, OutTopic, OversizedError
from workers.kafka.process import ProcessCommitter, ProcessSink
from workers.kafka.protocol import Membership

TOPIC = OutTopic("topic", 8, 1_000_000)
LIMIT_S = 30.0

Failing = Callable[[Attempt], Exception | None]


class Cluster:
    """The transactions that were written, and how the next ones go."""

    def __init__(self) -> None:
        self.written: list[tuple[str, list[int]]] = []  # transactional id, partitions
        self.committed: list[list[int]] = []
        self.opened: list[str] = []
        self.failing: Failing = lambda attempt: None
        self.acknowledged: Callable[[int], bool] = lambda partition: True
        self.decision = Decision.ABORT
        self.fails_ending = False
        self.hold = asyncio.Event()
        self.hold.set()


@dataclass
class Writer:
    """What `TransactionWriter` is to a committer."""

    spec: SinkSpec
    transactional_id: str
    cluster: Cluster
    is_open: bool = field(default=False)

    async def open(self, partitions: list[int], *, again: bool = False) -> Decision:
        self.is_open = True
        self.cluster.opened.append(self.transactional_id)
        return self.cluster.decision

    async def write(self, attempt: Attempt) -> None:
        assert self.is_open
        cluster = self.cluster
        cluster.written.append((self.transactional_id, sorted(attempt.works)))
        await cluster.hold.wait()
        failure = cluster.failing(attempt)
        for partition in attempt.works:
            sent: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            if failure is None or cluster.acknowledged(partition):
                sent.set_result(None)
            attempt.sent[partition] = [sent]
        attempt.is_ending = failure is None or cluster.fails_ending
        if failure is not None:
            raise failure
        cluster.committed.append(sorted(attempt.works))

    async def close(self) -> None:
        self.is_open = False


@dataclass
class Member:
    """A member of the group that owns everything."""

    membership: Membership | None = field(default_factory=lambda: Membership(1, "member"))
    claims: dict[int, object] = field(default_factory=lambda: {number: object() for number in range(8)})
    client: None = None

    def claim(self, partition: int) -> object | None:
        return self.claims.get(partition)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(process, "TransactionWriter", lambda spec, name: Writer(spec, name, made))

    async def take_over(*arguments: object, **options: object) -> None:
        pass

    async def end_and_decide(*arguments: object) -> Decision:
        return made.decision

    monkeypatch.setattr(process, "take_over", take_over)
    monkeypatch.setattr(process, "end_and_decide", end_and_decide)
    return made


@pytest.fixture
def member() -> Member:
    return Member()


@pytest.fixture
async def committer(cluster: Cluster, member: Member) -> ProcessCommitter:
    spec = SinkSpec("ticks", "group", TOPIC, TOPIC, TOPIC, TOPIC, True, {"max_batch_size": 16_384})
    return ProcessCommitter(spec, member)  # type: ignore[arg-type]


async def opened(committer: ProcessCommitter, *partitions: int) -> list[ProcessSink]:
    sinks = [committer.sink(number) for number in partitions]
    for sink in sinks:
        await sink.open()
    return sinks


async def commit(*sinks: ProcessSink) -> list[BaseException | None]:
    """Commit something of each at once; what came of each."""
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(*(sink.commit(Commit(1)) for sink in sinks), return_exceptions=True)


async def close(*sinks: ProcessSink) -> None:
    for sink in sinks:
        await sink.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0)


def refuse(*partitions: int, error: Exception) -> Failing:
    return lambda attempt: error if attempt.works.keys() & set(partitions) else None


async def test_works_that_come_while_one_is_under_way_go_together(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    first, second, third = await opened(committer, 0, 1, 2)
    cluster.hold.clear()
    early = asyncio.ensure_future(commit(first))
    await until(lambda: len(cluster.written) == 1)
    late = asyncio.ensure_future(commit(second, third))
    await asyncio.sleep(0)
    cluster.hold.set()
    assert await early + await late == [None, None, None]
    assert cluster.committed == [[0], [1, 2]]
    await close(first, second, third)


@pytest.mark.parametrize("error", [OversizedError("frames", 1_000), TimeoutError()], ids=["refused", "no leader"])
async def test_one_that_is_refused_fails_alone_and_stays_alone_until_it_succeeds(
    committer: ProcessCommitter, cluster: Cluster, error: Exception
) -> None:
    bad, *good = sinks = await opened(committer, 3, 4, 5)
    cluster.acknowledged = lambda partition: partition != 3
    cluster.failing = refuse(3, error=error)
    outcome = await commit(*sinks)
    assert isinstance(outcome[0], OversizedError | TimeoutError)
    assert outcome[1:] == [None, None]
    assert cluster.committed == [[4, 5]]
    tries = [partitions for _, partitions in cluster.written]
    assert sorted(tries) == [[3], [3, 4, 5], [4, 5]]

    cluster.written.clear()
    await bad.close()
    (bad,) = await opened(committer, 3)
    assert await commit(*good) == [None, None]
    assert isinstance((await commit(bad))[0], OversizedError | TimeoutError)
    assert [len(partitions) for _, partitions in cluster.written] == [2, 1], "nobody waited for it again"

    cluster.failing = lambda attempt: None
    await bad.close()
    (bad,) = await opened(committer, 3)
    assert await commit(bad, *good) == [None, None, None]
    cluster.committed.clear()
    assert await commit(bad, *good) == [None, None, None]
    assert cluster.committed == [[3, 4, 5]], "together again"
    await close(bad, *good)


async def test_who_was_refused_is_to_blame_and_not_who_came_behind() -> None:
    def sent(error: Exception | None) -> asyncio.Future[object]:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        future.set_result(None) if error is None else future.set_exception(error)
        future.exception()
        return future

    pending: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    attempt = Attempt({number: Commit(1) for number in range(4)})
    attempt.sent = {0: [sent(None)], 1: [sent(None), sent(OutOfOrderSequenceNumber())], 2: [pending], 3: []}
    assert attempt.suspects() == {1, 2}
    attempt.sent[3] = [sent(OversizedError("frames", 1_000)), sent(None)]
    assert attempt.suspects() == {3}
    assert attempt.unacknowledged() == {1, 2, 3}


async def test_a_transaction_that_failed_for_no_work_in_particular_is_tried_again_and_then_each_alone(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    sinks = await opened(committer, 0, 1)
    cluster.failing = lambda attempt: KafkaError("no") if len(cluster.written) == 1 else None
    assert await commit(*sinks) == [None, None]
    assert cluster.committed == [[0, 1]]
    cluster.written.clear()
    cluster.failing = lambda attempt: KafkaError("no") if len(attempt.works) > 1 else None
    assert await commit(*sinks) == [None, None]
    assert [partitions for _, partitions in cluster.written][:2] == [[0, 1], [0, 1]]
    assert sorted(cluster.committed[1:]) == [[0], [1]]
    await close(*sinks)


async def test_a_transaction_that_was_committed_after_all_is_not_written_again(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    sinks = await opened(committer, 0, 1)
    cluster.failing = lambda attempt: TimeoutError()
    cluster.fails_ending, cluster.decision = True, Decision.COMMIT
    assert await commit(*sinks) == [None, None]
    assert len(cluster.written) == 1
    await close(*sinks)


async def test_what_the_one_before_was_decided_to_be_says_nothing_of_one_that_was_not_ended(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    sinks = await opened(committer, 0, 1)
    cluster.decision = Decision.COMMIT
    cluster.failing = lambda attempt: KafkaError("no") if len(cluster.written) == 1 else None
    assert await commit(*sinks) == [None, None]
    assert len(cluster.written) == 2
    await close(*sinks)


async def test_where_nobody_knows_what_became_of_it_each_partition_is_restored(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    sinks = await opened(committer, 0, 1)
    cluster.failing = lambda attempt: TimeoutError()
    cluster.fails_ending, cluster.decision = True, Decision.UNKNOWN
    assert [type(each) for each in await commit(*sinks)] == [FencedError, FencedError]
    assert len(cluster.written) == 1
    await close(*sinks)


async def test_a_new_generation_commits_what_stayed_and_refuses_what_went(
    committer: ProcessCommitter, cluster: Cluster, member: Member
) -> None:
    sinks = await opened(committer, 0, 1)

    def rebalanced(attempt: Attempt) -> Exception | None:
        assert attempt.membership is not None
        if attempt.membership.generation > 1:
            return None
        member.membership = Membership(2, "member")
        member.claims.pop(1)
        return StaleMemberError("ILLEGAL_GENERATION")

    cluster.failing = rebalanced
    outcome = await commit(*sinks)
    assert outcome[0] is None
    assert isinstance(outcome[1], FencedError)
    assert cluster.committed == [[0]]
    await close(*sinks)


async def test_a_member_that_the_group_has_left_behind_commits_nothing(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    sinks = await opened(committer, 0, 1)
    cluster.failing = lambda attempt: StaleMemberError("UNKNOWN_MEMBER_ID")
    assert [type(each) for each in await commit(*sinks)] == [StaleMemberError, StaleMemberError]
    assert len(cluster.written) == 1, "the same membership is refused each time"
    await close(*sinks)


async def test_a_claim_that_was_interrupted_is_none(committer: ProcessCommitter, member: Member) -> None:
    (sink,) = await opened(committer, 0)
    member.claims[0] = object()  # somebody else may have had it
    (outcome,) = await commit(sink)
    assert isinstance(outcome, FencedError)
    member.claims.clear()
    with pytest.raises(FencedError):
        await committer.sink(0).open()
    await close(sink)


async def test_a_partition_is_not_opened_again_before_its_work_is_over(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    (sink,) = await opened(committer, 0)
    cluster.hold.clear()
    committing = asyncio.ensure_future(sink.commit(Commit(1)))
    await until(lambda: len(cluster.written) == 1)
    committing.cancel()
    await asyncio.wait([committing])
    again = asyncio.ensure_future(opened(committer, 0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not again.done()
    cluster.hold.set()
    async with asyncio.timeout(LIMIT_S):
        (successor,) = await again
    assert cluster.committed == [[0]]
    assert isinstance((await commit(sink))[0], FencedError), "the one opened last is the one"
    assert await commit(successor) == [None]
    await close(sink, successor)


async def test_the_producer_ends_with_the_last_sink_and_begins_with_the_next(
    committer: ProcessCommitter, cluster: Cluster
) -> None:
    first, second = await opened(committer, 0, 1)
    await first.close()
    assert await commit(second) == [None]
    await second.close()
    assert isinstance((await commit(second))[0], FencedError)
    (third,) = await opened(committer, 2)
    assert await commit(third) == [None]
    assert cluster.opened == [committer.transactional_id] * 2
    await third.close()
    assert len(asyncio.all_tasks()) == 1
