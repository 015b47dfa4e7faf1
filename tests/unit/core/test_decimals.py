"""Volume and vwap are exact sums of decimals, the same in both lanes, however the log is cut."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.raw_batches import batches
from tests.support.strategies import cuts
from tests.support.sums_oracle import Total, totals_of, vwap_of
from tests.unit.core.test_lane import TOPIC, KafkaRecord
from workers.core.decimals import MOST_DECIMALS, SUM, DecimalSum, average, decimal_of
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import SessionWindows, TumblingWindows
from workers.errors import StateFormatError
from workers.native.lane import NativeLane
from workers.testing import TestDriver

SPEC = LaneSpec(window=TumblingWindows(60 * 10**9), lag_ns=10**9)
SOURCE = Input(TOPIC, 0, 1)


# -- numbers as they are sent -----------------------------------------------------------------------------------------


def _decimals(most: int, places: int) -> st.SearchStrategy[str]:
    """Decimals with up to so many places, written with zeros at their end or not."""
    return st.builds(
        lambda mantissa, places, zeros: f"{Decimal(mantissa).scaleb(-places):f}" + ("0" * zeros if places else ""),
        st.integers(0, most),
        st.integers(0, places),
        st.integers(0, 3),
    )


FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=0.0)
HOSTILE = st.sampled_from(
    (
        *("1e-300", "1e300", "5e-324", "1.7976931348623157e308", "1e22", "1e-18", "1E-20", "0", "-0.0"),
        *("0.12345678901234567891", "999999999999.99999999", "9007199254740993", "123456789012345678"),
        *("99999999999999.9", "999999999999999.9"),
    )
)
NUMBERS = _decimals(10**9, 8) | _decimals(10**20, 20) | HOSTILE | FLOATS.map(repr)
TAME = _decimals(10**7, 4)
TICKS = st.lists(st.tuples(TAME, TAME), max_size=30) | st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12)
TICKS |= st.lists(st.tuples(TAME | NUMBERS, TAME | HOSTILE), max_size=30)


# -- sums -------------------------------------------------------------------------------------------------------------


def test_sums_are_what_is_written() -> None:
    assert float(DecimalSum().plus(0.1).plus(0.2)) == 0.3
    total = DecimalSum()
    for size in (0.39973411, 0.37531375, 0.06883546, 0.15840827):
        total = total.plus(size)
    assert float(total) == 1.00229159 != sum((0.39973411, 0.37531375, 0.06883546, 0.15840827))
    assert float(DecimalSum().plus_product(0.1, 0.7).plus_product(-0.1, 0.2)) == 0.05


@given(FLOATS)
@example(5e-324)
@example(2.0**53 + 2)
@example(1.2e20)
def test_a_float_means_its_shortest_decimal(value: float) -> None:
    mantissa, decimals = decimal_of(value)
    assert Decimal(mantissa).scaleb(-decimals) == Decimal(repr(value))
    assert decimals == 0 or mantissa % 10


@given(TICKS, st.integers(0, 30), st.booleans())
def test_sums_are_those_of_the_oracle_and_so_are_merged_ones(
    ticks: Sequence[tuple[str, str]], cut: int, negative: bool
) -> None:
    numbers = [
        (-float(price) if negative and at % 2 else float(price), float(size)) for at, (price, size) in enumerate(ticks)
    ]
    sums, totals = [], []
    for part in (numbers[:cut], numbers[cut:]):
        volume = notional = DecimalSum()
        for price, size in part:
            volume, notional = volume.plus(size), notional.plus_product(price, size)
        sums.append((volume, notional))
        totals.append(totals_of(part))
    for (ours, later), (total, more) in zip(zip(*sums, strict=True), zip(*totals, strict=True), strict=True):
        _check(ours, total)
        merged = ours.merged(later)
        total.add_total(more)
        _check(merged, total)


def _check(found: DecimalSum, wanted: Total) -> None:
    assert struct.pack("<d", float(found)) == struct.pack("<d", wanted.value)
    assert (found.approximate is None) == (wanted.rough is None)
    assert DecimalSum.load(found.dump()) == found


def test_where_there_is_no_room_a_sum_goes_on_as_a_float_from_what_it_was() -> None:
    total = DecimalSum().plus(0.1).plus(0.2)
    assert total.plus(1e-37).approximate == 0.3 + 1e-37
    assert total.plus(1e-36).approximate is None
    assert total.plus(8e36).plus(1e36).approximate == 9e36
    beyond = total.plus(1e300)
    assert (beyond.approximate, beyond.plus(0.1).approximate) == (1e300, 1e300)
    assert total.merged(beyond).approximate == beyond.merged(total).approximate == 0.3 + 1e300
    assert math.isinf(float(beyond.plus(1.7e308).plus(1.7e308)))


@pytest.mark.parametrize("mantissa", [2**126 - 1, -(2**126)])
def test_an_integer_has_127_bits(mantissa: int) -> None:
    edge = DecimalSum(mantissa)
    assert DecimalSum.load(edge.dump()) == edge
    step = math.copysign(1.0, mantissa)
    assert edge.plus(step).approximate == float(2**126) * step
    assert edge.plus(-step).approximate is None


def test_what_is_no_sum_is_refused() -> None:
    for harm in (SUM.pack(0, 0, MOST_DECIMALS + 1), SUM.pack(0, 1 << 62, 0), SUM.pack(2**64 - 1, -(1 << 62) - 1, 0)):
        with pytest.raises(ValueError, match="127 bits"):
            DecimalSum.load(harm)
    with pytest.raises(struct.error):
        DecimalSum.load(b"")


def test_an_average_is_within_the_prices_or_there_is_none() -> None:
    def bar(*ticks: tuple[float, float]) -> float | None:
        volume = notional = DecimalSum()
        for price, size in ticks:
            volume, notional = volume.plus(size), notional.plus_product(price, size)
        prices = [price for price, _ in ticks]
        return average(notional, volume, min(prices), max(prices))

    assert bar((0.7, 0.1), (0.7, 0.3), (0.7, 3.3)) == 0.7
    assert bar((1.0, 0.0)) is None
    assert bar((1e200, 1e200), (1.0, 1.0)) is None  # a notional beyond a float64
    assert bar((-1.5, 2.0), (1.5, 1.0)) == -0.5


# -- frames -----------------------------------------------------------------------------------------------------------


def _records(ticks: Sequence[tuple[str, str]], seconds: Sequence[int]) -> list[KafkaRecord]:
    return [
        KafkaRecord(
            offset, 10**9, b"A", b'{"symbol":"A","ts":%d,"price":%b,"size":%b}' % (1000 * second, *_bytes(tick))
        )
        for offset, (tick, second) in enumerate(zip(ticks, seconds, strict=True))
    ]


def _bytes(tick: tuple[str, str]) -> tuple[bytes, bytes]:
    return tick[0].encode(), tick[1].encode()


@given(TICKS, st.data())
def test_both_lanes_show_the_exact_sums_however_the_log_is_cut(
    ticks: Sequence[tuple[str, str]], data: st.DataObject
) -> None:
    seconds = data.draw(st.lists(st.integers(0, 59), min_size=len(ticks), max_size=len(ticks)).map(sorted), "seconds")
    negative = data.draw(st.booleans(), "negative")
    ticks = [("-" + price if negative and not price.startswith("-") else price, size) for price, size in ticks]
    records = [*_records(ticks, seconds)]
    end = KafkaRecord(len(records), 10**9, b"A", b'{"symbol":"A","ts":61000,"price":1,"size":1}')
    records.append(end)
    lanes: list[Lane] = [Lane(SPEC, SOURCE), NativeLane(SPEC, SOURCE)]
    frames: list[list[bytes | None]] = [[], []]
    changelog: list[OutRecord] = []
    for begin, stop in pairwise([0, *data.draw(cuts(len(records)), "cuts"), len(records)]):
        for number, lane in enumerate(lanes):
            some = records[begin:stop]
            effects = lane.process(list(batches(some, [])) if isinstance(lane, NativeLane) else some)
            frames[number] += [frame.value for frame in effects.frames]
        if data.draw(st.booleans(), "crash"):  # each goes on from what both stored
            stored = [lane.take_changes() for lane in lanes]
            assert stored[0] == stored[1]
            changelog += stored[0]
            lanes = [Lane(SPEC, SOURCE), NativeLane(SPEC, SOURCE)]
            for lane in lanes:
                lane.restore(entries_of(changelog), where="test")
    assert frames[0] == frames[1]
    if ticks:
        _check_bar(orjson.loads(frames[0][0] or b""), [(float(price), float(size)) for price, size in ticks])


def _check_bar(bar: dict[str, float | None], ticks: Sequence[tuple[float, float]]) -> None:
    low, high = min(price for price, _ in ticks), max(price for price, _ in ticks)
    volume, notional = totals_of(ticks)
    assert (bar["volume"], bar["vwap"]) == (
        volume.value if math.isfinite(volume.value) else None,
        vwap_of(volume, notional, low, high),
    )
    if volume.rough is None:
        assert bar["volume"] == float(sum(Decimal(repr(size)) for _, size in ticks))
    if bar["vwap"] is not None:
        assert low <= bar["vwap"] <= high


@pytest.mark.parametrize("native", [False, True])
def test_sums_that_are_wide_are_rounded_once(native: bool) -> None:
    """More bits than a float64 has, in ways that rounding twice would get wrong."""
    sizes = [*(("9007199254740991", "9007199254740991", "1"), ("9007199254740991", "9007199254740991", "3"))]
    sizes += [("18014398509481984", "2", "0.00000001"), ("18014398509481984", "1", "0.00000001"), ("0.1", "1e16")]
    for each in sizes:
        lane = (NativeLane if native else Lane)(SPEC, SOURCE)
        records = _records([("1", size) for size in each] + [("1", "1")], [0] * len(each) + [61])
        (frame,) = lane.process(records).frames
        shown = orjson.loads(frame.value or b"")["volume"]
        assert shown == float(sum(Decimal(repr(float(size))) for size in each))


def test_sums_of_sessions_are_exact_when_they_merge() -> None:
    driver = TestDriver(LaneSpec(window=SessionWindows(5 * 10**9), lag_ns=10**9, lateness_ns=60 * 10**9))
    for second, size in ((0, 0.1), (8, 0.2), (4, 0.3), (30, 1)):
        driver.send("A", second * 1000, price=0.7, size=size)
        driver.crash()
    driver.commit()
    bar = [frame for frame in driver.frames(provisional=False) if frame["count"] == 3][-1]
    assert (bar["volume"], bar["vwap"]) == (0.6, 0.7)


def test_stored_sums_that_cannot_be_are_refused_by_both_lanes() -> None:
    lane = Lane(SPEC, SOURCE)
    lane.process(_records([("1", "0.1")], [0]))
    entries = entries_of(lane.take_changes())
    window = next(key for key in entries if key[:1] == b"w")
    value = entries[window]
    for harm in (value[:-1] + bytes([37]), value[: -SUM.size - 1] + bytes([200]) + value[-SUM.size :]):
        for new in (Lane(SPEC, SOURCE), NativeLane(SPEC, SOURCE)):
            with pytest.raises(StateFormatError, match="127 bits"):
                new.restore({**entries, window: harm}, where="test")
