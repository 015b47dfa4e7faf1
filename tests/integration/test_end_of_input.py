"""``workers produce --finish`` on a real broker: with ``emit = "final"`` every bar of the file comes out, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from tests.integration.apps import App, committed_through
from tests.integration.test_worker import CONFIG, NOW_MS, market
from tests.support import oracle
from tests.support.verify import Topics, read_topic, verify
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

FINAL = oracle.Config(**{**vars(CONFIG), "emit": "final"})


def app_on(broker: Broker, name: str) -> App:
    settings = {"window.allowed_lateness": "1s", "window.emit": "final"}
    return App(broker.bootstrap_servers, name, partitions=3, settings=settings)


async def test_every_bar_of_a_file_comes_out_once_though_a_worker_is_killed(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app, file = app_on(broker, topic_name), tmp_path / "day.ndjson"
    values = [value or b"" for _, value, _ in market(60_000, symbols=40)]
    file.write_bytes(b"\n".join(values))
    assert app.run_command("topics", "create").returncode == 0
    with app.worker(tmp_path / "one.log") as one, app.worker(tmp_path / "two.log") as two:
        sent = await asyncio.to_thread(app.run_command, "produce", "--file", str(file), "--finish")
        assert sent.returncode == 0, sent.stderr
        assert "marked the end of the input on all 3 partitions" in sent.stderr
        one.kill()
        with app.worker(tmp_path / "three.log"):
            await committed_through(app, process=two)
        one.stop = lambda limit_s=0: None  # type: ignore[method-assign]  # it was killed, which is no clean end
    findings = await verify(app.bootstrap, app.topics, FINAL)
    assert not findings, findings
    assert findings.triggers.keys() == {"watermark", "end"}
    frames = [
        orjson.loads(r.value or b"")
        for found in (await read_topic(app.bootstrap, app.topics.frames)).values()
        for r in found
    ]
    assert sum(frame["count"] for frame in frames) == len(values) - findings.late
    assert len({(frame["key"], frame["start"]) for frame in frames}) == len(frames)

    span = ("--from", "2023-11-14T22:13:00Z", "--to", "2023-11-14T22:16:00Z")
    again = app.run_command("replay", *span)
    assert again.returncode == 0, again.stdout + again.stderr
    told = app.run_command("explain", "S1", "2023-11-14T22:15:19Z")
    assert (told.returncode, "(end) by the end of the input at offset" in told.stdout) == (0, True), told.stdout


async def test_finish_alone_ends_what_was_sent_before_also_for_bars_made_of_frames(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_on(broker, topic_name)
    file = tmp_path / "ticks.ndjson"
    ticks = [{"symbol": "A", "ts": NOW_MS + second * 1_000, "price": 5, "size": 1} for second in (0, 6, 61)]
    file.write_bytes(b"\n".join(map(orjson.dumps, ticks)))
    assert app.run_command("topics", "create").returncode == 0
    assert app.run_command("produce", "--file", str(file)).returncode == 0
    ended = app.run_command("produce", "--finish")
    assert (ended.returncode, "ticks sent" in ended.stderr) == (0, False)
    with app.worker(tmp_path / "bars.log") as worker:
        await committed_through(app, process=worker)

    name = f"{topic_name}-minutes"
    minutes = App(
        broker.bootstrap_servers,
        name,
        partitions=3,
        settings={
            "topics.ticks": app.topics.frames,
            "tick.format": "frames",
            "window.size": "1m",
            "window.lag": "0s",
            "window.allowed_lateness": "1s",
            "window.emit": "final",
        },
    )
    assert minutes.run_command("topics", "create").returncode == 0
    assert minutes.run_command("produce", "--finish").returncode == 0
    topics = Topics(app.topics.frames, f"{name}-frames", f"{name}-late", f"{name}-dead-letters", f"{name}-changelog")
    found: list[dict[str, object]] = []

    async def look() -> bool:
        records = [r for some in (await read_topic(app.bootstrap, topics.frames)).values() for r in some]
        found[:] = [orjson.loads(record.value or b"") for record in records]
        return sum(int(str(frame["count"])) for frame in found) == len(ticks)

    with minutes.worker(tmp_path / "minutes.log"):
        async with asyncio.timeout(60):
            while not await look():
                await asyncio.sleep(0.3)
    assert [frame["trigger"] for frame in found][-1] == "end"
    shown = app.run_command("tail", "frames", "--from-beginning", "--exit-when-idle", "1s")
    assert shown.stdout.count("end of the input") == 3


async def test_lines_that_were_refused_leave_the_input_open(broker: Broker, topic_name: str, tmp_path: Path) -> None:
    app, file = app_on(broker, topic_name), tmp_path / "ticks.ndjson"
    file.write_bytes(b'{"symbol":"A","ts":1,"price":5,"size":1}\n{"price":5}\n')
    done = app.run_command("produce", "--file", str(file), "--finish")
    assert done.returncode == 1
    assert "the end of the input was NOT marked" in done.stderr
    records = [record for found in (await read_topic(app.bootstrap, app.topics.ticks)).values() for record in found]
    assert [record.key for record in records] == [b"A"]


def test_finish_needs_an_end(broker: Broker, topic_name: str) -> None:
    refused = app_on(broker, topic_name).run_command("produce", "--synthetic", "--finish")
    assert refused.returncode == 2
    assert "needs --count or --duration" in refused.stderr
