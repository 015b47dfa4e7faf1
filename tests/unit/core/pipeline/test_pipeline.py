"""The pipeline inside the lane against its oracle: any operators, any log, any batches, any crashes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from tests.support import oracle, pipeline_oracle
from tests.support.pipeline_oracle import Account, End, Item
from tests.support.strategies import cuts
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import REASON_HEADER
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, Map, OperatorSpec, Route, Router, describe
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.spec import LaneSpec
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT, Tick
from workers.core.windows.kinds import TumblingWindows
from workers.errors import CallbackError, ConfigError, StateFormatError, StateMismatchError

MS = 1_000_000
HERE = __name__


@dataclass(frozen=True)
class KafkaRecord:
    """A record as aiokafka hands it out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


# -- functions that pipelines are configured with ---------------------------------------------------------------------


def price_is_even(tick: Tick) -> bool:
    return tick.price % 2 == 0


def doubled(tick: Tick) -> dict[str, object]:
    return {"price": tick.price * 2, "seen": True}


def shifted(tick: Tick) -> Tick:
    return replace(tick, ts_ns=tick.ts_ns - MS, fields={**tick.fields, "ts": tick.ts_ns // MS - 1})


def unchanged(tick: Tick) -> Tick:
    return tick


async def asynchronous(tick: Tick) -> bool:
    return True


def renamed(tick: Tick) -> dict[str, object]:
    return {"symbol": "other"}


def renamed_tick(tick: Tick) -> Tick:
    tick.symbol = "other"
    return tick


def nothing(tick: Tick) -> None:
    return None


def no_number(tick: Tick) -> Tick:
    return replace(tick, price=float("nan"))


def no_json(tick: Tick) -> dict[str, object]:
    return {"price": object()}


def wrong_json(tick: Tick) -> Tick:
    return replace(tick, value=b"[1")


def early(tick: Tick) -> Tick:
    return replace(tick, ts_ns=2**63)


def raising(tick: Tick) -> bool:
    raise OSError("no disk")


# -- drawing logs and pipelines ---------------------------------------------------------------------------------------

ids = st.one_of(
    st.integers(1, 6),
    st.sampled_from([None, "1", "2", 1.0, True, 2**70, 2**70 + 1, "x" * 200, {"a": 1, "b": 2}]),
)


@dataclass(frozen=True)
class Step:
    """How a record differs from the one before."""

    symbol: str
    advance: int
    back: int
    id: object
    price: int
    venue: str | None
    bad: bool
    ends: bool = False  # the input has ended


steps = st.builds(
    Step,
    st.sampled_from(["A", "A", "B", "AB", ""]),
    st.sampled_from([0, 1, 1, 2, 5, 30]),
    st.sampled_from([0, 0, 0, 1, 3, 8]),
    ids,
    st.integers(0, 9),
    st.sampled_from([None, "X", "Y", 1, True]),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([False] * 15 + [True]),
)
logs = st.lists(steps, max_size=50)


def records_of(log: Sequence[Step], start: int = 1_000) -> list[KafkaRecord]:
    now = start
    records = []
    for number, step in enumerate(log):
        now += step.advance
        fields = {"symbol": step.symbol, "ts": now - step.back, "price": step.price, "size": 1, "id": step.id}
        if step.venue is not None:
            fields["venue"] = step.venue
        if step.ends:
            records.append(KafkaRecord(3 * number, -1, None, None, ((CONTROL_HEADER, END_OF_INPUT),)))
            continue
        value = b"rubbish" if step.bad else json.dumps(fields).encode()
        records.append(KafkaRecord(3 * number, -1, step.symbol.encode(), value, (("h", str(number).encode()),)))
    return records


operators: st.SearchStrategy[OperatorSpec] = st.one_of(
    st.builds(
        Deduplicate,
        st.sampled_from([("id",), ("id", "venue")]),
        st.sampled_from([1, 4 * MS, 20 * MS, 1_000 * MS]),
        st.just(False),
        st.sampled_from([1, 2, 100]),
        st.booleans(),
    ),
    st.builds(
        Deduplicate, st.just(("id",)), st.sampled_from([4 * MS, 1_000 * MS]), st.just(True), st.just(3), st.just(True)
    ),
    st.builds(
        Throttle, st.sampled_from([MS // 2, MS, 3 * MS + 1, 20 * MS]), st.integers(1, 3), st.booleans(), st.booleans()
    ),
    st.builds(Conflate, st.sampled_from([1, 2 * MS, 10 * MS]), st.sampled_from([0, MS, 5 * MS]), st.booleans()),
    st.builds(
        Router,
        st.lists(
            st.sampled_from(
                [
                    Route("a-topic", "A*"),
                    Route("window", "AB"),
                    Route("x-topic", None, "venue", "X"),
                    Route("one-topic", None, "venue", 1),
                    Route("true-topic", "?", "venue", True),
                ]
            ),
            max_size=3,
        ).map(tuple),
        st.sampled_from(["window", "window", "rest-topic"]),
    ),
    st.builds(Filter, st.just(f"{HERE}:price_is_even"), st.booleans()),
    st.sampled_from([Map(f"{HERE}:doubled"), Map(f"{HERE}:shifted"), Map(f"{HERE}:unchanged")]),
)
pipelines = st.lists(operators, min_size=1, max_size=4).map(tuple)


@dataclass(frozen=True)
class Setting:
    """A lane's settings, for both sides."""

    config: oracle.Config
    pipeline: tuple[OperatorSpec, ...]

    def lane(self) -> Lane:
        config = self.config
        spec = LaneSpec(
            window=TumblingWindows(config.size_ns),
            lag_ns=config.lag_ns,
            lateness_ns=config.allowed_lateness_ns,
            key_ttl_ns=None if config.key_ttl_ns == oracle.NEVER_NS else config.key_ttl_ns,
            scope=config.watermark_scope,
            payload=config.payload,
            pipeline=self.pipeline,
        )
        return Lane(spec, Input("ticks", 0, 1))


configs = st.builds(
    oracle.Config,
    size_ns=st.sampled_from([5 * MS, 10 * MS]),
    lag_ns=st.sampled_from([2 * MS, 4 * MS]),
    allowed_lateness_ns=st.sampled_from([0, 3 * MS]),
    key_ttl_ns=st.sampled_from([25 * MS, oracle.NEVER_NS]),  # the log's ticks expire, or don't
    watermark_scope=st.sampled_from(["key", "partition"]),
    payload=st.sampled_from(["ohlcv", "both"]),
)
settings = st.builds(Setting, configs, pipelines)


# -- the model --------------------------------------------------------------------------------------------------------


def items_of(records: Sequence[KafkaRecord]) -> list[Item | End]:
    items: list[Item | End] = []
    for record in records:
        if record.value is None:
            items.append(End(oracle.Record(record.offset, record.timestamp, None, None, tuple(record.headers))))
            continue
        if record.value == b"rubbish":
            continue
        fields = json.loads(record.value or b"")
        plain = oracle.Record(record.offset, record.timestamp, record.key, record.value)
        items.append(Item(fields["symbol"], fields["ts"] * MS, fields, plain, record.value or b""))
    return items


def changed(item: Item, **changes: object) -> Item:
    fields = as_floats({**item.fields, **changes})
    ts = fields["ts"]
    assert isinstance(ts, int)
    return Item(item.symbol, ts * MS, fields, item.record, orjson.dumps(fields))


def as_floats(fields: dict[str, object]) -> dict[str, object]:
    """Integers beyond 64 bits as floats: what is left of them where JSON is written anew."""
    return {
        name: float(value) if isinstance(value, int) and abs(value) >= 2**64 else value
        for name, value in fields.items()
    }


def double_price(item: Item) -> Item:
    price = item.fields["price"]
    assert isinstance(price, int | float)
    return changed(item, price=float(price) * 2, seen=True)


def shift(item: Item) -> Item:
    ts = item.fields["ts"]
    assert isinstance(ts, int)
    return changed(item, ts=ts - 1)


def price_even(item: Item) -> bool:
    price = item.fields["price"]
    assert isinstance(price, int | float)
    return price % 2 == 0


MAPS: dict[str, Callable[[Item], Item]] = {"doubled": double_price, "shifted": shift, "unchanged": lambda item: item}


def model(setting: Setting, records: Sequence[KafkaRecord]) -> tuple[list[Item | End], Account]:
    """What must reach the windows, and the account of the rest."""
    account, items, ttl_ns = Account(), items_of(records), setting.config.key_ttl_ns
    for spec in setting.pipeline:
        match spec:
            case Deduplicate(names, id_ttl_ns, gaps, max_ids, _):
                items = pipeline_oracle.deduplicate(
                    items, account, names=names, ttl_ns=id_ttl_ns, gaps=gaps, max_ids=max_ids, key_ttl_ns=ttl_ns
                )
            case Throttle(spacing_ns, burst, per_symbol, _):
                items = pipeline_oracle.throttle(
                    items, account, spacing_ns=spacing_ns, burst=burst, per_symbol=per_symbol, key_ttl_ns=ttl_ns
                )
            case Conflate(interval_ns, margin_ns, _):
                items = pipeline_oracle.conflate(
                    items, account, interval_ns=interval_ns, margin_ns=margin_ns, key_ttl_ns=ttl_ns
                )
            case Router(routes, default):
                rules = [(each.symbol, each.field, each.equals, each.to) for each in routes]
                items = pipeline_oracle.route(items, account, rules=rules, default=default)
            case Filter():
                items = pipeline_oracle.keep(items, account, price_even)
            case Map(function):
                items = pipeline_oracle.rewrite(items, MAPS[function.partition(":")[2]])
    return items, account


# -- comparing --------------------------------------------------------------------------------------------------------


def check(setting: Setting, records: Sequence[KafkaRecord], lane: Lane, effects: Effects) -> None:
    going, account = model(setting, records)
    outcome = oracle.run(setting.config, [item.as_record() for item in going])
    frames: dict[str, list[bytes]] = {}
    for frame in effects.frames:
        shown = orjson.loads(frame.value or b"")
        if shown["status"] != "provisional":
            frames.setdefault(shown["key"], []).append(frame.value or b"")
    assert frames == outcome.wire()

    counts, dropped = lane.counts, account.dropped
    assert counts.balance() == 0
    assert (counts.records, counts.aggregated, counts.late) == (len(records), outcome.aggregated, len(outcome.late))
    assert counts.deduplicated == sum(reason == "duplicate" for _, reason in dropped)
    assert counts.throttled == sum(reason == "throttled" for _, reason in dropped)
    assert counts.filtered == sum(reason == "filtered" for _, reason in dropped)
    assert counts.routed_away == sum(map(len, account.routed.values()))
    assert counts.held == account.held

    headers = {record.offset: tuple(record.headers) for record in records}
    assert {
        topic: [(each.key, each.value, each.headers) for each in found] for topic, found in effects.routed.items()
    } == {
        topic: [(each.key, each.value, headers[each.offset]) for each in found]
        for topic, found in account.routed.items()
    }
    assert sorted((gap.symbol, gap.first, gap.last) for gap in effects.gaps) == sorted(account.gaps)
    noticed: dict[str, int] = {}
    for (what, _), number in effects.noticed.items():
        noticed[what] = noticed.get(what, 0) + number
    assert noticed == account.noticed
    check_ledger(setting, records, effects, account, outcome)


def check_ledger(
    setting: Setting, records: Sequence[KafkaRecord], effects: Effects, account: Account, outcome: oracle.Outcome
) -> None:
    """Every dropped tick is in the late topic with its reason, except where the operator's ledger is off."""
    entries = [orjson.loads(record.value or b"") for record in effects.late]
    for record, entry in zip(effects.late, entries, strict=True):
        assert dict(record.headers)[REASON_HEADER] == entry["reason"].encode()
        assert (entry["topic"], entry["partition"], record.key) == ("ticks", 0, entry["key"].encode())
        assert entry["tick"]["symbol"] == entry["key"]
    late = sorted((late.offset, late.reason) for late in outcome.late)
    assert sorted((each["offset"], each["reason"]) for each in entries if "stage" not in each) == late
    silent = {
        f"{position}:{'throttle' if isinstance(spec, Throttle | Conflate) else 'x'}"
        for position, spec in enumerate(setting.pipeline, 1)
        if getattr(spec, "ledger", True) is False
    }
    found = sorted((each["offset"], each["reason"]) for each in entries if "stage" in each)
    if not silent:
        assert found == sorted(account.dropped)
    else:
        assert len(found) <= len(account.dropped)
        assert all(each in account.dropped for each in found)


@given(settings, logs)
def test_the_lane_gives_what_the_oracle_gives(setting: Setting, log: list[Step]) -> None:
    records = records_of(log)
    lane = setting.lane()
    check(setting, records, lane, lane.process(records))


@given(settings, logs, st.data())
def test_batches_commits_and_crashes_change_nothing(setting: Setting, log: list[Step], data: st.DataObject) -> None:
    """Cut the log anywhere; at each cut commit, or restore the lane from its changelog."""
    records = records_of(log)
    lane, effects, changelog = setting.lane(), Effects(), list[OutRecord]()
    bounds = [0, *data.draw(cuts(len(records)), "cuts"), len(records)]
    for begin, end in pairwise(bounds):
        effects.extend(lane.process(records[begin:end]))
        match data.draw(st.sampled_from(["nothing", "commit", "crash"]), "then"):
            case "commit":
                changelog += lane.take_changes()
            case "crash":
                changelog += lane.take_changes()
                position, counts = lane.position, lane.counts
                lane = setting.lane()
                assert lane.restore(entries_of(changelog), where="test") is not None
                assert (lane.position, lane.counts) == (position, counts)
    check(setting, records, lane, effects)


busy_steps = st.builds(
    Step,
    st.sampled_from(["A", "A", "B"]),
    st.sampled_from([0, 1, 1, 2, 5]),
    st.sampled_from([0, 0, 1, 3]),
    st.integers(1, 3),
    st.just(1),
    st.none(),
    st.just(False),
)
small_states = st.one_of(
    st.builds(
        Deduplicate, st.just(("id",)), st.sampled_from([2 * MS, 6 * MS]), st.booleans(), st.sampled_from([1, 2, 9])
    ),
    st.builds(Throttle, st.sampled_from([2 * MS, 5 * MS]), st.integers(1, 2), st.booleans()),
    st.builds(Conflate, st.sampled_from([2 * MS, 5 * MS]), st.sampled_from([0, 3 * MS])),
)


@example_settings(max_examples=400)
@given(small_states, st.sampled_from([12 * MS, 10**15]), st.lists(st.tuples(busy_steps, st.booleans()), max_size=40))
def test_a_crash_at_any_record_changes_nothing(
    operator: OperatorSpec, key_ttl_ns: int, log: list[tuple[Step, bool]]
) -> None:
    """One operator, few ids and few symbols, so that nearly every record meets state; True: crash after this one."""
    config = oracle.Config(size_ns=5 * MS, lag_ns=4 * MS, key_ttl_ns=key_ttl_ns)
    setting = Setting(config, (operator,))
    records = records_of([step for step, _ in log])
    lane, effects, changelog = setting.lane(), Effects(), list[OutRecord]()
    for record, (_, crash) in zip(records, log, strict=True):
        effects.extend(lane.process([record]))
        if crash:
            changelog += lane.take_changes()
            lane = setting.lane()
            lane.restore(entries_of(changelog), where="test")
    check(setting, records, lane, effects)


@given(settings, logs)
def test_the_changelog_is_proportional_to_what_changed_and_is_cleaned_up(setting: Setting, log: list[Step]) -> None:
    """No commit rewrites what did not change, and what is forgotten is deleted."""
    records = records_of(log)
    lane, changelog = setting.lane(), list[OutRecord]()
    for record in records:
        lane.process([record])
        changes = lane.take_changes()
        written = [each for each in changes if (each.key or b"")[:1] == b"o" and each.value is not None]
        assert len(written) <= 2 * len(setting.pipeline) * 4  # a head and a part per stage for each symbol that moved
        changelog += changes
    assert [each for each in lane.take_changes() if (each.key or b"")[:1] == b"o"] == []
    if len(setting.pipeline) > 1 or setting.config.key_ttl_ns > 10**12:
        return  # a later stage need not see the tick that comes now
    again = setting.lane()
    again.restore(entries_of(changelog), where="test")
    much_later = replace(records_of([Step("A", 10**6, 0, 1, 0, None, False)])[0], offset=10**6)
    again.process([much_later])
    entries = entries_of([*changelog, *again.take_changes()])
    symbols = {key[4 if key[3:4] == b"h" else 12 :] for key in entries if key[:1] == b"o"}
    assert symbols in (set(), {b"A"}, {b""})  # one bucket for the whole partition has no symbol
    assert len([key for key in entries if key[:1] == b"o"]) <= 2


# -- single operators, with a timeline --------------------------------------------------------------------------------


def ticks(*described: tuple[str, int] | tuple[str, int, dict[str, object]]) -> list[KafkaRecord]:
    """(symbol, ms[, more fields]) as records."""
    records = []
    for offset, (symbol, ts, *more) in enumerate(described):
        fields = {"symbol": symbol, "ts": ts, "price": 1.5, "size": 1, **(more[0] if more else {})}
        records.append(KafkaRecord(offset, -1, symbol.encode(), json.dumps(fields).encode()))
    return records


def lane_with(*pipeline: OperatorSpec, **options: object) -> Lane:
    spec = LaneSpec(pipeline=pipeline, **{"window": TumblingWindows(10 * MS), "lag_ns": 5 * MS, **options})  # type: ignore[arg-type]
    return Lane(spec, Input("ticks", 0, 1))


def ledger(effects: Effects) -> list[tuple[int, str]]:
    entries = [orjson.loads(record.value or b"") for record in effects.late]
    return [(entry["offset"], entry["reason"]) for entry in entries]


def test_a_repeat_is_dropped_until_its_symbols_event_time_is_a_ttl_further() -> None:
    #  A 0 id 1   A 9 id 1   A 10 id 1   B 10 id 1     ttl 10 ms
    same = {"id": 1}
    lane = lane_with(Deduplicate(("id",), 10 * MS))
    effects = lane.process(ticks(("A", 0, same), ("A", 9, same), ("A", 10, same), ("B", 10, same)))
    assert ledger(effects) == [(1, "duplicate")]
    entry = orjson.loads(effects.late[0].value or b"")
    assert entry["detail"] == {"first_ts": 0}
    assert entry["stage"] == "1:deduplicate"
    assert entry["tick"]["ts"] == 9


def test_another_symbols_progress_makes_no_id_forgotten() -> None:
    lane = lane_with(Deduplicate(("id",), 10 * MS))
    effects = lane.process(ticks(("A", 0, {"id": 1}), ("B", 5_000, {"id": 1}), ("A", 3, {"id": 1})))
    assert ledger(effects) == [(2, "duplicate")]


def test_an_id_behind_a_later_one_is_forgotten_on_time_and_remembered_anew() -> None:
    #  A:  5 id 1 | 2 id 2 | 12 id 2: new again, as 2 + 10 is reached | 15 id 3: forgets 5 and 2 | 16 id 2: repeats 12
    lane = lane_with(Deduplicate(("id",), 10 * MS), lag_ns=50 * MS)
    described = [(5, 1), (2, 2), (12, 2), (15, 3), (16, 2)]
    effects = lane.process(ticks(*(("A", at, {"id": number}) for at, number in described)))
    assert ledger(effects) == [(4, "duplicate")]


def test_ids_are_compared_as_json_writes_them_even_beyond_64_bits() -> None:
    found = [1, "1", 1.0, True, 2**64, 2**64 + 1, 10**30, 10**30 + 1, {"a": 1, "b": 2}]
    lane = lane_with(Deduplicate(("id",), 10 * MS))
    records = ticks(*(("A", 0, {"id": each}) for each in found))
    assert ledger(lane.process(records)) == []
    again = [replace(record, offset=record.offset + 100) for record in records]
    assert ledger(lane.process(again)) == [(record.offset, "duplicate") for record in again]
    turned = ticks(("A", 0, {"id": {"b": 2, "a": 1}}))
    assert ledger(lane.process([replace(turned[0], offset=999)])) == [(999, "duplicate")]


ONE_ID = [
    ["1736000000.123456789", "1736000000.1234567890", "1.736000000123456789e9", "1736000000123456789E-9"],
    ["1736000000.123456790", "1736000000.12345679"],
    ["1.0", "1e0", "0.1e1", "10e-1"],
    ["1"],
    ['"1e0"'],
    ["0.0", "0e5"],
    ["1e-400", "10e-401"],  # as floats both of these two lines are 0
    ["2e-400"],
    ["12345678901234567890"],
    ["[12345678901234567890123]", "[ 12345678901234567890123 ]"],
    ["[12345678901234567890124]"],
    ['["12345678901234567890124"]'],
    ['["#1e0"]'],
    ["[1.0]", "[1.00]"],
    ['{"t":1736000000.123456789,"n":[1,"\\"1.5\\\\"]}', '{"n":[1,"\\u00221.5\\u005c"], "t":1736000000.123456789}'],
    ['{"t":1736000000.123456790,"n":[1,"\\"1.5\\\\"]}'],
]


@pytest.mark.parametrize("fields", [("id",), ("id", "venue")])
def test_numbers_in_ids_are_compared_to_their_last_digit(fields: tuple[str, ...]) -> None:
    texts = [(first == 0, text) for writings in ONE_ID for first, text in enumerate(writings)]
    value = '{"symbol":"A","ts":0,"price":1.5,"size":1,"venue":"X","id":%s}'
    records = [KafkaRecord(offset, -1, b"A", (value % text).encode()) for offset, (_, text) in enumerate(texts)]
    effects = lane_with(Deduplicate(fields, 10 * MS)).process(records)
    assert [offset for offset, _ in ledger(effects)] == [offset for offset, (new, _) in enumerate(texts) if not new]


def test_skipped_ids_are_reported_and_those_that_come_after_all_are_counted() -> None:
    lane = lane_with(Deduplicate(("id",), 1_000 * MS, gaps=True))
    given_ids = [5, 6, "9", 7, 7, 4, 10]
    effects = lane.process(ticks(*(("A", 0, {"id": each}) for each in given_ids), ("B", 0, {"id": 50})))
    [gap] = effects.gaps
    assert (gap.symbol, gap.first, gap.last, gap.missing, gap.offset) == ("A", 7, 8, 2, 2)
    assert effects.noticed == {("gap", "1:deduplicate"): 1, ("filled", "1:deduplicate"): 1}
    assert ledger(effects) == [(4, "duplicate")]


def test_the_ids_of_one_symbol_are_bounded_and_forgetting_early_is_counted() -> None:
    lane = lane_with(Deduplicate(("id",), 1_000 * MS, max_ids=2))
    effects = lane.process(ticks(*(("A", 0, {"id": each}) for each in [1, 2, 3, 2, 1])))
    assert ledger(effects) == [(3, "duplicate")]
    assert effects.noticed[("forgotten_early", "1:deduplicate")] == 2


def test_a_throttle_counts_event_time() -> None:
    #  one token per 10 ms, two at most:   0  0  0  12  13  30  30  30
    lane = lane_with(Throttle(10 * MS, burst=2))
    effects = lane.process(ticks(*(("A", at) for at in [0, 0, 0, 12, 13, 30, 30, 30])))
    assert ledger(effects) == [(2, "throttled"), (4, "throttled"), (7, "throttled")]
    assert lane.counts.throttled == 3


def test_a_throttle_of_a_partition_is_shared_by_its_symbols() -> None:
    described = [("A", 0), ("B", 0), ("B", 1)]
    assert ledger(lane_with(Throttle(10 * MS)).process(ticks(*described))) == [(2, "throttled")]
    whole = Throttle(10 * MS, per_symbol=False)
    assert ledger(lane_with(whole).process(ticks(*described))) == [(1, "throttled"), (2, "throttled")]


def test_conflation_passes_the_latest_of_each_interval_once_a_later_one_begins() -> None:
    #  A:  0 3 7 | 12 | 25      interval 10 ms; 25 is held
    lane = lane_with(Conflate(10 * MS, margin_ns=5 * MS))
    effects = lane.process(ticks(("A", 0), ("A", 7), ("A", 3), ("A", 12), ("A", 25)))
    assert ledger(effects) == [(0, "throttled"), (2, "throttled")]
    assert (lane.counts.aggregated, lane.counts.held, lane.counts.balance()) == (2, 1, 0)


def test_a_quiet_symbols_last_tick_is_passed_on_when_the_partition_has_moved_on() -> None:
    lane = lane_with(Conflate(10 * MS, margin_ns=5 * MS))
    lane.process(ticks(("A", 3), ("B", 14)))
    assert lane.counts.held == 2
    lane.process([replace(ticks(("B", 15))[0], offset=2)])
    assert (lane.counts.held, lane.counts.aggregated, lane.counts.throttled) == (1, 1, 1)
    # A newer tick of A's interval goes on as well: B's progress adds a tick and takes none.
    lane.process([replace(ticks(("A", 4))[0], offset=3)])
    assert (lane.counts.held, lane.counts.aggregated, lane.counts.throttled) == (1, 2, 1)
    # An older one does not.
    assert ledger(lane.process([replace(ticks(("A", 3))[0], offset=4)])) == [(4, "throttled")]


def test_a_symbol_that_came_and_expired_between_two_commits_leaves_nothing_in_the_changelog() -> None:
    for operator in (Deduplicate(("id",), 10 * MS), Throttle(MS), Conflate(MS, 0)):
        lane = lane_with(operator, key_ttl_ns=50 * MS)
        lane.process(ticks(("A", 0, {"id": 1}), ("B", 1_000, {"id": 1})))
        keys = [key for key in entries_of(lane.take_changes()) if key[:1] == b"o"]
        assert keys
        assert all(key.endswith(b"B") for key in keys)


@given(logs, st.sampled_from([MS, 2 * MS, 5 * MS]))
def test_with_a_partitions_clock_nothing_that_came_in_time_is_late_for_having_been_held(
    log: list[Step], interval_ns: int
) -> None:
    """No disorder within the log: what conflation passes on is never late, as long as the interval is at most lag."""
    ordered = [replace(step, back=0, ends=False) for step in log]
    lane = lane_with(Conflate(interval_ns, margin_ns=0), scope="partition")
    effects = lane.process(records_of(ordered))
    assert effects.late_by_reason == {}


def test_routed_ticks_keep_key_value_and_headers_and_the_first_rule_decides() -> None:
    rules = (Route("window", "TEST-KEEP"), Route("tests", "TEST*"), Route("otc", None, "venue", "OTC"))
    lane = lane_with(Map(f"{HERE}:doubled"), Router(rules))
    described = [("TEST-1", 0), ("AAPL", 0), ("TEST-KEEP", 0), ("MSFT", 0, {"venue": "OTC"}), ("TEST-1", 1)]
    records = [replace(record, headers=(("trace", b"7"),)) for record in ticks(*described)]
    effects = lane.process(records)
    assert {topic: [(each.key, each.value) for each in found] for topic, found in effects.routed.items()} == {
        "tests": [(b"TEST-1", records[0].value), (b"TEST-1", records[4].value)],
        "otc": [(b"MSFT", records[3].value)],
    }
    assert effects.routed["otc"][0].headers == (("trace", b"7"),)
    assert (lane.counts.routed_away, lane.counts.aggregated) == (3, 2)


def test_a_map_may_return_fields_to_change_or_a_tick() -> None:
    lane = lane_with(Map(f"{HERE}:doubled"), Map(f"{HERE}:shifted"), payload="both")
    [frame] = lane.process(ticks(("A", 1), ("A", 100))).frames
    shown = orjson.loads(frame.value or b"")
    assert (shown["open"], shown["first_ts"]) == (3.0, 0)
    assert shown["items"] == [{"symbol": "A", "ts": 0, "price": 3.0, "size": 1, "seen": True}]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (Filter(f"{HERE}:raising"), r"raised OSError: no disk, at ticks\[0\] offset 0, key 'A'"),
        (Map(f"{HERE}:raising"), r"stage 1:map: .*:raising' raised OSError"),
        (Map(f"{HERE}:renamed"), "no tick of this symbol .key_mismatch"),
        (Map(f"{HERE}:renamed_tick"), "symbol 'other' and offset 0; both must stay"),
        (Map(f"{HERE}:nothing"), "returned a NoneType; expected a Tick or a mapping"),
        (Map(f"{HERE}:no_number"), "price nan"),
        (Map(f"{HERE}:no_json"), "JSON can't hold"),
        (Map(f"{HERE}:wrong_json"), "value is not JSON"),
        (Map(f"{HERE}:early"), "ts_ns 9223372036854775808"),
    ],
)
def test_a_function_that_fails_stops_the_lane_and_says_where(operator: OperatorSpec, expected: str) -> None:
    with pytest.raises(CallbackError, match=expected):
        lane_with(operator).process(ticks(("A", 0)))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("no.such.module:name", "ModuleNotFoundError"),
        (f"{HERE}:absent", "AttributeError"),
        (f"{HERE}:MS", "is a int; expected something to call"),
        (f"{HERE}:asynchronous", "async"),
    ],
)
def test_a_function_that_is_none_is_refused_at_the_start(place: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        lane_with(Filter(place))


def test_state_made_by_another_pipeline_is_refused_but_the_ledger_may_be_switched() -> None:
    lane = lane_with(Deduplicate(("id",), 10 * MS))
    lane.process(ticks(("A", 0, {"id": 1})))
    entries = entries_of(lane.take_changes())
    lane_with(Deduplicate(("id",), 10 * MS, ledger=False)).restore(entries, where="test")
    for other in [(), (Deduplicate(("id",), 11 * MS),), (Deduplicate(("id",), 10 * MS), Throttle(1))]:
        with pytest.raises(StateMismatchError, match="pipeline was"):
            lane_with(*other).restore(entries, where="test")


def test_damaged_state_of_a_stage_is_refused() -> None:
    lane = lane_with(Deduplicate(("id",), 10 * MS), Throttle(MS), Conflate(MS, 0))
    lane.process(ticks(("A", 0, {"id": 1})))
    entries = entries_of(lane.take_changes())
    for key in [key for key in entries if key[:1] == b"o"]:
        fresh = lane_with(Deduplicate(("id",), 10 * MS), Throttle(MS), Conflate(MS, 0))
        with pytest.raises(StateFormatError, match="stage"):
            fresh.restore({**entries, key: b"\xc1"}, where="test")
    dedup_head = b"o\0\0h"
    headless = {key.replace(b"A", b"B") if key[:4] == dedup_head else key: value for key, value in entries.items()}
    with pytest.raises(StateFormatError, match="has no head"):
        lane_with(Deduplicate(("id",), 10 * MS), Throttle(MS), Conflate(MS, 0)).restore(headless, where="test")


def test_a_lane_without_a_pipeline_stores_what_it_stored_before() -> None:
    lane = lane_with()
    lane.process(ticks(("A", 0)))
    meta = orjson.loads(entries_of(lane.take_changes())[b"m"])
    assert "pipeline" not in meta["settings"]


@given(pipelines)
def test_the_description_of_a_pipeline_is_what_json_gives_back(pipeline: tuple[OperatorSpec, ...]) -> None:
    described = describe(pipeline)
    assert json.loads(json.dumps(described)) == described
    assert len(described) == len(pipeline)
