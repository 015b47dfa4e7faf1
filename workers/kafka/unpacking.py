"""Record batches unpacked by Python's own libraries, where native code is not there: whole, and so up to a limit.

Native code unpacks piece by piece, whatever a batch unpacks to (`workers.native.reader`). The libraries here have no
such way, or none for each codec.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from aiokafka import codec

from workers.core.records import Payload

__all__ = ["CODECS", "LARGEST_PAYLOAD"]

LARGEST_PAYLOAD: Final = 64 * 1024 * 1024
"""Bytes that a batch may unpack to."""

_FIRST_ROOM: Final = 32  # times what is packed; ticks pack to a tenth
_SNAPPY_STREAM: Final = b"\x82SNAPPY\x00"
_SNAPPY_HEAD_BYTES: Final = 16
_BLOCK_BYTES: Final = struct.Struct(">i")


class _TooLargeError(ValueError):
    def __init__(self) -> None:
        super().__init__(
            f"it holds more than the {LARGEST_PAYLOAD // 2**20} MiB that plain Python unpacks. Native code unpacks "
            "any: install from a wheel, or where there is a Rust compiler (cargo). Or start over behind the batch, or "
            "delete it from the log"
        )


def _gunzip(packed: Payload) -> bytes:
    out, rest = bytearray(), bytes(packed)
    while rest:
        member = zlib.decompressobj(wbits=31)
        out += member.decompress(rest, LARGEST_PAYLOAD + 1 - len(out))
        if len(out) > LARGEST_PAYLOAD:
            raise _TooLargeError
        if not member.eof:
            raise ValueError("it ends within a gzip member")
        rest = member.unused_data
    return bytes(out)


def _unsnap(packed: Payload) -> bytes:
    import cramjam

    view = memoryview(packed)
    if bytes(view[: len(_SNAPPY_STREAM)]) != _SNAPPY_STREAM:
        blocks = [view]
    else:
        blocks, position = [], _SNAPPY_HEAD_BYTES
        while position < len(view):
            (length,) = _BLOCK_BYTES.unpack_from(view, position)
            position += _BLOCK_BYTES.size
            blocks.append(view[position : position + max(length, 0)])
            position += max(length, 0)
    if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > LARGEST_PAYLOAD:
        raise _TooLargeError
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _by_cramjam(module: str) -> Callable[[Payload], bytes]:
    def unpack(packed: Payload) -> bytes:
        import cramjam

        into: Callable[[Any, bytearray], int] = getattr(cramjam, module).decompress_into
        room_bytes = min(LARGEST_PAYLOAD + 1, max(65_536, _FIRST_ROOM * len(packed)))
        while True:
            room = bytearray(room_bytes)
            try:
                written = into(packed, room)
                if written > LARGEST_PAYLOAD:
                    raise _TooLargeError
                return bytes(memoryview(room)[:written])
            except cramjam.DecompressionError as error:
                # It says the same of too little room as of bytes that are no such stream.
                if "whole buffer" not in str(error):
                    raise
            if room_bytes > LARGEST_PAYLOAD:
                raise _TooLargeError
            room_bytes = min(LARGEST_PAYLOAD + 1, 8 * room_bytes)

    return unpack


CODECS: Final[dict[int, tuple[str, Callable[[], bool], Callable[[Payload], bytes]]]] = {
    1: ("gzip", codec.has_gzip, _gunzip),
    2: ("snappy", codec.has_snappy, _unsnap),
    3: ("lz4", codec.has_lz4, _by_cramjam("lz4")),
    4: ("zstd", codec.has_zstd, _by_cramjam("zstd")),
}
"""By Kafka's number: name, whether its library is there, and what unpacks."""
