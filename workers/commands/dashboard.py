"""``workers dashboard``: one live page about an application."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from workers.commands.common import (
    LOOKING,
    ApplicationId,
    BootstrapServers,
    ConfigPath,
    Debug,
    SetOption,
    app,
    load,
    quiet_clients,
    run_async,
    say,
)
from workers.errors import ConfigError

if TYPE_CHECKING:
    import asyncio
    import socket

    from workers.apps.dashboard.access import Access
    from workers.settings import Settings

__all__: list[str] = []

_GOODBYE_S: Final = 10.0
"""How long browsers and the Kafka client may take to be let go of."""

TOKEN_VARIABLE = "WORKERS_DASHBOARD_TOKEN"


@app.command(rich_help_panel=LOOKING)
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on; any but localhost needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any free one.")] = 8050,
    token: Annotated[
        str | None, typer.Option(help=f"Token that browsers must enter; better set in {TOKEN_VARIABLE}.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another host name that the page is reached by.")
    ] = None,
    max_clients: Annotated[int, typer.Option(min=1, max=1_000, help="Most browsers at once.")] = 32,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Show an application live in a browser: bars, lag, late ticks, and whether counts add up.

    Read-only: it joins no group, commits nothing and needs nothing from the
    workers. It listens on localhost unless told otherwise, and starts from
    the newest records in the topics.

    [bold]Examples[/bold]

      workers dashboard

      workers dashboard --application-id eurex --port 0

      WORKERS_DASHBOARD_TOKEN=... workers dashboard --host 0.0.0.0
    """
    for module in ("starlette", "uvicorn", "websockets"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"the dashboard needs {module}, which is not installed: pip install 'tick-workers[dashboard]'"
            )
    from workers.apps.dashboard.access import Access
    from workers.apps.dashboard.server import listen

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    access = Access.to(host, token or os.environ.get(TOKEN_VARIABLE), allow_host or ())
    opened = listen(host, port)
    with opened:
        shown = f"[{host}]" if ":" in host else host
        say(f"dashboard: http://{shown}:{opened.getsockname()[1]}/")
        run_async(lambda stop: _serve(settings, access, opened, stop, max_clients), patience_s=_GOODBYE_S)


async def _serve(
    settings: Settings, access: Access, opened: socket.socket, stop: asyncio.Event, max_clients: int
) -> None:
    from workers.apps.dashboard.feed import Feed, model_for
    from workers.apps.dashboard.server import Dashboard, serve

    model = model_for(settings)
    async with Feed(settings, model):
        await serve(Dashboard(settings, model, access, max_clients=max_clients), opened, stop)
