"""One symbol brings more than a worker can do: its partition fills up and is paused, and the others don't notice.

First the other partitions alone, then the same with the hot one beside them; what is compared is the others'
throughput (what of theirs is committed, a second) and their largest lag. Nobody here slows down for the lag: what is to
be seen is what the worker does by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Mapping

from aiokafka import AIOKafkaProducer

from benchmarks.rig import START_LIMIT_S, Rig, check_store
from tests.integration.groups import samples
from tests.support import oracle
from workers.apps.produce.sender import TickSender

__all__ = ["hot_symbol"]

OTHERS_SHARE = 0.3  # of what the worker can do
HOT_FACTOR = 2.0
STEP_S = 0.05
SETTLE_S = 1.5
BATCH = 10  # ticks of a millisecond: a lane's turn holds the worker for as long as 5,000 ordinary ones do
DISORDER_MS = 200


async def hot_symbol(rig: Rig) -> None:
    """Others alone, then others and the hot one; then everything is worked off."""
    can_do = rig.plan.worker_capacity
    symbols = _one_for_each(rig.app.partitions)
    hot, others = symbols.pop(0), list(symbols.values())
    quiet = {symbol: OTHERS_SHARE * can_do / len(others) for symbol in others}
    more = {"window__aggregation": "benchmarks.slow:Braked", "lane__batch_size": BATCH, "lane__capacity": 1_000}
    rig.brake.write_text(str(can_do))
    rig.start_workers(1, **more)  # with a process of its own the hot one could harm nobody
    rig.start_store()
    await rig.observer.until(lambda sample: sample.worker_level == 0, "the worker runs", START_LIMIT_S)
    phase_s = max(rig.plan.stall_s / 2, 4 * SETTLE_S)
    async with AIOKafkaProducer(bootstrap_servers=rig.app.bootstrap, acks="all", enable_idempotence=True) as producer:
        sender = TickSender(producer, rig.app.topics.ticks, rig.app.partitions)
        await _feed(sender, quiet, SETTLE_S)
        rig.observer.mark("others alone")
        alone = await _phase(rig, sender, quiet, phase_s)
        before = _pauses(rig)
        rig.observer.mark(f"hot symbol at {HOT_FACTOR * can_do:,.0f}/s")
        beside = await _phase(rig, sender, {**quiet, hot: HOT_FACTOR * can_do}, phase_s)
        pauses = _pauses(rig)
        await sender.finish()
    rig.observer.mark("brake released")
    rig.brake.unlink()
    _judge(rig, alone, beside, before, pauses)
    await rig.observer.until(lambda sample: sample.lag == 0, "everything is worked off", START_LIMIT_S)
    await check_store(rig)
    await rig.stop(*rig.observer.processes)


def _judge(
    rig: Rig,
    alone: tuple[float, int],
    beside: tuple[float, int],
    before: Mapping[int, float],
    pauses: Mapping[int, float],
) -> None:
    report, share = rig.report, beside[0] / alone[0]
    report.figures |= {
        "others alone": f"{alone[0]:.0f}/s, lag at most {alone[1]}",
        "others beside the hot one": f"{beside[0]:.0f}/s ({share:.0%}), lag at most {beside[1]}",
        "pauses by partition": {number: int(count) for number, count in sorted(pauses.items())},
        "RSS of worker, MiB": f"at most {report.series.peak_rss_mib('worker', 0, float('inf')):.0f}",
    }
    report.expect(not any(before.values()), f"partitions were paused before there was a hot one: {before}")
    report.expect(pauses.get(0, 0) > 0, "the hot partition was never paused")
    cold = {number: count for number, count in pauses.items() if number and count}
    report.expect(not cold, f"other partitions than the hot one (0) were paused: {cold}")
    report.expect(
        share >= rig.plan.others_share,
        f"the others did {share:.0%} of what they do alone; expected {rig.plan.others_share:.0%}",
    )


async def _phase(rig: Rig, sender: TickSender, rates: Mapping[bytes, float], seconds: float) -> tuple[float, int]:
    """Feed for a while; what of the others is committed a second, and their largest lag."""
    begun_s = rig.observer.now_s
    await _feed(sender, rates, seconds)
    rig.observer.check()
    seen = list(rig.report.series.between(begun_s + SETTLE_S, rig.observer.now_s))
    first, last = seen[0], seen[-1]
    done = sum(last.done[number] - first.done[number] for number in last.done if number)
    lag = max(sum(lag for number, lag in sample.lags.items() if number) for sample in seen)
    return done / (last.at_s - first.at_s), lag


async def _feed(sender: TickSender, rates: Mapping[bytes, float], seconds: float) -> None:
    begun_s = time.monotonic()
    sent = dict.fromkeys(rates, 0)
    while (passed_s := time.monotonic() - begun_s) < seconds:
        for symbol, rate in rates.items():
            due = int(rate * passed_s) - sent[symbol]
            sender.add([(symbol, _tick(symbol)) for _ in range(due)])
            sent[symbol] += due
        await sender.send(everything=True)
        await asyncio.sleep(STEP_S)


def _tick(symbol: bytes) -> bytes:
    ts_ms = time.time_ns() // 1_000_000 - random.randrange(DISORDER_MS)
    return b'{"symbol":"%b","ts":%d,"price":%d.5,"size":10}' % (symbol, ts_ms, random.randrange(90, 110))


def _one_for_each(partitions: int) -> dict[int, bytes]:
    """A symbol that belongs to each partition."""
    found: dict[int, bytes] = {}
    for symbol in _names():
        found.setdefault(oracle.partition_of(symbol, partitions), symbol)
        if len(found) == partitions:
            break
    return found


def _names() -> Iterator[bytes]:
    number = 0
    while True:
        yield b"SYM%d" % number
        number += 1


def _pauses(rig: Rig) -> dict[int, float]:
    """How often each partition was paused, by all workers."""
    found: dict[int, float] = {}
    for name in rig.worker_names:
        with contextlib.suppress(OSError):
            for (metric, labels), value in samples(rig.observer.ports[name]).items():
                if metric == "workers_lane_pauses_total":
                    number = int(dict(labels)["partition"])
                    found[number] = found.get(number, 0.0) + value
    return found
