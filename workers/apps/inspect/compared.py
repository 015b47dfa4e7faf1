"""The frames of a comparison, on disk: those made again and those published, under the names they share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from typing import NamedTuple

__all__ = ["ComparedFrame", "ComparedFrames"]


class ComparedFrame(NamedTuple):
    """A frame, made or published, in the order of comparison."""

    start_ms: int
    key: bytes
    rev: int
    status: str
    published: int
    partition: int
    offset: int
    due: int  # made by a tick that was committed before the frames' end was asked
    value: bytes


class ComparedFrames:
    """The frames of one comparison, in a temporary database that SQLite keeps on disk and deletes by itself."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute(
            "CREATE TABLE frames (start INTEGER, key BLOB, rev INTEGER, status TEXT, published INTEGER, "
            "partition INTEGER, offset INTEGER, due INTEGER, value BLOB)"
        )

    def close(self) -> None:
        self._database.close()

    def add(self, rows: Sequence[ComparedFrame]) -> None:
        self._database.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def by_name(self) -> Iterator[tuple[list[ComparedFrame], list[ComparedFrame]]]:
        """Those made and those published under each name, names by window start and key."""
        sides = [self._ordered(published) for published in (0, 1)]
        for _, group in groupby(merge(*sides, key=_name_of), key=_name_of):
            rows = list(group)
            yield [row for row in rows if not row.published], [row for row in rows if row.published]

    def _ordered(self, published: int) -> Iterator[ComparedFrame]:
        query = "SELECT * FROM frames WHERE published = ? ORDER BY start, key, rev, status, partition, offset"
        return map(ComparedFrame._make, self._database.execute(query, (published,)))


def _name_of(row: ComparedFrame) -> tuple[int, bytes, int, str]:
    return row[:4]
