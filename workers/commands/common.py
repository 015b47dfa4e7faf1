"""What all commands share: the application object, options, exit codes, and how errors and foreign text are shown.

Only light modules are imported at the top of this package: ``workers --help`` and shell completion must not wait for
Kafka's client or pydantic. Commands import what they work with when they run.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from workers.errors import BrokerError, ConfigError, TopicError, WorkersError

if TYPE_CHECKING:
    import asyncio

    from workers.settings import Settings

__all__ = [
    "LOOKING",
    "SETTING_UP",
    "STOP_PATIENCE_S",
    "WORKING",
    "ApplicationId",
    "BootstrapServers",
    "ConfigPath",
    "Debug",
    "ExitCode",
    "SetOption",
    "app",
    "building",
    "closed_output_is_an_end",
    "exit_code_for",
    "load",
    "printable",
    "quiet_clients",
    "quiet_events",
    "report",
    "run_async",
    "say",
]

T = TypeVar("T")

app = typer.Typer(
    name="workers",
    help="Turn a Kafka topic of market ticks into trustworthy event-time window frames.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # tracebacks with local variables would show passwords
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

WORKING: Final = "Working"
LOOKING: Final = "Looking"
SETTING_UP: Final = "Setting up"


STOP_PATIENCE_S: Final = 2.0
"""How long what runs until it is stopped, and has nothing to finish, may take to end by itself."""

_SAME_WISH_S: Final = 0.5
_CLEAN_UP_S: Final = 3.0


class ExitCode(IntEnum):
    """What the exit codes of all commands mean."""

    OK = 0
    FAILED = 1
    USAGE = 2  # also what a wrong configuration gives
    UNREACHABLE = 3  # the broker: can't be reached, or refuses the credentials
    INTERRUPTED = 130  # by SIGINT; by SIGTERM it is 143


# -- options ----------------------------------------------------------------------------------------------------------

_debug = False


def _set_debug(value: bool) -> bool:
    global _debug  # errors are shown in main(), where no command's options can be seen any more
    _debug = _debug or value
    return value


_SETTINGS_PANEL: Final = "Settings"

ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML configuration file; default: WORKERS_CONFIG, then config/workers.toml.",
        rich_help_panel=_SETTINGS_PANEL,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a setting, e.g. --set window.size=1m; repeatable.",
        rich_help_panel=_SETTINGS_PANEL,
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        "-b",
        metavar="HOST:PORT",
        help="Bootstrap brokers; default: KAFKA_BOOTSTRAP_SERVERS.",
        rich_help_panel=_SETTINGS_PANEL,
    ),
]
ApplicationId = Annotated[
    str | None,
    typer.Option(
        "--application-id",
        metavar="NAME",
        help="Consumer group, and prefix of its own topics (all but ticks and frames) and transactions.",
        rich_help_panel=_SETTINGS_PANEL,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show tracebacks and the Kafka client's log.",
        callback=_set_debug,
        rich_help_panel=_SETTINGS_PANEL,
    ),
]


def load(
    config: Path | None,
    sets: list[str] | None,
    bootstrap_servers: str | None,
    application_id: str | None,
    **more: object,
) -> Settings:
    """The settings of a command: file, environment, ``--set``, then the shortcuts; ``more`` holds further overrides,
    ``__`` standing for the dot, ``None`` for an option that was not given.

    Raises ``ConfigError``.
    """
    overrides: dict[str, object] = {}
    for item in sets or ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: expected KEY=VALUE, like --set window.size=1m")
        overrides[key.strip()] = value
    shortcuts = {"bootstrap_servers": bootstrap_servers, "application_id": application_id}
    shortcuts_and_more: dict[str, object] = {**shortcuts, **{key.replace("__", "."): more[key] for key in more}}
    overrides.update({key: value for key, value in shortcuts_and_more.items() if value is not None})
    with building():  # the model's validator, too
        from workers.settings import load_settings

        return load_settings(config, overrides=overrides)


@contextmanager
def building() -> Iterator[None]:
    """While modules are loaded: without Python's cyclic collector, which would look again and again at what stays for
    good, and without what structlog loads of rich to show tracebacks in a way that is not used here. Each takes a sixth
    of the time until a worker works."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        if "structlog" not in sys.modules:
            _load_structlog()
        yield
    finally:
        if enabled:
            gc.enable()


def _load_structlog() -> None:
    rich = {name: module for name, module in sys.modules.items() if name == "rich"}
    sys.modules["rich"] = None  # type: ignore[assignment]  # what makes an import of it fail
    try:
        import structlog  # noqa: F401 - as it looks for rich once, when it is loaded
    finally:
        del sys.modules["rich"]
        sys.modules.update(rich)


# -- running ----------------------------------------------------------------------------------------------------------


def run_async(
    make: Callable[[asyncio.Event], Awaitable[T]],
    *,
    on_stop: Callable[[], None] | None = None,
    patience_s: float = 0.0,
) -> T:
    """Run a coroutine (under uvloop where there is one), and end it on SIGINT and SIGTERM.

    The first signal sets the event given to the coroutine and calls ``on_stop``. It may then end by itself within
    ``patience_s``; else it is cancelled, and the command ends with 128 + the signal's number, without its result. By
    default it is cancelled at once: that is right for whatever only looks, or can be run again. ``math.inf`` is for
    what has something to finish, and says so by ``on_stop``; a second signal ends that process at once, because whoever
    asks twice does not want to wait.

    Cleaning up after the cancellation takes at most `_CLEAN_UP_S`; then the process ends whatever it is doing.
    """
    import asyncio

    signals = _Signals(on_stop, patience_s)

    async def main() -> T:
        return await make(signals.begin())

    try:
        with signals:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                result = runner.run(main())
            if not signals.gave_up:
                return result
    except (Exception, asyncio.CancelledError):
        if not signals.gave_up:
            raise
        if _debug:
            logging.getLogger(__name__).info("what was interrupted ended with", exc_info=True)
    say("workers: interrupted")
    raise SystemExit(signals.exit_code)


class _Signals:
    """SIGINT and SIGTERM while `run_async` runs. The handlers are Python's own, not the event loop's: those would wait
    for a loop that is busy."""

    def __init__(self, on_stop: Callable[[], None] | None, patience_s: float) -> None:
        self._on_stop = on_stop
        self._patience_s = patience_s
        self._number: int | None = None
        self._asked_s = 0.0
        self._begun: tuple[asyncio.AbstractEventLoop, asyncio.Task[object], asyncio.Event] | None = None
        self._last_resort: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        self.gave_up = False
        """Whether the coroutine was cancelled."""

    @property
    def exit_code(self) -> int:
        """What a shell would show of a process that the signal ended."""
        return 128 + (self._number or 0)

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._last_resort is not None:
            self._last_resort.cancel()

    def begin(self) -> asyncio.Event:
        """Called in the task that a signal is to end; returns the event that a signal sets."""
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        self._begun = asyncio.get_running_loop(), task, asyncio.Event()
        if self._number is not None:
            self._stop()
        return self._begun[2]

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._number is not None:
            # timeout(1) and process managers signal a child and then its group: one wish, told twice.
            if time.monotonic() - self._asked_s > _SAME_WISH_S:
                os._exit(128 + number)
            return
        self._number, self._asked_s = number, time.monotonic()
        if math.isfinite(self._patience_s):
            # A thread, because the loop may be blocked, and so may be a thread that the loop's end would wait for.
            self._last_resort = threading.Timer(self._patience_s + _CLEAN_UP_S, os._exit, (self.exit_code,))
            self._last_resort.daemon = True
            self._last_resort.start()
        if self._begun is not None:
            loop = self._begun[0]
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        assert self._begun is not None
        loop, _, stop = self._begun
        stop.set()
        if self._on_stop is not None:
            self._on_stop()
        if self._patience_s <= 0:
            self._give_up()
        elif math.isfinite(self._patience_s):
            loop.call_later(self._patience_s, self._give_up)

    def _give_up(self) -> None:
        assert self._begun is not None
        task = self._begun[1]
        if not task.done():
            self.gave_up = True
            task.cancel()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def quiet_clients() -> None:
    """Keep the Kafka client's own log off a one-shot command's screen: what matters is said by the command itself."""
    if _debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    with building():
        from workers.telemetry.logs import CLIENT_LOGGER

    logger = logging.getLogger(CLIENT_LOGGER)
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def quiet_events() -> None:
    """Keep this package's own log off a command's screen that says what matters itself, errors excepted: what isn't
    configured goes to standard output, which belongs to data."""
    with building():
        import structlog

    level = logging.DEBUG if _debug else logging.ERROR
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


# -- showing ----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error: standard output belongs to data."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def exit_code_for(error: WorkersError) -> ExitCode:
    """The exit code that tells scripts what kind of trouble it was."""
    if isinstance(error, ConfigError):
        return ExitCode.USAGE
    if isinstance(error, BrokerError) and not isinstance(error, TopicError):
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED


def report(error: WorkersError) -> ExitCode:
    """Show an error as text on standard error, with its traceback under ``--debug``; returns the exit code for it."""
    if _debug:
        import traceback

        traceback.print_exception(error)
    say("\n".join(printable(line) for line in f"workers: {error}".splitlines()))
    return exit_code_for(error)


def printable(text: str) -> str:
    """The text with everything that could drive a terminal (control, bidi and other invisible characters) escaped.

    What is in a topic was written by others; a symbol must not be able to clear the screen or forge a line.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


@contextmanager
def closed_output_is_an_end() -> Iterator[None]:
    """Treat a closed standard output (``| head``) as the reader having had enough: no message, no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
