"""What a person sees of a record, and what a program gets."""

from __future__ import annotations

import orjson
import pytest
from aiokafka.structs import ConsumerRecord

from workers.apps.inspect.tail import dead_letter_line, frame_line, json_line, late_line, unit_notice
from workers.commands.common import printable
from workers.core.ledger import dead_letter, dropped_record
from workers.core.reasons import Reason
from workers.core.ticks import Rejection, Tick
from workers.times import describe_duration

NOW_NS = 1_700_000_400 * 1_000_000_000  # 2023-11-14T22:20:00Z
FRAME = {
    "key": "AAPL",
    "start": 1_700_000_000_000,
    "end": 1_700_000_005_000,
    "rev": 0,
    "status": "final",
    "trigger": "watermark",
    "open": 1.5,
    "high": 2.0,
    "low": 1.25,
    "close": 2.0,
    "volume": 30.0,
    "vwap": 1.75,
    "count": 3,
    "first_ts": 1_700_000_000_100,
    "last_ts": 1_700_000_004_900,
}


def record(
    value: bytes | None, key: bytes | None = b"AAPL", headers: tuple[tuple[str, bytes], ...] = ()
) -> ConsumerRecord:
    return ConsumerRecord("t", 1, 7, 0, 0, key, value, None, -1, -1, headers)


def frame(**changed: object) -> ConsumerRecord:
    return record(orjson.dumps({**FRAME, **changed}))


def test_a_final_frame_is_one_plain_line() -> None:
    expected = "[p=1] AAPL 22:13:20..22:13:25 count=3 o=1.5 h=2 l=1.25 c=2 v=30"
    assert frame_line(frame(), now_ns=NOW_NS) == expected


def test_frames_without_ticks_say_so_and_what_they_are_there_for() -> None:
    none: dict[str, object] = {"count": 0, "first_ts": None, "last_ts": None}
    filled = frame(**none, volume=0.0, vwap=None, filled=True)
    assert frame_line(filled, now_ns=NOW_NS).endswith(" count=0 o=1.5 h=2 l=1.25 c=2 v=0 filled")
    none |= dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"))
    taken_back = frame(**none, status="closed", trigger="merged", rev=1)
    assert frame_line(taken_back, now_ns=NOW_NS).endswith("22:13:25 count=0 empty (merged) closed rev=1")


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({"status": "provisional", "trigger": "idle"}, " v=30 provisional (idle)"),
        ({"status": "closed"}, " v=30 closed"),
        ({"status": "final", "rev": 2, "trigger": "late"}, " v=30 rev=2"),
        ({"status": "provisional", "trigger": "timeout", "rev": 1}, " v=30 provisional (timeout) rev=1"),
    ],
)
def test_what_is_not_plain_final_is_said(changed: dict[str, object], end: str) -> None:
    assert frame_line(frame(**changed), now_ns=NOW_NS).endswith(end)


def test_another_days_window_shows_its_date_and_a_short_one_its_fraction() -> None:
    old = frame(start=1_600_000_000_000, end=1_600_000_000_200)
    assert " 2020-09-13 12:26:40..12:26:40.200 " in frame_line(old, now_ns=NOW_NS)
    midnight = frame(start=1_700_006_395_000, end=1_700_006_400_000)
    assert " 23:59:55..2023-11-15 00:00:00 " in frame_line(midnight, now_ns=NOW_NS)


def test_results_of_another_aggregation_are_shown_by_name() -> None:
    value = {name: FRAME[name] for name in ("key", "start", "end", "rev", "status", "trigger", "count")}
    shown = frame_line(record(orjson.dumps({**value, "median": 2.5, "top": [1, 2], "items": [{}, {}]})), now_ns=NOW_NS)
    assert shown.endswith(" count=3 median=2.5 top=[1,2] items=2")


@pytest.mark.parametrize("value", [None, b"", b"[]", b"\xff\x00", b'{"start":"x"}', b'{"start":1,"end":2}', b"1e999"])
def test_what_is_no_frame_is_shown_all_the_same(value: bytes | None) -> None:
    assert frame_line(record(value), now_ns=NOW_NS).endswith("(not a frame)")
    assert late_line(record(value), now_ns=NOW_NS, unit="ms").endswith("(not a late tick)")
    assert dead_letter_line(record(value)).startswith("[p=1] no reason given")


def test_times_beyond_the_calendar_do_not_end_the_tail() -> None:
    assert "(year:146,140,482)" in frame_line(frame(start=2**62, end=2**62 + 1), now_ns=NOW_NS)


LATE = {
    "key": "AAPL",
    "ts": 1_700_000_003_500_250,
    "reason": "watermark",
    "late_by_ns": 7_500_000_000_000,
    "start": 1_700_000_000_000,
    "end": 1_700_000_005_000,
    "topic": "ticks",
    "partition": 3,
    "offset": 17,
}


def test_a_late_ticks_window_shows_the_unit_that_the_workers_have() -> None:
    for worker, ts in (("us", 1_700_000_003_500_250), ("s", 1_700_000_003), ("ns", 1_700_000_003_500_250_000)):
        late = record(orjson.dumps({**LATE, "ts": ts}))
        for reader in ("s", "ms", "us", "ns"):
            line = late_line(late, now_ns=NOW_NS, unit=reader)
            assert line.startswith("[p=1] AAPL 22:13:23"), (worker, reader)
            assert " late by 2h 5m (watermark), window 22:13:20..22:13:25" in line
            notice = unit_notice(late, reader)
            assert (notice is None) is (reader == worker)
            assert notice is None or f"timestamp_unit is {worker}, not {reader}" in notice


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (250, "250ns"),
        (1_700_000_000, "1700ms"),
        (1_046_237_000, "1.046237s"),
        (-59_000_000_000, "-59s"),
        (90_000_000_000, "1m 30s"),
        (7_200_000_000_001, "2h"),
        (1_769_783_451_046_237_000, "20,483d 14h"),
    ],
)
def test_durations_are_told_in_units_that_people_can_picture(duration_ns: int, text: str) -> None:
    assert describe_duration(duration_ns) == text


def test_a_time_that_no_accepted_tick_can_have_is_shown_as_written() -> None:
    tick = Tick("AAPL", 1_769_783_451_046_237_000, 1.5, 1.0, 17, b"{}", {})
    dropped = dropped_record(tick, "duplicate", "2:deduplicate", {"first_ts": 5}, 1_000, "ticks", 3)
    shown = late_line(record(dropped.value), now_ns=NOW_NS, unit="ms")
    assert "AAPL ts=1769783451046237 (not in ms: give tick.timestamp_unit as the workers have it) duplicate" in shown


def test_a_tick_that_an_operator_dropped_says_which_why_and_where_from() -> None:
    tick = Tick("AAPL", 1_700_000_003_500_000_000, 1.5, 1.0, 17, b"{}", {})
    dropped = dropped_record(tick, "duplicate", "2:deduplicate", {"first_ts": 5}, 1_000_000, "ticks", 3)
    assert late_line(record(dropped.value), now_ns=NOW_NS, unit="ms") == (
        "[p=1] AAPL 22:13:23.500 duplicate, by operator 2:deduplicate, from ticks[3] offset 17"
    )


def test_a_late_tick_says_how_late_why_and_where_from() -> None:
    late = {
        "key": "AAPL",
        "ts": 1_700_000_003_500,
        "reason": "behind_watermark",
        "late_by_ns": 1_200_000_000,
        "watermark_ns": 0,
        "start": 1_700_000_000_000,
        "end": 1_700_000_005_000,
        "topic": "ticks",
        "partition": 3,
        "offset": 17,
        "tick": {},
    }
    assert late_line(record(orjson.dumps(late)), now_ns=NOW_NS, unit="ms") == (
        "[p=1] AAPL 22:13:23.500 late by 1200ms (behind_watermark), window 22:13:20..22:13:25, from ticks[3] offset 17"
    )


def letter() -> ConsumerRecord:
    origin = record(b'\x1b[2J{"a":\xff', key=None)
    out = dead_letter(Rejection(Reason.MALFORMED_JSON, "unexpected character", origin), "ticks", 3)
    return record(out.value, out.key, out.headers)


def test_a_dead_letter_says_why_and_what_it_was() -> None:
    assert dead_letter_line(letter()) == (
        '[p=1] malformed_json ticks[3] offset 7 key=null: unexpected character | \x1b[2J{"a":\\xff'
    )
    assert orjson.loads(json_line(letter(), ledger=True)) == {
        "reason": "malformed_json",
        "message": "unexpected character",
        "topic": "ticks",
        "partition": 3,
        "offset": 7,
        "key": None,
        "value": '\x1b[2J{"a":\\xff',
    }


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b'{"a": 1.50}', b'{"a": 1.50}'),
        (b'{\n"a": 1}', b'{"a":1}'),
        (b"not json", b'"not json"'),
        (b"\xff", b'"\\\\xff"'),
        (None, b"null"),
    ],
)
def test_a_program_gets_one_line_of_json_for_any_value(value: bytes | None, line: bytes) -> None:
    assert json_line(record(value), ledger=False) == line


def test_nothing_that_is_shown_can_drive_a_terminal() -> None:
    hostile = "A\x1b[2J\r\n\x9b\u202e\u200b\x07B\ud800é日🚀\u00a0x"
    shown = printable(hostile)
    assert shown.isprintable()
    assert shown == "A\\x1b[2J\\r\\n\\x9b\\u202e\\u200b\\x07B\\ud800é日🚀 x"
    line = frame_line(frame(key=hostile.replace("\ud800", "")), now_ns=NOW_NS)
    assert printable(line).isprintable()
