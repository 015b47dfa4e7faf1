"""Kafka's partitions and the lanes inside a process."""

from __future__ import annotations

import subprocess
import sys

import mmh3
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import PartitioningSpec
from workers.core.partitioning import _pure_murmur3, lane_for, murmur2, murmur3, partition_for


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_tests(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF
    assert partition_for(key, 1000) == (signed & 0x7FFFFFFF) % 1000


@given(st.binary(max_size=60), st.integers(1, 10_000))
@settings(deadline=None)
def test_partitions_are_those_of_the_kafka_clients(key: bytes, partitions: int) -> None:
    everything = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, everything, everything)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_the_pure_murmur3_equals_mmh3(data: bytes) -> None:
    assert murmur3(data) == _pure_murmur3(data) == mmh3.hash(data, signed=False)


@pytest.mark.parametrize(("symbol", "lane"), [("AAPL", 1), ("MSFT", 0), ("NVDA", 1)])
def test_the_well_known_symbols_have_their_lanes(symbol: str, lane: int) -> None:
    assert lane_for(symbol, 2) == lane_for(symbol.encode(), 2) == lane


@given(st.text(max_size=20), st.integers(1, 64))
@settings(deadline=None)
def test_a_string_and_its_bytes_share_a_lane_which_is_mmh3s(key: str, lanes: int) -> None:
    assert lane_for(key, lanes) == lane_for(key.encode(), lanes) == mmh3.hash(key, signed=False) % lanes


def test_other_keys_are_hashed_as_they_print() -> None:
    assert lane_for(42, 1000) == lane_for("42", 1000)
    assert lane_for(("a", 1), 1000) == lane_for("('a', 1)", 1000)


def test_without_mmh3_the_lanes_are_the_same_and_a_warning_says_that_it_is_slow() -> None:
    script = """
import sys, warnings
sys.modules["mmh3"] = None  # what makes an import of it fail
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from workers.core.partitioning import lane_for
print([lane_for(symbol, 2) for symbol in ("AAPL", "MSFT", "NVDA")], lane_for("ÜBER-€" * 9, 10**6))
print([(warning.category.__name__, str(warning.message)) for warning in caught])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    lanes, warned = done.stdout.splitlines()
    assert lanes == f"[1, 0, 1] {lane_for('ÜBER-€' * 9, 10**6)}"
    assert warned.startswith("[('RuntimeWarning', 'mmh3 is not installed")
    assert warned.count("RuntimeWarning") == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partitions": 0}, "partitions is 0"),
        ({"capacity": 0}, "capacity is 0"),
        ({"high_watermark": 1.01}, "0 <= low < high <= 1"),
        ({"low_watermark": 0.75}, "0 <= low < high <= 1"),
        ({"low_watermark": -0.1}, "0 <= low < high <= 1"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartitioningSpec(**values)  # type: ignore[arg-type]


def test_the_split_is_eight_lanes_of_2048_unless_said_otherwise() -> None:
    spec = PartitioningSpec()
    assert (spec.partitions, spec.capacity, spec.high_watermark, spec.low_watermark) == (8, 2048, 0.75, 0.25)
