"""``workers replay``: make frames again from the ticks, and compare them with what was published."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
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
    from workers.apps.inspect.comparison import FrameProblem, ReplayResult
    from workers.settings import Settings
    from workers.times import TimestampUnit

__all__: list[str] = []


@app.command(rich_help_panel=LOOKING)
def replay(
    from_text: Annotated[str, typer.Option("--from", metavar="TIME", help="Windows that start at this time or later.")],
    to_text: Annotated[str, typer.Option("--to", metavar="TIME", help="Windows that start before this time.")],
    symbol: Annotated[str | None, typer.Option(help="Only this symbol.")] = None,
    warm_up: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Read ticks from this event time on; default: all."),
    ] = None,
    to_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recomputed frames, one JSON object per line.")
    ] = None,
    to_topic: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write the recomputed frames to a topic of their own.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Compare with the published frames.")] = True,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Show at most N differences; all are counted.")] = 10,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Recompute the frames of a time span from the ticks, and compare them with the published ones.

    Times are event times: RFC 3339, HH:MM:SS (today, UTC), or an integer in
    tick.timestamp_unit. Provisional frames are left out: they depend on the
    wall clock. --warm-up may be as late as --from without missing anything,
    save with operators that remember more, session windows and filled gaps.

    Exit code 0: identical; 1: different, with the differences explained.

    [bold]Examples[/bold]

      workers replay --from 2026-01-30T13:00:00Z --to 2026-01-30T14:00:00Z

      workers replay --from 13:00:00 --to 14:00:00 --symbol AAPL --to-file AAPL.ndjson --no-compare
    """
    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    if to_file is not None and to_topic is not None:
        raise ConfigError("--to-file and --to-topic are both given; use one of them")
    if not compare and to_file is None and to_topic is None:
        raise ConfigError("--no-compare without --to-file or --to-topic does nothing")
    unit = settings.tick.timestamp_unit
    from_ns, to_ns = _time("--from", from_text, unit), _time("--to", to_text, unit)
    warm_up_ns = _time("--warm-up", warm_up, unit) if warm_up is not None else None
    _say_assumptions(settings, warm_up)
    result = run_async(
        lambda _stop: _replay(settings, from_ns, to_ns, symbol, warm_up_ns, to_file, to_topic, compare=compare)
    )
    for note in result.notes:
        say(printable(f"workers: {note}"))
    with closed_output_is_an_end():
        for line in _lines(result, limit, settings):
            sys.stdout.write(printable(line) + "\n")
    if result.different:
        sys.exit(ExitCode.FAILED)


def _time(option: str, text: str, unit: TimestampUnit) -> int:
    from workers.apps.inspect.explain import parse_time

    try:
        return parse_time(text, now_ns=time.time_ns(), unit=unit)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def _say_assumptions(settings: Settings, warm_up: str | None) -> None:
    from workers.times import format_duration

    if warm_up is None:
        say(f"workers: reading {settings.topics.ticks} from its beginning, like a worker that started there")
        return
    skew = format_duration(settings.tick.max_future_skew)
    say(
        f"workers: reading {settings.topics.ticks} from what was sent {skew} before {printable(warm_up)} on: earlier "
        "records hold no tick of that time or later"
        + ("; what operators remembered from before is missing" if settings.pipeline else "")
        + ("; what tick.max_jump held before is missing" if settings.tick.max_jump else "")
        + ("; of sessions that began before, a part is missing" if settings.window.kind == "session" else "")
    )


async def _replay(
    settings: Settings,
    from_ns: int,
    to_ns: int,
    symbol: str | None,
    warm_up_ns: int | None,
    to_file: Path | None,
    to_topic: str | None,
    *,
    compare: bool,
) -> ReplayResult:
    from contextlib import AsyncExitStack

    from workers.apps.inspect.replay import replay as replayed
    from workers.apps.inspect.replay import writing_to_file, writing_to_topic

    async with AsyncExitStack() as stack:
        sink = None
        if to_file is not None:
            sink = await stack.enter_async_context(writing_to_file(to_file))
        elif to_topic is not None:
            sink = await stack.enter_async_context(writing_to_topic(settings, to_topic))
        return await replayed(
            settings,
            from_ns,
            to_ns,
            symbol=symbol,
            warm_up_ns=warm_up_ns,
            compare=compare,
            sink=sink,
            on_progress=lambda text: say(f"workers: {text}"),
        )


def _lines(result: ReplayResult, limit: int, settings: Settings) -> Iterator[str]:
    yield f"{result.made:,} frames recomputed from {result.records:,} records"
    if not result.compared:
        return
    for problem in result.problems[:limit]:
        yield from _problem(problem, settings)
    hidden = result.different - min(limit, len(result.problems))
    if hidden > 0:
        yield f"… and {hidden:,} more"
    parts = [f"{result.identical:,} identical"]
    if result.repeated:
        parts.append(f"{result.repeated:,} of them published more than once")
    if result.not_yet:
        parts.append(f"{result.not_yet:,} not published yet, as no worker has committed their ticks")
    parts.append(f"{result.different:,} different" if result.different else "none different")
    yield ", ".join(parts)


def _problem(problem: FrameProblem, settings: Settings) -> Iterator[str]:
    from workers.times import NS_PER_MS, format_instant

    topics = settings.topics
    try:
        start = format_instant(problem.start_ms * NS_PER_MS)
    except OverflowError:
        start = f"{problem.start_ms} ms"
    yield f"{problem.kind}: {problem.key} {start} rev {problem.rev} {problem.status}"
    if problem.made_at is not None:
        partition, offset = problem.made_at
        yield f"  made by {topics.ticks}[{partition}], read up to offset {offset}"
    if problem.published_at is not None:
        partition, offset = problem.published_at
        yield f"  published at {topics.frames}[{partition}] offset {offset}"
    for each in problem.differences:
        yield f"  {each.field}: expected {each.expected!r}, found {each.found!r}"
    if not problem.differences:
        yield f"  {(problem.expected or problem.found or b'').decode('utf-8', 'backslashreplace')[:500]}"
    if problem.cause is not None:
        yield f"  likely cause: {problem.cause}"
