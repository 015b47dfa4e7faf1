"""The settings in force and the settings that exist, as rows to show."""

from __future__ import annotations

from typing import NamedTuple

from workers.settings.keys import KEYS, Key, bare_type
from workers.settings.model import Settings
from workers.settings.pipeline import OPERATORS, RouterSettings, RuleSettings
from workers.settings.section import Section

__all__ = ["ReferenceRow", "SettingRow", "describe_settings", "operator_reference", "reference"]


class SettingRow(NamedTuple):
    """One setting in force: its key, its value as users write it (a secret as stars), and where it came from."""

    key: str
    value: str
    source: str


class ReferenceRow(NamedTuple):
    """One setting that exists: its key, what may be written, its default, and what it does."""

    key: str
    allowed: str
    default: str
    description: str


def describe_settings(settings: Settings) -> list[SettingRow]:
    """Every setting in force; ``source`` is ``default``, ``file <path>``, ``env <NAME>`` or ``flag``.

    Secrets are stars when set; a setting without a value is empty text.
    """
    return [SettingRow(name, key.show(key.read(settings)), settings.source_of(name)) for name, key in KEYS.items()]


def reference() -> list[ReferenceRow]:
    """Every setting there is, in the order of the sections; documentation tables are made of this."""
    defaults = Settings()
    rows = []
    for name, key in KEYS.items():
        rows.append(
            ReferenceRow(
                name, key.allowed(), key.show(key.read(defaults)), " ".join((key.field.description or "").split())
            )
        )
        if key.is_secret:
            description = f"A file that holds `{name.removeprefix('kafka.')}`, instead of the secret itself."
            rows.append(ReferenceRow(f"{name}.file", "the path of a text file", "", description))
    return rows


def operator_reference() -> list[ReferenceRow]:
    """Every option of every operator, as ``pipeline.<operator>.<option>``; a router's rules as ``rules.<option>``."""
    rows = []
    for name, options in OPERATORS.items():
        rows += _option_rows(f"pipeline.{name}", options)
        if options is RouterSettings:
            rows += _option_rows(f"pipeline.{name}.rules", RuleSettings)
    return rows


def _option_rows(prefix: str, options: type[Section]) -> list[ReferenceRow]:
    rows = []
    for name, option in options.model_fields.items():
        key = Key(f"{prefix}.{name}", "", name, option, bare_type(option.annotation))
        default = "" if option.is_required() or option.default in (None, ()) else key.show(option.default)
        rows.append(ReferenceRow(key.name, key.allowed(), default, " ".join((option.description or "").split())))
    return rows
