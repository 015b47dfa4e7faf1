"""``workers demo``: everything at once, on a broker of its own."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workers.commands.common import LOOKING, Debug, app, closed_output_is_an_end, quiet_clients, run_async, say

if TYPE_CHECKING:
    import asyncio

    from workers.apps.demo import DemoSummary

__all__: list[str] = []


@app.command(rich_help_panel=LOOKING)
def demo(
    seconds: Annotated[int, typer.Option(min=5, max=3600, help="How long the market is open.")] = 15,
    rate: Annotated[int, typer.Option(min=1, max=20_000, help="Ticks a second.")] = 400,
    debug: Debug = False,
) -> None:
    """See it work: a broker, two workers, a synthetic market, frames on screen, and a final count.

    Uses the cluster that KAFKA_BOOTSTRAP_SERVERS names, else starts a broker
    (with Docker, or Java 17 and Maven), and leaves nothing behind.
    """
    from workers.apps.broker import find_broker
    from workers.apps.demo import Demo

    quiet_clients()
    with closed_output_is_an_end(), find_broker() as broker:
        say(f"broker: {broker.description}")

        async def main(stop: asyncio.Event) -> DemoSummary:
            return await Demo(
                broker.bootstrap_servers, seconds=seconds, rate=rate, say=say, show=lambda line: print(line, flush=True)
            ).run(stop)

        summary = run_async(main, on_stop=lambda: say("demo: cleaning up"), patience_s=math.inf)
    _report(summary)
    if not summary.adds_up:
        sys.exit(1)


def _report(summary: DemoSummary) -> None:
    counts = summary.counts
    statuses = ", ".join(f"{number:,} {status}" for status, number in sorted(summary.frames.items()))
    say("")
    say(f"frames      {sum(summary.frames.values()):,} of {summary.symbols} symbols: {statuses or 'none'}")
    say(f"ticks_in    {counts.records:,} (produced: {summary.produced:,})")
    say(f"            = {counts.aggregated:,} aggregated + {counts.late:,} late + {counts.rejected:,} rejected")
    say("it adds up: every tick is accounted for, once" if summary.adds_up else "IT DOES NOT ADD UP")
