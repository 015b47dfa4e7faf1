"""The operators of the library against brute-force oracles: repeats, rates, routes, bars, and failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import Bar, Channel, ChannelClosed, Lateness, WorkersError, deduplicate, resample_ohlc, router, throttle

T = TypeVar("T")
WAIT_S = 5.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS = 1_000_000_000


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


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, WAIT_S))


async def fail_after(stream: AsyncIterator[T], expected: type[BaseException], match: str) -> list[T]:
    """What came out before the stream raised."""
    found: list[T] = []
    with pytest.raises(expected, match=match):
        await collect(stream, found)
    return found


# -- deduplicate ------------------------------------------------------------------------------------------------------


def kept_of(arrivals: Sequence[tuple[int, str]], ttl: int) -> list[tuple[int, str]]:
    """By brute force: an arrival is kept unless its key was kept less than ``ttl`` ago."""
    kept: list[tuple[int, str]] = []
    for now, key in arrivals:
        if all(other != key or now - then >= ttl for then, other in kept):
            kept.append((now, key))
    return kept


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


arrivals = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ABC")), max_size=40)


@given(arrivals, st.integers(1, 8), st.booleans())
def test_deduplicate_keeps_what_brute_force_keeps(steps: list[tuple[int, str]], ttl_us: int, is_async: bool) -> None:
    clock = Clock()
    timeline: list[tuple[int, str]] = []
    now_us = 0
    for step, key in steps:
        now_us += step
        timeline.append((now_us, key))

    async def source() -> AsyncIterator[tuple[int, str]]:
        for item in timeline:
            clock.now_ns = item[0] * 1_000
            yield item

    async def slow_key(item: tuple[int, str]) -> str:
        await asyncio.sleep(0)
        return item[1]

    key_fn: Callable[[tuple[int, str]], str | Awaitable[str]] = slow_key if is_async else lambda item: item[1]
    stream = deduplicate(source(), key_fn=key_fn, ttl=timedelta(microseconds=ttl_us), clock=clock)
    assert run(collect(stream)) == kept_of(timeline, ttl_us)


def test_deduplicate_counts_from_the_first_item_and_lets_one_through_when_the_time_is_over() -> None:
    #   0     5     9  10    19  20
    #   A     A     A  A     A   A      ttl 10
    clock = Clock()

    async def source() -> AsyncIterator[int]:
        for now in (0, 5, 9, 10, 19, 20):
            clock.now_ns = now * SECOND_NS
            yield now

    stream = deduplicate(source(), key_fn=lambda _: "A", ttl=timedelta(seconds=10), clock=clock)
    assert run(collect(stream)) == [0, 10, 20]


def test_deduplicate_forgets_keys_whose_time_is_over() -> None:
    clock = Clock()
    refs: list[int] = []

    class Key:
        def __init__(self) -> None:
            refs.append(1)

        def __del__(self) -> None:
            refs.pop()

    async def source() -> AsyncIterator[int]:
        for now in range(1_000):
            clock.now_ns = now * SECOND_NS
            yield now
            assert len(refs) <= 12

    stream = deduplicate(source(), key_fn=lambda _: Key(), ttl=timedelta(seconds=10), clock=clock)
    assert len(run(collect(stream))) == 1_000


def test_deduplicate_takes_a_clock_that_goes_back_as_standing_still() -> None:
    times = iter([10, 3, 11, 12])
    stream = deduplicate(feed("AAAA"), key_fn=str, ttl=timedelta(microseconds=2), clock=lambda: next(times) * 1_000)
    assert run(collect(stream)) == ["A", "A"]


async def test_deduplicate_raises_what_its_source_and_key_function_raise_after_what_came_before() -> None:
    day = timedelta(days=1)
    assert await fail_after(deduplicate(feed("AB", OSError("gone")), key_fn=str, ttl=day), OSError, "gone") == [
        "A",
        "B",
    ]
    bad_key = deduplicate(feed([1, 0]), key_fn=lambda item: 1 // item, ttl=day)
    assert await fail_after(bad_key, ZeroDivisionError, "zero") == [1]
    assert await fail_after(deduplicate(feed([[]]), key_fn=lambda item: item, ttl=day), TypeError, "unhashable") == []


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1)])
def test_deduplicate_refuses_a_ttl_that_is_not_positive(ttl: timedelta) -> None:
    with pytest.raises(ValueError, match="more than zero"):
        deduplicate(feed("A"), key_fn=str, ttl=ttl)


# -- throttle ---------------------------------------------------------------------------------------------------------


class SleepyClock(Clock):
    """Virtual time: sleeping moves it, by a little less or more than asked, as timers do."""

    def __init__(self, errors_ns: Sequence[int]) -> None:
        super().__init__()
        self.errors_ns = list(errors_ns)
        self.sleeps = 0

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        error_ns = self.errors_ns.pop() if self.errors_ns else 0
        self.now_ns += max(1, round(seconds * SECOND_NS) + error_ns)
        await asyncio.sleep(0)


@given(
    st.lists(st.integers(0, 400_000_000), max_size=40),
    st.sampled_from([0.5, 1, 3, 7.3, 100, 1_000, 33_333]),
    st.integers(1, 5),
    st.lists(st.integers(-50_000, 2_000_000), max_size=40),
)
def test_throttle_drops_nothing_keeps_the_order_and_never_exceeds_the_bucket(
    pauses_ns: list[int], rate: float, burst: int, timer_errors_ns: list[int]
) -> None:
    clock = SleepyClock(timer_errors_ns)

    async def source() -> AsyncIterator[int]:
        for number, pause_ns in enumerate(pauses_ns):
            clock.now_ns += pause_ns
            yield number

    async def main() -> list[tuple[int, int]]:
        stream = throttle(source(), rate_limit=rate, burst=burst, clock=clock, sleep=clock.sleep)
        return [(clock.now_ns, number) async for number in stream]

    out = run(main())
    assert [number for _, number in out] == list(range(len(pauses_ns)))
    for i, (begin_ns, _) in enumerate(out):
        for j in range(i, len(out)):
            assert j - i + 1 <= burst + rate * (out[j][0] - begin_ns) / SECOND_NS + 1e-6
    assert clock.sleeps <= 2 * len(out) + len(timer_errors_ns)  # no busy wait


def test_throttle_lets_as_many_through_at_once_as_the_bucket_holds_and_then_one_by_one() -> None:
    clock = SleepyClock([])

    async def main() -> list[int]:
        stream = throttle(feed(range(6)), rate_limit=10, burst=3, clock=clock, sleep=clock.sleep)
        return [clock.now_ns // 1_000_000 async for _ in stream]

    assert run(main()) == [0, 0, 0, 100, 200, 300]


def test_throttle_takes_the_real_time_it_promises() -> None:
    started_s = time.monotonic()
    assert run(collect(throttle(feed(range(11)), rate_limit=100))) == list(range(11))
    assert 0.1 <= time.monotonic() - started_s < 2


def test_throttle_keeps_up_with_a_high_rate() -> None:
    """A burst of one would be held back by the timers' coarseness."""
    started_s = time.monotonic()
    run(collect(throttle(feed(range(10_000)), rate_limit=50_000)))
    assert 0.19 <= time.monotonic() - started_s < 1.5


async def test_throttle_raises_what_its_source_raises() -> None:
    assert await fail_after(throttle(feed([1], OSError("gone")), rate_limit=1e6), OSError, "gone") == [1]


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_throttle_refuses_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_limit"):
        throttle(feed([1]), rate_limit=rate)
    with pytest.raises(ValueError, match="burst"):
        throttle(feed([1]), rate_limit=1, burst=0)


# -- router -----------------------------------------------------------------------------------------------------------


async def drain(routes: Mapping[str, Channel[T]]) -> dict[str, list[T]]:
    names = list(routes)
    return dict(zip(names, await asyncio.gather(*(collect(routes[name]) for name in names)), strict=True))


@given(st.lists(st.sampled_from("ABCDE")), st.integers(1, 4), st.booleans())
def test_router_puts_each_item_in_its_channel_in_order(items: list[str], capacity: int, is_async: bool) -> None:
    """Channels far smaller than the stream: the router waits for their readers."""

    async def slow_key(item: tuple[int, str]) -> str:
        await asyncio.sleep(0)
        return item[1]

    async def main() -> dict[str, list[tuple[int, str]]]:
        routes: dict[str, Channel[tuple[int, str]]] = {name: Channel(capacity) for name in ("A", "B", "default")}
        numbered = list(enumerate(items))
        key = slow_key if is_async else (lambda item: item[1])
        found, _ = await asyncio.gather(drain(routes), router(feed(numbered), routes, route_key=key))
        return found

    found = run(main())
    numbered = list(enumerate(items))
    assert found["A"] == [item for item in numbered if item[1] == "A"]
    assert found["B"] == [item for item in numbered if item[1] == "B"]
    assert found["default"] == [item for item in numbered if item[1] in "CDE"]


async def test_a_full_channel_makes_the_router_wait() -> None:
    read: list[int] = []

    async def source() -> AsyncIterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    routes: dict[str, Channel[int]] = {"all": Channel(2)}
    task = asyncio.create_task(router(source(), routes, route_key=lambda _: "all"))
    await asyncio.sleep(0.02)
    assert read == [0, 1, 2]
    assert await collect(routes["all"]) == list(range(10))
    await task


async def failing_router(
    source: AsyncIterator[str], routes: Mapping[str, Channel[str]], key: Callable[[str], str], error: type[Exception]
) -> None:
    """Runs a router that must fail: the error comes out of it and out of every channel, after what they hold."""
    with pytest.raises(error):
        await router(source, routes, route_key=key)
    for name, channel in routes.items():
        found: list[str] = []
        with pytest.raises(error):
            await collect(channel, found)
        assert found == [name] * len(found)


async def test_a_failure_of_source_or_route_key_reaches_the_readers_of_all_channels() -> None:
    def routes() -> dict[str, Channel[str]]:
        return {"A": Channel(9), "B": Channel(9)}

    def bad_key(item: str) -> str:
        raise OSError(item)

    await failing_router(feed("ABA", OSError("gone")), routes(), str, OSError)
    await failing_router(feed("A"), routes(), bad_key, OSError)
    await failing_router(feed("ABC"), routes(), str, KeyError)


async def test_a_cancelled_router_does_not_look_like_the_end() -> None:
    routes: dict[str, Channel[str]] = {"A": Channel(1)}
    task = asyncio.create_task(router(feed("AAA"), routes, route_key=str))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fail_after(routes["A"], WorkersError, "CancelledError") == ["A"]


async def test_a_source_that_raises_cancelled_error_fails_the_router_and_does_not_cancel_it() -> None:
    routes: dict[str, Channel[str]] = {"A": Channel(9)}
    with pytest.raises(WorkersError, match="CancelledError was raised by its source"):
        await router(feed("A", asyncio.CancelledError()), routes, route_key=str)
    assert await fail_after(routes["A"], WorkersError, "CancelledError") == ["A"]
    own: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    own.cancel()
    with pytest.raises(WorkersError, match="CancelledError was raised by its source"):
        await router(feed("A"), {"A": Channel(9)}, route_key=lambda _: own)


async def test_a_channel_that_its_reader_closed_fails_the_other_routes_too() -> None:
    routes: dict[str, Channel[str]] = {"A": Channel(9), "B": Channel(9)}
    routes["B"].close()
    with pytest.raises(ChannelClosed):
        await router(feed("AB"), routes, route_key=str)
    assert await fail_after(routes["A"], ChannelClosed, "closed") == ["A"]


async def test_a_router_closes_its_source() -> None:
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "A"
            yield "unknown"
        finally:
            closed.append(True)

    with pytest.raises(KeyError, match="unknown"):
        await router(source(), {"A": Channel(9)}, route_key=str)
    assert closed


# -- resample_ohlc ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trade:
    symbol: str
    second: int
    price: float


def bars_of(trades: Sequence[Trade], size: int, lag: int) -> tuple[list[Bar], list[Trade]]:
    """By brute force: the bars of each symbol as lists of accepted trades, and the trades that were too late."""
    accepted: dict[tuple[str, int], list[Trade]] = {}
    late: list[Trade] = []
    newest: dict[str, int] = {}
    for trade in trades:
        newest[trade.symbol] = max(newest.get(trade.symbol, -(10**9)), trade.second)
        if trade.second <= newest[trade.symbol] - lag:
            late.append(trade)
        else:
            accepted.setdefault((trade.symbol, trade.second // size * size), []).append(trade)
    bars = []
    for (symbol, start), group in accepted.items():
        by_time = sorted(group, key=lambda trade: trade.second)  # stable: arrival order among equals
        prices = [trade.price for trade in group]
        begin = EPOCH + timedelta(seconds=start)
        bars.append(
            Bar(
                symbol,
                by_time[0].price,
                max(prices),
                min(prices),
                by_time[-1].price,
                begin,
                begin + timedelta(seconds=size),
                len(group),
            )
        )
    return bars, late


trades = st.lists(
    st.builds(Trade, st.sampled_from("AB"), st.integers(-5, 40), st.integers(1, 9).map(float)), max_size=50
)


@given(trades, st.integers(1, 7), st.integers(1, 9), st.booleans())
def test_resample_gives_every_bar_once_as_brute_force_makes_it(
    found: list[Trade], size: int, lag: int, naive: bool
) -> None:
    late: list[Trade] = []
    epoch = EPOCH.replace(tzinfo=None) if naive else EPOCH

    async def on_late(trade: Trade, _: Lateness) -> None:
        await asyncio.sleep(0)
        late.append(trade)

    stream = resample_ohlc(
        feed(found),
        get_symbol=lambda trade: trade.symbol,
        get_price=lambda trade: trade.price,
        get_time=lambda trade: epoch + timedelta(seconds=trade.second),
        window=timedelta(seconds=size),
        watermark_lag=timedelta(seconds=lag),
        on_late=on_late,
    )
    bars = run(collect(stream))
    expected, expected_late = bars_of(found, size, lag)
    assert sorted(bars, key=lambda bar: (bar.symbol, bar.start)) == sorted(
        expected, key=lambda bar: (bar.symbol, bar.start)
    )
    assert late == expected_late
    for symbol in "AB":
        starts = [bar.start for bar in bars if bar.symbol == symbol]
        assert starts == sorted(starts)


def resampled(source: AsyncIterator[Trade], **options: object) -> AsyncIterator[Bar]:
    given_options: dict[str, object] = {
        "get_symbol": lambda trade: trade.symbol,
        "get_price": lambda trade: trade.price,
        "get_time": lambda trade: EPOCH + timedelta(seconds=trade.second),
        "window": timedelta(seconds=5),
        **options,
    }
    return resample_ohlc(source, **given_options)  # type: ignore[arg-type]


async def test_a_bar_comes_out_as_soon_as_its_symbols_watermark_reaches_its_end() -> None:
    #  A: 0  1     6  7      lag 2: the watermark reaches 5 with the trade at 7; B's trade at 50 moves only B's
    given_trades = [Trade("A", 0, 1.0), Trade("A", 1, 3.0), Trade("B", 50, 9.0), Trade("A", 6, 4.0), Trade("A", 7, 2.0)]
    reached: list[Trade] = []

    async def source() -> AsyncIterator[Trade]:
        for trade in given_trades:
            reached.append(trade)
            yield trade

    stream = resampled(source())
    first = await anext(stream)
    assert reached == given_trades
    assert first == Bar("A", 1.0, 3.0, 1.0, 3.0, EPOCH, EPOCH + timedelta(seconds=5), 2)
    assert [(bar.symbol, bar.count) for bar in await collect(stream)] == [("A", 2), ("B", 1)]


async def test_resample_warns_once_of_late_items_that_nobody_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await collect(resampled(feed([Trade("A", 100, 1.0), Trade("A", 1, 1.0), Trade("A", 2, 1.0)])))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_resample_raises_failures_after_the_bars_that_were_complete() -> None:
    good = [Trade("A", 0, 1.0), Trade("A", 10, 1.0)]
    assert len(await fail_after(resampled(feed(good, OSError("gone"))), OSError, "gone")) == 1
    bad = [*good, Trade("A", 11, float("nan"))]
    assert len(await fail_after(resampled(feed(bad)), ValueError, "get_price returned nan")) == 1
    no_time = resampled(feed(good), get_time=lambda trade: trade.second)
    assert await fail_after(no_time, TypeError, "get_time returned 0") == []


def test_resample_refuses_durations_that_give_no_bars() -> None:
    with pytest.raises(ValueError, match="size"):
        resampled(feed([]), window=timedelta(0))
    with pytest.raises(ValueError, match="watermark_lag"):
        resampled(feed([]), watermark_lag=timedelta(0))


# -- all of them ------------------------------------------------------------------------------------------------------

Operator = Callable[[AsyncIterator[int]], AsyncIterator[object]]
OPERATORS: dict[str, Operator] = {
    "deduplicate": lambda source: deduplicate(source, key_fn=lambda item: item, ttl=timedelta(hours=1)),
    "throttle": lambda source: throttle(source, rate_limit=200),
    "resample": lambda source: resample_ohlc(
        source,
        get_symbol=lambda _: "A",
        get_price=float,
        get_time=lambda item: EPOCH + timedelta(seconds=item),
        window=timedelta(seconds=1),
        watermark_lag=timedelta(milliseconds=1),
    ),
}


def number(item: object) -> float:
    return item.open if isinstance(item, Bar) else float(str(item))


@pytest.mark.parametrize("name", OPERATORS)
async def test_a_timeout_around_anext_ends_nothing_loses_nothing_and_repeats_nothing(name: str) -> None:
    async def haltingly() -> AsyncIterator[int]:
        for item in range(10):
            await asyncio.sleep(0.006)
            yield item

    stream, found, timeouts = OPERATORS[name](haltingly()), list[float](), 0
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                found.append(number(await asyncio.wait_for(anext(stream), 0.002)))
            except StopAsyncIteration:
                break
            except TimeoutError:
                timeouts += 1
    assert found == list(range(10))
    assert timeouts >= 5


@pytest.mark.parametrize("name", OPERATORS)
async def test_a_source_that_raises_cancelled_error_fails_the_stream_and_cancels_no_reader(name: str) -> None:
    stream = OPERATORS[name](feed([0, 1, 2], asyncio.CancelledError()))
    assert len(await fail_after(stream, WorkersError, "CancelledError was raised by its source")) >= 1
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_bar_of_a_quiet_symbol_comes_out_when_others_are_further_ahead_than_the_ttl() -> None:
    ticks = [("quiet", 0.5), ("busy", 1.0), ("busy", 11.6), ("quiet", 0.7), ("quiet", 11.0)]
    late: list[tuple[str, float]] = []
    bars = await collect(
        resample_ohlc(
            feed(ticks),
            get_symbol=lambda tick: tick[0],
            get_price=lambda tick: tick[1],
            get_time=lambda tick: EPOCH + timedelta(seconds=tick[1]),
            window=timedelta(seconds=1),
            key_ttl=timedelta(seconds=10),
            on_late=lambda tick, _: late.append(tick),
        )
    )
    assert [(bar.symbol, bar.open, bar.count) for bar in bars] == [
        ("busy", 1.0, 1),
        ("quiet", 0.5, 1),
        ("busy", 11.6, 1),
        ("quiet", 11.0, 1),
    ]
    assert late == [("quiet", 0.7)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: deduplicate(feed([1]), key_fn=str, ttl=3),  # type: ignore[arg-type]
        lambda: resampled_over(window=3),
        lambda: resampled_over(watermark_lag=3),
        lambda: resampled_over(key_ttl=3),
    ],
)
def test_a_duration_that_is_no_timedelta_is_explained(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"is 3 \(int\); expected a timedelta, like timedelta\(seconds=3\)"):
        make()


def resampled_over(**durations: object) -> object:
    given = {"window": timedelta(seconds=1), **durations}
    return resample_ohlc(feed([1]), get_symbol=str, get_price=float, get_time=lambda _: EPOCH, **given)  # type: ignore[arg-type]
