"""What is written of a window is read back; what else a record may hold is no frame, with the reason."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.core.frames import BAR_FIELDS, Frame, FrameEncoder, FrameName, NoFrame, decode_frame, frame_name
from workers.core.windows.window import Emission, Status
from workers.times import NS_PER_MS

MS = st.integers(-(10**12), 10**12)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
CUSTOM = st.dictionaries(st.text(min_size=1, max_size=5).map(lambda name: "x" + name), NUMBERS, max_size=3)


@given(MS, st.integers(0, 9), st.fixed_dictionaries(dict.fromkeys(BAR_FIELDS, NUMBERS)), CUSTOM, st.booleans())
def test_a_frame_is_read_as_it_was_written(
    start_ms: int, rev: int, bar: dict[str, float | None], custom: dict[str, float | None], filled: bool
) -> None:
    start_ns, count = start_ms * NS_PER_MS, 0 if filled else 3
    emission = Emission(
        "AAPL", start_ns, start_ns + 5_000 * NS_PER_MS, rev, "final", "end", count, start_ns, start_ns + NS_PER_MS,
        {**bar, **custom}, None, filled,
    )  # fmt: skip
    value = FrameEncoder(NS_PER_MS).encode(emission).value
    frame = decode_frame(value)
    assert isinstance(frame, Frame)
    assert (frame.key, frame.start_ms, frame.end_ms, frame.rev) == ("AAPL", start_ms, start_ms + 5_000, rev)
    assert (frame.status, frame.trigger, frame.count, frame.filled) == ("final", "end", count, filled)
    assert {name: getattr(frame, name) for name in BAR_FIELDS} == bar
    assert {name: orjson.loads(bytes(raw)) for name, raw in frame.others.items()} == custom
    assert frame_name(value) == FrameName(start_ms, rev, "final")


@pytest.mark.parametrize(
    ("status", "count", "expected_ms"),
    [
        ("final", 3, 60_000),
        ("closed", 3, 60_000),
        ("final", 0, 60_000),
        ("provisional", 3, 7_001),
        ("provisional", 0, 0),
    ],
)
def test_only_what_is_over_is_stamped_with_the_end_of_its_window(status: Status, count: int, expected_ms: int) -> None:
    emission = Emission("AAPL", 0, 60_000 * NS_PER_MS, 0, status, "partial", count, 5, 7_001 * NS_PER_MS + 5, {}, None)
    assert FrameEncoder(1).encode(emission).timestamp_ms == expected_ms


@given(st.binary(max_size=80) | st.none())
def test_anything_else_is_none_and_raises_nothing(value: bytes | None) -> None:
    assert isinstance(decode_frame(value), NoFrame)


@pytest.mark.parametrize("value", [None, b"", b"[]", b"1", b"{", b'{"start":1.5,"rev":true,"status":0}'])
def test_a_name_is_of_what_there_is(value: bytes | None) -> None:
    assert frame_name(value) == FrameName(None, None, None)
