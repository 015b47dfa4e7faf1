"""What of native code is there, and whether it and the libraries beside it write alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import orjson

from workers.core.frames import OutRecord
from workers.core.packed import PackedRecords
from workers.core.records import RawRecord

try:
    from workers import _native
except ImportError:  # it was not built
    _native = None  # type: ignore[assignment]

__all__ = ["checksum", "fits", "packed_records", "reader", "writes_as_orjson"]

INTERFACE: Final = 3
"""What native code and this package agree on: to be raised here and in ``native/src/python.rs`` with each change."""

_FLOATS: Final = (1e22, 1e-7, 123456789.125, 0.1 + 0.2, 1e16, 1e15, 0.00001, 5e-324, -0.0, 100.25, 1.5e300, 1e-5, 1e21)


def fits() -> bool:
    """Whether the native code that is there was built of these sources, as far as they call each other."""
    return getattr(_native, "INTERFACE", None) == INTERFACE


def writes_as_orjson() -> bool:
    """Whether native code writes floats as the installed orjson does; its format has changed between versions."""
    return all(_native.float_text(value) == orjson.dumps(value).decode() for value in _FLOATS)


packed_records: Final[Callable[[Iterable[OutRecord]], PackedRecords] | None] = _native.Records if fits() else None
"""Makes packed records of others, where native code is there."""

checksum: Final[Callable[[bytes], int] | None] = _native.crc32c if fits() else None
"""CRC-32C, where native code is there."""


def reader() -> Callable[..., Iterator[RawRecord]] | None:
    """What reads a batch's records piece by piece, where native code is there."""
    if not fits():
        return None
    from workers.native.reader import read_batch  # not above: it may not be there

    return read_batch
