"""The command line without a broker: help, exit codes, options, errors as text."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from workers.commands.cli import app
from workers.commands.common import ExitCode, exit_code_for, load
from workers.errors import BrokerError, BrokerUnavailableError, ConfigError, DataLossError, TopicError
from workers.settings import LoggingSettings
from workers.telemetry.logs import Sparing, configure_logging

COMMANDS = ["run", "produce", "tail", "lag", "topics", "config"]


def command(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "WORKERS_"))}
    return subprocess.run(
        [sys.executable, "-m", "workers", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**kept, **environ},
        check=False,
    )


def test_help_names_the_commands_and_every_command_shows_examples() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(f" {name} " in shown for name in COMMANDS)
    for arguments in (
        ["run"],
        ["produce"],
        ["tail"],
        ["lag"],
        ["topics", "create"],
        ["topics", "list"],
        ["config", "show"],
    ):
        result = CliRunner().invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0
        assert "Example" in result.output
        assert f"workers {' '.join(arguments)}" in result.output


def test_colours_are_off_when_nobody_is_looking(tmp_path: Path) -> None:
    assert "\x1b[" not in command("--help", cwd=tmp_path).stdout
    assert "\x1b[" not in command("produce", "--nope", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, ""),
        (["nonsense"], 2, "nonsense"),
        (["produce"], 2, "either --file"),
        (["produce", "--file", "a", "--synthetic"], 2, "either --file"),
        (["produce", "--file", "nope.ndjson"], 2, "no such file"),
        (["produce", "--synthetic", "--disorder", "5"], 2, "--disorder"),
        (["produce", "--synthetic", "--start", "yesterday"], 2, "--start"),
        (["produce", "--synthetic", "--speed", "2"], 2, "--speed"),
        (["produce", "--synthetic", "--rate", "2", "--speed", "2", "--start", "2026-01-05T14:30:00Z"], 2, "--speed"),
        (["tail", "frames", "--exit-when-idle", "soon"], 2, "--exit-when-idle"),
        (["lag", "--set", "window.size"], 2, "KEY=VALUE"),
        (["lag", "--set", "window.sise=5s"], 2, "window.size"),
        (["lag", "-b", "127.0.0.1:1"], 3, "connection refused"),
        (["run", "-b", "127.0.0.1:1", "--set", "metrics.port=off"], 3, "127.0.0.1:1"),
        (["topics", "delete"], 2, "--yes"),
        (["config", "check", "--set", "kafka.acks=1"], 2, "exactly_once"),
        (["config", "check"], 0, "is valid"),
    ],
)
def test_exit_codes_tell_what_kind_of_trouble_it_was(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


SKEWED = (
    "tick.max_future_skew is 1m and window.lag + window.allowed_lateness 2s: one tick from such a fast clock can "
    "make up to 58s of its symbol's ticks late"
)


@pytest.mark.parametrize(
    "arguments", [["config", "check"], ["run", "-b", "127.0.0.1:1", "--set", "metrics.port=off"]], ids=["check", "run"]
)
def test_what_a_fast_clock_can_cost_is_said_once_where_it_can(tmp_path: Path, arguments: list[str]) -> None:
    assert command(*arguments, cwd=tmp_path).stderr.count(SKEWED) == 1
    good = command(*arguments, "--set", "tick.max_future_skew=2s", cwd=tmp_path)
    late = command(*arguments, "--set", "window.allowed_lateness=58s", cwd=tmp_path)
    assert "such a fast clock" not in good.stderr + late.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_produce_stops_at_once_while_the_cluster_does_not_answer(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        servers = f"127.0.0.1:{deaf.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", "produce", "--synthetic", "-b", servers], stderr=-1, cwd=tmp_path
        )
        deaf.settimeout(60)
        connection, _ = deaf.accept()
        try:
            asked_s = time.monotonic()
            process.send_signal(number)
            _out, err = process.communicate(timeout=30)
            took_s = time.monotonic() - asked_s
        finally:
            connection.close()
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)
    assert process.returncode == 130, err
    assert b"nothing was sent" in err
    assert b"Traceback" not in err
    assert took_s < 12  # not what the client waits for an answer


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = command("lag", "-b", "127.0.0.1:1", "--debug", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), ExitCode.USAGE),
        (TopicError("x"), ExitCode.FAILED),
        (BrokerError("x"), ExitCode.UNREACHABLE),
        (BrokerUnavailableError("x"), ExitCode.UNREACHABLE),
        (DataLossError("x"), ExitCode.FAILED),
    ],
)
def test_every_error_has_an_exit_code(error: Exception, code: int) -> None:
    assert exit_code_for(error) == code  # type: ignore[arg-type]


def test_shortcuts_override_set_and_set_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('application_id = "file"\n[window]\nsize = "1s"\n[topics]\nticks = "t"\n')
    settings = load(path, ["window.size=2s", "application_id=set"], "h:1", "flag", topics__create=None)
    assert (settings.application_id, settings.window.size, settings.topics.ticks) == ("flag", 2_000_000_000, "t")
    assert settings.bootstrap_servers == "h:1"


def test_config_show_tells_sources_and_hides_secrets(tmp_path: Path) -> None:
    done = command(
        "config",
        "show",
        "--json",
        "--set",
        "window.size=1m",
        "--set",
        "kafka.security.protocol=SASL_SSL",
        "--set",
        "kafka.sasl.username=me",
        cwd=tmp_path,
        KAFKA_SASL_PASSWORD="hunter2",
    )
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    rows = {row["key"]: (row["value"], row["source"]) for row in json.loads(done.stdout)}
    assert rows["window.size"][0] == "1m"
    assert rows["window.size"][1].startswith("flag")
    assert rows["kafka.sasl.password"] == ("********", "env KAFKA_SASL_PASSWORD")
    changed = command("config", "show", "--changed", "--set", "window.size=1m", cwd=tmp_path).stdout
    assert [line.split()[0] for line in changed.splitlines()] == ["setting", "window.size"]


def test_config_reference_finds_settings_by_word() -> None:
    shown = CliRunner().invoke(app, ["config", "reference", "skew"]).output
    assert shown.startswith("tick.max_future_skew = duration")


def test_an_interrupted_command_ends_at_the_second_signal(tmp_path: Path) -> None:
    code = (
        "import asyncio, math; from workers.commands.common import run_async\n"
        "async def main(stop):\n"
        "    print('ready', flush=True)\n"
        "    await stop.wait()\n"
        "    await asyncio.sleep(60)\n"
        "run_async(main, on_stop=lambda: print('stopping', flush=True), patience_s=math.inf)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert said.readline() == b"stopping\n"
        process.send_signal(signal.SIGINT)  # at once: the same wish, told twice
        time.sleep(1.0)
        assert process.poll() is None
        began_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == ExitCode.INTERRUPTED
        assert time.monotonic() - began_s < 5


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def test_a_command_that_knows_of_no_signals_ends_at_the_first_one_whatever_it_does(tmp_path: Path) -> None:
    bodies = {  # and seconds that each takes at most
        "await asyncio.sleep(60)": 1.0,
        "await asyncio.to_thread(time.sleep, 60)": 4.0,  # the loop's end would wait for the thread
        "time.sleep(60)": 4.0,  # the loop itself is held up
        "await stubborn()": 4.0,
    }
    running: list[tuple[subprocess.Popen[str], signal.Signals, float]] = []
    for number in SIGNALS:
        for body, within_s in bodies.items():
            code = (
                "import asyncio, time; from workers.commands.common import run_async\n"
                "async def stubborn():\n"
                "    while True:\n"
                "        try: await asyncio.sleep(60)\n"
                "        except asyncio.CancelledError: pass\n"
                "async def main(_stop):\n"
                "    print('ready', flush=True)\n"
                f"    {body}\n"
                "run_async(main)\n"
                "print('went on')"
            )
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
            )
            running.append((process, number, within_s))
    for process, _, _ in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    began_s = time.monotonic()
    for process, number, _ in running:
        process.send_signal(number)
    for process, number, within_s in sorted(running, key=lambda each: each[2]):
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (SIGNALS[number], "")
        assert "Traceback" not in err
        assert time.monotonic() - began_s < within_s + 2.0  # for a machine that has much else to do


class Silent:
    """A server that takes every connection and never says anything, as a broker or database that hangs."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def wait_for_one(self) -> None:
        self._socket.settimeout(60)
        self._taken.append(self._socket.accept()[0])

    def close(self) -> None:
        for each in (*self._taken, self._socket):
            each.close()


LOOKING = {
    "replay": ("replay", "--from", "2026-01-30T13:00:00Z", "--to", "2026-01-30T14:00:00Z"),
    "explain": ("explain", "AAPL", "2026-01-30T13:00:00Z"),
    "state show": ("state", "show"),
    "state reset": ("state", "reset", "--yes"),
    "state rescale": ("state", "rescale", "--partitions", "9", "--yes"),
    "store show": ("store", "show"),
    "lag": ("lag",),
}
ENDED_BY = [*((name, signal.SIGTERM) for name in LOOKING), ("explain", signal.SIGINT), ("store show", signal.SIGINT)]


def test_commands_that_wait_for_an_answer_end_promptly_on_a_signal(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "WORKERS_"))}
    with ExitStack() as stack:
        running: list[tuple[str, signal.Signals, subprocess.Popen[str], Silent]] = []
        for name, number in ENDED_BY:
            server = Silent()
            stack.callback(server.close)
            where = {
                "KAFKA_BOOTSTRAP_SERVERS": server.address,
                "WORKERS_STORE_DSN": f"postgresql://ticks:secret@{server.address}/market?sslmode=disable",
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", *LOOKING[name]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                env=kept | where,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append((name, number, process, server))
        for _, _, _, server in running:
            server.wait_for_one()
        began_s = time.monotonic()
        for _, number, process, _ in running:
            process.send_signal(number)
        for name, number, process, _ in running:
            out, err = process.communicate(timeout=30)
            assert (name, process.returncode, out) == (name, SIGNALS[number], ""), err
            # Not by the last resort, which says nothing: this ended in its own time, and cleaned up.
            assert err.splitlines()[-1] == "workers: interrupted"
            assert "Traceback" not in err
        assert time.monotonic() - began_s < 15.0  # for a machine that has much else to do


def test_a_command_that_ends_by_itself_in_time_keeps_its_result_and_one_that_does_not_is_cancelled(
    tmp_path: Path,
) -> None:
    for pause_s, code, said in ((0.05, 0, "7"), (60, 143, "cleaned")):
        script = (
            "import asyncio, os, signal; from workers.commands.common import run_async\n"
            "async def main(stop):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    await stop.wait()\n"
            "    try:\n"
            f"        await asyncio.sleep({pause_s})\n"
            "        return 7\n"
            "    except asyncio.CancelledError:\n"
            "        print('cleaned')\n"
            "        raise\n"
            "print(run_async(main, patience_s=0.5))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (code, said)
        assert "Traceback" not in done.stderr


def test_what_an_interrupted_command_raises_while_it_cleans_up_is_not_what_it_ends_with(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, signal; from workers.commands.common import run_async\n"
        "async def main(_stop):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await asyncio.sleep(60)\n"
        "    finally:\n"
        "        raise OSError('the connection is gone')\n"
        "run_async(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "workers: interrupted\n")


# -- logging -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    client = logging.getLogger("aiokafka")
    handlers, level, of_client = root.handlers[:], root.level, (client.level, client.propagate)
    client.propagate = True  # whatever a command that ran in this process has made of it
    yield
    root.handlers, root.level = handlers, level
    client.level, client.propagate = of_client
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_as_it_was")
def test_logs_are_json_lines_where_nobody_is_looking() -> None:
    stream = StringIO()
    configure_logging(LoggingSettings(), stream=stream)
    structlog.get_logger("workers.test").info("assigned", partition=3)
    structlog.get_logger("workers.test").debug("not shown")
    logging.getLogger("aiokafka.client").info("chatter")
    logging.getLogger("aiokafka.client").warning("no leader for %s", "ticks")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("assigned", "info", "workers.test"),
        ("no leader for ticks", "warning", "aiokafka.client"),
    ]
    assert lines[0]["partition"] == 3
    assert lines[0]["timestamp"].endswith("Z")


@pytest.mark.usefixtures("logging_as_it_was")
def test_logs_are_text_where_asked_for_and_exceptions_show_no_local_variables() -> None:
    stream = StringIO()
    configure_logging(LoggingSettings(format="console"), stream=stream)
    try:
        password = "".join(reversed("2retnuh"))
        raise ValueError("broken" + password[:0])
    except ValueError:
        structlog.get_logger("workers.test").exception("failed", key="AAPL")
    shown = stream.getvalue()
    assert "failed" in shown
    assert "key=AAPL" in shown
    assert "ValueError: broken" in shown
    assert "hunter2" not in shown


def said(text: str, *values: object, line: int = 7, failure: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(failure), failure, None) if failure is not None else None
    return logging.LogRecord("aiokafka.client", logging.ERROR, "client.py", line, text, values, exc_info)


@pytest.mark.parametrize(
    "text",
    [
        "Group Coordinator Request failed: [Error 15] GroupCoordinatorNotAvailableError",
        "Heartbeat failed for group bars because it is rebalancing",
        "Topic ticks not found in cluster metadata",
        "Failed fetch offsets from 1: [Error 6] NotLeaderForPartitionError: ticks",
        "Marking the coordinator dead (node 1)for group bars.",
    ],
)
def test_what_a_client_says_in_any_healthy_run_is_shown_only_where_it_goes_on(text: str) -> None:
    now_s = 0.0
    sparing = Sparing(every_s=10.0, clock=lambda: now_s)
    for now_s in (0.0, 5.0, 500.0, 505.0):  # noqa: B007 - it is the clock
        assert not sparing.filter(said(text)), "two short times"
    now_s = 511.0
    assert sparing.filter(said(text))
    assert Sparing().filter(said("Unable to update metadata from [1]"))


def test_nothing_that_a_client_says_is_more_than_a_warning_or_has_a_traceback() -> None:
    record = said("Unexpected error in %s routine", "sender", failure=ValueError("what went wrong"))
    assert Sparing().filter(record)
    assert record.getMessage() == "Unexpected error in sender routine: ValueError('what went wrong')"
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert not Sparing(logging.ERROR).filter(said("Unexpected error"))


def test_a_client_that_repeats_itself_is_shown_once_in_a_while_with_the_number_left_out() -> None:
    now_s = 0.0
    sparing = Sparing(every_s=10.0, clock=lambda: now_s)

    def record(name: str, line: int) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "client.py", line, "cannot reach node %s", (1,), None)

    assert [sparing.filter(record("aiokafka", 1)) for _ in range(5)] == [True, False, False, False, False]
    assert sparing.filter(record("aiokafka", 2)), "another message is another matter"
    assert all(sparing.filter(record("workers.worker.worker", 1)) for _ in range(3)), "our own are few, and all shown"
    now_s = 10.0
    shown = record("aiokafka", 1)
    assert sparing.filter(shown)
    assert shown.getMessage() == "cannot reach node 1 (and 4 more like it)"
