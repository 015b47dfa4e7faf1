"""A unit too small makes times of 1970: they are rejected, and the message says which unit would fit."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import date

import orjson
import pytest

from tests.support.raw_batches import batches
from tests.unit.core.test_lane import TOPIC, KafkaRecord
from tests.unit.core.windows.test_bars_from_bars import SPEC as FRAMES
from workers.core.effects import Effects
from workers.core.formats.corrections import CorrectionRules
from workers.core.formats.json import tick_decoder
from workers.core.lane import Input, Lane
from workers.core.ledger import MESSAGE_HEADER, REASON_HEADER
from workers.core.pipeline.pipeline import Map
from workers.core.spec import LaneSpec
from workers.core.ticks import Rejection, Tick, TickFormat
from workers.errors import CallbackError
from workers.native.choose import make_lane
from workers.settings import load_settings
from workers.settings.lane import lane_spec
from workers.times import parse_instant

SENT_MS = 1_767_225_600_000  # the day the files are sent: 2026-01-01
IN_SECONDS = "ts\n1736000000\n1736003600\n1736007200\n1736099999\n"
MS_THEN_US = "ts\n1735689540123\n1735689599123\n1735689600123456\n1735689660123456\n1735689720123456\n"
GUARDED = TickFormat(min_time_ns=parse_instant("1990-01-01"))


def records_of(text: str) -> list[KafkaRecord]:
    return [
        KafkaRecord(offset, SENT_MS, b"A", orjson.dumps({"symbol": "A", "ts": int(row["ts"]), "price": 1, "size": 1}))
        for offset, row in enumerate(csv.DictReader(io.StringIO(text)))
    ]


def run(unit: str, records: Sequence[KafkaRecord], *, native: bool) -> tuple[Lane, Effects]:
    """What a worker's lane with default settings makes of the records, whichever lane it is."""
    spec = lane_spec(load_settings(environ={}, overrides={"tick.timestamp_unit": unit}))
    lane = make_lane(spec, Input(TOPIC, 0, 1), native)
    return lane, lane.process(list(batches(records, [])) if native else records)


def letters(effects: Effects) -> list[tuple[str, str]]:
    headers = [dict(letter.headers) for letter in effects.dead_letters]
    return [(each[REASON_HEADER].decode(), each[MESSAGE_HEADER].decode()) for each in headers]


@pytest.mark.parametrize("native", [False, True])
def test_seconds_read_as_milliseconds_make_no_bar_and_the_message_names_the_unit(native: bool) -> None:
    lane, effects = run("ms", records_of(IN_SECONDS), native=native)
    assert (lane.counts.rejected, lane.counts.aggregated, effects.frames) == (4, 0, [])
    assert letters(effects)[0] == (
        "timestamp_out_of_range",
        "ts is 1736000000; as ms (tick.timestamp_unit) that is 1970-01-21, earlier than tick.min_time 1990-01-01; "
        "the unit may be wrong: read as s it would be 2025-01-04",
    )


@pytest.mark.parametrize("native", [False, True])
def test_a_file_that_changes_from_ms_to_us_loses_the_part_that_is_read_wrongly_with_a_word(native: bool) -> None:
    lane, effects = run("us", records_of(MS_THEN_US), native=native)
    assert (lane.counts.rejected, lane.counts.aggregated) == (2, 3)
    assert all(b'"start":17356896' in (frame.value or b"") for frame in effects.frames)
    assert [reason for reason, _ in letters(effects)] == ["timestamp_out_of_range"] * 2
    assert letters(effects)[0][1].endswith("the unit may be wrong: read as ms it would be 2024-12-31")
    # and with the other unit the other part is named
    lane, effects = run("ms", records_of(MS_THEN_US), native=native)
    assert (lane.counts.rejected, lane.counts.aggregated) == (3, 2)
    assert letters(effects)[0][1].endswith(
        "it does not fit 64-bit nanoseconds since 1970; the unit may be wrong: read as us it would be 2025-01-01"
    )


def test_the_bound_itself_is_taken_and_what_is_before_it_is_not() -> None:
    form = TickFormat(unit="ns", min_time_ns=1_000)

    def decoded(ts: object) -> Tick | Rejection:
        value = orjson.dumps({"symbol": "A", "ts": ts, "price": 1, "size": 1})
        return tick_decoder(form)(KafkaRecord(0, SENT_MS, b"A", value))

    assert isinstance(decoded(1_000), Tick)
    assert isinstance(decoded(999), Rejection)
    early = decoded("1970-01-01T00:00:00Z")
    assert isinstance(early, Rejection)
    assert early.message == "ts is '1970-01-01T00:00:00Z'; earlier than tick.min_time 1970-01-01T00:00:00.000001Z"


def test_without_a_bound_a_library_may_have_any_time() -> None:
    value = orjson.dumps({"symbol": "A", "ts": -1, "price": 1, "size": 1})
    assert isinstance(tick_decoder(TickFormat())(KafkaRecord(0, SENT_MS, b"A", value)), Tick)


def test_trades_that_can_be_corrected_are_judged_alike_and_a_cancel_has_no_time_to_judge() -> None:
    rules = CorrectionRules("kind", ("cancel",), (), "id", None)
    lane = Lane(LaneSpec(GUARDED, corrections=rules), Input(TOPIC, 0, 1))
    trade = {"symbol": "A", "ts": 1_736_000_000, "price": 1, "size": 1, "id": 1}
    cancel = {"symbol": "A", "kind": "cancel", "id": 1, "ts": 1_736_000_000}
    effects = lane.process(
        [KafkaRecord(n, SENT_MS, b"A", orjson.dumps(each)) for n, each in enumerate([trade, cancel])]
    )
    assert [reason for reason, _ in letters(effects)] == ["timestamp_out_of_range"]
    assert effects.late_by_reason == {"uncorrectable": 1}


def test_frames_of_1970_are_rejected_as_well() -> None:
    child = {
        "key": "A",
        "start": 1_736_000_000,
        "end": 1_736_001_000,
        "rev": 0,
        "status": "final",
        "trigger": "watermark",
        "count": 1,
        "first_ts": 1_736_000_000,
        "last_ts": 1_736_000_000,
        **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), 1.0),
    }
    record = KafkaRecord(0, SENT_MS, b"A", orjson.dumps(child))
    guarded = Lane(LaneSpec(GUARDED, FRAMES.window, format="frames"), Input(TOPIC, 0, 1))
    effects = guarded.process([record])
    [(reason, message)] = letters(effects)
    assert reason == "timestamp_out_of_range"
    assert message.startswith("start is 1736000000; as ms that is 1970-01-21, earlier than tick.min_time 1990-01-01")


def one_hour_in_1970(tick: Tick) -> Tick:
    tick.ts_ns = 3_600 * 10**9
    return tick


def test_a_map_may_not_make_such_times_either() -> None:
    lane = Lane(LaneSpec(GUARDED, pipeline=(Map(f"{__name__}:one_hour_in_1970"),)), Input(TOPIC, 0, 1))
    value = orjson.dumps({"symbol": "A", "ts": 1_736_000_000_000, "price": 1, "size": 1})
    with pytest.raises(CallbackError, match=r"expected no time before tick\.min_time 1990-01-01"):
        lane.process([KafkaRecord(0, SENT_MS, b"A", value)])


@pytest.mark.parametrize(
    "written", ["2001-02-03", date(2001, 2, 3), "2001-02-03T00:00:00Z", "2001-02-03T01:00:00+01:00"]
)
def test_the_setting_takes_a_date_or_a_time(written: object) -> None:
    assert load_settings(environ={}, overrides={"tick.min_time": written}).tick.min_time == 981_158_400 * 10**9
