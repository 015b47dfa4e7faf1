"""What every section of the settings is: frozen, strict, closed."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "given"]


class Section(BaseModel):
    """Frozen, strict (a quoted number in TOML is a mistake), closed; never repeats an input, which may be a secret.

    Its validator is made when it is first used: most sections are only used as parts of ``Settings``, which has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)


def given(section: object) -> Mapping[str, object]:
    """What is given of a section, that may be a model or not yet one."""
    if isinstance(section, Section):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, Mapping) else {}
