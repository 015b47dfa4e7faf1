"""Session windows and filled gaps on the real broker: the oracle's frames, though a worker is killed; what the store
keeps of them, and what a replay makes of the log."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.integration.apps import App, Process, committed_through, send, wait_until
from tests.support import oracle
from tests.support.verify import end_offsets, read_topic
from tests.support.window_oracles import run_gaps, run_sessions
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

SECOND_NS = 10**9
NOW_MS = 1_700_000_000_000
SYMBOLS = [f"S{number}" for number in range(12)]

Out = tuple[bytes | None, bytes | None, int | None]


def market(count: int) -> list[Out]:
    """Bursts and pauses of a quiet market, with disorder up to twenty seconds; sent in an order of their own."""
    rng = random.Random(5)
    clocks = dict.fromkeys(SYMBOLS, NOW_MS)
    records: list[Out] = []
    for _ in range(count):
        symbol = rng.choice(SYMBOLS)
        clocks[symbol] += rng.choice([100, 700, 1_500, 3_000, 4_900, 5_000, 12_000, 40_000])
        late = rng.choice([0, 0, 0, 0, 900, 4_000, 11_000, 20_000])
        tick = {
            "symbol": symbol,
            "ts": clocks[symbol] - late,
            "price": round(rng.uniform(1, 100), 2),
            "size": rng.randrange(1, 9),
        }
        records.append((symbol.encode(), orjson.dumps(tick), None))
    return records


@dataclass(frozen=True)
class Kind:
    settings: Mapping[str, str]
    expect: Callable[[Sequence[oracle.Record]], oracle.Outcome]


SESSIONS = oracle.Config(
    size_ns=5 * SECOND_NS, lag_ns=2 * SECOND_NS, allowed_lateness_ns=15 * SECOND_NS, payload="both"
)
GAPS = oracle.Config(size_ns=5 * SECOND_NS, lag_ns=2 * SECOND_NS, allowed_lateness_ns=15 * SECOND_NS)
KINDS = {
    "sessions": Kind(
        {"window.kind": "session", "window.gap": "5s", "window.payload": "both"},
        lambda records: run_sessions(SESSIONS, records),
    ),
    "gaps": Kind(
        {"window.size": "5s", "window.fill_gaps": "30s"}, lambda records: run_gaps(GAPS, 30 * SECOND_NS, records)
    ),
}


async def expected_of(app: App, kind: Kind) -> oracle.Outcome:
    """What the ticks in the topic must give, all partitions together."""
    whole = oracle.Outcome()
    for _, records in sorted((await read_topic(app.bootstrap, app.topics.ticks)).items()):
        outcome = kind.expect(records)
        whole.frames.update(outcome.frames)
        whole.late += outcome.late
        whole.aggregated += outcome.aggregated
    return whole


async def published(app: App) -> dict[str, list[bytes]]:
    """The frames of each key that are not provisional, in order."""
    frames: dict[str, list[bytes]] = {}
    for _, records in sorted((await read_topic(app.bootstrap, app.topics.frames)).items()):
        for record in records:
            assert record.value is not None
            assert record.key is not None
            if orjson.loads(record.value)["status"] != "provisional":
                frames.setdefault(record.key.decode(), []).append(record.value)
    return frames


@pytest.mark.parametrize("name", KINDS)
async def test_a_killed_worker_and_its_successors_give_the_oracles_frames(
    broker: Broker, topic_name: str, tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    app = App(broker.bootstrap_servers, topic_name, 2, {"window.allowed_lateness": "15s", **kind.settings})
    records = market(3_000)
    assert app.run_command("topics", "create").returncode == 0
    log = tmp_path / "first.log"
    first = Process([sys.executable, "-m", "workers", "run", *app.flags(lane__batch_size=50)], log)
    try:
        await wait_until(lambda: first.output().count("partition ready") == 2, "the first worker has its partitions")
        await send(app, records[:1_500])
        await committed_through(app, process=first)
        await send(app, records[1_500:])
    finally:
        first.kill()  # in the middle of the second half
    with app.worker(tmp_path / "second.log") as second, app.worker(tmp_path / "third.log"):
        await committed_through(app, process=second)
    expected = await expected_of(app, kind)
    assert await published(app) == expected.wire()
    frames = [frame for found in expected.frames.values() for frame in found]
    triggers = [frame["trigger"] for frame in frames]
    assert expected.late
    assert triggers.count("late") > 50
    if name == "sessions":
        assert triggers.count("merged") > 20
    else:
        assert sum(1 for frame in frames if frame.get("filled") and frame["trigger"] == "late") > 20
    await _check_store(app, tmp_path, expected)
    _check_commands(app, len(frames))


async def _check_store(app: App, tmp_path: Path, expected: oracle.Outcome) -> None:
    """Of each window the last frame is stored, and no tick is in two bars."""
    path = tmp_path / "frames.db"
    ends = await end_offsets(app.bootstrap, app.topics.frames)
    argv = [sys.executable, "-m", "workers", "store", "--sqlite", str(path), *app.flags()]
    process = Process(argv, tmp_path / "store.log")
    try:
        await wait_until(lambda: _stored(path) == sum(ends.values()), "the store has read all frames")
        process.stop()
    finally:
        process.kill()
    last = {(key, frame["start"]): frame for key, frames in expected.frames.items() for frame in frames}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT key, start_ms, status, rev, count, close, first_ts, filled FROM frames"
        ).fetchall()
        stored = {(key, start): rest for key, start, *rest in found}
        for name, frame in last.items():
            status, rev, *rest = stored[name]
            if status == "provisional":  # a session that is open again, or a bar that is about to be
                assert rev == int(str(frame["rev"])) + 1
            else:
                values = [frame[each] for each in ("count", "close", "first_ts")]
                assert [rev, *rest] == [frame["rev"], *values, frame.get("filled", False)]
        assert all(rest[0] == "provisional" for name, rest in stored.items() if name not in last)
        assert connection.execute("SELECT count(*) FROM rejected_frames").fetchone() == (0,)
        # With what was shown last provisionally, every tick that joined is in one bar; nothing waits without a frame
        # but what came after the last silence.
        (ticks,) = connection.execute("SELECT sum(count) FROM bars").fetchone()
        assert 0 < ticks <= expected.aggregated
        (unreal,) = connection.execute("SELECT count(*) FROM bars WHERE close IS NULL").fetchone()
        assert unreal == 0


def _stored(path: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute("SELECT coalesce(sum(next_offset), 0) FROM store_offsets").fetchone()
            return int(found)
    except sqlite3.OperationalError:  # not made yet
        return -1


def _check_commands(app: App, frames: int) -> None:
    """What reads the frames back can read them."""
    span = ("--from", "2023-11-14T00:00:00Z", "--to", "2023-11-16T00:00:00Z")
    replayed = app.run_command("replay", *span)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert f"{frames:,} identical, none different" in replayed.stdout
    tailed = app.run_command("tail", "frames", "--from-beginning", "--exit-when-idle", "2")
    assert tailed.returncode == 0, tailed.stderr
    assert "not a frame" not in tailed.stdout
    assert "empty (merged)" in tailed.stdout or " filled" in tailed.stdout
