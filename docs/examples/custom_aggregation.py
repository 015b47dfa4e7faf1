"""An aggregation of one's own: who was buying, from a field that the exchange sends along.

    python docs/examples/custom_aggregation.py

A worker computes it, in place of open, high, low and close, when it is told where to import it from:

    PYTHONPATH=docs/examples workers run --set window.aggregation=custom_aggregation:BuyerShare
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers import Aggregation, Tick


class BuyerShare(Aggregation[dict[str, Any]]):
    """Volume, the buyers' share of it, and the last price by event time.

    The state is a plain dict, so how it is stored need not be said. Nothing but the ticks, in the order given, may
    decide the result: no clock, no random numbers.
    """

    name = "buyer_share"
    version = 1  # raise it when the state changes its meaning: old state is then refused instead of misread

    def create(self) -> dict[str, Any]:
        return {"volume": 0.0, "bought": 0.0, "last_price": None, "last_ns": 0}

    def add(self, state: dict[str, Any], tick: Tick) -> dict[str, Any]:
        state["volume"] += tick.size
        if tick.fields.get("side") == "buy":  # every field of the JSON object is there
            state["bought"] += tick.size
        if state["last_price"] is None or tick.ts_ns >= state["last_ns"]:
            state["last_price"], state["last_ns"] = tick.price, tick.ts_ns
        return state

    def result(self, state: dict[str, Any]) -> Mapping[str, object]:
        share = state["bought"] / state["volume"] if state["volume"] else None
        return {"volume": state["volume"], "buyer_share": share, "last_price": state["last_price"]}


def main() -> None:
    """One window by hand, stored and read back in between, as a worker does over a restart."""
    trades = (("buy", 189.10, 100.0), ("sell", 189.05, 50.0), ("buy", 189.20, 50.0))
    aggregation = BuyerShare()
    state = aggregation.create()
    for offset, (side, price, size) in enumerate(trades):
        tick = Tick("AAPL", 1_700_000_000_000_000_000 + offset, price, size, offset, b"", {"side": side})
        state = aggregation.add(state, tick)
        state = aggregation.load(aggregation.dump(state))
    print(dict(aggregation.result(state)))


if __name__ == "__main__":
    main()
