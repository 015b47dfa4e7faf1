"""Frames that were made again beside those that were published: identical, or what is wrong and why it may be.

What is compared waits in a temporary database on disk, so that memory is bounded, however many frames there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from workers.apps.inspect.explanation import Difference, differences
from workers.core.encoding import json_object
from workers.core.frames import OutRecord, frame_name
from workers.core.partitioning import partition_for
from workers.core.spec import LaneSpec
from workers.kafka.group_offsets import PartitionLag

if TYPE_CHECKING:
    from workers.kafka.topics import TopicLayout
    from workers.settings import Settings

__all__ = ["ComparedFrame", "Comparison", "FrameProblem", "FrameTable", "ReplayResult", "row_of"]

PROBLEMS_KEPT: Final = 100
_RECORD_OVERHEAD_BYTES: Final = 100  # as the sink reckons

Kind = Literal["missing", "extra", "differing", "repeated"]


@dataclass(frozen=True, slots=True)
class FrameProblem:
    """A frame that is not as it should be; ``expected`` and ``found`` are its wire bytes, None where there is none.

    ``made_at`` is partition and offset of the tick that brings it out, ``published_at`` its own in the frames topic;
    ``cause`` is the likely one, where it can be known.
    """

    kind: Kind
    key: str
    start_ms: int
    rev: int
    status: str
    expected: bytes | None
    found: bytes | None
    made_at: tuple[int, int] | None
    published_at: tuple[int, int] | None
    differences: tuple[Difference, ...]
    cause: str | None


@dataclass(slots=True)
class ReplayResult:
    """What came of a replay. ``problems`` are the first ones by window, ``different`` counts them all.

    ``not_yet`` frames are made by ticks that no worker has committed; ``repeated`` ones are there more than once, which
    at_least_once allows. ``compared`` is False where nothing was.
    """

    made: int = 0
    identical: int = 0
    not_yet: int = 0
    repeated: int = 0
    different: int = 0
    records: int = 0
    compared: bool = False
    problems: list[FrameProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ComparedFrame(NamedTuple):
    """A frame, made or published, in the order of comparison."""

    start_ms: int
    key: bytes
    rev: int
    status: str
    published: int
    partition: int
    offset: int
    due: int  # made by a tick that was committed before the frames' end was asked
    value: bytes


class FrameTable:
    """The frames of one comparison, in a temporary database that SQLite keeps on disk and deletes by itself."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute(
            "CREATE TABLE frames (start INTEGER, key BLOB, rev INTEGER, status TEXT, published INTEGER, "
            "partition INTEGER, offset INTEGER, due INTEGER, value BLOB)"
        )

    def close(self) -> None:
        self._database.close()

    def add(self, rows: Sequence[ComparedFrame]) -> None:
        self._database.executemany("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def by_name(self) -> Iterator[tuple[list[ComparedFrame], list[ComparedFrame]]]:
        """Those made and those published under each name, names by window start and key."""
        sides = [self._ordered(published) for published in (0, 1)]
        for _, group in groupby(merge(*sides, key=_name_of), key=_name_of):
            rows = list(group)
            yield [row for row in rows if not row.published], [row for row in rows if row.published]

    def _ordered(self, published: int) -> Iterator[ComparedFrame]:
        query = "SELECT * FROM frames WHERE published = ? ORDER BY start, key, rev, status, partition, offset"
        return map(ComparedFrame._make, self._database.execute(query, (published,)))


def _name_of(row: ComparedFrame) -> tuple[int, bytes, int, str]:
    return row[:4]


def row_of(
    record: OutRecord, partition: int, offset: int, *, published: bool, due: bool = True
) -> ComparedFrame | None:
    """The row of a frame; None for what is none."""
    start_ms, rev, status = frame_name(record.value)
    if start_ms is None or rev is None or status is None or max(abs(start_ms), abs(rev)) >= 2**63:
        return None
    value = record.value or b""
    return ComparedFrame(start_ms, record.key or b"", rev, status, published, partition, offset, due, value)


class Comparison:
    """Compares frames by their names, and writes what it finds into ``result``.

    ``lag`` is by partition of the ticks topic; ``key`` the symbol whose frames were made alone; ``warm_up_ns`` as the
    replay has it. ``frames_begin`` and ``problems_of_state``, by partition, are for whoever learns them to fill in.
    """

    def __init__(
        self,
        settings: Settings,
        spec: LaneSpec,
        layout: TopicLayout,
        lag: Mapping[int, PartitionLag],
        key: bytes | None,
        warm_up_ns: int | None,
        result: ReplayResult,
    ) -> None:
        self._settings, self._spec, self._layout, self._lag = settings, spec, layout, lag
        self._key, self._warm_up_ns, self._result = key, warm_up_ns, result
        self.frames_begin: dict[int, int] = {}
        self.problems_of_state: dict[int, str] = {}

    def compare(self, found: FrameTable) -> None:
        """Go through all names; what is wrong goes into the result."""
        self._result.compared = True
        for made, published in found.by_name():
            if len(made) == len(published) == 1 and made[0].value == published[0].value:
                self._result.identical += 1
            else:
                self._compare_one(made, published)

    def _compare_one(self, made: list[ComparedFrame], published: list[ComparedFrame]) -> None:
        """Frames of one name: more than one where a key is on two partitions, or where frames were repeated."""
        left = list(published)
        unmatched = []
        for row in made:
            twin = next((each for each in left if each.value == row.value), None)
            if twin is None:
                unmatched.append(row)
            else:
                left.remove(twin)
                self._result.identical += 1
        values = {row.value for row in made}
        repeats = [row for row in left if row.value in values]
        others = [row for row in left if row.value not in values]
        for row in repeats:
            self._result.repeated += 1
            if self._settings.processing_guarantee == "exactly_once":
                self._problem("repeated", made[0], row, len(published))
        for row in unmatched:
            if others:
                self._problem("differing", row, others.pop(0), len(published))
            elif row.due:
                self._problem("missing", row, None, len(published))
            else:
                self._result.not_yet += 1
        for row in others:
            # Beside a right one under the same name, a wrong one differs from it; alone, it has no reason to be.
            self._problem("differing" if made else "extra", made[0] if made else None, row, len(published))

    def _problem(self, kind: Kind, made: ComparedFrame | None, published: ComparedFrame | None, copies: int) -> None:
        self._result.different += 1
        if len(self._result.problems) >= PROBLEMS_KEPT:
            return
        row = made or published
        assert row is not None
        expected = made.value if made is not None else None
        found = published.value if published is not None else None
        differing = kind == "differing" and expected is not None and found is not None
        self._result.problems.append(
            FrameProblem(
                kind,
                row.key.decode("utf-8", "backslashreplace"),
                row.start_ms,
                row.rev,
                row.status,
                expected,
                found,
                (made.partition, made.offset) if made is not None else None,
                (published.partition, published.offset) if published is not None else None,
                tuple(differences(expected or b"", found or b"")) if differing else (),
                self._cause(kind, row, made, published, copies),
            )
        )

    def _cause(
        self, kind: Kind, row: ComparedFrame, made: ComparedFrame | None, published: ComparedFrame | None, copies: int
    ) -> str | None:
        home = made.partition if made is not None else partition_for(row.key, self._layout.ticks)
        if home in self.problems_of_state:
            return self.problems_of_state[home]
        if kind == "missing":
            return self._cause_of_absence(row)
        truncated = self._lag[home].begin > 0
        if kind == "repeated":
            return "published before a `workers state reset` and again after it, or written by something else"
        if copies > 1 and kind == "differing":
            return (
                f"published {copies} times, and not always the same: something else wrote to the frames topic, or the "
                "state was reset in between"
            )
        if truncated and (kind == "extra" or _count(published) > _count(made)):
            begin = self._lag[home].begin
            return f"{self._settings.topics.ticks}[{home}] begins at offset {begin:,}: its first ticks were deleted"
        if self._warm_up_ns is not None and (self._spec.pipeline or self._spec.max_jump_ns):
            return "operators, or tick.max_jump, remember more than --warm-up gave them; leave it out"
        if self._warm_up_ns is not None and self._spec.window.merges:
            return "a session may have begun before --warm-up; leave it out"
        if kind == "extra" and self._key is not None:
            return f"only partition {home} was read: the symbol may have ticks on others; run without --symbol"
        if kind == "extra":
            return "no ticks in the log make it: something else wrote it, or it is from before the topic was recreated"
        return "something else wrote to the frames topic, or a worker with other settings did"

    def _cause_of_absence(self, row: ComparedFrame) -> str | None:
        topic = self._settings.topics.frames
        limit = self._layout.max_message_bytes.get(topic)
        if limit is not None and len(row.value) + len(row.key) + _RECORD_OVERHEAD_BYTES > limit:
            return f"at {len(row.value):,} bytes it is too large for {topic} ({limit:,}): it is among the dead letters"
        partition = partition_for(row.key, self._layout.frames)
        if self.frames_begin.get(partition, 0) > 0:
            return f"{topic}[{partition}] begins at offset {self.frames_begin[partition]:,}: older frames were deleted"
        return None


def _count(row: ComparedFrame | None) -> int:
    """Ticks that a frame says it has."""
    found = json_object(row.value).get("count") if row is not None else None
    return found if isinstance(found, int) else 0
