"""Frames made again and ticks explained, from what real workers left on the real broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import market
from tests.support import oracle
from tests.support.verify import read_topic
from workers.apps.broker import Broker
from workers.apps.inspect.explain import explain
from workers.apps.inspect.explanation import Explanation
from workers.errors import ConfigError, TopicError
from workers.settings import Settings, load_settings

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

T0 = 1_700_000_000_000  # a window's start
S = 10**9
LATER = T0 + 3_600_000
SPAN = ("--from", "2023-11-14T22:13:20Z", "--to", "2023-11-14T23:59:59Z")
HOME = oracle.partition_of(b"AAPL", 2)


def tick(symbol: str, ts: int, price: float = 1.5, **changed: object) -> bytes:
    return json.dumps({"symbol": symbol, "ts": ts, "price": price, "size": 2, **changed}).encode()


# AAPL's story. The records' own timestamps are event times here, so that reading can begin by them.
STORY: list[tuple[int, bytes]] = [
    (T0 + 400, tick("AAPL", T0 + 400, 10.0)),
    (T0 + 4_600, tick("AAPL", T0 + 4_600, 11.0)),
    (T0 + 7_100, tick("AAPL", T0 + 7_100, 12.0)),  # watermark 5.1 s: the first window closes
    (T0 + 7_200, tick("AAPL", T0 + 4_300, 13.0)),  # the threshold is 4.1 s: it is revised
    (T0 + 7_300, tick("AAPL", T0 + 2_800, 14.0)),  # late by 1.3 s
    (T0 + 7_400, tick("AAPL", T0 + 1_000, 15.0, size=-1)),
    (T0 + 7_500, b"rubbish"),
    (T0 + 20_000, tick("AAPL", T0 + 20_000, 16.0)),
    (LATER, tick("AAPL", LATER, 17.0)),
]
MISROUTED = [(T0 + 500, tick("AAPL", T0 + 500, 20.0)), (T0 + 9_000, tick("AAPL", T0 + 9_000, 21.0))]


async def _tell(app: App) -> None:
    for symbol in ("AAPL", "S1"):
        old = [(symbol.encode(), tick(symbol, T0 - 600_000 + n), T0 - 600_000 + n) for n in range(40)]
        await send(app, old)
    await send(app, [(b"AAPL", value, timestamp) for timestamp, value in STORY])
    await send(app, [(key, value, T0 + 60_000) for key, value, _ in market(10_000, symbols=20)])
    producer = AIOKafkaProducer(bootstrap_servers=app.bootstrap)
    await producer.start()
    try:
        for timestamp, value in MISROUTED:
            await producer.send(app.topics.ticks, value, key=b"AAPL", partition=1 - HOME, timestamp_ms=timestamp)
    finally:
        await producer.stop()


async def _run(app: App, log: Path) -> None:
    with app.worker(log) as worker:
        await committed_through(app, process=worker)


def _application(broker: Broker, log: Path) -> App:
    settings = {"window.allowed_lateness": "1s"}
    app = App(broker.bootstrap_servers, f"replay-explain-{uuid.uuid4().hex[:12]}", partitions=2, settings=settings)
    assert app.run_command("topics", "create").returncode == 0
    asyncio.run(_tell(app))
    asyncio.run(_run(app, log))
    return app


@pytest.fixture(scope="module")
def told(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> App:
    """An application whose worker went through the story. Not to be written to."""
    return _application(broker, tmp_path_factory.mktemp("told") / "worker.log")


@pytest.fixture
def own(broker: Broker, tmp_path: Path) -> App:
    """The same, for one test to spoil."""
    return _application(broker, tmp_path / "worker.log")


def settings_of(app: App, **more: str) -> Settings:
    flags = app.flags(**more)
    return load_settings(None, environ={}, overrides=dict(flag.split("=", 1) for flag in flags[1::2]))


def replay(app: App, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return app.run_command("replay", *SPAN, *arguments, **more)


async def published(app: App) -> list[bytes]:
    """The non-provisional frames of the span, as they are in the topic."""
    records = [each for found in (await read_topic(app.bootstrap, app.topics.frames)).values() for each in found]
    frames = [(orjson.loads(record.value or b""), record.value or b"") for record in records]
    return [value for frame, value in frames if frame["status"] != "provisional" and frame["start"] >= T0]


async def put(app: App, topic: str, key: bytes, value: bytes, partition: int | None = None) -> int:
    producer = AIOKafkaProducer(bootstrap_servers=app.bootstrap)
    await producer.start()
    try:
        sent = await producer.send_and_wait(topic, value, key=key, partition=partition, timestamp_ms=T0 + 5_000)
        offset: int = sent.offset
        return offset
    finally:
        await producer.stop()


# -- replay -----------------------------------------------------------------------------------------------------------


async def test_what_was_published_is_what_the_log_gives_again(told: App, tmp_path: Path) -> None:
    done = replay(told, "--to-file", str(tmp_path / "frames.ndjson"))
    assert done.returncode == 0, done.stdout + done.stderr
    frames = await published(told)
    assert f"{len(frames):,} identical, none different" in done.stdout
    assert "from its begin" in done.stderr
    assert sorted((tmp_path / "frames.ndjson").read_bytes().splitlines()) == sorted(frames)
    assert len(frames) > 50


async def test_one_symbol_a_warm_up_and_no_comparison(told: App, tmp_path: Path) -> None:
    for extra in ((), ("--warm-up", "2023-11-14T22:13:20Z"), ("--no-compare",)):
        file = tmp_path / f"frames{len(extra)}.ndjson"
        done = replay(told, "--symbol", "S1", "--to-file", str(file), *extra)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("identical" in done.stdout) is ("--no-compare" not in extra)
        wanted = [frame for frame in await published(told) if orjson.loads(frame)["key"] == "S1"]
        assert file.read_bytes().splitlines() == wanted
        assert wanted


async def test_a_warm_up_reads_less(told: App) -> None:
    whole, warm = replay(told), replay(told, "--warm-up", "2023-11-14T22:13:20Z")
    assert (whole.returncode, warm.returncode) == (0, 0)
    records = [int(done.stdout.split(" records")[0].split()[-1].replace(",", "")) for done in (whole, warm)]
    assert records[1] < records[0]


async def test_frames_can_go_to_a_topic_of_their_own(told: App) -> None:
    name = f"{told.name}-again"
    done = replay(told, "--to-topic", name, "--no-compare")
    assert done.returncode == 0, done.stderr
    again = await read_topic(told.bootstrap, name)
    assert sorted(record.value or b"" for records in again.values() for record in records) == sorted(
        await published(told)
    )
    refused = replay(told, "--to-topic", told.topics.frames)
    assert refused.returncode == 1
    assert "belongs to the application" in refused.stderr


async def test_a_frame_that_somebody_else_wrote_is_found_and_explained(own: App) -> None:
    right = next(
        orjson.loads(frame)
        for frame in await published(own)
        if orjson.loads(frame)["key"] == "AAPL" and orjson.loads(frame)["rev"] == 1
    )
    partition = oracle.partition_of(b"AAPL", 2)
    where = await put(own, own.topics.frames, b"AAPL", orjson.dumps({**right, "close": 99.5, "count": 7}))
    invented = {**right, "start": T0 + 100_000, "end": T0 + 105_000}
    await put(own, own.topics.frames, b"AAPL", orjson.dumps(invented))
    await put(own, own.topics.frames, b"AAPL", b"no frame")
    done = replay(own)
    assert done.returncode == 1
    assert "2 different" in done.stdout
    assert "differing: AAPL 2023-11-14T22:13:20Z rev 1 closed" in done.stdout
    assert f"published at {own.topics.frames}[{partition}] offset {where}" in done.stdout
    assert "count: expected 3, found 7" in done.stdout
    assert f"close: expected {right['close']}, found 99.5" in done.stdout
    assert "published 2 times, and not always the same" in done.stdout
    assert "extra: AAPL 2023-11-14T22:15:00Z" in done.stdout
    assert "1 records of" in done.stderr
    assert "NOT made by these ticks" in own.run_command("explain", "AAPL", str(T0 + 4_300)).stdout
    shown = await explain(settings_of(own), "AAPL", T0 * 10**6)
    assert not shown.matches


async def test_other_settings_than_the_workers_are_named_as_the_cause(told: App) -> None:
    done = replay(told, window__lag="3s")
    assert done.returncode == 1
    assert "likely cause: the stored state" in done.stdout
    assert "window.lag was 2s, is 3s" in done.stdout


async def test_ticks_that_no_worker_has_taken_are_no_difference_until_one_has(own: App, tmp_path: Path) -> None:
    await put(own, own.topics.ticks, b"AAPL", tick("AAPL", LATER + 60_000), HOME)
    await send(own, [(b"AAPL", tick("AAPL", LATER + 60_000), None)])
    waiting = replay(own)
    assert waiting.returncode == 0, waiting.stdout
    assert "1 not published yet" in waiting.stdout
    shown = await explain(settings_of(own), "AAPL", LATER * 10**6)
    assert [frame.verdict for frame in shown.windows[0].frames if frame.verdict != "provisional"] == ["not yet"]
    await _run(own, tmp_path / "again.log")
    done = replay(own)
    assert "not published yet" not in done.stdout
    assert done.returncode == 0, done.stdout


async def test_frames_published_before_a_reset_are_known_for_it(own: App, tmp_path: Path) -> None:
    assert own.run_command("state", "reset", "--yes").returncode == 0
    await _run(own, tmp_path / "again.log")
    done = replay(own, "--symbol", "AAPL")
    assert done.returncode == 1
    assert "likely cause: published before a `workers state reset` and again after it" in done.stdout
    allowed = replay(own, "--symbol", "S1", processing_guarantee="at_least_once")
    assert allowed.returncode == 0, allowed.stdout
    assert "of them published more than once" in allowed.stdout


def test_spans_that_cannot_be_are_refused(told: App) -> None:
    for arguments, message in (
        (("--from", "13:00:00", "--to", "12:00:00"), "expected from < to"),
        ((*SPAN, "--warm-up", "2030-01-01T00:00:00Z"), "must not be later"),
        (("--from", "noon", "--to", "12:00:00"), "--from: 'noon'"),
        ((*SPAN, "--no-compare"), "does nothing"),
    ):
        done = told.run_command("replay", *arguments)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr


# -- explain ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(told: App) -> Explanation:
    return asyncio.run(explain(settings_of(told), "AAPL", (T0 + 2_800) * 10**6))


def test_every_tick_of_the_window_has_its_fate(explained: Explanation) -> None:
    home, elsewhere = explained.windows
    assert (explained.partition, home.story.partition, elsewhere.story.partition) == (HOME, HOME, 1 - HOME)
    fates = {tick.price: tick.fate for tick in home.story.ticks if tick.price is not None}
    assert fates == {10.0: "joined", 11.0: "joined", 13.0: "joined", 14.0: "late"}
    assert home.story.counts == {"joined": 3, "late": 1, "rejected": 1}
    assert home.state == "over"
    (asked,) = explained.at_the_time()
    mover = next(tick for tick in home.story.ticks if tick.price == 11.0).offset + 1
    assert asked.late_by_ns == 1_300_000_000
    assert asked.clock is not None
    assert (asked.clock.offset, asked.clock.ts_ns) == (mover, (T0 + 7_100) * 10**6)
    assert (
        f"late by 1.3 s: its symbol's watermark was at 2023-11-14 22:13:25.100 because of the tick at offset {mover}"
        in asked.detail
    )


def test_rejected_and_misrouted_ticks_are_found(explained: Explanation) -> None:
    (negative,) = [tick for tick in explained.windows[0].story.ticks if tick.fate == "rejected"]
    assert (negative.reason, negative.ts_ns) == ("negative_size", (T0 + 1_000) * 10**6)
    assert [(tick.reason, tick.ts_ns) for tick in explained.strays] == [("malformed_json", None)]
    (strayed,) = explained.windows[1].story.ticks
    assert (strayed.fate, strayed.misrouted, strayed.price) == ("joined", True, 20.0)
    assert any("partitioner=murmur2_random" in note for note in explained.notes)


def test_the_frames_of_the_window_are_found_and_as_recomputed(explained: Explanation) -> None:
    home, elsewhere = explained.windows
    real = [frame for frame in home.frames if frame.verdict != "provisional"]
    assert [(frame.rev, frame.status, frame.trigger, frame.verdict) for frame in real] == [
        (0, "closed", "watermark", "matches"),
        (1, "closed", "late", "matches"),
    ]
    assert [frame.verdict for frame in elsewhere.frames] == ["matches"]
    assert explained.matches
    assert all(frame.offset is not None and frame.partition is not None for frame in real)


def test_reading_begins_where_the_window_can_and_not_at_the_logs_begin(explained: Explanation) -> None:
    home = next(each for each in explained.stretches if each.partition == HOME)
    assert home.log_begin == 0
    assert home.begin > 0
    assert home.records < home.log_end


async def test_reading_from_the_beginning_gives_the_same_answer(told: App, explained: Explanation) -> None:
    whole = await explain(settings_of(told), "AAPL", (T0 + 2_800) * 10**6, from_beginning=True)
    assert whole.stretches != explained.stretches
    assert whole.to_dict()["windows"] == explained.to_dict()["windows"]


def test_the_command_answers_in_words_and_in_json(told: App, explained: Explanation) -> None:
    said = told.run_command("explain", "AAPL", "2023-11-14T22:13:22.8Z")
    assert said.returncode == 0, said.stderr
    assert "at that very time: late" in said.stdout
    assert "late by 1.3 s" in said.stdout
    assert "frame     rev 1 closed (late)" in said.stdout
    assert "as recomputed" in said.stdout
    given = told.run_command("explain", "AAPL", str(T0 + 2_800), "--json")
    assert json.loads(given.stdout) == json.loads(json.dumps(explained.to_dict()))


def test_with_other_settings_than_the_workers_that_is_said_first_and_by_the_exit_code(told: App) -> None:
    for as_json in ((), ("--json",)):
        given = told.run_command("explain", "AAPL", "2023-11-14T22:13:22.8Z", *as_json, tick__timestamp_unit="us")
        assert given.returncode == 2
        problem = "made under other settings: tick.timestamp_unit was ms, is us"
        if as_json:
            found = json.loads(given.stdout)
            assert (found["other_settings"], problem in found["problem"]) == (True, True)
        else:
            first, second, *_ = given.stdout.splitlines()
            assert first.startswith("NOT what the workers did: the stored state ")
            assert first.endswith(problem)
            assert "run this command with the workers' configuration" in second


def test_the_tick_asked_for_is_told_whatever_the_limit(told: App) -> None:
    given = told.run_command("explain", "AAPL", str(T0 + 4_300), "--limit", "1")
    assert given.returncode == 0, given.stderr
    assert "at that very time: joined" in given.stdout
    assert "price 13.0" in given.stdout
    assert "… and 2 more joined (see --limit)" in given.stdout
    assert "  late      offset" in given.stdout


def test_an_application_that_nobody_runs_is_said_to_be_none(told: App) -> None:
    given = told.run_command("explain", "AAPL", str(T0), application_id=f"{told.name}x")
    assert given.returncode == 1
    assert given.stdout.startswith(f"NOTE: there is no consumer group '{told.name}x'")


async def test_a_symbol_without_ticks_and_a_hostile_one_are_answered(told: App) -> None:
    shown = await explain(settings_of(told), "NOBODY", T0 * 10**6)
    assert [window.state for window in shown.windows] == ["empty"]
    hostile = told.run_command("explain", "\x1b[2Jx", str(T0))
    assert hostile.returncode == 0, hostile.stderr
    assert "\x1b" not in hostile.stdout
    assert "\\x1b[2Jx" in hostile.stdout


async def test_around_shows_the_neighbouring_windows_within_reason(told: App) -> None:
    shown = await explain(settings_of(told), "S1", T0 * 10**6, around_ns=5 * S, everywhere=False)
    assert [window.story.start_ns // S - T0 // 1000 for window in shown.windows] == [-5, 0, 5]
    with pytest.raises(ConfigError, match="at most 1,000"):
        await explain(settings_of(told), "S1", T0 * 10**6, around_ns=86_400 * S)


async def test_without_topics_the_error_says_so(told: App) -> None:
    with pytest.raises(TopicError, match="no topic nowhere"):
        await explain(settings_of(told, topics__ticks="nowhere"), "AAPL", T0 * 10**6)
