"""A wrong date waits for its key's next tick, and is believed or not; the log alone decides, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw_batches import batches
from tests.support.strategies import cuts
from tests.unit.core.test_lane import TOPIC, KafkaRecord, late_entries, real_frames, reasons
from workers.apps.inspect.witness import Investigation
from workers.core.effects import Effects
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.jumps import JumpGuard
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import MESSAGE_HEADER
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import OperatorSpec
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.spec import LaneSpec
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT
from workers.core.windows.kinds import TumblingWindows
from workers.errors import ConfigError, StateFormatError, StateMismatchError
from workers.native.choose import supports, takes_batches
from workers.native.lane import NativeLane
from workers.settings import load_settings
from workers.settings.lane import lane_spec

S, MS = 10**9, 10**6
DAY_MS = 86_400_000
START_MS = 1_736_000_000_000
JUMP_MS, DISORDER_MS = 100, 20


def record(offset: int, key: str, ts_ms: int, **fields: object) -> KafkaRecord:
    value = {"symbol": key, "ts": ts_ms, "price": 100 + offset % 7, "size": 1, **fields}
    return KafkaRecord(offset, START_MS + 400 * DAY_MS, key.encode(), orjson.dumps(value), (("trace", b"%d" % offset),))


def timeline(text: str) -> list[KafkaRecord]:
    """``A0 B5``: ticks in log order, with their times in milliseconds."""
    return [record(offset, each[0], int(each[1:])) for offset, each in enumerate(text.split())]


def guarded(**changes: object) -> LaneSpec:
    spec = LaneSpec(window=TumblingWindows(10 * MS), lag_ns=20 * MS, max_jump_ns=JUMP_MS * MS)
    return replace(spec, **changes)  # type: ignore[arg-type]


def lane_of(spec: LaneSpec) -> Lane:
    return Lane(spec, Input(TOPIC, 0, 1))


# -- the rules, as a user would draw them -----------------------------------------------------------------------------


def decided(text: str) -> list[str]:
    """What the guard says, tick by tick: names that go on, and in parentheses those contradicted."""
    guard: JumpGuard[str] = JumpGuard(JUMP_MS, DISORDER_MS)
    said = []
    for order, name in enumerate(text.split()):
        judged = guard.judge(name[0], int(name[1:]), order, name)
        told = [f"({each.item})" if each.contradicted_by else each.item for each in judged]
        said.append(" ".join(told if guard.held(name[0]) is None else [*told, "-"]))
    return said


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("A0 A100 A200", ["A0", "A100", "A200"]),  # as far as allowed
        ("A0 A101 A1", ["A0", "-", "(A101) A1"]),  # a wrong date, and the next tick goes back
        ("A0 A101 A80", ["A0", "-", "(A101) A80"]),  # or just so far that both can't be
        ("A0 A101 A81", ["A0", "-", "A101 A81"]),  # out of order, as ticks are
        ("A0 A101 A102", ["A0", "-", "A101 A102"]),  # a second one confirms it
        ("A0 A500 A400", ["A0", "-", "A500 A400"]),  # it goes back, but by no more than a jump
        ("A0 A500 A399", ["A0", "-", "(A500) -"]),  # by more; and is ahead itself
        ("A500 A0", ["A500", "A0"]),  # nothing to compare the very first with
        ("A0 B150 A60", ["A0", "-", "A60 B150"]),  # others have come near
        ("A0 B150 C160 A60", ["A0", "-", "-", "A60 B150 C160"]),  # in the order in which they came
        ("A0 B250 C150 A60", ["A0", "-", "-", "A60 B250 C150"]),  # one leads to the other
        ("A0 B500 A500 B501", ["A0", "-", "-", "B500 A500 B501"]),  # after a weekend
        ("A0 B500 A510 A520", ["A0", "-", "-", "B500 A510 A520"]),
        ("A0 A500 A900 A901", ["A0", "-", "A500 -", "A900 A901"]),  # each jump is asked for again
        ("A0 B100 A500 B101 A102", ["A0", "B100", "-", "B101", "(A500) A102"]),
    ],
)
def test_the_rules(log: str, said: list[str]) -> None:
    assert decided(log) == said


@dataclass(frozen=True)
class Tick:
    order: int
    key: str
    ts: int


def naive(ticks: Sequence[Tick], jump: int, disorder: int) -> tuple[list[Tick], list[tuple[Tick, Tick]], list[Tick]]:
    """The rules written anew, by looking at all that is held again and again: those that went on, in order; those
    contradicted, each with the tick that did it; and what is still held."""
    passed: list[Tick] = []
    contradicted: list[tuple[Tick, Tick]] = []
    held: list[Tick] = []

    def let_through(group: list[Tick]) -> None:
        while True:
            reached = max(tick.ts for tick in passed + group) + jump
            more = [tick for tick in held if tick not in group and tick.ts <= reached]
            if not more:
                break
            group = group + more
        passed.extend(sorted(group, key=lambda tick: tick.order))
        held[:] = [tick for tick in held if tick not in group]

    for tick in ticks:
        for suspect in [each for each in held if each.key == tick.key]:
            believable = tick.ts <= max(each.ts for each in passed) + jump
            if tick.ts + (disorder if believable else jump) < suspect.ts:
                held.remove(suspect)
                contradicted.append((suspect, tick))
            else:
                let_through([suspect])
        if passed and tick.ts > max(each.ts for each in passed) + jump:
            held.append(tick)
        else:
            passed.append(tick)
            near = [each for each in held if each.ts <= max(other.ts for other in passed) + jump]
            if near:
                let_through(near)
    return passed, contradicted, held


times = st.one_of(
    st.integers(0, 30),
    st.integers(-150, 150),
    st.sampled_from([100, 101, 200, 201, 300, 10_000, 10_100, 10_101, 20_000, -10_000]),
)
logs = st.lists(st.tuples(st.sampled_from("ABC"), times), max_size=40).map(
    lambda drawn: [Tick(order, key, ts) for order, (key, ts) in enumerate(_drifting(drawn))]
)


def _drifting(drawn: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Time goes on by itself; what is drawn is how far a tick is from it."""
    return [(key, position * 3 + ts) for position, (key, ts) in enumerate(drawn)]


@settings(max_examples=500)
@given(logs, st.sampled_from([0, DISORDER_MS, JUMP_MS]))
def test_the_guard_gives_what_a_naive_one_gives(log: list[Tick], disorder: int) -> None:
    guard: JumpGuard[Tick] = JumpGuard(JUMP_MS, disorder)
    passed, contradicted = [], []
    for tick in log:
        for judged in guard.judge(tick.key, tick.ts, tick.order, tick):
            if judged.contradicted_by is None:
                passed.append(judged.item)
            else:
                assert judged.contradicted_by == (tick.ts, tick.order)
                contradicted.append((judged.item, tick))
    expected, bad, held = naive(log, JUMP_MS, disorder)
    assert (passed, contradicted, len(guard)) == (expected, bad, len(held))
    assert [judged.item for judged in guard.release_all()] == held
    assert len(guard) == 0
    assert guard.clock_ns == max((tick.ts for tick in expected + held), default=None)


def test_what_a_stranger_sends_does_not_stay() -> None:
    guard: JumpGuard[int] = JumpGuard(JUMP_MS)
    for order in range(0, 20_000, 2):
        guard.judge("A", order, order, order)
        guard.judge("A", 10**12 + order, order + 1, order)
    assert len(guard._waiting) <= 100
    assert len(guard) == 1


# -- in a lane --------------------------------------------------------------------------------------------------------


def one_bad_date() -> list[KafkaRecord]:
    """300 ticks, one a second; the 101st says a date two days ahead."""
    return [
        record(offset, "A", START_MS + 1_000 * offset + (2 * DAY_MS if offset == 100 else 0)) for offset in range(300)
    ]


def test_one_wrong_date_costs_itself_alone() -> None:
    spec = lane_spec(load_settings(Path("config/workers.toml"), environ={}, overrides={"tick.max_jump": "1d"}))
    lane = lane_of(spec)
    effects = lane.process(one_bad_date())
    assert (lane.counts.aggregated, lane.counts.late, lane.counts.rejected, lane.counts.held) == (299, 0, 1, 0)
    assert reasons(effects.dead_letters) == [(100, "clock_jump")]
    [letter] = effects.dead_letters
    assert (letter.key, letter.value) == (b"A", one_bad_date()[100].value)
    assert letter.headers[0] == ("trace", b"100")
    assert dict(letter.headers)[MESSAGE_HEADER].decode() == (
        "ts is 2025-01-06T14:15:00Z; the key's next tick, at offset 101, goes back by 1d 23h, to 2025-01-04T14:15:01Z. "
        "A tick further ahead of its partition than tick.max_jump 1d needs a second that does not"
    )


def test_a_date_that_is_off_by_the_very_day_allowed_is_found() -> None:
    spec = lane_spec(load_settings(environ={}, overrides={"tick.max_jump": "1d"}))
    log = one_bad_date()
    log[100] = record(100, "A", START_MS + 1_000 * 100 + DAY_MS)
    lane = lane_of(spec)
    assert reasons(lane.process(log).dead_letters) == [(100, "clock_jump")]
    assert (lane.counts.aggregated, lane.counts.late) == (299, 0)


def test_without_the_guard_the_rest_of_its_symbol_is_late() -> None:
    """What the setting is for; it is off by default, since a live topic has `max_future_skew`."""
    lane = lane_of(lane_spec(load_settings(Path("config/workers.toml"), environ={})))
    lane.process(one_bad_date())
    assert (lane.counts.aggregated, lane.counts.late) == (101, 199)


PIPELINES: Sequence[tuple[OperatorSpec, ...]] = (
    (),
    (Deduplicate(("price",), 50 * MS, max_ids=4),),
    (Throttle(10 * MS, 2),),
    (Conflate(20 * MS, 20 * MS), Throttle(15 * MS, 1, per_symbol=False)),
)
specs = st.builds(
    guarded,
    scope=st.sampled_from(["key", "key", "partition"]),
    payload=st.sampled_from(["ohlcv", "both"]),
    lateness_ns=st.sampled_from([0, 15 * MS]),
    emit=st.sampled_from(["eager", "final"]),
    pipeline=st.sampled_from(PIPELINES),
)


def expected_of(spec: LaneSpec, log: Sequence[Tick]) -> tuple[Lane, Effects, list[tuple[int, str]], int]:
    """A lane without the guard, given the ticks that a naive guard lets through, as if they had come in that order."""
    passed, contradicted, held = naive(log, JUMP_MS, (spec.lag_ns + spec.lateness_ns) // MS)
    lane = lane_of(replace(spec, max_jump_ns=0))
    effects = lane.process(
        [replace(record(tick.order, tick.key, tick.ts), offset=place) for place, tick in enumerate(passed)]
    )
    for late in effects.late:  # whose offsets are places here
        entry = orjson.loads(late.value or b"")
        object.__setattr__(late, "value", orjson.dumps({**entry, "offset": passed[entry["offset"]].order}))
    return lane, effects, [(suspect.order, "clock_jump") for suspect, _ in contradicted], len(held)


@settings(max_examples=300)
@given(specs, logs, st.data())
def test_batches_and_crashes_change_nothing(spec: LaneSpec, log: list[Tick], data: st.DataObject) -> None:
    """Any log with wrong dates in any batches; a crash goes back to the last commit, and reads on from there."""
    records = [record(tick.order, tick.key, tick.ts) for tick in log]
    lane, done, pending = lane_of(spec), Effects(), Effects()
    changelog: list[OutRecord] = []
    for begin, end in itertools.pairwise([0, *data.draw(cuts(len(records)), "cuts"), len(records)]):
        pending.extend(lane.process([each for each in records[begin:end] if each.offset >= lane.position]))
        assert lane.counts.balance() == 0
        what = data.draw(st.sampled_from(["nothing", "commit", "crash"]), "then")
        if what == "commit":
            changelog += lane.take_changes()
            assert lane.changes_waiting == 0
            done.extend(pending)
            pending = Effects()
        elif what == "crash":
            lane, pending = lane_of(spec), Effects()
            lane.restore(entries_of(changelog), where="test")
            pending.extend(lane.process([each for each in records[:end] if each.offset >= lane.position]))
    done.extend(pending)
    reference, expected, bad, held = expected_of(spec, log)
    assert real_frames(done.frames) == real_frames(expected.frames)
    assert list(map(_entry, done.late)) == list(map(_entry, expected.late))
    assert reasons(done.dead_letters) == bad
    assert lane.counts.aggregated == reference.counts.aggregated
    assert lane.counts.held == held + reference.counts.held
    stored = entries_of(changelog + lane.take_changes())
    assert sum(1 for key in stored if key.startswith(b"hs")) == held


def _entry(late: OutRecord) -> dict[str, object]:
    found: dict[str, object] = orjson.loads(late.value or b"")
    return found


def test_what_is_held_when_the_input_ends_is_let_go_in_log_order() -> None:
    lane = lane_of(guarded())
    lane.process(timeline("A0 C900 B500"))
    assert (lane.counts.aggregated, lane.counts.held) == (1, 2)
    lane.process([KafkaRecord(lane.position, -1, None, None, ((CONTROL_HEADER, END_OF_INPUT),))])
    assert (lane.counts.aggregated, lane.counts.held, lane.counts.balance()) == (3, 0, 0)
    assert [key for key in entries_of(lane.take_changes()) if key[:1] == b"h"] == [b"hc"]


def test_a_shared_clock_is_moved_only_by_what_is_believed() -> None:
    lane = lane_of(guarded(scope="partition"))
    effects = lane.process(timeline("A0 B9000 A1 A2 B3"))
    assert late_entries(effects.late) == []
    assert reasons(effects.dead_letters) == [(1, "clock_jump")]


# -- corrections ------------------------------------------------------------------------------------------------------

RULES = CorrectionRules("kind", ("cancel",), ("correct",), "id", None)


def message(offset: int, kind: str, **fields: object) -> KafkaRecord:
    value = {"symbol": "A", "kind": kind, "id": 2, **fields}
    return KafkaRecord(offset, START_MS, b"A", orjson.dumps(value))


def corrected(*messages: KafkaRecord, then: int) -> tuple[Lane, Effects]:
    """A trade that is held, messages about it, a crash, and the next trade of the symbol."""
    spec = guarded(corrections=RULES, payload="both")
    lane = lane_of(spec)
    effects = lane.process([record(0, "A", 0, id=1), record(1, "A", 5_000, id=2), *messages])
    changelog = lane.take_changes()
    lane = lane_of(spec)
    lane.restore(entries_of(changelog), where="test")
    offset = 2 + len(messages)
    effects.extend(lane.process([record(offset, "A", then, id=3), record(offset + 1, "A", then + 90, id=4)]))
    assert lane.counts.balance() == 0
    return lane, effects


def test_a_held_trade_that_is_cancelled_never_joins() -> None:
    lane, effects = corrected(message(2, "cancel"), then=5_001)
    assert reasons(effects.dead_letters) == [(1, "clock_jump")]
    assert dict(effects.dead_letters[0].headers)[MESSAGE_HEADER].startswith(b"cancelled by the message at offset 2, ")
    assert (lane.counts.corrected, lane.counts.rejected, effects.late) == (1, 1, [])


def test_a_held_trade_that_is_corrected_joins_with_its_new_price() -> None:
    lane, effects = corrected(message(2, "correct", price=7, size="3"), then=5_001)
    assert (lane.counts.corrected, lane.counts.rejected, effects.late) == (1, 0, [])
    bar = next(bar for frame in effects.frames if (bar := orjson.loads(frame.value or b""))["start"] == 5_000)
    assert (bar["open"], bar["volume"], bar["count"]) == (7, 4, 2)
    assert (bar["items"][0]["price"], bar["items"][0]["size"]) == (7, "3")


def test_a_corrected_trade_that_is_not_believed_is_written_down_as_it_came() -> None:
    _, effects = corrected(message(2, "correct", price=7, size=3), then=50)
    assert reasons(effects.dead_letters) == [(1, "clock_jump")]
    assert effects.dead_letters[0].value == record(1, "A", 5_000, id=2).value


def test_a_message_about_another_trade_is_none_about_the_held_one() -> None:
    _, effects = corrected(message(2, "cancel", id=1), message(3, "cancel", id=9), then=5_001)
    assert effects.corrected == {"cancel": 1}
    assert effects.late_by_reason == {"uncorrectable": 1}
    assert effects.dead_letters == []


# -- state and settings -----------------------------------------------------------------------------------------------


def held_state() -> dict[bytes, bytes]:
    lane = lane_of(guarded())
    lane.process(timeline("A0 B900"))
    return entries_of(lane.take_changes())


@pytest.mark.parametrize("kind", [Lane, NativeLane])
def test_turning_it_off_is_refused_while_a_tick_is_held_and_possible_after(kind: type[Lane]) -> None:
    off = guarded(max_jump_ns=0)
    with pytest.raises(StateMismatchError, match=r"holds 1 ticks that tick\.max_jump held back, and it is off now"):
        kind(off, Input(TOPIC, 0, 1)).restore(held_state(), where="test")
    lane = lane_of(guarded())
    lane.process(timeline("A0 B900 B901"))
    again = kind(off, Input(TOPIC, 0, 1))
    again.restore(entries_of(lane.take_changes()), where="test")
    assert again.counts.aggregated == 3


def test_turning_it_on_over_state_made_without_it_is_possible() -> None:
    fast = NativeLane(guarded(max_jump_ns=0), Input(TOPIC, 0, 1))
    fast.process(list(batches(timeline("A0 A1 B2"), [])))
    lane = lane_of(guarded())
    lane.restore(entries_of(fast.take_changes()), where="test")
    assert lane.counts.aggregated == 3


def test_damaged_state_is_named() -> None:
    entries = held_state()
    entries[b"hsB"] = b"\x01"
    with pytest.raises(StateFormatError, match=r"the changelog test holds ticks that tick\.max_jump held back"):
        lane_of(guarded()).restore(entries, where="test")


def test_the_compiled_lane_says_no() -> None:
    assert supports(guarded(max_jump_ns=0))
    assert not supports(guarded())
    assert not takes_batches(guarded())


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"tick.max_jump": "1s"}, r"max_jump must be 0s or at least lag \+ allowed_lateness = 2s"),
        ({"tick.max_jump": "1d", "tick.format": "frames"}, "means nothing where bars are made of frames"),
    ],
)
def test_settings_that_can_not_be(overrides: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_settings(environ={}, overrides=overrides)


# -- looking into it --------------------------------------------------------------------------------------------------


def test_an_investigation_tells_what_is_held_and_what_was_not_believed() -> None:
    found = Investigation(guarded(), Input(TOPIC, 0, 1), "A", 0, 10_000 * MS)
    found.take(timeline("A0 A900"))
    [held] = found.still_held()
    assert (held.offset, held.fate) == (1, "held")
    assert held.detail.startswith("its time is ahead by more than tick.max_jump")
    found.take([record(2, "A", 1), record(3, "A", 2_000), record(4, "A", 2_001)])
    fates = {tick.offset: (tick.fate, tick.reason) for story in found.windows.values() for tick in story.ticks}
    assert fates == {
        0: ("joined", None),
        1: ("rejected", "clock_jump"),
        2: ("joined", None),
        3: ("joined", None),
        4: ("joined", None),
    }
    assert list(found.still_held()) == []
