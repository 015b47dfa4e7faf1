"""Loading: sources merged, each overriding the one before, and checked as a whole before anything starts.

1. the defaults in the model,
2. a TOML file: the path given, else ``WORKERS_CONFIG``, else ``config/workers.toml`` where that exists,
3. the environment: ``KAFKA_<NAME>`` for Kafka's own settings, ``WORKERS__<SECTION>__<KEY>`` for every setting,
4. flags, as a mapping of dotted keys.

Sources are merged flat; only then does pydantic see them. That is why an error can name the file, variable or flag a
value came from. Everything wrong is reported at once, one problem a line.

Nothing is ignored in silence: unknown keys, unknown ``WORKERS__`` variables and combinations that can't do what they
say are refused. Two exceptions, both of the environment's making: an empty variable counts as not set (that is what
``${NAME:-}`` in a compose file leaves behind), and ``KAFKA_`` variables that resemble none of ours are left alone,
because brokers, their images and Kubernetes' service links use the same prefix.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

from pydantic import ValidationError

from workers.errors import ConfigError
from workers.settings.conflicts import ConflictsError
from workers.settings.keys import KEYS, SECTIONS, Key
from workers.settings.model import Settings
from workers.settings.sources import Entry, Layer, environment_layers, file_layer, flag_layer, read_secret_files
from workers.settings.wording import MASK, quoted

__all__ = ["DEFAULT_CONFIG_PATH", "load_settings"]

DEFAULT_CONFIG_PATH: Final = Path("config/workers.toml")


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """The settings from file, environment and flags, each overriding the one before, checked as a whole.

    ``path`` is a TOML file; without it ``WORKERS_CONFIG`` names one, and without that ``config/workers.toml`` is read
    if it is in the working directory. ``environ`` is the process's environment where not given. ``overrides`` maps
    dotted keys (``window.size``) to text or values; ``None`` means that the flag was not given.

    Raises ``ConfigError`` with every problem found, one a line, each naming the file, variable or flag, the key, the
    value (never a secret's) and what is allowed.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    merged = Layer(problems)
    chosen = _config_path(path, environ)
    if chosen is not None:
        merged.override(file_layer(chosen, problems))
    for layer in environment_layers(environ, problems):
        merged.override(layer)
    merged.override(flag_layer(overrides or {}, problems))
    unread = read_secret_files(merged.entries, problems)
    settings = _validate(merged.entries, unread, problems)
    if problems or settings is None:
        raise ConfigError("\n".join(problems))
    settings.remember_sources({key: entry.source for key, entry in merged.entries.items()})
    return settings


def _config_path(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return path
    if environ.get("WORKERS_CONFIG"):
        return Path(environ["WORKERS_CONFIG"])
    return DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.is_file() else None


def _validate(entries: Mapping[str, Entry], bad: set[str], problems: list[str]) -> Settings | None:
    """The model of the entries, or ``None`` with why in ``problems``.

    ``bad`` keys are known to be wrong already. Values that are wrong by themselves are set aside and the rest is looked
    at again, so that impossible combinations among the good ones are reported in the same go.
    """
    good = dict(entries)
    while True:
        try:
            settings = Settings.model_validate(_nested(good))
        except ValidationError as error:
            found = error.errors(include_url=False)
        else:
            return None if bad else settings
        wrong = {key: item for item in found if (key := ".".join(str(part) for part in item["loc"])) in good}
        for key, item in wrong.items():
            problems.append(_explain(good.pop(key), KEYS[key], item["type"], item["msg"]))
        bad |= wrong.keys()
        if not wrong:
            for item in found:
                problems.extend(_explain_conflicts(item.get("ctx", {}).get("error", item["msg"]), entries, bad))
            return None


def _nested(entries: Mapping[str, Entry]) -> dict[str, object]:
    """The entries as pydantic takes them: a dictionary for each section."""
    tables: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    top: dict[str, object] = {}
    for name, entry in entries.items():
        key = KEYS[name]
        (tables[key.section] if key.section else top)[name.removeprefix(f"{key.section}.")] = entry.value
    return {**top, **tables}


def _explain(entry: Entry, key: Key, kind: str, message: str) -> str:
    """One line about one wrong value."""
    hidden = key.is_secret or (key.name == "bootstrap_servers" and "@" in str(entry.value))
    shown = MASK if hidden else quoted(entry.value)
    why = f"{message.removeprefix('Value error, ')}; " if kind == "value_error" else ""
    if key.name == "pipeline":
        return f"{entry.where}: pipeline: {why.removesuffix('; ')}"
    near: list[str] = []
    if get_origin(key.type) is Literal and isinstance(entry.value, str):
        near = difflib.get_close_matches(entry.value, get_args(key.type), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{entry.where}: {entry.spelled} = {shown}: {why}expected {key.allowed()}{hint}"


def _explain_conflicts(cause: object, entries: Mapping[str, Entry], bad: set[str]) -> list[str]:
    """A line for each impossible combination of good values, naming where each value came from."""
    if not isinstance(cause, ConflictsError):
        return [str(cause)]
    lines = []
    for keys, why in cause.conflicts:
        if bad.isdisjoint(keys):
            parts = []
            for name in keys:
                shown = KEYS[name].show(KEYS[name].read(cause.settings)) or "(not set)"
                parts.append(f"{name} = {shown} ({entries[name].where if name in entries else 'default'})")
            lines.append(f"{', '.join(parts)}: {why}")
    return lines
