"""``workers produce``: send ticks from a file, from standard input, or from a synthetic market."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from workers.commands.common import (
    WORKING,
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
    quiet_events,
    run_async,
    say,
)
from workers.commands.produce_options import (
    Adaptive,
    BadFraction,
    CheckFile,
    Count,
    Disorder,
    Duration,
    FieldMap,
    FileFormat,
    Finish,
    LateFraction,
    MaxJump,
    MetricsPort,
    Rate,
    Seed,
    Speed,
    Start,
    Symbols,
    Synthetic,
    TicksFile,
    Topic,
)
from workers.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

    from workers.apps.produce.files import TickInput
    from workers.apps.produce.market import Market
    from workers.apps.produce.send import Produced
    from workers.apps.produce.sources import TickSource
    from workers.settings import Settings

    MakeSource = Callable[[asyncio.Event, Callable[[], float] | None], TickSource]

__all__: list[str] = []

_DEFAULT_RATE = 1_000.0
_REPORT_PATIENCE_S = 5.0  # after a signal, for the report of what was checked so far
_MAX_JUMP_NS = 86_400 * 1_000_000_000


_HELP = """Send ticks to the ticks topic, keyed by symbol.

JSON lines go through byte for byte; only their symbol is read.
Lines without a readable symbol are not sent but reported, and the exit
code is then 1; an empty symbol is one like any other. So are rows of a
file whose time is wrong by the next (--max-jump). Whether the rest is a
tick, the worker says; if it would reject some of the first rows, a warning
says why and what may help. Ctrl-C delivers what was read and stops.

With --check the exit code is 0 if every row would be sent, taken by the
workers and in time for them, else 1.

With --finish each partition then gets a record that says that the input
has ended, as part of the log: of every symbol the windows that are open
come out as final, and ticks of those windows that come later are late.
Later windows may go on. Where lines were refused, or Ctrl-C came first,
the input is not ended, so that what is missing can still be sent.

[bold]Examples[/bold]

  workers produce --file trades.ndjson.gz

  workers produce --check trades.csv

  workers produce --file trades.csv --field-map symbol=sym,ts=T,price=p,size=q --speed 10

  feed | workers produce --file -

  workers produce --synthetic --symbols 1000 --rate 20000 --disorder 1s --duration 1m

  workers produce --synthetic --rate 50000 --adaptive

  workers produce --file day.ndjson.zst --finish

  workers produce --synthetic --start 2026-01-05T14:30:00Z --count 1000000 --seed 7
"""


@app.command(rich_help_panel=WORKING, help=_HELP)
def produce(
    file: TicksFile = None,
    format_: FileFormat = None,
    field_map: FieldMap = None,
    max_jump: MaxJump = None,
    check: CheckFile = None,
    synthetic: Synthetic = False,
    symbols: Symbols = 100,
    disorder: Disorder = "1s",
    count: Count = None,
    duration: Duration = None,
    seed: Seed = 0,
    start: Start = None,
    late_fraction: LateFraction = 0.0,
    bad_fraction: BadFraction = 0.0,
    rate: Rate = None,
    speed: Speed = None,
    finish: Finish = False,
    adaptive: Adaptive = False,
    metrics_port: MetricsPort = None,
    topic: Topic = None,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Send ticks to the ticks topic; the options are those of `workers.commands.produce_options`."""
    file = _check_usage(file, check, synthetic, start, count, duration, rate, speed, finish)
    max_jump_ns = _max_jump(max_jump, synthetic=synthetic)
    if format_ not in (None, "ndjson", "csv"):
        raise ConfigError(f"--format {format_}: expected ndjson or csv")
    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id, topics__ticks=topic)
    if check is not None:
        raise typer.Exit(_check(check, settings, field_map, format_, max_jump_ns))
    with _opened(file, settings, field_map, format_, max_jump_ns) as opened:
        make: MakeSource = _no_source
        if synthetic:
            market = _market(settings, symbols, seed, disorder, late_fraction, bad_fraction)
            make = _synthetic_source(settings, market, start, rate, speed, count, duration)
        elif opened is not None:
            make = _file_source(settings, opened, rate, speed)
        total = count if opened is None else None
        with _progress(opened, total) as update:
            produced = _send(
                settings,
                make,
                update,
                adaptive=adaptive,
                metrics_port=metrics_port,
                may_end_input=lambda: finish and not (opened and (opened.refused.count or opened.jumps.count)),
            )
        refused, jumps = (opened.refused.count, opened.jumps.count) if opened is not None else (0, 0)
    endless = synthetic and count is None and duration is None
    only_ends = make is _no_source
    raise typer.Exit(_summary(produced, refused, jumps, endless=endless, only_ends=only_ends, finish=finish))


def _check_usage(
    file: Path | None,
    check: Path | None,
    synthetic: bool,
    start: str | None,
    count: int | None,
    duration: str | None,
    rate: float | None,
    speed: float | None,
    finish: bool,
) -> Path | None:
    """The file that is read. Raises ``ConfigError`` for options that don't go together."""
    if (file is not None) + (check is not None) + synthetic != 1 and not (finish and not synthetic and file is check):
        raise ConfigError("expected either --file FILE, --check FILE or --synthetic (see workers produce --help)")
    if finish and check is not None:
        raise ConfigError("--finish with --check: a check sends nothing")
    if finish and synthetic and count is None and duration is None:
        raise ConfigError("--finish with --synthetic needs --count or --duration: otherwise the market never ends")
    file = file or check
    if not synthetic and (start, count, duration) != (None, None, None):
        raise ConfigError("--start, --count and --duration are for --synthetic; a file ends where it ends")
    if rate and speed:
        raise ConfigError("--rate and --speed are both given; use one of them")
    if synthetic and speed and start is None:
        raise ConfigError(
            "--speed replays by event time, and a synthetic market without --start happens now: use --rate"
        )
    return file


def _max_jump(text: str | None, *, synthetic: bool) -> int | None:
    """Nanoseconds that a file's time may jump, 0 for any; None where it is not said."""
    if text is None:
        return None
    if synthetic:
        raise ConfigError("--max-jump is for files; a synthetic market has no wrong dates")
    return _duration("--max-jump", text)


@contextmanager
def _opened(
    file: Path | None, settings: Settings, field_map: str | None, kind: str | None, max_jump_ns: int | None
) -> Iterator[TickInput | None]:
    if file is None:
        yield None
        return
    from workers.apps.produce.check import Preview

    def tell(text: str) -> None:
        say(printable(text))

    opened = _open(file, settings, field_map, kind, max_jump_ns, tell)
    if settings.tick.format == "json":
        opened.preview = Preview(settings, opened.name, tell)
    try:
        yield opened
    finally:
        opened.close()


def _open(
    file: Path,
    settings: Settings,
    field_map: str | None,
    kind: str | None,
    max_jump_ns: int | None,
    tell: Callable[[str], None],
) -> TickInput:
    from workers.apps.produce.files import open_ticks
    from workers.settings.lane import tick_format

    chosen: Literal["ndjson", "csv"] | None = "csv" if kind == "csv" else "ndjson" if kind else None
    opened = open_ticks(file, tick_format(settings.tick), say=tell, mapping=field_map, kind=chosen)
    if max_jump_ns is None:  # what is live is not held back unless that is asked for
        max_jump_ns = _MAX_JUMP_NS if opened.size is not None else 0
    if max_jump_ns:
        opened.guard_jumps(max_jump_ns, settings.window.lag + settings.window.allowed_lateness)
    return opened


def _check(
    file: Path, settings: Settings, field_map: str | None, kind: str | None, max_jump_ns: int | None
) -> ExitCode:
    """Say what would become of a file; returns the exit code."""
    from workers.apps.produce.check import Check
    from workers.apps.produce.sources import blocks_of

    if settings.tick.format != "json":
        raise ConfigError(f"--check: tick.format is {settings.tick.format}; expected json, for ticks")
    opened = _open(file, settings, field_map, kind, max_jump_ns, lambda text: None)
    check = Check(settings, opened)

    async def main(stop: asyncio.Event) -> bool:
        async for block in blocks_of(opened, stop):
            check.see(opened.rows(block))
        return stop.is_set()

    try:
        stopped = run_async(main, patience_s=_REPORT_PATIENCE_S)
    finally:
        opened.close()
    with closed_output_is_an_end():
        for line in check.report():
            print(printable(line))
        if stopped:
            print("stopped before the end; this is what was found so far")
    return ExitCode.INTERRUPTED if stopped else ExitCode.OK if check.flawless else ExitCode.FAILED


def _market(
    settings: Settings, symbols: int, seed: int, disorder: str, late_fraction: float, bad_fraction: float
) -> Market:
    from workers.apps.produce.market import Market
    from workers.settings.lane import tick_format

    return Market(
        symbols=symbols,
        seed=seed,
        disorder_ns=_duration("--disorder", disorder),
        late_fraction=late_fraction,
        late_by_ns=settings.window.lag + settings.window.allowed_lateness,
        bad_fraction=bad_fraction,
        tick=tick_format(settings.tick),
    )


def _synthetic_source(
    settings: Settings,
    market: Market,
    start: str | None,
    rate: float | None,
    speed: float | None,
    count: int | None,
    duration: str | None,
) -> MakeSource:
    from workers.apps.produce.market import arrivals, synthetic_ticks
    from workers.apps.produce.pacing import paced
    from workers.apps.produce.sources import GeneratedSource
    from workers.settings.lane import tick_format
    from workers.times import parse_rfc3339

    duration_ns = _duration("--duration", duration) if duration is not None else None
    pace = rate if rate is not None else _DEFAULT_RATE
    if start is None:
        times: Iterator[int] = iter(time.time_ns, None)
        limit = pace or None
    else:
        try:
            times = arrivals(parse_rfc3339(start), pace or _DEFAULT_RATE)
        except ValueError as error:
            raise ConfigError(f"--start: {error}") from None
        # The rate is that of the event times. It is that of sending too where it was asked for; without it data of
        # another time are sent as fast as possible, as with --speed 0.
        limit = rate or None if speed is None else None

    def make(stop: asyncio.Event, scale: Callable[[], float] | None) -> TickSource:
        source = GeneratedSource(synthetic_ticks(market, times), count=count, duration_ns=duration_ns)
        return paced(source, tick_format(settings.tick), stop, rate=limit, speed=speed or None, scale=scale)

    return make


def _file_source(settings: Settings, opened: TickInput, rate: float | None, speed: float | None) -> MakeSource:
    from workers.apps.produce.pacing import paced
    from workers.apps.produce.sources import FileSource
    from workers.settings.lane import tick_format

    def make(stop: asyncio.Event, scale: Callable[[], float] | None) -> TickSource:
        source = FileSource(opened, stop)
        return paced(source, tick_format(settings.tick), stop, rate=rate or None, speed=speed or None, scale=scale)

    return make


def _no_source(stop: asyncio.Event, scale: Callable[[], float] | None) -> TickSource:
    """No ticks: there is only the end of the input to be told."""
    from workers.apps.produce.sources import GeneratedSource

    return GeneratedSource(iter(()))


def _duration(option: str, text: str) -> int:
    from workers.times import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def _send(
    settings: Settings,
    make: MakeSource,
    update: Callable[[int], None],
    *,
    adaptive: bool,
    metrics_port: int | None,
    may_end_input: Callable[[], bool],
) -> Produced:
    from contextlib import AsyncExitStack

    from workers.apps.produce.send import StoppedError, prepare_topic, unless_stopped
    from workers.apps.produce.send import produce as send
    from workers.backpressure.producer_throttle import AdaptiveThrottle, ThrottleState
    from workers.telemetry.health import HealthServer
    from workers.telemetry.metrics import Metrics

    def show(state: ThrottleState) -> None:
        say(printable(f"workers: {state.level.label}, {state.scale:.0%} of the full pace: {state.reason}"))

    quiet_events()

    async def main(stop: asyncio.Event) -> Produced:
        metrics, counted = Metrics(), 0

        def progress(added: int) -> None:
            nonlocal counted
            metrics.ticks_sent.inc(added - counted)
            counted = added
            update(added)

        async with AsyncExitStack() as stack:
            if metrics_port is not None:
                where = settings.metrics.model_copy(update={"port": metrics_port})
                server = await stack.enter_async_context(HealthServer(where, metrics.registry))
                say(f"workers: metrics on {settings.metrics.host}:{server.port}")
            scale = None
            if adaptive:
                await unless_stopped(prepare_topic(settings, settings.topics.ticks), stop)
                throttle = await stack.enter_async_context(AdaptiveThrottle(settings, on_change=show, metrics=metrics))
                scale = throttle.scale
            return await send(
                settings,
                make(stop, scale),
                topic=settings.topics.ticks,
                stop=stop,
                on_progress=progress,
                on_notice=lambda text: say(f"workers: {text}"),
                may_end_input=may_end_input,
            )

    try:
        return run_async(
            main,
            on_stop=lambda: say("workers: delivering what was read; press again to exit now"),
            patience_s=math.inf,
        )
    except StoppedError as error:
        say("workers: stopped before the cluster answered; nothing was sent")
        raise typer.Exit(ExitCode.INTERRUPTED) from error


@contextmanager
def _progress(opened: TickInput | None, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda added: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[ticks]}"), TimeElapsedColumn()]
    size = opened.size if opened is not None else total
    began_s, shown_s = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sending", total=size, ticks="")

        def update(added: int) -> None:
            nonlocal shown_s
            now_s = time.monotonic()
            if now_s - shown_s < 0.1:
                return
            shown_s = now_s
            done = opened.position if opened is not None else added
            rate = added / max(now_s - began_s, 1e-9)
            bar.update(task, completed=done, ticks=f"{added:,} ticks, {rate:,.0f}/s")

        yield update


def _summary(produced: Produced, refused: int, jumps: int, *, endless: bool, only_ends: bool, finish: bool) -> int:
    """Say what was done; returns the exit code."""
    seconds = produced.duration_ns / 1e9
    rate = produced.delivered / max(seconds, 1e-9)
    if not only_ends:
        say(
            f"{produced.delivered:,} ticks sent to {produced.topic} ({produced.partitions} partitions) "
            f"in {seconds:.1f} s, {rate:,.0f}/s"
        )
    if refused:
        say(f"{refused:,} lines refused: they could not be read and were not sent")
    if jumps:
        say(f"{jumps:,} rows not sent: their time jumps ahead, and their symbol's next row goes back (--max-jump)")
    if produced.undelivered:
        say(f"{produced.undelivered:,} ticks that were read are not confirmed by the cluster; they may be lost")
    if produced.input_ended:
        say(f"marked the end of the input on all {produced.partitions} partitions of {produced.topic}")
    elif finish:
        say("the end of the input was NOT marked: send what is missing, then run workers produce --finish")
    if produced.interrupted and not endless:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if refused or jumps or produced.undelivered else ExitCode.OK
