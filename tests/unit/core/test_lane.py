"""The lane against the oracle, which was written apart from it: any log, any settings, any batches, any crashes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.strategies import Case, configs, cuts, streams
from workers.core.effects import Effects
from workers.core.frames import OutRecord
from workers.core.lane import Input, Lane, entries_of
from workers.core.ledger import REASON_HEADER
from workers.core.spec import LaneSpec
from workers.core.ticks import TickFormat
from workers.core.windows.kinds import TumblingWindows

TOPIC = "ticks"


@dataclass(frozen=True)
class KafkaRecord:
    """A record as aiokafka hands it out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def spec_of(config: oracle.Config, *, emit_partial: bool = False) -> LaneSpec:
    symbol, ts, price, size = config.fields
    return LaneSpec(
        TickFormat(
            *(symbol, ts, price, size, config.unit, config.max_future_skew_ns, config.on_misrouted, config.min_time_ns)
        ),
        window=TumblingWindows(config.size_ns),
        lag_ns=config.lag_ns,
        lateness_ns=config.allowed_lateness_ns,
        idle_after_ns=config.size_ns,
        key_ttl_ns=None if config.key_ttl_ns == oracle.NEVER_NS else config.key_ttl_ns,
        emit=config.emit,
        emit_partial=emit_partial,
        payload=config.payload,
        scope=config.watermark_scope,
    )


def lane_of(config: oracle.Config, *, emit_partial: bool = False) -> Lane:
    # An oracle that doesn't check routes stands for a topic of one partition, where every key is at home.
    return Lane(spec_of(config, emit_partial=emit_partial), Input(TOPIC, 0, config.partitions or 1))


def kafka_records(records: Sequence[oracle.Record]) -> list[KafkaRecord]:
    return [
        KafkaRecord(record.offset, record.timestamp_ms, record.key, record.value, record.headers) for record in records
    ]


def real_frames(frames: Sequence[OutRecord]) -> dict[str, list[bytes]]:
    """The wire bytes of the non-provisional frames per key, in order."""
    sequences: dict[str, list[bytes]] = {}
    for frame in frames:
        assert frame.value is not None
        shown = orjson.loads(frame.value)
        if shown["status"] != "provisional":
            sequences.setdefault(shown["key"], []).append(frame.value)
    return sequences


def late_entries(records: Sequence[OutRecord]) -> list[tuple[object, ...]]:
    entries = [orjson.loads(record.value or b"") for record in records]
    return [
        (entry["offset"], entry["key"], entry["reason"], entry["watermark_ns"], entry["late_by_ns"])
        for entry in entries
    ]


def reasons(records: Sequence[OutRecord]) -> list[tuple[int, str]]:
    headers = [dict(record.headers) for record in records]
    return [(int(each["__streams.errors.offset"]), each[REASON_HEADER].decode()) for each in headers]


lane_configs = configs(all_late=False, min_times=True)
cases = lane_configs.flatmap(lambda config: streams(config).map(lambda records: Case(config, records)))


@given(cases)
def test_lane_gives_what_the_oracle_gives(case: Case) -> None:
    expected = oracle.run(case.config, case.records)
    lane = lane_of(case.config)
    effects = lane.process(kafka_records(case.records))
    assert real_frames(effects.frames) == expected.wire()
    assert late_entries(effects.late) == [
        (late.offset, late.key, late.reason, late.watermark_ns, late.late_by_ns) for late in expected.late
    ]
    assert reasons(effects.dead_letters) == [(bad.offset, bad.reason) for bad in expected.rejected]
    assert lane.counts.records == expected.ticks_in == len(case.records)
    assert (lane.counts.aggregated, lane.counts.late) == (expected.aggregated, len(expected.late))
    assert lane.counts.balance() == 0


def run_through(
    lane: Lane, again: Callable[[], Lane], records: Sequence[KafkaRecord], longest_silence_ns: int, data: st.DataObject
) -> tuple[Lane, Effects]:
    """Cut the log anywhere; at each cut let time pass, flush, commit, or crash: go on with ``again()``, restored from
    the changelog. What came out in all, and the lane at the end."""
    found, changelog = Effects(), list[OutRecord]()
    for begin, end in itertools.pairwise([0, *data.draw(cuts(len(records)), "cuts"), len(records)]):
        found.extend(lane.process(records[begin:end]))
        match data.draw(st.sampled_from(["nothing", "silence", "flush", "commit", "crash"]), "then"):
            case "silence":
                found.extend(lane.idle(data.draw(st.integers(0, longest_silence_ns), "silence_ns")))
            case "flush":
                found.extend(lane.flush_partial())
            case "commit":
                changelog += lane.take_changes()
            case "crash":
                changelog += lane.take_changes()
                position, counts = lane.position, lane.counts
                lane = again()
                assert lane.restore(entries_of(changelog), where="test") is not None
                assert (lane.position, lane.counts) == (position, counts)
                kept = [key for key in entries_of(changelog) if key[:1] == b"w"]
                assert len(kept) == len(list(lane._engine.windows()))
    return lane, found


@given(cases, st.data())
def test_batches_crashes_clocks_and_flushes_change_no_frame(case: Case, data: st.DataObject) -> None:
    lane = lane_of(case.config, emit_partial=data.draw(st.booleans(), "emit_partial"))
    records = kafka_records(case.records)
    _, found = run_through(lane, lambda: lane_of(case.config), records, 10 * case.config.size_ns, data)
    assert real_frames(found.frames) == oracle.run(case.config, case.records).wire()


# Windows under a millisecond share their names on the wire, where start and end are milliseconds.
named_cases = cases.filter(lambda case: case.config.size_ns >= 1_000_000)


@given(named_cases, st.data())
def test_provisional_frames_carry_the_next_rev_and_show_what_is_there(case: Case, data: st.DataObject) -> None:
    records = kafka_records(case.records)
    lane = lane_of(case.config, emit_partial=True)
    frames: list[OutRecord] = []
    for record in records:
        frames += lane.process([record]).frames
        if data.draw(st.booleans()):
            frames += lane.idle(data.draw(st.integers(0, 10 * case.config.size_ns), "silence_ns")).frames
            frames += lane.flush_partial().frames
    revs: dict[tuple[str, int], int] = {}
    counts: dict[tuple[str, int], int] = {}
    for frame in frames:
        shown = orjson.loads(frame.value or b"")
        name = (shown["key"], shown["start"], shown["end"])
        assert shown["rev"] == revs.get(name, 0)
        assert shown["count"] >= counts.get(name, 0)
        counts[name] = shown["count"]
        if shown["status"] == "provisional":
            assert case.config.emit == "eager"
            assert shown["trigger"] in ("idle", "timeout", "partial")
        else:
            revs[name] = shown["rev"] + 1


@given(cases)
def test_changelog_without_windows_has_only_the_meta_record(case: Case) -> None:
    """Everything that was stored is deleted again when it is gone: the changelog does not grow with time."""
    lane = lane_of(case.config)
    changelog: list[OutRecord] = []
    for record in kafka_records(case.records):
        lane.process([record])
        changelog += lane.take_changes()
    kept = sum(1 for key in entries_of(changelog) if key[:1] == b"w")
    again = lane_of(case.config)
    again.restore(entries_of(changelog), where="test")
    assert kept == len(list(lane._engine.windows()))
    assert again.key_count <= lane.key_count
