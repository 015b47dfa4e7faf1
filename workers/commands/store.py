"""``workers store``: keep frames in a database, and show what it holds."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from workers.commands.common import (
    LOOKING,
    WORKING,
    ApplicationId,
    BootstrapServers,
    ConfigPath,
    Debug,
    SetOption,
    app,
    closed_output_is_an_end,
    load,
    printable,
    quiet_clients,
    run_async,
    say,
)
from workers.errors import ConfigError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from workers.apps.store.base import FrameRow, Store
    from workers.settings import Settings

__all__: list[str] = []

store_app = typer.Typer(rich_markup_mode="rich")
app.add_typer(store_app, name="store", rich_help_panel=WORKING)

Sqlite = Annotated[
    Path | None, typer.Option("--sqlite", metavar="FILE", help="Keep frames in this SQLite file; created if missing.")
]
Postgres = Annotated[
    str | None,
    typer.Option(
        "--postgres",
        metavar="DSN",
        help="Keep frames in this PostgreSQL database; put an address with a password into WORKERS_STORE_DSN.",
    ),
]


@store_app.callback(invoke_without_command=True)
def store(
    context: typer.Context,
    sqlite: Sqlite = None,
    postgres: Postgres = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Most frames per transaction.")
    ] = None,
    flush_interval: Annotated[
        str | None, typer.Option("--flush-interval", metavar="DURATION", help="How long a batch waits for more frames.")
    ] = None,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Keep the last frame of each window in a database, stored exactly once.

    Without --sqlite, --postgres or store.postgres (or WORKERS_STORE_DSN) it uses the file frames.db. Start several for
    more throughput: they share the partitions. If the database is unavailable it waits; while the queue is full,
    workers and producers are told to slow down. Kill it at any time: rows and offsets are stored together.

    [bold]Examples[/bold]

      workers store

      workers store --postgres postgresql://ticks@db/market

      WORKERS_STORE_DSN_FILE=/run/secrets/dsn workers store --batch-size 10000

      workers store show --symbol AAPL
    """
    if context.invoked_subcommand is not None:
        given = {"--batch-size": batch_size, "--flush-interval": flush_interval}
        _refuse_misplaced(context.invoked_subcommand, {**given, "--sqlite": sqlite, "--postgres": postgres})
        return
    from workers.apps.store import choose_store
    from workers.telemetry.logs import configure_logging

    settings = load(
        config,
        sets,
        bootstrap_servers,
        application_id,
        store__batch_size=batch_size,
        store__flush_interval=flush_interval,
    )
    chosen = choose_store(settings.store, sqlite=sqlite, postgres=postgres)
    configure_logging(settings.logging, debug=debug)
    run_async(
        lambda stop: _run(settings, chosen, stop),
        on_stop=lambda: say("workers: finishing; press again to exit now"),
        patience_s=math.inf,
    )


def _refuse_misplaced(subcommand: str, given: Mapping[str, object]) -> None:
    """Raises ``ConfigError`` for options of the store itself before the name of a subcommand."""
    misplaced = [name for name, value in given.items() if value is not None]
    if misplaced:
        raise ConfigError(f"{', '.join(misplaced)}: options go after `workers store {subcommand}`")


async def _run(settings: Settings, chosen: Store, stop: asyncio.Event) -> None:
    from workers.apps.store import run_store

    await run_store(settings, chosen, stop=stop)


@store_app.command(rich_help_panel=LOOKING)
def show(
    symbol: Annotated[str | None, typer.Option(help="Only this symbol.")] = None,
    topic: Annotated[str | None, typer.Option(help="Only frames of this topic, where it holds several.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="Show the latest N.")] = 20,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Show records of the frames topic that are not frames.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    sqlite: Sqlite = None,
    postgres: Postgres = None,
    config: ConfigPath = None,
    sets: SetOption = None,
    debug: Debug = False,
) -> None:
    """Show the latest windows that the database holds, oldest first. Times are UTC.

    [bold]Examples[/bold]

      workers store show --symbol AAPL

      workers store show --symbol AAPL --limit 500 --json | jq .close
    """
    from workers.apps.store import choose_store

    quiet_clients()
    settings = load(config, sets, None, None)
    chosen = choose_store(settings.store, sqlite=sqlite, postgres=postgres)
    lines = run_async(lambda _stop: _lines(chosen, symbol, topic, limit, rejected=rejected, as_json=as_json))
    with closed_output_is_an_end():
        for line in lines:
            sys.stdout.write(f"{line}\n")


async def _lines(
    chosen: Store, symbol: str | None, topic: str | None, limit: int, *, rejected: bool, as_json: bool
) -> list[str]:
    try:
        await chosen.open(read_only=True)
        if rejected:
            found = await chosen.rejected(limit=limit)
            return [json.dumps({**row._asdict(), "key": _text(row.key), "value": _text(row.value)}) for row in found]
        frames = await chosen.frames(symbol, topic=topic, limit=limit)
    finally:
        await chosen.close()
    return [_json(frame) for frame in frames] if as_json else _table(frames)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _json(frame: FrameRow) -> str:
    """The frame with the names of its topic, where it came from, and the fields of a custom aggregation."""
    row = frame._asdict()
    items, extra = row.pop("items"), row.pop("extra")
    renamed = {{"start_ms": "start", "end_ms": "end", "ticks": "count"}.get(name, name): row[name] for name in row}
    if extra is not None:
        renamed.update(json.loads(extra))
    if items is not None:
        renamed["items"] = json.loads(items)
    return json.dumps(renamed)


_TITLES: Final = ("symbol", "start", "end", "open", "high", "low", "close", "volume", "vwap", "count", "status")


def _table(frames: Sequence[FrameRow]) -> list[str]:
    from workers.times import NS_PER_MS, format_instant

    if not frames:
        say("workers: nothing is stored for that yet")
        return []
    cells: list[tuple[str, ...]] = [_TITLES]
    several = len({row.origin_topic for row in frames}) > 1  # bars of other lengths, as a rule
    for row in frames:
        status = row.status + (f" rev={row.rev}" if row.rev else "") + (" filled" if row.filled else "")
        status += f" empty ({printable(row.trigger)})" if not row.ticks and not row.filled else ""
        start, end = format_instant(row.start_ms * NS_PER_MS), format_instant(row.end_ms * NS_PER_MS)
        numbers = (row.open, row.high, row.low, row.close, row.volume, row.vwap)
        shown = ("" if number is None else f"{number:.10g}" for number in numbers)
        status += f" of {row.origin_topic}" if several else ""
        cells.append((printable(row.key), start, end, *shown, str(row.ticks), status))
    widths = [max(len(row[column]) for row in cells) for column in range(len(_TITLES))]
    left = {0, 1, 2, len(_TITLES) - 1}
    return [
        "  ".join(
            text.ljust(widths[column]) if column in left else text.rjust(widths[column])
            for column, text in enumerate(row)
        ).rstrip()
        for row in cells
    ]
