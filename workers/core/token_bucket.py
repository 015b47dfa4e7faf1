"""The token bucket, for all that limit a rate. Pure: time is an argument, and an integer.

It is told as the time at which the bucket will be full again. A token less is a ``spacing`` later; what is missing at a
time ``now`` is ``full_at - now``, of ``depth`` at most. That one number is all its state, and whoever has buckets keeps
it: one for each of a million symbols is one integer each.

The unit of time is the caller's. Where a rate changes, or is so high that a nanosecond is too coarse, it is the time
that goes slower, or the unit that is finer: a bucket knows one rate for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

__all__ = ["ALWAYS_FULL", "PS_PER_NS", "TokenBucket"]

ALWAYS_FULL: Final = -(2**63)
"""The state of a bucket from which nothing was ever taken."""

PS_PER_NS: Final = 1_000
_PS_PER_SECOND: Final = 10**12
_BURSTS_PER_SECOND: Final = 10


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Gains a token every ``spacing``, and holds what it gains in ``depth``; with a depth of n spacings, n tokens.

    Raises ``ValueError`` where one of them is less than 1.
    """

    spacing: int
    depth: int

    def __post_init__(self) -> None:
        if self.spacing < 1 or self.depth < 1:
            raise ValueError(f"spacing is {self.spacing} and depth {self.depth}; expected 1 or more")

    @classmethod
    def per_second(cls, rate: float, *, burst: float | None = None) -> TokenBucket:
        """A bucket that gains ``rate`` tokens a second, in picoseconds, so that no rate is too high to be exact.

        It holds ``burst`` tokens: a tenth of a second's by default, and at least one. Raises ``ValueError`` where the
        rate is not above 0 and finite, or the burst not above 0.
        """
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}; expected more than 0 a second, and finite")
        if burst is not None and not burst > 0:
            raise ValueError(f"burst is {burst}; expected more than 0")
        spacing = math.ceil(_PS_PER_SECOND / Fraction(rate))
        if burst is None:
            return cls(spacing, max(_PS_PER_SECOND // _BURSTS_PER_SECOND, spacing))
        return cls(spacing, max(int(burst * spacing), 1))

    def wait(self, full_at: int, now: int, count: int = 1) -> int:
        """How long until ``count`` tokens may be taken; 0 or less where that is at once.

        More than the bucket can hold are let through when it is full, and paid for afterwards.
        """
        return full_at - self.depth + min(count * self.spacing, self.depth) - now

    def taken(self, full_at: int, now: int, count: int = 1) -> int:
        """When the bucket will be full again after ``count`` tokens were taken ``now``."""
        return max(full_at, now) + count * self.spacing

    def held(self, full_at: int, now: int) -> int:
        """Whole tokens that are there; fewer than 0 where some are still to be paid for."""
        return (self.depth - max(full_at - now, 0)) // self.spacing
