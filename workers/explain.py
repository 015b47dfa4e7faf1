"""What happened to a symbol around a time: which ticks joined its window, which did not and why, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.settings import Settings

__all__ = ["Explanation", "explain"]

MINUTE_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Explanation:
    symbol: str
    time_ns: int

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it: instants as RFC 3339 text (exact), durations as integers ending in ``_ns``."""
        raise NotImplementedError  # being written


async def explain(
    settings: Settings,
    symbol: str,
    time_ns: int,
    *,
    around_ns: int = 0,
    read_on_ns: int = 10 * MINUTE_NS,
    from_beginning: bool = False,
    everywhere: bool = True,
    tick_limit: int = 1_000,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Explanation:
    """What became of ``symbol`` in the windows that touch ``[time - around, time + around]``.

    Raises `WorkersError` (TopicError, BrokerError, ConfigError, DataLossError).
    """
    raise NotImplementedError  # being written
