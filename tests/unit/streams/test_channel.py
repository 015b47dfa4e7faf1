"""Channels and partitioned streams: levels, closing, failing, cancelling, backpressure."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import (
    Channel,
    ChannelClosed,
    PartitionedChannel,
    PartitioningSpec,
    Watermark,
    WorkersError,
    hash_partition,
)
from workers.core.partitioning import lane_for

WAIT_S = 5.0


async def within(awaitable: Awaitable[object]) -> object:
    return await asyncio.wait_for(awaitable, WAIT_S)


async def settle(turns: int = 20) -> None:
    """Let every task that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def read_into(items: list[int], stream: AsyncIterator[int]) -> None:
    async for item in stream:
        items.append(item)
        await asyncio.sleep(0)


# --- a channel by itself


async def test_items_come_out_in_the_order_they_went_in() -> None:
    channel: Channel[int] = Channel(3)
    for number in range(3):
        await channel.put(number)
    assert (channel.qsize(), len(channel), channel.capacity) == (3, 3, 3)
    assert [await channel.get() for _ in range(3)] == [0, 1, 2]


async def test_a_put_into_a_full_channel_waits_for_a_get() -> None:
    channel: Channel[int] = Channel(1)
    await channel.put(0)
    waiting = asyncio.create_task(channel.put(1))
    await settle()
    assert not waiting.done()
    assert await channel.get() == 0
    await within(waiting)
    assert await channel.get() == 1


async def test_a_closed_channel_drains_and_then_raises() -> None:
    channel: Channel[int] = Channel(4)
    await channel.put(1)
    await channel.put(2)
    channel.close()
    channel.close()
    with pytest.raises(ChannelClosed, match="closed"):
        await channel.put(3)
    assert [await channel.get(), await channel.get()] == [1, 2]
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="closed and empty"):
            await channel.get()


async def test_closing_wakes_every_waiting_put_and_get() -> None:
    full: Channel[int] = Channel(1)
    await full.put(0)
    empty: Channel[int] = Channel(1)
    waiting = [asyncio.create_task(full.put(n)) for n in range(3)]
    readers = [asyncio.create_task(empty.get()) for _ in range(3)]
    await settle()
    full.close()
    empty.close()
    results = await within(asyncio.gather(*waiting, *readers, return_exceptions=True))
    assert isinstance(results, list)
    assert [type(result) for result in results] == [ChannelClosed] * 6
    assert [item async for item in full] == [0], "what waited to be put is not in"


async def test_iterating_ends_when_the_channel_is_closed_and_empty() -> None:
    channel: Channel[int] = Channel(2)

    async def produce() -> None:
        for number in range(10):
            await channel.put(number)
        channel.close()

    producing = asyncio.create_task(produce())
    assert [item async for item in channel] == list(range(10))
    await within(producing)


async def test_a_failed_channel_drains_and_then_raises_the_error_to_every_reader() -> None:
    channel: Channel[int] = Channel(2)
    await channel.put(1)
    channel.fail(ZeroDivisionError("boom"))
    channel.fail(KeyError("only the first counts"))
    assert await channel.get() == 1
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="boom"):
            await channel.get()
    with pytest.raises(ZeroDivisionError):
        await anext(channel)
    with pytest.raises(ChannelClosed, match="boom") as refused:
        await channel.put(2)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("error", [StopAsyncIteration(), StopIteration(), asyncio.CancelledError(), GeneratorExit()])
async def test_an_error_that_reads_as_an_end_does_not_end_the_stream_quietly(error: BaseException) -> None:
    channel: Channel[int] = Channel(2)
    channel.fail(error)
    with pytest.raises(WorkersError) as raised:
        await read_into([], channel)
    assert raised.value.__cause__ is error


async def test_the_traceback_of_a_failure_does_not_grow_with_every_get() -> None:
    channel: Channel[int] = Channel(2)
    channel.fail(ZeroDivisionError())
    depths = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as raised:
            await channel.get()
        depths.append(len(traceback.extract_tb(raised.value.__traceback__)))
    assert depths == depths[:1] * 3


async def test_a_channel_that_failed_with_channel_closed_does_not_end_quietly() -> None:
    channel: Channel[int] = Channel(2)
    channel.fail(ChannelClosed("another one"))
    with pytest.raises(ChannelClosed, match="another one"):
        await read_into([], channel)


@pytest.mark.parametrize(("high", "low"), [(0.5, 0.5), (0.2, 0.4), (1.1, 0.1), (0.5, -0.1), (8, 2)])
def test_watermarks_that_are_no_ordered_shares_are_refused(high: float, low: float) -> None:
    with pytest.raises(ValueError, match="shares of the capacity"):
        Watermark(high, low)


def test_a_channel_without_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        Channel(0)


def test_a_callback_that_requires_more_than_the_channel_is_refused() -> None:
    with pytest.raises(TypeError, match="on_high requires 2 arguments"):
        Channel(1, on_high=lambda a, b: None)


# --- levels


async def test_each_level_is_reported_once_per_crossing() -> None:
    events: list[tuple[str, int]] = []
    channel: Channel[int] = Channel(
        4,
        Watermark(0.75, 0.25),
        on_high=lambda ch: events.append(("high", len(ch))),
        on_low=lambda ch: events.append(("low", len(ch))),
    )
    for _ in range(2):
        for number in range(4):
            await channel.put(number)
        for _ in range(4):
            await channel.get()
    assert events == [("high", 3), ("low", 1), ("high", 3), ("low", 1)]


async def test_a_share_means_what_is_written_and_not_its_nearest_float() -> None:
    highs: list[int] = []
    channel: Channel[int] = Channel(100, Watermark(0.55, 0.25), on_high=lambda ch: highs.append(len(ch)))
    for number in range(60):
        await channel.put(number)
    assert highs == [55], "0.55 * 100 is more than 55 in floats"


Step = tuple[str, int]


@given(
    capacity=st.integers(1, 12),
    levels=st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda pair: pair[0] < pair[1]),
    steps=st.lists(st.sampled_from(["put", "get"]), max_size=80),
    asynchronous=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_levels_fire_once_per_crossing_for_any_sequence(
    capacity: int, levels: tuple[int, int], steps: list[str], asynchronous: bool
) -> None:
    low, high = levels
    seen: list[tuple[str, int]] = []

    def reporter(name: str) -> Callable[[Channel[int]], object]:
        async def later(channel: Channel[int]) -> None:
            before = len(channel)
            await asyncio.sleep(0)
            seen.append((name, before))

        return later if asynchronous else lambda channel: seen.append((name, len(channel)))

    async def run() -> list[tuple[str, int]]:
        channel: Channel[int] = Channel(capacity, Watermark(high / 100, low / 100), reporter("high"), reporter("low"))
        expected: list[tuple[str, int]] = []
        is_high = False
        for step in steps:
            if step == "put" and len(channel) < capacity:
                await channel.put(0)
                if not is_high and 100 * len(channel) >= high * capacity:
                    is_high = True
                    expected.append(("high", len(channel)))
            elif step == "get" and len(channel):
                await channel.get()
                if is_high and 100 * len(channel) <= low * capacity:
                    is_high = False
                    expected.append(("low", len(channel)))
            assert seen == expected
        return expected

    asyncio.run(run())


async def test_a_callback_gets_the_channel_or_nothing_as_it_requires() -> None:
    got: list[object] = []
    event = asyncio.Event()
    for callback in (
        lambda: got.append("nothing"),
        lambda ch: got.append(ch),
        lambda *args: got.append(args),
        lambda lane="bound": got.append(lane),
        event.set,
    ):
        channel: Channel[int] = Channel(1, on_high=callback)
        await channel.put(1)
    assert got[0] == "nothing"
    assert isinstance(got[1], Channel)
    assert isinstance(got[2], tuple)
    assert len(got[2]) == 1
    assert got[3] == "bound"
    assert event.is_set()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ["on_high", "on_low"])
async def test_a_raising_callback_raises_in_the_reader_after_the_items(name: str, asynchronous: bool) -> None:
    def plain(_: Channel[int]) -> None:
        raise LookupError("from the callback")

    async def later(_: Channel[int]) -> None:
        await asyncio.sleep(0)
        raise LookupError("from the callback")

    channel: Channel[int] = Channel(4, Watermark(0.5, 0.25), **{name: later if asynchronous else plain})
    await channel.put(1)
    await channel.put(2)
    got: list[int] = []
    with pytest.raises(LookupError, match="from the callback"):
        await within(read_into(got, channel))
    assert got == [1, 2]


async def test_a_get_that_is_cancelled_during_its_callback_puts_its_item_back() -> None:
    release = asyncio.Event()

    async def on_low(_: Channel[int]) -> None:
        await release.wait()

    channel: Channel[int] = Channel(2, Watermark(1.0, 0.5), on_low=on_low)
    await channel.put(1)
    await channel.put(2)
    getting = asyncio.create_task(channel.get())
    await settle()
    blocked = asyncio.create_task(channel.put(3))
    await settle()
    assert not blocked.done(), "the item of the waiting get may come back, and needs its place"
    channel.close()
    await settle()
    second = asyncio.create_task(channel.get())
    third = asyncio.create_task(channel.get())
    await settle()
    assert second.result() == 2
    assert not third.done(), "the channel is not known to be empty yet"
    getting.cancel()
    assert await within(third) == 1
    with pytest.raises(ChannelClosed):
        await within(channel.get())
    with pytest.raises(ChannelClosed):
        await within(blocked)
    release.set()
    await settle()


# --- cancellation


async def test_a_cancelled_put_adds_nothing_and_passes_its_turn_on() -> None:
    channel: Channel[int] = Channel(1)
    await channel.put(0)
    first, second = (asyncio.create_task(channel.put(n)) for n in (1, 2))
    await settle()
    assert await channel.get() == 0  # wakes the first
    first.cancel()  # before it could run
    await within(second)
    assert await channel.get() == 2
    assert first.cancelled()


async def test_a_cancelled_get_takes_nothing_and_passes_its_turn_on() -> None:
    channel: Channel[int] = Channel(1)
    first, second = (asyncio.create_task(channel.get()) for _ in range(2))
    await settle()
    await channel.put(7)
    first.cancel()
    assert await within(second) == 7
    assert first.cancelled()


async def test_a_get_that_timed_out_can_be_tried_again() -> None:
    channel: Channel[int] = Channel(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(channel.get(), 0.01)
    await channel.put(1)
    assert await within(anext(channel)) == 1


class Crowd:
    """Producers and consumers of one channel, any of which is cancelled at any moment."""

    def __init__(self, capacity: int) -> None:
        self.channel: Channel[int] = Channel(capacity)
        self.put: list[int] = []
        self.got: list[int] = []

    async def produce(self, numbers: range) -> None:
        for number in numbers:
            await self.channel.put(number)
            self.put.append(number)

    async def consume(self) -> None:
        while True:
            self.got.append(await self.channel.get())
            await asyncio.sleep(0)


@given(
    capacity=st.integers(1, 4),
    producers=st.integers(1, 4),
    cancellations=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=30),
)
@settings(deadline=None, max_examples=150)
def test_no_cancellation_loses_or_repeats_an_item_or_a_wake_up(
    capacity: int, producers: int, cancellations: list[tuple[int, int]]
) -> None:
    async def run() -> None:
        crowd = Crowd(capacity)
        tasks = [asyncio.create_task(crowd.produce(range(100 * n, 100 * n + 20))) for n in range(producers)]
        tasks += [asyncio.create_task(crowd.consume()) for _ in range(4)]
        for index, turns in cancellations:
            await settle(turns)
            tasks[index % len(tasks)].cancel()
        # Whoever was cancelled, one more of each can always go on: no wake-up is stuck with a dead task.
        consumer = asyncio.create_task(crowd.consume())
        await within(crowd.channel.put(-1))
        await within(asyncio.wait(tasks[:producers]))
        await settle(4 * capacity + 20)
        for task in [*tasks, consumer]:
            task.cancel()
        await asyncio.gather(*tasks, consumer, return_exceptions=True)
        assert Counter(crowd.got) == Counter([*crowd.put, -1])

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


# --- partitioned


async def read_all(parts: PartitionedChannel[int]) -> dict[int, list[int]]:
    read: dict[int, list[int]] = {index: [] for index in parts.partitions()}

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for index in parts.partitions():
            group.create_task(read_into(read[index], parts.stream_partition(index)))
    return read


async def test_items_go_to_the_lane_of_their_key_in_order() -> None:
    parts = hash_partition(numbers(500), get_key=lambda n: f"k{n % 17}", spec=PartitioningSpec(4, capacity=3))
    read = await read_all(parts)
    assert list(read) == list(parts.partitions()) == [0, 1, 2, 3]
    assert len(parts.partitions()) == 4
    for index, items in read.items():
        assert items == [n for n in range(500) if lane_for(f"k{n % 17}", 4) == index]
    assert sum(map(len, read.values())) == 500


async def test_a_hasher_of_ones_own_chooses_the_lane() -> None:
    parts = hash_partition(numbers(9), get_key=lambda n: n, hasher=lambda n: n - 5, spec=PartitioningSpec(3))
    assert await read_all(parts) == {0: [2, 5, 8], 1: [0, 3, 6], 2: [1, 4, 7]}


def test_a_stream_can_be_partitioned_before_there_is_an_event_loop() -> None:
    parts = hash_partition(numbers(5), get_key=lambda n: n, hasher=lambda n: 0, spec=PartitioningSpec(1))
    assert asyncio.run(read_all(parts)) == {0: [0, 1, 2, 3, 4]}


async def test_a_full_lane_makes_the_source_wait_and_reports_its_level() -> None:
    asked = 0
    events: list[tuple[str, int, int]] = []

    async def source() -> AsyncIterator[int]:
        nonlocal asked
        for number in range(100):
            asked = number + 1
            yield number

    parts = hash_partition(
        source(),
        get_key=lambda n: n,
        hasher=lambda n: 0,
        spec=PartitioningSpec(2, capacity=4),
        on_high=lambda index, channel: events.append(("high", index, len(channel))),
        on_low=lambda index, channel: events.append(("low", index, len(channel))),
    )
    await settle()
    assert asked == 5, "four in the lane, one in hand"
    assert events == [("high", 0, 3)]
    stream = parts.stream_partition(0)
    assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
    assert events[-1] == ("low", 0, 1)
    await parts.close()


async def test_backpressure_loses_nothing_when_a_reader_stops_and_another_takes_over() -> None:
    parts = hash_partition(numbers(20), get_key=lambda n: n, hasher=lambda n: 0, spec=PartitioningSpec(1, capacity=2))
    first = []
    async for item in parts.stream_partition(0):
        first.append(item)
        if len(first) == 7:
            break
    reading = asyncio.create_task(read_into(first, parts.stream_partition(0)))
    await settle(5)
    reading.cancel()
    await asyncio.wait({reading})
    assert 7 < len(first) < 20
    rest = [item async for item in parts.stream_partition(0)]
    assert first + rest == list(range(20))


async def test_a_reader_that_times_out_can_go_on_with_the_same_iterator() -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        await more.wait()
        yield 1

    parts = hash_partition(source(), get_key=lambda n: n, spec=PartitioningSpec(1))
    stream = parts.stream_partition(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)
    more.set()
    assert await within(anext(stream)) == 1
    with pytest.raises(StopAsyncIteration):
        await within(anext(stream))


async def assert_every_reader_gets(parts: PartitionedChannel[int], error: type[BaseException], items: int) -> None:
    got: list[int] = []

    readers = (read_into(got, parts.stream_partition(index)) for index in parts.partitions())
    results = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), WAIT_S)
    assert [type(result) for result in results] == [error] * len(parts.partitions())
    assert sorted(got) == list(range(items)), "what was read before the failure is delivered before the failure"
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "the source is not read any more"


async def test_a_failing_source_raises_in_every_reader() -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(6):
            yield number
        raise OSError("feed lost")

    parts = hash_partition(source(), get_key=lambda n: n, spec=PartitioningSpec(3, capacity=2))
    await assert_every_reader_gets(parts, OSError, 6)


async def test_a_source_that_is_none_raises_in_every_reader() -> None:
    parts: PartitionedChannel[int] = hash_partition([1], get_key=lambda n: n, spec=PartitioningSpec(2))  # type: ignore[arg-type]
    await assert_every_reader_gets(parts, TypeError, 0)


async def test_a_source_that_cancels_itself_raises_in_every_reader() -> None:
    async def source() -> AsyncIterator[int]:
        yield 0
        raise asyncio.CancelledError

    parts = hash_partition(source(), get_key=lambda n: n, spec=PartitioningSpec(2))
    await assert_every_reader_gets(parts, WorkersError, 1)


@pytest.mark.parametrize("error", [KeyError, StopAsyncIteration, ChannelClosed])
@pytest.mark.parametrize("where", ["get_key", "hasher"])
async def test_a_failing_key_function_raises_in_every_reader(where: str, error: type[Exception]) -> None:
    def fails_at_4(number: int) -> int:
        if number == 4:
            raise error("no key")
        return number

    parts = hash_partition(
        numbers(9),
        get_key=fails_at_4 if where == "get_key" else lambda n: n,
        hasher=fails_at_4 if where == "hasher" else None,
        spec=PartitioningSpec(2),
    )
    await assert_every_reader_gets(parts, WorkersError if error is StopAsyncIteration else error, 4)


async def test_a_hash_that_is_no_integer_raises_and_names_the_item() -> None:
    parts = hash_partition(numbers(1), get_key=lambda n: n, hasher=lambda n: "x")  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError) as raised:
        await within(anext(parts.stream_partition(0)))
    assert "lane of 0" in raised.value.__notes__[0]
    await parts.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ["on_high", "on_low"])
async def test_a_failing_level_callback_raises_in_every_reader_even_of_a_silent_source(
    name: str, asynchronous: bool
) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
            await asyncio.Event().wait()
        finally:
            closed.set()

    def plain(index: int) -> None:
        raise ArithmeticError(index)

    async def later(index: int) -> None:
        await asyncio.sleep(0)
        raise ArithmeticError(index)

    parts = hash_partition(
        source(),
        get_key=lambda n: n,
        hasher=lambda n: 0,
        spec=PartitioningSpec(2, capacity=4),
        **{name: later if asynchronous else plain},
    )
    await settle()
    await assert_every_reader_gets(parts, ArithmeticError, 3)
    assert closed.is_set()


async def test_closing_delivers_what_was_read_and_closes_the_source() -> None:
    closed = False

    async def source() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for number in range(100):
                yield number
        finally:
            await asyncio.sleep(0)
            closed = True

    async with hash_partition(
        source(), get_key=lambda n: n, hasher=lambda n: n, spec=PartitioningSpec(2, capacity=3)
    ) as parts:
        await settle()
        waiting = asyncio.create_task(read_all(parts))
        parts.close()  # may be awaited, need not
    assert closed
    assert await within(waiting) == {0: [0, 2, 4, 6], 1: [1, 3, 5]}, "the one in hand is delivered as well"


async def test_closing_wakes_readers_of_a_silent_source() -> None:
    async def source() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    parts = hash_partition(source(), get_key=lambda n: n, spec=PartitioningSpec(2))
    waiting = asyncio.create_task(read_all(parts))
    await settle()
    await within(parts.close())
    assert await within(waiting) == {0: [], 1: []}
    await within(parts.close())


async def test_closing_raises_what_the_closing_of_the_source_raised() -> None:
    async def source() -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            raise OSError("can't hang up")

    parts = hash_partition(source(), get_key=lambda n: n, spec=PartitioningSpec(1))
    await settle()
    with pytest.raises(OSError, match="hang up"):
        await within(parts.close())


async def test_cancelling_the_reading_task_from_outside_does_not_leave_readers_waiting() -> None:
    for turns in (0, 5):
        before = asyncio.all_tasks()
        parts = hash_partition(
            numbers(1), get_key=lambda n: n, hasher=lambda n: 0, spec=PartitioningSpec(2, capacity=1)
        )
        await settle(turns)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        if turns == 0:
            with pytest.raises(WorkersError):
                await within(anext(parts.stream_partition(1)))
        else:
            assert await read_all(parts) == {0: [0], 1: []}


async def test_a_lane_closed_by_a_callback_fails_the_stream_instead_of_dropping_its_items() -> None:
    parts = hash_partition(
        numbers(9),
        get_key=lambda n: n,
        hasher=lambda n: 0,
        spec=PartitioningSpec(2, capacity=4),
        on_high=lambda index, channel: channel.close(),
    )
    got: list[int] = []
    with pytest.raises(ChannelClosed):
        await within(read_into(got, parts.stream_partition(0)))
    assert got == [0, 1, 2, 3], "the one in hand included"
    with pytest.raises(ChannelClosed):
        await within(anext(parts.stream_partition(1)))


@pytest.mark.parametrize("index", [-1, 3, 1.5])
def test_a_partition_that_is_none_is_refused(index: int) -> None:
    parts = hash_partition(numbers(1), get_key=lambda n: n, spec=PartitioningSpec(3))
    with pytest.raises(IndexError, match="expected 0 to 2"):
        parts.stream_partition(index)


async def test_an_iterator_that_is_closed_ends_without_taking_items() -> None:
    parts = hash_partition(numbers(3), get_key=lambda n: n, hasher=lambda n: 0, spec=PartitioningSpec(1))
    stream = parts.stream_partition(0)
    assert await within(anext(stream)) == 0
    await stream.aclose()  # type: ignore[attr-defined]
    assert [item async for item in stream] == []
    assert [item async for item in parts.stream_partition(0)] == [1, 2]
    await parts.close()
    gc.collect()
