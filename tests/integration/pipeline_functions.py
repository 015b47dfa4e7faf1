"""Functions that the pipeline of a test is configured with: importable, as a user's are."""

from __future__ import annotations

from workers.core.ticks import Tick

__all__ = ["doubled", "is_trade", "raises_on_poison"]


def is_trade(tick: Tick) -> bool:
    return tick.fields.get("kind") != "quote"


def doubled(tick: Tick) -> dict[str, object]:
    return {"price": tick.price * 2}


def raises_on_poison(tick: Tick) -> bool:
    if tick.fields.get("poison"):
        raise RuntimeError("the function can't take this")
    return True
