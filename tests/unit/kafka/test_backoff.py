"""Rests double up to the longest, and begin anew after a success."""

from __future__ import annotations

from workers.kafka.backoff import Backoff


def test_rests_double_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.grow() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert (backoff.rest_s, backoff.grow(), backoff.rest_s) == (0.1, 0.1, 0.2)
