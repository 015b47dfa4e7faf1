"""JSON as bytes that can be kept.

orjson writes into a buffer of at least a kilobyte, some four as malloc has them, and returns it cut to length but not
shrunk: ``sys.getsizeof`` says 43 and the process pays 4,120. What is handed on at once may stay like that; what waits,
for a commit or for as long as a ttl, is copied into what it needs. The copy takes less than a tenth of a microsecond.
"""

from __future__ import annotations

import orjson

__all__ = ["to_json"]


def to_json(value: object, option: int | None = None) -> bytes:
    """What ``orjson.dumps`` gives, in no more memory than its length. Raises as that does (``TypeError``)."""
    return b"".join((orjson.dumps(value, option=option), b""))  # of one alone, join gives that one back
