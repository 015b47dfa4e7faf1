"""What happens to the workers, and when: a function of the seed alone."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass
from typing import Literal

from tests.chaos.arena import Arena, WorkerProcess
from tests.chaos.link import Cut, Link

__all__ = ["Event", "make_schedule", "play"]

Kind = Literal["kill", "crash", "freeze", "scale", "broker", "cut"]
KINDS: tuple[Kind, ...] = ("kill", "crash", "freeze", "scale", "broker", "cut")


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


def make_schedule(seed: int, seconds: float, *, session_s: float) -> list[Event]:
    """Harms spread over ``seconds``: every kind at least once, in an order and with overlaps that the seed decides."""
    rng = random.Random(seed)
    kinds = [*KINDS, "scale", "kill"]
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


async def play(arena: Arena, events: list[Event], link: Link) -> None:
    """Let the events happen; returns when the last is over and every harm undone."""
    player = _Player(arena, link)
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
    def __init__(self, arena: Arena, link: Link) -> None:
        self._arena = arena
        self._link = link
        self._broker_lock = asyncio.Lock()  # a broker that is down can't be killed, and workers don't start without one
        self._link_lock = asyncio.Lock()
        self._proxied: WorkerProcess | None = None

    async def happen(self, event: Event) -> None:
        await getattr(self, f"_{event.kind}")(event)

    def _victim(self, event: Event) -> WorkerProcess | None:
        running = self._arena.running()
        return running[event.victim % len(running)] if running else None

    async def _kill(self, event: Event) -> None:
        victim = self._victim(event)
        if victim is not None:
            victim.kill()
        await self._start()

    async def _crash(self, event: Event) -> None:
        await self._start(CRASH_AT_STEP=event.argument, CRASH_ON_COMMIT=1 + event.victim)
        await asyncio.sleep(3.0)
        await self._start()

    async def _freeze(self, event: Event) -> None:
        victim = self._victim(event)
        if victim is None:
            return
        victim.freeze()
        await asyncio.sleep(event.lasts_s)
        if victim.alive:
            victim.thaw()

    async def _scale(self, event: Event) -> None:
        while len(self._arena.running()) < event.argument:
            await self._start()
        surplus = self._arena.running()[event.argument :]
        for worker in surplus:
            worker.terminate()
        for worker in surplus:
            await self._arena.ended(worker)

    async def _broker(self, event: Event) -> None:
        async with self._broker_lock:
            await asyncio.to_thread(self._arena.broker.kill)
            await asyncio.sleep(event.lasts_s)
            await asyncio.to_thread(self._arena.broker.start)

    async def _cut(self, event: Event) -> None:
        async with self._link_lock:
            if self._proxied is None or not self._proxied.alive:
                self._proxied = await self._start(proxied=True)
            how: Cut = "silence" if event.argument == 0 else "reset"
            await self._link.cut(how)
            try:
                await asyncio.sleep(event.lasts_s)
            finally:
                await self._link.heal()

    async def _start(self, *, proxied: bool = False, **env: object) -> WorkerProcess:
        async with self._broker_lock:
            worker = self._arena.start(proxied=proxied, **env)
            limit_s = time.monotonic() + 30
            while worker.alive and "worker started" not in worker.log() and time.monotonic() < limit_s:
                await asyncio.sleep(0.05)  # with the broker away it would not start
            return worker
