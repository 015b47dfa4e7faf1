"""Which of a file's fields may be meant where a field of the tick format is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from workers.core.ticks import TickFormat
from workers.times import UNIT_NS

__all__ = ["ROLES", "Role", "as_option", "closest", "role_names", "suggested_map"]

Role = Literal["symbol", "ts", "price", "size"]
ROLES: Final[tuple[Role, ...]] = ("symbol", "ts", "price", "size")

_USUAL: Final[Mapping[Role, tuple[str, ...]]] = {
    "symbol": ("symbol", "sym", "s", "ticker", "pair", "instrument", "instid", "product_id", "contract", "sym_root"),
    "ts": ("ts", "timestamp", "time", "t", "datetime", "date", "created_at", "participant_timestamp"),
    "price": ("price", "p", "px", "last", "trade_price", "close"),
    "size": ("size", "sz", "qty", "quantity", "amount", "volume", "vol", "s", "q", "v"),
}
_ALIKE: Final = 0.6
_DISTINCT_CHARS: Final = 4  # names as long as this are looked for inside others, and in their misspellings
_FROM_NS: Final = 631_152_000 * UNIT_NS["s"]  # 1990
_TO_NS: Final = 4_102_444_800 * UNIT_NS["s"]  # 2100


def role_names(form: TickFormat) -> dict[Role, str]:
    """The name that the tick format has for each role."""
    return dict(zip(ROLES, (form.symbol, form.ts, form.price, form.size), strict=True))


def closest(name: str, found: Iterable[str]) -> str | None:
    """The found name that is most like the one looked for; None where none is."""
    by_folded = {each.casefold(): each for each in reversed(list(found))}
    alike = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_ALIKE)
    return by_folded[alike[0]] if alike else None


def suggested_map(form: TickFormat, found: Mapping[str, object] | Iterable[str]) -> dict[Role, str]:
    """For each role whose field is not among the found names the one that is likely to be it, if there is one.

    Names that exchanges use count first, then those that hold one or are spelled alike; no name is suggested twice.
    Where values are given, a time has to look like one, and no array or object is any.
    """
    names = role_names(form)
    values = found if isinstance(found, Mapping) else {}
    free = [name for name in dict.fromkeys(found) if name not in names.values()]
    suggested: dict[Role, str] = {}
    for role in ROLES:
        if names[role] in set(found):
            continue
        candidates = [name for name in free if name not in values or _may_be(role, values[name])]
        name = _likely(role, names[role], candidates)
        if name is not None:
            suggested[role] = name
            free.remove(name)
    return suggested


def _likely(role: Role, wanted: str, candidates: list[str]) -> str | None:
    folded = {name.casefold(): name for name in reversed(candidates)}
    usual = next((folded[each] for each in _USUAL[role] if each in folded), None)
    if usual is not None:
        return usual
    distinct = [each for each in _USUAL[role] if len(each) >= _DISTINCT_CHARS]
    holding = next((name for name in candidates if any(each in name.casefold() for each in distinct)), None)
    alike = (closest(each, candidates) for each in (wanted, *distinct))
    return holding or next((name for name in alike if name is not None), None)


def _may_be(role: Role, value: object) -> bool:
    if role == "ts" and type(value) is int:
        return any(_FROM_NS <= value * unit_ns <= _TO_NS for unit_ns in UNIT_NS.values())
    return type(value) in ((str,) if role in ("symbol", "ts") else (str, int, float))


def as_option(suggested: Mapping[Role, str]) -> str:
    """The option of ``workers produce`` that says so; empty where nothing is suggested."""
    return "--field-map " + ",".join(f"{role}={name}" for role, name in suggested.items()) if suggested else ""
