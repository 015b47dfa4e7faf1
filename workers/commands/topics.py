"""``workers topics``: create, list or delete the topics of an application."""

from __future__ import annotations

import json
import sys
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
    quiet_clients,
    run_async,
    say,
)
from workers.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

    from workers.kafka.topics import TopicLayout, TopicPlan, TopicState
    from workers.settings import Settings

__all__: list[str] = []

topics_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(
    topics_app,
    name="topics",
    help="Create, list or delete the topics of an application.",
    rich_help_panel=SETTING_UP,
    no_args_is_help=True,
)


@topics_app.command()
def create(
    partitions: Annotated[
        int | None, typer.Option(min=1, help="For topics that are created; default: the setting.")
    ] = None,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Create the missing topics, and check that existing ones fit together.

    The changelog gets as many partitions as the ticks topic has. Choose the
    number with room to grow: adding partitions later moves symbols between
    them.

    [bold]Examples[/bold]

      workers topics create --partitions 32

      workers topics create --application-id bars-1m --set topics.frames=bars-1m
    """
    from workers.kafka.clients import admin_client
    from workers.kafka.topics import ensure_topics

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id, topics__partitions=partitions)

    async def main(_stop: asyncio.Event) -> TopicLayout:
        async with admin_client(settings) as admin:
            return await ensure_topics(admin, settings, create=True)

    layout = run_async(main)
    if not layout.created:
        say("workers: all topics exist already")
    for name in layout.created:
        sys.stdout.write(f"created {name}\n")


@topics_app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """List the application's topics, and whether they exist.

    [bold]Example[/bold]

      workers topics list --application-id bars-1m
    """
    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    plans, found = run_async(lambda _stop: _look(settings))
    rows = []
    for plan in plans:
        state = found.get(plan.name)
        rows.append((plan.role, plan.name, state.partitions if state else None, bool(state and state.ready)))
    with closed_output_is_an_end():
        if as_json:
            keys = ("role", "topic", "partitions", "ready")
            sys.stdout.write(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2) + "\n")
            return
        width = max(len(name) for _role, name, _partitions, _ready in rows)
        for role, name, partitions, ready in rows:
            state_text = "missing" if partitions is None else f"{partitions} partitions{'' if ready else ', not ready'}"
            sys.stdout.write(f"{role:<13} {name:<{width}}  {state_text}\n")


@topics_app.command()
def delete(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    with_ticks: Annotated[bool, typer.Option("--with-ticks", help="Also delete the ticks topic, the input.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Delete what an application wrote: frames, late, dead letters, changelog and feedback. Stop its workers first.

    The group's committed offsets stay: before workers of that application_id
    run again, say workers state reset. Topics that operators route ticks to
    stay too: others may write to them as well.

    [bold]Example[/bold]

      workers topics delete --application-id experiment --set topics.frames=experiment-frames
    """
    from workers.kafka.topics import planned_topics

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    kept = {"routed"} if with_ticks else {"routed", "ticks"}
    names = [plan.name for plan in planned_topics(settings) if plan.role not in kept]
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("topics delete asks for confirmation; without a terminal, pass --yes")
        typer.confirm(f"Delete {', '.join(names)} at {settings.bootstrap_servers}?", abort=True, err=True)
    for name in run_async(lambda _stop: _delete(settings, names)):
        sys.stdout.write(f"deleted {name}\n")
    say(
        f"workers: the offsets of the group {settings.application_id} stay, without their state; before its workers "
        "run again, drop them with `workers state reset`"
    )


async def _look(settings: Settings) -> tuple[list[TopicPlan], dict[str, TopicState]]:
    from workers.kafka.clients import admin_client
    from workers.kafka.topics import describe_topics, planned_topics

    async with admin_client(settings) as admin:
        return planned_topics(settings), await describe_topics(admin)


async def _delete(settings: Settings, names: list[str]) -> list[str]:
    from workers.kafka.clients import admin_client
    from workers.kafka.topics import delete_topics

    async with admin_client(settings) as admin:
        return await delete_topics(admin, names)
