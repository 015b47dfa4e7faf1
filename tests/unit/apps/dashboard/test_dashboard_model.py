"""What the dashboard makes of records, and what it tells a browser of that. No network, no clock."""

from __future__ import annotations

import math

import orjson
import pytest

from workers.apps.dashboard.access import Access
from workers.apps.dashboard.model import DashboardModel
from workers.apps.dashboard.readings import LagReading, Limits, Member, PartitionReading, shown_symbol
from workers.apps.dashboard.views import View, Wish, WishError, read_wish
from workers.backpressure.levels import Level, LevelPolicy
from workers.core.effects import Counts
from workers.core.snapshot import LaneMeta, write_meta
from workers.errors import ConfigError

SECOND = 1_000_000_000
WALL = 1_700_000_000 * SECOND


def frame(key: str = "AAPL", number: int = 0, **changed: object) -> bytes:
    start = 1_700_000_000_000 + 5_000 * number
    fields: dict[str, object] = {
        "key": key,
        "start": start,
        "end": start + 5_000,
        "rev": 0,
        "status": "closed",
        "trigger": "watermark",
        "open": 10.0,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume": 100.0,
        "vwap": 10.5,
        "count": 4,
        "first_ts": start + 1,
        "last_ts": start + 4_000,
    }
    return orjson.dumps({**fields, **changed})


def late(key: str = "AAPL", **changed: object) -> bytes:
    fields: dict[str, object] = {
        "key": key,
        "ts": 1,
        "reason": "watermark",
        "late_by_ns": 1_500_000_000,
        "watermark_ns": 0,
        "start": 0,
        "end": 5_000,
        "topic": "ticks",
        "partition": 1,
        "offset": 7,
        "tick": {"symbol": key, "price": 1},
    }
    return orjson.dumps({**fields, **changed})


def model(**limits: int) -> DashboardModel:
    policy = LevelPolicy(soft=100, hard=1_000, min_dwell_ns=0)
    return DashboardModel(unit_ns=1_000_000, lag_ns=2 * SECOND, policy=policy, limits=Limits(**limits))


def reading(*lags: int, at_ns: int = WALL, end: int = 1_000) -> LagReading:
    partitions = tuple(PartitionReading(number, end - lag, end, lag) for number, lag in enumerate(lags))
    return LagReading(partitions, 0, 0, 0.0, 10.0, at_ns)


def told(view: View, second: int = 0) -> dict[str, object]:
    """A message as a browser reads it."""
    message: dict[str, object] = orjson.loads(orjson.dumps(view.message(WALL + second * SECOND, second * SECOND)))
    return message


# -- bars -------------------------------------------------------------------------------------------------------------


def test_a_frame_becomes_a_bar_with_its_times_in_milliseconds() -> None:
    known = model()
    known.take_frame(frame(), 3, 0)
    (bar,) = known.bars("AAPL")
    assert (bar.start_ms, bar.end_ms, bar.open, bar.high, bar.low, bar.close) == (
        1_700_000_000_000,
        1_700_000_005_000,
        10.0,
        12.0,
        9.0,
        11.0,
    )
    assert (bar.status, bar.trigger, bar.rev, bar.count, bar.revised) == ("closed", "watermark", 0, 4, None)
    assert (bar.first_ms - bar.start_ms, bar.last_ms - bar.start_ms) == (1, 4_000)


@pytest.mark.parametrize(("unit_ns", "factor"), [(1, 1_000_000), (1_000, 1_000), (1_000_000, 1)])
def test_the_ticks_unit_does_not_show_in_a_bar(unit_ns: int, factor: int) -> None:
    known = DashboardModel(unit_ns=unit_ns, lag_ns=0)
    known.take_frame(frame(first_ts=1_700_000_000_001 * factor), 0, 0)
    assert next(known.bars("AAPL")).first_ms == 1_700_000_000_001


def test_a_revision_replaces_its_bar_and_keeps_what_it_was() -> None:
    known = model()
    known.take_frame(frame(), 0, 0)
    known.take_frame(frame(rev=1, trigger="late", high=20.0, close=19.0, count=5), 0, 0)
    (bar,) = known.bars("AAPL")
    assert (bar.rev, bar.high, bar.close) == (1, 20.0, 19.0)
    assert bar.revised == (0, 10.0, 12.0, 9.0, 11.0)
    known.take_frame(frame(rev=2, trigger="late", high=21.0, count=6), 0, 0)
    (bar,) = known.bars("AAPL")
    assert bar.revised == (1, 10.0, 20.0, 9.0, 19.0)


def test_a_provisional_frame_is_replaced_without_counting_as_revised() -> None:
    known = model()
    known.take_frame(frame(status="provisional", trigger="idle", high=11.0, count=3), 0, 0)
    known.take_frame(frame(), 0, 0)
    (bar,) = known.bars("AAPL")
    assert (bar.status, bar.high, bar.revised) == ("closed", 12.0, None)


def test_a_frame_repeated_after_a_crash_changes_no_count() -> None:
    known = model()
    for _ in range(3):
        known.take_frame(frame(), 0, 0)
    (ranked,), _ = known.ranking("", "active", 10, 0)
    assert (ranked.ticks, ranked.revisions) == (4, 0)


def test_ticks_of_provisional_frames_and_revisions_count_once() -> None:
    known = model()
    known.take_frame(frame(status="provisional", count=2), 0, 0)
    known.take_frame(frame(count=4), 0, 0)
    known.take_frame(frame(rev=1, count=5), 0, 0)
    (ranked,), _ = known.ranking("", "active", 10, 0)
    assert (ranked.ticks, ranked.revisions) == (5, 1)


def test_ticks_that_moved_to_another_window_count_once_and_the_price_is_that_of_where_they_are() -> None:
    known = model()
    first, second = frame(number=0, count=4), frame(number=2, count=3, close=30.0)
    none = dict.fromkeys(("open", "high", "low", "close", "volume", "vwap", "first_ts", "last_ts"))
    for value in (first, second):
        known.take_frame(value, 0, 0)
    known.take_frame(frame(number=2, rev=1, count=0, trigger="merged", **none), 0, 0)
    ((ranked,), _) = known.ranking("", "ticks", 5, 0)
    assert ranked.ticks == 4
    known.take_frame(frame(number=0, rev=1, count=8, trigger="late", close=31.0), 0, 0)
    ((ranked,), _) = known.ranking("", "ticks", 5, 0)
    assert (ranked.ticks, ranked.close, known.unreadable) == (8, 31.0, 0)
    whole, gone = known.bars("AAPL")
    assert (whole.count, gone.count, gone.trigger, math.isnan(gone.close)) == (8, 0, "merged", True)


def test_frames_without_prices_and_volumes_beyond_json_are_bars_with_holes() -> None:
    known = model()
    known.take_frame(frame(volume=None), 0, 0)
    window = {"key": "B", "start": 0, "end": 5, "rev": 0, "status": "final", "trigger": "watermark"}
    known.take_frame(orjson.dumps({**window, "spread": 3, "count": 1, "first_ts": 1, "last_ts": 1}), 0, 0)
    assert math.isnan(next(known.bars("AAPL")).volume)
    assert math.isnan(next(known.bars("B")).open)
    view = View(known)
    view.want(Wish(symbol="B"))
    bars = told(view)["bars"]
    assert isinstance(bars, dict)
    assert bars["rows"][0][8:14] == [None] * 6


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        frame(status="sideways"),
        frame().replace(b":1700000000000,", b":%d," % 2**70),
        frame(open="10"),
        frame(rev=None),
        frame().replace(b'"count":4', b'"count":%d' % 2**64),
    ],
)
def test_a_record_that_is_no_frame_is_counted_and_does_nothing(value: bytes | None) -> None:
    known = model()
    known.take_frame(value, 0, 0)
    assert (known.unreadable, known.symbols, known.frames) == (1, 0, 0)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_bars_of_a_symbol_are_bounded_and_the_oldest_go() -> None:
    known = model(bars_per_symbol=10)
    for number in range(100):
        known.take_frame(frame(number=number), 0, 0)
    assert [bar.start_ms for bar in known.bars("AAPL")] == [1_700_000_000_000 + 5_000 * n for n in range(90, 100)]


def test_bars_of_all_symbols_together_are_bounded() -> None:
    known = model(bars=50)
    for number in range(40):
        for symbol in ("A", "B", "C"):
            known.take_frame(frame(symbol, number), 0, 0)
    assert known.bars_kept <= 50
    assert len(list(known.bars("A"))) >= 16


def test_symbols_are_bounded_and_those_not_heard_of_longest_go() -> None:
    known = model(symbols=3)
    for symbol in ("A", "B", "C", "A", "D"):
        known.take_frame(frame(symbol), 0, 0)
    assert known.symbols == 3
    assert not list(known.bars("B"))
    assert list(known.bars("A"))


def test_a_symbol_of_ten_kilobytes_is_kept_under_a_short_name_that_is_its_own() -> None:
    known = model()
    for tail in ("x", "y"):
        known.take_frame(frame("S" * 10_000 + tail), 0, 0)
    ranked, matching = known.ranking("", "active", 10, 0)
    assert matching == 2
    assert all(len(row.symbol) < 120 for row in ranked)
    assert shown_symbol("short", 256) == "short"


def test_the_ledger_keeps_the_newest_rows_and_cuts_long_text() -> None:
    known = model(ledger_rows=5, text_chars=50)
    for number in range(20):
        known.take_late(late(offset=number, tick={"x": "y" * 5_000}), WALL)
        known.take_dead_letter(b"k" * 5_000, b"v" * 5_000, [("workers.reason", b"r" * 5_000)], WALL)
    rows = known.ledger(limit=100)
    assert len(rows) == 10
    assert rows[0].seq > rows[-1].seq
    assert max(len(part) for row in rows for part in (row.text, row.value, row.reason, row.place)) <= 64


def test_reasons_that_others_make_up_are_counted_in_a_bounded_table() -> None:
    known = model()
    for number in range(1_000):
        known.take_dead_letter(None, None, [("workers.reason", str(number).encode())], WALL)
    assert len(known.reasons["dead"]) <= 41
    assert sum(known.reasons["dead"].values()) == 1_000


def test_curves_and_events_are_bounded() -> None:
    known = model(points=10, events=4)
    for second in range(100):
        known.sample(WALL + second * SECOND, second * SECOND)
        known.take_group("Stable", [Member(f"m{second}", "c", "h", (0,))], WALL)
    assert (len(known.points), len(known.events)) == (10, 4)


# -- the ledger -------------------------------------------------------------------------------------------------------


def test_the_ledger_tells_late_ticks_dropped_ones_and_dead_letters_apart() -> None:
    known = model()
    known.take_late(late("MSFT"), WALL)
    known.take_late(orjson.dumps({**orjson.loads(late("NVDA")), "stage": "dedupe", "reason": "duplicate"}), WALL)
    headers = [
        ("workers.reason", b"wrong_type"),
        ("__streams.errors.message", b"price is 'NaN'"),
        ("__streams.errors.topic", b"ticks"),
        ("__streams.errors.partition", b"2"),
        ("__streams.errors.offset", b"9"),
    ]
    known.take_dead_letter(b"AAPL", b'{"price":"NaN"}', headers, WALL)
    assert [row.symbol for row in known.ledger()] == ["AAPL", "NVDA", "MSFT"]
    assert [row.symbol for row in known.ledger(kind="late")] == ["NVDA", "MSFT"]
    assert [row.place for row in known.ledger(reason="wrong_type")] == ["ticks[2] @ 9"]
    assert [row.symbol for row in known.ledger(text="nan")] == ["AAPL"]
    assert [row.symbol for row in known.ledger(text="msf")] == ["MSFT"]
    assert known.reasons == {"late": {"watermark": 1, "duplicate": 1}, "dead": {"wrong_type": 1}}


def test_what_is_no_late_record_is_counted() -> None:
    known = model()
    for value in (None, b"{", b"{}", orjson.dumps({"key": 3})):
        known.take_late(value, WALL)
    assert known.unreadable == 4


# -- the sum ----------------------------------------------------------------------------------------------------------


def meta(counts: Counts, *, at_ns: int = WALL, offset: int = 0) -> bytes:
    value = write_meta(LaneMeta(offset, at_ns, {}, counts)).value
    assert value is not None
    return value


def test_the_sum_is_over_all_partitions_and_says_when_it_does_not_add_up() -> None:
    known = model()
    known.take_meta(0, meta(Counts(records=10, aggregated=8, late=1, rejected=1)), 0)
    known.take_meta(1, meta(Counts(records=5, aggregated=5)), 0)
    assert (known.counts.records, known.counts.balance(), known.unbalanced) == (15, 0, ())
    known.take_meta(1, meta(Counts(records=7, aggregated=5)), 0)
    assert (known.counts.balance(), known.unbalanced) == (2, (1,))


def test_two_partitions_whose_errors_cancel_out_are_still_named() -> None:
    known = model()
    known.take_meta(0, meta(Counts(records=10, aggregated=9)), 0)
    known.take_meta(1, meta(Counts(records=10, aggregated=11)), 0)
    assert (known.counts.balance(), known.unbalanced) == (0, (0, 1))


def test_state_that_was_dropped_leaves_the_sum() -> None:
    known = model()
    known.take_meta(0, meta(Counts(records=10, aggregated=10)), 0)
    known.take_meta(0, None, 0)
    assert known.counts == Counts()


def test_the_watermark_delay_is_that_of_the_slowest_partition_that_moves() -> None:
    known = model()
    known.take_meta(0, meta(Counts(), at_ns=WALL - 100 * SECOND, offset=1), 0)
    known.take_meta(1, meta(Counts(), at_ns=WALL - 5 * SECOND, offset=1), 40 * SECOND)
    assert known.watermark_delay_ns(WALL, 20 * SECOND) == 102 * SECOND
    assert known.watermark_delay_ns(WALL, 41 * SECOND) == 7 * SECOND  # partition 0 has been silent for 41 s
    assert known.watermark_delay_ns(WALL, 999 * SECOND) is None


# -- the group --------------------------------------------------------------------------------------------------------


def test_a_rebalance_shows_with_who_came_who_went_and_what_moved() -> None:
    known = model()
    first, second = Member("app-aaaaaa", "app", "h", (0, 1)), Member("app-bbbbbb", "app", "h", ())
    known.take_group("Stable", [first], WALL)
    assert not known.events
    known.take_group("PreparingRebalance", [Member("app-aaaaaa", "app", "h", ())], WALL)
    known.take_group(
        "Stable", [Member("app-aaaaaa", "app", "h", (0,)), Member("app-bbbbbb", "app", "h", (1,))], WALL + SECOND
    )
    texts = [event.text for event in known.events]
    assert texts == [
        "rebalance begins, 1 member",
        "rebalance done, 2 members",
        "app·bbbbbb joined",
        "partition 1: app·aaaaaa → app·bbbbbb",
    ]
    known.take_group("Empty", [], WALL + 2 * SECOND)
    assert {event.kind for event in known.events} == {"rebalance", "joined", "moved", "left"}
    assert second.partitions == ()


def test_the_level_has_hysteresis_and_each_change_is_an_event() -> None:
    known = model()
    steps = ((10, Level.OK), (150, Level.SOFT), (80, Level.SOFT), (2_000, Level.HARD), (10, Level.OK))
    for second, (lag, level) in enumerate(steps):
        known.take_lag(reading(lag, at_ns=WALL + second * SECOND))
        assert known.level is level
    assert [event.kind for event in known.events] == ["level"] * 3


def test_the_rate_scale_is_the_stricter_of_the_lag_and_what_was_told() -> None:
    known = model()
    known.take_lag(reading(150))
    assert known.scale == 0.5
    known.take_pressure(("HARD", "store", 0.0))
    assert known.scale == 0.0


def test_a_lag_that_is_not_measured_any_more_is_a_hole_in_the_curve_and_not_a_zero() -> None:
    known = model()
    known.take_lag(reading(30, 12))
    known.sample(WALL + SECOND, SECOND)
    known.sample(WALL + 60 * SECOND, 60 * SECOND)
    assert [point.lag for point in known.points] == [42, None]


# -- symbols ----------------------------------------------------------------------------------------------------------


def test_five_thousand_symbols_are_searched_and_ranked() -> None:
    known = model()
    for number in range(5_000):
        known.take_frame(frame(f"SYM{number:04d}", count=number), 0, 0)
    known.take_late(late("SYM0042"), WALL)
    active, matching = known.ranking("", "active", 3, 0)
    assert ([row.symbol for row in active], matching) == (["SYM4999", "SYM4998", "SYM4997"], 5_000)
    assert known.ranking("", "late", 1, 0)[0][0].symbol == "SYM0042"
    found, matching = known.ranking("sym499", "active", 60, 0)
    assert (found[0].symbol, matching) == ("SYM4999", 10)
    assert known.ranking("SYM0001", "active", 5, 0)[0][0].symbol == "SYM0001"


def test_what_was_there_before_counts_ticks_but_is_no_activity() -> None:
    known = model()
    known.take_frame(frame("OLD", count=1_000_000), 0, 0, live=False)
    for second in range(60):
        known.take_frame(frame("NEW", second, count=20), 0, second * SECOND)
    first, second_row = known.ranking("", "active", 2, 60 * SECOND)[0]
    assert (first.symbol, second_row.symbol, second_row.ticks_per_s) == ("NEW", "OLD", 0.0)
    assert first.ticks_per_s == pytest.approx(20, rel=0.15)


# -- views ------------------------------------------------------------------------------------------------------------


def test_a_browser_gets_everything_first_and_then_what_changed() -> None:
    known = model()
    for number in range(3):
        known.take_frame(frame(number=number), 0, 0)
    view = View(known)
    view.want(Wish(symbol="AAPL"))
    first = told(view)
    assert isinstance(first["bars"], dict)
    assert (first["bars"]["reset"], len(first["bars"]["rows"])) == (True, 3)
    assert told(view) == {"t": WALL // 1_000_000}
    known.take_frame(frame(number=1, rev=1, close=99.0), 0, 0)
    delta = told(view)["bars"]
    assert isinstance(delta, dict)
    assert (delta["reset"], len(delta["rows"]), delta["rows"][0][11]) == (False, 1, 99.0)
    assert delta["rows"][0][14] == [0, 10.0, 12.0, 9.0, 11.0]


def test_a_slow_browser_gets_the_newest_once_instead_of_everything_it_missed() -> None:
    known = model()
    view = View(known)
    view.want(Wish(symbol="AAPL"))
    told(view)
    for rev in range(500):
        known.take_frame(frame(rev=rev, close=float(rev)), 0, 0)
    bars = told(view)["bars"]
    assert isinstance(bars, dict)
    assert [row[11] for row in bars["rows"]] == [499.0]


def test_another_symbol_begins_anew_and_an_unknown_one_is_said_to_be_empty() -> None:
    known = model()
    known.take_frame(frame("A"), 0, 0)
    view = View(known)
    view.want(Wish(symbol="A"))
    told(view)
    view.want(Wish(symbol="NONE"))
    assert told(view)["bars"] == {"symbol": "NONE", "reset": True, "rows": []}
    known.take_frame(frame("NONE"), 0, 0)
    bars = told(view)["bars"]
    assert isinstance(bars, dict)
    assert len(bars["rows"]) == 1


def test_a_message_stays_small_however_much_is_known() -> None:
    known = model()
    for number in range(20_000):
        known.take_frame(frame(f"SYM{number % 5_000}", number // 5_000), 0, 0)
        known.take_late(late(tick={"x": "y" * 500}), WALL)
    view = View(known)
    view.want(Wish(symbol="SYM1"))
    assert len(orjson.dumps(view.message(WALL, 0))) < 150_000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"symbol":3}', '{"sort":"sideways"}', '{"unknown":1}', '{"explain":{}}', '"\ud800"', "x" * 9_000],
)
def test_a_message_that_is_no_wish_is_refused(text: str) -> None:
    with pytest.raises(WishError):
        read_wish(text)


# -- access -----------------------------------------------------------------------------------------------------------

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        Access.to(host, None)
    with pytest.raises(ConfigError, match="at least 16"):
        Access.to(host, "short")
    assert Access.to(host, TOKEN).right_token(TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machines_own_addresses_need_none(host: str) -> None:
    assert Access.to(host, None).may_look(None, None)


def test_only_the_token_or_its_cookie_lets_somebody_in() -> None:
    access = Access.to("127.0.0.1", TOKEN)
    assert not access.may_look(None, None)
    assert not access.may_look("", "Bearer ")
    assert not access.may_look(TOKEN, None)  # the cookie is not the token
    assert not access.may_look(None, f"Basic {TOKEN}")
    assert not access.may_look("é\ud800", "Bearer é")
    assert access.may_look(access.cookie, None)
    assert access.may_look(None, f"Bearer {TOKEN}")
    assert TOKEN not in access.cookie


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("localhost:8050", True),
        ("127.0.0.1:8050", True),
        ("[::1]:8050", True),
        ("LOCALHOST", True),
        ("board.example:8050", True),
        ("evil.example:8050", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("10.0.0.7:8050", False),
        ("[::1", False),
        ("localhost:80:80", False),
        ("", False),
        (None, False),
    ],
)
def test_a_request_for_another_name_is_none_of_ours(host: str | None, fits: bool) -> None:
    assert Access.to("127.0.0.1", None, ["board.example"]).right_host(host) is fits


def test_where_others_may_look_any_address_will_do_but_not_any_name() -> None:
    access = Access.to("0.0.0.0", TOKEN)
    assert access.right_host("10.0.0.7:8050")
    assert access.right_host("[fe80::1]:8050")
    assert not access.right_host("evil.example:8050")


def test_the_socket_is_for_the_page_itself() -> None:
    assert Access.right_origin("http://localhost:8050", "localhost:8050")
    assert Access.right_origin("https://board.example", "board.example")
    assert Access.right_origin(None, "localhost:8050")
    assert not Access.right_origin("http://evil.example", "localhost:8050")
    assert not Access.right_origin("http://localhost:9999", "localhost:8050")
    assert not Access.right_origin("null", "localhost:8050")
