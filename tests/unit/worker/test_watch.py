"""What is made of topics that change under a running worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workers.core.snapshot import TopicIdentity
from workers.errors import TopicError, TopicReplacedError
from workers.kafka.ports import Sighting
from workers.worker.watch import MISSING_LIMIT_S, TopicWatch

KNOWN = {"ticks": TopicIdentity("ticks", "t-1"), "changelog": TopicIdentity("c", "c-1")}
SEEN = Sighting(KNOWN, 4, {0: 0, 1: 7})


@pytest.fixture
def watch() -> TopicWatch:
    return TopicWatch(KNOWN, 4)


@pytest.mark.parametrize("role", KNOWN)
def test_a_topic_with_another_id_ends_the_worker_and_one_without_any_does_not(watch: TopicWatch, role: str) -> None:
    known = KNOWN[role]
    told_none = replace(SEEN, identities={**KNOWN, role: known._replace(id=None)})
    assert list(watch.note(told_none, 0.0)) == []
    other = replace(SEEN, identities={**KNOWN, role: known._replace(id="x-2")})
    with pytest.raises(
        TopicReplacedError, match=rf"the topic {known.name} was deleted and made again .*`workers state"
    ):
        watch.note(other, 1.0)


@pytest.mark.parametrize("role", KNOWN)
def test_a_topic_that_is_gone_is_waited_for_a_while(watch: TopicWatch, role: str) -> None:
    gone = replace(SEEN, identities={other: KNOWN[other] for other in KNOWN if other != role})
    watch.note(gone, 0.0)
    watch.note(gone, MISSING_LIMIT_S - 1)
    watch.note(SEEN, MISSING_LIMIT_S)  # it is there again
    watch.note(gone, MISSING_LIMIT_S + 1)
    watch.note(gone, 2 * MISSING_LIMIT_S)
    with pytest.raises(TopicError, match=rf"the topic {KNOWN[role].name} has been gone for 30 s: .*topics create"):
        watch.note(gone, 2 * MISSING_LIMIT_S + 1)


def test_partitions_that_were_added_end_the_worker(watch: TopicWatch) -> None:
    with pytest.raises(TopicError, match=r"ticks now has 6 partitions, and had 4 .*`workers state reset`"):
        watch.note(replace(SEEN, input_partitions=6), 0.0)


def test_a_changelog_that_begins_later_is_in_doubt_once(watch: TopicWatch) -> None:
    assert list(watch.note(SEEN, 0.0)) == []
    cut = replace(SEEN, changelog_begins={0: 0, 1: 9, 2: 5})  # partition 2 is new here
    assert [number for number, _ in watch.note(cut, 5.0)] == [1]
    assert list(watch.note(cut, 10.0)) == []
    (doubt,) = watch.note(replace(SEEN, changelog_begins={2: 6}), 15.0)
    assert doubt == (2, "c[2] begins at offset 6, and began at 5 before: records were deleted from it")
