"""``workers config``: what is set, where it comes from, whether it is possible, and what could be set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from workers.commands.common import (
    SETTING_UP,
    ApplicationId,
    BootstrapServers,
    ConfigPath,
    Debug,
    SetOption,
    app,
    closed_output_is_an_end,
    load,
    printable,
    say,
)

if TYPE_CHECKING:
    from workers.settings.reference import ReferenceRow

__all__ = ["markdown_tables"]

config_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(
    config_app, name="config", help="Show, check or look up settings.", rich_help_panel=SETTING_UP, no_args_is_help=True
)


@config_app.command()
def show(
    changed: Annotated[bool, typer.Option("--changed", help="Only settings that differ from the default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: key, value and source.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Show every setting in force and where it comes from. Secrets are masked.

    [bold]Examples[/bold]

      workers config show --changed

      WORKERS__WINDOW__SIZE=1m workers config show --json
    """
    from workers.settings.reference import describe_settings
    from workers.settings.reference import reference as rows_of

    rows = describe_settings(load(config, sets, bootstrap_servers, application_id))
    if changed:
        defaults = {row.key: row.default for row in rows_of()}  # a file may well spell the defaults out
        rows = [row for row in rows if row.value != defaults[row.key]]
    with closed_output_is_an_end():
        if as_json:
            found = [{"key": row.key, "value": row.value, "source": row.source} for row in rows]
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
            return
        _print_columns([(row.key, row.value, row.source) for row in rows], ("setting", "value", "from"))


@config_app.command()
def check(
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Check the configuration, certificates and calendar included: exit code 0, or 2 with everything that is wrong.

    [bold]Example[/bold]

      workers config check --config production.toml
    """
    from workers.kafka.options import client_options
    from workers.settings import advice
    from workers.settings.lane import lane_spec

    settings = load(config, sets, bootstrap_servers, application_id)
    client_options(settings)  # reads the certificates
    lane_spec(settings).rules()  # makes the calendar
    say(f"workers: the configuration is valid (application_id {settings.application_id})")
    for sentence in advice(settings):
        say(f"workers: note: {sentence}")


@config_app.command()
def reference(
    word: Annotated[str | None, typer.Argument(help="Only settings with this in their name or description.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables, one per section.")] = False,
) -> None:
    """List all settings: what is allowed, the default, and what it does.

    [bold]Examples[/bold]

      workers config reference window

      workers config reference --markdown
    """
    from workers.settings.reference import reference as rows

    wanted = (word or "").lower()
    found = [row for row in rows() if wanted in row.key.lower() or wanted in row.description.lower()]
    with closed_output_is_an_end():
        if markdown:
            sys.stdout.write(markdown_tables(found))
            return
        for row in found:
            default = f"  [default: {row.default}]" if row.default else ""
            sys.stdout.write(f"{row.key} = {row.allowed}{default}\n    {row.description}\n")


def markdown_tables(rows: Iterable[ReferenceRow]) -> str:
    """The settings as Markdown, a table for each section."""
    lines: list[str] = []
    section = None
    for row in rows:
        of = row.key.partition(".")[0] if "." in row.key else ""
        if of != section:
            section = of
            lines += ["", f"**`[{section}]`**", ""] if section else [""]
            lines += ["| setting | default | allowed | what it does |", "|---|---|---|---|"]
        default = f"`{row.default}`" if row.default else ""
        cells = (f"`{row.key}`", default, row.allowed, row.description)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def _print_columns(rows: list[tuple[str, str, str]], titles: tuple[str, str, str]) -> None:
    """A plain table: it is read by people, grep and diff alike, so no lines are drawn and nothing is cut off."""
    shown = [titles, *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for row in shown:
        sys.stdout.write(f"{row[0]:<{widths[0]}}  {row[1]:<{min(widths[1], 60)}}  {row[2]}".rstrip() + "\n")
