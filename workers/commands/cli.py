"""The ``workers`` command. A command is made known by importing its module here: one line each.

Exit codes: 0 done (for ``run``: also stopped on request), 1 failed, 2 wrong usage or configuration, 3 the broker can't
be reached or refuses the credentials, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workers.commands import config as config
from workers.commands import dashboard as dashboard
from workers.commands import demo as demo
from workers.commands import explain as explain
from workers.commands import lag as lag
from workers.commands import produce as produce
from workers.commands import replay as replay
from workers.commands import run as run
from workers.commands import state as state
from workers.commands import store as store
from workers.commands import tail as tail
from workers.commands import topics as topics
from workers.commands.common import LOOKING, SETTING_UP, WORKING, app, report
from workers.errors import WorkersError

__all__ = ["main"]


# Help lists commands in the order of the day's work, whatever the order of the imports.
_PANELS = (WORKING, LOOKING, SETTING_UP)
app.registered_commands.sort(
    key=lambda command: _PANELS.index(str(panel)) if (panel := command.rich_help_panel) in _PANELS else len(_PANELS)
)


def main() -> None:
    """The entry point: runs the command line and ends the process with the command's exit code."""
    try:
        app(prog_name="workers")
    except WorkersError as error:
        sys.exit(report(error))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tick-workers {version('tick-workers')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn a Kafka topic of market ticks into trustworthy event-time window frames.

    Start [bold]workers run[/bold] as often as you like: workers with the same
    application_id share the partitions.

    Exit codes: 0 done or stopped on request, 1 failed, 2 wrong usage or
    configuration, 3 the broker can't be reached or refuses the credentials,
    130 interrupted (143 by SIGTERM).
    """
