"""How errors about settings say things: values cut to a line, the reason of a file, the nearest name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Final

__all__ = ["MASK", "SHOWN_CHARS", "nearest", "quoted", "why_unreadable"]

MASK: Final = "********"
"""What is shown of a secret that is set."""
SHOWN_CHARS: Final = 80
"""Characters that a value takes up in an error, at most."""


def quoted(value: object) -> str:
    """A value as an error shows it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def why_unreadable(error: Exception) -> str:
    """Why a file can't be read, without what is in it."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "not UTF-8 text"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that comes closest, to append to a sentence; empty where none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""
