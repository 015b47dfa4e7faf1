"""Files of ticks: what passes through, what is renamed, what is refused and where it stood."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from workers.apps.produce.files import TickInput, open_ticks
from workers.apps.produce.parsers import MAX_TICK_BYTES, CsvParser, NdjsonParser, Refused, TickParser
from workers.core.formats.json import tick_decoder
from workers.core.ticks import Tick, TickFormat
from workers.errors import ConfigError, WorkersError

FORM = TickFormat()


@dataclass
class Sent:
    """A record as the worker gets it."""

    key: bytes
    value: bytes
    offset: int = 0
    timestamp: int = 1_767_000_000_000
    headers: tuple[tuple[str, bytes], ...] = ()


def refused() -> tuple[Refused, list[str]]:
    said: list[str] = []
    return Refused("f", said.append), said


def parse(parser: TickParser, data: bytes, *, step: int = 1 << 20) -> list[tuple[bytes, bytes]]:
    rows = []
    for position in range(0, len(data), step):
        rows += parser.feed(data[position : position + step])
    rows += parser.finish()
    assert [line for line, _, _ in rows] == sorted({line for line, _, _ in rows})
    return [(key, value) for _, key, value in rows]


def read(file: TickInput) -> list[tuple[bytes, bytes]]:
    ticks = []
    while block := file.read_block():
        ticks += file.parse(block)
    ticks += file.parse(b"")
    file.close()
    return ticks


# -- NDJSON ------------------------------------------------------------------------------------------------------------


def test_a_line_passes_byte_for_byte_and_its_symbol_is_the_key() -> None:
    line = b'{ "ts":1, "x":[1,{"symbol":"no"}], "symbol" : "\\u00c4\xc3\x84", "price":1.50 }'
    collector, said = refused()
    assert parse(NdjsonParser(FORM, collector), line + b"\r\n") == [("ÄÄ".encode(), line)]
    assert said == []


def test_what_only_a_worker_can_judge_is_not_judged_here() -> None:
    lines = b'{"symbol":"A"}\n{"symbol":"A","price":"NaN"}\n{"symbol":"","ts":true}\n'
    collector, _ = refused()
    assert [key for key, _ in parse(NdjsonParser(FORM, collector), lines)] == [b"A", b"A", b""]
    assert collector.count == 0


def test_lines_without_a_readable_symbol_are_refused_with_their_numbers() -> None:
    data = b'{"symbol":"A"}\n\n{"symbol":1}\nnot json\n{"sym":"A"}\n[1]\n{"symbol":"\\ud800"}\n{"symbol":"B"}'
    collector, said = refused()
    assert [key for key, _ in parse(NdjsonParser(FORM, collector), data)] == [b"A", b"B"]
    assert [text.split(":")[1] for text in said] == ["3", "4", "5", "6", "7"]
    assert collector.count == 5


def test_only_the_first_refusals_are_shown_but_all_are_counted() -> None:
    collector, said = refused()
    parse(NdjsonParser(FORM, collector), b"x\n" * 1_000)
    assert collector.count == 1_000
    assert len(said) == 21


@given(
    st.lists(st.sampled_from([b'{"symbol":"A"}', b"", b"x", b'{"symbol":"\xc3\xa9","p":1}\r', b" "])), st.integers(1, 9)
)
def test_where_blocks_end_changes_nothing(lines: list[bytes], step: int) -> None:
    data = b"\n".join(lines)
    (one, said_one), (other, said_other) = refused(), refused()
    assert parse(NdjsonParser(FORM, one), data) == parse(NdjsonParser(FORM, other), data, step=step)
    assert said_one == said_other


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    collector, _ = refused()
    assert parse(NdjsonParser(FORM, collector), b'\xef\xbb\xbf{"symbol":"A"}\n') == [(b"A", b'{"symbol":"A"}')]


def test_a_line_longer_than_any_tick_is_refused_without_being_held() -> None:
    data = b'{"symbol":"A"}\n' + b"x" * (3 * MAX_TICK_BYTES) + b'\n{"symbol":"B"}\nx\n'
    collector, said = refused()
    ticks = parse(NdjsonParser(FORM, collector), data, step=100_000)
    assert [key for key, _ in ticks] == [b"A", b"B"]
    assert [text.split(":")[1] for text in said] == ["2", "4"]


def test_renaming_moves_the_files_fields_to_the_configured_names() -> None:
    collector, _ = refused()
    form = TickFormat(symbol="s", ts="T", price="p", size="q")
    parser = NdjsonParser(form, collector, {"sym": "s", "t": "T"})
    [(key, value)] = parse(parser, b'{"sym":"A","t":5,"p":"1.10","q":2}\n')
    assert key == b"A"
    assert orjson.loads(value) == {"s": "A", "T": 5, "p": "1.10", "q": 2}


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_csv_numbers_keep_their_digits_and_symbols_stay_text() -> None:
    data = b'symbol, ts,price,size,venue\n600519,1700000000000,1.50,0.10,"SSE, main"\r\nA,2026-01-05T14:30:00Z,,007,x\n'
    collector, said = refused()
    assert parse(CsvParser(FORM, collector), data, step=7) == [
        (b"600519", b'{"symbol":"600519","ts":1700000000000,"price":1.50,"size":0.10,"venue":"SSE, main"}'),
        (b"A", b'{"symbol":"A","ts":"2026-01-05T14:30:00Z","price":"","size":"007","venue":"x"}'),
    ]
    assert said == []


@pytest.mark.parametrize("ids", [["1e5", "10e4", "100e3", "100000", "7"], ["9fa3c21b", "12e45678", "0a", "-1", "1.0"]])
def test_an_id_in_a_csv_file_is_text_though_it_may_look_like_a_number(ids: list[str]) -> None:
    rows = [f"A,{1_736_000_000_123 + number * 1000},100.5,1,{id_}" for number, id_ in enumerate(ids)]
    collector, _ = refused()
    ticks = parse(CsvParser(FORM, collector), "\n".join(["symbol,ts,price,size,id", *rows]).encode())
    decoded = [tick_decoder(FORM)(Sent(key, value)) for key, value in ticks]
    assert [tick.fields["id"] for tick in decoded if isinstance(tick, Tick)] == ids
    assert [type(value) for value in orjson.loads(ticks[0][1]).values()] == [str, int, float, int, str]


def test_what_is_a_number_in_a_csv_file_follows_the_tick_format() -> None:
    form = TickFormat(symbol="s", ts="T", price="p", size="q")
    data = b"s,T,p,q,ts,price\n1,1700000000000,1e2,0.10,5,6\n2,1.5,1e999,-1e-3,x,1e9\n3,1e12,+1,.5,,"
    collector, _ = refused()
    assert [value for _, value in parse(CsvParser(form, collector), data)] == [
        b'{"s":"1","T":1700000000000,"p":1e2,"q":0.10,"ts":"5","price":"6"}',
        b'{"s":"2","T":"1.5","p":"1e999","q":-1e-3,"ts":"x","price":"1e9"}',
        b'{"s":"3","T":"1e12","p":"+1","q":".5","ts":"","price":""}',
    ]


def test_sale_conditions_in_a_csv_file_keep_what_is_between_the_commas() -> None:
    data = b'symbol,ts,price,size,cond\nA,1,100.00,500,@\nA,2,103.50,3,@ I\nA,3,97.00,1000,"12,37"\nA,4,1,1,37'
    collector, _ = refused()
    found = [orjson.loads(value)["cond"] for _, value in parse(CsvParser(FORM, collector), data)]
    assert found == ["@", "@ I", "12,37", "37"]


def test_a_csv_line_that_does_not_fit_the_header_is_refused_alone() -> None:
    data = b'symbol,ts,price,size\nA,1,2,3\nA,1,2\n"A,1,2,3\nA,1,2,3,4\nB,1,2,3\n\xff,1,2,3'
    collector, said = refused()
    assert [key for key, _ in parse(CsvParser(FORM, collector), data)] == [b"A", b"B"]
    assert [text.split(":")[1] for text in said] == ["3", "4", "5", "7"]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"sym,t,price,size\nA,1,2,3\n", "symbol, ts; found sym, t, price, size"),
        (b"symbol,ts,price,size,ts\n", "more than once"),
        (b"symbol;ts;price;size\nA;1;2;3\n", r"Is the semicolon its separator\? Expected commas"),
        (b"symbol\tts\tprice\tsize\n", "Is the tab its separator"),
        (b"symbols\n", "--field-map"),
        (b"", "no header"),
    ],
)
def test_a_header_that_can_not_be_used_is_an_error_that_says_what_was_found(header: bytes, what: str) -> None:
    collector, _ = refused()
    with pytest.raises(ConfigError, match=what):
        parse(CsvParser(FORM, collector), header)


# -- names ------------------------------------------------------------------------------------------------------------


def test_two_fields_can_change_places() -> None:
    collector, _ = refused()
    line = b'{"symbol":"A","ts":1,"price":2,"size":1.50}\n'
    [(_, value)] = parse(NdjsonParser(FORM, collector, {"size": "price", "price": "size"}), line)
    assert orjson.loads(value) == {"symbol": "A", "ts": 1, "price": 1.5, "size": 2}


def test_renaming_changes_no_digit_of_any_field() -> None:
    collector, _ = refused()
    line = b'{"s":"A","ts":1,"price":1.50,"size":1,"at":1736000000.123456789,"id":[123456789012345678901]}\n'
    [(_, value)] = parse(NdjsonParser(FORM, collector, {"s": "symbol"}), line)
    assert b'"at":1736000000.123456789' in value
    assert b'"id":[123456789012345678901]' in value
    assert b'"price":1.50' in value


@pytest.mark.parametrize("step", [10, 1 << 20])
def test_a_named_field_has_to_be_in_one_of_the_first_objects(step: int) -> None:
    collector, said = refused()
    status = b'[1]\n{"event":"subscribed"}\n'
    good = b'{"s":"A","t":1,"price":2,"size":3}\n'
    mapping = {"s": "symbol", "t": "ts"}
    assert len(parse(NdjsonParser(FORM, collector, mapping), status + good, step=step)) == 1
    assert len(said) == 2
    for data in (b'{"s":"A","T":1}\n', status + b'{"symbol":"A","t":1}\n', b'{"S":"A"}\n' * 1_000):
        with pytest.raises(ConfigError, match="which is not in the file"):
            parse(NdjsonParser(FORM, collector, mapping), data, step=step)
    assert parse(NdjsonParser(FORM, collector, mapping), b"") == []


def test_many_objects_without_a_named_field_end_it_before_the_end() -> None:
    collector, _ = refused()
    with pytest.raises(ConfigError, match="names sym, which is not in the file"):
        NdjsonParser(FORM, collector, {"sym": "symbol"}).feed(b'{"x":1}\n' * 1_000)


def test_a_later_line_that_has_both_names_is_refused_alone() -> None:
    collector, said = refused()
    parser = NdjsonParser(FORM, collector, {"t": "ts"})
    good = b'{"symbol":"A","t":1}\n'
    rows = parser.feed(good) + parser.feed(b'{"symbol":"A","t":1,"ts":2}\n' + good)
    assert [line for line, _, _ in rows] == [1, 3]
    assert said == ["f:2: the line has both ts and t, which --field-map would name ts"]


@pytest.mark.parametrize("renamed", [{}, {"s": "symbol"}])
def test_a_line_nested_too_deep_to_be_skipped_is_refused_alone(renamed: dict[str, str]) -> None:
    name = b"s" if renamed else b"symbol"
    good = b'{"%s":"A"}\n' % name
    deep = b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b',"%s":"A"}\n' % name
    collector, said = refused()
    assert len(parse(NdjsonParser(FORM, collector, renamed), good + deep + good)) == 2
    assert said == ["f:2: nested too deep"]


# -- jumps of time ----------------------------------------------------------------------------------------------------

DAY_MS = 86_400_000


def guarded(tmp_path: Path, rows: list[tuple[str, object]], *, name: str = "t.csv") -> tuple[list[int], list[str]]:
    """What is given out of a file with a row for each symbol and time: the places of its rows in order."""
    path = tmp_path / name
    if name == "t.csv":
        lines = ["symbol,ts,price,size", *(f"{symbol},{ts},{place},1" for place, (symbol, ts) in enumerate(rows))]
    else:
        lines = [f'{{"symbol":"{symbol}","ts":{ts},"price":{place}}}' for place, (symbol, ts) in enumerate(rows)]
    path.write_text("\n".join(lines))
    said: list[str] = []
    file = open_ticks(path, FORM, say=said.append)
    file.guard_jumps(DAY_MS * 1_000_000)
    places = [orjson.loads(value)["price"] for _, value in read(file)]
    assert (file.jumps.count + file.unconfirmed.count, file.refused.count) == (len(said), 0)
    return places, [text.removeprefix(str(path)) for text in said]


@pytest.mark.parametrize("name", ["t.csv", "t.ndjson"])
def test_one_wrong_date_is_not_sent_and_named_by_its_line(tmp_path: Path, name: str) -> None:
    times = [1_736_000_000_000 + number * 1_000 for number in range(200)]
    times[100] += 2 * DAY_MS
    places, said = guarded(tmp_path, [("A", ts) for ts in times], name=name)
    assert places == [place for place in range(200) if place != 100]
    line = 102 if name == "t.csv" else 101
    assert said == [
        f":{line}: its time, 2025-01-06T14:15:00Z, is far ahead of all before it, and line {line + 1} of the symbol "
        "goes back to 2025-01-04T14:15:01Z; not sent (--max-jump)"
    ]


def test_a_weekend_is_no_wrong_date(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [
        ("A", 0),
        ("B", 1),
        ("A", 3 * DAY_MS),
        ("A", 3 * DAY_MS + 1),
        ("B", 3 * DAY_MS),
    ]
    assert guarded(tmp_path, rows) == ([0, 1, 2, 3, 4], [])


def test_a_row_that_is_held_waits_for_its_own_symbol_and_is_sent_at_the_end_of_the_file(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [("A", 0), ("A", 3 * DAY_MS), ("B", 1), ("B", 2)]
    places, said = guarded(tmp_path, rows)
    assert places == [0, 2, 3, 1]
    assert len(said) == 1
    assert said[0].startswith(":3: its time, 1970-01-04T00:00:00Z, is far ahead of all before it, and no later row")


def test_a_time_that_no_worker_takes_says_nothing_of_others(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [("A", 0), ("A", "2025-01-04 10:00"), ("A", 10**30), ("A", 1.5), ("A", 1)]
    assert guarded(tmp_path, rows) == ([0, 1, 2, 3, 4], [])


def test_times_as_text_are_judged_too(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [("A", f"2025-01-{day}T10:00:00+01:00") for day in ("04", "07", "04")]
    assert guarded(tmp_path, rows)[0] == [0, 2]


# -- files -------------------------------------------------------------------------------------------------------------

LINES = b"".join(b'{"symbol":"S%d","ts":%d}\n' % (number % 7, number) for number in range(50_000))


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", "two frames.zst"])
def test_packed_files_hold_the_same_ticks(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"ticks.ndjson{packing.removeprefix('two frames')}"
    half = len(LINES) // 2
    zstd = zstandard.ZstdCompressor()
    packed = {
        "": LINES,
        ".gz": gzip.compress(LINES),
        ".zst": zstd.compress(LINES),
        "two frames.zst": zstd.compress(LINES[:half]) + zstd.compress(LINES[half:]),
    }
    path.write_bytes(packed[packing])
    ticks = read(open_ticks(path, FORM, say=pytest.fail))
    assert b"".join(value + b"\n" for _, value in ticks) == LINES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_off_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ticks.ndjson{suffix}"
    packed = gzip.compress(LINES) if suffix == ".gz" else zstandard.ZstdCompressor().compress(LINES)
    path.write_bytes(packed[: len(packed) // 2])
    file = open_ticks(path, FORM, say=pytest.fail)
    with pytest.raises(WorkersError, match="damaged"):
        read(file)
    file.close()


def test_a_file_of_unknown_kind_or_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ticks.bin"
    with pytest.raises(ConfigError, match="no such file"):
        open_ticks(path, FORM, say=pytest.fail)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="--format"):
        open_ticks(path, FORM, say=pytest.fail)


@pytest.mark.parametrize("mapping", ["ts", "ts=", "when=T", "ts=T,price=T", "ts=a,ts=b"])
def test_a_field_map_that_says_nothing_clear_is_refused(tmp_path: Path, mapping: str) -> None:
    path = tmp_path / "t.ndjson"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="--field-map"):
        open_ticks(path, FORM, say=pytest.fail, mapping=mapping)
