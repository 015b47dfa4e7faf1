"""Hypothesis strategies for the log of one partition, drawn to hit the edges of the rules.

`configs()` draws settings with small numbers, `streams(config)` a log that fits them, `cases()` both together. Times
sit on a small grid: on window edges and one step beside them, on the edges of lag, allowed lateness and time to live,
before the epoch and at today's dates. Values are spelled in many ways that mean the same, so that decoders meet white
space, escapes, numeric strings, RFC 3339, repeated and unknown members. Bad records of every reason come in between.

Each record is made from a few drawn bytes that choose among written-out options, the simplest first. One draw per
record keeps long logs cheap, and lets a failing log shrink to few records with plain spellings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from hypothesis import strategies as st

from tests.support.oracle import HOUR_NS, LARGEST_EVENT_TIME_NS, NEVER_NS, NO_RECORD_TIMESTAMP, UNIT_NS, Config, Record

__all__ = ["SYMBOLS", "Case", "bad_records", "cases", "configs", "cuts", "ended", "good_records", "streams"]

SYMBOLS = ("B", "AAPL", "ÜBER-€", "", 'n"o\\t\u0000e')
SENT_LATER_MS = 4_000_000_000_000  # a record timestamp after every event time drawn here
FIRST_EVENT_TIMES_NS = (0, -7 * 10**6, -3, 1_700_000_000_000 * 10**6, 1_700_000_000_000 * 10**6 - 10**15)
_MIN_TIMES_NS = (-LARGEST_EVENT_TIME_NS, -LARGEST_EVENT_TIME_NS, 0, 1, 4 * 10**6 + 1, 1_700_000_000_000 * 10**6)
YEAR_NS = 365 * 24 * HOUR_NS

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A configuration and a log of partition 0 to run under it."""

    config: Config
    records: list[Record]


@st.composite
def configs(draw: st.DrawFn, *, generous_ttl: bool = False, all_late: bool = True, min_times: bool = False) -> Config:
    """Small settings: sizes of 1..10, lags and latenesses of 0..6 steps, a step being 1 ms or 1 ns.

    `generous_ttl` sets `key_ttl` to a year, so that nothing drawn here expires; `all_late=False` leaves out the
    settings under which every tick is late (no lag and no allowed lateness); `min_times=True` draws `min_time` as well,
    at or near the times at which logs begin.
    """
    step_ns = draw(st.sampled_from([10**6, 1]))
    lag = draw(st.integers(0, 6))
    lateness = draw(st.integers(0 if lag or all_late else 1, 6))
    ttl_ns = YEAR_NS
    if not generous_ttl:
        ttl_ns = draw(st.sampled_from((NEVER_NS, 24 * HOUR_NS)) | st.integers(0, 40).map(lambda steps: steps * step_ns))
    units: tuple[Literal["s", "ms", "us", "ns"], ...] = ("ms", "ms", "us", "ns", "s") if step_ns > 1 else ("ns", "ms")
    return Config(
        size_ns=draw(st.integers(1, 10)) * step_ns,
        lag_ns=lag * step_ns,
        allowed_lateness_ns=lateness * step_ns,
        key_ttl_ns=ttl_ns,
        emit=draw(st.sampled_from(("eager", "eager", "final"))),
        watermark_scope=draw(st.sampled_from(("key", "key", "partition"))),
        payload=draw(st.sampled_from(("ohlcv", "both", "items"))),
        unit=draw(st.sampled_from(units)),
        fields=draw(st.sampled_from((("symbol", "ts", "price", "size"), ("s", "T", "p", "q")))),
        max_future_skew_ns=draw(st.sampled_from((60 * 10**9, 0, 5 * 10**6, 1))),
        partitions=draw(st.sampled_from((None, None, 1, 3))),
        on_misrouted=draw(st.sampled_from(("warn", "reject"))),
        min_time_ns=draw(st.sampled_from(_MIN_TIMES_NS)) if min_times else -LARGEST_EVENT_TIME_NS,
    )


@st.composite
def cases(draw: st.DrawFn, *, max_size: int = 60, generous_ttl: bool = False) -> Case:
    """A configuration and a log for it."""
    config = draw(configs(generous_ttl=generous_ttl))
    return Case(config, draw(streams(config, max_size=max_size)))


def streams(config: Config, *, max_size: int = 60, bad: bool = True) -> st.SearchStrategy[list[Record]]:
    """The log of one partition: offsets rise, with gaps, as transaction markers and compaction leave them.

    Time moves on as it does in a market: mostly by small steps, in part backwards, at times in a burst so far ahead
    that other keys expire. `bad=False` leaves out everything that is rejected, but for misrouted keys.
    """
    start = st.tuples(st.sampled_from(FIRST_EVENT_TIMES_NS), st.sampled_from((0, 7, 2**40)))
    return st.tuples(start, st.lists(_CHOICES, max_size=max_size)).map(
        lambda drawn: _log(config, *drawn[0], [_Choices(each) for each in drawn[1]], bad=bad)
    )


@st.composite
def ended(draw: st.DrawFn, records: Sequence[Record]) -> list[Record]:
    """The records of a log with up to three ends of the input among them, and offsets to match."""
    log = list(records)
    for _ in range(draw(st.integers(0, 3))):
        log.insert(draw(st.integers(0, len(log))), _end_of_input(0))
    return [replace(record, offset=offset) for offset, record in enumerate(log)]


def good_records(config: Config, offset: int, ts_ns: int) -> st.SearchStrategy[Record]:
    """A record that is a tick at `ts_ns`; it may come too late, or to the wrong partition, but is never malformed."""
    return _CHOICES.map(lambda drawn: _good_record(_Choices(drawn), config, offset, ts_ns))


def bad_records(config: Config, offset: int, ts_ns: int) -> st.SearchStrategy[Record]:
    """A record to reject: all reasons but `misrouted`, which depends on the key alone, are drawn."""
    return _CHOICES.map(lambda drawn: _bad_record(_Choices(drawn), config, offset, ts_ns))


def cuts(length: int) -> st.SearchStrategy[list[int]]:
    """Where to cut a log of that length into batches: rising positions, empty batches included."""
    return st.lists(st.integers(0, length), max_size=8).map(sorted)


# ---------------------------------------------------------------------------------------------------------------------
# From drawn bytes to records

_CHOICES = st.binary(min_size=24, max_size=24)


class _Choices:
    """A sequence of choices, one drawn byte each; zero bytes, and bytes that run out, choose the first option."""

    def __init__(self, drawn: bytes) -> None:
        self._rest = iter(drawn)

    def below(self, limit: int) -> int:
        assert 0 < limit <= 256
        return next(self._rest, 0) % limit

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def seldom(self, one_in: int) -> bool:
        return self.below(one_in) == one_in - 1


def _log(config: Config, cursor_ns: int, offset: int, drawn: list[_Choices], *, bad: bool) -> list[Record]:
    records: list[Record] = []
    for choose in drawn:
        if choose.seldom(16):
            record = _end_of_input(offset)
        elif bad and choose.seldom(8):
            record = _bad_record(choose, config, offset, cursor_ns)
        else:
            cursor_ns += _advance_ns(choose, config)
            record = _good_record(choose, config, offset, _near_ns(choose, config, cursor_ns))
        records.append(record)
        offset += choose.of((1, 1, 1, 2, 5))
    return records


def _end_of_input(offset: int) -> Record:
    return Record(offset, SENT_LATER_MS, None, None, (("workers.control", b"end-of-input"),))


def _good_record(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    symbol = choose.of(SYMBOLS[:3]) if choose.below(3) else choose.of(SYMBOLS)
    members = [
        (config.fields[0], json.dumps(symbol, ensure_ascii=choose.seldom(2))),
        (config.fields[1], _spell_time(choose, config, ts_ns)),
        (config.fields[2], choose.of(_PRICES)),
        (config.fields[3], choose.of(_SIZES)),
    ]
    timestamp_ms = _record_timestamp_ms(choose, config, ts_ns)
    return Record(offset, timestamp_ms, symbol.encode(), _spell_object(choose, members))


def _bad_record(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    return choose.of(_BAD)(choose, config, offset, ts_ns)


# ---------------------------------------------------------------------------------------------------------------------
# Times


def _step_ns(config: Config) -> int:
    durations_ns = (config.size_ns, config.lag_ns, config.allowed_lateness_ns)
    return 10**6 if all(duration_ns % 10**6 == 0 for duration_ns in durations_ns) else 1


def _leap_ns(config: Config) -> int:
    """The time to live, but a day at most, so that a generous one is never reached; never is left behind by days."""
    return min(config.key_ttl_ns, 24 * HOUR_NS)


def _advance_ns(choose: _Choices, config: Config) -> int:
    step_ns, ttl_ns = _step_ns(config), _leap_ns(config)
    if choose.seldom(20):
        return choose.of((ttl_ns, ttl_ns + step_ns, ttl_ns + config.size_ns))
    if choose.seldom(8):
        whole_ns = config.size_ns + config.lag_ns
        return choose.of((config.size_ns, config.lag_ns, whole_ns, whole_ns + config.allowed_lateness_ns))
    return choose.of((0, 0, 1, 1, 2, 3)) * step_ns


def _near_ns(choose: _Choices, config: Config, cursor_ns: int) -> int:
    """A time near the cursor: on it, behind it by what the rules compare with, or beside a window's edge."""
    step_ns, lag_ns, lateness_ns = _step_ns(config), config.lag_ns, config.allowed_lateness_ns
    beside_ns = choose.of((0, 0, 0, -step_ns, step_ns, 1, -1))
    kind = choose.below(8)
    if kind < 3:
        return cursor_ns
    if kind == 3:
        edge_ns = (cursor_ns // config.size_ns + choose.of((0, 1, -1, -2, -3))) * config.size_ns
        return edge_ns + choose.of((0, lag_ns, lag_ns + lateness_ns)) + beside_ns
    if kind == 4:
        return cursor_ns - choose.of((lag_ns, lag_ns + lateness_ns, config.size_ns, _leap_ns(config))) + beside_ns
    if kind == 5:
        return cursor_ns - choose.below(13) * step_ns + beside_ns
    tolerated = (lag_ns + lateness_ns) // step_ns  # behind the watermark, and yet not late: the windows that reopen
    return cursor_ns - max(tolerated - 1 - choose.below(4), 0) * step_ns


def _record_timestamp_ms(choose: _Choices, config: Config, ts_ns: int) -> int:
    """Much later, none at all, or the earliest at which the event time is not yet in the future."""
    earliest_ms = -((config.max_future_skew_ns - ts_ns) // 10**6)  # rounded up
    return choose.of((SENT_LATER_MS, NO_RECORD_TIMESTAMP, max(earliest_ms, 0)))


# ---------------------------------------------------------------------------------------------------------------------
# Spellings

_PRICES = (
    *("1", "0", "-0.0", "0.1", "0.2", "100.25", "-3.5", "1e2", "7.25E+1", "1e308"),
    *('"0.30"', '"1e-7"', '"-0"', '"123456789.123456789"'),
    *("9007199254740993", "18446744073709551616", "0.1000000000000000055511151231257827"),
    *("1e-300", "1e300", "0.12345678901234567891", "1.10", "100.0000000000000", "67012.345678901234", "9.5e-18"),
)
_SIZES = (
    *("1", "2", "0.1", "0.7", "3.3", "0", "0.0", "-0", "-0.0", "-1e-999", "5e-324", "1e22", "1e308"),
    *('"10"', '"0.5"', '"-0.0"'),
    *(
        "1e-300",
        "1e300",
        "0.00000000000000000001",
        "999999999999.99999999",
        '"1000000000000.00000001"',
        "250.00",
        "3e-19",
    ),
)


def _spell_time(choose: _Choices, config: Config, ts_ns: int) -> str:
    """An integer in the unit if the time is one; else RFC 3339, in any of its forms."""
    unit_ns = UNIT_NS[config.unit]
    if not choose.seldom(4) and ts_ns % unit_ns == 0:
        return str(ts_ns // unit_ns)
    east_minutes = choose.of((None, None, 0, 330, -480, 1439))
    seconds, fraction_ns = divmod(ts_ns, 10**9)
    local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, minutes=east_minutes or 0)
    clock = local.strftime("%H:%M:%S")
    if local.second == 0 and fraction_ns == 0 and choose.seldom(2):
        local -= timedelta(minutes=1)
        clock = local.strftime("%H:%M:60")
    fraction = "" if fraction_ns == 0 and choose.seldom(2) else f".{fraction_ns:09d}" + choose.of(("", "9", "000"))
    zone = choose.of("Zz")
    if east_minutes is not None:
        zone = f"{'-' if east_minutes < 0 else '+'}{abs(east_minutes) // 60:02d}:{abs(east_minutes) % 60:02d}"
    return f'"{local:%Y-%m-%d}{choose.of("Tt ")}{clock}{fraction}{zone}"'


def _spell_object(choose: _Choices, members: list[tuple[str, str]]) -> bytes:
    """A JSON object of the members: mostly compact and in order, else turned, with extras and white space."""
    if not choose.seldom(3):
        return _compact(members)
    turn = choose.below(len(members))
    members = members[turn:] + members[:turn]
    if choose.below(2):
        name, _ = choose.of(members)
        members = [(name, choose.of(("null", '"first"', "-1", "{}"))), *members]  # the last of a name counts
    if choose.below(2):
        extra = choose.of(("null", '"€"', "1.5e3", "[]", "true", '{"a":[1,{"ts":2}],"b":"},{"}'))
        members.insert(choose.below(len(members) + 1), ("extra", extra))
    space, colon, comma = choose.of((("", ": ", ", "), ("", ":", ","), (" \n", "\t:\r ", " ,\n")))
    text = comma.join(f"{json.dumps(name)}{colon}{literal}" for name, literal in members)
    return f"{space}{{{space}{text}{space}}}{space}".encode()


def _compact(members: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f"{json.dumps(name)}:{literal}" for name, literal in members) + "}").encode()


# ---------------------------------------------------------------------------------------------------------------------
# Bad records, a function per family of reasons

Bad = Callable[[_Choices, Config, int, int], Record]


def _with(config: Config, offset: int, ts_ns: int, **literals: str | None) -> Record:
    """A compact record of symbol B; members can be given other literals, or None to leave them out."""
    unit_ns = UNIT_NS[config.unit]
    defaults: dict[str, str | None] = {"symbol": '"B"', "ts": str(ts_ns // unit_ns), "price": "1.5", "size": "2"}
    assert literals.keys() <= defaults.keys()
    chosen = defaults | literals
    named = zip(config.fields, chosen.values(), strict=True)
    return Record(offset, SENT_LATER_MS, b"B", _compact([(name, text) for name, text in named if text is not None]))


def _not_json(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    good = _with(config, offset, ts_ns).value
    assert good is not None
    kind = choose.below(4)
    if kind == 0:
        control = ("workers.control", choose.of((b"end-of-input", b"pause")))
        key, headers = choose.of(((b"B", ()), (None, ()), (b"B", (control,)), (None, (("workers.control", b"x"),))))
        return Record(offset, SENT_LATER_MS, key, None, headers)  # a tombstone
    if kind == 1:
        return Record(offset, SENT_LATER_MS, b"B", good[: choose.below(len(good))])
    if kind == 2:
        junk = (b"\xff", b"\x00", b"\xef\xbb\xbf" + good, good + b"}", good + good, b"{'symbol':'B'}", b"[1,]", b"NaN")
        return Record(offset, SENT_LATER_MS, b"B", choose.of(junk))
    literal = choose.of(("NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "1e", "1e999", "0x1"))
    if choose.below(2):
        return _with(config, offset, ts_ns, symbol=choose.of((r'"\ud800"', '"\t"', r'"\x"', '"B')))
    wrong: dict[str, str | None] = {choose.of(("ts", "price", "size")): literal}
    return _with(config, offset, ts_ns, **wrong)


def _not_an_object(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    value = choose.of((b"[]", b"null", b"1", b'"symbol"', b"true", b'["symbol","ts","price","size"]'))
    return Record(offset, SENT_LATER_MS, b"B", value)


def _without_a_field(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    missing: dict[str, str | None] = {choose.of(("symbol", "ts", "price", "size")): None}
    return _with(config, offset, ts_ns, **missing)


_NOT_NUMBERS = (
    *("null", "true", "[1]", "{}"),
    *(json.dumps(text) for text in ("", "1_0", " 1", "1\n", "1.", ".5", "+1", "01", "-", "0x1", "1,5", "١")),
    *(json.dumps(text) for text in ("NaN", "Infinity", "1e999", "1" + "0" * 310)),
)
_NOT_TIMES = (
    *("1.0", "1e3", "1e30", "null", "true", "[1]"),
    *(json.dumps(text) for text in ("", "1700000000000", "2023-11-14", "2023-11-14T22:13:20", "2023-11-14T22:13Z")),
    *(json.dumps(f"{date}T00:00:00Z") for date in ("2023-02-29", "2023-13-01", "2023-00-01", "2023-11-31", "23-1-1")),
    *(
        json.dumps(f"2023-11-14T{clock}")
        for clock in ("24:00:00Z", "22:60:00Z", "22:13:61Z", "22:13:20.Z", "22:13:20,5Z")
    ),
    *(json.dumps(f"2023-11-14T22:13:20{zone}") for zone in ("+0000", "+24:00", "+00:60", "+00", " Z", "Z\n")),
)
_WRONG = {
    "symbol": ("1", "null", "true", '["B"]', "{}"),
    "ts": _NOT_TIMES,
    "price": _NOT_NUMBERS,
    "size": _NOT_NUMBERS,
}


def _of_a_wrong_type(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    name = choose.of(("symbol", "ts", "price", "size"))
    wrong: dict[str, str | None] = {name: choose.of(_WRONG[name])}
    return _with(config, offset, ts_ns, **wrong)


def _of_negative_size(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    literal = choose.of(("-1", "-5e-324", '"-0.5"', '"-1e300"', "-18446744073709551616"))
    return _with(config, offset, ts_ns, size=literal)


def _with_another_key(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    record = _with(config, offset, ts_ns)
    key = choose.of((None, b"", b"b", b"B ", b'"B"', b"\xff", b"AAPL"))
    return Record(offset, record.timestamp_ms, key, record.value)


def _out_of_range(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    sign = choose.of((1, -1))
    largest = LARGEST_EVENT_TIME_NS // UNIT_NS[config.unit]
    number = sign * choose.of((largest + 1, 2**63, 2**64, 10**25))
    dates = ('"1600-01-01T00:00:00Z"', '"2300-01-01T00:00:00Z"', '"9999-12-31T23:59:60-23:59"')
    return _with(config, offset, ts_ns, ts=choose.of((str(number), *dates)))


def _in_the_future(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    """Ahead of its record timestamp by the least that the unit allows, or by much."""
    unit_ns = UNIT_NS[config.unit]
    sent_ms = choose.of((0, 1, 1_700_000_000_000))
    ts = (sent_ms * 10**6 + config.max_future_skew_ns) // unit_ns + choose.of((1, 1, 10**6))
    record = _with(config, offset, ts_ns, ts=str(ts))
    return Record(offset, sent_ms, record.key, record.value)


def _bad_in_several_ways(choose: _Choices, config: Config, offset: int, ts_ns: int) -> Record:
    """The reasons have an order; here two or more apply."""
    choices: tuple[dict[str, str | None], ...] = (
        {"symbol": None, "price": "null"},
        {"ts": "true", "size": "-1"},
        {"size": "-1", "ts": str(2**64)},
        {"symbol": '"C"', "ts": str(2**64)},
        {"symbol": '"C"', "size": "-1"},
        {"ts": str(2**64), "symbol": "1"},
        {"price": "1e999", "ts": None},
    )
    record = _with(config, offset, ts_ns, **choose.of(choices))
    return Record(offset, choose.of((0, SENT_LATER_MS)), record.key, record.value)


_BAD: tuple[Bad, ...] = (
    _not_json,
    _not_an_object,
    _without_a_field,
    _of_a_wrong_type,
    _of_negative_size,
    _with_another_key,
    _out_of_range,
    _in_the_future,
    _bad_in_several_ways,
)
