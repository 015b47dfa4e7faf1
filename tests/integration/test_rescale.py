"""More input partitions for an application that has state, by the command, on a real broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.apps import App, committed_through, send
from tests.integration.test_worker import CONFIG, market, run_to_the_end
from tests.support.verify import read_topic, straight
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def app_of(broker: Broker, name: str) -> App:
    return App(broker.bootstrap_servers, name, partitions=2, settings={"window.allowed_lateness": "1s"})


@pytest.mark.parametrize("scope", ["partition", "process"])
async def test_keys_go_on_in_their_new_partitions(broker: Broker, topic_name: str, tmp_path: Path, scope: str) -> None:
    app = app_of(broker, topic_name)
    app = replace(app, settings={**app.settings, "commit_scope": scope})
    records = market(4_000)
    await run_to_the_end(app, records[:2_500], tmp_path / "first.log")
    before = await read_topic(app.bootstrap, app.topics.ticks)

    looked = app.run_command("state", "rescale", "--partitions", "5", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert "of 50 keys move, from 2 partitions to 5" in looked.stderr
    assert len(await read_topic(app.bootstrap, app.topics.ticks)) == 2, "nothing was changed"
    asked = app.run_command("state", "rescale", "--partitions", "5")
    assert asked.returncode == 2, "it asks, and there is nobody to answer"
    done = app.run_command("state", "rescale", "--partitions", "5", "--yes")
    assert done.returncode == 0, done.stderr
    again = app.run_command("state", "rescale", "--partitions", "5", "--yes")
    assert again.returncode == 0, again.stderr
    assert "there is nothing to do" in again.stderr

    grown = replace(app, partitions=5)
    await send(grown, records[2_500:])
    with grown.worker(tmp_path / "second.log") as worker:
        await committed_through(grown, process=worker)
    ticks = await read_topic(app.bootstrap, app.topics.ticks)
    marks = {partition: len(found) for partition, found in before.items()}
    logs = [*before.values(), *(found[marks.get(partition, 0) :] for partition, found in ticks.items())]
    expected = straight(CONFIG)({0: [record for log in logs for record in log]}).frames
    found: dict[str, list[bytes | None]] = {}
    for frames in (await read_topic(app.bootstrap, app.topics.frames)).values():
        for record in frames:
            assert record.key is not None
            found.setdefault(record.key.decode(), []).append(record.value)
    assert found == {symbol: frames for symbol, frames in expected.items() if frames}


async def test_it_is_refused_while_somebody_works_or_ticks_of_moving_keys_are_unread(
    broker: Broker, topic_name: str, tmp_path: Path
) -> None:
    app = app_of(broker, topic_name)
    records = market(600)
    await run_to_the_end(app, records[:500], tmp_path / "first.log")
    with app.worker(tmp_path / "second.log") as worker:
        await send(app, records[500:550])
        await committed_through(app, process=worker)
        refused = app.run_command("state", "rescale", "--partitions", "3", "--yes")
        assert refused.returncode == 1
        assert "has 1 members; stop its workers first" in refused.stderr
    await send(app, records[550:])
    refused = app.run_command("state", "rescale", "--partitions", "3", "--yes")
    assert refused.returncode == 1
    assert "has unread ticks, the first at offset" in refused.stderr
    refused = app.run_command("state", "rescale", "--partitions", "2")
    assert refused.returncode == 2
    with app.worker(tmp_path / "third.log") as worker:
        await committed_through(app, process=worker)
    assert len(await read_topic(app.bootstrap, app.topics.ticks)) == 2
    done = app.run_command("state", "rescale", "--partitions", "3", "--yes")
    assert done.returncode == 0, done.stderr
