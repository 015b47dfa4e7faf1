"""``workers explain``: what happened to a symbol around a time."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from workers.commands.common import (
    LOOKING,
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
    from workers.apps.inspect.explanation import Explanation, FrameAccount, WindowAccount
    from workers.apps.inspect.fates import Clock, TickFate

__all__: list[str] = []


_HELP = """Explain what happened to a symbol around a time: why is this tick missing from that bar?

Shows the window that TIME falls in: the ticks that joined it, those that
were late (by how much, and which tick had moved the watermark) or rejected
(why), the frames that carried it, and whether they are what the log gives
when it is computed again. Nothing is written or committed. Give it the
workers' configuration: where it is another, that is said first, and the
exit code is 2. Without a group of that name it is 1.

[bold]Examples[/bold]

  workers explain AAPL 2026-01-30T13:21:25.5Z

  workers explain AAPL 13:21:25 --around 10s --json
"""


@app.command(rich_help_panel=LOOKING, help=_HELP)
def explain(
    symbol: Annotated[str, typer.Argument(help="Symbol to explain.")],
    time_text: Annotated[
        str,
        typer.Argument(
            metavar="TIME", help="Event time: RFC 3339, HH:MM:SS (today, UTC), or an integer in the ticks' unit."
        ),
    ],
    around: Annotated[
        str, typer.Option(metavar="DURATION", help="Also explain windows this far before and after.")
    ] = "0s",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything found, as one JSON object.")] = False,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Read the whole log, for ticks that came very late.")
    ] = False,
    read_on: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long after the window ended to look for late ticks."),
    ] = "10m",
    home_only: Annotated[
        bool, typer.Option("--home-only", help="Don't look for misrouted ticks on other partitions.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option(
            min=1, help="List at most N ticks per window and fate; all are counted, and those at TIME always listed."
        ),
    ] = 50,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Say what happened to a symbol around a time."""
    from workers.apps.inspect.explain import explain as explained
    from workers.apps.inspect.explain import parse_time
    from workers.times import parse_duration

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    try:
        time_ns = parse_time(time_text, now_ns=time.time_ns(), unit=settings.tick.timestamp_unit)
        around_ns, read_on_ns = parse_duration(around), parse_duration(read_on)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = run_async(
        lambda _stop: explained(
            settings,
            symbol,
            time_ns,
            around_ns=around_ns,
            read_on_ns=read_on_ns,
            from_beginning=from_beginning,
            everywhere=not home_only,
            tick_limit=max(limit, 1_000) if as_json else limit,
            on_progress=lambda text: say(f"workers: {text}"),
        )
    )
    _show(found, as_json=as_json)
    if found.problem is not None:
        sys.exit(ExitCode.USAGE if found.other_settings else ExitCode.FAILED)


def _show(found: Explanation, *, as_json: bool) -> None:
    with closed_output_is_an_end():
        if as_json:
            sys.stdout.write(json.dumps(found.to_dict()) + "\n")
        else:
            for line in _lines(found):
                sys.stdout.write(printable(line) + "\n")


def _lines(found: Explanation) -> Iterator[str]:
    if found.problem is not None:
        yield f"{'NOT what the workers did' if found.other_settings else 'NOTE'}: {found.problem}"
        if found.other_settings:
            yield "  run this command with the workers' configuration (--config, WORKERS_CONFIG, --set)"
        yield ""
    yield (
        f"{found.symbol} belongs on {found.topic}[{found.partition}] of {found.partitions}. "
        f"Asked about {_instant(found.time_ns)}."
    )
    exactly = found.at_the_time()
    for tick in exactly:
        yield f"  at that very time: {_tick(tick, found)}"
    if found.asked_count > len(found.asked):
        yield f"  … and {found.asked_count - len(found.asked):,} more at that very time"
    if not exactly:
        yield "  no tick has exactly that time"
    for window in found.windows:
        yield ""
        yield from _window(window, found)
    if found.stray_count:
        yield ""
        yield f"in no window; rejected ones without a time came while these windows were open: {found.stray_count:,}"
        yield from (f"  {_tick(tick, found)}" for tick in found.strays)
    for tick in found.held:
        yield f"  {_tick(tick, found)}"
    yield ""
    for stretch in found.stretches:
        clock = found.clocks.get(stretch.partition)
        yield (
            f"read {found.topic}[{stretch.partition}] offsets {stretch.begin:,} to {stretch.end:,} of "
            f"{stretch.log_begin:,} to {stretch.log_end:,}"
            + (f"; watermark there {_watermark(clock)}" if clock is not None else "")
        )
    yield from (f"note: {note}" for note in found.notes)


def _window(window: WindowAccount, found: Explanation) -> Iterator[str]:
    story = window.story
    said = {
        "empty": "no tick has joined it",
        "open": "open",
        "closed": "closed, may still be revised",
        "over": "over, takes no more ticks",
    }[window.state]
    counts = ", ".join(f"{number:,} {fate}" for fate, number in story.counts.items())
    yield (
        f"window {_instant(story.start_ns)} to {_instant(story.end_ns)} on {found.topic}[{story.partition}]: {said}"
        + (f"; {counts}" if counts else "")
    )
    yield from (f"  {_tick(tick, found)}" for tick in story.ticks)
    shown = Counter[str](tick.fate for tick in story.ticks)
    left = {fate: number - shown[fate] for fate, number in story.counts.items() if number > shown[fate]}
    if left:
        yield f"  … and {', '.join(f'{number:,} more {fate}' for fate, number in left.items())} (see --limit)"
    yield from (f"  {_frame(frame, found)}" for frame in window.frames)
    if not window.frames and window.state != "empty":
        yield "  no frame yet"


def _tick(tick: TickFate, found: Explanation) -> str:
    where = f"{found.topic}[{tick.partition}] " if tick.partition != found.partition else ""
    parts = [f"{tick.fate:<9} {where}offset {tick.offset}"]
    if tick.ts_ns is not None:
        parts.append(_instant(tick.ts_ns))
    if tick.price is not None and tick.size is not None:
        parts.append(f"price {tick.price!r} size {tick.size!r}")
    if tick.misrouted:
        parts.append(f"misrouted (murmur2 says {found.partition})")
    return " ".join(parts) + (f": {tick.detail}" if tick.detail else "")


def _frame(frame: FrameAccount, found: Explanation) -> str:
    text = f"frame     rev {frame.rev} {frame.status} ({frame.trigger})"
    if frame.made is not None:
        by = "end of the input" if frame.trigger == "end" else "tick"
        text += f" by the {by} at offset {frame.made.offset}"
        if frame.made.clock is not None:
            text += f", watermark {_watermark(frame.made.clock)}"
    if frame.offset is not None:
        text += f"; {found.frames_topic}[{frame.partition}] offset {frame.offset}"
    verdict = {
        "matches": "as recomputed",
        "differs": "NOT as recomputed",
        "missing": "MISSING from the frames topic",
        "not yet": "not published yet: no worker has committed that tick",
        "unexpected": "NOT made by these ticks",
        "repeated": "the same frame again",
        "provisional": "not compared",
    }[frame.verdict]
    fields = "; ".join(f"{each.field} is {each.found!r}, expected {each.expected!r}" for each in frame.differences)
    return f"{text}: {verdict}" + (f": {fields}" if fields else "")


def _watermark(clock: Clock) -> str:
    return f"{_instant(clock.watermark_ns)} (by offset {clock.offset})"


def _instant(time_ns: int) -> str:
    from workers.times import format_instant

    return format_instant(time_ns).removesuffix("Z").replace("T", " ")
