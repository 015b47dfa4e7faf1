"""Write what the code knows best into the pages of docs/, and stage those pages for the site.

    python docs/generate_reference.py      write the pages: `make reference`

A page says where such a part goes, and holds it, so that it can be read in the repository too:

    <!-- generated: settings -->               one of `PARTS`
    ...
    <!-- end: settings -->
    <!-- include: examples/ticks.ndjson -->    a file, from the folder docs/, as a block of code: on the site only

`tests/unit/test_readme.py` fails where a page holds another text than the code gives. `docs/build_site.py` stages the
pages; there the library's part is mkdocstrings' work, which links types and shows whole docstrings.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import typer
import yaml
from typer.testing import CliRunner

import workers
import workers.commands.cli  # every command makes itself known
from workers import errors
from workers.apps.store.metrics import StoreMetrics
from workers.backpressure.levels import FeedbackEvent, Level
from workers.commands.common import ExitCode, app, exit_code_for
from workers.core.reasons import STATUSES, TRIGGERS, Account, Ledger, Reason
from workers.kafka.acls import needed_acls
from workers.kafka.topics import planned_topics
from workers.settings.all import ReferenceRow, Settings, load_settings, operator_reference, reference
from workers.telemetry.metrics import CatalogueRow, catalogue
from workers.testing import TestDriver

__all__ = ["PARTS", "environment_name", "stage", "updated", "write"]

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
LEFT_OUT: Final = {".py"}  # scripts of this folder; those of examples/ are shown
GENERATED: Final = re.compile(
    r"^<!-- generated: (?P<part>[a-z-]+) -->\n(?P<text>.*?)^<!-- end: (?P=part) -->$", re.MULTILINE | re.DOTALL
)
MARKER: Final = re.compile(r"^<!-- (?:generated|end): \S+ -->$", re.MULTILINE)
INCLUDE: Final = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
TEST: Final = re.compile(r"^<!-- test: .*?-->\n", re.MULTILINE | re.DOTALL)
HELP_WIDTH: Final = 100

KEPT: Final = {"-1": "for ever"}
EXIT_CODES: Final = {
    ExitCode.OK: "Done; for `workers run`, also stopped on request.",
    ExitCode.FAILED: "Failed: one of the errors below, or a check that found a difference.",
    ExitCode.USAGE: "Wrong usage, or an impossible configuration. Trying again does not help.",
    ExitCode.UNREACHABLE: "The broker can't be reached, or refuses the credentials.",
    ExitCode.INTERRUPTED: "Interrupted (Ctrl-C) before it was done; by SIGTERM it is 143.",
}
GROUPS: Final = {
    "Windows and clocks": (
        "window_event_time",
        "tumbling_window_event_time",
        "tumbling_window",
        "TumblingWindowSpec",
        "HoppingWindowSpec",
        "SessionWindowSpec",
        "CalendarWindowSpec",
        "WatermarkPolicy",
        "EventTimeClock",
        "WindowFrame",
        "WindowStream",
        "Stream",
        "Lateness",
    ),
    "Aggregations": ("Aggregation", "Tick"),
    "Channels and lanes": ("hash_partition", "PartitioningSpec", "PartitionedChannel", "Channel", "Watermark"),
    "Operators": (
        "deduplicate",
        "throttle",
        "router",
        "resample_ohlc",
        "Bar",
        "map_async",
        "filter_async",
        "buffer_async",
    ),
    "Producers": ("AdaptiveThrottle",),
    "Errors": ("WorkersError", "ChannelClosed"),
}


# -- tables -----------------------------------------------------------------------------------------------------------


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# -- settings and operators -------------------------------------------------------------------------------------------


def environment_name(key: str) -> str:
    """The variable that sets a setting; empty for those that only a file can hold."""
    if key == "bootstrap_servers":
        return "KAFKA_BOOTSTRAP_SERVERS"
    if key == "pipeline":
        return ""
    if key.startswith("kafka."):
        return key.replace(".", "_").upper()
    return "WORKERS__" + key.replace(".", "__").upper()


def _settings() -> str:
    sections: dict[str, list[ReferenceRow]] = {}
    for row in reference():
        sections.setdefault(row.key.partition(".")[0] if "." in row.key else "", []).append(row)
    parts = []
    for section, rows in sections.items():
        title = f"## `[{section}]`" if section else "## At the top"
        cells = (
            (
                f"{_code(row.key)}<br>{_code(environment_name(row.key))}",
                _code(row.default),
                f"{row.description}<br>*{row.allowed}*",
            )
            for row in rows
        )
        parts += [title, "", _table(("setting, and its variable", "default", "meaning, and what is allowed"), cells)]
    return "\n".join(parts)


def _operators() -> str:
    parts: list[str] = []
    operator = ""
    rows: list[tuple[str, ...]] = []

    def close() -> None:
        if operator:
            parts.extend((f"## {operator}", "", _table(("option", "default", "allowed", "meaning"), rows)))

    for row in operator_reference():
        _pipeline, name, option = row.key.split(".", 2)
        if name != operator:
            close()
            operator, rows = name, []
        rows.append((_code(option), _code(row.default), row.allowed, row.description))
    close()
    return "\n".join(parts)


# -- commands ---------------------------------------------------------------------------------------------------------


def _commands() -> str:
    parts = []
    for words in _paths(typer.main.get_command(app), ()):
        shown = " ".join(("workers", *words))
        ran = CliRunner().invoke(
            app, [*words, "--help"], prog_name="workers", env={"COLUMNS": str(HELP_WIDTH), "TERM": "dumb"}
        )
        if ran.exit_code:
            raise RuntimeError(f"{shown} --help ended with {ran.exit_code}: {ran.output}")
        lines = [line.rstrip() for line in ran.output.strip("\n").splitlines()]
        level = "##" if len(words) < 2 else "###"
        parts += [f"{level} `{shown}`", "", "```text", *lines, "```", ""]
    return "\n".join(parts)


def _paths(command: Any, words: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _paths(inner, (*words, name))


# -- topics -----------------------------------------------------------------------------------------------------------


def _topics() -> str:
    rows = []
    for plan in planned_topics(Settings()):
        policy, kept = plan.configs["cleanup.policy"], plan.configs.get("retention.ms", "")
        text = "compacted" if policy == "compact" else KEPT.get(kept, f"{kept} ms")
        rows.append((f"`topics.{plan.role}`", _code(plan.name), str(plan.partitions), text))
    return _table(("setting", "default name", "partitions", "kept"), rows)


def _example() -> TestDriver:
    """An application in which everything happens once: a frame, a late tick, a bad record."""
    driver = TestDriver(load_settings(None, environ={"WORKERS_CONFIG": os.devnull}, overrides={"topics.partitions": 2}))
    driver.send("AAPL", 1_700_000_000_000, price=189.10, size=100)
    driver.send("AAPL", 1_700_000_002_000, price=189.25, size=50)
    driver.send("AAPL", 1_700_000_007_000, price=189.40, size=20)
    driver.send("AAPL", 1_700_000_004_500, price=189.30, size=5)
    driver.send("AAPL", 1_700_000_008_000, price="n/a", size=5)
    driver.commit()
    return driver


def _record(key: bytes | None, value: bytes | None, timestamp: str, headers: Iterable[tuple[str, bytes]]) -> str:
    lines = [f"key        {(key or b'').decode()}", f"value      {(value or b'').decode()}", f"timestamp  {timestamp}"]
    lines += [f"header     {name}: {content.decode()}" for name, content in headers]
    return "\n".join(("```text", *lines, "```", ""))


def _records(role: str) -> str:
    driver = _example()
    if role == "ticks":
        record = driver.log(_partition_of(driver))[0]
        return _record(record.key, record.value, "the time of sending", ())
    found = driver.records(role)[0]  # type: ignore[arg-type]
    stamp = "the time of sending" if found.timestamp_ms is None else f"{found.timestamp_ms} (the window's end)"
    return _record(found.key, found.value, stamp, found.headers)


def _partition_of(driver: TestDriver) -> int:
    return next(number for number in range(2) if driver.log(number))


def _feedback() -> str:
    event = FeedbackEvent("worker-1", 120_000, 1_000_000, Level.SOFT, "group", 1_700_000_000_000 * 1_000_000)
    return _record(event.coordinator_id.encode(), event.encode(), "the time of sending", ())


def _dead_letter_reasons() -> str:
    return _reason_rows(reason for reason in Reason if reason.ledger is Ledger.DEAD_LETTERS)


def _late_reasons() -> str:
    return _reason_rows(reason for reason in Reason if reason.ledger is Ledger.LATE)


def _reason_rows(reasons: Iterable[Reason]) -> str:
    cells = ((_code(reason), reason.text, _code(reason.counter)) for reason in reasons)
    return _table(("`workers.reason`", "why", "counted by"), cells)


def _statuses() -> str:
    return _table(("`status`", "meaning"), ((_code(status), text) for status, text in STATUSES.items()))


def _triggers() -> str:
    cells = ((_code(name), ", ".join(map(_code, row.statuses)), row.text) for name, row in TRIGGERS.items())
    return _table(("`trigger`", "`status`", "what brought the frame out"), cells)


def _accounts() -> str:
    return _table(("counted by", "what"), ((_code(account.metric), account.text) for account in Account))


def _acls() -> str:
    settings = load_settings(None, environ={"WORKERS_CONFIG": os.devnull}, overrides={"application_id": "bars-5s"})
    rows: list[tuple[str, str, str]] = []
    before = ""
    for who, resource, operations in needed_acls(settings):
        rows.append(("" if who == before else who, resource, ", ".join(operations)))
        before = who
    return _table(("who", "resource", "operation"), rows)


# -- metrics, alerts, errors, library ---------------------------------------------------------------------------------


def _metric_rows(rows: Iterable[CatalogueRow]) -> str:
    cells = ((_code(row.name), row.kind, ", ".join(map(_code, row.labels)), row.help) for row in rows)
    return _table(("name", "kind", "labels", "meaning"), cells)


def _store_metrics() -> str:
    rows = []
    for family in StoreMetrics().registry._collector_to_names:
        metric: Any = family
        name = metric._name + ("_total" if metric._type == "counter" else "")
        rows.append(CatalogueRow(name, metric._type, metric._documentation, tuple(metric._labelnames)))
    return _metric_rows(rows)


def _alerts() -> str:
    parts = []
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            notes = rule["annotations"]
            parts += [f"## {rule['alert']}", "", f"{notes['summary'].replace('{{', '').replace('}}', '')}."]
            parts += ["", notes["description"]] if "description" in notes else []
            wait = f", after {rule['for']}" if "for" in rule else ""
            parts += [
                "",
                f"Severity: {rule['labels']['severity']}{wait}.",
                "",
                "```text",
                rule["expr"].strip(),
                "```",
                "",
            ]
    return "\n".join(parts)


def _exit_codes() -> str:
    if missing := set(ExitCode) ^ set(EXIT_CODES):
        raise RuntimeError(f"generate_reference.py and the code disagree about the exit codes {missing}")
    return _table(("code", "meaning"), ((str(int(code)), text) for code, text in EXIT_CODES.items()))


def _errors() -> str:
    rows = []
    for name in errors.__all__:
        kind: type[errors.WorkersError] = getattr(errors, name)
        base = kind.__mro__[1].__name__
        text = " ".join((kind.__doc__ or "").split())
        rows.append((_code(name), _code(base), str(int(exit_code_for(kind("")))), text))
    return _table(("error", "is a", "exit code", "meaning"), rows)


def _public_groups() -> dict[str, tuple[str, ...]]:
    public = [name for name in workers.__all__ if name != "__version__"]
    if gone := {name for names in GROUPS.values() for name in names} - set(public):
        raise RuntimeError(f"generate_reference.py groups names that workers no longer has: {sorted(gone)}")
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(name for name in public if name not in grouped)}
    return {title: names for title, names in groups.items() if names}


def _library() -> str:
    """Signatures and the docstrings' first paragraphs, for readers of the repository."""
    parts = []
    for title, names in _public_groups().items():
        parts += [f"## {title}", ""]
        for name in names:
            item: Any = getattr(workers, name)
            parts += [f"### {name}", "", "```text", _signature(name, item), "```", "", _first_paragraph(item), ""]
    return "\n".join(parts)


def _library_of_the_site() -> str:
    parts = []
    for title, names in _public_groups().items():
        parts += [f"## {title}", "", *(f"::: workers.{name}\n" for name in names)]
    return "\n".join(parts)


def _signature(name: str, item: Any) -> str:
    try:
        parameters = tuple(inspect.signature(item).parameters.values())
    except (TypeError, ValueError):  # an alias of types
        return name
    kind = "class " if inspect.isclass(item) else ""
    plain = [_parameter(each) for each in parameters]
    if first := next((place for place, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), None):
        plain.insert(first, "*")
    short = f"{kind}{name}({', '.join(plain)})"
    return short if len(short) <= HELP_WIDTH else "\n".join((f"{kind}{name}(", *(f"    {one}," for one in plain), ")"))


def _parameter(parameter: inspect.Parameter) -> str:
    text = f"{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {getattr(parameter.default, '__name__', repr(parameter.default))}"


def _first_paragraph(item: Any) -> str:
    text = (inspect.getdoc(item) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("``", "`")


PARTS: Final[dict[str, Callable[[], str]]] = {
    "settings": _settings,
    "operators": _operators,
    "commands": _commands,
    "topics": _topics,
    "record-ticks": lambda: _records("ticks"),
    "record-frames": lambda: _records("frames"),
    "record-late": lambda: _records("late"),
    "record-dead-letters": lambda: _records("dead_letters"),
    "record-feedback": _feedback,
    "statuses": _statuses,
    "triggers": _triggers,
    "late-reasons": _late_reasons,
    "dead-letter-reasons": _dead_letter_reasons,
    "accounts": _accounts,
    "acls": _acls,
    "metrics": lambda: _metric_rows(catalogue()),
    "store-metrics": _store_metrics,
    "alerts": _alerts,
    "exit-codes": _exit_codes,
    "errors": _errors,
    "library": _library,
}


SITE_PARTS: Final = {**PARTS, "library": _library_of_the_site}


# -- pages ------------------------------------------------------------------------------------------------------------


def updated(text: str, parts: dict[str, Callable[[], str]] = PARTS) -> str:
    """A page with its parts as the code has them.

    Raises ``KeyError`` for a part that doesn't exist, ``ValueError`` for a marker that lacks its other one.
    """
    paired = 2 * sum(1 for _ in GENERATED.finditer(text))
    if paired != len(MARKER.findall(GENERATED.sub(lambda match: match[0].replace(match["text"], ""), text))):
        raise ValueError("expected `<!-- generated: PART -->` and `<!-- end: PART -->` in pairs")
    return GENERATED.sub(lambda match: _between(match["part"], parts[match["part"]]()), text)


def _between(part: str, text: str) -> str:
    return f"<!-- generated: {part} -->\n\n{text.strip()}\n\n<!-- end: {part} -->"


def write() -> None:
    """Bring every page of docs/ up to date."""
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(updated(page.read_text()))


def _included(match: re.Match[str]) -> str:
    path = (DOCS / match[1]).resolve()
    if not path.is_relative_to(ROOT):
        raise ValueError(f"{match[0]}: {path} is outside of the project")
    language = {".ndjson": "json", ".yml": "yaml", ".java": "java"}.get(path.suffix, path.suffix.lstrip("."))
    return f"```{language}\n{path.read_text().rstrip()}\n```"


def _as_built(text: str) -> str:
    """A page as the site has it: parts generated, files included, markers and notes to the tests left out."""
    return TEST.sub("", INCLUDE.sub(_included, MARKER.sub("", updated(text, SITE_PARTS))))


def stage(folder: Path) -> None:
    """Fill ``folder`` with the site's sources; what was there before is removed.

    Raises what `updated` raises, and ``OSError`` for a file that can't be included.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(DOCS.rglob("*")):
        target = folder / path.relative_to(DOCS)
        if path.is_dir() or "__pycache__" in path.parts or (path.parent == DOCS and path.suffix in LEFT_OUT):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(_as_built(path.read_text()))
        else:
            shutil.copyfile(path, target)
    (folder / "changelog.md").write_text((ROOT / "CHANGELOG.md").read_text())


if __name__ == "__main__":
    write()
