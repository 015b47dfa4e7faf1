"""Windows over async streams, by event time and by arrival, and the plain operators."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workers
from workers import (
    Lateness,
    TumblingWindowSpec,
    WatermarkPolicy,
    WindowFrame,
    WorkersError,
    buffer_async,
    filter_async,
    map_async,
    tumbling_window,
    tumbling_window_event_time,
    window_event_time,
)
from workers.streams.windows import CLOCK_CHECK_S

T = TypeVar("T")
R = TypeVar("R")
WAIT_S = 5.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAIVE_EPOCH = datetime(1970, 1, 1)
FIVE_SECONDS = TumblingWindowSpec(timedelta(seconds=5))
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Item:
    key: str
    seconds: float
    number: int = 0


def at(item: Item) -> datetime:
    return EPOCH + timedelta(seconds=item.seconds)


def policy(lag_s: float, lateness_s: float = 0) -> WatermarkPolicy:
    return WatermarkPolicy(timedelta(seconds=lag_s), timedelta(seconds=lateness_s))


def seconds(moment: datetime) -> float:
    return (moment - EPOCH).total_seconds()


def times(frames: Iterable[WindowFrame[Item]]) -> list[tuple[float, list[float]]]:
    return [(seconds(frame.start), [item.seconds for item in frame.items]) for frame in frames]


async def feed(items: Iterable[T], error: BaseException | None = None) -> AsyncIterator[T]:
    for item in items:
        yield item
    if error is not None:
        raise error


async def collect(stream: AsyncIterator[T], into: list[T] | None = None) -> list[T]:
    found: list[T] = [] if into is None else into
    async with asyncio.timeout(WAIT_S):
        async for item in stream:
            found.append(item)  # noqa: PERF401  # what came before an error counts
    return found


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, WAIT_S)


def only_this_task_is_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


# --- event time


async def test_a_window_closes_when_the_watermark_reaches_its_end() -> None:
    """Lag 2, size 5: the watermark is 4 after the tick at 6, and 5 after that at 7."""
    read: list[float] = []

    async def source() -> AsyncIterator[Item]:
        for when in (0, 2, 1, 6, 7, 8):
            read.append(when)
            yield Item("a", when)

    frames = tumbling_window_event_time(source(), FIVE_SECONDS, get_event_time=at, watermark_policy=policy(2))
    first = await soon(anext(frames))
    assert read == [0, 2, 1, 6, 7]
    assert times([first]) == [(0, [0, 2, 1])]
    assert (first.key, first.end, first.rev, first.status, first.trigger) == (
        None,
        EPOCH + timedelta(seconds=5),
        0,
        "final",
        "watermark",
    )
    rest = await collect(frames)
    assert times(rest) == [(5, [6, 7, 8])]
    assert (rest[0].status, rest[0].trigger) == ("final", "end")
    assert (frames.accepted, frames.late) == (6, 0)


async def test_a_late_tick_is_judged_by_the_rule_and_handed_over_with_the_reason() -> None:
    """Lag 2, allowed lateness 1, a tick at 6: watermark 4, threshold 3. At the threshold a tick is late."""
    late: list[tuple[float, Lateness]] = []
    frames = tumbling_window_event_time(
        feed([Item("a", when) for when in (6, 3.5, 3.0, 2.8, 2.5)]),
        FIVE_SECONDS,
        get_event_time=at,
        watermark_policy=policy(2, 1),
        on_late=lambda item, lateness: late.append((item.seconds, lateness)),
    )
    assert times(await collect(frames)) == [(0, [3.5]), (5, [6])]
    assert [(when, lateness.late_by_ns) for when, lateness in late] == [
        (3.0, 0),
        (2.8, 200_000_000),
        (2.5, 500_000_000),
    ]
    assert {lateness.watermark_ns for _, lateness in late} == {4_000_000_000}
    assert (frames.accepted, frames.late) == (2, 3)


async def test_late_items_are_counted_and_the_first_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    frames = tumbling_window_event_time(
        feed([Item("a", when) for when in (60, 1, 2, 3)]),
        FIVE_SECONDS,
        get_event_time=at,
        get_key=lambda item: item.key,
    )
    with caplog.at_level(logging.WARNING):
        assert len(await collect(frames)) == 1
    assert (frames.accepted, frames.late) == (1, 3)
    (record,) = caplog.records
    assert "key 'a' and event time 1970-01-01T00:00:01Z" in record.getMessage()
    assert "57s below the threshold" in record.getMessage()


async def test_on_late_may_be_async_and_what_it_raises_reaches_the_reader() -> None:
    async def on_late(item: Item, _: Lateness) -> None:
        await asyncio.sleep(0)
        raise LookupError(item.seconds)

    frames = tumbling_window_event_time(
        feed([Item("a", 60), Item("a", 1)]), FIVE_SECONDS, get_event_time=at, on_late=on_late
    )
    with pytest.raises(LookupError, match="1"):
        await collect(frames)


async def test_a_late_tick_within_the_lateness_brings_its_window_out_again() -> None:
    frames = await collect(
        tumbling_window_event_time(
            feed([Item("a", when) for when in (1, 7, 4.5, 20)]),
            FIVE_SECONDS,
            get_event_time=at,
            watermark_policy=policy(2, 1),
        )
    )
    assert times(frames) == [(0, [1]), (0, [1, 4.5]), (5, [7]), (20, [20])]
    assert [(f.rev, f.status, f.trigger) for f in frames] == [
        (0, "closed", "watermark"),
        (1, "closed", "late"),
        (0, "final", "watermark"),
        (0, "final", "end"),
    ]


async def test_each_key_has_its_own_clock_so_that_none_makes_another_late() -> None:
    items = [Item("fast", 1000), Item("slow", 1), Item("slow", 2), Item("fast", 1001)]
    frames = tumbling_window_event_time(
        feed(items), FIVE_SECONDS, get_event_time=at, get_key=lambda item: item.key, watermark_policy=policy(2)
    )
    found = await collect(frames)
    assert [(frame.key, len(frame.items)) for frame in found] == [("fast", 2), ("slow", 2)]
    assert frames.late == 0


async def test_naive_times_are_utc_and_aware_ones_are_converted() -> None:
    moments = [
        NAIVE_EPOCH + timedelta(seconds=1),
        datetime(1970, 1, 1, 2, 0, 2, tzinfo=timezone(timedelta(hours=2))),
        EPOCH - timedelta(microseconds=1),
    ]
    frames = await collect(
        tumbling_window_event_time(
            feed(moments), FIVE_SECONDS, get_event_time=lambda moment: moment, watermark_policy=policy(10)
        )
    )
    assert [(frame.start, frame.items) for frame in frames] == [
        (EPOCH - timedelta(seconds=5), (moments[2],)),
        (EPOCH, (moments[0], moments[1])),
    ]


@pytest.mark.parametrize("emit_partial", [False, True])
async def test_what_a_source_raises_comes_after_the_frames_that_closed_before(emit_partial: bool) -> None:
    spec = TumblingWindowSpec(timedelta(seconds=5), emit_partial)
    items = [Item("a", when) for when in (1, 8, 9)]
    for error in (OSError("feed lost"), TimeoutError("the feed's own")):
        frames: list[WindowFrame[Item]] = []
        with pytest.raises(type(error), match=str(error)):
            await collect(tumbling_window_event_time(feed(items, error), spec, get_event_time=at), frames)
        assert times(frames) == [(0, [1])]
        assert only_this_task_is_left()


@pytest.mark.parametrize("emit_partial", [False, True])
async def test_what_get_event_time_raises_comes_after_the_frames_that_closed_before(emit_partial: bool) -> None:
    def fails_at_9(item: Item) -> datetime:
        if item.seconds == 9:
            raise KeyError("no time")
        return at(item)

    frames: list[WindowFrame[Item]] = []
    stream = tumbling_window_event_time(
        feed([Item("a", when) for when in (1, 8, 9)]),
        TumblingWindowSpec(timedelta(seconds=5), emit_partial),
        get_event_time=fails_at_9,
    )
    with pytest.raises(KeyError, match="no time"):
        await collect(stream, frames)
    assert times(frames) == [(0, [1])]
    assert only_this_task_is_left()


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (1_700_000_000, TypeError, "expected a datetime"),
        (datetime.max, ValueError, "does not fit"),
        (datetime.min, ValueError, "does not fit"),
    ],
)
async def test_an_event_time_that_is_none_is_refused(found: object, error: type[Exception], message: str) -> None:
    stream = tumbling_window_event_time(feed([1]), FIVE_SECONDS, get_event_time=lambda _: found)  # type: ignore[arg-type, return-value]
    with pytest.raises(error, match=message):
        await collect(stream)


def test_a_policy_under_which_every_tick_is_late_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="every tick would be late"):
        tumbling_window_event_time(
            feed([1]), FIVE_SECONDS, get_event_time=lambda _: EPOCH, watermark_policy=policy(0, 0)
        )


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_a_flush_interval_that_is_not_positive_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match="flush_interval"):
        tumbling_window_event_time(feed([1]), FIVE_SECONDS, get_event_time=lambda _: EPOCH, flush_interval=interval)


async def test_provisional_frames_come_while_the_source_is_silent_and_only_for_changes() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        yield Item("a", 1)
        yield Item("a", 2)
        await more.wait()
        yield Item("a", 3)
        yield Item("a", 7)

    stream = tumbling_window_event_time(
        source(), TumblingWindowSpec(timedelta(seconds=5), emit_partial=True), get_event_time=at, flush_interval=0.02
    )
    first = await soon(anext(stream))
    assert times([first]) == [(0, [1, 2])]
    assert (first.rev, first.status, first.trigger) == (0, "provisional", "partial")
    nothing = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait({nothing}, timeout=0.1)
    assert not done, "nothing changed, so nothing is emitted again"
    more.set()
    second = await soon(nothing)
    assert times([second]) == [(0, [1, 2, 3])]
    assert (second.rev, second.status) == (0, "final"), "a provisional frame consumes no rev"
    assert [(f.status, f.trigger) for f in await collect(stream)] == [("final", "end")]
    assert only_this_task_is_left()


async def test_provisional_frames_come_while_the_source_never_pauses() -> None:
    async def source() -> AsyncIterator[Item]:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            await asyncio.sleep(0)
            yield Item("a", 1)

    stream = tumbling_window_event_time(
        source(), TumblingWindowSpec(timedelta(seconds=5), emit_partial=True), get_event_time=at, flush_interval=0.02
    )
    frames = await collect(stream)
    provisional = [len(frame.items) for frame in frames if frame.status == "provisional"]
    assert len(provisional) >= 3
    assert provisional == sorted(set(provisional))
    assert len(frames[-1].items) == stream.accepted


async def test_without_emit_partial_there_are_no_provisional_frames() -> None:
    async def source() -> AsyncIterator[Item]:
        for when in (1, 2):
            yield Item("a", when)
            await asyncio.sleep(0.03)

    frames = await collect(tumbling_window_event_time(source(), FIVE_SECONDS, get_event_time=at, flush_interval=0.01))
    assert [(f.status, f.trigger) for f in frames] == [("final", "end")]


# --- keys that fall quiet


async def test_a_quiet_key_comes_out_provisionally_once_the_others_have_left_its_window_behind() -> None:
    """Lag 2, size 5, idle after 1: the window [0, 5) of "quiet" is idle when anybody's time reaches 8."""
    items = [Item("quiet", 1), Item("busy", 7.9), Item("busy", 8), Item("quiet", 2), Item("busy", 30)]
    frames = await collect(
        tumbling_window_event_time(
            feed(items),
            FIVE_SECONDS,
            get_event_time=at,
            get_key=lambda item: item.key,
            watermark_policy=policy(2),
            idle_after=timedelta(seconds=1),
        )
    )
    quiet = [(f.rev, f.status, f.trigger, [item.seconds for item in f.items]) for f in frames if f.key == "quiet"]
    assert quiet == [
        (0, "provisional", "idle", [1]),
        (0, "provisional", "idle", [1, 2]),
        (0, "final", "end", [1, 2]),
    ]


async def test_the_silence_of_the_source_brings_quiet_windows_out_and_loses_nothing_that_follows() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        yield Item("a", 0)
        await more.wait()
        yield Item("a", 0.01)
        yield Item("a", 9)

    stream = window_event_time(
        source(),
        TumblingWindowSpec(timedelta(milliseconds=20)),
        get_event_time=at,
        get_key=lambda item: item.key,
        watermark_policy=policy(0.02),
        idle_after=timedelta(milliseconds=30),
    )
    began = time.monotonic()
    first = await soon(anext(stream))
    assert (first.status, first.trigger, len(first.items)) == ("provisional", "timeout", 1)
    assert time.monotonic() - began >= 0.07, "end + lag + idle_after after the event at 0"
    more.set()
    rest = [(f.rev, f.status, f.trigger, len(f.items)) for f in await collect(stream)]
    assert (0, "final", "watermark", 2) in rest
    assert stream.late == 0
    assert only_this_task_is_left()


async def test_the_time_that_a_reader_takes_is_no_silence_of_the_source() -> None:
    stream = window_event_time(
        feed([Item("a", n / 1000) for n in range(500)]),  # more than is read ahead
        TumblingWindowSpec(timedelta(milliseconds=100)),
        get_event_time=at,
        watermark_policy=policy(0.01),
        idle_after=timedelta(milliseconds=10),
    )
    frames = [await soon(anext(stream))]
    await asyncio.sleep(0.3)
    frames += await collect(stream)
    assert {frame.status for frame in frames} == {"final"}


async def test_a_key_further_behind_than_its_ttl_is_finished_and_forgotten() -> None:
    late: list[tuple[Item, str]] = []
    items = [
        Item("quiet", 1),
        Item("busy", 61),
        Item("busy", 61.5),
        Item("quiet", 1.5),
        Item("quiet", 60),
        Item("new", 2),
    ]
    frames = await collect(
        tumbling_window_event_time(
            feed(items),
            FIVE_SECONDS,
            get_event_time=at,
            get_key=lambda item: item.key,
            watermark_policy=policy(2),
            key_ttl=timedelta(seconds=50),
            on_late=lambda item, lateness: late.append((item, lateness.reason)),
        )
    )
    found = [(f.key, seconds(f.start), f.status, f.trigger) for f in frames]
    assert found[0] == ("quiet", 0, "final", "expiry")
    assert found[1:] == [("busy", 60, "final", "end"), ("quiet", 60, "final", "end")]
    assert late == [(items[3], "expired"), (items[5], "expired")]


async def test_ever_new_keys_take_no_more_than_those_of_one_ttl() -> None:
    """5,000 keys with one item each, a tenth of a second apart: all but the last come out while the source goes on."""
    read = 0

    async def source() -> AsyncIterator[Item]:
        nonlocal read
        for read in range(5_000):
            yield Item(str(read), read / 10)

    lags = [
        read - int(frame.key)  # type: ignore[call-overload]
        async for frame in window_event_time(
            source(),
            FIVE_SECONDS,
            get_event_time=at,
            get_key=lambda item: item.key,
            key_ttl=timedelta(seconds=10),
        )
    ]
    assert len(lags) == 5_000
    assert max(lags) <= 102, "10 s are 100 keys"


async def test_without_a_ttl_no_key_loses_anything_by_the_progress_of_others() -> None:
    items = [Item(key, day * 86_400) for key in "abc" for day in range(5)]  # sorted by key, as a file may be
    stream = window_event_time(feed(items), FIVE_SECONDS, get_event_time=at, get_key=lambda item: item.key)
    assert len(await collect(stream)) == 15
    assert stream.late == 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"idle_after": 5}, TypeError, r"idle_after is 5 \(int\); expected a timedelta, like timedelta\(seconds=5\)"),
        ({"key_ttl": "1h"}, TypeError, "key_ttl is '1h' .str.; expected a timedelta"),
        ({"idle_after": timedelta(seconds=-1)}, ValueError, "idle_after is .*; expected 0 or more"),
        ({"key_ttl": timedelta(seconds=6.9)}, ValueError, r"expected at least window \+ lag \+ allowed lateness = 7s"),
    ],
)
def test_idle_after_and_ttl_that_make_no_sense_are_refused(
    given: dict[str, timedelta], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        window_event_time(feed([Item("a", 1)]), FIVE_SECONDS, get_event_time=at, **given)


def test_a_size_that_is_no_timedelta_is_explained() -> None:
    with pytest.raises(TypeError, match=r"size is 5 \(int\); expected a timedelta, like timedelta\(seconds=5\)"):
        tumbling_window(feed([1]), 5)  # type: ignore[arg-type]


# --- what holds for every stream


Stream = Callable[[AsyncIterator[Item]], AsyncIterator[object]]
STREAMS: dict[str, Stream] = {
    "event time": lambda source: tumbling_window_event_time(
        source, FIVE_SECONDS, get_event_time=at, watermark_policy=policy(0.001)
    ),
    "event time, partial": lambda source: tumbling_window_event_time(
        source, TumblingWindowSpec(timedelta(seconds=5), True), get_event_time=at, watermark_policy=policy(0.001)
    ),
    "arrival": lambda source: tumbling_window(source, timedelta(milliseconds=1)),
    "buffer": lambda source: buffer_async(source, 2),
    "filter": lambda source: filter_async(source, lambda _: True),
    "map": lambda source: map_async(source, str),
    "map, concurrently": lambda source: map_async(source, str, concurrency=3),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_closing_a_stream_early_closes_its_source_and_leaves_no_task(name: str) -> None:
    closed = False

    async def source() -> AsyncIterator[Item]:
        nonlocal closed
        try:
            for n in range(10):
                yield Item("a", n * 10)
                await asyncio.sleep(0.002)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed = True

    stream = STREAMS[name](source())
    await soon(anext(stream))
    await soon(stream.aclose())  # type: ignore[attr-defined]
    assert closed
    assert only_this_task_is_left()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_is_abandoned_is_cleaned_up(name: str) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        try:
            for n in range(10):
                yield Item("a", n * 10)
                await asyncio.sleep(0.002)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async for _ in STREAMS[name](source()):
        break
    await soon(closed.wait())
    for _ in range(10):
        await asyncio.sleep(0)
    assert only_this_task_is_left()


@pytest.mark.parametrize("name", STREAMS)
async def test_a_cancelled_reader_leaves_the_stream_to_the_next_and_letting_go_of_it_closes_the_source(
    name: str,
) -> None:
    closed, silence = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[Item]:
        try:
            await silence.wait()
            for n in range(5):
                yield Item("a", n * 10)
                await asyncio.sleep(0.002)
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = STREAMS[name](source())
    reading = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait({reading}, timeout=WAIT_S)
    assert reading.cancelled()
    assert not closed.is_set()
    silence.set()
    await soon(anext(stream))
    del stream, reading
    gc.collect()  # of the frames that the cancelled task's exception holds
    await soon(closed.wait())
    for _ in range(10):
        await asyncio.sleep(0)
    assert only_this_task_is_left()


async def impatient(stream: AsyncIterator[R], timeout_s: float, timeouts: list[int]) -> list[R]:
    """What a reader gets that asks again and again, never waiting for longer than this."""
    found: list[R] = []
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                found.append(await asyncio.wait_for(anext(stream), timeout_s))
            except StopAsyncIteration:
                return found
            except TimeoutError:
                timeouts.append(len(found))


async def haltingly(items: Iterable[T], pause_s: float) -> AsyncIterator[T]:
    for item in items:
        await asyncio.sleep(pause_s)
        yield item


@pytest.mark.parametrize("timeout_s", [0.0005, 0.002])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_timeout_around_anext_ends_nothing_loses_nothing_and_repeats_nothing(
    name: str, timeout_s: float
) -> None:
    items = [Item("a", n * 10, n) for n in range(12)]
    timeouts: list[int] = []
    found = await impatient(STREAMS[name](haltingly(items, 0.006)), timeout_s, timeouts)
    assert len(timeouts) >= 5
    if name in ("event time", "event time, partial", "arrival"):
        frames: list[WindowFrame[Item]] = [frame for frame in found if frame.status != "provisional"]  # type: ignore[attr-defined]
        assert [item for frame in frames for item in frame.items] == items
    else:
        assert found == (items if name in ("buffer", "filter") else [str(item) for item in items])
    assert only_this_task_is_left()


@given(
    name=st.sampled_from(sorted(STREAMS)),
    turns=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40),
    concurrent=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_readers_cancelled_at_any_moment_lose_and_repeat_nothing(
    name: str, turns: list[tuple[int, int]], concurrent: bool
) -> None:
    """Some steps of the event loop, a reader begins; some more, it is cancelled, whatever it has by then."""
    items = [Item("a", n * 10, n) for n in range(10)]

    async def source() -> AsyncIterator[Item]:
        for item in items:
            for _ in range(item.number % 4):
                await asyncio.sleep(0)
            yield item

    async def read(stream: AsyncIterator[object], found: list[object]) -> None:
        found.append(await anext(stream))  # nothing can be between the item and the list

    async def run() -> list[object]:
        stream, found = STREAMS[name](source()), list[object]()
        for before, until in turns:
            readers = [asyncio.create_task(read(stream, found)) for _ in range(1 + concurrent)]
            for _ in range(until):
                await asyncio.sleep(0)
            readers[0].cancel()
            for _ in range(before):
                await asyncio.sleep(0)
            readers[-1].cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        return await collect(stream, found)

    found = asyncio.run(run())
    if name in ("event time", "event time, partial", "arrival"):
        assert [item for frame in found if frame.status != "provisional" for item in frame.items] == items  # type: ignore[attr-defined]
    else:
        assert found == (items if name in ("buffer", "filter") else [str(item) for item in items])


@pytest.mark.parametrize("name", STREAMS)
async def test_a_source_that_raises_cancelled_error_fails_the_stream_and_cancels_no_reader(name: str) -> None:
    items = [Item("a", 1), Item("a", 8), Item("a", 9)]
    stream = STREAMS[name](feed(items, asyncio.CancelledError("the feed's own")))
    found: list[object] = []
    with pytest.raises(WorkersError, match="CancelledError was raised by its source") as caught:
        await collect(stream, found)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert (
        len(found) == 3
        if name not in ("event time", "event time, partial", "arrival")
        else len(found) >= 1 - (name == "arrival")
    )
    with pytest.raises(WorkersError):  # and does not end as if it were complete when it is asked again
        await soon(anext(stream))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert only_this_task_is_left()


async def test_a_source_keeps_its_task_and_its_own_timeouts_over_all_its_steps() -> None:
    tasks: set[asyncio.Task[object] | None] = set()

    async def source() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0.05):  # entered in one step, left in another
                for number in range(3):
                    tasks.add(asyncio.current_task())
                    yield number
                await asyncio.Event().wait()
        except TimeoutError:
            yield -1

    stream = filter_async(map_async(source(), lambda number: number), lambda _: True)
    assert await impatient(stream, 0.01, []) == [0, 1, 2, -1]
    assert len(tasks) == 1, "a chain of streams is read in one task"


async def test_a_reader_that_waits_while_the_stream_is_closed_is_told_so() -> None:
    async def source() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    stream = map_async(source(), str)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    await soon(stream.aclose())
    with pytest.raises(WorkersError, match="closed while an anext waited"):
        await soon(waiting)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await soon(stream.aclose())
    assert only_this_task_is_left()


async def test_a_stream_cannot_be_closed_by_its_own_function_nor_read_beside_its_owner() -> None:
    async def close(_: int) -> None:
        await stream.aclose()

    stream = map_async(feed([1]), close)
    with pytest.raises(RuntimeError, match="its own source or functions"):
        await soon(anext(stream))
    inner = map_async(feed([1, 2]), str)
    outer = filter_async(inner, lambda _: True)
    assert await soon(anext(outer)) == "1"
    with pytest.raises(RuntimeError, match="source of another one"):
        await anext(inner)
    await soon(outer.aclose())
    await soon(inner.aclose())


def test_a_stream_left_open_at_the_end_of_the_loop_closes_its_source_without_a_warning() -> None:
    script = """
import asyncio, workers
async def source():
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("closed")
kept = []
async def main():
    for stream in (workers.map_async(source(), str), workers.buffer_async(source(), 2)):
        print(await anext(stream))
        kept.append(stream)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1", "1", "closed", "closed"]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_failing_source_raises_in_the_reader(name: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await collect(STREAMS[name](feed([Item("a", 1), Item("a", 2)], ZeroDivisionError())))
    assert only_this_task_is_left()


@pytest.mark.parametrize("name", STREAMS)
async def test_what_closing_the_source_raises_is_not_swallowed(name: str) -> None:
    async def source() -> AsyncIterator[Item]:
        try:
            for n in range(10):
                yield Item("a", n * 10)
                await asyncio.sleep(0.002)
            await asyncio.Event().wait()
        finally:
            raise OSError("can't hang up")

    stream = STREAMS[name](source())
    await soon(anext(stream))
    with pytest.raises(OSError, match="hang up"):
        await soon(stream.aclose())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_reading_task_cancelled_by_somebody_else_raises_in_the_reader(name: str) -> None:
    async def source() -> AsyncIterator[Item]:
        await asyncio.Event().wait()
        yield Item("a", 0)

    for turns in (1, 5):
        before = asyncio.all_tasks()
        reading = asyncio.create_task(collect(STREAMS[name](source())))
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - before - {reading}
        assert tasks
        for task in tasks:
            task.cancel()
        with pytest.raises(WorkersError):
            await soon(reading)


# --- event time against an oracle that knows nothing but the rules


@dataclass
class Expected:
    frames: list[tuple[Hashable, int, tuple[Item, ...], int]]
    late: list[Item]


def oracle(items: Sequence[Item], size: int, lag: int, lateness: int, by_key: bool) -> Expected:
    """Every frame that is not provisional, by looking at the whole past again for each tick."""
    expected = Expected([], [])
    accepted: dict[Hashable, list[Item]] = {}
    emitted: dict[tuple[Hashable, int], tuple[Item, ...]] = {}
    revs: dict[tuple[Hashable, int], int] = {}
    seen: dict[Hashable, list[int]] = {}

    def emit_due(key: Hashable, watermark: float) -> None:
        starts = sorted({int(item.seconds) // size * size for item in accepted.get(key, [])})
        for start in starts:
            content = tuple(item for item in accepted[key] if start <= item.seconds < start + size)
            if start + size <= watermark and emitted.get((key, start)) != content:
                rev = revs.get((key, start), 0)
                expected.frames.append((key, start, content, rev))
                emitted[key, start], revs[key, start] = content, rev + 1

    for item in items:
        key: Hashable = item.key if by_key else None
        seen.setdefault(key, []).append(int(item.seconds))
        watermark = max(seen[key]) - lag
        if item.seconds <= watermark - lateness:
            expected.late.append(item)
            continue
        accepted.setdefault(key, []).append(item)
        emit_due(key, watermark)
    for each in accepted:
        emit_due(each, float("inf"))
    return expected


@given(
    ticks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-20, 40)), max_size=40),
    size=st.integers(1, 7),
    lag=st.integers(0, 8),
    lateness=st.integers(0, 8),
    by_key=st.booleans(),
    emit_partial=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_frames_and_late_items_are_those_of_a_brute_force_oracle(
    ticks: list[tuple[str, int]], size: int, lag: int, lateness: int, by_key: bool, emit_partial: bool
) -> None:
    if lag + lateness == 0:
        lag = 1
    items = [Item(key, when, number) for number, (key, when) in enumerate(ticks)]
    expected = oracle(items, size, lag, lateness, by_key)
    late: list[Item] = []
    stream = tumbling_window_event_time(
        feed(items),
        TumblingWindowSpec(timedelta(seconds=size), emit_partial),
        get_event_time=at,
        get_key=(lambda item: item.key) if by_key else None,
        watermark_policy=policy(lag, lateness),
        flush_interval=1e-6,
        on_late=lambda item, _: late.append(item),
    )
    frames = asyncio.run(collect(stream))
    real = [(f.key, seconds(f.start), f.items, f.rev) for f in frames if f.status != "provisional"]
    assert real == expected.frames
    assert late == expected.late
    assert stream.accepted + stream.late == len(items)
    if not emit_partial:
        assert len(real) == len(frames)
    final_of = {(f.key, f.start): n for n, f in enumerate(frames) if f.status != "provisional" and f.rev == 0}
    for n, frame in enumerate(frames):
        if frame.status == "provisional":
            assert n < final_of[frame.key, frame.start], "a window is provisional only before it closes"


# --- arrival time


class Clock:
    """A wall clock that stands where it is put."""

    now_ns: int
    then_ns: int

    def __init__(self, at_s: float) -> None:
        self.set(at_s)

    def __call__(self) -> int:
        now_ns, self.now_ns = self.now_ns, self.then_ns
        return now_ns

    def set(self, at_s: float, then_s: float | None = None) -> None:
        self.now_ns = int(at_s * 1e9)
        self.then_ns = self.now_ns if then_s is None else int(then_s * 1e9)  # from the second look on


async def arriving(clock: Clock, arrivals: Iterable[float]) -> AsyncIterator[float]:
    for moment in arrivals:
        clock.set(moment)
        yield moment


async def test_arrival_windows_are_aligned_to_the_epoch_and_skip_empty_ones() -> None:
    clock = Clock(0)
    frames = await collect(
        tumbling_window(arriving(clock, [103, 104.999, 105, 131]), timedelta(seconds=5), clock=clock)
    )
    assert [(f.key, seconds(f.start), seconds(f.end), f.items) for f in frames] == [
        (None, 100, 105, (103, 104.999)),
        (None, 105, 110, (105,)),
        (None, 130, 135, (131,)),
    ]
    assert [(f.status, f.trigger, f.rev) for f in frames] == [("final", "watermark", 0)] * 2 + [("final", "end", 0)]


async def test_an_arrival_window_never_comes_out_twice_when_the_clock_is_set_back() -> None:
    clock = Clock(0)
    frames = await collect(tumbling_window(arriving(clock, [11, 16, 12, 17, 9]), timedelta(seconds=5), clock=clock))
    assert [(seconds(f.start), f.items) for f in frames] == [(10, (11,)), (15, (16, 12, 17, 9))]


async def test_a_silent_source_still_gets_its_window_closed_when_its_time_is_over() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    size = timedelta(milliseconds=50)
    stream = tumbling_window(source(), size)
    frame = await soon(anext(stream))
    assert frame.items == (1,)
    assert frame.end - frame.start == size
    assert datetime.now(UTC) >= frame.end
    assert (frame.start - EPOCH) % size == timedelta(0)
    await stream.aclose()  # type: ignore[attr-defined]
    assert only_this_task_is_left()


async def test_a_silent_window_waits_for_the_clock_and_not_for_a_number_of_seconds() -> None:
    clock = Clock(100)

    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    stream = tumbling_window(source(), timedelta(seconds=5), clock=clock)
    waiting = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait({waiting}, timeout=1.5 * CLOCK_CHECK_S)
    assert not done
    clock.set(105)
    assert (await soon(waiting)).items == (1,)
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_window_that_a_timer_closed_is_not_opened_again_when_the_clock_is_set_back() -> None:
    clock = Clock(100)
    gate = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        yield 2

    stream = tumbling_window(source(), timedelta(seconds=5), clock=clock)
    waiting = asyncio.ensure_future(anext(stream))
    for _ in range(10):  # until the first item has arrived
        await asyncio.sleep(0)
    clock.set(105)
    assert (await soon(waiting)).items == (1,)
    clock.set(101)
    gate.set()
    assert [(seconds(f.start), f.items) for f in await collect(stream)] == [(105, (2,))]


async def test_an_item_that_arrives_as_the_timer_fires_joins_its_window() -> None:
    clock = Clock(100)

    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(CLOCK_CHECK_S / 2)
        clock.set(104.9, then_s=105)
        yield 2
        await asyncio.Event().wait()

    # The loop is held up until both are due, the item first: the reader's timer finds it in the channel.
    asyncio.get_running_loop().call_later(0.01, time.sleep, 1.5 * CLOCK_CHECK_S)
    stream = tumbling_window(source(), timedelta(seconds=5), clock=clock)
    assert (await soon(anext(stream))).items == (1, 2)
    await stream.aclose()  # type: ignore[attr-defined]


async def test_items_keep_the_time_of_their_arrival_while_the_reader_is_busy() -> None:
    clock = Clock(100)
    gate = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        clock.set(106)
        yield 2
        await gate.wait()
        clock.set(109)
        yield 3
        clock.set(111)
        yield 4

    stream = tumbling_window(source(), timedelta(seconds=5), clock=clock)
    assert (await soon(anext(stream))).items == (1,)
    gate.set()
    await asyncio.sleep(0.01)  # the reader is busy until after the end of the second window
    clock.set(500)
    assert [(seconds(f.start), f.items) for f in await collect(stream)] == [(105, (2, 3)), (110, (4,))]


async def test_frames_that_closed_come_before_the_error_of_an_arrival_source() -> None:
    clock = Clock(0)

    async def source() -> AsyncIterator[float]:
        async for moment in arriving(clock, [1, 6]):
            yield moment
        raise TimeoutError("the feed's own")

    frames: list[WindowFrame[float]] = []
    with pytest.raises(TimeoutError, match="feed's own"):
        await collect(tumbling_window(source(), timedelta(seconds=5), clock=clock), frames)
    assert [f.items for f in frames] == [(1,)]


async def test_a_failing_clock_raises_in_the_reader() -> None:
    def broken() -> int:
        raise StopAsyncIteration

    with pytest.raises(WorkersError):
        await collect(tumbling_window(feed([1]), timedelta(seconds=5), clock=broken))


def test_an_arrival_window_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="more than zero"):
        tumbling_window(feed([1]), timedelta(0))


# --- map, filter, buffer


@pytest.mark.parametrize("concurrency", [1, 2, 5, 100])
async def test_mapping_keeps_the_order_and_the_limit(concurrency: int) -> None:
    running = most = 0
    crowded = asyncio.Event()

    async def slow(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == min(concurrency, 20):
            crowded.set()
        await crowded.wait()  # the limit is reached, or the reader's timeout ends this
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        return number * 2

    assert await collect(map_async(feed(range(20)), slow, concurrency=concurrency)) == [2 * n for n in range(20)]
    assert most == min(concurrency, 20)


async def test_a_result_is_not_held_back_by_a_source_that_falls_silent() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    stream = map_async(source(), str, concurrency=4)
    assert await soon(anext(stream)) == "1"
    await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_failing_call_raises_in_its_turn_and_the_others_are_cancelled(concurrency: int) -> None:
    started: list[int] = []
    cancelled: list[int] = []

    async def fn(number: int) -> int:
        started.append(number)
        if number == 2:
            raise LookupError(number)
        try:
            await asyncio.sleep(0 if number < 2 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    found: list[int] = []
    with pytest.raises(LookupError, match="2"):
        await collect(map_async(feed(range(9)), fn, concurrency=concurrency), found)
    assert found == [0, 1]
    assert cancelled == [number for number in started if number > 2]
    assert max(started) == (2 if concurrency == 1 else 3)
    assert only_this_task_is_left()


@pytest.mark.parametrize(
    "stream", [lambda: map_async(feed([1]), str, concurrency=0), lambda: buffer_async(feed([1]), 0)]
)
def test_a_limit_of_nothing_is_refused(stream: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        stream()


async def test_filtering_takes_plain_and_async_predicates() -> None:
    async def is_odd(number: int) -> bool:
        await asyncio.sleep(0)
        return number % 2 == 1

    assert await collect(filter_async(feed(range(6)), is_odd)) == [1, 3, 5]
    assert await collect(filter_async(feed(range(6)), lambda number: number % 2 == 0)) == [0, 2, 4]


async def test_a_buffer_reads_as_far_ahead_as_its_capacity_and_no_further() -> None:
    read = 0

    async def source() -> AsyncIterator[int]:
        nonlocal read
        for number in range(20):
            read += 1
            yield number

    stream = buffer_async(source(), 5)
    assert await soon(anext(stream)) == 0
    for _ in range(20):
        await asyncio.sleep(0)
    assert read == 6, "five in the buffer and the one that was read"
    assert await collect(stream) == list(range(1, 20))


# --- the package and its example


def test_the_version_is_that_of_the_distribution() -> None:
    assert workers.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_example_prints_the_windows_of_both_lanes() -> None:
    script = ROOT / "docs" / "examples" / "windowed_partitioned.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("[p=0]")] == [
        "[p=0] window 13:21:25..13:21:30 count=1",
        "[p=0] window 13:21:30..13:21:35 count=1",
        "[p=0] window 13:21:35..13:21:40 count=1",
    ]
    assert [line for line in lines if line.startswith("[p=1]")] == [
        "[p=1] window 13:21:25..13:21:30 count=3",
        "[p=1] window 13:21:30..13:21:35 count=2",
        "[p=1] window 13:21:35..13:21:40 count=1",
    ]
    assert len(lines) == 6
