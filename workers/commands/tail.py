"""``workers tail``: watch frames, late ticks or dead letters as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workers.commands.common import (
    LOOKING,
    STOP_PATIENCE_S,
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

    from workers.kafka.reading import KafkaRecord
    from workers.settings import Settings

__all__: list[str] = []

What = Literal["frames", "late", "dead-letters"]


@app.command(rich_help_panel=LOOKING)
def tail(
    what: Annotated[What, typer.Argument(help="Which topic of the application.")],
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start at the first record; default: only new ones.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print values, one per line; dead letters as objects with reason and origin.")
    ] = False,
    symbol: Annotated[str | None, typer.Option(help="Only this symbol.")] = None,
    max_messages: Annotated[int | None, typer.Option("--max-messages", min=1, help="Stop after N records.")] = None,
    exit_when_idle: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Stop when nothing has come for this long, e.g. 5 or 500ms.")
    ] = None,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Watch the output: frames, late ticks, or dead letters, each with its reason.

    Only committed records are shown. A frame's line says what differs from a
    plain final one: provisional, closed (may be revised), rev=2. Times are UTC.

    [bold]Examples[/bold]

      workers tail frames --symbol AAPL

      workers tail late --from-beginning --exit-when-idle 2s

      workers tail frames --json --from-beginning | jq .close
    """
    from workers.times import parse_duration

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    try:
        # A plain number is seconds: that is what people type.
        plain = exit_when_idle is not None and exit_when_idle.replace(".", "", 1).isdigit()
        idle = f"{exit_when_idle}s" if plain else exit_when_idle
        idle_ns = parse_duration(idle) if idle is not None else None
    except ValueError as error:
        raise ConfigError(f"--exit-when-idle: {error}") from None
    show = _renderer(what, settings, as_json=as_json)
    with closed_output_is_an_end():
        run_async(
            lambda stop: _tail(
                settings,
                what,
                stop,
                show,
                from_beginning=from_beginning,
                symbol=symbol,
                limit=max_messages,
                idle_ns=idle_ns,
            ),
            patience_s=STOP_PATIENCE_S,
        )


async def _tail(
    settings: Settings,
    what: What,
    stop: asyncio.Event,
    show: Callable[[KafkaRecord], str],
    *,
    from_beginning: bool,
    symbol: str | None,
    limit: int | None,
    idle_ns: int | None,
) -> None:
    from contextlib import aclosing

    from workers.apps.inspect.tail import tail as records_of

    topics = settings.topics
    topic = {"frames": topics.frames, "late": topics.late, "dead-letters": topics.dead_letters}[what]
    key = symbol.encode() if symbol is not None else None
    shown = 0
    batches = records_of(
        settings,
        topic,
        stop=stop,
        from_beginning=from_beginning,
        idle_ns=idle_ns,
        on_notice=lambda text: say(f"workers: {text}"),
    )
    async with aclosing(batches):
        async for records in batches:
            for record in records:
                if key is None or record.key == key:
                    sys.stdout.write(show(record) + "\n")
                    shown += 1
                    if shown == limit:
                        return
            sys.stdout.flush()


def _renderer(what: What, settings: Settings, *, as_json: bool) -> Callable[[KafkaRecord], str]:
    from workers.apps.inspect.tail import dead_letter_line, frame_line, json_line, late_line, unit_notice

    unit = settings.tick.timestamp_unit
    noticed = False
    terminal = sys.stdout.isatty()

    def show(record: KafkaRecord) -> str:
        nonlocal noticed
        if as_json:
            line = json_line(record, ledger=what == "dead-letters").decode("utf-8", "backslashreplace")
            return printable(line) if terminal else line  # programs get it as it is
        if what == "frames":
            return printable(frame_line(record, now_ns=time.time_ns()))
        if what == "late":
            notice = None if noticed else unit_notice(record, unit)
            if notice is not None:
                noticed = True
                say(f"workers: {notice}")
            return printable(late_line(record, now_ns=time.time_ns(), unit=unit))
        return printable(dead_letter_line(record))

    return show
