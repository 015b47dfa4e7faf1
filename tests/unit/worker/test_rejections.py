"""When nothing that comes in is a tick, the log says so."""

from __future__ import annotations

from collections.abc import Iterable

from tests.unit.core.test_lane import KafkaRecord
from workers.core.effects import Effects
from workers.core.ledger import dead_letter
from workers.core.reasons import Reason
from workers.core.ticks import Rejection
from workers.worker.all_rejected import RejectionWatch


def effects(reasons: Iterable[Reason], ticks: int = 0) -> Effects:
    found = Effects()
    for reason in reasons:
        found.rejected[reason] = found.rejected.get(reason, 0) + 1
        hostile = (("workers.reason", b"\xff"),)
        record = KafkaRecord(0, 0, b"A", b"x", hostile)
        found.dead_letters.append(dead_letter(Rejection(reason, f"why {reason}", record), "ticks", 0))
    found.records = ticks + len(found.dead_letters)
    return found


def test_a_hundred_rejections_in_a_row_are_told_with_the_commonest_reason() -> None:
    watch = RejectionWatch()
    assert watch.note(effects([Reason.FUTURE_TIMESTAMP] * 60), 0.0) is None
    assert watch.note(Effects(), 0.0) is None  # silence is no record
    found = watch.note(effects([Reason.MALFORMED_JSON] * 40), 1.0)
    assert found is not None
    assert found.text == (
        "all of the last 100 records were rejected, 60 of them as future_timestamp: why future_timestamp"
    )


def test_it_is_told_once_a_minute_and_counts_on() -> None:
    watch = RejectionWatch()
    letters = effects([Reason.TIMESTAMP_OUT_OF_RANGE] * 1_000)
    first = watch.note(letters, 0.0)
    assert [watch.note(letters, float(second)) for second in range(1, 60)] == [None] * 59
    again = watch.note(letters, 60.0)
    assert first is not None
    assert again is not None
    assert (first.records, again.records) == (1_000, 61_000)
    assert again.text.startswith("all of the last 61,000 records were rejected as timestamp_out_of_range: why")


def test_one_tick_among_them_is_enough_to_say_nothing() -> None:
    watch = RejectionWatch()
    for _ in range(20):
        assert watch.note(effects([Reason.MALFORMED_JSON] * 99), 0.0) is None
        assert watch.note(effects([Reason.MALFORMED_JSON] * 5_000, ticks=1), 0.0) is None
