"""State for more input partitions: a key goes on in its new partition as if it had been there all along."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.oracle import partition_of
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane
from workers.core.packed import OutRecords
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.rescale import rescale, symbol_of
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import HoppingWindows, SessionWindows, TumblingWindows
from workers.errors import StateFormatError, StateMismatchError
from workers.times import NS_PER_MS, NS_PER_SECOND

S = NS_PER_SECOND
BASE = LaneSpec(
    window=TumblingWindows(5 * S),
    lag_ns=2 * S,
    lateness_ns=3 * S,
    idle_after_ns=1_000_000 * S,  # none: provisional frames are shown by the time of a partition, which other keys move
)
SPECS: Mapping[str, LaneSpec] = {
    "tumbling": BASE,
    "tumbling, items, final": replace(BASE, payload="both", emit="final"),
    "gaps filled": replace(BASE, window=TumblingWindows(5 * S, fill_gaps_ns=20 * S)),
    "hopping": replace(BASE, window=HoppingWindows(6 * S, 2 * S)),
    "session, items": replace(BASE, window=SessionWindows(3 * S), payload="both"),
    "jumps": replace(BASE, max_jump_ns=1_000 * S),
    "deduplicate, throttle, router": replace(
        BASE,
        pipeline=(
            Deduplicate(("price",), 10 * S),
            Throttle(1, burst=2),
            Router((Route("big", "K1*"),)),
        ),
    ),
}
SYMBOLS = [f"K{number}" for number in range(9)] + ["", "Ü"]


@dataclass
class Record:
    """A record of the ticks topic."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 1_700_000_000_000
    headers: Sequence[tuple[str, bytes | None]] = field(default=())


@dataclass
class Topic:
    """Lanes over the partitions of one topic; what comes out of them, by symbol."""

    spec: LaneSpec
    partitions: int
    lanes: list[Lane] = field(default_factory=list)
    logs: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    entries: list[dict[bytes, bytes]] = field(default_factory=list)
    out: dict[bytes, list[object]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.lanes = [Lane(self.spec, Input("ticks", number, self.partitions)) for number in range(self.partitions)]
        self.entries = [{} for _ in self.lanes]

    def send(self, symbol: str, ts_ms: int, price: int) -> None:
        """A tick, to where the partitioner puts it."""
        value = json.dumps({"symbol": symbol, "ts": ts_ms, "price": price, "size": 1}).encode()
        self._take(partition_of(symbol.encode(), self.partitions), symbol.encode(), value)

    def end(self) -> None:
        """The end of the input, on every partition."""
        for number in range(self.partitions):
            self._take(number, None, None, (("workers.control", b"end-of-input"),))

    def _take(
        self, number: int, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        record = Record(self.logs[number], key, value, headers=headers)
        self.logs[number] += 1
        effects = self.lanes[number].process([record])
        for frame in _listed(effects.frames):
            assert frame.key is not None
            self.out[frame.key].append(frame.value)
        for _ in _listed(effects.late):
            self.out[key or b""].append("late")

    def store(self) -> None:
        """What a commit does with the state."""
        for lane, entries in zip(self.lanes, self.entries, strict=True):
            for record in _listed(lane.take_changes()):
                assert record.key is not None
                if record.value is None:
                    entries.pop(record.key, None)
                else:
                    entries[record.key] = record.value

    def grow(self, partitions: int) -> None:
        """More partitions, and their state."""
        self.store()
        found = rescale(self.entries, self.spec, Input("ticks", 0, partitions))
        self.partitions = partitions
        self.__post_init__()
        self.entries = found.partitions
        for number, (lane, entries) in enumerate(zip(self.lanes, self.entries, strict=True)):
            meta = lane.restore(entries, where="here")
            assert meta is not None
            assert meta.offset == lane.position == self.logs[number]


def _listed(records: OutRecords) -> list[OutRecord]:
    assert isinstance(records, list)
    return records


ticks = st.lists(
    st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 40_000), st.integers(1, 5)), min_size=1, max_size=60
)


@pytest.mark.parametrize("name", SPECS)
@given(ticks, ticks, st.integers(1, 3), st.integers(1, 4))
@example([("K1", 1_000, 1)], [("K1", 3_000, 2)], 1, 1)
def test_a_key_goes_on_as_if_it_had_been_there_all_along(
    name: str, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], old: int, added: int
) -> None:
    grown, whole = Topic(SPECS[name], old), Topic(SPECS[name], 1)
    for topic in (grown, whole):
        for tick in before:
            topic.send(*tick)
        if topic is grown:
            topic.grow(old + added)
        for tick in after:
            topic.send(*tick)
        topic.end()
    assert grown.out == whole.out
    grown.store()
    counted, (expected,) = [lane.counts for lane in grown.lanes], [lane.counts for lane in whole.lanes]
    assert sum(each.aggregated for each in counted) == expected.aggregated, "what was counted is counted once"
    assert sum(each.records - each.control for each in counted) == expected.records - 1


def test_state_can_grow_again() -> None:
    topic = Topic(BASE, 1)
    for partitions in (2, 3, 7):
        for number, symbol in enumerate(SYMBOLS):
            topic.send(symbol, 1_000 * number, partitions)
        topic.grow(partitions)
        for number, entries in enumerate(topic.entries):
            for key in entries:
                symbol = symbol_of(key)
                assert symbol is None or partition_of(symbol, partitions) == number


def test_partitions_without_state_get_theirs() -> None:
    found = rescale([{}, {}], BASE, Input("ticks", 0, 3))
    assert (found.keys, found.moved) == (0, 0)
    for number, entries in enumerate(found.partitions):
        lane = Lane(BASE, Input("ticks", number, 3))
        assert lane.restore(entries, where="here") is not None
        assert lane.position == 0


@pytest.mark.parametrize("partitions", [1, 2])
def test_no_fewer_partitions_than_there_are(partitions: int) -> None:
    with pytest.raises(StateMismatchError, match=r"of 2 input partitions; expected more"):
        rescale([{}, {}], BASE, Input("ticks", 0, partitions))


def test_windows_that_wait_for_other_keys_stay() -> None:
    with pytest.raises(StateMismatchError, match="watermark_scope is partition"):
        rescale([{}], replace(BASE, scope="partition"), Input("ticks", 0, 2))


def test_a_key_that_is_not_where_the_partitioner_puts_it_is_refused() -> None:
    topic = Topic(BASE, 2)
    away = next(symbol for symbol in SYMBOLS if partition_of(symbol.encode(), 2) == 1)
    topic._take(0, away.encode(), json.dumps({"symbol": away, "ts": 1, "price": 1, "size": 1}).encode())
    topic.store()
    with pytest.raises(StateMismatchError, match=f"'{away}' has state in partition 0.*puts it into 1 of 2"):
        rescale(topic.entries, BASE, Input("ticks", 0, 3))


def test_ticks_that_are_held_back_stay() -> None:
    spec = replace(BASE, pipeline=(Conflate(S, 0),))
    topic = Topic(spec, 1)
    topic.send("K1", 100, 1)
    topic.send("K1", 200, 1)
    topic.store()
    with pytest.raises(StateMismatchError, match=r"holds 1 ticks back.*--finish"):
        rescale(topic.entries, spec, Input("ticks", 0, 2))


def test_state_of_other_settings_is_refused() -> None:
    topic = Topic(BASE, 1)
    topic.send("K1", 100, 1)
    topic.store()
    with pytest.raises(StateMismatchError, match=r"window\.lag was 2s, is 3s"):
        rescale(topic.entries, replace(BASE, lag_ns=3 * S), Input("ticks", 0, 2))


def test_a_record_of_no_known_kind_is_refused() -> None:
    with pytest.raises(StateFormatError, match="whose state a record"):
        symbol_of(b"zAAPL")


def test_time_that_belongs_to_partitions_is_the_greatest_there_was() -> None:
    topic = Topic(SPECS["jumps"], 2)
    for number, symbol in enumerate(SYMBOLS):
        topic.send(symbol, 100 * number, 1)
    topic.grow(4)
    assert {lane.partition_max_ns for lane in topic.lanes} == {100 * (len(SYMBOLS) - 1) * NS_PER_MS}
