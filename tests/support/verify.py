"""The independent verifier: reads topics, and nothing else, and says whether they hold what the oracle demands.

It shares no code with the package: its reader is `confluent_kafka`-free too, an aiokafka consumer of its own, and what
must be there comes from `tests.support.oracle`, or from another `Model` of what one application makes of its input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.support import oracle

__all__ = ["Expected", "Findings", "Model", "Topics", "end_offsets", "read_headers", "read_topic", "straight", "verify"]

READ_LIMIT_S = 60.0
OVERSIZED_MARGIN_BYTES = 1_200  # of a batch's and record's own, key and headers included


@dataclass(frozen=True)
class Topics:
    """The topics of one application."""

    ticks: str
    frames: str
    late: str
    dead_letters: str
    changelog: str


Place = tuple[object, ...]
"""(partition, offset, reason), and for what was judged by a watermark also that and by how much, in nanoseconds."""


@dataclass
class Expected:
    """What the topics of an application must hold.

    ``frames``: the non-provisional ones by key. ``late`` and ``rejected``: entries of the ledger and dead letters.
    ``routed``: by topic and key. ``counts``: of each partition that has records, how many became what, by the names in
    the changelog, ``records`` being the sum of the others; those of 0 may be left out.
    """

    frames: dict[str, list[bytes]] = field(default_factory=dict)
    late: list[Place] = field(default_factory=list)
    rejected: list[Place] = field(default_factory=list)
    routed: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, partition: int, outcome: oracle.Outcome, **more: int) -> None:
        """What a partition's windows must give. ``more`` are counts of records that are not of it."""
        for key, frames in outcome.wire().items():
            self.frames.setdefault(key, []).extend(frames)
        self.late += [(partition, e.offset, e.reason, e.watermark_ns, e.late_by_ns) for e in outcome.late]
        self.rejected += [(partition, e.offset, e.reason) for e in outcome.rejected]
        found = {"aggregated": outcome.aggregated, "late": len(outcome.late), "rejected": len(outcome.rejected)}
        found["control"] = outcome.control
        for name, number in more.items():
            found[name] = found.get(name, 0) + number
        self.counts[partition] = {"records": sum(found.values()), **found}


Model = Callable[[Mapping[int, Sequence[oracle.Record]]], Expected]
"""What an application must make of the partitions of its input."""


def straight(config: oracle.Config) -> Model:
    """Ticks that go straight into the windows of `tests.support.oracle`."""

    def model(ticks: Mapping[int, Sequence[oracle.Record]]) -> Expected:
        expected = Expected()
        for partition, records in sorted(ticks.items()):
            expected.add(partition, oracle.run(config, records, partition=partition))
        return expected

    return model


@dataclass
class Findings:
    """What is wrong, in sentences; empty when nothing is."""

    problems: list[str] = field(default_factory=list)
    frames: int = 0
    triggers: dict[str, int] = field(default_factory=dict)
    filled: int = 0
    late: int = 0
    late_by_reason: dict[str, int] = field(default_factory=dict)
    routed: int = 0
    rejected: int = 0
    ticks: int = 0
    repeated: int = 0
    oversized: int = 0

    def __bool__(self) -> bool:
        return bool(self.problems)

    def __str__(self) -> str:
        shown = "\n".join(self.problems[:20])
        more = f"\n... and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        return f"{len(self.problems)} problems\n{shown}{more}"


async def read_topic(
    bootstrap: str, topic: str, *, isolation_level: str = "read_committed"
) -> dict[int, list[oracle.Record]]:
    """Every record that the topic holds now, by partition; headers are in `read_headers`."""
    records = await _read(bootstrap, topic, isolation_level)
    return {
        partition: [
            oracle.Record(each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in found
        ]
        for partition, found in records.items()
    }


async def read_headers(bootstrap: str, topic: str) -> dict[int, list[dict[str, bytes | None]]]:
    """The headers of every record that the topic holds now, by partition."""
    records = await _read(bootstrap, topic)
    return {partition: [dict(each.headers) for each in found] for partition, found in records.items()}  # type: ignore[attr-defined]


async def _read(bootstrap: str, topic: str, isolation_level: str = "read_committed") -> dict[int, list[object]]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        isolation_level=isolation_level,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        await consumer._client.add_topic(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        assert partitions, f"no topic {topic}"
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        records: dict[int, list[object]] = {tp.partition: [] for tp in partitions}
        limit_s = time.monotonic() + READ_LIMIT_S
        left = set(partitions)
        while left:
            for tp, chunk in (await consumer.getmany(*left, timeout_ms=200, max_records=10_000)).items():
                records[tp.partition] += chunk
            left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
            assert time.monotonic() < limit_s, f"{topic}: not read within {READ_LIMIT_S} s, left {left}"
        return records
    finally:
        await consumer.stop()


async def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """The end of each partition's committed log."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    await consumer.start()
    try:
        await consumer._client.add_topic(topic)
        tps = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        return {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}
    finally:
        await consumer.stop()


async def verify(
    bootstrap: str,
    topics: Topics,
    model: Model | oracle.Config,
    *,
    exactly_once: bool = True,
    largest_frame_bytes: int | None = None,
) -> Findings:
    """Compare what the topics hold with what the model makes of the ticks topic; a configuration is `straight`.

    Exactly once: per key the very sequence. At least once: the same, once repeats (which must be byte-identical and
    start at a frame already seen) are taken out.

    ``largest_frame_bytes`` is what the frames topic takes: larger frames must be dead letters, without their items, and
    nothing else may be; frames within `OVERSIZED_MARGIN_BYTES` of it may be either, for a batch has a frame of its own.
    Without it no frame may be found too large.
    """
    ticks = await read_topic(bootstrap, topics.ticks)
    expected = (straight(model) if isinstance(model, oracle.Config) else model)(ticks)
    findings = Findings(ticks=sum(map(len, ticks.values())))
    wanted = expected.frames
    await _check_oversized(findings, wanted, bootstrap, topics.dead_letters, largest_frame_bytes, exactly_once)
    _check_frames(findings, wanted, await read_topic(bootstrap, topics.frames), exactly_once)
    await _check_late(findings, expected, bootstrap, topics.late, exactly_once)
    await _check_dead_letters(findings, expected, bootstrap, topics.dead_letters, exactly_once)
    for topic, sequences in expected.routed.items():
        _check_routed(findings, topic, sequences, await read_topic(bootstrap, topic), exactly_once)
    _check_counts(findings, expected, ticks, await read_topic(bootstrap, topics.changelog))
    return findings


def _check_frames(
    findings: Findings,
    expected: Mapping[str, list[bytes]],
    frames: Mapping[int, Sequence[oracle.Record]],
    exactly_once: bool,
) -> None:
    found: dict[str, list[bytes]] = {}
    partitions_of: dict[str, set[int]] = {}
    for partition, records in frames.items():
        for record in records:
            assert record.value is not None
            frame = orjson.loads(record.value)
            if frame["key"].encode() != (record.key or b""):
                findings.problems.append(f"frames[{partition}] offset {record.offset}: key is not the frame's")
            partitions_of.setdefault(frame["key"], set()).add(partition)
            if frame["status"] != "provisional":
                found.setdefault(frame["key"], []).append(record.value)
                findings.triggers[frame["trigger"]] = findings.triggers.get(frame["trigger"], 0) + 1
                findings.filled += "filled" in frame
    findings.frames = sum(map(len, found.values()))
    findings.problems += [f"{key!r} is on partitions {on}" for key, on in partitions_of.items() if len(on) > 1]
    for key in sorted(expected.keys() | found.keys()):
        sequence = found.get(key, [])
        if not exactly_once:
            distinct = list(dict.fromkeys(sequence))
            findings.repeated += len(sequence) - len(distinct)
            sequence = distinct
        if sequence != expected.get(key, []):
            findings.problems.append(_difference(key, expected.get(key, []), sequence))


async def _check_oversized(
    findings: Findings,
    wanted: dict[str, list[bytes]],
    bootstrap: str,
    topic: str,
    limit_bytes: int | None,
    exactly_once: bool,
) -> None:
    """Frames among the dead letters: each must be one that was due and too large; it is then no longer wanted."""
    found: list[bytes] = []
    for records in (await _read(bootstrap, topic)).values():
        reasons = [dict(record.headers)["workers.reason"] for record in records]  # type: ignore[attr-defined]
        found += [
            record.value  # type: ignore[attr-defined]
            for record, reason in zip(records, reasons, strict=True)
            if reason == b"frame_too_large"
        ]
    if not exactly_once:
        findings.repeated += len(found) - len(set(found))
        found = list(dict.fromkeys(found))
    findings.oversized = len(found)
    due = {_without_items(frame): (key, frame) for key, frames in wanted.items() for frame in frames}
    for value in found:
        key, frame = due.pop(value, (None, b""))
        if key is None:
            findings.problems.append(f"a frame too large that was not due, or twice: {value[:200]!r}")
        elif limit_bytes is None or len(frame) <= limit_bytes - OVERSIZED_MARGIN_BYTES:
            findings.problems.append(f"a frame of {len(frame)} bytes is a dead letter; the limit is {limit_bytes}")
        else:
            wanted[key].remove(frame)


def _without_items(frame: bytes) -> bytes:
    fields = orjson.loads(frame)
    fields.pop("items", None)
    return orjson.dumps(fields)


def _difference(key: str, expected: list[bytes], found: list[bytes]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    want = expected[at].decode() if at < len(expected) else "nothing more"
    have = found[at].decode() if at < len(found) else "nothing more"
    return f"{key!r}: {len(found)} frames for {len(expected)}; frame {at}\n  expected {want}\n  found    {have}"


async def _check_late(findings: Findings, expected: Expected, bootstrap: str, topic: str, exactly_once: bool) -> None:
    records = [record for found in (await read_topic(bootstrap, topic)).values() for record in found]
    findings.late = len(records)
    known = {place[:2]: len(place) for place in expected.late}  # of what no watermark judged, none need be told
    found: list[Place] = []
    for record in records:
        entry = orjson.loads(record.value or b"")
        findings.late_by_reason[entry["reason"]] = findings.late_by_reason.get(entry["reason"], 0) + 1
        place: Place = tuple(
            entry.get(name) for name in ("partition", "offset", "reason", "watermark_ns", "late_by_ns")
        )
        found.append(place[: known.get(place[:2], len(place))])
    _compare(findings, "late", _in_order(expected.late), _in_order(found), exactly_once)


def _in_order(places: Sequence[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place[:3])


async def _check_dead_letters(
    findings: Findings, expected: Expected, bootstrap: str, topic: str, exactly_once: bool
) -> None:
    found: list[Place] = []
    for records in (await _read(bootstrap, topic)).values():
        for record in records:
            headers = dict(record.headers)  # type: ignore[attr-defined]
            if headers["workers.reason"] == b"frame_too_large":
                continue
            partition, offset = (int(headers[f"__streams.errors.{name}"]) for name in ("partition", "offset"))
            found.append((partition, offset, headers["workers.reason"].decode()))
    findings.rejected = len(found)
    _compare(findings, "dead letters", _in_order(expected.rejected), _in_order(found), exactly_once)


def _check_routed(
    findings: Findings,
    topic: str,
    expected: Mapping[str, Sequence[bytes]],
    records: Mapping[int, Sequence[oracle.Record]],
    exactly_once: bool,
) -> None:
    """What was sent to another topic: each key's records as they came, in order, on one partition."""
    found: dict[str, list[bytes]] = {}
    for partition, sent in records.items():
        for record in sent:
            key = (record.key or b"").decode()
            found.setdefault(key, []).append(record.value or b"")
            if oracle.partition_of(key.encode(), len(records)) != partition:
                findings.problems.append(f"{topic}[{partition}] offset {record.offset}: {key!r} does not belong here")
    findings.routed += sum(map(len, found.values()))
    for key in sorted(expected.keys() | found.keys()):
        wanted, sequence = list(expected.get(key, [])), found.get(key, [])
        if not exactly_once:
            wanted, sequence = list(dict.fromkeys(wanted)), list(dict.fromkeys(sequence))
        if sequence != wanted:
            findings.problems.append(f"{topic}: {_difference(key, wanted, sequence)}")


def _compare(
    findings: Findings, what: str, wanted: Sequence[object], found: Sequence[object], exactly_once: bool
) -> None:
    if not exactly_once:
        found = list(dict.fromkeys(found))
    if list(found) == list(wanted):
        return
    missing = [each for each in wanted if each not in set(found)]
    extra = [each for each in found if each not in set(wanted)]
    findings.problems.append(
        f"{what}: {len(found)} for {len(wanted)}; missing {missing[:5]}, not wanted {extra[:5]}, "
        f"repeated {len(found) - len(set(found))}"
    )


def _check_counts(
    findings: Findings,
    expected: Expected,
    ticks: Mapping[int, Sequence[oracle.Record]],
    changelog: Mapping[int, Sequence[oracle.Record]],
) -> None:
    """The conservation sum of each partition, as its state counts it."""
    for partition, records in ticks.items():
        metas = [record.value for record in changelog.get(partition, ()) if record.key == b"m"]
        counts: dict[str, int] = orjson.loads(metas[-1] or b"")["counts"] if metas else {}
        found = {name: number for name, number in counts.items() if number}
        wanted = {name: number for name, number in expected.counts.get(partition, {}).items() if number}
        if found != wanted:
            findings.problems.append(f"counts of partition {partition}: expected {wanted}, found {found}")
        if counts.get("records", 0) != sum(number for name, number in counts.items() if name != "records"):
            findings.problems.append(f"conservation in partition {partition}: {counts}")
        if counts.get("records", 0) != len(records):
            findings.problems.append(f"partition {partition} has {len(records)} records, not {counts.get('records')}")
