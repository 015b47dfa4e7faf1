"""What the changelog holds of a window, and that a key's clock survives whatever becomes of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.aggregates import Ohlcv
from workers.lane import entries_of
from workers.snapshot import LaneMeta, read_state, write_meta, write_windows
from workers.windows import Window, WindowEngine, WindowRules

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
    records = [*write_windows(windows, OHLCV.dump), write_meta(LaneMeta(1, 0, {}))]
    _, found = read_state(entries_of(records), OHLCV.load, where="test")
    return found


def test_a_clock_that_is_not_the_last_ticks_is_stored_and_the_others_cost_no_byte() -> None:
    plain = Window("A", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=9)
    ahead = Window("B", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=11)
    behind = Window("C", 0, 60 * S, OHLCV.create(), first_ns=3, last_ns=9, clock_ns=-(2**63))
    sizes = [len(record.value or b"") for record in write_windows([plain, ahead, behind], OHLCV.dump)]
    assert [size - sizes[0] for size in sizes] == [0, 8, 8]
    assert [window.clock_ns for window in stored([plain, ahead, behind])] == [9, 11, -(2**63)]


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
