"""How far the group is behind, again and again: in records, in waiting time, in event time, and in time to drain.

| measure | what it is |
|---|---|
| lag | records between the group's committed offsets and the ends of the partitions |
| waiting | how long the first record that is still to be done has been in the log: now - its Kafka timestamp |
| event-time lag | event time of the newest tick - event time of the first that is still to be done |
| drain | lag / (rate of commits - rate of arrivals), smoothed over some ten seconds; infinite where it never shrinks |

All come from the broker alone, so they are right while partitions are paused and while no worker runs. Event-time lag
is between two ticks of one partition, so it means the same for live data and for a replay of last year's. Records that
will be dead letters count as records, but their times count for nothing.

A measurement of records is a few requests whatever the number of partitions: one to the group's coordinator, two to
each broker. The times take reading a record at either end of a partition that lags: at most ``DELAYS_AT_ONCE`` of
those furthest behind, every ``DELAYS_EVERY_S``. Partitions without lag cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from workers.core.formats.json import tick_decoder
from workers.core.partitioning import partition_for
from workers.core.ticks import Tick
from workers.errors import BrokerError
from workers.kafka.clients import admin_client
from workers.kafka.errors import OUTAGE
from workers.kafka.group_offsets import GroupLag, LagReader, PartitionLag
from workers.kafka.reading import KafkaRecord, TopicReader, reading
from workers.kafka.reconnecting import ReconnectingTask
from workers.settings.lane import tick_format
from workers.times import NS_PER_MS, NS_PER_SECOND

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["LagMonitor", "LagSnapshot", "PartitionDelay", "SmoothedRate"]

log = structlog.get_logger(__name__)

SMOOTHING_NS: Final = 10 * NS_PER_SECOND
DELAYS_AT_ONCE: Final = 16
DELAYS_EVERY_S: Final = 5.0
_DELAYS_TIMEOUT_S: Final = 3.0
_TAIL_RECORDS: Final = 16  # looked back at from the end: the last offsets may be markers of transactions
_MEASURE_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PartitionDelay:
    """A lagging partition in time. ``event_lag_ns`` is None where none of the records read is a tick."""

    partition: int
    waiting_ns: int
    event_lag_ns: int | None


@dataclass(frozen=True, slots=True)
class LagSnapshot:
    """One measurement. ``measured_ns`` is the wall clock's; ``delays`` are of the partitions furthest behind."""

    group: GroupLag
    measured_ns: int
    committed_per_s: float
    arriving_per_s: float
    delays: Mapping[int, PartitionDelay]

    @property
    def total(self) -> int:
        """Records not yet committed, over all partitions."""
        return self.group.total

    @property
    def waiting_ns(self) -> int | None:
        """The longest wait of a record; 0 where nothing waits, None where it is not known."""
        return self._longest(delay.waiting_ns for delay in self.delays.values())

    @property
    def event_lag_ns(self) -> int | None:
        """The greatest event-time lag of a partition; 0 where nothing waits, None where it is not known."""
        return self._longest(delay.event_lag_ns for delay in self.delays.values() if delay.event_lag_ns is not None)

    @property
    def drain_s(self) -> float:
        """Seconds that the lag takes at the present rates: 0 where there is none, infinite where it doesn't shrink.

        That is so where records come as fast as they are committed, as for a group that keeps up, and where the group
        has no members: what it committed a moment ago says nothing then.
        """
        if not self.total:
            return 0.0
        shrinking_per_s = self.committed_per_s - self.arriving_per_s
        return self.total / shrinking_per_s if shrinking_per_s > 0 and not self.group.deserted else math.inf

    def _longest(self, found: Iterable[int]) -> int | None:
        return max(found, default=None) if self.total else 0


class SmoothedRate:
    """A rate out of counts that come in jumps: an exponential mean over time, however irregular the measurements."""

    def __init__(self, smoothing_ns: int = SMOOTHING_NS) -> None:
        self._smoothing_ns = smoothing_ns
        self._seen_ns: int | None = None
        self.per_s = 0.0

    def add(self, count: int, now_ns: int) -> float:
        """Note ``count`` since the last call; the first call only begins. Returns the rate, a second."""
        since_ns, self._seen_ns = self._seen_ns, now_ns
        if since_ns is None or now_ns <= since_ns:
            return self.per_s
        passed_ns = now_ns - since_ns
        weight = -math.expm1(-passed_ns / self._smoothing_ns)
        self.per_s += weight * (count * NS_PER_SECOND / passed_ns - self.per_s)
        return self.per_s


class LagMonitor:
    """Measures the lag every ``backpressure.poll_interval`` while it is open, and through outages.

        async with LagMonitor(settings, on_snapshot=show) as monitor:
            snapshot = await monitor.measured()

    Whatever goes wrong on the way is told to ``on_failure`` and tried again with fresh clients: a measurement that
    failed leaves ``latest`` as it was, never a lag of 0. Callbacks run between measurements and must be quick; what one
    raises is logged.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_snapshot: Callable[[LagSnapshot], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        delays: bool = True,
    ) -> None:
        self._settings = settings
        self._on_snapshot = on_snapshot
        self._on_failure = on_failure
        self._with_delays = delays
        self._first_seen_ends: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._end_offsets: dict[int, int] = {}
        self._rate = SmoothedRate()
        self._arrivals = SmoothedRate()
        self._delays: Mapping[int, PartitionDelay] = {}
        self._delays_read_s = -math.inf
        self._task = ReconnectingTask(self._keep_measuring, self._failed, name="lag-monitor")
        self._news = asyncio.Event()
        self.latest: LagSnapshot | None = None
        self.failure: Exception | None = None
        """Why the last measurement failed; None after one that worked."""

    async def __aenter__(self) -> LagMonitor:
        await self._task.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._task.__aexit__(kind, error, traceback)

    async def measured(self, timeout_s: float = 30.0) -> LagSnapshot:
        """The next measurement. Raises ``BrokerError``, with the reason, where there is none in time."""
        before = self.latest
        try:
            async with asyncio.timeout(timeout_s):
                while self.latest is None or self.latest is before:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise BrokerError(
                f"no measurement of the lag of group {self._settings.application_id} for {timeout_s:.0f} s: "
                f"{self.failure or 'no answer'}"
            ) from self.failure
        return self.latest

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _keep_measuring(self) -> None:
        async with self._clients() as (reader, ends):
            while True:
                await self._measure(reader, ends)
                await asyncio.sleep(self._settings.backpressure.poll_interval / NS_PER_SECOND)

    @contextlib.asynccontextmanager
    async def _clients(self) -> AsyncIterator[tuple[LagReader, _Ends]]:
        """Fresh clients; closed within a time limit, because a lost broker can keep one from closing."""
        stack = contextlib.AsyncExitStack()
        try:
            admin = await stack.enter_async_context(admin_client(self._settings))
            reader = await stack.enter_async_context(
                LagReader(self._settings, admin, first_seen_ends=self._first_seen_ends)
            )
            yield reader, _Ends(self._settings, stack)
        finally:
            with contextlib.suppress(*OUTAGE):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await stack.aclose()

    async def _measure(self, reader: LagReader, ends: _Ends) -> None:
        async with asyncio.timeout(_MEASURE_TIMEOUT_S):
            group = await reader.read()
        committed, arrived = self._advanced(group)
        now_ns = time.monotonic_ns()
        rate, arrivals = self._rate.add(committed, now_ns), self._arrivals.add(arrived, now_ns)
        await self._read_delays(ends, group)
        self.latest = LagSnapshot(group, time.time_ns(), rate, arrivals, self._delays)
        self.failure = None
        self._news.set()
        if self._on_snapshot is not None:
            _call(self._on_snapshot, self.latest)

    def _advanced(self, group: GroupLag) -> tuple[int, int]:
        """Records committed, and records that arrived, since the last measurement."""
        committed = {item.partition: item.next_offset for item in group.partitions}
        end_offsets = {item.partition: item.end for item in group.partitions}
        advanced = _growth(self._committed, committed), _growth(self._end_offsets, end_offsets)
        self._committed, self._end_offsets = committed, end_offsets
        return advanced

    async def _read_delays(self, ends: _Ends, group: GroupLag) -> None:
        lagging = sorted((item for item in group.partitions if item.lag), key=lambda item: -item.lag)[:DELAYS_AT_ONCE]
        now_s = time.monotonic()
        if not lagging or not self._with_delays:
            self._delays = {}
        elif now_s - self._delays_read_s >= DELAYS_EVERY_S:
            self._delays_read_s = now_s
            self._delays = await ends.delays(lagging, len(group.partitions))
        else:
            numbers = {item.partition for item in group.partitions if item.lag}
            self._delays = {number: delay for number, delay in self._delays.items() if number in numbers}

    def _failed(self, error: Exception) -> None:
        if self.failure is None:
            log.warning("can't measure the group's lag; retrying", error=str(error) or repr(error))
        self.failure = error
        if self._on_failure is not None:
            _call(self._on_failure, error)


class _Ends:
    """Reads the records at both ends of a lag: the first still to be done, and the newest.

    Its reader is opened when it is first needed, and closed with ``stack``.
    """

    def __init__(self, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._form = tick_format(settings.tick)
        self._decode = tick_decoder(self._form)
        self._reader: TopicReader | None = None

    async def delays(self, lagging: list[PartitionLag], partitions: int) -> dict[int, PartitionDelay]:
        """How late each partition, of so many, is; one whose records did not come in time is left out."""
        numbers = [item.partition for item in lagging]
        reader = await self._opened()
        reader.assign(numbers)
        now_ns = time.time_ns()
        first = await _read(reader, {item.partition: item.next_offset for item in lagging})
        tails = {item.partition: max(item.next_offset, item.end - _TAIL_RECORDS) for item in lagging}
        newest = await _read(reader, tails)
        reader.pause(numbers)
        return {
            number: PartitionDelay(
                number,
                max(now_ns - records[0].timestamp * NS_PER_MS, 0),
                _between(
                    self._times(records, number, partitions), self._times(newest.get(number, ()), number, partitions)
                ),
            )
            for number, records in first.items()
        }

    def _times(self, records: Sequence[KafkaRecord], partition: int, partitions: int) -> list[int]:
        """The event times of those records that are ticks: no worker goes by the time of one that it rejects."""
        return [found for each in records if (found := self._time(each, partition, partitions)) is not None]

    def _time(self, record: KafkaRecord, partition: int, partitions: int) -> int | None:
        try:
            decoded = self._decode(record)
        except Exception:
            return None  # of no record may the lag be unknown; whatever is wrong with it, the workers tell
        if not isinstance(decoded, Tick):
            return None
        at_home = partition_for(decoded.symbol.encode(), partitions) == partition
        return decoded.ts_ns if at_home or self._form.on_misrouted == "warn" else None

    async def _opened(self) -> TopicReader:
        if self._reader is None:
            self._reader = await self._stack.enter_async_context(
                reading(
                    self._settings,
                    self._settings.topics.ticks,
                    glances=True,
                    isolation_level=self._settings.kafka.isolation_level,
                    fetch_max_wait_ms=50,
                    max_partition_fetch_bytes=64 * 1024,
                )
            )
        return self._reader


async def _read(reader: TopicReader, offsets: dict[int, int]) -> dict[int, Sequence[KafkaRecord]]:
    """Some records of each partition from an offset on, as far as they come in time."""
    for number, offset in offsets.items():
        reader.seek(number, offset)
    left = set(offsets)
    found: dict[int, Sequence[KafkaRecord]] = {}
    deadline_s = time.monotonic() + _DELAYS_TIMEOUT_S
    while left and time.monotonic() < deadline_s:
        found |= await reader.poll(left, timeout_ms=200, max_records=_TAIL_RECORDS)
        left -= found.keys()
    return found


def _between(first: list[int], newest: list[int]) -> int | None:
    """From the first time still to be done to the greatest; None where there is none."""
    return max([*first, *newest]) - first[0] if first else None


def _growth(before: Mapping[int, int], now: Mapping[int, int]) -> int:
    """By how much offsets went on, over the partitions known before."""
    return sum(max(offset - before.get(number, offset), 0) for number, offset in now.items())


def _call(callback: Callable[[_T], None], value: _T) -> None:
    """A user's callback must not end the measuring."""
    try:
        callback(value)
    except Exception:
        log.exception("a callback of the lag monitor failed")
