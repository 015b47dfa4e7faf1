"""Commits that fail one after another rest longer each time, and end where resting doesn't help; what a topic would
refuse is shrunk, at the least to its reason."""

from __future__ import annotations

import orjson
import pytest

from workers.core.frames import OutRecord
from workers.core.ledger import OFFSET_HEADER, REASON_HEADER, dead_letter, late_record
from workers.core.reasons import Reason
from workers.core.records import RawRecord
from workers.core.ticks import Rejection, Tick
from workers.core.windows.window import Lateness
from workers.errors import TopicError
from workers.kafka.commit import SinkSpec
from workers.kafka.fit import fit, size_in_batch
from workers.kafka.ports import Commit, OutTopic, OversizedError
from workers.worker.setbacks import MAX_BACKOFF_S, Setbacks


def test_rests_grow_up_to_a_longest_and_the_first_failure_has_none() -> None:
    setbacks, rests = Setbacks(), []
    for _ in range(10):
        setbacks.note(TimeoutError())
        rests.append(setbacks.rest_s)
    assert rests[:4] == [0, 0.1, 0.2, 0.4]
    assert rests[-1] == MAX_BACKOFF_S


def test_a_topic_that_refuses_what_was_shrunk_is_given_up_with_what_to_do() -> None:
    setbacks = Setbacks()
    setbacks.note(OversizedError("changelog", 1_000))
    setbacks.note(OversizedError("changelog", 200))
    with pytest.raises(TopicError, match=r"changelog has refused .*200.*kafka-configs --alter --topic changelog"):
        setbacks.note(OversizedError("changelog", 200))
    setbacks = Setbacks()
    for error in (OversizedError("late", 1), OversizedError("late", 1), TimeoutError()) * 3:
        setbacks.note(error)  # others came in between


@pytest.mark.parametrize("limit_bytes", [200, 300, 600, 2_000])
@pytest.mark.parametrize("symbol", ["AAPL", "A" * 100, "A" * 5_000])
def test_late_records_and_dead_letters_fit_the_least_of_topics(symbol: str, limit_bytes: int) -> None:
    value = orjson.dumps({"symbol": symbol, "note": "x" * 10_000})
    record = RawRecord(77, 1, symbol.encode(), value, (("mine", b"y" * 3_000),))
    letter = dead_letter(Rejection(Reason.MALFORMED_JSON, "it is none", record), "ticks", 3)
    tick = Tick(symbol, 10**18, 1.0, 1.0, 78, value, {})
    late = late_record(tick, Lateness(Reason.WATERMARK, 5, 6), (0, 10**9), 10**6, "ticks", 3)
    topic = OutTopic("out", 3, limit_bytes)
    work = Commit(1, late=[late], dead_letters=[letter])
    fit(work, SinkSpec("in", "app", topic, topic, topic, topic, True, {}))
    for written, reason in ((work.late[0], b"watermark"), (work.dead_letters[0], b"malformed_json")):
        assert isinstance(written, OutRecord)
        assert size_in_batch(written) <= limit_bytes
        assert dict(written.headers)[REASON_HEADER] == reason
    assert dict(work.dead_letters[0].headers)[OFFSET_HEADER] == b"77"
    entry = orjson.loads(work.late[0].value or b"")
    assert (entry["reason"], entry["offset"]) == ("watermark", 78)
    assert symbol.startswith(entry["key"])
