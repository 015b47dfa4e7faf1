"""What a store keeps: the rule of precedence in Python and in both databases' SQL, offsets by compare and set, and
records that are no frames."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.fixtures_postgres import PostgresServer
from workers.apps.store import postgres as postgres_module
from workers.apps.store import sqlite as sqlite_module
from workers.apps.store.base import (
    Batch,
    FrameRow,
    OffsetMove,
    RefusedError,
    RejectedFrame,
    StaleOffsetError,
    Store,
    StoreUnavailableError,
    newest,
    precedence,
)
from workers.apps.store.choose import choose_store
from workers.apps.store.feedback import queue_policy
from workers.apps.store.parse import MALFORMED_JSON, NO_VALUE, NOT_A_FRAME, parse_frame
from workers.apps.store.postgres import PostgresStore
from workers.apps.store.queue import Chunk, FrameQueue
from workers.apps.store.sqlite import SqliteStore
from workers.errors import ConfigError, StateFormatError
from workers.settings import Settings, StoreSettings

TOPIC = "frames"


@dataclass(frozen=True)
class Record:
    """A record of the frames topic."""

    offset: int
    value: bytes | None
    key: bytes | None = b"AAPL"
    timestamp: int = 0
    headers: Sequence[tuple[str, bytes]] = ()


def row(**fields: object) -> FrameRow:
    plain = FrameRow(
        "AAPL", 5_000, 10_000, 0, "final", "watermark", 1.0, 3.0, 0.5, 2.0, 10.0, 1.5, 4, 5_000, 9_999,
        False, None, None, TOPIC, 0, 0,
    )  # fmt: skip
    return plain._replace(**fields)  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of either kind."""
    async with opened(request, request.param, tmp_path) as found:
        yield found


@contextlib.asynccontextmanager
async def opened(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> AsyncIterator[Store]:
    if kind == "sqlite":
        made: Store = SqliteStore(tmp_path / "frames.db")
    else:
        made = PostgresStore(request.getfixturevalue("postgres_dsn"))
    await made.open()
    try:
        yield made
    finally:
        await made.close()


# -- the rule ---------------------------------------------------------------------------------------------------------


def emitted(key: str, start_ms: int, rev: int, status: str, ticks: int, offset: int) -> FrameRow:
    """The frame of that name, with so many ticks, at an offset of the log."""
    noise = random.Random(f"{key} {start_ms} {rev} {status} {ticks}")
    return row(
        key=key,
        start_ms=start_ms,
        end_ms=start_ms + 5_000,
        rev=rev,
        status=status,
        trigger=noise.choice(["watermark", "late", "idle"]),
        close=noise.choice([None, noise.uniform(-1e6, 1e6)]),
        volume=noise.uniform(0, 1e9),
        ticks=ticks,
        first_ts=noise.randrange(-(2**63), 2**63),
        filled=noise.random() < 0.1,
        items=noise.choice([None, '[{"price":1}]']),
        extra=noise.choice([None, '{"mad":0.25}']),
        origin_offset=offset,
    )


@st.composite
def windows(draw: st.DrawFn) -> list[FrameRow]:
    """The frames of some windows as workers emit them: revs from 0, each with at most one frame that is not
    provisional and any number of provisional ones before it, with more ticks or, where trades are cancelled, fewer."""
    frames: list[FrameRow] = []
    for key in draw(st.lists(st.sampled_from(["AAPL", "é-☃", "", "BTC/USD'--"]), min_size=1, max_size=3, unique=True)):
        for start_ms in draw(st.lists(st.sampled_from([-5_000, 0, 1_700_000_000_123]), max_size=2, unique=True)):
            for rev in range(draw(st.integers(1, 3))):
                for ticks in draw(st.lists(st.integers(0, 5), max_size=3)):
                    frames.append(emitted(key, start_ms, rev, "provisional", ticks, len(frames)))
                if rev or draw(st.booleans()):
                    status = draw(st.sampled_from(["closed", "final"]))
                    frames.append(emitted(key, start_ms, rev, status, draw(st.integers(0, 5)), len(frames)))
                elif draw(st.booleans()):  # shown provisionally, if at all, and then merged into another
                    merged = emitted(key, start_ms, rev, "provisional", 0, len(frames))
                    frames.append(merged._replace(trigger="merged"))
    return frames


def last_word(frames: Sequence[FrameRow]) -> dict[tuple[str, int], FrameRow]:
    """The oracle: of each window, the last in the order (rev, not provisional, place in the log)."""
    order = sorted(frames, key=lambda frame: (frame.rev, frame.status != "provisional", frame.origin_offset))
    return {(frame.key, frame.start_ms): frame for frame in order}


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[FrameRow], list[list[FrameRow]]]:
    """Frames, and batches in which they come: in any order, each at least once, some again and again."""
    frames = draw(windows())
    again = draw(st.lists(st.sampled_from(frames), max_size=10)) if frames else []
    order = draw(st.permutations([*frames, *again]))
    batches: list[list[FrameRow]] = [[]]
    for frame in order:
        batches[-1].append(frame)
        if draw(st.booleans()):
            batches.append([])
    return frames, batches


@given(deliveries())
def test_the_rule_keeps_the_last_word_in_whatever_order_and_however_often_frames_come(
    delivery: tuple[list[FrameRow], list[list[FrameRow]]],
) -> None:
    frames, batches = delivery
    kept: list[FrameRow] = []
    for batch in batches:
        kept = newest([*kept, *batch])
    assert {(frame.key, frame.start_ms): frame for frame in kept} == last_word(frames)


@given(deliveries())
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sqlite_keeps_the_last_word_in_whatever_order_and_however_often_frames_come(
    tmp_path: Path, delivery: tuple[list[FrameRow], list[list[FrameRow]]]
) -> None:
    (tmp_path / "frames.db").unlink(missing_ok=True)
    asyncio.run(keeps_the_last_word(SqliteStore(tmp_path / "frames.db"), *delivery))


@pytest.fixture(scope="module")
def shared_dsn(postgres: PostgresServer) -> str:
    return postgres.create_database()


@given(deliveries())
@hypothesis_settings(max_examples=60)
def test_postgres_keeps_the_last_word_in_whatever_order_and_however_often_frames_come(
    shared_dsn: str, delivery: tuple[list[FrameRow], list[list[FrameRow]]]
) -> None:
    async def emptied() -> None:
        store = PostgresStore(shared_dsn)
        await store.open()
        connection = await store._connected()
        await connection.execute("TRUNCATE frames, store_offsets")
        await keeps_the_last_word(store, *delivery)

    asyncio.run(emptied())


async def keeps_the_last_word(store: Store, frames: list[FrameRow], batches: list[list[FrameRow]]) -> None:
    await store.open()
    try:
        expected = None
        for to, batch in enumerate(batches):
            await store.apply(Batch(TOPIC, {0: OffsetMove(expected, to)}, batch))
            expected = to
        found = await store.frames()
    finally:
        await store.close()
    wanted = last_word(frames)
    assert found == [wanted[window] for window in sorted(wanted, key=lambda window: (window[1], window[0]))]


def test_a_provisional_frame_gives_way_to_a_later_one_and_a_settled_one_to_none_of_its_rev() -> None:
    earlier = row(status="provisional", ticks=5, origin_offset=3)
    later = row(status="provisional", ticks=3, origin_offset=4)
    settled = row(status="closed", ticks=5)
    assert precedence(earlier) < precedence(later) < precedence(settled)
    assert precedence(settled) == precedence(row(status="final", ticks=9))
    assert precedence(settled) < precedence(row(status="provisional", rev=1, ticks=1))


async def test_a_trade_cancelled_in_an_open_window_is_out_of_the_row_at_once(store: Store) -> None:
    shown = row(status="provisional", trigger="partial", ticks=2, high=999.0)
    without_it = row(status="provisional", trigger="partial", ticks=1, high=170.0, origin_offset=1)
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 1)}, [shown]))
    await store.apply(Batch(TOPIC, {0: OffsetMove(1, 2)}, [without_it]))
    assert await store.frames() == [without_it]


# -- databases --------------------------------------------------------------------------------------------------------


async def test_a_batch_is_stored_whole_with_its_offsets(store: Store) -> None:
    odd = row(key="ß ☃", start_ms=-5_000, close=None, vwap=None, items='[{"a":"\\u0000"}]', extra='{"x":[1,null]}')
    rejected = RejectedFrame(TOPIC, 1, 7, "malformed_json", "why", b"\xff", b"\x00{")
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5), 1: OffsetMove(None, 8)}, [odd], [rejected]))
    assert await store.read_offsets(TOPIC) == {0: 5, 1: 8}
    assert await store.read_offsets("another") == {}
    assert await store.frames() == [odd]
    assert await store.rejected() == [rejected]
    await store.apply(Batch(TOPIC, {0: OffsetMove(5, 6)}, [], [rejected]))
    assert await store.rejected() == [rejected], "a record rejected again is one row"


async def test_the_latest_frames_of_a_symbol_come_oldest_first(store: Store) -> None:
    bars = [row(key=key, start_ms=start_ms) for start_ms in range(0, 50, 5) for key in ("A", "B")]
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 1)}, bars))
    assert [(bar.key, bar.start_ms) for bar in await store.frames("B", limit=2)] == [("B", 40), ("B", 45)]
    assert [(bar.key, bar.start_ms) for bar in await store.frames(limit=3)] == [("B", 40), ("A", 45), ("B", 45)]
    assert await store.frames("C") == []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_store_that_lost_its_partition_changes_neither_rows_nor_offsets(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    async with opened(request, kind, tmp_path) as zombie, opened(request, kind, tmp_path) as owner:
        await zombie.apply(Batch(TOPIC, {0: OffsetMove(None, 10), 1: OffsetMove(None, 4)}, [row()]))
        await owner.apply(Batch(TOPIC, {0: OffsetMove(10, 30)}, [row(rev=1)]))
        late = Batch(
            TOPIC,
            {0: OffsetMove(10, 20), 1: OffsetMove(4, 6)},
            [row(rev=7)],
            [RejectedFrame(TOPIC, 0, 11, "r", "m", None, None)],
        )
        with pytest.raises(StaleOffsetError, match=r"partitions 0 \(now 30\)") as caught:
            await zombie.apply(late)
        assert caught.value.partitions == {0}
        with pytest.raises(StaleOffsetError):
            await zombie.apply(Batch(TOPIC, {0: OffsetMove(None, 20)}, [row(rev=7)]))
        assert await owner.read_offsets(TOPIC) == {0: 30, 1: 4}
        assert [bar.rev for bar in await owner.frames()] == [1]
        assert await owner.rejected() == []
        await zombie.apply(Batch(TOPIC, {0: OffsetMove(30, 31)}, [row(rev=2)]))  # and goes on where it may


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_of_writers_that_race_for_an_offset_one_wins_each_time(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        rivals = [await stack.enter_async_context(opened(request, kind, tmp_path)) for _ in range(3)]
        expected: int | None = None
        for to in range(1, 15):
            batch = Batch(TOPIC, {0: OffsetMove(expected, to)}, [row(rev=to)])
            outcomes = await asyncio.gather(*(rival.apply(batch) for rival in rivals), return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", *["StaleOffsetError"] * 2]
            expected = to
        assert [bar.rev for bar in await rivals[0].frames()] == [14]


async def test_a_value_that_the_database_refuses_leaves_nothing_of_its_batch(store: Store) -> None:
    bad = row(key="B", first_ts=2**63)
    with pytest.raises(RefusedError):
        await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row(), bad]))
    assert await store.frames() == []
    assert await store.read_offsets(TOPIC) == {}
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row()]))


async def test_an_index_entry_too_long_for_postgres_counts_as_refused(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn)
    try:
        incompressible = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9_000))
        with pytest.raises(RefusedError):
            await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row(key=incompressible)]))
    finally:
        await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_tables_are_made_once_and_those_of_a_newer_program_are_refused(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first, *_ = await asyncio.gather(
            *(stack.enter_async_context(opened(request, kind, tmp_path)) for _ in range(3))
        )
        await first.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row()]))
    async with opened(request, kind, tmp_path) as again:
        assert await again.frames() == [row()]
        if isinstance(again, SqliteStore):
            with sqlite3.connect(tmp_path / "frames.db") as connection:
                connection.execute("INSERT INTO schema_version (version) VALUES (99)")
            connection.close()
        else:
            assert isinstance(again, PostgresStore)
            await (await again._connected()).execute("INSERT INTO schema_version (version) VALUES (99)")
        for read_only in (False, True):
            with pytest.raises(StateFormatError, match="version 99; this program knows up to 1"):
                await again.open(read_only=read_only)


async def test_windows_without_ticks_have_no_times_and_bars_are_all_but_those_taken_back(
    store: Store, tmp_path: Path
) -> None:
    empty = row(ticks=0, first_ts=None, last_ts=None, volume=0.0, vwap=None)
    bar, filled = row(), empty._replace(start_ms=10_000, end_ms=15_000, filled=True)
    taken_back = empty._replace(start_ms=15_000, end_ms=20_000, trigger="merged", rev=1)
    taken_back = taken_back._replace(open=None, high=None, low=None, close=None, volume=None)
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [bar, filled, taken_back]))
    assert await store.frames() == [bar, filled, taken_back]
    query = "SELECT start_ms FROM bars ORDER BY start_ms"
    if isinstance(store, PostgresStore):
        found = await (await (await store._connected()).execute(query)).fetchall()
    else:
        with contextlib.closing(sqlite3.connect(tmp_path / "frames.db")) as connection:
            found = connection.execute(query).fetchall()
    assert found == [(5_000,), (10_000,)]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_tables_of_the_first_version_are_brought_to_the_next_with_what_they_hold(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sqlite_module if kind == "sqlite" else postgres_module
    async with opened(request, kind, tmp_path) as old:
        await old.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row(items="[1]", extra='{"x":1}')]))
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "ALTER TABLE frames ADD COLUMN note TEXT;"))
    for _ in range(2):
        async with opened(request, kind, tmp_path) as new:
            assert await new.frames() == [row(items="[1]", extra='{"x":1}')]
            assert await new.read_offsets(TOPIC) == {0: 5}
    monkeypatch.undo()
    with pytest.raises(StateFormatError, match="version 2; this program knows up to 1"):
        async with opened(request, kind, tmp_path):
            pass


async def test_bars_of_two_applications_that_begin_together_are_two_rows(store: Store) -> None:
    seconds, minute = row(origin_topic="frames-5s"), row(origin_topic="frames-1m", end_ms=65_000, ticks=9)
    await store.apply(Batch("frames-5s", {0: OffsetMove(None, 1)}, [seconds]))
    await store.apply(Batch("frames-1m", {0: OffsetMove(None, 1)}, [minute, minute]))
    assert await store.frames() == [minute, seconds]
    assert await store.frames(topic="frames-5s") == [seconds]
    await store.apply(Batch("frames-1m", {0: OffsetMove(1, 2)}, [minute._replace(rev=1)]))
    assert await store.frames() == [minute._replace(rev=1), seconds]


async def test_the_start_of_a_window_is_also_there_as_a_time(store: Store, tmp_path: Path) -> None:
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row(start_ms=ms) for ms in (-5_000, 1_700_000_000_123)]))
    query = "SELECT start_at FROM frames ORDER BY start_ms"
    if isinstance(store, PostgresStore):
        found = await (await (await store._connected()).execute(query)).fetchall()
        assert [at.timestamp() for (at,) in found] == [-5, 1_700_000_000.123]
    else:
        connection = sqlite3.connect(tmp_path / "frames.db")
        assert connection.execute(query).fetchall() == [
            ("1969-12-31T23:59:55.000Z",),
            ("2023-11-14T22:13:20.123Z",),
        ]
        connection.close()


async def test_a_database_that_is_not_there_is_unavailable_and_says_so_without_the_password(tmp_path: Path) -> None:
    absent = PostgresStore("postgresql://user:hunter2@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailableError) as caught:
        await absent.open()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in absent.name
    with pytest.raises(StoreUnavailableError, match="unable to open"):
        await SqliteStore(tmp_path / "missing" / "frames.db").open()


async def test_a_locked_sqlite_file_is_unavailable_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.apps.store.sqlite.BUSY_TIMEOUT_S", 0.05)
    store = SqliteStore(tmp_path / "frames.db")
    await store.open()
    locker = sqlite3.connect(tmp_path / "frames.db", isolation_level=None)
    try:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked"):
            await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row()]))
        locker.execute("ROLLBACK")
        await store.apply(Batch(TOPIC, {0: OffsetMove(None, 5)}, [row()]))
    finally:
        locker.close()
        await store.close()


# -- which database ---------------------------------------------------------------------------------------------------


def test_flags_choose_the_database_before_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = StoreSettings.model_validate({"postgres": "host=db user=me password=hunter2 dbname=x"}, strict=False)
    assert choose_store(StoreSettings()).name == "sqlite:frames.db"
    assert choose_store(both).name == "postgresql:host=db,dbname=x,user=me"
    assert choose_store(both, sqlite=Path("a.db")).name == "sqlite:a.db"
    assert choose_store(both, postgres="postgresql://u@h:5/d").name == "postgresql:host=h,port=5,dbname=d,user=u"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"sqlite": Path("a.db"), "postgres": "host=db"}, "both given"),
        ({"sqlite": Path("missing/a.db")}, "no directory"),
        ({"postgres": "postgresql://u:hunter2@h/d"}, "WORKERS_STORE_DSN"),
        ({"postgres": "postgresql://h/d?password=hunter2"}, "WORKERS_STORE_DSN"),
        ({"postgres": "hunter2"}, "neither a URI"),
        ({"postgres": "postgresql://u:hunter2/3@h/d"}, "%2F %40"),
        ({"postgres": "postgresql://u:5/hunter2@h/d"}, "%2F %40"),
        ({"postgres": "postgresql://u:p@hunter2@h/d"}, "%2F %40"),
        ({"postgres": "postgresql://u@h:hunter2/d"}, "%2F %40"),
    ],
)
def test_what_can_not_be_a_database_is_refused_without_repeating_secrets(
    flags: dict[str, object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=expected) as caught:
        choose_store(StoreSettings(), **flags)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


# -- records ----------------------------------------------------------------------------------------------------------

FRAME = {
    "key": "AAPL", "start": 5_000, "end": 10_000, "rev": 0, "status": "final", "trigger": "watermark",
    "open": 1.0, "high": 3.0, "low": 0.5, "close": 2, "volume": 10.0, "vwap": None, "count": 4,
    "first_ts": 5_000, "last_ts": 9_999,
}  # fmt: skip


def parsed(**changes: object) -> FrameRow | RejectedFrame:
    fields = {name: value for name, value in {**FRAME, **changes}.items() if value is not ...}
    return parse_frame(Record(3, orjson.dumps(fields)), TOPIC, 1)


def test_a_frame_becomes_a_row_with_where_it_came_from() -> None:
    found = parsed()
    assert isinstance(found, FrameRow)
    assert found == row(close=2.0, vwap=None, origin_partition=1, origin_offset=3)
    assert isinstance(found.close, float)


def test_fields_of_a_custom_aggregation_are_kept_as_they_were_written() -> None:
    value = orjson.dumps(FRAME)[:-1] + b',"mad":0.10,"big":123456789012345678901234567890,"open":"n/a","x y":{"a":[1]}}'
    found = parse_frame(Record(3, value), TOPIC, 1)
    assert isinstance(found, FrameRow), found
    assert found.extra == '{"open":"n/a","mad":0.10,"big":123456789012345678901234567890,"x y":{"a":[1]}}'
    assert found.open is None
    assert found.close == 2.0


def test_items_are_kept_as_they_were_written() -> None:
    value = orjson.dumps(FRAME)[:-1] + b',"items":[{"p": 1.50}, {}],"filled":true}'
    found = parse_frame(Record(3, value), TOPIC, 1)
    assert isinstance(found, FrameRow), found
    assert (found.items, found.filled, found.extra) == ('[{"p": 1.50}, {}]', True, None)
    only_items = parsed(items=[1], **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), ...))
    assert isinstance(only_items, FrameRow)
    assert (only_items.open, only_items.items) == (None, "[1]")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rev": ...}, "missing required field `rev`"),
        ({"count": ...}, "missing required field `count`"),
        ({"key": 5}, "Expected `str`"),
        ({"start": 5.5}, "Expected `int`"),
        ({"start": 2**62}, "Expected `int`"),
        ({"first_ts": 2**63}, "Expected `int`"),
        ({"rev": -1}, "Expected `int` >= 0"),
        ({"status": "open"}, "Invalid enum value"),
        ({"end": 5_000}, "the window ends at 5000"),
        ({"last_ts": None}, "it counts 4 ticks, but first_ts or last_ts is null"),
        ({"key": "A\x00B"}, "NUL"),
    ],
)
def test_what_is_no_frame_is_rejected_with_the_reason_and_itself(changes: dict[str, object], expected: str) -> None:
    found = parsed(**changes)
    assert isinstance(found, RejectedFrame)
    assert (found.reason, found.origin_offset, found.key) == (NOT_A_FRAME, 3, b"AAPL")
    assert expected in found.message
    assert found.value is not None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, NO_VALUE),
        (b"", MALFORMED_JSON),
        (b"{", MALFORMED_JSON),
        (b"[]", NOT_A_FRAME),
        (b"null", NOT_A_FRAME),
        (b"[" * 100_000, NOT_A_FRAME),
        (orjson.dumps(FRAME)[:-1] + b',"items":' + b"[" * 100_000 + b"]" * 100_000 + b"}", MALFORMED_JSON),
        (orjson.dumps(FRAME)[:-1] + b',"items":["\xff"]}', MALFORMED_JSON),
        (orjson.dumps(FRAME)[:-1] + b',"other":"\xff"}', MALFORMED_JSON),
        (orjson.dumps({**FRAME, "status": "\x00"}), NOT_A_FRAME),
    ],
)
def test_no_value_whatsoever_raises(value: bytes | None, reason: str) -> None:
    found = parse_frame(Record(3, value), TOPIC, 1)
    assert isinstance(found, RejectedFrame), found
    assert found.reason == reason
    assert "\x00" not in found.message


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_row_or_rejected(value: bytes) -> None:
    assert isinstance(parse_frame(Record(3, value), TOPIC, 1), RejectedFrame)


# -- the queue --------------------------------------------------------------------------------------------------------


def records(first: int, count: int, size: int = 0) -> list[Record]:
    return [Record(offset, b"x" * size, None) for offset in range(first, first + count)]


def test_what_is_being_written_still_fills_the_queue() -> None:
    queue: FrameQueue[str] = FrameQueue(10, 10**9)
    queue.add(Chunk("a", records(0, 6), 8))
    assert (queue.room, queue.load, queue.waiting) == (4, 6, 6)
    first = queue.take(4)
    assert [(len(chunk.records), chunk.next_offset) for chunk in first] == [(4, 4)]
    assert (queue.room, queue.load, queue.waiting) == (4, 6, 2)
    queue.release(first)
    rest = queue.take(4)
    assert [(len(chunk.records), chunk.next_offset) for chunk in rest] == [(2, 8)]
    queue.release(rest)
    assert (queue.depth, queue.depth_bytes, queue.waiting, queue.take(4)) == (0, 0, 0, [])


def test_large_records_fill_the_queue_by_their_bytes() -> None:
    queue: FrameQueue[str] = FrameQueue(1_000, 100_000)
    queue.add(Chunk("a", records(0, 2, 60_000), 2))
    assert (queue.room, queue.load) == (0, 1_206)


def test_what_belongs_to_owners_that_are_gone_is_dropped() -> None:
    queue: FrameQueue[str] = FrameQueue(10, 10**9)
    queue.add(Chunk("a", records(0, 2), 2))
    queue.add(Chunk("b", records(0, 3), 3))
    queue.drop(lambda owner: owner == "a")
    assert (queue.depth, queue.waiting) == (3, 3)
    assert [chunk.owner for chunk in queue.take(10)] == ["b"]


def test_the_queue_is_hard_at_the_high_watermark_and_reads_on_at_the_low_one() -> None:
    policy = queue_policy(Settings().store, Settings().backpressure, min_dwell_ns=0)
    assert (policy.soft, policy.hard) == (25_000, 37_500)
    assert policy.release * policy.hard == pytest.approx(12_500)


async def test_a_writer_frozen_between_two_messages_gives_its_locks_up(postgres_dsn: str) -> None:
    """Its server waits for the rest of the statement, so it is not idle, and no time limit of its own ends it."""
    store = PostgresStore(postgres_dsn)
    await store.open()
    await store.apply(Batch(TOPIC, {0: OffsetMove(None, 1)}))
    frozen = psycopg.connect(postgres_dsn, application_name="tick-workers store")
    try:
        frozen.pgconn.enter_pipeline_mode()
        frozen.pgconn.send_query_params(b"BEGIN", None)
        frozen.pgconn.send_query_params(b"UPDATE store_offsets SET next_offset = 1", None)
        frozen.pgconn.send_flush_request()
        frozen.pgconn.flush()
        with psycopg.connect(postgres_dsn, autocommit=True) as observer:
            locks = "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'transactionid'"
            for _ in range(200):  # until the row is changed, at most 10 s
                found = observer.execute(locks, (frozen.info.backend_pid,)).fetchone()
                if found is not None and found[0]:
                    break
                await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailableError):
            await store.apply(Batch(TOPIC, {0: OffsetMove(1, 2)}))
        await store.apply(Batch(TOPIC, {0: OffsetMove(1, 2)}))
        assert await store.read_offsets(TOPIC) == {0: 2}
    finally:
        frozen.pgconn.finish()
        await store.close()
