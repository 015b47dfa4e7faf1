"""What happens to the workers, and when: a function of the seed alone."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.chaos.arena import SESSION_S, Arena, WorkerProcess
from tests.chaos.feed import Feed, produce
from tests.chaos.link import Cut, Link

__all__ = ["EVERY_HARM", "Event", "Kind", "make_schedule", "play", "survive"]

Kind = Literal["kill", "crash", "freeze", "scale", "broker", "cut"]
KINDS: tuple[Kind, ...] = ("kill", "crash", "freeze", "scale", "broker", "cut")
FEED_LIMIT_S = 90.0
EVERY_HARM: tuple[Kind, ...] = (*KINDS, "scale", "kill")


@dataclass(frozen=True)
class Event:
    """One harm: when it begins, how long it lasts, whom it meets (modulo those alive), and a number for its kind.

    kill: SIGKILL, another worker takes the place. crash: a worker that kills itself after a commit's step ``argument``.
    freeze: SIGSTOP, often longer than the session. scale: to ``argument`` workers. broker: SIGKILL and a restart.
    cut: the link of the one worker behind the proxy, 0 in silence, 1 with a reset.
    """

    at_s: float
    kind: Kind
    lasts_s: float
    victim: int
    argument: int

    def __str__(self) -> str:
        return (
            f"{self.at_s:5.1f} s  {self.kind:<6} victim {self.victim}, {self.lasts_s:.1f} s, argument {self.argument}"
        )


def make_schedule(seed: int, seconds: float, *, session_s: float, at_least: Sequence[Kind] = EVERY_HARM) -> list[Event]:
    """Harms spread over ``seconds``: ``at_least`` these, in an order and with overlaps that the seed decides."""
    rng = random.Random(seed)
    kinds = [*at_least]
    kinds += rng.choices(KINDS, (3, 3, 2, 3, 1, 2), k=max(0, int(seconds / 2.5) - len(kinds)))
    rng.shuffle(kinds)
    times = sorted(rng.uniform(1.0, seconds) for _ in kinds)
    scales = [4, 2, 1, 3]
    events = []
    for at_s, kind in zip(times, kinds, strict=True):
        lasts_s, argument = 0.0, 0
        if kind in ("freeze", "cut"):
            lasts_s = session_s * rng.uniform(0.5, 1.8)
            argument = rng.randrange(2)
        elif kind == "broker":
            lasts_s = rng.uniform(0.2, 3.0)
        elif kind == "scale":
            scales.append(scales.pop(0))
            argument = scales[-1]
        elif kind == "crash":
            argument = rng.randrange(1, 6)
        events.append(Event(at_s, kind, lasts_s, rng.randrange(12), argument))
    return events


async def survive(
    arenas: Sequence[Arena],
    seed: int,
    seconds: float,
    feed: Feed,
    *,
    per_second: int,
    at_least: Sequence[Kind] = EVERY_HARM,
    workers: int = 1,
) -> tuple[int, float]:
    """Feed the first arena while the seed's schedule harms all of them; what it leaves running then does the rest.

    Each begins with so many ``workers``. An arena may read what one before it writes. Returns how many records were
    sent, and the seconds that all of them took to be done after the last harm; all workers are stopped by then.
    """
    events = make_schedule(seed, seconds, session_s=SESSION_S, at_least=at_least)
    first = arenas[0]
    link = Link(first.proxy_port, first.behind_proxy_port)
    await link.start()
    try:
        for worker, arena in [(arena.start(), arena) for arena in arenas for _ in range(workers)]:
            await arena.until_running(worker)  # without a broker it would not start
        feeding = asyncio.ensure_future(
            produce(first.bootstrap, first.topics.ticks, feed, per_second=per_second, seconds=seconds)
        )
        try:
            await play(arenas, events, link)
            async with first.within(FEED_LIMIT_S, "the feed's last records to be acknowledged"):
                sent = await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        waited_s = 0.0
        for arena in arenas:
            if not arena.running():
                arena.start()
            waited_s += await arena.until_committed()
            await arena.stop_workers()
    finally:
        await link.stop()
    for arena in arenas:
        arena.check()
    return sent, waited_s


async def play(arenas: Sequence[Arena], events: Sequence[Event], link: Link) -> None:
    """Let the events happen; returns when the last is over and every harm undone."""
    player = _Player(arenas, link)
    begun_s = time.monotonic()
    tasks = []
    try:
        for event in events:
            await asyncio.sleep(max(0.0, begun_s + event.at_s - time.monotonic()))
            sys.stdout.write(f"  [{time.monotonic() - begun_s:5.1f} s] {event}\n")
            tasks.append(asyncio.ensure_future(player.happen(event)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Player:
    def __init__(self, arenas: Sequence[Arena], link: Link) -> None:
        self._arenas = arenas
        self._link = link
        self._broker_lock = asyncio.Lock()  # a broker that is down can't be killed, and workers don't start without one
        self._link_lock = asyncio.Lock()
        self._proxied: dict[str, WorkerProcess] = {}

    async def happen(self, event: Event) -> None:
        chosen, victim = event.victim % len(self._arenas), event.victim // len(self._arenas)
        await getattr(self, f"_{event.kind}")(self._arenas[chosen], replace(event, victim=victim))

    @staticmethod
    def _victim(arena: Arena, event: Event) -> WorkerProcess | None:
        running = arena.running()
        return running[event.victim % len(running)] if running else None

    async def _kill(self, arena: Arena, event: Event) -> None:
        victim = self._victim(arena, event)
        if victim is not None:
            victim.kill()
        await self._start(arena)

    async def _crash(self, arena: Arena, event: Event) -> None:
        await self._start(arena, CRASH_AT_STEP=event.argument, CRASH_ON_COMMIT=1 + event.victim)
        await asyncio.sleep(3.0)
        await self._start(arena)

    async def _freeze(self, arena: Arena, event: Event) -> None:
        victim = self._victim(arena, event)
        if victim is None:
            return
        victim.freeze()
        await asyncio.sleep(event.lasts_s)
        if victim.alive:
            victim.thaw()

    async def _scale(self, arena: Arena, event: Event) -> None:
        while len(arena.running()) < event.argument:
            await self._start(arena)
        surplus = arena.running()[event.argument :]
        for worker in surplus:
            worker.terminate()
        for worker in surplus:
            await arena.ended(worker)

    async def _broker(self, arena: Arena, event: Event) -> None:
        async with self._broker_lock:
            await asyncio.to_thread(arena.broker.kill)
            await asyncio.sleep(event.lasts_s)
            await arena.start_broker()

    async def _cut(self, arena: Arena, event: Event) -> None:
        async with self._link_lock:
            proxied = self._proxied.get(arena.application_id)
            if proxied is None or not proxied.alive:
                self._proxied[arena.application_id] = await self._start(arena, proxied=True)
            how: Cut = "silence" if event.argument == 0 else "reset"
            await self._link.cut(how)
            try:
                await asyncio.sleep(event.lasts_s)
            finally:
                await self._link.heal()

    async def _start(self, arena: Arena, *, proxied: bool = False, **env: object) -> WorkerProcess:
        async with self._broker_lock:
            worker = arena.start(proxied=proxied, **env)
            await arena.until_logged(worker, "worker started")  # with the broker away it would not
            return worker
