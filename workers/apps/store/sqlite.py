"""Frames in an SQLite file: nothing to install, nothing to run.

Everything happens in one thread of its own, so that a slow disk holds up neither heartbeats nor fetches. The journal is
a write-ahead log, so readers don't wait for the writer. ``synchronous = NORMAL``: after a power cut the file may lack
the last transactions, but rows and offsets are lacking together, so what is missing is read from Kafka again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from workers.apps.store.base import (
    FRAME_COLUMNS,
    SETTLED,
    WINDOW_COLUMNS,
    Batch,
    FrameRow,
    OffsetMove,
    RefusedError,
    RejectedFrame,
    StaleOffsetError,
    StoreError,
    StoreUnavailableError,
    check_version,
    newest,
)

__all__ = ["SqliteStore"]

T = TypeVar("T")

BUSY_TIMEOUT_S: Final = 5.0

MIGRATIONS: Final[tuple[str, ...]] = (
    # 1
    """
    CREATE TABLE frames (
        key TEXT NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        start_at TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', start_ms / 1000.0, 'unixepoch')) VIRTUAL,
        rev INTEGER NOT NULL,
        status TEXT NOT NULL,
        "trigger" TEXT NOT NULL,
        open REAL,
        high REAL,
        low REAL,
        close REAL,
        volume REAL,
        vwap REAL,
        count INTEGER NOT NULL,
        first_ts INTEGER,
        last_ts INTEGER,
        filled INTEGER NOT NULL,
        items TEXT,
        extra TEXT,
        origin_topic TEXT NOT NULL,
        origin_partition INTEGER NOT NULL,
        origin_offset INTEGER NOT NULL,
        PRIMARY KEY (key, start_ms, origin_topic)
    );
    CREATE INDEX frames_by_start ON frames (start_ms);
    CREATE VIEW bars AS SELECT * FROM frames WHERE count > 0 OR filled;
    CREATE TABLE rejected_frames (
        origin_topic TEXT NOT NULL,
        origin_partition INTEGER NOT NULL,
        origin_offset INTEGER NOT NULL,
        reason TEXT NOT NULL,
        message TEXT NOT NULL,
        key BLOB,
        value BLOB,
        rejected_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        PRIMARY KEY (origin_topic, origin_partition, origin_offset)
    );
    CREATE TABLE store_offsets (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        next_offset INTEGER NOT NULL,
        updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        PRIMARY KEY (topic, partition)
    );
    """,
)

_NAMES: Final = ", ".join(f'"{name}"' for name in FRAME_COLUMNS)


def _precedence(table: str) -> str:
    """`workers.apps.store.base.precedence`, in SQL."""
    return f"({table}.rev, CASE {table}.status WHEN 'provisional' THEN {table}.origin_offset ELSE {SETTLED} END)"


UPSERT: Final = f"""
    INSERT INTO frames ({_NAMES}) VALUES ({", ".join("?" * len(FRAME_COLUMNS))})
    ON CONFLICT (key, start_ms, origin_topic) DO UPDATE
    SET {", ".join(f'"{name}" = excluded."{name}"' for name in FRAME_COLUMNS if name not in WINDOW_COLUMNS)}
    WHERE {_precedence("excluded")} > {_precedence("frames")}
"""
_INSERT_REJECTED: Final = """
    INSERT INTO rejected_frames (origin_topic, origin_partition, origin_offset, reason, message, key, value)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_FIRST_OFFSET: Final = """
    INSERT INTO store_offsets (topic, partition, next_offset) VALUES (?, ?, ?) ON CONFLICT DO NOTHING
"""
_MOVE_OFFSET: Final = """
    UPDATE store_offsets SET next_offset = ?, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE topic = ? AND partition = ? AND next_offset = ?
"""


class SqliteStore:
    """A `Store` in a file; the directory must exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="workers-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._read_only = False

    @property
    def name(self) -> str:
        return f"sqlite:{self._path}"

    async def open(self, *, read_only: bool = False) -> None:
        self._read_only = read_only
        await self._run(self._open)

    async def read_offsets(self, topic: str) -> dict[int, int]:
        return await self._run(lambda: self._offsets(self._opened(), topic))

    async def apply(self, batch: Batch) -> None:
        await self._run(lambda: self._apply(self._opened(), batch))

    async def frames(
        self, key: str | None = None, *, topic: str | None = None, limit: int | None = None
    ) -> list[FrameRow]:
        query = f"""
            SELECT * FROM (
                SELECT {_NAMES} FROM frames WHERE (?1 IS NULL OR key = ?1) AND (?2 IS NULL OR origin_topic = ?2)
                ORDER BY start_ms DESC, key DESC, origin_topic DESC LIMIT ?3
            ) ORDER BY start_ms, key, origin_topic
        """
        limit = -1 if limit is None else limit
        rows = await self._run(lambda: self._opened().execute(query, (key, topic, limit)).fetchall())
        return [FrameRow(*row)._replace(filled=bool(row[FRAME_COLUMNS.index("filled")])) for row in rows]

    async def rejected(self, *, limit: int | None = None) -> list[RejectedFrame]:
        query = """
            SELECT origin_topic, origin_partition, origin_offset, reason, message, key, value FROM rejected_frames
            ORDER BY origin_topic, origin_partition, origin_offset LIMIT ?
        """
        limit = -1 if limit is None else limit
        rows = await self._run(lambda: self._opened().execute(query, (limit,)).fetchall())
        return [RejectedFrame(*row) for row in rows]

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    # -- in the thread ------------------------------------------------------------------------------------------------

    async def _run(self, function: Callable[[], T]) -> T:
        def translated() -> T:
            with self._translating_errors():
                return function()

        return await asyncio.get_running_loop().run_in_executor(self._thread, translated)

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # Locked, disk full, can't be opened, ...: all of these can pass.
            raise StoreUnavailableError(f"{self.name}: {error}") from error
        except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeError, OverflowError) as error:
            raise RefusedError(f"{self.name} refuses a value: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"{self.name} can't be used: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._open()
        assert self._connection is not None
        return self._connection

    def _open(self) -> None:
        self._close()
        mode = "ro" if self._read_only else "rwc"
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            if not self._read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._read_only:
            check_version(self._version(connection), len(MIGRATIONS), self.name)
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, "
                "applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))"
            )
            version = self._version(connection)
            check_version(version, len(MIGRATIONS), self.name)
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                for statement in filter(str.strip, script.split(";")):  # executescript would commit first
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_version (version) VALUES (?)", (number,))
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
        return int(version)

    def _apply(self, connection: sqlite3.Connection, batch: Batch) -> None:
        # IMMEDIATE: a transaction that began by reading could not become a writing one while another one writes.
        connection.execute("BEGIN IMMEDIATE")
        try:
            stale = [number for number, move in batch.offsets.items() if not _move(connection, batch, number, move)]
            if stale:
                raise StaleOffsetError(batch.topic, stale, self._offsets(connection, batch.topic))
            connection.executemany(UPSERT, newest(batch.frames))
            connection.executemany(_INSERT_REJECTED, batch.rejected)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise

    @staticmethod
    def _offsets(connection: sqlite3.Connection, topic: str) -> dict[int, int]:
        return dict(connection.execute("SELECT partition, next_offset FROM store_offsets WHERE topic = ?", (topic,)))

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _move(connection: sqlite3.Connection, batch: Batch, partition: int, move: OffsetMove) -> bool:
    """Compare and set one offset; whether it was as expected."""
    if move.expected is None:
        changed = connection.execute(_FIRST_OFFSET, (batch.topic, partition, move.to))
    else:
        changed = connection.execute(_MOVE_OFFSET, (move.to, batch.topic, partition, move.expected))
    return changed.rowcount == 1


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # some errors have ended it already
        connection.execute("ROLLBACK")
