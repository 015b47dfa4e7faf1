"""Calling functions of the user's: plain or async, with as many arguments as they require."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["fitted", "value_of"]

R = TypeVar("R")


async def value_of(result: Awaitable[R] | R) -> R:
    """What a plain or async function returned."""
    if inspect.isawaitable(result):
        awaited: R = await result
        return awaited
    return result


def fitted(callback: Callable[..., object] | None, name: str, offered: int) -> Callable[..., object] | None:
    """The callback, to be called with ``offered`` arguments, of which it gets as many as it requires.

    Arguments with defaults are left alone: ``lambda lane=lane: ...`` is how a loop binds its variable.
    """
    if callback is None:
        return None
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return callback  # some builtins have no signature
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return callback
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > offered:
        raise TypeError(f"{name} requires {len(required)} arguments; it is called with {offered} at most")
    wanted = len(required)
    return lambda *arguments: callback(*arguments[:wanted])
