"""No key is judged by others' progress, unless a time to live is asked for; and nothing is kept for expiry then."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.support.raw_batches import batches
from tests.unit.core.test_lane import TOPIC, KafkaRecord
from workers.core.effects import Effects
from workers.core.lane import Input, Lane, entries_of
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import OperatorSpec
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.spec import LaneSpec
from workers.core.windows.engine import NEVER
from workers.core.windows.kinds import TumblingWindows
from workers.errors import ConfigError
from workers.native.choose import make_lane, supports
from workers.settings import load_settings
from workers.settings.lane import lane_spec

S = 10**9
DAY = 86_400 * S
START_MS = 1_735_999_201_000
HOUR_MS = 3_600_000


def three_days_by_symbol() -> list[KafkaRecord]:
    """A tick an hour for three days: all of AAA's, then all of BBB's."""
    records = []
    for offset in range(144):
        symbol = "AAA" if offset < 72 else "BBB"
        fields = {"symbol": symbol, "ts": START_MS + offset % 72 * HOUR_MS, "price": 100 + offset % 72, "size": 1}
        fields["id"] = offset
        records.append(KafkaRecord(offset, START_MS + 400 * HOUR_MS, symbol.encode(), orjson.dumps(fields)))
    return records


def run(spec: LaneSpec, *, native: bool) -> tuple[Lane, Effects]:
    """The log in four batches, with a crash after each."""
    records, changelog, found = three_days_by_symbol(), [], Effects()
    lane = make_lane(spec, Input(TOPIC, 0, 1), native)
    for begin in range(0, 144, 36):
        some = records[begin : begin + 36]
        found.extend(lane.process(list(batches(some, [5, 9])) if native else some))
        changelog += lane.take_changes()
        lane = make_lane(spec, Input(TOPIC, 0, 1), native)
        lane.restore(entries_of(changelog), where="test")
    return lane, found


DEFAULTS = lane_spec(load_settings(Path("config/workers.toml"), environ={}))


@pytest.mark.parametrize("native", [False, True])
def test_a_file_ordered_by_symbol_loses_nothing(native: bool) -> None:
    lane, effects = run(DEFAULTS, native=native)
    assert (lane.counts.aggregated, lane.counts.late) == (144, 0)
    assert len([frame for frame in effects.frames if b'"key":"BBB"' in (frame.value or b"")]) == 71 + 1
    assert lane.key_count == 2


@pytest.mark.parametrize("native", [False, True])
def test_a_time_to_live_still_forgets_and_says_expired(native: bool) -> None:
    settings = load_settings(environ={}, overrides={"window.key_ttl": "1d"})
    lane, effects = run(lane_spec(settings), native=native)
    assert effects.late_by_reason == {"expired": 48}
    assert lane.counts.aggregated == 96


@pytest.mark.parametrize(
    "operator",
    [Deduplicate(("id",), 600 * S), Throttle(S), Conflate(HOUR_MS * 10**6, 2 * S)],
    ids=lambda operator: type(operator).__name__,
)
def test_no_stage_takes_a_tick_for_others_progress(operator: OperatorSpec) -> None:
    lane, effects = run(LaneSpec(pipeline=(operator,)), native=False)
    assert lane.counts.aggregated + lane.counts.held == 144
    assert effects.late == []


def test_an_id_is_remembered_however_far_others_have_gone() -> None:
    """What a symbol of its own clock would still be told to be a repeat is one, whoever traded in between."""
    lane = Lane(LaneSpec(pipeline=(Deduplicate(("id",), 600 * S),)), Input(TOPIC, 0, 1))
    ticks = [("A", 0), ("B", 400 * HOUR_MS), ("A", 0)]
    effects = lane.process(
        [
            KafkaRecord(
                *(offset, START_MS + 500 * HOUR_MS, symbol.encode()),
                orjson.dumps({"symbol": symbol, "ts": START_MS + ms, "price": 1, "size": 1, "id": symbol}),
            )
            for offset, (symbol, ms) in enumerate(ticks)
        ]
    )
    assert lane.counts.deduplicated == 1
    assert effects.taken_out == {("duplicate", "1:deduplicate"): 1}


def test_nothing_is_kept_for_an_expiry_that_never_comes() -> None:
    reference, _ = run(DEFAULTS, native=False)
    assert reference._engine._expiry == []
    assert reference._engine._least_expired_ns == NEVER


@pytest.mark.parametrize("sign", [1, -1])
def test_times_at_both_ends_of_64_bits_are_as_near_as_any(sign: int) -> None:
    """The native lane must not compute a time to live that is none."""
    spec = LaneSpec(window=TumblingWindows(S))
    far_ms = sign * 9_160_000_000_000
    log = [
        KafkaRecord(n, -1, key.encode(), orjson.dumps({"symbol": key, "ts": ts, "price": 1, "size": 1}))
        for n, (key, ts) in enumerate([("A", far_ms), ("B", -far_ms), ("A", far_ms + 3_000), ("B", 3_000 - far_ms)])
    ]
    reference, fast = (make_lane(spec, Input(TOPIC, 0, 1), native) for native in (False, True))
    assert reference.process(log) == fast.process(list(batches(log, [])))
    assert reference.counts.aggregated == fast.counts.aggregated == 4
    assert reference.take_changes() == fast.take_changes()


def test_state_made_under_another_time_to_live_is_named_as_users_write_it() -> None:
    lane = Lane(LaneSpec(), Input(TOPIC, 0, 1))
    stored = entries_of(Lane(LaneSpec(key_ttl_ns=DAY), Input(TOPIC, 0, 1)).take_changes())
    found, _ = lane.peek(stored, where="test")
    assert found is not None
    assert lane.differing_settings(found) == ["window.key_ttl was 1d, is never"]


def test_the_setting_is_never_or_a_duration() -> None:
    assert load_settings(environ={}).window.key_ttl is None
    assert load_settings(environ={}, overrides={"window.key_ttl": "never"}).window.key_ttl is None
    assert load_settings(environ={}, overrides={"window.key_ttl": "3d"}).window.key_ttl == 3 * DAY
    with pytest.raises(ConfigError, match=r'window\.key_ttl = "often": .*expected never, or duration 0s to 366d'):
        load_settings(environ={}, overrides={"window.key_ttl": "often"})
    assert supports(DEFAULTS)
