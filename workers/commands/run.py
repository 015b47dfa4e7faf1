"""``workers run``: one worker process."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Annotated

import typer

from workers.commands.common import (
    WORKING,
    ApplicationId,
    BootstrapServers,
    ConfigPath,
    Debug,
    SetOption,
    app,
    building,
    load,
    run_async,
    say,
)

if TYPE_CHECKING:
    import asyncio

__all__: list[str] = []


def calm_collector() -> None:
    """Have Python's cyclic collector look seldom, and never at what is there now.

    Frames and batches are many and short-lived, and hold no cycles: the collector's defaults cost a third of the time
    of a tick, looking again and again at what is gone a moment later, and a full look at a large state holds
    everything up.
    """
    gc.freeze()  # the little garbage of loading, too: to look for it would take as long as to load half of it
    gc.set_threshold(100_000, 50, 100)


@app.command(rich_help_panel=WORKING)
def run(
    no_create_topics: Annotated[
        bool, typer.Option("--no-create-topics", help="Fail on a missing topic instead of creating it.")
    ] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Run a worker: read ticks, close windows, write frames, until stopped.

    Start as many as you like, on as many machines: workers with the same
    application_id share the partitions and take over from one another.

    SIGTERM or Ctrl-C finishes and commits what is in progress. A second one
    exits at once, which loses nothing either: the next worker resumes from
    the last commit.

    [bold]Examples[/bold]

      workers run

      workers run --config production.toml --set metrics.port=0

      workers run -b broker-1:9092,broker-2:9092 --application-id bars-1m --set window.size=1m
    """
    create = False if no_create_topics else None
    with building():
        settings = load(config, sets, bootstrap_servers, application_id, topics__create=create)
        from workers.telemetry.logs import configure_logging
        from workers.worker.main import run_worker

        configure_logging(settings.logging, debug=debug)
        calm_collector()  # while it rests: it would begin with all that has come about meanwhile

    async def main(stop: asyncio.Event) -> None:
        await run_worker(settings, stop=stop)

    run_async(main, on_stop=lambda: say("workers: finishing; press again to exit now"), patience_s=math.inf)
