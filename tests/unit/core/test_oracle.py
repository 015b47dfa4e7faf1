"""The oracle against examples worked out by hand, and the strategies against what they promise to reach.

Times in the timelines are seconds, windows are written `[start, end)`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support import strategies
from tests.support.oracle import (
    LARGEST_EVENT_TIME_NS,
    UNIT_NS,
    Config,
    Frame,
    Outcome,
    Record,
    frame_bytes,
    murmur2,
    partition_of,
    run,
    run_topic,
)

S = 10**9
SENT_MS = 4_000_000_000_000
FIVE_SECONDS = Config(size_ns=5 * S, lag_ns=2 * S)


def record(offset: int, symbol: str, second: float, price: str = "10", size: str = "1") -> Record:
    value = f'{{"symbol":{json.dumps(symbol)},"ts":{round(second * 1000)},"price":{price},"size":{size}}}'
    return Record(offset, SENT_MS, symbol.encode(), value.encode())


def timeline(text: str) -> list[Record]:
    """`"A0 A2 B1.5"`: a tick of A at 0 s, then one at 2 s, then one of B at 1.5 s."""
    return [record(offset, word[0], float(word[1:])) for offset, word in enumerate(text.split())]


def raw(value: bytes | None, key: bytes | None = b"A", timestamp_ms: int = SENT_MS) -> Record:
    return Record(0, timestamp_ms, key, value)


def tick(**literals: str) -> bytes:
    members = {"symbol": '"A"', "ts": "0", "price": "1", "size": "1"} | literals
    return ("{" + ",".join(f'"{name}":{literal}' for name, literal in members.items()) + "}").encode()


def reason(record: Record, config: Config = FIVE_SECONDS) -> str | None:
    outcome = run(config, [record])
    return outcome.rejected[0].reason if outcome.rejected else None


def brief(outcome: Outcome, key: str = "A") -> list[str]:
    """Frames as `[0, 5) x3 rev 0 closed watermark`."""
    return [
        f"[{_seconds(frame['start'])}, {_seconds(frame['end'])}) x{frame['count']} "
        f"rev {frame['rev']} {frame['status']} {frame['trigger']}"
        for frame in outcome.frames.get(key, [])
    ]


def _seconds(ms: object) -> str:
    assert isinstance(ms, int)
    return f"{ms / 1000:g}"


def late(outcome: Outcome) -> list[tuple[float, str, float]]:
    return [(each.ts_ns / S, each.reason, each.late_by_ns / S) for each in outcome.late]


def only_frame(config: Config, records: list[Record]) -> Frame:
    outcome = run(config, records, end_of_input=True)
    ((frame,),) = outcome.frames.values()
    return frame


class TestLateness:
    def test_after_a_tick_at_6_with_lag_2_and_lateness_1_everything_up_to_3_is_late(self) -> None:
        config = replace(FIVE_SECONDS, allowed_lateness_ns=S)
        outcome = run(config, timeline("A6 A3.5 A3.0 A2.8 A2.5"))
        assert outcome.aggregated == 2
        assert late(outcome) == [(3.0, "watermark", 0.0), (2.8, "watermark", 0.2), (2.5, "watermark", 0.5)]

    def test_a_late_record_tells_window_watermark_and_position(self) -> None:
        (found,) = run(FIVE_SECONDS, timeline("A12 A6.5"), partition=3).late
        assert (found.offset, found.key, found.partition) == (1, "A", 3)
        assert (found.window_start_ns, found.window_end_ns) == (5 * S, 10 * S)
        assert (found.watermark_ns, found.late_by_ns) == (10 * S, 3_500_000_000)

    def test_a_key_is_not_late_by_another_keys_clock(self) -> None:
        assert run(FIVE_SECONDS, timeline("A100 B1")).late == []

    def test_in_partition_scope_a_key_is_late_by_another_keys_clock(self) -> None:
        outcome = run(replace(FIVE_SECONDS, watermark_scope="partition"), timeline("A100 B98.001 B98 B1"))
        assert late(outcome) == [(98.0, "watermark", 0.0), (1.0, "watermark", 97.0)]

    def test_without_lag_and_lateness_every_tick_is_late_and_no_clock_moves(self) -> None:
        outcome = run(Config(size_ns=5 * S, lag_ns=0), timeline("A10 A3"), end_of_input=True)
        assert late(outcome) == [(10.0, "watermark", 0.0), (3.0, "watermark", 0.0)]
        assert outcome.frames == {}

    def test_a_rejected_tick_moves_no_clock(self) -> None:
        negative = record(0, "A", 100, size="-1")
        outcome = run(FIVE_SECONDS, [negative, record(1, "A", 1)])
        assert outcome.late == []
        assert outcome.aggregated == 1


class TestClosing:
    def test_ticks_0_2_1_6_close_nothing_and_a_tick_at_7_closes_the_first_window(self) -> None:
        assert brief(run(FIVE_SECONDS, timeline("A0 A2 A1 A6"))) == []
        outcome = run(FIVE_SECONDS, timeline("A0 A2 A1 A6 A7"))
        assert outcome.late == []
        assert brief(outcome) == ["[0, 5) x3 rev 0 final watermark"]

    def test_a_tick_on_the_end_of_a_window_belongs_to_the_next(self) -> None:
        outcome = run(FIVE_SECONDS, timeline("A4.999 A5"), end_of_input=True)
        assert brief(outcome) == ["[0, 5) x1 rev 0 final end", "[5, 10) x1 rev 0 final end"]

    def test_one_tick_closes_several_windows_in_order_of_start(self) -> None:
        config = replace(FIVE_SECONDS, lag_ns=20 * S)
        outcome = run(config, timeline("A12 A1 A6 A40"))
        assert brief(outcome) == [
            "[0, 5) x1 rev 0 final watermark",
            "[5, 10) x1 rev 0 final watermark",
            "[10, 15) x1 rev 0 final watermark",
        ]

    def test_windows_before_the_epoch_floor_away_from_zero(self) -> None:
        outcome = run(FIVE_SECONDS, timeline("A-5.001 A-5 A-0.001 A0 A2"))
        assert brief(outcome) == ["[-10, -5) x1 rev 0 final watermark", "[-5, 0) x2 rev 0 final watermark"]
        assert [frame["first_ts"] for frame in outcome.frames["A"]] == [-5001, -5000]

    def test_a_window_of_nanoseconds_has_its_bounds_floored_to_milliseconds(self) -> None:
        config = Config(size_ns=3, lag_ns=0, allowed_lateness_ns=5, unit="ns")
        frame = only_frame(config, [raw(tick(ts="-1"))])
        assert (frame["start"], frame["end"], frame["first_ts"]) == (-1, 0, -1)

    def test_in_partition_scope_one_key_closes_the_windows_of_another(self) -> None:
        outcome = run(replace(FIVE_SECONDS, watermark_scope="partition"), timeline("A1 B6 B7 A6 B12"))
        assert brief(outcome, "A") == ["[0, 5) x1 rev 0 final watermark", "[5, 10) x1 rev 0 final watermark"]
        assert brief(outcome, "B") == ["[5, 10) x2 rev 0 final watermark"]

    def test_the_end_of_input_leaves_windows_alone_that_came_out_already(self) -> None:
        config = replace(FIVE_SECONDS, allowed_lateness_ns=10 * S)
        outcome = run(config, timeline("A1 A7"), end_of_input=True)
        assert brief(outcome) == ["[0, 5) x1 rev 0 closed watermark", "[5, 10) x1 rev 0 final end"]


class TestAllowedLateness:
    CONFIG = replace(FIVE_SECONDS, allowed_lateness_ns=3 * S)

    def test_a_tick_into_a_closed_window_brings_it_out_again_at_once(self) -> None:
        # watermark 5 after A7: threshold 2, so 2 is late and 2.001 is not; 1 is behind the threshold
        outcome = run(self.CONFIG, timeline("A1 A7 A2.001 A2 A4 A5.5"))
        assert brief(outcome) == [
            "[0, 5) x1 rev 0 closed watermark",
            "[0, 5) x2 rev 1 closed late",
            "[0, 5) x3 rev 2 closed late",
        ]
        assert late(outcome) == [(2.0, "watermark", 0.0)]

    def test_a_closed_window_without_ticks_comes_out_first_with_its_first_tick(self) -> None:
        outcome = run(self.CONFIG, timeline("A7 A4 A3"))
        assert brief(outcome) == ["[0, 5) x1 rev 0 closed late", "[0, 5) x2 rev 1 closed late"]

    def test_a_window_that_closes_beyond_its_lateness_is_final_at_once(self) -> None:
        # watermark 7.999 is short of 5 + 3, watermark 8 is not
        assert brief(run(self.CONFIG, timeline("A1 A9.999"))) == ["[0, 5) x1 rev 0 closed watermark"]
        assert brief(run(self.CONFIG, timeline("A1 A10"))) == ["[0, 5) x1 rev 0 final watermark"]

    def test_a_closed_window_says_nothing_more_when_it_becomes_final(self) -> None:
        outcome = run(self.CONFIG, timeline("A1 A7 A10 A40"))
        assert brief(outcome) == [
            "[0, 5) x1 rev 0 closed watermark",
            "[5, 10) x1 rev 0 final watermark",
            "[10, 15) x1 rev 0 final watermark",
        ]

    def test_emit_final_gives_one_frame_that_holds_the_late_comers(self) -> None:
        config = replace(self.CONFIG, emit="final")
        assert brief(run(config, timeline("A1 A7 A4 A9.999"))) == []
        assert brief(run(config, timeline("A1 A7 A4 A9.999 A10"))) == ["[0, 5) x2 rev 0 final watermark"]

    def test_emit_final_gives_closed_windows_at_the_end_of_input(self) -> None:
        outcome = run(replace(self.CONFIG, emit="final"), timeline("A1 A7 A4"), end_of_input=True)
        assert brief(outcome) == ["[0, 5) x2 rev 0 final end", "[5, 10) x1 rev 0 final end"]

    def test_in_partition_scope_late_ticks_bring_out_their_own_keys_window(self) -> None:
        config = replace(self.CONFIG, watermark_scope="partition")
        outcome = run(config, timeline("A1 B7 A4 B3"))
        assert brief(outcome, "A") == ["[0, 5) x1 rev 0 closed watermark", "[0, 5) x2 rev 1 closed late"]
        assert brief(outcome, "B") == ["[0, 5) x1 rev 0 closed late"]


class TestExpiry:
    CONFIG = replace(FIVE_SECONDS, key_ttl_ns=10 * S)

    def test_a_key_more_than_its_ttl_behind_comes_out_and_is_forgotten(self) -> None:
        assert brief(run(self.CONFIG, timeline("A1 B11"))) == []
        assert brief(run(self.CONFIG, timeline("A1 B11.001"))) == ["[0, 5) x1 rev 0 final expiry"]

    def test_windows_that_came_out_and_did_not_change_are_just_forgotten(self) -> None:
        config = replace(self.CONFIG, allowed_lateness_ns=8 * S)
        outcome = run(config, timeline("A1 A7 B18"), end_of_input=True)
        assert brief(outcome) == ["[0, 5) x1 rev 0 closed watermark", "[5, 10) x1 rev 0 final expiry"]

    def test_all_windows_of_an_expired_key_come_out_in_order_of_start(self) -> None:
        config = replace(self.CONFIG, lag_ns=30 * S)
        outcome = run(config, timeline("A10 A3 A7 B30"))
        assert [line[:7] for line in brief(outcome)] == ["[0, 5) ", "[5, 10)", "[10, 15"]
        assert {frame["trigger"] for frame in outcome.frames["A"]} == {"expiry"}

    def test_a_tick_further_behind_its_partition_than_the_ttl_is_late_and_leaves_no_state(self) -> None:
        outcome = run(self.CONFIG, timeline("A20 B9.999 B10"), end_of_input=True)
        assert late(outcome) == [(9.999, "expired", 5.0)]  # counted from the start of its window
        assert outcome.late[0].watermark_ns == 7_999_000_000
        assert brief(outcome, "B") == ["[10, 15) x1 rev 0 final end"]

    def test_a_forgotten_window_does_not_come_back_under_a_rev_that_it_had(self) -> None:
        outcome = run(self.CONFIG, timeline("A12 B23 A13"), end_of_input=True)
        assert brief(outcome, "A") == ["[10, 15) x1 rev 0 final expiry"]
        assert late(outcome) == [(13.0, "expired", 3.0)]

    def test_a_tick_that_is_late_for_both_reasons_is_late_by_watermark(self) -> None:
        assert late(run(self.CONFIG, timeline("A20 A1"))) == [(1.0, "watermark", 17.0)]

    def test_a_forgotten_key_starts_anew(self) -> None:
        outcome = run(self.CONFIG, timeline("A7 B23 A18 A13 A25"))
        assert brief(outcome) == ["[5, 10) x1 rev 0 final expiry", "[15, 20) x1 rev 0 final watermark"]
        assert late(outcome) == [(13.0, "watermark", 3.0)]

    def test_in_partition_scope_a_window_is_closed_before_its_key_expires(self) -> None:
        outcome = run(replace(self.CONFIG, watermark_scope="partition"), timeline("A1 B100"))
        assert brief(outcome) == ["[0, 5) x1 rev 0 final watermark"]

    def test_a_late_tick_expires_nobody(self) -> None:
        config = Config(size_ns=5 * S, lag_ns=0, key_ttl_ns=S, allowed_lateness_ns=S)
        assert brief(run(config, timeline("A5 B5 B4 B3"), end_of_input=True)) == ["[5, 10) x1 rev 0 final end"]


class TestFrames:
    def test_the_wire_form_is_compact_and_in_order(self) -> None:
        records = [
            record(0, "Ü", 1.5, "10.5", "2"),
            record(1, "Ü", 1.0, "9", "1"),
            record(2, "Ü", 2.0, "12", "1"),
            record(3, "Ü", 7, "1", "1"),
        ]
        (frame,) = run(FIVE_SECONDS, records).frames["Ü"]
        assert frame_bytes(frame).decode() == (
            '{"key":"Ü","start":0,"end":5000,"rev":0,"status":"final","trigger":"watermark","open":9.0,"high":12.0,'
            '"low":9.0,"close":12.0,"volume":4.0,"vwap":10.5,"count":3,"first_ts":1000,"last_ts":2000}'
        )

    def test_of_equal_times_the_first_in_the_log_opens_and_the_last_closes(self) -> None:
        records = [record(i, "A", at, str(i)) for i, at in enumerate((2, 1, 1, 3, 3, 2))]
        frame = only_frame(FIVE_SECONDS, records)
        assert (frame["open"], frame["close"]) == (1.0, 4.0)

    def test_sums_are_those_of_the_decimals(self) -> None:
        records = [record(i, "A", 1, "0.7", size) for i, size in enumerate(("0.1", "0.2", "0.3"))]
        frame = only_frame(FIVE_SECONDS, records)
        assert (frame["volume"], frame["vwap"]) == (0.6, 0.7)

    def test_sums_without_room_are_floats_from_then_on(self) -> None:
        records = [record(i, "A", 1, "1", size) for i, size in enumerate(("0.1", "0.2", "1e-40", "0.1"))]
        assert only_frame(FIVE_SECONDS, records)["volume"] == 0.3 + 1e-40 + 0.1

    def test_vwap_without_volume_is_null(self) -> None:
        frame = only_frame(FIVE_SECONDS, [record(0, "A", 1, size="-0.0")])
        assert (frame["volume"], frame["vwap"]) == (0.0, None)
        assert b'"volume":0.0,"vwap":null' in frame_bytes(frame)

    def test_what_overflows_is_null(self) -> None:
        frame = only_frame(FIVE_SECONDS, [record(i, "A", 1, "1e308", "1e308") for i in range(2)])
        assert (frame["volume"], frame["vwap"], frame["high"]) == (None, None, 1e308)

    def test_items_are_the_values_as_they_were_received(self) -> None:
        config = replace(FIVE_SECONDS, payload="items")
        values = [tick(ts="2000"), b'{ "size":"1.50","price":1e0, "ts":1000,"symbol":"\\u0041" }']
        frame = only_frame(config, [raw(value) for value in values])
        assert frame["items"] == values
        assert frame_bytes(frame) == (
            b'{"key":"A","start":0,"end":5000,"rev":0,"status":"final","trigger":"end","count":2,"first_ts":1000,'
            b'"last_ts":2000,"items":[' + b",".join(values) + b"]}"
        )

    def test_payload_both_has_the_items_after_the_bar(self) -> None:
        frame = only_frame(replace(FIVE_SECONDS, payload="both"), timeline("A1"))
        assert list(frame)[-4:] == ["count", "first_ts", "last_ts", "items"]
        assert frame["open"] == 10.0

    def test_first_and_last_times_are_floored_to_the_unit(self) -> None:
        records = [raw(tick(ts='"1969-12-31T23:59:59.9999Z"'))]
        assert only_frame(FIVE_SECONDS, records)["first_ts"] == -1
        assert only_frame(replace(FIVE_SECONDS, unit="us"), records)["first_ts"] == -100
        assert only_frame(replace(FIVE_SECONDS, unit="s"), records)["last_ts"] == -1


class TestRejections:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, "malformed_json"),
            (b"", "malformed_json"),
            (b"{", "malformed_json"),
            (b"\xff", "malformed_json"),
            (tick(price="NaN"), "malformed_json"),
            (tick(price="1e999"), "malformed_json"),
            (tick(symbol=r'"\ud800"'), "malformed_json"),
            (b"[]", "wrong_type"),
            (b"null", "wrong_type"),
            (b"{}", "missing_field"),
            (tick().replace(b'"size"', b'"volume"'), "missing_field"),
            (tick(symbol="1"), "wrong_type"),
            (tick(ts="1.0"), "wrong_type"),
            (tick(ts="true"), "wrong_type"),
            (tick(ts='"0"'), "wrong_type"),
            (tick(ts="1e30"), "wrong_type"),
            (tick(price="null"), "wrong_type"),
            (tick(price='"NaN"'), "wrong_type"),
            (tick(price='"1e999"'), "wrong_type"),
            (tick(price='"1_0"'), "wrong_type"),
            (tick(price='"1\\n"'), "wrong_type"),
            (tick(size="false"), "wrong_type"),
            (tick(size='"' + "9" * 400 + '"'), "wrong_type"),
            (tick(size="-1"), "negative_size"),
            (tick(size='"-5e-324"'), "negative_size"),
            (tick(symbol='"B"'), "key_mismatch"),
            (tick(ts="9223372036854775807"), "timestamp_out_of_range"),
            (tick(ts="-99999999999999999999999999"), "timestamp_out_of_range"),
            (tick(ts='"0001-01-01T00:00:00Z"'), "timestamp_out_of_range"),
            (tick(size="-0.0"), None),
            (tick(size="18446744073709551616"), None),
            (tick(price='"-1.5E+3"', extra="[null]"), None),
            (tick() + b" \n", None),
            (b'{"price":null,' + tick()[1:], None),
        ],
    )
    def test_a_value_is_rejected_for_the_first_reason_that_applies(
        self, value: bytes | None, expected: str | None
    ) -> None:
        assert reason(raw(value)) == expected

    @pytest.mark.parametrize(
        ("literals", "key", "expected"),
        [
            ({"symbol": "1", "size": "-1"}, b"A", "wrong_type"),
            ({"size": "-1"}, b"B", "negative_size"),
            ({"ts": "99999999999999999999"}, b"B", "key_mismatch"),
            ({"ts": "99999999999999999999"}, b"A", "timestamp_out_of_range"),
            ({}, None, "key_mismatch"),
        ],
    )
    def test_reasons_have_an_order(self, literals: dict[str, str], key: bytes | None, expected: str) -> None:
        assert reason(raw(tick(**literals), key, timestamp_ms=0)) == expected

    def test_event_times_reach_two_years_short_of_what_64_bits_hold(self) -> None:
        config = replace(FIVE_SECONDS, unit="ns")
        for sign in (1, -1):
            inside, outside = sign * LARGEST_EVENT_TIME_NS, sign * (LARGEST_EVENT_TIME_NS + 1)
            assert reason(raw(tick(ts=str(inside)), timestamp_ms=-1), config) is None
            assert reason(raw(tick(ts=str(outside)), timestamp_ms=-1), config) == "timestamp_out_of_range"

    def test_a_tick_may_be_ahead_of_its_record_by_the_skew_and_no_more(self) -> None:
        assert reason(raw(tick(ts="1060000"), timestamp_ms=1_000_000)) is None
        assert reason(raw(tick(ts="1060001"), timestamp_ms=1_000_000)) == "future_timestamp"
        assert reason(raw(tick(ts="1060001"), timestamp_ms=-1)) is None

    def test_a_misrouted_key_is_counted_and_rejected_only_on_demand(self) -> None:
        right = partition_of(b"A", 4)
        policies: list[tuple[Literal["warn", "reject"], list[str]]] = [("warn", []), ("reject", ["misrouted"])]
        for policy, rejected in policies:
            config = Config(size_ns=5 * S, lag_ns=2 * S, partitions=4, on_misrouted=policy)
            wrong = run(config, timeline("A1"), partition=(right + 1) % 4)
            assert (wrong.misrouted, [each.reason for each in wrong.rejected]) == (1, rejected)
            assert run(config, timeline("A1"), partition=right).misrouted == 0

    def test_fields_and_unit_of_another_payload_are_read(self) -> None:
        config = Config(size_ns=5 * S, lag_ns=2 * S, fields=("sym", "t", "p", "s"), unit="s")
        frame = only_frame(config, [raw(b'{"ev":"T","sym":"A","t":7,"p":"1.5","s":3}')])
        assert (frame["start"], frame["first_ts"], frame["vwap"]) == (5000, 7, 1.5)


class TestRfc3339:
    @staticmethod
    def first_ns(text: str) -> object:
        config = Config(size_ns=S, lag_ns=S, unit="ns")
        outcome = run(config, [raw(tick(ts=json.dumps(text)))], end_of_input=True)
        return outcome.frames["A"][0]["first_ts"] if outcome.frames else outcome.rejected[0].reason

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01 00:00:00.5z", 500_000_000),
            ("1970-01-01t00:00:00.1234567899Z", 123_456_789),
            ("1970-01-01T01:30:00+01:30", 0),
            ("1969-12-31T16:00:00-08:00", 0),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("2016-12-31T23:59:60Z", 1_483_228_800 * S),
            ("2000-02-29T00:00:00Z", 951_782_400 * S),
            ("1900-02-29T00:00:00Z", "wrong_type"),
            ("2023-04-31T00:00:00Z", "wrong_type"),
            ("2023-01-01T00:00:00", "wrong_type"),
            ("2023-01-01T00:00:61Z", "wrong_type"),
            ("2023-01-01T00:00:00.Z", "wrong_type"),
            ("2023-01-01T00:00:00+0100", "wrong_type"),
            ("٢٠٢٣-01-01T00:00:00Z", "wrong_type"),
        ],
    )
    def test_texts_are_read_as_nanoseconds(self, text: str, expected: object) -> None:
        assert self.first_ns(text) == expected

    @given(st.datetimes(datetime(1690, 1, 1), datetime(2090, 1, 1)))
    def test_the_calendar_agrees_with_the_standard_library(self, moment: datetime) -> None:
        since = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        assert self.first_ns(moment.isoformat() + "Z") == since // timedelta(microseconds=1) * 1000


class TestRouting:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [  # the vectors of Kafka's own tests
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ],
    )
    def test_murmur2_is_kafkas(self, key: bytes, expected: int) -> None:
        assert murmur2(key) == expected % 2**32

    def test_a_topic_is_its_partitions_put_together(self) -> None:
        outcome = run_topic(FIVE_SECONDS, {1: timeline("A1 A7 A1"), 0: timeline("A1 B1 B7")}, end_of_input=True)
        assert [line[:9] for line in brief(outcome)] == ["[0, 5) x1", "[0, 5) x1", "[5, 10) x"]
        assert [each.partition for each in outcome.late] == [1]
        assert (outcome.ticks_in, outcome.aggregated) == (6, 5)


class TestProperties:
    @given(strategies.cases(), st.booleans())
    def test_every_record_is_accounted_for_once(self, case: strategies.Case, end_of_input: bool) -> None:
        outcome = run(case.config, case.records, end_of_input=end_of_input)
        accounted = outcome.aggregated + len(outcome.late) + len(outcome.rejected) + outcome.control
        assert outcome.ticks_in == len(case.records) == accounted
        for lines in outcome.wire().values():
            assert all(json.loads(line)["count"] > 0 for line in lines)

    @given(strategies.cases(generous_ttl=True))
    def test_final_frames_hold_every_aggregated_tick_and_nothing_comes_after_them(self, case: strategies.Case) -> None:
        outcome = run(case.config, case.records, end_of_input=True)
        total = 0
        for frames in outcome.frames.values():
            revs: dict[int, list[Frame]] = {}
            for frame in frames:
                first_ts, unit_ns = frame["first_ts"], UNIT_NS[case.config.unit]
                assert isinstance(first_ts, int)
                if case.config.size_ns % unit_ns:
                    continue  # the frame does not tell its window exactly
                revs.setdefault(first_ts * unit_ns // case.config.size_ns, []).append(frame)
            for revisions in revs.values():
                assert [frame["rev"] for frame in revisions] == list(range(len(revisions)))
                assert all(frame["status"] == "closed" for frame in revisions[:-1])
                count = revisions[-1]["count"]
                assert isinstance(count, int)
                total += count
        if case.config.size_ns % UNIT_NS[case.config.unit] == 0:
            assert total == outcome.aggregated

    @given(strategies.cases(), st.data())
    def test_a_longer_log_only_adds_to_what_a_shorter_one_gave(
        self, case: strategies.Case, data: st.DataObject
    ) -> None:
        cut = data.draw(st.integers(0, len(case.records)))
        before, whole = run(case.config, case.records[:cut]), run(case.config, case.records)
        for key, lines in before.wire().items():
            assert whole.wire()[key][: len(lines)] == lines
        assert whole.late[: len(before.late)] == before.late

    @given(strategies.cases(generous_ttl=True))
    def test_in_key_scope_a_key_gets_the_same_frames_with_the_others_gone(self, case: strategies.Case) -> None:
        config = replace(case.config, watermark_scope="key")
        both = run(config, case.records)
        for symbol in both.frames:
            alone = [each for each in case.records if each.key == symbol.encode() or each.is_end]
            assert run(config, alone).wire().get(symbol) == both.wire()[symbol]

    @given(st.data())
    def test_good_records_are_never_rejected_unless_misrouted(self, data: st.DataObject) -> None:
        config = data.draw(strategies.configs())
        records = data.draw(strategies.streams(config, bad=False))
        assert {each.reason for each in run(config, records).rejected} <= {"misrouted"}

    @given(st.data())
    def test_bad_records_are_always_rejected(self, data: st.DataObject) -> None:
        config = data.draw(strategies.configs())
        bad = data.draw(strategies.bad_records(config, 0, 0))
        assert len(run(config, [bad]).rejected) == 1


def test_the_strategies_reach_every_reason_and_every_kind_of_frame() -> None:
    seen: Counter[str] = Counter()
    expected = {"watermark", "expired", "malformed_json", "missing_field", "wrong_type", "negative_size"}
    expected |= {"key_mismatch", "timestamp_out_of_range", "future_timestamp", "misrouted", "rev>1"}
    expected |= {"closed watermark", "final watermark", "closed late", "final expiry", "final end"}

    @settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.cases())
    def look(case: strategies.Case) -> None:
        outcome = run(case.config, case.records, end_of_input=True)
        seen.update(each.reason for each in outcome.late)
        seen.update(each.reason for each in outcome.rejected)
        for frames in outcome.frames.values():
            seen.update(f"{frame['status']} {frame['trigger']}" for frame in frames)
            seen.update("rev>1" for frame in frames if frame["rev"] not in (0, 1))

    # Seeded: what is rare is drawn by one of them, and always by the same. The first is one that draws revisions.
    for number in (26, *range(26)):
        if expected <= seen.keys():
            break
        seed(number)(look)()
    assert expected <= seen.keys(), f"never drawn: {expected - seen.keys()}; drawn: {seen}"


@pytest.mark.parametrize("scope", ["key", "partition"])
def test_a_hundred_thousand_records_of_a_thousand_keys_are_no_trouble(
    scope: Literal["key", "partition"],
) -> None:
    config = Config(size_ns=5 * S, lag_ns=2 * S, allowed_lateness_ns=S, watermark_scope=scope)
    records = [record(i, f"S{i * 7919 % 1000}", i * 0.01 - (i * 31 % 100) * 0.02) for i in range(100_000)]
    outcome = run(config, records, end_of_input=True)
    assert outcome.aggregated > 95_000
