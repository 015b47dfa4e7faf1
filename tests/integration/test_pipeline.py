"""A pipeline in a real worker on the real broker: what comes out is the oracle's, also over a kill."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from tests.integration.apps import App, Process, committed_through, send
from tests.support import oracle, pipeline_oracle
from tests.support.pipeline_oracle import Account, Item
from tests.support.verify import read_topic
from workers.apps.broker import Broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

MS = 1_000_000
SECOND_NS = 10**9
NOW_MS = 1_700_000_000_000
KEY_TTL_NS = 24 * 3_600 * SECOND_NS
CONFIG = oracle.Config(size_ns=5 * SECOND_NS, lag_ns=2 * SECOND_NS, allowed_lateness_ns=SECOND_NS)
PIPELINE = """
[[pipeline]]
operator = "router"
rules = [
    {{ symbol = "TEST*", to = "{name}-tests" }},
    {{ field = "venue", equals = "OTC", to = "{name}-otc" }},
]
[[pipeline]]
operator = "deduplicate"
id = "id"
ttl = "1m"
gaps = true
[[pipeline]]
operator = "filter"
function = "tests.integration.pipeline_functions:is_trade"
[[pipeline]]
operator = "map"
function = "tests.integration.pipeline_functions:doubled"
[[pipeline]]
operator = "throttle"
rate = 100
burst = 3
[[pipeline]]
operator = "throttle"
mode = "conflate"
interval = "20ms"
"""


def feed(count: int) -> list[tuple[bytes | None, bytes | None, int | None]]:
    """A market with repeats, quotes, test symbols, another venue, skipped ids and a little disorder."""
    rng = random.Random(7)
    ids: dict[str, int] = {}
    records: list[tuple[bytes | None, bytes | None, int | None]] = []
    for number in range(count):
        symbol = rng.choice(["AAPL", "MSFT", "NVDA", "TEST-1", "TEST-2", "GE"])
        ids[symbol] = ids.get(symbol, 0) + rng.choice([1, 1, 1, 1, 1, 3])
        tick = {
            "symbol": symbol,
            "ts": NOW_MS + 3 * number - int(rng.expovariate(1 / 300)),
            "price": round(rng.uniform(1, 100), 2),
            "size": rng.randrange(1, 9),
            "id": ids[symbol],
            "kind": rng.choice(["trade", "trade", "quote"]),
            "venue": rng.choice(["N", "N", "OTC"]),
        }
        record = (symbol.encode(), orjson.dumps(tick), None)
        records.append(record)
        if rng.random() < 0.1:
            records.append(record)
        if rng.random() < 0.01:
            records.append((symbol.encode(), b"rubbish", None))
    return records


def items_of(records: Sequence[oracle.Record]) -> list[Item]:
    items = []
    for record in records:
        if record.value != b"rubbish":
            fields = orjson.loads(record.value or b"")
            items.append(Item(fields["symbol"], fields["ts"] * MS, fields, record, record.value or b""))
    return items


def doubled(item: Item) -> Item:
    fields = {**item.fields, "price": float(str(item.fields["price"])) * 2}
    return Item(item.symbol, item.ts_ns, fields, item.record, orjson.dumps(fields))


def model(records: Sequence[oracle.Record], name: str) -> tuple[oracle.Outcome, Account]:
    """What one partition must produce."""
    account, ttl_ns = Account(), KEY_TTL_NS
    rules = [("TEST*", None, None, f"{name}-tests"), (None, "venue", "OTC", f"{name}-otc")]
    items = pipeline_oracle.route(items_of(records), account, rules=rules, default="window")
    items = pipeline_oracle.deduplicate(
        items, account, names=["id"], ttl_ns=60 * SECOND_NS, gaps=True, max_ids=100_000, key_ttl_ns=ttl_ns
    )
    items = pipeline_oracle.keep(items, account, lambda item: item.fields["kind"] != "quote")
    items = pipeline_oracle.rewrite(items, doubled)
    items = pipeline_oracle.throttle(items, account, spacing_ns=10 * MS, burst=3, per_symbol=True, key_ttl_ns=ttl_ns)
    items = pipeline_oracle.conflate(items, account, interval_ns=20 * MS, margin_ns=CONFIG.lag_ns, key_ttl_ns=ttl_ns)
    return oracle.run(CONFIG, [item.as_record() for item in items]), account


async def test_all_operators_in_a_worker_that_is_killed_give_what_the_oracle_gives(
    broker: Broker, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(broker.bootstrap_servers, topic_name, partitions=2, settings={"window.allowed_lateness": "1s"})
    config = tmp_path / "workers.toml"
    config.write_text(PIPELINE.format(name=app.name), encoding="utf-8")
    monkeypatch.setenv("WORKERS_CONFIG", str(config))
    assert app.run_command("topics", "create").returncode == 0
    records = feed(12_000)
    await send(app, records[:6_000])
    doomed = start_worker(app, tmp_path / "killed.log")
    try:
        await committed_through(app, process=doomed)
        await send(app, records[6_000:9_000])
        await asyncio.sleep(0.3)  # somewhere within these
    finally:
        doomed.kill()
    with app.worker(tmp_path / "worker.log") as worker:
        await send(app, records[9_000:])
        await committed_through(app, process=worker)
        assert "ids are missing" in worker.output()
    await check(app, len(records))


async def check(app: App, count: int) -> None:
    ticks = await read_topic(app.bootstrap, app.topics.ticks)
    assert sum(map(len, ticks.values())) == count
    expected = {partition: model(found, app.name) for partition, found in ticks.items()}

    frames: dict[str, list[bytes]] = {}
    for found in (await read_topic(app.bootstrap, app.topics.frames)).values():
        for record in found:
            if orjson.loads(record.value or b"")["status"] != "provisional":
                frames.setdefault((record.key or b"").decode(), []).append(record.value or b"")
    wanted = {key: sent for outcome, _ in expected.values() for key, sent in outcome.wire().items()}
    assert frames == wanted
    assert sum(map(len, frames.values())) > 20

    late = [record for found in (await read_topic(app.bootstrap, app.topics.late)).values() for record in found]
    entries = [orjson.loads(record.value or b"") for record in late]
    assert sorted((each["partition"], each["offset"], each["reason"]) for each in entries) == sorted(
        [(partition, *drop) for partition, (_, account) in expected.items() for drop in account.dropped]
        + [(partition, each.offset, each.reason) for partition, (run, _) in expected.items() for each in run.late]
    )
    assert {each["reason"] for each in entries} >= {"duplicate", "filtered", "throttled"}

    for topic in (f"{app.name}-tests", f"{app.name}-otc"):
        routed = await read_topic(app.bootstrap, topic)
        per_key: dict[bytes, list[bytes]] = {}
        for found in routed.values():
            for record in found:
                per_key.setdefault(record.key or b"", []).append(record.value or b"")
        sent: dict[bytes, list[bytes]] = {}
        for _, account in expected.values():
            for record in account.routed.get(topic, []):
                sent.setdefault(record.key or b"", []).append(record.value or b"")
        assert per_key == sent
        assert sent
    await check_counts(app, expected, ticks)


async def check_counts(
    app: App, expected: dict[int, tuple[oracle.Outcome, Account]], ticks: dict[int, list[oracle.Record]]
) -> None:
    """Conservation, as each partition's state counts it."""
    for partition, found in (await read_topic(app.bootstrap, app.topics.changelog)).items():
        meta = orjson.loads([record.value for record in found if record.key == b"m"][-1] or b"")
        outcome, account = expected[partition]
        reasons = [reason for _, reason in account.dropped]
        assert meta["counts"] == {
            "records": len(ticks[partition]),
            "aggregated": outcome.aggregated,
            "late": len(outcome.late),
            "rejected": sum(record.value == b"rubbish" for record in ticks[partition]),
            "deduplicated": reasons.count("duplicate"),
            "throttled": reasons.count("throttled"),
            "filtered": reasons.count("filtered"),
            "routed_away": sum(map(len, account.routed.values())),
            "held": account.held,
        }
        counts = meta["counts"]
        assert counts["records"] == sum(number for name, number in counts.items() if name != "records")


async def test_a_function_that_raises_ends_the_worker_and_says_at_which_record(
    broker: Broker, topic_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(broker.bootstrap_servers, topic_name, partitions=1)
    config = tmp_path / "workers.toml"
    function = "tests.integration.pipeline_functions:raises_on_poison"
    config.write_text(f'[[pipeline]]\noperator = "filter"\nfunction = "{function}"\n', encoding="utf-8")
    monkeypatch.setenv("WORKERS_CONFIG", str(config))
    assert app.run_command("topics", "create").returncode == 0
    tick = {"symbol": "AAPL", "ts": NOW_MS, "price": 1, "size": 1}
    await send(app, [(b"AAPL", orjson.dumps(each), None) for each in (tick, {**tick, "poison": True})])
    code, output = await end_of_worker(app, tmp_path / "worker.log")
    assert code != 0
    where = f"{app.topics.ticks}[0] offset 1, key 'AAPL'"
    assert f"raised RuntimeError: the function can't take this, at {where}" in " ".join(output.split()), output


def start_worker(app: App, log: Path) -> Process:
    """A worker that need not end well."""
    return Process([sys.executable, "-m", "workers", "run", *app.flags()], log)


async def end_of_worker(app: App, log: Path) -> tuple[int, str]:
    process = start_worker(app, log)
    try:
        for _ in range(600):
            if (code := process.exit_code) is not None:
                return code, process.output()
            await asyncio.sleep(0.1)
        raise AssertionError(f"the worker runs on:\n{process.output()[-2000:]}")
    finally:
        process.kill()
