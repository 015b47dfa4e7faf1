"""A login as Java clients write it: JAAS text."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Jaas", "parse_jaas"]


class Jaas:
    """A login out of JAAS text; ``module`` is ``PLAIN`` or ``SCRAM``. It has no repr, because it holds a password."""

    __slots__ = ("module", "password", "username")

    def __init__(self, module: str, username: str, password: str) -> None:
        self.module = module
        self.username = username
        self.password = password


_JAAS_MODULES: Final = {"PlainLoginModule": "PLAIN", "ScramLoginModule": "SCRAM"}
_JAAS_HEAD = re.compile(r"\s*(?:[\w$]+\.)*(\w+)\s+(?:required|requisite|sufficient|optional)\b", re.IGNORECASE)
_JAAS_OPTION = re.compile(r"\s*([\w.]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|([^\s;\"']+))", re.DOTALL)
_JAAS_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def parse_jaas(text: str) -> Jaas:
    """Name and password out of ``…PlainLoginModule required username="…" password="…";``.

    Raises ``ValueError``, whose message repeats nothing of the text.
    """
    head = _JAAS_HEAD.match(text)
    if head is None or head[1] not in _JAAS_MODULES:
        raise ValueError("expected one PlainLoginModule or ScramLoginModule, followed by required")
    options, position = {}, head.end()
    while option := _JAAS_OPTION.match(text, position):
        name, double, single, bare = option.groups()
        value = next(part for part in (double, single, bare) if part is not None)
        if bare is None:
            value = re.sub(r"\\(.)", lambda escape: _JAAS_ESCAPES.get(escape[1], escape[1]), value, flags=re.DOTALL)
        options[name] = value
        position = option.end()
    if text[position:].strip() not in ("", ";"):
        raise ValueError('expected only options like name="value" after required, and one semicolon at the end')
    if not options.get("username") or not options.get("password"):
        raise ValueError("expected the options username and password")
    return Jaas(_JAAS_MODULES[head[1]], options["username"], options["password"])
