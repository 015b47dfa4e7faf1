"""The synthetic market: the same for the same seed, and as untidy as asked for, not more."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from workers.apps.produce.market import Market, arrivals, symbol_names, synthetic_ticks
from workers.core.formats.json import tick_decoder
from workers.core.ticks import Rejection, Tick, TickFormat
from workers.times import NS_PER_SECOND

START_NS = 1_767_623_400 * NS_PER_SECOND


def ticks(market: Market, count: int, rate: float = 1_000) -> list[tuple[bytes, bytes]]:
    return list(islice(synthetic_ticks(market, arrivals(START_NS, rate)), count))


class _Sent:
    """A record as the broker would hand it out, sent when the tick arrived."""

    headers: tuple[tuple[str, bytes], ...] = ()

    def __init__(self, offset: int, key: bytes, value: bytes, timestamp: int) -> None:
        self.offset, self.key, self.value, self.timestamp = offset, key, value, timestamp


def decoded(market: Market, count: int) -> list[Tick | Rejection]:
    decode = tick_decoder(market.tick)
    return [
        decode(_Sent(n, key, value, START_NS // 1_000_000 + n)) for n, (key, value) in enumerate(ticks(market, count))
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert ticks(Market(seed=7), 3_000) == ticks(Market(seed=7), 3_000)
    assert ticks(Market(seed=7), 3_000) != ticks(Market(seed=8), 3_000)


def test_the_first_tick_of_a_seed_never_changes() -> None:
    # Recorded data and documented examples rest on these bytes.
    assert ticks(Market(seed=1), 2) == [
        (b"KO", b'{"symbol":"KO","ts":1767623399744,"price":144.00,"size":10}'),
        (b"META", b'{"symbol":"META","ts":1767623399459,"price":659.37,"size":50}'),
    ]


def test_every_tick_is_one_for_the_worker() -> None:
    form = TickFormat(symbol="s", ts="T", price="%p", size="q", unit="ns")
    assert all(isinstance(found, Tick) for found in decoded(Market(symbols=3, tick=form), 2_000))


@pytest.mark.parametrize("shape", ["uniform", "exponential"])
def test_disorder_stays_within_its_bound_and_is_really_there(shape: str) -> None:
    market = Market(symbols=1, disorder_ns=NS_PER_SECOND, shape=shape)  # type: ignore[arg-type]
    times = [json.loads(value)["ts"] for _, value in ticks(market, 5_000)]
    greatest, worst = times[0], 0
    for ts in times:
        worst = max(worst, greatest - ts)
        greatest = max(greatest, ts)
    assert 800 <= worst <= 1_000


def test_without_disorder_event_times_are_the_arrivals() -> None:
    market = Market(disorder_ns=0)
    assert [json.loads(value)["ts"] for _, value in ticks(market, 3)] == [START_NS // 1_000_000 + n for n in range(3)]


def test_late_ticks_are_later_than_asked_behind_their_symbols_newest() -> None:
    market = Market(symbols=5, disorder_ns=NS_PER_SECOND, late_fraction=0.1, late_by_ns=2 * NS_PER_SECOND)
    newest: dict[str, int] = {}
    late = 0
    for _, value in ticks(market, 5_000):
        tick = json.loads(value)
        if tick["ts"] <= newest.get(tick["symbol"], 0) - 2_000:
            late += 1
        newest[tick["symbol"]] = max(newest.get(tick["symbol"], 0), tick["ts"])
    assert 400 < late < 600


def test_bad_records_are_of_every_kind() -> None:
    found = decoded(Market(bad_fraction=0.05), 5_000)
    reasons = {record.reason for record in found if isinstance(record, Rejection)}
    assert reasons == {
        "malformed_json",
        "missing_field",
        "wrong_type",
        "negative_size",
        "key_mismatch",
        "future_timestamp",
    }
    assert 180 < sum(isinstance(record, Rejection) for record in found) < 320


def test_a_few_symbols_make_most_of_the_trades() -> None:
    keys = [key for key, _ in ticks(Market(symbols=1_000), 20_000)]
    assert keys.count(b"AAPL") > 8 * keys.count(b"LLY") > 0
    assert len(set(keys)) > 800


def test_symbols_are_named_and_different() -> None:
    names = symbol_names(1_000)
    assert names[:3] == ["AAPL", "MSFT", "NVDA"]
    assert names[-1] == "SYM0960"
    assert len(set(names)) == 1_000


def test_arrivals_do_not_drift() -> None:
    assert next(islice(arrivals(0, 3), 3_000_000, None)) == 1_000_000 * NS_PER_SECOND


@pytest.mark.parametrize("wrong", [{"symbols": 0}, {"late_fraction": 1.5}, {"bad_fraction": -1}, {"disorder_ns": -1}])
def test_a_market_that_can_not_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Market(**wrong)
