"""Kinds of windows on the real broker: what workers publish is what the oracle says, and what commands read back."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.integration.apps import App, committed_through, send
from tests.support import oracle
from tests.support.verify import read_topic, verify
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

S = 10**9
HOUR = 3_600 * S


def utc(text: str) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * S


@dataclass(frozen=True)
class Kind:
    """Settings, what the oracle is to make of them, and the time in which the ticks are."""

    settings: dict[str, str]
    windows_of: Callable[[int], Sequence[tuple[int, int]]]
    first_ns: int
    last_ns: int
    config: dict[str, int] = field(default_factory=dict)


def side_by_side(*boundaries: str) -> Callable[[int], Sequence[tuple[int, int]]]:
    """Windows between boundaries written down by hand."""
    known = [utc(text) for text in boundaries]

    def windows_of(ts_ns: int) -> Sequence[tuple[int, int]]:
        number = bisect_right(known, ts_ns)
        return [(known[number - 1], known[number])]

    return windows_of


def sessions(*spans: tuple[str, str]) -> Callable[[int], Sequence[tuple[int, int]]]:
    """Sessions written down by hand."""
    known = [(utc(opens), utc(closes)) for opens, closes in spans]
    return lambda ts_ns: [span for span in known if span[0] <= ts_ns < span[1]]


def hopping(ts_ns: int) -> Sequence[tuple[int, int]]:
    """A window of 20 minutes every 8, moved by 3: of the last 20 minutes, those 3 past a multiple of 8."""
    minute = ts_ns // (60 * S)
    starts = [each * 60 * S for each in range(minute - 19, minute + 1) if each % 8 == 3]
    return [(start_ns, start_ns + 20 * 60 * S) for start_ns in starts]


KINDS = {
    "hopping": Kind(
        {"window.kind": "hopping", "window.size": "20m", "window.hop": "8m", "window.offset": "3m"},
        hopping,
        utc("2024-03-08T12:00"),
        utc("2024-03-08T20:00"),
    ),
    "zone": Kind(  # four hours of New York's wall clock, in the night in which it is put back
        {"window.size": "4h", "window.time_zone": "America/New_York"},
        side_by_side(
            "2024-11-02T20:00", "2024-11-03T00:00", "2024-11-03T04:00", "2024-11-03T09:00", "2024-11-03T13:00"
        ),
        utc("2024-11-02T20:30"),
        utc("2024-11-03T12:30"),
    ),
    "regular": Kind(  # the weekend in which daylight saving time begins
        {"window.kind": "calendar", "window.calendar": "XNYS", "window.close_grace": "10m"},
        sessions(("2024-03-08T14:30", "2024-03-08T21:10"), ("2024-03-11T13:30", "2024-03-11T20:10")),
        utc("2024-03-08T14:00"),
        utc("2024-03-11T21:00"),
    ),
    "full": Kind(
        {
            "window.kind": "calendar",
            "window.calendar": "XNYS",
            "window.session": "full",
            "window.key_ttl": "30d",
        },
        side_by_side("2024-03-07T21:00", "2024-03-08T21:00", "2024-03-11T20:00", "2024-03-12T20:00"),
        utc("2024-03-08T14:00"),
        utc("2024-03-11T21:00"),
        {"key_ttl_ns": 720 * HOUR},
    ),
}


def market(kind: Kind, count: int, seed: int) -> list[tuple[bytes | None, bytes | None, int | None]]:
    """Ticks of a few symbols across the kind's time, out of order, some late; sent when they happened."""
    rng = random.Random(seed)
    step_ns = (kind.last_ns - kind.first_ns) // count
    records: list[tuple[bytes | None, bytes | None, int | None]] = []
    for number in range(count):
        symbol = f"S{rng.randrange(12)}"
        sent_ns = kind.first_ns + number * step_ns
        ts_ms = (sent_ns - int(rng.expovariate(1 / (12 * step_ns)))) // 10**6
        tick = {"symbol": symbol, "ts": ts_ms, "price": round(rng.uniform(1, 100), 2), "size": rng.randrange(1, 9)}
        records.append((symbol.encode(), orjson.dumps(tick), sent_ns // 10**6))
    return records


def iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("name", KINDS)
async def test_a_kind_of_window_is_the_oracles_through_a_restart_and_replays_the_same(
    broker: Broker, topic_name: str, tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    step_ns = (kind.last_ns - kind.first_ns) // 4_000
    lag_ns, lateness_ns = 10 * step_ns // S * S, 20 * step_ns // S * S
    durations = {"window.lag": f"{lag_ns // S}s", "window.allowed_lateness": f"{lateness_ns // S}s"}
    app = App(broker.bootstrap_servers, topic_name, partitions=2, settings={**kind.settings, **durations})
    assert app.run_command("topics", "create").returncode == 0
    records = market(kind, 4_000, seed=len(name))
    await send(app, records[:2_000])
    with app.worker(tmp_path / "first.log") as worker:
        await committed_through(app, process=worker)
    await send(app, records[2_000:])
    with app.worker(tmp_path / "second.log") as worker:
        await committed_through(app, process=worker)
    config = oracle.Config(
        size_ns=1, lag_ns=lag_ns, allowed_lateness_ns=lateness_ns, windows_of=kind.windows_of, **kind.config
    )
    findings = await verify(app.bootstrap, app.topics, config)
    assert not findings, findings
    assert findings.frames > 20
    assert findings.late > 20

    said = app.run_command("replay", "--from", iso(kind.first_ns), "--to", iso(kind.last_ns), "--compare")
    assert said.returncode == 0, said.stdout + said.stderr
    frames = [each for found in (await read_topic(app.bootstrap, app.topics.frames)).values() for each in found]
    shown = next(orjson.loads(each.value or b"") for each in frames if each.key == b"S3")
    told = app.run_command("explain", "S3", str(shown["start"] + 1), "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    answer = orjson.loads(told.stdout)
    assert answer["matches"]
    window = next(each for each in answer["windows"] if each["start"] == iso(shown["start"] * 10**6))
    assert window["end"] == iso(shown["end"] * 10**6)
    final = max((each for each in window["frames"]), key=lambda each: each["rev"])["published"]
    assert window["counts"]["joined"] >= final["count"] > 0


async def test_ticks_outside_of_sessions_are_in_the_late_topic_and_explained(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    settings = {"window.kind": "calendar", "window.calendar": "XNYS"}
    app = App(broker.bootstrap_servers, topic_name, partitions=1, settings=settings)
    assert app.run_command("topics", "create").returncode == 0
    times = [utc("2024-03-08T15:00"), utc("2024-03-08T21:00"), utc("2024-03-09T12:00")]
    ticks = [{"symbol": "AAPL", "ts": ts_ns // 10**6, "price": 1, "size": 1} for ts_ns in times]
    await send(app, [(b"AAPL", orjson.dumps(each), int(str(each["ts"]))) for each in ticks])
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    late = [orjson.loads(each.value or b"") for each in (await read_topic(app.bootstrap, app.topics.late))[0]]
    assert [(each["reason"], each["start"], each["end"], each["offset"]) for each in late] == [
        ("outside_session", None, None, 1),
        ("outside_session", None, None, 2),
    ]
    told = app.run_command("explain", "AAPL", iso(times[2]))
    assert told.returncode == 0, told.stderr
    assert "no session of XNYS contains this time" in told.stdout
    assert "at that very time: late" in told.stdout
    assert "outside of all sessions of XNYS" in told.stdout
    tail = app.run_command("tail", "late", "--from-beginning", "--max-messages", "2")
    assert "in no window (outside_session)" in tail.stdout, tail.stdout + tail.stderr


async def test_sessions_replay_the_same_and_are_explained(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    settings = {"window.kind": "session", "window.gap": "10s", "window.lag": "30s", "window.allowed_lateness": "1m"}
    app = App(broker.bootstrap_servers, topic_name, partitions=1, settings=settings)
    assert app.run_command("topics", "create").returncode == 0
    begin_ms = utc("2024-03-08T15:00") // 10**6
    seconds = [0, 18, 40, 9, 75, 76, 48, 150, 62, 300]  # 9 joins two sessions, 48 lengthens one, 62 is a late one
    ticks = [{"symbol": "AAPL", "ts": begin_ms + 1_000 * each, "price": 1, "size": 1} for each in seconds]
    await send(app, [(b"AAPL", orjson.dumps(each), int(str(each["ts"]))) for each in ticks])
    with app.worker(tmp_path / "worker.log") as worker:
        await committed_through(app, process=worker)
    span = ("--from", iso(begin_ms * 10**6), "--to", iso((begin_ms + 200_000) * 10**6))
    said = app.run_command("replay", *span, "--compare")
    assert said.returncode == 0, said.stdout + said.stderr
    told = app.run_command("explain", "AAPL", str(begin_ms + 10_000), "--json")
    assert told.returncode == 0, told.stderr
    answer = orjson.loads(told.stdout)
    assert answer["matches"]
    (window,) = answer["windows"]
    assert (window["start"], window["end"]) == (iso(begin_ms * 10**6), iso((begin_ms + 28_000) * 10**6))
    assert window["counts"] == {"joined": 3}
    assert {each["verdict"] for each in window["frames"]} <= {"matches", "provisional"}


def test_a_configuration_whose_calendar_is_unknown_is_refused_at_start(broker: Broker, topic_name: str) -> None:
    settings = {"window.kind": "calendar", "window.calendar": "XNYZ"}
    app = App(broker.bootstrap_servers, topic_name, settings=settings)
    for command in (("run",), ("config", "check")):
        done = app.run_command(*command)
        assert done.returncode == 2
        assert "exchange_calendars has none of that name; did you mean" in done.stderr
