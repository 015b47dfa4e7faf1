"""Frames in PostgreSQL (or TimescaleDB), by psycopg 3: ``pip install 'tick-workers[postgres]'``.

A batch is two or three statements, however many frames it has: arrays go over, ``unnest`` makes rows of them. The
primary key contains ``start_at``, so that the table can become a hypertable. Statements are not prepared, so that a
pooler in transaction mode can be in between.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from workers.apps.store.base import (
    FRAME_COLUMNS,
    SETTLED,
    WINDOW_COLUMNS,
    Batch,
    FrameRow,
    RefusedError,
    RejectedFrame,
    StaleOffsetError,
    StoreError,
    StoreUnavailableError,
    check_version,
    newest,
)
from workers.errors import ConfigError

__all__ = ["PostgresStore"]

MIGRATIONS: Final[tuple[str, ...]] = (
    # 1
    """
    CREATE TABLE frames (
        key text COLLATE "C" NOT NULL,
        start_ms bigint NOT NULL,
        end_ms bigint NOT NULL,
        start_at timestamptz NOT NULL,
        rev bigint NOT NULL,
        status text NOT NULL,
        "trigger" text NOT NULL,
        open double precision,
        high double precision,
        low double precision,
        close double precision,
        volume double precision,
        vwap double precision,
        count bigint NOT NULL,
        first_ts bigint,
        last_ts bigint,
        filled boolean NOT NULL,
        items json,
        extra json,
        origin_topic text COLLATE "C" NOT NULL,
        origin_partition integer NOT NULL,
        origin_offset bigint NOT NULL,
        PRIMARY KEY (key, start_at, origin_topic)
    );
    CREATE INDEX frames_by_start ON frames (start_at);
    CREATE VIEW bars AS SELECT * FROM frames WHERE count > 0 OR filled;
    CREATE TABLE rejected_frames (
        origin_topic text NOT NULL,
        origin_partition integer NOT NULL,
        origin_offset bigint NOT NULL,
        reason text NOT NULL,
        message text NOT NULL,
        key bytea,
        value bytea,
        rejected_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (origin_topic, origin_partition, origin_offset)
    );
    CREATE TABLE store_offsets (
        topic text NOT NULL,
        partition integer NOT NULL,
        next_offset bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (topic, partition)
    );
    """,
)

_TYPES: Final = {
    "key": "text",
    "status": "text",
    "trigger": "text",
    "origin_topic": "text",
    "items": "text",
    "extra": "text",
    "filled": "boolean",
    "origin_partition": "integer",
    **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), "double precision"),
}
_NAMES: Final = ", ".join(f'"{name}"' for name in FRAME_COLUMNS)
_ARRAYS: Final = ", ".join(f"%s::{_TYPES.get(name, 'bigint')}[]" for name in FRAME_COLUMNS)
_VALUES: Final = ", ".join(
    f'new."{name}"::json' if name in ("items", "extra") else f'new."{name}"' for name in FRAME_COLUMNS
)


def _precedence(table: str) -> str:
    """`workers.apps.store.base.precedence`, in SQL."""
    return f"({table}.rev, CASE {table}.status WHEN 'provisional' THEN {table}.origin_offset ELSE {SETTLED} END)"


UPSERT: Final = f"""
    INSERT INTO frames ({_NAMES}, start_at)
    SELECT {_VALUES}, timestamptz 'epoch' + new.start_ms * interval '1 millisecond'
    FROM unnest({_ARRAYS}) AS new ({_NAMES})
    ON CONFLICT (key, start_at, origin_topic) DO UPDATE
    SET {", ".join(f'"{name}" = excluded."{name}"' for name in FRAME_COLUMNS if name not in WINDOW_COLUMNS)}
    WHERE {_precedence("excluded")} > {_precedence("frames")}
"""
_INSERT_REJECTED: Final = """
    INSERT INTO rejected_frames (origin_topic, origin_partition, origin_offset, reason, message, key, value)
    VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_FIRST_OFFSETS: Final = """
    INSERT INTO store_offsets (topic, partition, next_offset)
    SELECT %s, new.partition, new.next_offset FROM unnest(%s::integer[], %s::bigint[]) AS new (partition, next_offset)
    ON CONFLICT DO NOTHING RETURNING partition
"""
_MOVE_OFFSETS: Final = """
    UPDATE store_offsets AS old SET next_offset = new.next_offset, updated_at = now()
    FROM unnest(%s::integer[], %s::bigint[], %s::bigint[]) AS new (partition, expected, next_offset)
    WHERE old.topic = %s AND old.partition = new.partition AND old.next_offset = new.expected
    RETURNING old.partition
"""

_GIVE_UP_IDLE: Final = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
"""A writer frozen within a transaction holds its rows' locks: whoever takes its partitions over would wait for it."""
_GIVE_UP_WAITING: Final = "SET LOCAL lock_timeout = '12s'"
_END_FROZEN: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name')
    AND wait_event_type = 'Client' AND xact_start < now() - interval '10 s'
"""
"""A writer frozen between the messages of one statement is not idle, so its server waits for it without end: that is
left to whoever waits for its locks. One that computes, or waits for a lock itself, does not wait for its client."""

# A server that vanished without a word must not hold the writer for the hours that TCP alone would take.
_DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "tick-workers store",
}
_REFUSING_CLASSES: Final = ("21", "22", "23", "54")
"""SQLSTATE classes that a value causes: cardinality, data, integrity, and limits such as that of an index entry."""
_FATAL_CLASSES: Final = ("0A", "42")
"""SQLSTATE classes that no waiting cures: what isn't supported, tables or rights that are missing."""
_PORTS: Final = re.compile(r"[\d,]*")


class PostgresStore:
    """A `Store` in a PostgreSQL database; ``dsn`` is anything that libpq takes, environment and .pgpass included.

    Raises ``ConfigError`` where ``dsn`` is none, or a URI with a password that is not encoded as one needs.
    """

    def __init__(self, dsn: str) -> None:
        try:
            given = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
        except (psycopg.Error, ValueError):
            # Its own message would quote the text, password included.
            raise ConfigError(
                "the PostgreSQL address is neither a URI (postgresql://user@host:5432/database) nor name=value pairs"
            ) from None
        if "@" in given.get("host", "") + given.get("dbname", "") or not _PORTS.fullmatch(given.get("port", "")):
            # A password with one of these in it was cut there, and its end would be shown as host, port or database.
            raise ConfigError(
                "the PostgreSQL address has no number for a port, or an @ in its host or database. In a URI, the "
                "characters / @ : ? # % of a user name or password are written as %2F %40 %3A %3F %23 %25"
            )
        self.has_password = bool(given.get("password"))
        self._conninfo = make_conninfo(**{**_DEFAULTS, **given})
        shown = {name: given[name] for name in ("host", "port", "dbname", "user", "service") if given.get(name)}
        self._name = "postgresql:" + (",".join(f"{name}={value}" for name, value in shown.items()) or "(environment)")
        self._connection: AsyncConnection | None = None
        self._read_only = False

    @property
    def name(self) -> str:
        return self._name

    async def open(self, *, read_only: bool = False) -> None:
        self._read_only = read_only
        async with self._translating_errors():
            await self._close()
            await self._connected()

    async def read_offsets(self, topic: str) -> dict[int, int]:
        async with self._translating_errors():
            return await self._offsets(await self._connected(), topic)

    async def apply(self, batch: Batch) -> None:
        try:
            await self._apply(batch)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                async with self._translating_errors():
                    await (await self._connected()).execute(_END_FROZEN)
            raise

    async def _apply(self, batch: Batch) -> None:
        async with self._translating_errors():
            connection = await self._connected()
            async with connection.transaction():
                await connection.execute(_GIVE_UP_IDLE)
                await connection.execute(_GIVE_UP_WAITING)
                await self._move_offsets(connection, batch)
                frames = newest(batch.frames)
                if frames:
                    await connection.execute(UPSERT, [list(column) for column in zip(*frames, strict=True)])
                if batch.rejected:
                    async with connection.cursor() as cursor:
                        await cursor.executemany(_INSERT_REJECTED, batch.rejected)

    async def frames(
        self, key: str | None = None, *, topic: str | None = None, limit: int | None = None
    ) -> list[FrameRow]:
        columns = _NAMES.replace('"items"', "items::text").replace('"extra"', "extra::text")
        query = f"""
            SELECT * FROM (
                SELECT {columns} FROM frames
                WHERE (%s::text IS NULL OR key = %s) AND (%s::text IS NULL OR origin_topic = %s)
                ORDER BY start_at DESC, key DESC, origin_topic DESC LIMIT %s
            ) AS latest ORDER BY start_ms, key, origin_topic
        """
        async with self._translating_errors():
            found = await (await self._connected()).execute(query, (key, key, topic, topic, limit))
            return [FrameRow(*row) for row in await found.fetchall()]

    async def rejected(self, *, limit: int | None = None) -> list[RejectedFrame]:
        query = """
            SELECT origin_topic, origin_partition, origin_offset, reason, message, key, value FROM rejected_frames
            ORDER BY origin_topic, origin_partition, origin_offset LIMIT %s
        """
        async with self._translating_errors():
            found = await (await self._connected()).execute(query, (limit,))
            return [RejectedFrame(*row) for row in await found.fetchall()]

    async def close(self) -> None:
        await self._close()

    # -- connection ---------------------------------------------------------------------------------------------------

    async def _connected(self) -> AsyncConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        try:
            await self._migrate(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _migrate(self, connection: AsyncConnection) -> None:
        if self._read_only:
            check_version(await self._version(connection), len(MIGRATIONS), self.name)
            return
        async with connection.transaction():
            # Stores that start together would both find no tables.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('tick-workers schema'))")
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version "
                "(version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            version = await self._version(connection)
            check_version(version, len(MIGRATIONS), self.name)
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                await connection.execute(script.encode())
                await connection.execute("INSERT INTO schema_version (version) VALUES (%s)", (number,))

    @staticmethod
    async def _version(connection: AsyncConnection) -> int:
        found = await connection.execute("SELECT coalesce(max(version), 0) FROM schema_version")
        row = await found.fetchone()
        assert row is not None
        return int(row[0])

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    @contextlib.asynccontextmanager
    async def _translating_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except psycopg.Error as error:
            code = (error.sqlstate or "")[:2]
            reason = " ".join(str(error).split())
            if code in _REFUSING_CLASSES or isinstance(error, psycopg.DataError):
                raise RefusedError(f"{self.name} refuses a value: {reason}") from error
            await self._close()
            if code in _FATAL_CLASSES:
                raise StoreError(f"{self.name} can't be used: {reason}") from error
            raise StoreUnavailableError(f"{self.name}: {reason}") from error
        except UnicodeError as error:
            raise RefusedError(f"{self.name} refuses a value: {error}") from error
        except OSError as error:
            await self._close()
            raise StoreUnavailableError(f"{self.name}: {error}") from error

    # -- statements ---------------------------------------------------------------------------------------------------

    async def _move_offsets(self, connection: AsyncConnection, batch: Batch) -> None:
        """Compare and set. First in the transaction: the rows' locks make rival writers wait, and then see the move."""
        first = {number: move.to for number, move in batch.offsets.items() if move.expected is None}
        moved: set[int] = set()
        if first:
            rows = await connection.execute(_FIRST_OFFSETS, (batch.topic, list(first), list(first.values())))
            moved.update(number for (number,) in await rows.fetchall())
        known = sorted(number for number in batch.offsets if number not in first)
        if known:
            expected = [batch.offsets[number].expected for number in known]
            to = [batch.offsets[number].to for number in known]
            rows = await connection.execute(_MOVE_OFFSETS, (known, expected, to, batch.topic))
            moved.update(number for (number,) in await rows.fetchall())
        stale = batch.offsets.keys() - moved
        if stale:
            raise StaleOffsetError(batch.topic, stale, await self._offsets(connection, batch.topic))

    @staticmethod
    async def _offsets(connection: AsyncConnection, topic: str) -> dict[int, int]:
        found = await connection.execute("SELECT partition, next_offset FROM store_offsets WHERE topic = %s", (topic,))
        return {int(number): int(offset) for number, offset in await found.fetchall()}
