"""``workers lag``: how far the group is behind."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workers.commands.common import (
    LOOKING,
    STOP_PATIENCE_S,
    ApplicationId,
    BootstrapServers,
    ConfigPath,
    Debug,
    ExitCode,
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

    from workers.kafka.group_offsets import GroupLag
    from workers.settings import Settings

__all__: list[str] = []


@app.command(rich_help_panel=LOOKING)
def lag(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; with --watch, one per line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat until Ctrl-C.")] = False,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="Interval of --watch.")] = "2s",
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Show how many ticks the group has not committed yet, by partition.

    Lag is measured from the last commit, so while workers run it varies by
    what one commit interval brings. Records that retention deleted before
    they were committed are not lag; they are reported separately, as lost.
    Exit code 1 if the group does not exist.

    [bold]Examples[/bold]

      workers lag --watch

      workers lag --json | jq .total
    """
    from workers.times import NS_PER_SECOND, parse_duration

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    try:
        interval_s = parse_duration(interval) / NS_PER_SECOND
    except ValueError as error:
        raise ConfigError(f"--interval: {error}") from None
    exists = True
    with closed_output_is_an_end():
        exists = run_async(
            lambda stop: _show(settings, stop, as_json=as_json, interval_s=interval_s if watch else None),
            patience_s=STOP_PATIENCE_S if watch else 0.0,
        )
    if not exists:
        sys.exit(ExitCode.FAILED)


async def _show(settings: Settings, stop: asyncio.Event, *, as_json: bool, interval_s: float | None) -> bool:
    """Whether there is such a group, as far as that was asked once."""
    import asyncio

    from workers.kafka.clients import admin_client
    from workers.kafka.group_offsets import (
        LagReader,
        added_partitions_problem,
        lost_records_problem,
        no_group_problem,
    )

    live = interval_s is not None and not as_json and sys.stdout.isatty()
    async with admin_client(settings) as admin, LagReader(settings, admin) as reader:
        while True:
            found = await reader.read()
            if live:
                sys.stdout.write("\x1b[H\x1b[2J")
            sys.stdout.write(_json(found, one_line=interval_s is not None) if as_json else _table(found))
            sys.stdout.flush()
            problem = no_group_problem(found)
            for text in (problem, lost_records_problem(found), added_partitions_problem(found)):
                if text is not None:
                    say(printable(f"workers: {text}"))
            if interval_s is None:
                return problem is None
            try:
                async with asyncio.timeout(max(interval_s, 0.1)):
                    await stop.wait()
                return True
            except TimeoutError:
                continue


def _json(found: GroupLag, *, one_line: bool) -> str:
    partitions = [
        {
            "partition": item.partition,
            "begin": item.begin,
            "committed": item.committed,
            "end": item.end,
            "lag": item.lag,
            "lost": item.lost,
        }
        for item in found.partitions
    ]
    report = {
        "group": found.group,
        "topic": found.topic,
        "state": found.state,
        "members": found.members,
        "total": found.total,
        "lost": found.lost,
        "partitions": partitions,
    }
    return json.dumps(report, indent=None if one_line else 2) + "\n"


def _table(found: GroupLag) -> str:
    lines = [f"group {found.group} on {found.topic}: {found.state}, {found.members} members"]
    lines.append(f"{'partition':>9} {'committed':>14} {'end':>14} {'lag':>14}")
    for item in found.partitions:
        committed = "-" if item.committed is None else f"{item.committed:,}"
        lines.append(f"{item.partition:>9} {committed:>14} {item.end:>14,} {item.lag:>14,}")
    lines.append(f"{'total':>9} {'':>14} {'':>14} {found.total:>14,}")
    return "\n".join(lines) + "\n"
