"""A user's aggregation at work: what it raises is told from what this package does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from workers.core.aggregates import Aggregation
from workers.core.ticks import Tick

__all__ = ["AggregationRaised", "UsersAggregation"]

S = TypeVar("S")


class AggregationRaised(Exception):
    """A user's aggregation raised; what, is the ``__cause__``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")


class UsersAggregation(Aggregation[S]):
    """What engines are given of a user's aggregation; raises `AggregationRaised` where that raises."""

    name = "user's"

    def __init__(self, inner: Aggregation[S]) -> None:
        self._inner = inner

    def create(self) -> S:
        try:
            return self._inner.create()
        except Exception as error:
            raise AggregationRaised(error) from error

    def add(self, state: S, tick: Tick) -> S:
        try:
            return self._inner.add(state, tick)
        except Exception as error:
            raise AggregationRaised(error) from error

    def merge(self, state: S, later: S) -> S:
        try:
            return self._inner.merge(state, later)
        except Exception as error:
            raise AggregationRaised(error) from error

    def result(self, state: S) -> Mapping[str, object]:
        try:
            return self._inner.result(state)
        except Exception as error:
            raise AggregationRaised(error) from error
