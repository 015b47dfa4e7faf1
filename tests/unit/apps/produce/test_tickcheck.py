"""What ``workers produce`` says of a file before, or instead of, sending it: made with files as people have them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workers.apps.produce.check import Preview, RowJudge
from workers.apps.produce.files import open_ticks
from workers.commands.cli import app
from workers.core.ticks import TickFormat
from workers.errors import WorkersError
from workers.settings import load_settings

MS = 1_736_000_000_123
SETTINGS = load_settings(environ={})
CSV = "symbol,ts,price,size\n"


def check(tmp_path: Path, name: str, text: str, *options: str) -> tuple[int, str]:
    """Exit code and everything said of a file by ``--check``, which no broker can be reached from."""
    path = tmp_path / name
    path.write_text(text)
    result = CliRunner().invoke(app, ["produce", "--check", str(path), "-b", "127.0.0.1:1", *options])
    if isinstance(result.exception, WorkersError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def rows(*times: int | str, symbol: str = "A") -> str:
    return "".join(f"{symbol},{ts},{100 + number},1\n" for number, ts in enumerate(times))


def test_a_good_file_is_said_to_be_one(tmp_path: Path) -> None:
    code, said = check(tmp_path, "t.csv", CSV + rows(MS, MS + 60_000, MS + 59_000) + rows(MS, symbol="B"))
    assert code == 0, said
    assert "4 rows would be sent, of 2 symbols" in said
    assert "times: 2025-01-04T14:13:20.123Z to 2025-01-04T14:14:20.123Z" in said
    assert "order: 1 row after a later one of the symbol, by at most 1s" in said
    assert "all rows would be accepted in time" in said


def test_each_kind_of_rejection_is_shown_once_with_its_line(tmp_path: Path) -> None:
    text = CSV + rows(MS) + f"A,{MS},n/a,1\nA,{MS},,1\nA,{MS},1,-5\nA,x\nB,{MS},1,2\nB,2025-01-04 14:13:20.123,1,2\n"
    code, said = check(tmp_path, "t.csv", text)
    assert code == 1
    assert "3 rows wrong_type, first in line 3: price is 'n/a'" in said
    assert "1 row negative_size, first in line 5: size is -5" in said
    assert "not sent: 1 row can't be read, first in line 6: 2 columns; the header has 4" in said
    assert "6 rows would be sent, of 2 symbols" in said


def test_late_rows_are_counted_by_the_settings_in_force_and_the_lag_that_helps_is_named(tmp_path: Path) -> None:
    text = CSV + rows(MS, MS + 10_000, MS + 7_000, MS + 7_001, MS + 8_001)
    code, said = check(tmp_path, "t.csv", text, "--set", "window.lag=2s")
    assert code == 1
    assert "late: 2 rows, first in line 4: A at 2025-01-04T14:13:27.123Z is 3s behind" in said
    assert "window.lag=3001ms (now 2s)" in said
    assert check(tmp_path, "t.csv", text, "--set", "window.lag=3001ms")[0] == 0


def test_with_one_clock_per_partition_a_symbol_can_make_another_late(tmp_path: Path) -> None:
    text = CSV + rows(MS + 60_000) + rows(MS, symbol="B")
    one = ("--set", "topics.partitions=1", "--set", "window.watermark_scope=partition")
    assert check(tmp_path, "t.csv", text)[0] == 0
    assert "late: 1 row, first in line 3: B" in check(tmp_path, "t.csv", text, *one)[1]


def test_a_file_sorted_by_symbol_is_sent_whole_and_in_its_order(tmp_path: Path) -> None:
    hours = [1_735_999_201_000 + hour * 3_600_000 for hour in range(72)]
    code, said = check(tmp_path, "t.csv", CSV + rows(*hours, symbol="AAA") + rows(*hours, symbol="BBB"))
    assert code == 0, said
    assert "144 rows would be sent, of 2 symbols" in said


# -- units ------------------------------------------------------------------------------------------------------------


def test_times_in_seconds_read_as_milliseconds_are_noticed_and_the_unit_is_named(tmp_path: Path) -> None:
    text = CSV + rows(1_736_000_000, 1_736_003_600, 1_736_007_200)
    code, said = check(tmp_path, "t.csv", text)
    assert code == 1
    assert "3 rows timestamp_" in said
    assert "1970-01-21" in said
    assert "--set tick.timestamp_unit=s, here and for the workers, the one of line 2 is 2025-01-04T14:13:20Z" in said
    assert check(tmp_path, "t.csv", text, "--set", "tick.timestamp_unit=s")[0] == 0


@pytest.mark.parametrize(("unit", "wrong"), [("ms", "3 look like us, first in line 4"), ("us", "2 look like ms")])
def test_a_file_that_changes_its_unit_is_noticed_from_either_side(tmp_path: Path, unit: str, wrong: str) -> None:
    micros = [MS * 1_000 + each * 1_000_000 for each in (60, 120, 180)]
    text = CSV + rows(MS, MS + 59_000, *micros)
    code, said = check(tmp_path, "t.csv", text, "--set", f"tick.timestamp_unit={unit}")
    assert code == 1
    assert "the times change their unit" in said
    assert wrong in said


def test_old_data_are_not_taken_for_a_wrong_unit() -> None:
    judge = RowJudge(SETTINGS)
    judge.see([(1, b"A", b'{"symbol":"A","ts":157766400000,"price":1,"size":1}')])  # 1975
    assert judge.remedies() == []


def test_a_date_in_the_future_is_pointed_at(tmp_path: Path) -> None:
    ahead = time.time_ns() // 1_000_000 + 3_600_000
    code, said = check(tmp_path, "t.csv", CSV + rows(ahead))
    assert code == 1
    assert "1 row future_timestamp, first in line 2" in said
    assert "is the date of line 2 right?" in said


# -- one wrong date ---------------------------------------------------------------------------------------------------


def one_bad_date() -> str:
    times = [MS + number * 1_000 for number in range(200)]
    times[100] += 2 * 86_400_000
    return CSV + rows(*times)


def test_one_wrong_date_is_held_back_and_named(tmp_path: Path) -> None:
    code, said = check(tmp_path, "t.csv", one_bad_date())
    assert code == 1
    assert "199 rows would be sent" in said
    assert "not sent: 1 row with a time that jumps (--max-jump), first in line 102" in said
    assert "late" not in said


def test_a_last_row_that_is_far_ahead_is_sent_and_said(tmp_path: Path) -> None:
    """No later row of its symbol can contradict it; but the next file's would be late by it."""
    two_days_later = MS + 2 * 86_400_000
    said = check(tmp_path, "t.csv", f"{CSV}A,{MS},1,1\nA,{MS + 1_000},1,1\nA,{two_days_later},1,1\n")[1]
    assert "3 rows would be sent" in said
    assert "look at: 1 row far ahead, line 4: its time, 2025-01-06T" in said


def test_without_the_guard_everything_after_a_wrong_date_is_late(tmp_path: Path) -> None:
    said = check(tmp_path, "t.csv", one_bad_date(), "--max-jump", "0")[1]
    assert "late: 99 rows, first in line 103" in said


# -- names ------------------------------------------------------------------------------------------------------------

TYPO = f'{{"sym":"A","tme":{MS},"p":100,"q":1}}\n{{"sym":"A","tme":{MS + 1_000},"p":101,"q":1}}\n'


@pytest.mark.parametrize("name", ["t.ndjson", "t.csv"])
def test_a_field_map_that_names_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    text = TYPO if name.endswith("json") else f"sym,tme,p,q\nA,{MS},100,1\n"
    code, said = check(tmp_path, name, text, "--field-map", "symbol=sym,ts=time,price=p,size=q")
    assert code == 2
    assert "--field-map names time, which is not in the file; found sym, tme, p, q. Is tme meant?" in said
    assert check(tmp_path, name, text, "--field-map", "symbol=sym,ts=tme,price=p,size=q")[0] == 0


@pytest.mark.parametrize("name", ["t.ndjson", "t.csv"])
def test_a_field_map_onto_a_name_that_the_file_has_is_refused(tmp_path: Path, name: str) -> None:
    text = f"symbol,ts,exchange_ts,price,size\nA,{MS + 99_000},{MS},100.5,1\n"
    if name.endswith("json"):
        text = f'{{"symbol":"A","ts":{MS + 99_000},"exchange_ts":{MS},"price":100.5,"size":1}}\n'
    code, said = check(tmp_path, name, text, "--field-map", "ts=exchange_ts")
    assert code == 2
    assert "would name exchange_ts ts, but the file has a field ts of its own" in said
    assert check(tmp_path, name, text, "--set", "tick.ts=exchange_ts")[0] == 0


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (TYPO, "--field-map symbol=sym,ts=tme,price=p,size=q"),
        (
            '{"e":"trade","s":"BTCUSDT","t":1,"p":"100.5","q":"1","T":1736000000123,"m":true}',
            "symbol=s,ts=T,price=p,size=q",
        ),
        (
            '{"ev":"T","sym":"AAPL","x":4,"p":100.5,"s":1,"c":[37],"t":1736000000123,"q":1}',
            "symbol=sym,ts=t,price=p,size=s",
        ),
        (
            '{"pair":"XBTUSD","price":"100.5","volume":"1","time":"2025-01-04T14:13:20Z"}',
            "symbol=pair,ts=time,size=volume",
        ),
        ('{"product_id":"BTC-USD","price":"1","last_size":"1","time":"2025-01-04T14:13:20Z"}', "size=last_size"),
        ('{"params":{"data":[]},"jsonrpc":"2.0"}', "the symbol, as a string\n"),
        ('[{"sym":"A"}]', "jq -c"),
        ('{"symbol":118,"ts":1736000000123,"price":100.5,"size":1}', "Expected str, got int at $.symbol"),
    ],
)
def test_fields_of_other_names_are_recognised(tmp_path: Path, line: str, option: str) -> None:
    code, said = check(tmp_path, "t.ndjson", line)
    assert code == 1
    assert option in said


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("timestamp,symbol,side,size,price,grossValue\n", "--field-map ts=timestamp"),
        ("ticker,id,participant_timestamp,price,size\n", "--field-map symbol=ticker,ts=participant_timestamp"),
        ("1001,100.50000000,1.00000000,1736000000123456,True\n", "the header missing?"),
        ("51200123,1005000,1,P,0,0\n", "the header missing?"),
        ("symbol;ts;price;size\n", "Is the semicolon its separator?"),
        ("<DATE>\t<TIME>\t<BID>\t<ASK>\n", "Is the tab its separator?"),
    ],
)
def test_a_csv_file_of_another_layout_says_what_may_help(tmp_path: Path, header: str, said: str) -> None:
    assert said in check(tmp_path, "t.csv", header)[1]


def test_utf16_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes((CSV + rows(MS)).encode("utf-16"))
    file = open_ticks(path, TickFormat(), say=pytest.fail)
    with pytest.raises(WorkersError, match="UTF-16; expected UTF-8"):
        file.parse(file.read_block())
    file.close()


def test_ticks_without_a_field_get_the_option_that_would_give_it() -> None:
    judge = RowJudge(SETTINGS)
    judge.see([(7, b"A", b'{"symbol":"A","tme":%d,"px":1,"qty":1}' % MS)])
    assert judge.remedies() == [
        "fields of line 7 may be those that are missing: --field-map ts=tme,price=px,size=qty",
    ]


# -- the warning ------------------------------------------------------------------------------------------------------


def preview_of(tmp_path: Path, name: str, text: str) -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    said: list[str] = []
    file = open_ticks(path, TickFormat(), say=said.append)
    file.preview = Preview(SETTINGS, "t", said.append)
    sent = 0
    while block := file.read_block():
        sent += len(file.parse(block))
    sent += len(file.parse(b""))
    file.close()
    assert sent == text.count("\n") - name.endswith("csv")
    return said


def test_the_first_rows_are_looked_at_and_all_are_sent(tmp_path: Path) -> None:
    assert preview_of(tmp_path, "t.csv", CSV + rows(MS, MS + 1)) == []
    said = preview_of(tmp_path, "t.csv", CSV + rows(1_736_000_000, 1_736_000_001))
    assert said[0] == "t: warning: 2 of the first 2 rows would be rejected; --check says more"
    assert "2 rows timestamp_" in said[1]
    assert said[2].startswith("  try: the times look like s, not ms")
    assert len(said) == 3


def test_the_warning_comes_once_and_only_for_the_first_thousand_rows(tmp_path: Path) -> None:
    good = [f'{{"symbol":"A","ts":{MS + number},"price":1,"size":1}}\n' for number in range(1_000)]
    bad = '{"symbol":"A"}\n'
    assert preview_of(tmp_path, "t.ndjson", "".join([*good, bad])) == []
    said = preview_of(tmp_path, "t.ndjson", "".join([*good[1:], bad * 30_000]))
    assert [line for line in said if "warning" in line] == [
        "t: warning: 1 of the first 1,000 rows would be rejected; --check says more"
    ]


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_waits_for_a_pipe_ends_when_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "workers", "produce", "--check", "-", "--format", "csv"]
    process = subprocess.Popen(command, stdin=reading, stdout=-1, stderr=-1, cwd=tmp_path)
    os.close(reading)
    try:
        os.write(writing, (CSV + rows(MS)).encode())
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s and _unread(writing):
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        os.close(writing)
        if process.poll() is None:
            process.kill()
            process.wait(timeout=10)
    assert process.returncode == 130, err
    assert b"1 row would be sent" in out
    assert b"stopped before the end" in out
    assert b"Traceback" not in err


def _unread(pipe: int) -> int:
    """The bytes in a pipe that nobody has read yet."""
    size = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)
