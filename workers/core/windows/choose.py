"""Which engine: the one that the rules of the windows ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from workers.core.aggregates import can_merge
from workers.core.windows.assign import Sessions
from workers.core.windows.engine import Folding, K, T, WindowEngine, WindowRules
from workers.core.windows.gaps import Filling, GapBarEngine
from workers.core.windows.sessions import Merging, SessionEngine
from workers.errors import ConfigError

__all__ = ["check_merges", "make_engine"]


def check_merges(folding: object) -> None:
    """Raises `ConfigError` where an aggregation can't be that of session windows."""
    if not can_merge(folding):
        raise ConfigError(
            f"the aggregation {type(folding).__name__} has no merge(), which session windows need: one tick may join "
            "two sessions to one"
        )


def make_engine(
    rules: WindowRules,
    *,
    folding: Folding[T] | None = None,
    keep: Callable[[T], Any] | None = None,
    emit_partial: bool = False,
    track_changes: bool = False,
    name_unit_ns: int = 1,
) -> WindowEngine[K, T]:
    """An engine for the rules. ``name_unit_ns``: the unit of the starts by which frames name their windows.

    Raises `ConfigError` where the rules need an aggregation that can do more: session windows one that merges, filled
    gaps one that has empty windows.
    """
    if isinstance(rules.assigner, Sessions):
        if folding is not None:
            check_merges(folding)
        return SessionEngine(
            rules,
            folding=cast("Merging[T] | None", folding),
            keep=keep,
            emit_partial=emit_partial,
            track_changes=track_changes,
            name_unit_ns=name_unit_ns,
        )
    if rules.fill_gaps_ns:
        if not hasattr(folding, "empty_after") or keep is not None:
            raise ConfigError(
                'fill_gaps needs payload and aggregation "ohlcv": of a time without ticks there is only a close to show'
            )
        return GapBarEngine(
            rules, folding=cast("Filling[T]", folding), emit_partial=emit_partial, track_changes=track_changes
        )
    return WindowEngine(rules, folding=folding, keep=keep, emit_partial=emit_partial, track_changes=track_changes)
