"""The pace of producing: by rate, by event time, and by what the group leaves to a producer."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path

import orjson
import pytest

from workers.apps.produce.files import open_ticks
from workers.apps.produce.market import Market
from workers.apps.produce.pacing import Slowed, event_time_ns, paced
from workers.apps.produce.sources import FileSource, GeneratedSource, Ticks
from workers.commands.produce import _synthetic_source
from workers.core.ticks import TickFormat
from workers.settings import load_settings

FORM = TickFormat()
ENDLESS = itertools.repeat((b"A", b'{"symbol":"A","ts":0}'))


async def timed(source: object, *, seconds: float) -> list[tuple[float, int]]:
    """When, in seconds from the start, how many ticks were given out."""
    taken, began_s = [], time.monotonic()
    while time.monotonic() - began_s < seconds:
        ticks: Ticks = await source.take(4_096)  # type: ignore[attr-defined]
        if not ticks:
            break
        taken.append((time.monotonic() - began_s, len(ticks)))
        await asyncio.sleep(0)
    return taken


async def test_a_rate_is_kept_on_average_and_the_first_tick_does_not_wait() -> None:
    source = paced(GeneratedSource(iter(ENDLESS)), FORM, asyncio.Event(), rate=2_000)
    taken = await timed(source, seconds=1.0)
    assert taken[0][0] < 0.05
    assert 1_700 <= sum(count for _, count in taken) <= 2_300


@pytest.mark.parametrize(("rate", "speed", "limit"), [(500, None, 500), (500, 0, None), (None, None, None)])
async def test_a_rate_holds_for_a_market_with_a_start_unless_there_is_to_be_no_wait(
    rate: float | None, speed: float | None, limit: float | None
) -> None:
    settings = load_settings(environ={})
    make = _synthetic_source(settings, Market(disorder_ns=0), "2026-01-05T14:30:00Z", rate, speed, None, None)
    source = make(asyncio.Event(), None)
    first = await source.take(2)
    began_s, count = time.monotonic(), 0
    while (passed_s := time.monotonic() - began_s) < 0.5 and count < 50_000:
        count += len(await source.take(4_096))
    if limit is None:
        assert count / passed_s > 10 * 500
    else:
        assert 0.7 * limit * passed_s <= count <= limit * (passed_s + 0.11) + 1
    first += await source.take(1) if len(first) < 2 else []
    if limit is None:  # event times are those of the rate all the same
        times = [orjson.loads(value)["ts"] for _, value in first]
        assert times[1] - times[0] == 1_000 / (rate or 1_000)


async def test_ticks_of_a_slow_stream_are_given_out_one_by_one_and_should_not_wait() -> None:
    source = paced(GeneratedSource(iter(ENDLESS)), FORM, asyncio.Event(), rate=20)
    for _ in range(5):
        assert len(await source.take(4_096)) == 1
        assert source.idle


async def test_a_rate_follows_the_scale_down_to_a_stop_and_up_again() -> None:
    share, stop = 0.5, asyncio.Event()
    source = paced(GeneratedSource(iter(ENDLESS)), FORM, stop, rate=2_000, scale=lambda: share)
    halved = sum(count for _, count in await timed(source, seconds=0.6))
    assert 450 <= halved <= 750
    share = 0.0
    waiting = asyncio.create_task(source.take(4_096))
    if (await asyncio.wait({waiting}, timeout=0.2))[0]:  # what was due before the stop may still come
        waiting = asyncio.create_task(source.take(4_096))
    assert not (await asyncio.wait({waiting}, timeout=0.6))[0]
    share = 1.0
    async with asyncio.timeout(2):
        assert await waiting


async def test_a_pause_is_not_made_good_by_a_flood() -> None:
    source = paced(GeneratedSource(iter(ENDLESS)), FORM, asyncio.Event(), rate=1_000)
    await source.take(1)
    source._seen_ns -= 60 * 1_000_000_000  # type: ignore[attr-defined]  # a minute without a broker
    assert len(await source.take(1_000_000)) <= 100, "a tenth of a second's worth"


async def test_after_a_stop_a_rate_begins_again_without_a_burst() -> None:
    share, stop = 0.0, asyncio.Event()
    source = paced(GeneratedSource(iter(ENDLESS)), FORM, stop, rate=10_000, scale=lambda: share)
    await source.take(1)
    waiting = asyncio.create_task(source.take(1_000_000))
    await asyncio.sleep(0.6)
    assert not waiting.done()
    share = 1.0
    async with asyncio.timeout(5):
        first = len(await waiting)
    assert first <= 1_000, "what the stop withheld is not made good at once"


async def test_a_replay_that_was_stopped_goes_on_where_it_was_instead_of_catching_up() -> None:
    share, stop = 1.0, asyncio.Event()
    values = iter([(b"A", b'{"ts":%d}' % ms) for ms in range(100_000)])
    source = paced(GeneratedSource(values), FORM, stop, speed=1, scale=lambda: share)
    before = sum(count for _, count in await timed(source, seconds=0.3))
    share = 0.0
    waiting = asyncio.create_task(source.take(4_096))
    await asyncio.sleep(1.0)
    assert not waiting.done()
    share = 1.0
    async with asyncio.timeout(5):
        first = len(await waiting)
    assert 200 <= before <= 600
    assert first <= 300, "a second was withheld, of which a look's worth is made good"


async def test_a_replay_at_half_scale_takes_twice_the_time() -> None:
    values = iter([(b"A", b'{"ts":%d}' % ms) for ms in range(100_000)])
    source = paced(GeneratedSource(values), FORM, asyncio.Event(), speed=1, scale=lambda: 0.5)
    assert 200 <= sum(count for _, count in await timed(source, seconds=0.6)) <= 400


async def test_a_replay_that_waited_for_its_source_does_not_wait_again() -> None:
    class Live:
        idle = True
        ticks = iter([(b"A", b'{"ts":0}'), (b"A", b'{"ts":1500}')])

        async def take(self, limit: int) -> Ticks:
            await asyncio.sleep(1.5)
            return [next(self.ticks)]

    source = paced(Live(), FORM, asyncio.Event(), speed=1)
    await source.take(1)
    began_s = time.monotonic()
    assert len(await source.take(1)) == 1
    assert time.monotonic() - began_s < 1.9


async def test_a_replay_makes_good_a_second_of_an_outage() -> None:
    values = iter([(b"A", b'{"ts":%d}' % ms) for ms in range(100_000)])
    source = paced(GeneratedSource(values), FORM, asyncio.Event(), speed=1)
    began_s = time.monotonic()
    await source.take(1)
    source._seen_ns -= 60 * 1_000_000_000  # type: ignore[attr-defined]  # a minute without a broker
    made_good = len(await source.take(1_000_000))
    assert 900 <= made_good <= 1_002 + 1_000 * (time.monotonic() - began_s)  # a second, and what it took


async def test_an_unpaced_source_gives_up_the_share_of_its_time_that_it_is_asked_for() -> None:
    class Working:
        idle = False

        async def take(self, limit: int) -> Ticks:
            await asyncio.sleep(0.02)
            return [(b"A", b"{}")]

    stop = asyncio.Event()
    full = len(await timed(Slowed(Working(), stop, lambda: 1.0), seconds=0.6))
    half = len(await timed(Slowed(Working(), stop, lambda: 0.5), seconds=0.6))
    assert 0.3 * full < half < 0.7 * full


async def test_replay_follows_event_times_and_keeps_the_order_of_the_file() -> None:
    values = [b'{"ts":1000}', b'{"ts":1200}', b'{"ts":900}', b'{"ts":"x"}', b'{"ts":"1970-01-01T00:00:01.600Z"}']
    source = paced(GeneratedSource(iter([(b"A", value) for value in values])), FORM, asyncio.Event(), speed=2)
    taken = await timed(source, seconds=5)
    assert [count for _, count in taken] == [1, 3, 1]
    due_s = [0.0, 0.1, 0.3]
    assert all(due <= at < due + 0.15 for (at, _), due in zip(taken, due_s, strict=True))


async def test_a_request_to_stop_ends_every_wait() -> None:
    stop = asyncio.Event()
    values = iter([(b"A", b'{"ts":0}'), (b"A", b'{"ts":3600000}')])
    sources = [
        paced(GeneratedSource(iter(ENDLESS)), FORM, stop, rate=0.001),
        paced(GeneratedSource(values), FORM, stop, speed=1),
        paced(GeneratedSource(iter(ENDLESS)), FORM, stop, rate=1, scale=lambda: 0.0),
    ]
    for source in sources[:2]:
        assert len(await source.take(10)) == 1
    await sources[2].take(10)
    asyncio.get_running_loop().call_later(0.1, stop.set)
    async with asyncio.timeout(3):
        assert [await source.take(10) for source in sources] == [[], [], []]


async def test_a_pipe_gives_out_what_it_has_and_says_that_it_is_idle() -> None:
    reading, writing = os.pipe()
    file = open_ticks(Path(f"/dev/fd/{reading}"), FORM, say=pytest.fail, kind="ndjson")
    source = FileSource(file, asyncio.Event())
    try:
        os.write(writing, b'{"symbol":"A"}\n{"symbol":"B"}\n{"sym')
        async with asyncio.timeout(5):
            assert [key for key, _ in await source.take(10)] == [b"A", b"B"]
            assert source.idle
            os.write(writing, b'bol":"C"}')
            os.close(writing)
            writing = -1
            assert [key for key, _ in await source.take(10)] == [b"C"]
            assert await source.take(10) == []
    finally:
        if writing >= 0:
            os.close(writing)
        file.close()
        os.close(reading)


def test_a_pace_is_a_rate_or_a_speed() -> None:
    with pytest.raises(ValueError, match="both"):
        paced(GeneratedSource(iter(ENDLESS)), FORM, asyncio.Event(), rate=1, speed=1)
    with pytest.raises(ValueError, match="more than 0"):
        paced(GeneratedSource(iter(ENDLESS)), FORM, asyncio.Event(), rate=0)


def test_event_times_are_read_in_the_configured_unit() -> None:
    assert event_time_ns(b'{"T":"1970-01-01T00:00:01Z"}', TickFormat(ts="T")) == 1_000_000_000
    assert event_time_ns(b'{"ts":5}', TickFormat(unit="us")) == 5_000
    assert event_time_ns(b'{"ts":1.5}', FORM) is None
    assert event_time_ns(b"[]", FORM) is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
async def test_a_pipe_that_waits_for_input_can_be_left(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe.ndjson{suffix}"
    os.mkfifo(path)
    writing = os.open(path, os.O_RDWR)  # so that opening the other end does not wait for a writer
    stop = asyncio.Event()
    file = open_ticks(path, FORM, say=pytest.fail)
    try:
        taking = asyncio.create_task(FileSource(file, stop).take(10))
        await asyncio.sleep(0.2)
        stop.set()
        async with asyncio.timeout(5):
            assert await taking == []
            await asyncio.to_thread(file.close)
    finally:
        os.write(writing, b"\n" * 10)  # the thread's read ends
        os.close(writing)
