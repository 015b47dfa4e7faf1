"""Files of ticks: NDJSON or CSV, plain, gzipped or zstd, into the keys and values of records.

Parsers are fed blocks of bytes and give back ``(key, value)`` pairs. A JSON line that needs no renaming passes through
byte for byte; only its symbol is read, since that is the record's key. Whether the rest is a tick is for the worker to
say, which keeps what it rejects. A line whose symbol can't be read has no key, so it can't be sent: it is *refused*,
with file and line, and counted.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import orjson
import zstandard

from workers.errors import ConfigError, WorkersError
from workers.ticks import TickFormat

__all__ = ["MAX_TICK_BYTES", "CsvParser", "NdjsonParser", "Refused", "TickInput", "TickParser", "open_ticks"]

MAX_TICK_BYTES: Final = 900_000
"""Longest value that is sent: with its key it fits a broker's default ``message.max.bytes`` even uncompressed."""

BLOCK_BYTES: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_REPORTED: Final = 20
_OTHER_SEPARATORS: Final = {";": "the semicolon", "\t": "the tab", "|": "the bar |"}

Role = Literal["symbol", "ts", "price", "size"]
_ROLES: Final[tuple[Role, ...]] = ("symbol", "ts", "price", "size")
_JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)", re.ASCII)
_JSON_NUMBER = re.compile(_JSON_INTEGER.pattern + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


@dataclass(slots=True)
class Refused:
    """Lines that could not be sent: counted, and the first of them reported through ``say``."""

    name: str
    say: Callable[[str], None]
    count: int = 0

    def add(self, line: int, why: str) -> None:
        """Count a line (numbered from 1) and report it while there are few."""
        self.count += 1
        if self.count <= _REPORTED:
            self.say(f"{self.name}:{line}: {why}")
        elif self.count == _REPORTED + 1:
            self.say(f"{self.name}: more lines are refused; they are counted from here on")


class TickParser(Protocol):
    """Turns blocks of a file into keys and values."""

    def feed(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The ticks whose lines end in this block."""
        ...

    def finish(self) -> list[tuple[bytes, bytes]]:
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


class NdjsonParser:
    """JSON objects, one a line. ``renamed`` maps the file's field names to those of the tick format."""

    def __init__(self, form: TickFormat, refused: Refused, renamed: Mapping[str, str] | None = None) -> None:
        self._refused = refused
        self._lines = _Lines(refused)
        self._renamed = {old: new for old, new in (renamed or {}).items() if old != new}
        self._symbol = form.symbol
        self._symbol_of = _symbol_reader(form.symbol)

    def feed(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """See `TickParser`."""
        return self._parse(self._lines.split(block))

    def finish(self) -> list[tuple[bytes, bytes]]:
        """See `TickParser`."""
        return self._parse(self._lines.rest())

    def _parse(self, lines: list[bytes]) -> list[tuple[bytes, bytes]]:
        ticks: list[tuple[bytes, bytes]] = []
        append, symbol_of = ticks.append, self._symbol_of
        convert = self._rename if self._renamed else None
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
                append((symbol_of(value).symbol.encode(), value))
            except ValueError as error:  # msgspec's and orjson's errors, a symbol that is no UTF-8, and ours
                self._refused.add(number, self._why(error))
        self._lines.number = number
        return ticks

    def _rename(self, line: bytes) -> bytes:
        fields = orjson.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - every refusal of a line is a ValueError
        moved = {new: fields.pop(old) for old, new in self._renamed.items() if old in fields}
        fields.update(moved)
        return orjson.dumps(fields)

    def _why(self, error: Exception) -> str:
        if isinstance(error, msgspec.ValidationError):
            expected = f"expected a JSON object with {self._symbol!r}, the symbol, as a string"
            return f"{error}; {expected}".replace("`", "").replace(" - at $", " at $")
        return f"not JSON: {error}" if isinstance(error, msgspec.DecodeError | orjson.JSONDecodeError) else str(error)


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

    def feed(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """See `TickParser`."""
        return self._parse(self._lines.split(block))

    def finish(self) -> list[tuple[bytes, bytes]]:
        """See `TickParser`."""
        ticks = self._parse(self._lines.rest())
        if not self._prefixes:
            raise ConfigError(f"{self._refused.name}: no header; expected a first line with the names of the columns")
        return ticks

    def _parse(self, lines: list[bytes]) -> list[tuple[bytes, bytes]]:
        ticks: list[tuple[bytes, bytes]] = []
        number = self._lines.number
        for line in lines:
            number += 1
            if not line or line.isspace():
                continue
            try:
                cells = _cells(line.rstrip(b"\r").decode())
                if self._prefixes:
                    ticks.append(self._tick(cells))
                else:
                    self._read_header(cells)
            except ValueError as error:
                self._refused.add(number, str(error))
        self._lines.number = number
        return ticks

    def _read_header(self, cells: list[str]) -> None:
        names = [self._renamed.get(cell, cell) for cell in cells]
        form = self._form
        missing = [name for name in (form.symbol, form.ts, form.price, form.size) if name not in names]
        if missing:
            other = next((mark for mark in _OTHER_SEPARATORS if len(cells) == 1 and mark in cells[0]), None)
            advice = (
                f"Is {_OTHER_SEPARATORS[other]} its separator? Expected commas"
                if other is not None
                else "Say which column is which with --field-map, like --field-map ts=T,price=p"
            )
            raise ConfigError(
                f"{self._refused.name}: the header has no {', '.join(missing)}; found {', '.join(cells)[:200]}. "
                f"{advice}"
            )
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ConfigError(f"{self._refused.name}: the header has {', '.join(sorted(repeated))} more than once")
        self._symbol_column = names.index(form.symbol)
        numbers = {form.price: _JSON_NUMBER, form.size: _JSON_NUMBER, form.ts: _JSON_INTEGER}
        self._numbers = [numbers.get(name) if name != form.symbol else None for name in names]
        self._prefixes = [(b"," if column else b"{") + orjson.dumps(name) + b":" for column, name in enumerate(names)]

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
    configured = dict(zip(_ROLES, (form.symbol, form.ts, form.price, form.size), strict=True))
    renames: dict[str, str] = {}
    for part in (mapping or "").split(","):
        if not part.strip():
            continue
        role, equals, name = (word.strip() for word in part.partition("="))
        if not equals or role not in configured or not name or name in renames:
            raise ConfigError(
                f"--field-map {mapping}: {part.strip()!r} is wrong; expected FIELD=NAME-IN-FILE with each of "
                f"{', '.join(_ROLES)} at most once, like ts=T,price=p"
            )
        renames[name] = configured[role]
    if len(set(renames.values())) != len(renames):
        raise ConfigError(f"--field-map {mapping}: a field is given twice")
    return renames


class Blocks(Protocol):
    """What is read of an open file: ``read1`` returns what there is, up to a size, and nothing at the end."""

    def read1(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class _Raw(Blocks, Protocol):
    """The file itself, before unpacking."""

    def tell(self) -> int: ...


@dataclass(slots=True)
class TickInput:
    """An open file of ticks. ``position`` and ``size`` are bytes of the file itself, so also of a compressed one."""

    name: str
    parser: TickParser
    refused: Refused
    raw: _Raw
    stream: Blocks
    size: int | None  # None: a pipe, which has no size and whose next block may be long in coming
    _ended: bool = field(default=False, init=False)

    def read_block(self) -> bytes:
        """The next bytes, empty at the end. Blocks on a pipe that has none yet.

        Raises ``WorkersError`` where the file can't be read or is damaged.
        """
        try:
            return self.stream.read1(BLOCK_BYTES)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise WorkersError(
                f"{self.name}: damaged or unreadable, some {self.position:,} bytes in: {error}"
            ) from error

    def parse(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The ticks of a block; of an empty one, the last line."""
        if block:
            return self.parser.feed(block)
        if self._ended:
            return []
        self._ended = True
        return self.parser.finish()

    @property
    def position(self) -> int:
        """Bytes of the file read so far."""
        return self.raw.tell() if self.size is not None else 0

    def close(self) -> None:
        """Close the file; standard input itself is left open."""
        if self.size is not None:  # what unpacks a pipe may be locked by a thread that waits for the pipe
            self.stream.close()
        self.raw.close()


def open_ticks(
    path: Path,
    form: TickFormat,
    *,
    say: Callable[[str], None],
    mapping: str | None = None,
    kind: Literal["ndjson", "csv"] | None = None,
) -> TickInput:
    """Open a file of ticks, or standard input for ``-``; its name says what it is, unless ``kind`` does.

    ``.gz`` and ``.zst`` are unpacked. Raises ``ConfigError`` for a file that is not there or of an unknown kind.
    """
    piped = str(path) == "-"
    if not piped and not path.exists():
        raise ConfigError(f"--file {path}: no such file")
    suffixes = [] if piped else [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    refused = Refused("standard input" if piped else str(path), say)
    parser_class = CsvParser if (kind or _kind(path, suffixes)) == "csv" else NdjsonParser
    parser: TickParser = parser_class(form, refused, field_renames(mapping, form))
    try:
        regular = not piped and path.is_file()
        raw: _Raw = path.open("rb") if regular else _PipeBlocks(None if piped else path)
        size = path.stat().st_size if regular else None
    except OSError as error:
        raise ConfigError(f"--file {path}: {error.strerror}") from None
    return TickInput(refused.name, parser, refused, raw, _unpacked(raw, packing), size)


def _kind(path: Path, suffixes: Sequence[str]) -> Literal["ndjson", "csv"]:
    last = suffixes[-1] if suffixes else ""
    if last == ".csv":
        return "csv"
    if last in (".ndjson", ".jsonl", ".json") or str(path) == "-":
        return "ndjson"
    raise ConfigError(f"--file {path}: its name does not say what it is; add --format ndjson or --format csv")


class _PipeBlocks:
    """A pipe, or standard input, without Python's buffer: held by a thread that waits for input, its lock would hang
    whoever closes it and abort the process at its end."""

    def __init__(self, path: Path | None) -> None:
        self._owned = path is not None
        self._descriptor = os.open(path, os.O_RDONLY) if path is not None else sys.stdin.fileno()

    def read1(self, size: int) -> bytes:
        """What there is, up to ``size`` bytes; waits for the first."""
        return os.read(self._descriptor, size)

    read = read1  # what gzip calls

    def tell(self) -> int:
        """A pipe has no position."""
        return 0

    def close(self) -> None:
        """Close the pipe; standard input is not ours to close."""
        if self._owned:
            self._owned = False
            os.close(self._descriptor)


class _ZstdBlocks:
    """Unpacks zstd frames one after the other; unlike the library's reader it notices a file that was cut off."""

    def __init__(self, raw: _Raw) -> None:
        self._raw = raw
        self._context = zstandard.ZstdDecompressor()
        self._frame = self._context.decompressobj()
        self._begun = False
        self._pending = b""

    def read1(self, size: int) -> bytes:
        while True:
            packed = self._pending or self._raw.read1(size // 4)
            self._pending = b""
            if not packed:
                if self._begun:
                    raise EOFError("the file ends within a zstd frame")
                return b""
            unpacked = self._frame.decompress(packed)
            self._begun = True
            if self._frame.eof:
                self._pending = self._frame.unused_data
                self._frame, self._begun = self._context.decompressobj(), False
            if unpacked:
                return unpacked

    def close(self) -> None:
        """Nothing of its own to close; the file belongs to whoever opened it."""


def _unpacked(raw: _Raw, packing: str) -> Blocks:
    if packing == ".gz":
        stream: Blocks = gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[call-overload]  # it only reads
        return stream
    if packing == ".zst":
        return _ZstdBlocks(raw)
    return raw
