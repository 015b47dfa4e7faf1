"""The token bucket against one that counts its tokens in fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.token_bucket import ALWAYS_FULL, TokenBucket


@given(
    st.integers(1, 50),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 12)), max_size=60),
)
def test_it_gives_what_counted_tokens_give(spacing: int, burst: int, calls: list[tuple[int, int]]) -> None:
    bucket, full_at = TokenBucket(spacing, burst * spacing), ALWAYS_FULL
    tokens, now = Fraction(burst), 0
    for passed, count in calls:
        now += passed
        tokens = min(tokens + Fraction(passed, spacing), Fraction(burst))
        assert bucket.held(full_at, now) == tokens // 1
        wait = bucket.wait(full_at, now, count)
        assert (wait <= 0) == (tokens >= min(count, burst))
        if wait > 0:
            assert Fraction(wait, spacing) == min(count, burst) - tokens
        else:
            full_at = bucket.taken(full_at, now, count)
            tokens -= count


@pytest.mark.parametrize(("spacing", "depth"), [(0, 1), (1, 0), (-1, 5)])
def test_a_bucket_that_gains_or_holds_nothing_is_refused(spacing: int, depth: int) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        TokenBucket(spacing, depth)
