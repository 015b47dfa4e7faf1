"""NDJSON and CSV into the keys and values of records.

Parsers are fed blocks of bytes and give back rows. A JSON line that needs no renaming passes through byte for byte;
only its symbol is read, since that is the record's key. Whether the rest is a tick is for the worker to say, which
keeps what it rejects. A line whose symbol can't be read has no key, so it can't be sent: it is *refused*, with file and
line, and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import orjson

from workers.apps.produce.names import ROLES, as_option, closest, role_names, suggested_map
from workers.core.ticks import TickFormat
from workers.errors import ConfigError
from workers.times import MAX_EVENT_TIME_NS, parse_rfc3339

__all__ = [
    "MAX_TICK_BYTES",
    "CsvParser",
    "NdjsonParser",
    "Refused",
    "Row",
    "TickParser",
    "field_renames",
    "raw_fields",
    "time_reader",
]

MAX_TICK_BYTES: Final = 900_000
"""Longest value that is sent: with its key it fits a broker's default ``message.max.bytes`` even uncompressed."""

_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_REPORTED: Final = 20
_UNDECIDED_OBJECTS: Final = 1_000
_OTHER_SEPARATORS: Final = {";": "the semicolon", "\t": "the tab", "|": "the bar |"}

Row = tuple[int, bytes, bytes]
"""The number of a line, from 1, and the key and value of the record that it becomes."""

raw_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""The fields of a JSON object as they are written."""

_JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)", re.ASCII)
_JSON_NUMBER = re.compile(_JSON_INTEGER.pattern + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


@dataclass(slots=True)
class Refused:
    """Lines that could not be sent: counted, and the first of them reported through ``say``."""

    name: str
    say: Callable[[str], None]
    count: int = 0
    first: str = ""
    """The first of them and what was wrong with it, like ``line 7: not JSON``."""

    def add(self, line: int, why: str) -> None:
        """Count a line (numbered from 1) and report it while there are few."""
        self.count += 1
        self.first = self.first or f"line {line}: {why}"
        if self.count <= _REPORTED:
            self.say(f"{self.name}:{line}: {why}")
        elif self.count == _REPORTED + 1:
            self.say(f"{self.name}: more lines are refused; they are counted from here on")


class TickParser(Protocol):
    """Turns blocks of a file into rows.

    Raises ``ConfigError`` before it gives out the first where a field of the file that was named is not there, or one
    would come to have the name of another.
    """

    def feed(self, block: bytes) -> list[Row]:
        """The ticks whose lines end in this block."""
        ...

    def finish(self) -> list[Row]:
        """What a last line without a line end holds."""
        ...


class _Lines:
    """Splits blocks into lines and numbers them; a line longer than any tick is dropped as it passes by."""

    def __init__(self, refused: Refused) -> None:
        self._refused = refused
        self._tail = b""
        self._skipping = False
        self._started = False
        self.number = 0  # of the last line before those last handed out

    def split(self, block: bytes) -> list[bytes]:
        """The lines that end in this block, without their ends, after what was left of the one before."""
        if not self._started:
            self._started = True
            if block.startswith(_UTF16_BOMS):
                raise ConfigError(f"{self._refused.name}: UTF-16; expected UTF-8, as iconv -f UTF-16 -t UTF-8 makes it")
            block = block.removeprefix(_BOM)
        if self._skipping:
            _, end, block = block.partition(b"\n")
            if not end:
                return []
            self._skipping = False
            self.number += 1
        lines = (self._tail + block).split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > MAX_TICK_BYTES:
            self._refused.add(self.number + len(lines) + 1, _too_long(len(self._tail)))
            self._tail, self._skipping = b"", True
        return lines

    def rest(self) -> list[bytes]:
        """The last line, where the file does not end in a line end."""
        tail, self._tail = self._tail, b""
        return [tail] if tail else []


def _too_long(size: int) -> str:
    return f"{size:,} bytes or more; a tick may have {MAX_TICK_BYTES:,}"


def _symbol_reader(field_name: str) -> Callable[[bytes], Any]:
    """Reads one field of a JSON object, skipping over the others, which costs half of what reading all does. What it
    returns has that field, a string, as ``symbol``."""
    struct = msgspec.defstruct("WithSymbol", [("symbol", str)], rename={"symbol": field_name})
    return msgspec.json.Decoder(struct).decode


def time_reader(form: TickFormat) -> Callable[[bytes], int | None]:
    """Reads the event time of a tick's JSON in nanoseconds; None where it has none that a worker would take."""
    struct = msgspec.defstruct("WithTime", [("ts", msgspec.Raw)], rename={"ts": form.ts})
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
    unit_ns = form.unit_ns

    def read(value: bytes) -> int | None:
        try:
            raw = bytes(decode(value).ts)
            ts_ns = parse_rfc3339(orjson.loads(raw)) if raw[0] == 34 else int(raw) * unit_ns
        except (ValueError, RecursionError):
            return None
        return ts_ns if abs(ts_ns) <= MAX_EVENT_TIME_NS else None

    return read


class _Renaming:
    """Gives fields of JSON objects their names in the tick format; what they hold stays as it is written.

    Whether the mapping can be meant shows in the first objects: nothing is handed out before each field that it names
    was seen once.
    """

    def __init__(self, name: str, form: TickFormat, renamed: Mapping[str, str]) -> None:
        self._name = name
        self._form = form
        self._renamed = {old: new for old, new in renamed.items() if old != new}
        self._targets = {new: old for old, new in self._renamed.items() if new not in renamed}
        self._unseen = set(renamed)
        self._mapping = renamed
        self._found: dict[str, None] = {}
        self._objects = 0
        self._decided = not renamed

    @property
    def needed(self) -> bool:
        """Whether lines have to go through here."""
        return bool(self._renamed) or not self._decided

    def apply(self, line: bytes) -> bytes:
        """The line with its fields renamed. Raises ``ValueError``, and ``ConfigError`` while nothing is decided."""
        fields = raw_fields(line)
        both = next((new for new, old in self._targets.items() if new in fields and old in fields), None)
        if not self._decided:
            self._objects += 1
            self._unseen.difference_update(fields)
            if len(self._found) < 100:
                self._found.update(dict.fromkeys(fields))
            if both is not None:
                raise ConfigError(f"{self._name}: {_named_twice(self._form, both, self._targets[both])}")
        elif both is not None:
            raise ValueError(f"the line has both {both} and {self._targets[both]}, which --field-map would name {both}")
        if not self._renamed:
            return line
        moved = {new: fields.pop(old) for old, new in self._renamed.items() if old in fields}
        return msgspec.json.encode(fields | moved)

    def decide(self, rows: Sequence[Row], *, ended: bool) -> None:
        """Called at the end of each block, with what it gives. Raises ``ConfigError`` where a named field is missing
        although there are ticks, or many objects, or all of them."""
        if self._decided or not self._unseen:
            self._decided = True
        elif rows or self._objects >= _UNDECIDED_OBJECTS or (ended and self._objects):
            raise ConfigError(f"{self._name}: {_not_there(self._mapping, self._unseen, self._found)}")


def _not_there(renamed: Mapping[str, str], missing: Iterable[str], found: Iterable[str]) -> str:
    """That fields named by ``--field-map`` are not in the file, and which ones may be meant."""
    gone = [name for name in renamed if name in set(missing)]
    free = [name for name in found if name not in renamed]
    likely = [name for name in (closest(each, free) for each in gone) if name is not None]
    meant = f" Is {', '.join(likely)} meant?" if likely else ""
    return f"--field-map names {', '.join(gone)}, which is not in the file; found {', '.join(found)[:200]}.{meant}"


def _named_twice(form: TickFormat, target: str, source: str) -> str:
    """That a field would get a name which another one has, and what to do instead."""
    role = next(role for role, name in role_names(form).items() if name == target)
    return (
        f"--field-map would name {source} {target}, but the file has a field {target} of its own. To take {source} "
        f"instead, leave the names as they are and give this command and the workers --set tick.{role}={source}"
    )


class NdjsonParser:
    """JSON objects, one a line. ``renamed`` maps the file's field names to those of the tick format."""

    def __init__(self, form: TickFormat, refused: Refused, renamed: Mapping[str, str] | None = None) -> None:
        self._refused = refused
        self._lines = _Lines(refused)
        self._renaming = _Renaming(refused.name, form, renamed or {})
        self._form = form
        self._symbol_of = _symbol_reader(form.symbol)

    def feed(self, block: bytes) -> list[Row]:
        """See `TickParser`."""
        return self._parse(self._lines.split(block))

    def finish(self) -> list[Row]:
        """See `TickParser`."""
        return self._parse(self._lines.rest(), ended=True)

    def _parse(self, lines: list[bytes], *, ended: bool = False) -> list[Row]:
        rows: list[Row] = []
        append, symbol_of = rows.append, self._symbol_of
        convert = self._renaming.apply if self._renaming.needed else None
        number = self._lines.number
        for line in lines:
            number += 1
            if not line or line.isspace():
                continue
            if line[-1] == 13:
                line = line[:-1]
            try:
                if len(line) > MAX_TICK_BYTES:
                    raise ValueError(_too_long(len(line)))
                value = line if convert is None else convert(line)
                append((number, symbol_of(value).symbol.encode(), value))
            except (ValueError, RecursionError) as error:  # msgspec's errors, a symbol that is no UTF-8, and ours
                self._refused.add(number, self._why(error, line))
        self._lines.number = number
        self._renaming.decide(rows, ended=ended)
        return rows

    def _why(self, error: Exception, line: bytes) -> str:
        if isinstance(error, RecursionError):
            return "nested too deep"
        if isinstance(error, msgspec.ValidationError):
            expected = f"expected a JSON object with {self._form.symbol!r}, the symbol, as a string"
            return f"{error}; {expected}".replace("`", "").replace(" - at $", " at $") + self._advice(line)
        return f"not JSON: {error}" if isinstance(error, msgspec.DecodeError) else str(error)

    def _advice(self, line: bytes) -> str:
        """What would help, where the line is an array or its fields have names that are known."""
        if self._renaming.needed or self._refused.count > _REPORTED:
            return ""
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            return ""
        if isinstance(fields, list):
            return ". jq -c '.[]' makes lines of an array"
        option = as_option(suggested_map(self._form, fields)) if isinstance(fields, dict) else ""
        return f". Try {option}" if option else ""


class CsvParser:
    """Comma-separated values under a header, one tick a line, into JSON objects.

    Price and size become JSON numbers, digit for digit, as does a time that is an integer. Every other cell is a
    string, as written: that an id looks like a number (``12e45678``, ``1e5``) does not make it one. Quotes are as in
    RFC 4180, but a field can't contain a line end. Raises ``ConfigError`` from ``feed`` where the header lacks a field.
    """

    def __init__(self, form: TickFormat, refused: Refused, renamed: Mapping[str, str] | None = None) -> None:
        self._form = form
        self._refused = refused
        self._lines = _Lines(refused)
        self._renamed = dict(renamed or {})
        self._prefixes: list[bytes] = []
        self._numbers: list[re.Pattern[str] | None] = []  # of each column, what a cell of it looks like as a number
        self._symbol_column = 0

    def feed(self, block: bytes) -> list[Row]:
        """See `TickParser`."""
        return self._parse(self._lines.split(block))

    def finish(self) -> list[Row]:
        """See `TickParser`."""
        rows = self._parse(self._lines.rest())
        if not self._prefixes:
            raise ConfigError(f"{self._refused.name}: no header; expected a first line with the names of the columns")
        return rows

    def _parse(self, lines: list[bytes]) -> list[Row]:
        rows: list[Row] = []
        number = self._lines.number
        for line in lines:
            number += 1
            if not line or line.isspace():
                continue
            try:
                cells = _cells(line.rstrip(b"\r").decode())
                if self._prefixes:
                    rows.append((number, *self._tick(cells)))
                else:
                    self._read_header(cells)
            except ValueError as error:
                self._refused.add(number, str(error))
        self._lines.number = number
        return rows

    def _read_header(self, cells: list[str]) -> None:
        form, where = self._form, self._refused.name
        unseen = [name for name in self._renamed if name not in cells]
        if unseen:
            raise ConfigError(f"{where}: {_not_there(self._renamed, unseen, cells)}")
        names = [self._renamed.get(cell, cell) for cell in cells]
        missing = [name for name in (form.symbol, form.ts, form.price, form.size) if name not in names]
        if missing:
            raise ConfigError(
                f"{where}: the header has no {', '.join(missing)}; found {', '.join(cells)[:200]}. "
                f"{self._advice(cells, names)}"
            )
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            source = next((old for old, new in self._renamed.items() if new == repeated[0]), None)
            if source is not None and cells.count(source) == 1:
                raise ConfigError(f"{where}: {_named_twice(form, repeated[0], source)}")
            raise ConfigError(f"{where}: the header has {', '.join(repeated)} more than once")
        self._symbol_column = names.index(form.symbol)
        numbers = {form.price: _JSON_NUMBER, form.size: _JSON_NUMBER, form.ts: _JSON_INTEGER}
        self._numbers = [numbers.get(name) if name != form.symbol else None for name in names]
        self._prefixes = [(b"," if column else b"{") + orjson.dumps(name) + b":" for column, name in enumerate(names)]

    def _advice(self, cells: list[str], names: list[str]) -> str:
        """What may help with a header that lacks fields."""
        other = next((mark for mark in _OTHER_SEPARATORS if len(cells) == 1 and mark in cells[0]), None)
        if other is not None:
            return f"Is {_OTHER_SEPARATORS[other]} its separator? Expected commas"
        if any(_JSON_NUMBER.fullmatch(cell) for cell in cells):
            return "Is it the first row, and the header missing? Expected a first line with the names of the columns"
        given = {
            role: old
            for role, new in role_names(self._form).items()
            for old in self._renamed
            if self._renamed[old] == new
        }
        option = as_option(given | suggested_map(self._form, names))
        return f"Say which column is which with --field-map, like {option or '--field-map ts=T,price=p'}"

    def _tick(self, cells: list[str]) -> tuple[bytes, bytes]:
        if len(cells) != len(self._prefixes):
            raise ValueError(f"{len(cells)} columns; the header has {len(self._prefixes)}")
        parts = []
        for prefix, number, cell in zip(self._prefixes, self._numbers, cells, strict=True):
            # A number beyond every float would spoil the whole tick; as a string it is said to be a wrong price.
            is_number = number is not None and number.fullmatch(cell) and math.isfinite(float(cell))
            parts.append(prefix + (cell.encode() if is_number else orjson.dumps(cell)))
        value = b"".join(parts) + b"}"
        if len(value) > MAX_TICK_BYTES:
            raise ValueError(_too_long(len(value)))
        return cells[self._symbol_column].encode(), value


def _cells(line: str) -> list[str]:
    """The fields of one line, blanks around them removed. Raises ``ValueError`` where quotes are not closed."""
    if '"' not in line:
        return [cell.strip() for cell in line.split(",")]
    import csv

    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True, skipinitialspace=True))]
    except csv.Error as error:
        raise ValueError(f"not CSV: {error} (a field can't contain a line end)") from None


def field_renames(mapping: str | None, form: TickFormat) -> dict[str, str]:
    """The file's field name -> the configured one, from text like ``ts=T,price=p``.

    Raises ``ConfigError`` for anything else.
    """
    configured = {str(role): name for role, name in role_names(form).items()}
    renames: dict[str, str] = {}
    for part in (mapping or "").split(","):
        if not part.strip():
            continue
        role, equals, name = (word.strip() for word in part.partition("="))
        if not equals or role not in configured or not name or name in renames:
            raise ConfigError(
                f"--field-map {mapping}: {part.strip()!r} is wrong; expected FIELD=NAME-IN-FILE with each of "
                f"{', '.join(ROLES)} at most once, like ts=T,price=p"
            )
        renames[name] = configured[role]
    if len(set(renames.values())) != len(renames):
        raise ConfigError(f"--field-map {mapping}: a field is given twice")
    return renames
