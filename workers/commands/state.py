"""``workers state``: what is stored for recovery, how to move it to more partitions, and how to drop it."""

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
    from workers.apps.inspect.state import PartitionState
    from workers.core.windows.window import Window

__all__: list[str] = []

state_app = typer.Typer(no_args_is_help=True, help="Show, move or drop the state stored for recovery.")
app.add_typer(state_app, name="state", rich_help_panel=SETTING_UP)


@state_app.command()
def show(
    symbol: Annotated[str | None, typer.Option(help="Show the windows of this symbol, one per line.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per partition, or per window.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Show what each partition's state reflects, and whether a worker with these settings would accept it.

    Exit code 1 if it would not.

    [bold]Examples[/bold]

      workers state show

      workers state show --symbol AAPL
    """
    from workers.apps.inspect.state import show_state

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    states = run_async(lambda _stop: show_state(settings))
    with closed_output_is_an_end():
        for state in states:
            if symbol is not None:
                for window in sorted(state.windows, key=lambda each: each.start_ns):
                    if window.key == symbol:
                        sys.stdout.write(_window(state.partition, window, as_json=as_json))
            else:
                sys.stdout.write(_json(state) if as_json else _line(state))
    if any(state.problem for state in states):
        sys.exit(ExitCode.FAILED)


@state_app.command()
def reset(
    partition: Annotated[
        list[int] | None,
        typer.Option(min=0, metavar="N", help="Only this partition of the ticks topic; repeatable. Default: all."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Drop the state and the group's offsets, so that workers start afresh, by default at the log's first tick.

    Published frames stay in their topic, and those of ticks still in the log are published again. To keep them
    apart, use another application_id and frames topic instead. Stop all workers first.

    Where the changelog does not fit the ticks topic, as after partitions were added, it is made to.

    [bold]Examples[/bold]

      workers state reset --application-id bars-1m

      workers state reset --partition 3
    """
    from workers.apps.inspect.state import reset_state

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("state reset asks for confirmation; without a terminal, pass --yes")
        which = f", partitions {', '.join(map(str, sorted(set(partition))))}," if partition else ""
        typer.confirm(
            f"Drop the state of {settings.application_id}{which} at {settings.bootstrap_servers}?",
            abort=True,
            err=True,
        )

    def told(number: int, records: int) -> None:
        say(f"partition {number}: {records:,} records dropped")

    run_async(lambda _stop: reset_state(settings, only=partition or (), on_partition=told, on_topic=say))


@state_app.command()
def rescale(
    partitions: Annotated[
        int, typer.Option(min=2, metavar="N", help="How many partitions the ticks topic is to have; more than it has.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    config: ConfigPath = None,
    sets: SetOption = None,
    bootstrap_servers: BootstrapServers = None,
    application_id: ApplicationId = None,
    debug: Debug = False,
) -> None:
    """Give the ticks topic more partitions, and move the state of each key along.

    Stop the producers, let the workers read to the end, stop them too, and run this: it adds the partitions itself.
    Then restart the producers, which otherwise learn of the new partitions minutes later, and the workers. Interrupted,
    it can be run again.

    [bold]Examples[/bold]

      workers state rescale --partitions 16 --dry-run

      workers state rescale --partitions 16
    """
    from workers.apps.inspect.rescale import plan_rescale, rescale_state

    quiet_clients()
    settings = load(config, sets, bootstrap_servers, application_id)
    if not dry_run and not yes and not sys.stdin.isatty():
        raise ConfigError("state rescale asks for confirmation; without a terminal, pass --yes")

    def told(number: int, records: int) -> None:
        say(f"partition {number}: {records:,} records read")

    plan = run_async(lambda _stop: plan_rescale(settings, partitions, on_partition=told))
    if plan.target is None:
        say(f"the state is of {partitions} partitions already; there is nothing to do")
        return
    say(
        f"{settings.application_id}: {plan.target.moved:,} of {plan.target.keys:,} keys move, from {plan.old} "
        f"partitions to {partitions}"
    )
    if dry_run:
        return
    if not yes:
        typer.confirm(f"Change {settings.topics.ticks} at {settings.bootstrap_servers}?", abort=True, err=True)
    done = run_async(lambda _stop: rescale_state(settings, plan, on_step=say))
    assert done.target is not None
    say(f"done: {done.target.keys:,} keys are where their ticks will be. Restart the producers, then the workers")


def _json(state: PartitionState) -> str:
    meta = state.meta
    found: dict[str, object] = {
        "partition": state.partition,
        "offset": meta.offset if meta else None,
        "committed": state.committed,
        "end": state.end,
        "keys": len({window.key for window in state.windows}),
        "windows": len(state.windows),
        "problem": state.problem,
    }
    if meta is not None:
        found["counts"] = {name: getattr(meta.counts, name) for name in meta.counts.__slots__}
        found["settings"] = dict(meta.fingerprint)
    return json.dumps(found) + "\n"


def _line(state: PartitionState) -> str:
    if state.meta is None:
        return f"partition {state.partition}: no state\n"
    keys = len({window.key for window in state.windows})
    text = (
        f"partition {state.partition}: offset {state.meta.offset:,} of {state.end:,}, {keys:,} keys, "
        f"{len(state.windows):,} windows, {state.meta.counts.records:,} records so far\n"
    )
    return text if state.problem is None else f"{text}  would be refused: {state.problem}\n"


def _window(partition: int, window: Window[str], *, as_json: bool) -> str:
    from workers.times import format_instant

    if as_json:
        found = {
            "partition": partition,
            "key": window.key,
            "start_ns": window.start_ns,
            "end_ns": window.end_ns,
            "rev": window.rev,
            "closed": window.closed,
            "count": window.count,
            "first_ns": window.first_ns if window.count else None,
            "last_ns": window.last_ns if window.count else None,
        }
        return json.dumps(found) + "\n"
    last_tick = f"last tick {format_instant(window.last_ns)}" if window.count else "no ticks"
    return (
        f"[p={partition}] {printable(window.key)} {format_instant(window.start_ns)}..{format_instant(window.end_ns)} "
        f"count={window.count} rev={window.rev} {'closed' if window.closed else 'open'}, "
        f"{last_tick}\n"
    )
