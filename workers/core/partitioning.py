"""Which partition a key belongs to, and which lane inside a process.

Partitions follow Kafka's own producer, ``murmur2(key) & 0x7fffffff % partitions``, byte for byte, so that producers in
any language agree. Lanes inside a process use murmur3 (x86, 32 bit, seed 0): with the same hash on both levels all keys
of one partition would meet in few lanes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = ["PartitioningSpec", "lane_for", "murmur2", "murmur3", "partition_for"]

_MASK: Final = 0xFFFFFFFF
REMEMBERED_BYTES: Final = 64
"""Longer keys are hashed anew each time: a stranger's must not decide how much memory the remembered ones take."""


def murmur2(data: bytes) -> int:
    """The unsigned 32-bit murmur2 hash that Kafka's default partitioner uses (seed 0x9747b28c).

    Source: ``org.apache.kafka.common.utils.Utils.murmur2``.
    """
    length = len(data)
    mixer = 0x5BD1E995
    h = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for position in range(0, whole, 4):
        k = int.from_bytes(data[position : position + 4], "little")
        k = (k * mixer) & _MASK
        k ^= k >> 24
        k = (k * mixer) & _MASK
        h = ((h * mixer) & _MASK) ^ k
    if length > whole:
        h ^= int.from_bytes(data[whole:], "little")
        h = (h * mixer) & _MASK
    h ^= h >> 13
    h = (h * mixer) & _MASK
    return h ^ (h >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """The partition where Kafka's default partitioner puts ``key`` among ``partitions``."""
    return (_remembered if len(key) <= REMEMBERED_BYTES else _computed)(key, partitions)


def _computed(key: bytes, partitions: int) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % partitions


_remembered = lru_cache(maxsize=65_536)(_computed)


def _rotl(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _pure_murmur3(data: bytes) -> int:
    """murmur3 x86 32 bit, seed 0, unsigned, after Austin Appleby's public-domain reference."""
    c1, c2 = 0xCC9E2D51, 0x1B873593
    h = 0
    whole = len(data) & ~3
    for position in range(0, whole, 4):
        k = int.from_bytes(data[position : position + 4], "little")
        h ^= (_rotl((k * c1) & _MASK, 15) * c2) & _MASK
        h = (_rotl(h, 13) * 5 + 0xE6546B64) & _MASK
    if len(data) > whole:
        k = int.from_bytes(data[whole:], "little")
        h ^= (_rotl((k * c1) & _MASK, 15) * c2) & _MASK
    h ^= len(data)
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def _choose_murmur3() -> Callable[[bytes], int]:
    try:
        import mmh3
    except ImportError:
        warnings.warn(
            "mmh3 is not installed; lanes are hashed in pure Python: the same lanes, about 20 times slower "
            "(pip install mmh3)",
            RuntimeWarning,
            stacklevel=2,
        )
        return _pure_murmur3
    return lambda data: int(mmh3.hash(data, signed=False))


murmur3: Callable[[bytes], int] = _choose_murmur3()
"""The unsigned 32-bit murmur3 of some bytes; by mmh3, or the same in pure Python where mmh3 is missing."""


def lane_for(key: object, lanes: int) -> int:
    """The in-process lane of a key: strings and bytes as they are, anything else by its ``str()``."""
    data = key if isinstance(key, bytes) else str(key).encode()
    return murmur3(data) % lanes


@dataclass(frozen=True, slots=True)
class PartitioningSpec:
    """How `workers.hash_partition` splits a stream: lanes, items each may hold, and its watermarks.

    ``high_watermark`` and ``low_watermark`` are shares of ``capacity``. Raises ``ValueError`` where a number is out
    of its range or the watermarks are not ``0 <= low < high <= 1``.
    """

    partitions: int = 8
    capacity: int = 2048
    high_watermark: float = 0.75
    low_watermark: float = 0.25

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ValueError(f"partitions is {self.partitions}; expected 1 or more")
        if self.capacity < 1:
            raise ValueError(f"capacity is {self.capacity}; expected 1 or more")
        if not 0 <= self.low_watermark < self.high_watermark <= 1:
            raise ValueError(
                f"low_watermark is {self.low_watermark} and high_watermark {self.high_watermark}; "
                "expected 0 <= low < high <= 1"
            )
