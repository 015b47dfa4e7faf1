"""The settings as flat keys: ``section.key``, the variables that set it, and what may be written for it.

Everything here is made from the model once, at import.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import NoneType
from typing import Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from workers.settings.kafka import MANAGED, SYNONYMS
from workers.settings.model import Settings
from workers.settings.process import METRICS_OFF
from workers.settings.section import Section
from workers.settings.values import MAX_INT32, PARSE_DURATION, PARSE_DURATION_OR_NEVER, PARSE_INSTANT
from workers.settings.wording import MASK
from workers.times import format_duration, format_time

__all__ = [
    "CANONICAL",
    "FLATTENED_VARIABLES",
    "KEYS",
    "REFUSED",
    "SECRET_FILES",
    "SECTIONS",
    "VARIABLES",
    "WRITABLE",
    "Key",
    "bare_type",
]


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: where it is in the model, and what may be written for it."""

    name: str
    section: str
    attribute: str
    field: FieldInfo
    type: object

    @property
    def is_duration(self) -> bool:
        return PARSE_DURATION in self.field.metadata or self.may_be_never

    @property
    def may_be_never(self) -> bool:
        """Whether nothing is a value, which users write as ``never``."""
        return PARSE_DURATION_OR_NEVER in self.field.metadata

    @property
    def is_secret(self) -> bool:
        return self.type is SecretStr

    def read(self, settings: Settings) -> object:
        holder: object = getattr(settings, self.section) if self.section else settings
        return getattr(holder, self.attribute)

    def show(self, value: object) -> str:
        """The value as users write it in a variable or flag; nothing where it is not set, stars for a secret."""
        if value is None:
            return "never" if self.may_be_never else ""
        if self.is_secret:
            return MASK
        if self.is_duration and isinstance(value, int):
            return format_duration(value)
        if PARSE_INSTANT in self.field.metadata and isinstance(value, int):
            return format_time(value)
        if self.name == "metrics.port" and value == METRICS_OFF:
            return "off"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
            return ",".join(value)
        return repr(list(value)) if isinstance(value, tuple) else str(value)

    def allowed(self) -> str:
        """What may be written, in words."""
        extra = self.field.json_schema_extra
        if isinstance(extra, dict) and "allowed" in extra:
            return str(extra["allowed"])
        if get_origin(self.type) is Literal:
            return " | ".join(get_args(self.type))
        names: dict[object, str] = {bool: "true | false", int: "integer", float: "number", str: "text"}
        kind = "duration" if self.is_duration else names.get(self.type, "text")
        return kind + self._bounds()

    def _bounds(self) -> str:
        """The narrowest bounds among the type's and the field's own."""
        rules = self.field.metadata
        low = max((rule.ge for rule in rules if isinstance(rule, Ge) and isinstance(rule.ge, int)), default=None)
        high = min((rule.le for rule in rules if isinstance(rule, Le) and isinstance(rule.le, int)), default=None)
        if any(isinstance(rule, Gt) for rule in rules):
            return f" above 0, at most {self.show(high)}"
        if high is None or high == MAX_INT32:  # Kafka's own width of an integer tells the user nothing
            return f" >= {self.show(low)}" if low is not None else ""
        return f" {self.show(low)} to {self.show(high)}"

    def from_text(self, text: str) -> object:
        """What a variable's or flag's text means for this key; text that means nothing is left for the check."""
        stripped = text.strip()
        if self.is_duration or PARSE_INSTANT in self.field.metadata:
            return text
        if self.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}.get(stripped.lower(), text)
        if self.type is int and re.fullmatch(r"[+-]?\d(_?\d){0,17}", stripped, re.ASCII):
            return int(stripped)
        if self.type is float:
            try:
                return float(stripped)
            except ValueError:
                return text
        return text


def bare_type(annotation: object) -> object:
    """The type without ``| None``."""
    arguments = [argument for argument in get_args(annotation) if argument is not NoneType]
    return arguments[0] if NoneType in get_args(annotation) else annotation


def _collect_keys() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for name, top in Settings.model_fields.items():
        model = top.annotation
        if not (isinstance(model, type) and issubclass(model, Section)):
            keys[name] = Key(name, "", name, top, bare_type(model))
            continue
        for attribute, leaf in model.model_fields.items():
            key = f"{name}.{leaf.alias or attribute}"
            keys[key] = Key(key, name, attribute, leaf, bare_type(leaf.annotation))
    return keys


KEYS: Final = _collect_keys()
"""Every setting by its name, in the order of the sections."""
SECTIONS: Final = frozenset(key.section for key in KEYS.values() if key.section)
"""The tables that a file may have."""
SECRET_FILES: Final = {f"{key.name}.file": key.name for key in KEYS.values() if key.is_secret}
"""``kafka.sasl.password.file -> kafka.sasl.password``: keys that name a file holding a secret."""
CANONICAL: Final = {f"kafka.{name}": f"kafka.{canonical}" for name, canonical in SYNONYMS.items()}
"""Other clients' names for a setting, and ours."""
REFUSED: Final = {f"kafka.{name}": reason for name, reason in MANAGED.items()}
"""Names that are known and can't be set, and why."""
WRITABLE: Final = frozenset([*KEYS, *SECRET_FILES, *CANONICAL])
"""Every name that some source may set."""


def _variables() -> dict[str, str]:
    """Environment variable -> key, least specific first: where two mean one key, the later one wins."""
    kafka = [key for key in (*WRITABLE, *REFUSED) if key.startswith("kafka.")]
    names = {key.upper().replace(".", "_"): key for key in sorted(kafka)}
    names["KAFKA_BOOTSTRAP_SERVERS"] = "bootstrap_servers"
    names["WORKERS_STORE_DSN"] = "store.postgres"
    names["WORKERS_STORE_DSN_FILE"] = "store.postgres.file"
    for key in sorted([*WRITABLE, *REFUSED]):
        names["WORKERS__" + key.upper().replace(".", "__")] = key
        if key.startswith("kafka."):  # Kafka's dots may be single underscores too, as in KAFKA_SASL_USERNAME
            names["WORKERS__KAFKA__" + key.removeprefix("kafka.").upper().replace(".", "_")] = key
    return names


VARIABLES: Final = _variables()
"""The key that an environment variable sets, in whichever spelling."""
FLATTENED_VARIABLES: Final = {name.replace("__", "_"): name for name in VARIABLES if name.startswith("WORKERS__")}
"""Variables of ours written with single underscores, a likely slip, and what was meant."""
