"""What the changelog holds of a window, and that a key's clock survives whatever becomes of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from workers.core.aggregates import Ohlcv
from workers.core.lane import entries_of
from workers.core.snapshot import (
    SEGMENT_BYTES,
    LaneMeta,
    StoredRecords,
    check_fingerprint,
    read_state,
    write_meta,
    write_windows,
)
from workers.core.windows.engine import WindowEngine
from workers.core.windows.window import Window, WindowRules
from workers.errors import StateMismatchError

S = 10**9
OHLCV = Ohlcv()


class OneMinuteAnHour:
    """A window for the first minute of each hour: most times are in none."""

    longest_ns = 60 * S

    def assign(self, ts_ns: int) -> Sequence[tuple[int, int]]:
        start_ns = ts_ns // (3_600 * S) * 3_600 * S
        return ((start_ns, start_ns + 60 * S),) if ts_ns < start_ns + 60 * S else ()


def stored(windows: Sequence[Window[str]]) -> list[Window[str]]:
    """The windows as a restart finds them."""
    records = [*write_windows(windows, OHLCV.dump, StoredRecords()), write_meta(LaneMeta(1, 0, {}))]
    _, found = read_state(entries_of(records), OHLCV.load, where="test")
    return found


def test_settings_that_differ_are_told_as_a_configuration_has_them() -> None:
    dedup = {"operator": "deduplicate", "fields": ["id"], "ttl_ns": 60 * S}
    before = {"window.size_ns": 5 * S, "window.lag_ns": 2 * S, "window.payload": "items", "pipeline": [dedup]}
    after = {"window.size_ns": 60 * S, "window.lag_ns": 2 * S, "window.payload": "ohlcv", "window.hop_ns": 10**7}
    with pytest.raises(StateMismatchError) as caught:
        check_fingerprint(LaneMeta(1, 0, before), after, where="changelog[0]")
    said = str(caught.value)
    assert said.startswith(
        "the stored state changelog[0] was made under other settings: "
        'pipeline was [{"operator":"deduplicate","fields":["id"],"ttl":"1m"}], is not given; '
        "window.hop was not given, is 10ms; window.payload was items, is ohlcv; window.size was 5s, is 1m. "
    )
    assert "under another application_id and another topics.frames" in said
    assert "_ns" not in said


def test_a_clock_that_is_not_the_last_ticks_is_stored_and_the_others_cost_no_byte() -> None:
    plain = Window("A", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=9)
    ahead = Window("B", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=11)
    behind = Window("C", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=-(2**63))
    sizes = [len(record.value or b"") for record in write_windows([plain, ahead, behind], OHLCV.dump, StoredRecords())]
    assert [size - sizes[0] for size in sizes] == [0, 8, 8]
    assert [window.clock_ns for window in stored([plain, ahead, behind])] == [9, 11, -(2**63)]


@pytest.mark.parametrize("ordered", [False, True])
def test_items_that_would_make_a_record_too_large_for_its_topic_are_stored_in_several(ordered: bool) -> None:
    items = [bytes([number]) * 100_000 for number in range(20)]
    items[7] = b"x" * (2 * SEGMENT_BYTES)  # there is no splitting one
    window = Window("A", 0, 60 * S, OHLCV.create(), items=items, orders=list(range(20)) if ordered else None, count=20)
    counted = StoredRecords()
    records = write_windows([window], OHLCV.dump, counted)
    sizes = [len(record.value or b"") for record in records]
    assert sorted(sizes)[-2] < SEGMENT_BYTES + 1_000 < max(sizes) < 2 * SEGMENT_BYTES + 1_000
    (again,) = stored([replace(window, stored_items=0, stored_segments=0)])
    assert (again.items, again.orders) == (items, window.orders)

    window.stored_items = 0  # as after a merge
    window.items = items[:1]
    window.orders, window.count = [0] if ordered else None, 1
    records += write_windows([window], OHLCV.dump, counted)
    assert sum(1 for key in entries_of(records) if key[:1] == b"i") == 1
    assert counted == StoredRecords(windows=1, items=1)


def test_the_window_that_holds_the_clock_is_kept_until_another_one_does() -> None:
    rules = WindowRules(OneMinuteAnHour(), lag_ns=2 * S)
    engine: WindowEngine[str, object] = WindowEngine(rules, track_changes=True)
    engine.add("A", 30 * S, None)
    assert engine.add("A", 500 * S, None) is not None  # in no window, but it moves the clock
    (out,) = engine.take_emissions()
    assert (out.start_ns, out.status, out.trigger) == (0, "final", "watermark")
    (kept,) = engine.windows()
    assert (kept.closed, kept.clock_ns) == (True, 500 * S)

    again: WindowEngine[str, object] = WindowEngine(rules, track_changes=True)
    again.load([replace(kept)], 500 * S)
    for each in (engine, again):
        assert each.watermark_ns("A") == 498 * S
        assert each.add("A", 3_600 * S, None) is None
        assert [window.start_ns for window in each.windows()] == [3_600 * S]
        assert each.take_emissions() == []
