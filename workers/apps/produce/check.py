"""What workers would make of rows that are about to be sent, found with the decoder that they use.

Two uses: `Preview` looks at the first rows of what is sent, and warns; `Check` goes through a whole file that isn't.
Both say why rows would be rejected, where the first one is, and which option or setting may help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import orjson

from workers.apps.produce.files import TickInput
from workers.apps.produce.names import as_option, suggested_map
from workers.apps.produce.parsers import Row
from workers.core.formats.corrections import Correction, correction_decoder
from workers.core.formats.json import tick_decoder
from workers.core.partitioning import partition_for
from workers.core.reasons import Reason
from workers.core.records import Record
from workers.core.ticks import EndOfInput, Rejection, Tick
from workers.settings.lane import tick_format
from workers.times import NS_PER_MS, UNIT_NS, describe_duration, format_duration, format_instant

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["Check", "Finding", "Preview", "RowJudge"]

K = TypeVar("K")

_PREVIEWED: Final = 1_000
_HOUR_NS: Final = 3_600 * 1_000 * NS_PER_MS
_EARLIEST_NS: Final = 631_152_000 * 1_000 * NS_PER_MS
"""1990: an integer that is a time between this and now in one unit is not so in any other."""

IMPLAUSIBLE: Final = "timestamp_implausible"
"""What is said of a tick before 1990 whose integer time would be of our days in another unit."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A row as the record that it becomes."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(slots=True)
class Finding:
    """How many rows have something in common, and the first of them: its line, what is said of it, its value."""

    line: int
    text: str
    value: bytes
    count: int = 0


class RowJudge:
    """Decodes rows as a worker with these settings would if they were sent now, and counts what it rejects."""

    def __init__(self, settings: Settings, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._form = tick_format(settings.tick)
        rules = settings.corrections.rules()
        self._decode: Callable[[Record], Tick | Correction | EndOfInput | Rejection] = (
            tick_decoder(self._form) if rules is None else correction_decoder(self._form, rules)
        )
        self._now_ns = now_ns
        self.rows = 0
        self.wrong: dict[str, Finding] = {}
        self._units: dict[str, Finding] = {}

    def see(self, rows: Sequence[Row]) -> list[tuple[int, Tick]]:
        """The ticks among the rows, with their lines; the others are counted in ``wrong``, by reason."""
        ticks = []
        sent_ms = self._now_ns() // NS_PER_MS
        for line, key, value in rows:
            found = self._decode(_Sent(line, sent_ms, key, value))
            if isinstance(found, Rejection):
                _count(self.wrong, found.reason.value, line, found.message, value)
                self._note_unit(line, value, sent_ms)
            elif isinstance(found, Tick):
                if found.ts_ns >= _EARLIEST_NS:
                    _count(self._units, self._form.unit, line, "", value)
                elif self._note_unit(line, value, sent_ms) not in (None, self._form.unit):
                    when = format_instant(found.ts_ns)
                    text = f"{self._form.ts} is {found.fields[self._form.ts]}; as {self._form.unit} that is {when}"
                    _count(self.wrong, IMPLAUSIBLE, line, text, value)
                    continue
                ticks.append((line, found))
        self.rows += len(rows)
        return ticks

    def _note_unit(self, line: int, value: bytes, sent_ms: int) -> str | None:
        """The one unit in which a row's integer time lies between 1990 and now."""
        number = _field(value, self._form.ts)
        if type(number) is not int:
            return None
        latest_ns = sent_ms * NS_PER_MS + self._form.max_future_skew_ns
        for unit, unit_ns in UNIT_NS.items():
            if _EARLIEST_NS <= number * unit_ns <= latest_ns:
                _count(self._units, unit, line, format_instant(number * unit_ns), value)
                return unit
        return None

    def remedies(self) -> list[str]:
        """What may help against what was found."""
        found = [self._unit_remedy(), self._names_remedy()]
        future = self.wrong.get(Reason.FUTURE_TIMESTAMP)
        if future is not None and not found[0]:
            skew = format_duration(self._form.max_future_skew_ns)
            found.append(f"is the date of line {future.line} right? Workers take times at most {skew} ahead of now")
        return [text for text in found if text]

    def _unit_remedy(self) -> str:
        unit = self._form.unit
        others = {name: each for name, each in self._units.items() if name != unit}
        if not others:
            return ""
        if len(self._units) == 1:
            [(other, first)] = others.items()
            return (
                f"the times look like {other}, not {unit}: with --set tick.timestamp_unit={other}, here and for the "
                f"workers, the one of line {first.line} is {first.text}"
            )
        parts = (f"{each.count:,} look like {name}, first in line {each.line}" for name, each in self._units.items())
        return f"the times change their unit: {'; '.join(parts)}. A topic has one unit; convert the others"

    def _names_remedy(self) -> str:
        missing = self.wrong.get(Reason.MISSING_FIELD)
        if missing is None:
            return ""
        fields = orjson.loads(missing.value)
        option = as_option(suggested_map(self._form, fields))
        return f"fields of line {missing.line} may be those that are missing: {option}" if option else ""


def _count(findings: dict[str, Finding], name: str, line: int, text: str, value: bytes) -> None:
    found = findings.get(name)
    if found is None:
        found = findings[name] = Finding(line, text, value)
    found.count += 1


def _field(value: bytes, name: str) -> object:
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return fields.get(name) if isinstance(fields, dict) else None


class Preview:
    """Warns once, from the first rows, when some of them would be rejected."""

    def __init__(self, settings: Settings, name: str, say: Callable[[str], None]) -> None:
        self._judge = RowJudge(settings)
        self._name = name
        self._say = say
        self._done = False

    def __call__(self, rows: Sequence[Row]) -> None:
        """Look at rows that are about to be sent; those after the first 1,000 are not looked at."""
        if self._done:
            return
        judge = self._judge
        judge.see(rows[: _PREVIEWED - judge.rows])
        self._done = bool(judge.wrong) or judge.rows >= _PREVIEWED
        if not judge.wrong:
            return
        count = sum(found.count for found in judge.wrong.values())
        self._say(f"{self._name}: warning: {_of(count, judge.rows)} would be rejected; --check says more")
        for line in (*_lines_for(judge), *(f"try: {text}" for text in judge.remedies())):
            self._say(f"  {line}")


def _of(count: int, rows: int) -> str:
    return "the first row" if rows == 1 else f"{count:,} of the first {rows:,} rows"


def _lines_for(judge: RowJudge) -> list[str]:
    return [
        f"{_rows(found.count)} {name}, first in line {found.line}: {found.text}" for name, found in judge.wrong.items()
    ]


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


class Check:
    """Goes through the rows of a file that is not sent: what would be rejected, and what would be late.

    Late is said of a worker that has seen nothing else: its clocks begin with the file.
    """

    def __init__(self, settings: Settings, file: TickInput) -> None:
        window = settings.window
        self._file = file
        self._judge = RowJudge(settings)
        self._lag_ns, self._lateness_ns = window.lag, window.allowed_lateness
        self._partitions = settings.topics.partitions if window.watermark_scope == "partition" else None
        self._newest_ns: dict[str, int] = {}
        self._clocks_ns: dict[str | int, int] = {}
        self._range_ns: tuple[int, int] | None = None
        self._disordered = 0
        self._most_behind_ns = 0
        self._late: Finding | None = None
        self._most_late_ns = 0

    def see(self, rows: Sequence[Row]) -> None:
        """Judge the next rows of the file."""
        for line, tick in self._judge.see(rows):
            first_ns, last_ns = self._range_ns or (tick.ts_ns, tick.ts_ns)
            self._range_ns = min(first_ns, tick.ts_ns), max(last_ns, tick.ts_ns)
            behind_ns = _behind(self._newest_ns, tick.symbol, tick.ts_ns)
            if behind_ns:
                self._disordered += 1
                self._most_behind_ns = max(self._most_behind_ns, behind_ns)
            self._look_for_late(line, tick)

    def _look_for_late(self, line: int, tick: Tick) -> None:
        scope = tick.symbol if self._partitions is None else partition_for(tick.symbol.encode(), self._partitions)
        behind_ns = _behind(self._clocks_ns, scope, tick.ts_ns)
        if behind_ns < self._lag_ns + self._lateness_ns or not behind_ns:
            return
        self._most_late_ns = max(self._most_late_ns, behind_ns)
        if self._late is None:
            text = f"{tick.symbol[:80]} at {format_instant(tick.ts_ns)} is {describe_duration(behind_ns)} behind"
            self._late = Finding(line, text, tick.value)
        self._late.count += 1

    @property
    def flawless(self) -> bool:
        """Whether every row would be sent, taken and in time."""
        unsent = self._file.refused.count + self._file.jumps.count
        return not (unsent or self._judge.wrong or self._late)

    def report(self) -> list[str]:
        """What was found, a line each."""
        judge, refused, jumps = self._judge, self._file.refused, self._file.jumps
        lines = [f"{self._file.name}: {_rows(judge.rows)} would be sent, of {_symbols(len(self._newest_ns))}"]
        if self._range_ns is not None:
            first_ns, last_ns = self._range_ns
            lines.append(f"times: {format_instant(first_ns)} to {format_instant(last_ns)}")
        if self._disordered:
            most = describe_duration(self._most_behind_ns)
            lines.append(f"order: {_rows(self._disordered)} after a later one of the symbol, by at most {most}")
        elif self._range_ns is not None:
            lines.append("order: by time, in each symbol")
        if refused.count:
            lines.append(f"not sent: {_rows(refused.count)} can't be read, first in {refused.first}")
        if jumps.count:
            lines.append(f"not sent: {_rows(jumps.count)} with a time that jumps (--max-jump), first in {jumps.first}")
        if self._file.unconfirmed.count:
            lines.append(f"look at: {_rows(self._file.unconfirmed.count)} far ahead, {self._file.unconfirmed.first}")
        lines += [f"rejected: {line}" for line in _lines_for(judge)]
        if self._late is not None:
            lines.append(f"late: {_rows(self._late.count)}, first in line {self._late.line}: {self._late.text}")
        lines += [f"try: {text}" for text in (*judge.remedies(), *self._late_remedies())]
        lines.append(
            "all rows would be accepted in time" if self.flawless else "not all rows would be accepted in time"
        )
        return lines

    def _late_remedies(self) -> list[str]:
        if self._late is None:
            return []
        if self._most_late_ns > _HOUR_NS:
            return ["sort the file by time, or find the wrong date that makes all after it late"]
        lag_ns = (self._most_late_ns - self._lateness_ns) // NS_PER_MS * NS_PER_MS + NS_PER_MS
        return [f"workers with --set window.lag={format_duration(lag_ns)} (now {format_duration(self._lag_ns)})"]


def _behind(clocks_ns: dict[K, int], key: K, ts_ns: int) -> int:
    """How far a time is behind the greatest of its key, which it may become."""
    greatest_ns = clocks_ns.get(key)
    if greatest_ns is None or ts_ns >= greatest_ns:
        clocks_ns[key] = ts_ns
        return 0
    return greatest_ns - ts_ns


def _symbols(count: int) -> str:
    return f"{count:,} symbol" if count == 1 else f"{count:,} symbols"
