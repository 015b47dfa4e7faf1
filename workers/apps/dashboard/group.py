"""The group: its members, its lag and the level that follows from it, and how all of that changed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from workers.apps.dashboard.readings import Changes, Event, EventKind, LagReading, Limits, Member, cut, short_member
from workers.backpressure.levels import Level, LevelGauge, LevelPolicy, rate_scale
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["GroupStory", "MeanRate"]

_MAX_MEMBERS: Final = 1_000
_RATE_SMOOTHING_S: Final = 5.0


class MeanRate:
    """An exponential mean of a rate over some seconds, from counts at irregular times."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._seen_ns: int | None = None
        self.per_s = 0.0

    def add(self, count: int, now_ns: int) -> None:
        """So many more."""
        before, self._seen_ns = self._seen_ns, now_ns
        if before is None or now_ns <= before:
            return
        passed_s = (now_ns - before) / NS_PER_SECOND
        weight = -math.expm1(-passed_s / _RATE_SMOOTHING_S)
        self.per_s += weight * (count / passed_s - self.per_s)

    def take_total(self, total: int, now_ns: int) -> None:
        """So many since the beginning."""
        before, self._total = self._total, total
        self.add(total - before if before is not None else 0, now_ns)


class GroupStory:
    """The group as it is now, and ``events``, what became of it. ``ticks_rate`` is that of what comes in."""

    def __init__(self, policy: LevelPolicy | None, limits: Limits, changes: Changes) -> None:
        self._policy, self._limits, self._changes = policy, limits, changes
        self._gauge = LevelGauge(policy) if policy is not None else None
        self.events: deque[Event] = deque(maxlen=limits.events)
        self.state = ""
        self.members: tuple[Member, ...] = ()
        self._settled: tuple[Member, ...] | None = None
        self.lag: LagReading | None = None
        self.pressure: tuple[str, str, float] | None = None
        """What the feedback topic tells producers: level, by whom, and the share of the rate it leaves."""
        self.ticks_rate = MeanRate()

    def take_lag(self, reading: LagReading) -> None:
        """A measurement of the group's lag."""
        before, self.lag = self.lag, reading
        self._changes.next()
        if before is not None:
            ends = {item.partition: item.end for item in before.partitions}
            came = sum(max(item.end - ends.get(item.partition, item.end), 0) for item in reading.partitions)
            self.ticks_rate.add(came, reading.measured_ns)
        if self._gauge is not None:
            level = self._gauge.level
            if self._gauge.observe(reading.total, reading.measured_ns) is not level:
                text = f"level {level.name} → {self._gauge.level.name} at a lag of {reading.total:,}"
                self._event(reading.measured_ns, "level", text)

    @property
    def level(self) -> Level:
        """The level of the group's lag, by the application's own thresholds."""
        return self._gauge.level if self._gauge is not None else Level.OK

    @property
    def scale(self) -> float:
        """The share of their rate that producers keep: the stricter of the group's own level and what was told."""
        own = rate_scale(self.level, self._policy) if self._policy is not None else 1.0
        return min(own, self.pressure[2]) if self.pressure is not None else own

    def take_pressure(self, pressure: tuple[str, str, float] | None) -> None:
        """The strictest level that the feedback topic tells now: level, source, and the scale that it means."""
        if pressure != self.pressure:
            self.pressure = pressure
            self._changes.next()

    def take_group(self, state: str, members: Iterable[Member], wall_ns: int) -> None:
        """The group as its coordinator describes it. What changed becomes events."""
        found = tuple(sorted(members, key=lambda member: member.member_id))[:_MAX_MEMBERS]
        if state != self.state:
            number = f"{len(found)} member{'' if len(found) == 1 else 's'}"
            if "Rebalance" in state and "Rebalance" not in self.state:
                self._event(wall_ns, "rebalance", f"rebalance begins, {number}")
            elif state == "Stable" and "Rebalance" in self.state:
                self._event(wall_ns, "rebalance", f"rebalance done, {number}")
            elif state in ("Empty", "Dead") and self.state not in ("", "Empty", "Dead"):
                self._event(wall_ns, "rebalance", "nobody is left in the group")
        elif found == self.members:
            return
        self.state = state
        if state in ("Stable", "Empty", "Dead"):
            if self._settled is not None and found != self._settled:
                self._differences(self._settled, found, wall_ns)
            self._settled = found
        self.members = found
        self._changes.next()

    def _differences(self, before: tuple[Member, ...], after: tuple[Member, ...], wall_ns: int) -> None:
        names_before = {member.member_id: member.client_id for member in before}
        names_after = {member.member_id: member.client_id for member in after}
        for member_id in names_after.keys() - names_before.keys():
            self._event(wall_ns, "joined", f"{short_member(names_after[member_id], member_id)} joined")
        for member_id in names_before.keys() - names_after.keys():
            self._event(wall_ns, "left", f"{short_member(names_before[member_id], member_id)} left")
        owned = {number: member for member in before for number in member.partitions}
        moves: dict[tuple[str, str], list[int]] = {}
        for member in after:
            for number in member.partitions:
                owner = owned.get(number)
                if owner is None or owner.member_id != member.member_id:
                    giver = short_member(owner.client_id, owner.member_id) if owner is not None else "nobody"
                    moves.setdefault((giver, short_member(member.client_id, member.member_id)), []).append(number)
        for (giver, taker), numbers in sorted(moves.items()):
            listed = ", ".join(map(str, sorted(numbers)[:16])) + (", …" if len(numbers) > 16 else "")
            noun = "partition" if len(numbers) == 1 else "partitions"
            self._event(wall_ns, "moved", f"{noun} {listed}: {giver} → {taker}")

    def _event(self, wall_ns: int, kind: EventKind, text: str) -> None:
        text = cut(text, self._limits.text_chars)
        self.events.append(Event(self._changes.next(), wall_ns // NS_PER_MS, kind, text))
