"""Files of ticks: NDJSON or CSV, plain, gzipped or zstd, into the keys and values of records.

`workers.apps.produce.parsers` makes rows of blocks. A row whose time is wrong by the rows around it is not sent, but
counted, where the file has a guard on jumps (`workers.core.jumps`).
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import zstandard

from workers.apps.produce.parsers import (
    CsvParser,
    NdjsonParser,
    Refused,
    Row,
    TickParser,
    field_renames,
    time_reader,
)
from workers.core.jumps import Contradiction, JumpGuard
from workers.core.ticks import TickFormat
from workers.errors import ConfigError, WorkersError
from workers.times import format_instant

__all__ = ["TickInput", "open_ticks"]

BLOCK_BYTES: Final = 256 * 1024


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
    jumps: Refused
    unconfirmed: Refused
    """Rows that were held for their time until the file ended, and then given out."""
    form: TickFormat
    preview: Callable[[Sequence[Row]], None] | None = None
    """Looks at the rows that are about to be sent."""
    _guard: JumpGuard[Row] | None = field(default=None, init=False)
    _time_of: Callable[[bytes], int | None] = field(default=lambda value: None, init=False)
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

    def guard_jumps(self, max_jump_ns: int, disorder_ns: int = 0) -> None:
        """Hold back each row whose time is further ahead of all before it than this, until the next one of its symbol;
        where that goes back, the held row is not given out but counted among ``jumps``. See `workers.core.jumps`."""
        self._guard = JumpGuard(max_jump_ns, min(disorder_ns, max_jump_ns))
        self._time_of = time_reader(self.form)

    def parse(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The keys and values of the `rows` of a block."""
        rows = self.rows(block)
        if self.preview is not None:
            self.preview(rows)
        return [(key, value) for _line, key, value in rows]

    def rows(self, block: bytes) -> list[Row]:
        """The rows of a block; of an empty one, the last line's, and what was held back."""
        if block:
            return self._judged(self.parser.feed(block))
        if self._ended:
            return []
        self._ended = True
        rows = self._judged(self.parser.finish())
        if self._guard is not None:
            for judged in self._guard.release_all():
                self._report_unconfirmed(judged.item, judged.ts_ns)
                rows.append(judged.item)
        return rows

    def _judged(self, rows: list[Row]) -> list[Row]:
        if self._guard is None:
            return rows
        guard, time_of = self._guard, self._time_of
        going: list[Row] = []
        for row in rows:
            line, key, value = row
            ts_ns = time_of(value)
            if ts_ns is None:  # for the worker to refuse: it says nothing about the time of others
                going.append(row)
                continue
            if not guard and guard.clock_ns is not None and ts_ns <= guard.clock_ns:
                going.append(row)  # nothing is held, and this moves nothing on
                continue
            for judged in guard.judge(key.decode(), ts_ns, line, row):
                if judged.contradicted_by is None:
                    going.append(judged.item)
                else:
                    self._report_jump(judged.item, judged.ts_ns, judged.contradicted_by)
        return going

    def _report_jump(self, row: Row, ts_ns: int, by: Contradiction) -> None:
        line, _key, _value = row
        self.jumps.add(
            line,
            f"its time, {format_instant(ts_ns)}, is far ahead of all before it, and line {by.order} of the "
            f"symbol goes back to {format_instant(by.ts_ns)}; not sent (--max-jump)",
        )

    def _report_unconfirmed(self, row: Row, ts_ns: int) -> None:
        line, _key, _value = row
        self.unconfirmed.add(
            line,
            f"its time, {format_instant(ts_ns)}, is far ahead of all before it, and no later row of its symbol "
            "confirms it; sent all the same: if it is wrong, the symbol's next ticks are late",
        )

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
    jumps, unconfirmed = Refused(refused.name, say), Refused(refused.name, say)
    return TickInput(refused.name, parser, refused, raw, _unpacked(raw, packing), size, jumps, unconfirmed, form)


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
