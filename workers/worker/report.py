"""What a worker logs and counts of its partitions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from workers.core.effects import Effects, SequenceGap
from workers.core.lane import Lane
from workers.core.packed import oldest_ms
from workers.kafka.errors import is_forgotten
from workers.telemetry.metrics import Metrics
from workers.telemetry.spared import Spared
from workers.worker.all_rejected import FailureWatch, RejectionWatch
from workers.worker.committer import CommitUnderWay
from workers.worker.trouble import words

__all__ = ["PartitionReport", "WorkerReport"]

log = structlog.get_logger(__name__)

GAPS_LOGGED_AT_ONCE: Final = 5  # of one batch; all are counted


class WorkerReport:
    """What is said of all partitions together: steps that hold the event loop, and a retention that is too short."""

    def __init__(self, metrics: Metrics, *, ticks: str, frames: str, dead_letters: str) -> None:
        """The names are those of the topics."""
        self.metrics = metrics
        self.ticks = ticks
        self.dead_letters = dead_letters
        self._frames = frames
        self.opening_failures = Spared()
        self._longest_s: dict[str, float] = {}
        self._warned_of_retention = False

    def note_step(self, step: str, began_s: float) -> float:
        """Seconds since ``began_s`` of the performance counter, in which nothing else could run; exported if it is the
        longest of its kind."""
        took_s = time.perf_counter() - began_s
        if took_s > self._longest_s.get(step, 0.0):
            self._longest_s[step] = took_s
            self.metrics.longest_step.labels(step).set(took_s)
        return took_s

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Around the opening of a partition."""
        self.metrics.partitions_restoring.inc()
        try:
            yield
        finally:
            self.metrics.partitions_restoring.dec()

    def warn_of_short_retention(self, effects: Effects, keeps_ms: int | None) -> None:
        """Say once that the frames topic deletes frames this old: it goes by their timestamps, the windows' ends."""
        if self._warned_of_retention or keeps_ms is None or keeps_ms < 0 or not effects.frames:
            return
        end_ms = oldest_ms(effects.frames) or 0
        if end_ms < time.time() * 1000 - keeps_ms:
            self._warned_of_retention = True
            log.warning(
                "the frames topic's retention deletes frames as old as these; set its retention.ms to -1",
                topic=self._frames,
                retention_ms=keeps_ms,
                window_end_ms=end_ms,
            )


class PartitionReport:
    """What is said of one partition."""

    def __init__(self, number: int, worker: WorkerReport) -> None:
        self._number = number
        self._worker = worker
        self._metrics = worker.metrics
        self._labels = (worker.ticks, str(number))
        self._rejections = RejectionWatch()
        self._failures = FailureWatch()

    # -- life ---------------------------------------------------------------------------------------------------------

    def restored(self, records: int) -> None:
        """So many records of the changelog were read."""
        self._metrics.restored_records.labels(*self._labels).inc(records)

    def opened(self, lane: Lane, seconds: float) -> None:
        """The partition is ready."""
        self._metrics.restore_duration.observe(seconds)
        log.info(
            "partition ready",
            partition=self._number,
            offset=lane.position,
            keys=lane.key_count,
            seconds=round(seconds, 3),
        )

    def opening_failed(self, why: str, retry_in_s: float) -> None:
        """It will be tried again. Said once in ten seconds of all partitions together, where they fail alike."""
        left_out = self._worker.opening_failures.note(why)
        if left_out is None:
            return
        log.warning(
            "can't open the partition; retrying",
            partition=self._number,
            error=why,
            retry_in_s=round(retry_in_s, 1),
            **({"and_more_like_it": left_out} if left_out else {}),
        )

    def paused(self) -> None:
        """The backlog reached the high watermark."""
        self._metrics.lane_pauses.labels(*self._labels).inc()

    # -- records ------------------------------------------------------------------------------------------------------

    def processed(self, effects: Effects) -> None:
        """Log what somebody should look at."""
        for key in effects.misrouted_keys:
            log.warning("key is not on the partition murmur2 gives", key=key[:80], partition=self._number)
        self._log_gaps(effects.gaps)
        for failure, others in self._failures.note(effects, time.monotonic()):
            log.error(
                "failed to process a record, which is a bug; the record is in the dead letters",
                partition=self._number,
                offset=failure.offset,
                error=failure.error,
                others=others,
                traceback=failure.traceback,
            )
        useless = self._rejections.note(effects, time.monotonic())
        if useless is not None:
            log.warning(
                useless.text,
                partition=self._number,
                look="workers tail dead-letters",
                dead_letters=self._worker.dead_letters,
            )

    def _log_gaps(self, gaps: Sequence[SequenceGap]) -> None:
        for gap in gaps[:GAPS_LOGGED_AT_ONCE]:
            log.warning(
                "ids are missing",
                symbol=gap.symbol[:80],
                first=gap.first,
                last=gap.last,
                missing=gap.missing,
                before_offset=gap.offset,
                partition=self._number,
                stage=gap.stage,
            )
        if len(gaps) > GAPS_LOGGED_AT_ONCE:
            log.warning("more ids are missing", gaps=len(gaps) - GAPS_LOGGED_AT_ONCE, partition=self._number)

    # -- commits ------------------------------------------------------------------------------------------------------

    def commit_failed(self, error: BaseException, retry_in_s: float) -> None:
        """The partition will be restored."""
        if is_forgotten(error):
            log.info("the cluster has forgotten a producer that was idle for long; restoring", partition=self._number)
            return
        log.warning(
            "commit failed; restoring the partition",
            partition=self._number,
            error=words(error),
            retry_in_s=round(retry_in_s, 1),
        )
        self._metrics.commit_failures.labels(*self._labels, type(error).__name__).inc()

    def committed(self, commit: CommitUnderWay, lane: Lane | None, seconds: float) -> None:
        """Count what is visible now; ``lane`` is None where the partition was given up meanwhile."""
        metrics, labels, effects = self._metrics, self._labels, commit.effects
        metrics.commits.labels(*labels).inc()
        metrics.commit_duration.observe(seconds)
        metrics.ticks_in.labels(*labels).inc(effects.records)
        metrics.ticks_aggregated.labels(*labels).inc(effects.aggregated)
        metrics.ticks_control.labels(*labels).inc(effects.control)
        metrics.frames_oversized.labels(*labels).inc(commit.oversized)
        metrics.misrouted_keys.labels(*labels).inc(len(effects.misrouted_keys))
        for reason, number in effects.late_by_reason.items():
            metrics.ticks_late.labels(*labels, reason).inc(number)
        for kind, number in effects.corrected.items():
            metrics.ticks_corrected.labels(*labels, kind).inc(number)
        for reason, number in effects.rejected.items():
            metrics.ticks_rejected.labels(*labels, reason).inc(number)
        for (status, trigger), number in effects.emitted.items():
            metrics.frames.labels(*labels, status, trigger).inc(number)
        self._count_operators(effects)
        if lane is not None:
            metrics.keys.labels(*labels).set(lane.key_count)
            metrics.ticks_held.labels(*labels).set(lane.counts.held)
            if lane.partition_max_ns is not None:
                metrics.partition_time.labels(*labels).set(lane.partition_max_ns / 1e9)

    def _count_operators(self, effects: Effects) -> None:
        metrics, labels = self._metrics, self._labels
        for (reason, stage), number in effects.taken_out.items():
            assert reason.account is not None, "what operators drop are ticks"
            metrics.dropped[reason.account].labels(*labels, stage).inc(number)
        for name, records in effects.routed.items():
            metrics.ticks_routed_away.labels(*labels, name).inc(len(records))
        for gap in effects.gaps:
            metrics.sequence_missing.labels(*labels, gap.stage).inc(gap.missing)
        for (what, stage), number in effects.noticed.items():
            metrics.stage_notices.labels(*labels, stage, what).inc(number)
