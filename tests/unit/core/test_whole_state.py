"""A changelog that was cut, or whose topics are other ones, is noticed: nothing of the state is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.throttle import Throttle
from workers.core.snapshot import StoredRecords, TopicIdentity, read_meta
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import SessionWindows
from workers.errors import StateMismatchError
from workers.kafka.memory import LogRecord
from workers.native.choose import make_lane

S, MS = 10**9, 10**6
TOPICS = {"ticks": TopicIdentity("ticks", "t-1"), "changelog": TopicIdentity("c", "c-1")}
SOURCE = Input("ticks", 0, 1, TOPICS)
SPECS = {
    "windows": LaneSpec(),
    "items": LaneSpec(payload="both"),
    "sessions": LaneSpec(window=SessionWindows(2 * S), payload="items"),
    "operators": LaneSpec(pipeline=(Deduplicate(("id",), 10 * S), Throttle(2 * MS))),
    "held": LaneSpec(max_jump_ns=3_600 * S),
}


def tick(offset: int, symbol: str, ts_ms: int) -> LogRecord:
    value = json.dumps({"symbol": symbol, "ts": ts_ms, "price": 1, "size": 1, "id": offset}).encode()
    return LogRecord(offset, 10**15, symbol.encode(), value)


def changelog(lane: Lane) -> list[OutRecord]:
    """All that is written over some commits, of which the last ones are of few symbols."""
    records: list[OutRecord] = []
    offset = 0
    for step in range(12):
        symbols = "ABCDEF" if step < 3 else "AB" if step < 9 else "A"
        for symbol in symbols:
            for more in (0, 30, 7 if step % 2 else 0):
                far = 10**10 if step == 2 and symbol == "F" and more == 30 else 0
                lane.process([tick(offset, symbol, 1_700_000_000_000 + 1_500 * step + more + far)])
                offset += 1
        records += lane.take_changes()
    return records


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("native", [False, True])
def test_whatever_is_cut_from_a_changelog_is_noticed(kind: str, native: bool) -> None:
    spec = SPECS[kind]
    records = changelog(make_lane(spec, SOURCE, native and kind != "held"))
    whole = entries_of(records)
    noticed = accepted = 0
    for begin in range(len(records)):
        left = entries_of(records[begin:])
        lane = make_lane(spec, SOURCE, native and kind != "held")
        if left == whole:
            accepted += 1
            assert lane.restore(left, where="c[0]") is not None
        else:
            noticed += 1
            with pytest.raises(StateMismatchError, match=r"the changelog c\[0\] is not whole: found"):
                lane.restore(left, where="c[0]")
    assert noticed
    assert accepted


@pytest.mark.parametrize("kind", SPECS)
def test_both_lanes_count_alike_and_go_on_from_one_another(kind: str) -> None:
    spec = SPECS[kind]
    first = Lane(spec, SOURCE)
    entries = entries_of(changelog(first))
    found = read_meta(entries, where="c[0]")
    assert found is not None
    kinds = {b"w": "windows", b"i": "items", b"o": "operators", b"h": "held"}
    counted = StoredRecords()
    for key in entries:
        if key != b"m":
            name = kinds[key[:1]]
            setattr(counted, name, getattr(counted, name) + 1)
    assert found.stored == counted
    assert counted.windows
    assert kind == "windows" or getattr(counted, kind if kind != "sessions" else "items")
    if kind == "held":
        return  # which native lanes leave to the other
    fast = make_lane(spec, SOURCE, True)
    fast.restore(entries, where="c[0]")
    record = tick(10_000, "A", 1_700_000_100_000)
    assert [lane.process([record]).aggregated for lane in (first, fast)] == [1, 1]
    assert list(first.take_changes()) == list(fast.take_changes())


def with_topics(**changes: TopicIdentity) -> Input:
    return replace(SOURCE, identities={**TOPICS, **changes})


@pytest.fixture
def entries() -> Mapping[bytes, bytes]:
    return entries_of(changelog(Lane(LaneSpec(), SOURCE)))


@pytest.mark.parametrize("native", [False, True])
def test_state_of_another_topic_is_refused(native: bool, entries: Mapping[bytes, bytes]) -> None:
    for ticks, said in (
        (TopicIdentity("trades", "t-9"), r"was made of the topic ticks, and topics\.ticks is trades: .*`workers state"),
        (
            TopicIdentity("ticks", "t-2"),
            r"ticks was deleted and made again .*\(its id was t-1, is t-2\).*`workers state",
        ),
    ):
        with pytest.raises(StateMismatchError, match=said):
            make_lane(LaneSpec(), with_topics(ticks=ticks), native).restore(entries, where="c[0]")
    # A broker before 2.8 tells no ids: the name alone counts.
    for ticks in (TopicIdentity("ticks", None), TopicIdentity("ticks", "t-1")):
        assert make_lane(LaneSpec(), with_topics(ticks=ticks), native).restore(entries, where="c[0]") is not None


def test_a_changelog_that_was_made_again_is_taken_where_it_is_whole_and_named_where_it_is_not(
    entries: Mapping[bytes, bytes],
) -> None:
    source = with_topics(changelog=TopicIdentity("c", "c-2"))
    assert Lane(LaneSpec(), source).restore(entries, where="c[0]") is not None  # a copy was put back
    lost = next(key for key in entries if key[:1] == b"w")
    with pytest.raises(StateMismatchError, match=r"was deleted and made again \(its id was c-1, is c-2\)"):
        Lane(LaneSpec(), source).restore({key: entries[key] for key in entries if key != lost}, where="c[0]")
