"""Corrections, and a chain of applications of which each makes bars of the bars before, on the real broker."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.apps import App, Process, committed_through, send
from tests.support import bars_oracle, corrections_oracle, oracle
from tests.support.verify import read_topic
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

MS = 1_000_000
SECOND_NS = 10**9
NOW_MS = 1_700_000_000_000
SYMBOLS = ["AAPL", "MSFT", "NVDA", "GE"]
LATENESS = "90s"
NAMES = ("open", "high", "low", "close", "volume", "count", "first_ts", "last_ts")

Out = tuple[bytes | None, bytes | None, int | None]


def start_worker(app: App, log: Path) -> Process:
    """A worker that need not end well."""
    return Process([sys.executable, "-m", "workers", "run", *app.flags()], log)


def sequences(topic: Mapping[int, Sequence[oracle.Record]]) -> dict[str, list[bytes]]:
    """The non-provisional frames of each key, in order."""
    frames: dict[str, list[bytes]] = {}
    for found in topic.values():
        for record in found:
            if orjson.loads(record.value or b"")["status"] != "provisional":
                frames.setdefault((record.key or b"").decode(), []).append(record.value or b"")
    return frames


def last_bars(frames: Mapping[str, Sequence[bytes]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(key, frame["start"]): frame for key, sent in frames.items() for frame in map(orjson.loads, sent)}


def market(count: int) -> list[Out]:
    """Two hours of trades whose sums are exact, with disorder up to a minute; three at the end close what is open."""
    rng = random.Random(11)
    records: list[Out] = []
    for number in range(count):
        symbol = rng.choice(SYMBOLS)
        late = rng.choice([0, 0, 0, 0, 1_500, 8_000, 59_000, 200_000])
        tick = {
            "symbol": symbol,
            "ts": NOW_MS + number * 7_200_000 // count - late,
            "price": rng.randrange(800, 1_600) / 8,
            "size": rng.randrange(1, 64) / 4,
        }
        records.append((symbol.encode(), orjson.dumps(tick), None))
    return records


def closing() -> list[Out]:
    ahead = (10_000_000, 20_000_000, 30_000_000)
    ticks = [{"symbol": symbol, "ts": NOW_MS + ms, "price": 1, "size": 1} for ms in ahead for symbol in SYMBOLS]
    return [(str(tick["symbol"]).encode(), orjson.dumps(tick), None) for tick in ticks]


async def test_three_applications_in_a_row_one_of_them_killed_give_the_bars_that_ticks_give(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    common = {"window.allowed_lateness": LATENESS, "topics.partitions": 2}
    made_of = {"tick.format": "frames", "window.lag": "0s"}
    seconds = App(broker.bootstrap_servers, f"{topic_name}-1s", 2, {**common, "window.size": "1s"})
    minutes = App(
        broker.bootstrap_servers,
        f"{topic_name}-1m",
        2,
        {**common, **made_of, "window.size": "1m", "topics.ticks": seconds.topics.frames},
    )
    hours = App(
        broker.bootstrap_servers,
        f"{topic_name}-1h",
        2,
        {**common, **made_of, "window.size": "1h", "topics.ticks": minutes.topics.frames},
    )
    for app in (seconds, minutes, hours):
        created = app.run_command("topics", "create")
        assert created.returncode == 0, created.stdout + created.stderr
    ticks = market(6_000)
    with seconds.worker(tmp_path / "1s.log"), hours.worker(tmp_path / "1h.log"):
        doomed = start_worker(minutes, tmp_path / "killed.log")
        try:
            await send(seconds, ticks[:3_000])
            await until_frames(minutes, 20, doomed)
            await send(seconds, ticks[3_000:4_500])
            await asyncio.sleep(0.4)  # somewhere within these
        finally:
            doomed.kill()
        with minutes.worker(tmp_path / "1m.log") as worker:
            await send(seconds, [*ticks[4_500:], *closing()])
            await committed_through(seconds)
            await until_closed(minutes, 10_000_000, worker)
            await until_closed(hours, 7_000_000, worker)
    await check_chain(seconds, minutes, hours)
    for app in (minutes, hours):
        check_replay_and_explain(app)


def check_replay_and_explain(app: App) -> None:
    """Frames made again are those published, and what is told of a symbol agrees with them."""
    done = app.run_command("replay", "--from", "2023-11-14T20:00:00Z", "--to", "2023-11-15T08:00:00Z")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none different" in done.stdout
    told = app.run_command("explain", "AAPL", str(NOW_MS + 20_000), "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    explained = orjson.loads(told.stdout)
    assert explained["matches"]
    (window,) = explained["windows"]
    assert window["frames"]
    assert window["counts"]["joined"]


async def until_frames(app: App, number: int, process: Process, limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while sum(map(len, (await read_topic(app.bootstrap, app.topics.frames)).values())) < number:
        assert process.exit_code is None, process.output()[-3000:]
        assert time.monotonic() < limit, f"not {number} frames within {limit_s} s:\n{process.output()[-3000:]}"
        await asyncio.sleep(0.2)


async def until_closed(app: App, ahead_ms: int, process: Process, limit_s: float = 60.0) -> None:
    """Wait for the window of this time, of every symbol."""
    limit = time.monotonic() + limit_s
    while True:
        bars = last_bars(sequences(await read_topic(app.bootstrap, app.topics.frames)))
        closed = {key for (key, _), bar in bars.items() if bar["start"] <= NOW_MS + ahead_ms < bar["end"]}
        if closed == set(SYMBOLS):
            return
        assert time.monotonic() < limit, f"not closed within {limit_s} s: {closed}\n{process.output()[-3000:]}"
        await asyncio.sleep(0.2)


async def check_chain(seconds: App, minutes: App, hours: App) -> None:
    lateness_ms, revised = 90_000, 0
    for child, parent, size_ms in ((seconds, minutes, 60_000), (minutes, hours, 3_600_000)):
        config = bars_oracle.Config(size_ms, lateness_ms)
        wanted: dict[str, list[bytes]] = {}
        for found in (await read_topic(child.bootstrap, child.topics.frames)).values():
            model = bars_oracle.Model(config).run([orjson.loads(record.value or b"") for record in found])
            assert not model.late
            wanted |= model.frames
        made = sequences(await read_topic(parent.bootstrap, parent.topics.frames))
        assert made == wanted
        revised += sum(orjson.loads(frame)["rev"] > 0 for sent in made.values() for frame in sent)
        assert not (await read_topic(parent.bootstrap, parent.topics.dead_letters)).get(0)
        await check_against_ticks(seconds, made, size_ms)
    assert revised > 20


async def check_against_ticks(seconds: App, made: Mapping[str, Sequence[bytes]], size_ms: int) -> None:
    """The last frame of each window of the first two hours is that of bars made of the ticks."""
    config = oracle.Config(size_ms * MS, 2 * SECOND_NS, 90 * SECOND_NS)
    straight: dict[str, list[bytes]] = {}
    for found in (await read_topic(seconds.bootstrap, seconds.topics.ticks)).values():
        straight |= oracle.run(config, found).wire()
    bars, compared = last_bars(made), 0
    for name, bar in last_bars(straight).items():
        if bar["end"] <= NOW_MS + 9_000_000:
            assert [bars[name][field] for field in NAMES] == [bar[field] for field in NAMES]
            assert bars[name]["vwap"] == pytest.approx(bar["vwap"], rel=1e-12)
            compared += 1
    assert compared >= 2 * len(SYMBOLS)


KIND, ID, REF = corrections_oracle.FIELDS


def trades_and_messages(count: int) -> list[Out]:
    rng = random.Random(5)
    records: list[Out] = []
    names: dict[str, list[int]] = {symbol: [0] for symbol in SYMBOLS}
    for number in range(count):
        symbol = rng.choice(SYMBOLS)
        numbers = {"price": round(rng.uniform(1, 100), 2), "size": rng.randrange(1, 9)}
        kind = rng.choice(["T"] * 18 + ["X", "C"])
        payload: dict[str, object] = {"symbol": symbol, KIND: kind}
        if kind == "T":
            late = int(rng.expovariate(1 / 500))
            payload |= {"ts": NOW_MS + 5 * number - late, ID: number, **numbers}
            names[symbol].append(number)
        else:
            payload |= {REF: rng.choice(names[symbol][-rng.choice([5, 100, 1_000]) :]), **numbers}
        records.append((symbol.encode(), orjson.dumps(payload), None))
    return records


async def test_corrections_in_a_worker_that_is_killed_give_what_the_oracle_gives(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    settings = {
        "window.allowed_lateness": "4s",
        "window.payload": "both",
        "corrections.field": KIND,
        "corrections.cancel": "X",
        "corrections.correct": "C",
        "corrections.id": ID,
        "corrections.refers_to": REF,
    }
    app = App(broker.bootstrap_servers, topic_name, 2, settings)
    assert app.run_command("topics", "create").returncode == 0
    records = trades_and_messages(9_000)
    doomed = start_worker(app, tmp_path / "killed.log")
    try:
        await send(app, records[:4_000])
        await committed_through(app, process=doomed)
        await send(app, records[4_000:6_500])
        await asyncio.sleep(0.3)  # somewhere within these
    finally:
        doomed.kill()
    with app.worker(tmp_path / "worker.log") as worker:
        await send(app, records[6_500:])
        await committed_through(app, process=worker)
    await check_corrections(app)
    check_replay_and_explain(app)


async def check_corrections(app: App) -> None:
    config = oracle.Config(5 * SECOND_NS, 2 * SECOND_NS, 4 * SECOND_NS, payload="both")
    ticks = await read_topic(app.bootstrap, app.topics.ticks)
    expected = {partition: corrections_oracle.run(config, found) for partition, found in ticks.items()}
    made = sequences(await read_topic(app.bootstrap, app.topics.frames))
    assert made == {key: sent for outcome in expected.values() for key, sent in outcome.lane.wire().items()}
    assert sum(orjson.loads(frame)["trigger"] == "correction" for sent in made.values() for frame in sent) > 20
    late = [record for found in (await read_topic(app.bootstrap, app.topics.late)).values() for record in found]
    entries = [orjson.loads(record.value or b"") for record in late]
    uncorrectable = sorted((p, offset) for p, outcome in expected.items() for offset in outcome.uncorrectable)
    assert sorted((e["partition"], e["offset"]) for e in entries if e["reason"] == "uncorrectable") == uncorrectable
    assert len(uncorrectable) > 20
    for partition, found in (await read_topic(app.bootstrap, app.topics.changelog)).items():
        counts = orjson.loads([record.value for record in found if record.key == b"m"][-1] or b"")["counts"]
        outcome = expected[partition]
        assert counts["corrected"] == outcome.corrected > 20
        assert counts["late"] == len(outcome.lane.late) + len(outcome.uncorrectable)
        assert counts["records"] == sum(number for name, number in counts.items() if name != "records")
