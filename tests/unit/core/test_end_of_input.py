"""The end of the input, a record of the log: what waits comes out, once, and nothing that came out begins anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from tests.support.raw_batches import build_batch
from tests.unit.core.test_lane import TOPIC, KafkaRecord
from workers.apps.inspect.tail import frame_line
from workers.apps.inspect.witness import Investigation
from workers.core.effects import Effects
from workers.core.formats.corrections import CorrectionRules
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import MESSAGE_HEADER
from workers.core.pipeline.throttle import Conflate
from workers.core.spec import LaneSpec
from workers.core.ticks import CONTROL_HEADER, END_OF_INPUT
from workers.core.windows.kinds import SessionWindows, TumblingWindows
from workers.native.lane import NativeLane
from workers.testing import TestDriver

S = 10**9
SPEC = LaneSpec(window=TumblingWindows(5 * S), lag_ns=2 * S)
CONTROL = ((CONTROL_HEADER, END_OF_INPUT),)


def driver_with(spec: LaneSpec, *ticks: tuple[str, float], partitions: int = 1) -> TestDriver:
    driver = TestDriver(spec, partitions=partitions)
    send(driver, *ticks)
    return driver


def send(driver: TestDriver, *ticks: tuple[str, float]) -> None:
    for symbol, second in ticks:
        driver.send(symbol, int(second * 1_000), price=100 + second, size=1)


def brief(driver: TestDriver, *, provisional: bool = False) -> list[str]:
    driver.commit()
    return [
        f"{frame['key']} {frame['start'] / 1000:g} x{frame['count']} rev {frame['rev']} {frame['status']} "
        f"{frame['trigger']}"
        for frame in driver.frames(provisional=provisional)
    ]


def test_with_emit_final_every_window_of_every_symbol_comes_out_by_symbol_and_start() -> None:
    driver = driver_with(replace(SPEC, emit="final", lateness_ns=20 * S), ("B", 1), ("A", 7), ("A", 1), ("B", 8))
    assert brief(driver) == []
    driver.end_of_input()
    assert brief(driver) == [
        "A 0 x1 rev 0 final end",
        "A 5 x1 rev 0 final end",
        "B 0 x1 rev 0 final end",
        "B 5 x1 rev 0 final end",
    ]
    assert (driver.counts().control, driver.counts().balance()) == (1, 0)


def test_what_came_out_already_is_settled_without_another_frame() -> None:
    driver = driver_with(replace(SPEC, lateness_ns=20 * S), ("A", 1), ("A", 8))
    assert brief(driver) == ["A 0 x1 rev 0 closed watermark"]
    driver.end_of_input()
    driver.end_of_input()
    assert brief(driver)[1:] == ["A 5 x1 rev 0 final end"]


@pytest.mark.parametrize("scope", ["key", "partition"])
def test_exactly_the_times_before_the_end_of_the_last_window_are_late(scope: Any) -> None:
    driver = driver_with(replace(SPEC, scope=scope, lateness_ns=3 * S), ("A", 1))
    driver.end_of_input()
    driver.rebalance()  # the clock is part of the stored state
    send(driver, ("A", 4.999), ("A", 5), ("A", 1))
    driver.end_of_input()
    assert brief(driver) == ["A 0 x1 rev 0 final end", "A 5 x1 rev 0 final end"]
    assert [(late["ts"], late["late_by_ns"]) for late in driver.late()] == [(4_999, 999_999), (1_000, 4 * S - 1)]


def test_the_same_file_again_is_late_and_the_next_days_goes_on() -> None:
    day = [("A", 1), ("B", 2), ("A", 12), ("B", 13)]
    driver = driver_with(replace(SPEC, emit="final"), *day)
    driver.end_of_input()
    first = brief(driver)
    send(driver, *day)
    driver.end_of_input()
    assert brief(driver) == first
    assert driver.counts().late == len(day)
    driver.crash()
    send(driver, *((symbol, second + 86_400) for symbol, second in day))
    driver.end_of_input()
    assert [line.replace("864", "") for line in brief(driver)[len(first) :]] == [
        "A 00 x1 rev 0 final watermark",
        "B 00 x1 rev 0 final watermark",
        "A 10 x1 rev 0 final end",
        "B 10 x1 rev 0 final end",
    ]


def test_nothing_is_shown_provisionally_any_more() -> None:
    driver = driver_with(replace(SPEC, emit_partial=True), ("A", 1), ("B", 30))
    driver.end_of_input()
    driver.flush()
    driver.advance("1h")
    assert brief(driver, provisional=True) == [
        "A 0 x1 rev 0 provisional idle",  # B's progress had made it overdue before
        "A 0 x1 rev 0 final end",
        "B 30 x1 rev 0 final end",
    ]


def test_a_partition_ends_alone() -> None:
    driver = driver_with(SPEC, ("AAPL", 1), ("MSFT", 1), partitions=2)
    home = next(number for number in range(2) if driver.log(number)[0].key == b"AAPL")
    driver.end_of_input([home])
    assert {line.split()[0] for line in brief(driver)} == {line.key.decode() for line in driver.log(home) if line.key}


def test_sessions_that_are_open_end_where_their_ticks_did() -> None:
    spec = LaneSpec(window=SessionWindows(5 * S), lag_ns=2 * S, lateness_ns=4 * S)
    driver = driver_with(spec, ("A", 0), ("A", 3), ("A", 20))
    driver.end_of_input()
    send(driver, ("A", 24.999), ("A", 25), ("A", 6))
    driver.end_of_input()
    assert brief(driver) == [
        "A 0 x2 rev 0 final watermark",
        "A 20 x1 rev 0 final end",
        "A 25 x1 rev 0 final end",
    ]
    assert driver.counts().late == 2


def test_gaps_between_bars_are_filled_and_the_next_bar_fills_on_from_the_last() -> None:
    driver = driver_with(
        replace(SPEC, window=replace(SPEC.window, fill_gaps_ns=60 * S), lateness_ns=30 * S), ("A", 1), ("A", 12)
    )
    driver.end_of_input()
    driver.rebalance()
    send(driver, ("A", 27), ("A", 70))
    assert brief(driver)[:5] == [
        "A 0 x1 rev 0 closed watermark",
        "A 5 x0 rev 0 closed watermark",
        "A 10 x1 rev 0 final end",
        "A 15 x0 rev 0 closed watermark",
        "A 20 x0 rev 0 closed watermark",
    ]


def test_a_trade_of_a_window_that_has_ended_can_not_be_corrected() -> None:
    rules = CorrectionRules("kind", ("X",), ("C",), "id")
    driver = TestDriver(replace(SPEC, lateness_ns=60 * S, corrections=rules))
    driver.send("A", 1_000, price=5, size=1, id=1)
    driver.end_of_input()
    for _ in range(2):
        driver.send("A", 1_000, price=5, size=1, id=1, kind="X")
        driver.rebalance()
    assert brief(driver) == ["A 0 x1 rev 0 final end"]
    assert [late["reason"] for late in driver.late()] == ["uncorrectable", "uncorrectable"]


def test_what_conflation_holds_back_is_in_the_last_windows() -> None:
    driver = driver_with(replace(SPEC, pipeline=(Conflate(S, 10 * S),)), ("B", 1), ("A", 1.1), ("A", 1.2), ("A", 7.5))
    driver.end_of_input()
    assert brief(driver) == [
        "A 0 x1 rev 0 final watermark",  # as at its due time: the tick that was held for 7 s moves the clock
        "A 5 x1 rev 0 final end",
        "B 0 x1 rev 0 final end",
    ]
    counts = driver.counts()
    assert (counts.held, counts.throttled, counts.aggregated, counts.balance()) == (0, 1, 3, 0)


@pytest.mark.parametrize(
    ("key", "headers", "said"),
    [
        (b"A", CONTROL, "key b'A'; the only control record known has no key"),
        (None, (), "a tombstone"),
        (None, ((CONTROL_HEADER, b"pause"),), "workers.control b'pause'"),
        (None, CONTROL * 2, "that header once"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "frames", "corrections"])
def test_what_is_not_quite_a_control_record_is_a_dead_letter(
    kind: str, key: bytes | None, headers: tuple[tuple[str, bytes], ...], said: str
) -> None:
    changes: dict[str, Any] = {
        "json": {},
        "frames": {"format": "frames"},
        "corrections": {"corrections": CorrectionRules("kind", ("X",), ("C",), "id")},
    }[kind]
    lane = Lane(replace(SPEC, **changes), Input(TOPIC, 0, 1))
    effects = lane.process([KafkaRecord(0, -1, key, None, headers)])
    assert effects.rejected == {"malformed_json": 1}
    assert said in dict(effects.dead_letters[0].headers)[MESSAGE_HEADER].decode()
    assert lane.process([KafkaRecord(1, -1, None, None, (("traceparent", b"00"), *CONTROL))]).control == 1


def test_many_symbols_end_in_order_in_both_lanes_and_each_goes_on_from_the_others_state() -> None:
    """More symbols than there is room for in a round; the state that is stored after the end is the same."""
    symbols = [f"S{number * 7919 % 30_000}" for number in range(30_000)] + ["ÜBER-€", "\U0001f600", "\uffee"]
    ticks = [tick(number, symbol, number % 9) for number, symbol in enumerate(symbols)]
    end = KafkaRecord(len(ticks), -1, None, None, CONTROL)
    lanes: tuple[Lane, Lane] = (Lane(SPEC, Input(TOPIC, 0, 1)), NativeLane(SPEC, Input(TOPIC, 0, 1)))
    found: list[Effects] = []
    stored: list[list[OutRecord]] = []
    for lane in lanes:
        effects = lane.process([build_batch([*ticks, end])] if isinstance(lane, NativeLane) else [*ticks, end])
        found.append(effects)
        stored.append(lane.take_changes())
    assert found[0] == found[1]
    assert stored[0] == stored[1]
    keys = [frame.key.decode() for frame in found[1].frames if frame.key and b'"end"' in (frame.value or b"")]
    assert keys == sorted(symbols)

    more = [tick(len(ticks) + 1 + number, symbol, second) for number, (symbol, second) in enumerate(later(symbols))]
    new: tuple[Lane, Lane] = (Lane(SPEC, Input(TOPIC, 0, 1)), NativeLane(SPEC, Input(TOPIC, 0, 1)))
    for lane in new:
        lane.restore(entries_of(stored[0]), where="test")
    assert new[0].process(more) == new[1].process([build_batch(more)]) == lanes[0].process(more)
    assert new[0].take_changes() == new[1].take_changes() == lanes[0].take_changes()


def later(symbols: Sequence[str]) -> list[tuple[str, float]]:
    return [(symbol, second) for symbol in symbols[:500] for second in (4.999, 9.999, 10.5, 13)]


def tick(offset: int, symbol: str, second: float) -> KafkaRecord:
    value = orjson.dumps({"symbol": symbol, "ts": int(second * 1_000), "price": 1.5, "size": 2})
    return KafkaRecord(offset, -1, symbol.encode(), value)


def test_explain_names_the_end_of_the_input_as_what_set_the_clock() -> None:
    looked = Investigation(SPEC, Input(TOPIC, 0, 1), "A", 0, S)
    looked.take([tick(0, "A", 1), KafkaRecord(1, 77, None, None, CONTROL), tick(2, "A", 2)])
    (story,) = looked.touching()
    assert [(frame.trigger, frame.offset, frame.clock and frame.clock.is_end) for frame in story.frames] == [
        ("end", 1, True)
    ]
    assert [fate.fate for fate in story.ticks] == ["joined", "late"]
    assert "because of the end of the input at offset 1 " in story.ticks[1].detail
    assert looked.over_ms == 77


def test_tail_says_what_a_control_record_among_frames_is() -> None:
    record: Any = SimpleNamespace(partition=2, key=None, value=None, headers=CONTROL)
    assert frame_line(record, now_ns=0) == "[p=2] end of the input, for an application that reads these frames"
