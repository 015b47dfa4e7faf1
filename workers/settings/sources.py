"""Where values come from: a TOML file, the environment, flags, files that hold secrets.

Each source becomes a flat layer of ``key -> value and origin``; a typo is found in whichever source it was made.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from workers.settings.keys import (
    CANONICAL,
    FLATTENED_VARIABLES,
    KEYS,
    REFUSED,
    SECRET_FILES,
    SECTIONS,
    VARIABLES,
    WRITABLE,
)
from workers.settings.wording import quoted, why_unreadable

__all__ = ["Entry", "Layer", "environment_layers", "file_layer", "flag_layer", "read_secret_files"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that some source gave, with what errors and ``config show`` need to name it."""

    value: object
    spelled: str
    where: str
    source: str


@dataclass(slots=True)
class Layer:
    """What one source gave, by canonical key; ``problems`` is shared by all layers of a load.

    ``textual`` sources can give nothing but text, so theirs is read as what the key needs; TOML has types of its own,
    and a quoted number there is a mistake (except under Kafka's names, which are often copied from Java properties).
    """

    problems: list[str]
    textual: bool = True
    entries: dict[str, Entry] = field(default_factory=dict)

    def put(self, spelled: str, value: object, where: str, source: str) -> None:
        """Take one value, or say what is wrong with its key. Values of unknown keys are never repeated: a mistyped
        ``sasl.password`` is still a password."""
        key = CANONICAL.get(spelled, spelled)
        if spelled in REFUSED:
            self.problems.append(f"{where}: {spelled} can't be set: {REFUSED[spelled]}")
            return
        if key not in WRITABLE:
            self.problems.append(f"{where}: {spelled} is not a setting{_did_you_mean(spelled)}")
            return
        rival = self._rival(key)
        if rival is not None:
            first = self.entries[rival]
            self.problems.append(f"{where}: {spelled} is given twice, also as {first.spelled} in {first.where}")
            return
        if isinstance(value, str) and key in KEYS and (self.textual or key.startswith("kafka.")):
            value = KEYS[key].from_text(value)
        self.entries[key] = Entry(value, spelled, where, source)

    def _rival(self, key: str) -> str | None:
        twins = [key, f"{key}.file", SECRET_FILES.get(key, key)]
        return next((twin for twin in twins if twin in self.entries), None)

    def override(self, other: Layer) -> None:
        """Let ``other`` win; a secret and the file holding it are one thing, so either one replaces both."""
        for key in other.entries:
            self.entries.pop(f"{key}.file", None)
            self.entries.pop(SECRET_FILES.get(key, key), None)
        self.entries.update(other.entries)


def _did_you_mean(spelled: str) -> str:
    """The settings whose names come closest, the same last word in another section included."""
    last = spelled.rpartition(".")[2].lower()
    level = WRITABLE if "." in spelled else SECTIONS | {key for key in KEYS if "." not in key}
    close = difflib.get_close_matches(spelled.lower(), sorted(level), n=2, cutoff=0.75)
    elsewhere = [key for key in KEYS if not key.startswith("kafka.") and key.rpartition(".")[2] == last]
    kafka = [key for key in KEYS if key == f"kafka.{spelled.lower()}"]
    longer = [key for key in KEYS if "." in spelled and key.startswith(spelled.lower())]
    found = list(dict.fromkeys([*longer, *elsewhere, *kafka, *close]))[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def file_layer(path: Path, problems: list[str]) -> Layer:
    """The settings of a TOML file; what is wrong with it goes to ``problems``."""
    layer = Layer(problems, textual=False)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: the configuration can't be read: {why_unreadable(error)}")
        return layer
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: not TOML: {error}")
        return layer
    for key, value in _leaves(data, str(path), problems):
        layer.put(key, value, str(path), f"file {path}")
    return layer


def _leaves(data: Mapping[str, object], where: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        if name not in SECTIONS:
            yield name, value
        elif not isinstance(value, dict):
            problems.append(f"{where}: {name}: expected a table, [{name}], found {type(value).__name__}")
        elif name == "kafka":
            yield from _kafka_leaves(name, value)
        else:
            for key, item in value.items():
                secret = KEYS.get(f"{name}.{key}")
                if secret is not None and secret.is_secret and isinstance(item, dict):
                    yield from _kafka_leaves(f"{name}.{key}", item)  # postgres.file, which TOML takes for a table
                else:
                    yield f"{name}.{key}", item


def _kafka_leaves(prefix: str, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Kafka's dotted names again, out of the nested tables that TOML makes of them."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _kafka_leaves(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def environment_layers(environ: Mapping[str, str], problems: list[str]) -> Iterator[Layer]:
    """First what Kafka's common variables say, then what is said for this program alone."""
    kafka, own = Layer(problems), Layer(problems)
    for name in sorted(environ):
        value, where = environ[name], f"environment variable {name}"
        if not value:
            continue
        if name in VARIABLES and VARIABLES[name] == "pipeline":
            problems.append(f"{where}: pipeline is a list of tables; set it in a file")
        elif name in VARIABLES:
            (own if name.startswith("WORKERS__") else kafka).put(VARIABLES[name], value, where, f"env {name}")
        elif _looks_ours(name, value):
            near = difflib.get_close_matches(name, sorted(VARIABLES), n=1, cutoff=0.75)
            near = [FLATTENED_VARIABLES[name]] if name in FLATTENED_VARIABLES else near
            problems.append(f"{where} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    yield kafka
    yield own


def _looks_ours(name: str, value: str) -> bool:
    """Whether an unknown variable was meant for this program, rather than for a broker or by Kubernetes."""
    if name.upper().startswith("WORKERS__"):
        return True
    if name in FLATTENED_VARIABLES:
        return not value.startswith("tcp://")  # the service link of a Service called workers-metrics
    return name.startswith("KAFKA_") and bool(difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.9))


_OPTIONS: Final = {"bootstrap_servers": "--bootstrap-servers", "application_id": "--application-id"}


def flag_layer(overrides: Mapping[str, object], problems: list[str]) -> Layer:
    layer = Layer(problems)
    for name, value in overrides.items():
        where = _OPTIONS.get(name, f"--set {name}")
        if value is None:
            continue  # a flag that was not given
        if name in KEYS and KEYS[name].is_secret:
            variable = "WORKERS_STORE_DSN" if name == "store.postgres" else name.upper().replace(".", "_")
            problems.append(
                f"{where}: secrets can't be passed as flags, which every process can see; use {variable} or _FILE"
            )
        elif name == "pipeline":
            problems.append(f"{where}: pipeline is a list of tables; set it in a file")
        else:
            layer.put(name, value, where, "flag")
    return layer


def read_secret_files(entries: dict[str, Entry], problems: list[str]) -> set[str]:
    """Replace each ``….file`` by the secret it holds, without the line end that editors and ``echo`` add.

    Returns the secrets that were meant to be set but can't be read, so that nobody is told to set them.
    """
    unread = set[str]()
    for key, secret in SECRET_FILES.items():
        entry = entries.pop(key, None)
        if entry is None:
            continue
        if not isinstance(entry.value, str):
            problems.append(f"{entry.where}: {entry.spelled} = {quoted(entry.value)}: expected a path")
            unread.add(secret)
            continue
        try:
            text = Path(entry.value).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                f"{entry.where}: {entry.spelled} = {quoted(entry.value)}: can't be read: {why_unreadable(error)}"
            )
            unread.add(secret)
            continue
        source = f"{entry.source}, read from {entry.value}"
        entries[secret] = Entry(text, entry.spelled, f"{entry.where}, read from {entry.value}", source)
    return unread
