"""Rests between attempts: each twice as long as the one before, up to a longest."""

from __future__ import annotations

__all__ = ["Backoff"]


class Backoff:
    """How long to rest after the next failure, in seconds: ``rest_s``, which `grow` doubles up to ``longest_s``."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.rest_s = first_s

    def grow(self) -> float:
        """The rest that is due now; the one after it will be longer."""
        rest_s, self.rest_s = self.rest_s, min(2 * self.rest_s, self._longest_s)
        return rest_s

    def reset(self) -> None:
        """Begin anew: it has worked."""
        self.rest_s = self._first_s
