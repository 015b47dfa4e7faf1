"""The metric catalogue: every series this package exports, in one place, typed.

Names follow Prometheus: prefix, unit last, ``_total`` on counters. Two families of names are other people's, for the
dashboards and scalers that know them: ``kafka_consumergroup_*`` as lag exporters write them, and ``pipeline_*``.

``Metrics`` belongs to one process and one registry, so that tests and embedders can have several.

What sums over processes mean: counters with a partition stay after the partition has moved on, because what was counted
was counted, and the new owner counts on from nothing. Gauges with a partition vanish with it (`forget_partition`), or
two workers would both show it. The group's lag is exported by one worker at a time, the owner of partition 0.
"""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from workers.core.reasons import Account

__all__ = ["CatalogueRow", "Metrics", "catalogue"]

_PARTITION: Final = ("topic", "partition")
_GROUP: Final = ("consumergroup", "topic")
_GROUP_PARTITION: Final = (*_GROUP, "partition")
_DURATION_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_RESTORE_BUCKETS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Kind = Literal["counter", "gauge", "histogram"]


class CatalogueRow(NamedTuple):
    """One metric: the name that queries use (a histogram's without its suffixes), what it is, and its labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]


class Metrics:
    """The series of one process.

    What happens to records balances: ``workers_ticks_in_total`` is the sum of the series of `Account`, over all labels.
    ``dropped``: of these the counters of what operators drop, by stage.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.rows: list[CatalogueRow] = []
        self._of_partition: list[Gauge] = []
        self._of_group: list[Gauge] = []
        self._records()
        self._commits()
        self._lanes()
        self._group()
        self._pressure()
        self._process()

    def _records(self) -> None:
        self.ticks_in = self._counter("ticks_in", "Records read from the input topic", _PARTITION)
        self.ticks_aggregated = self._counter("ticks_aggregated", "Ticks that joined a window", _PARTITION)
        self.ticks_late = self._counter("ticks_late", "Late ticks, by reason", (*_PARTITION, "reason"))
        self.ticks_rejected = self._counter(
            "ticks_rejected", "Records that are not valid ticks, by reason", (*_PARTITION, "reason")
        )
        self.ticks_corrected = self._counter(
            "ticks_corrected", "Messages that cancelled or corrected a trade", (*_PARTITION, "kind")
        )
        self.ticks_control = self._counter(
            "ticks_control", "Control records that mark the end of the input", _PARTITION
        )
        by_stage = (*_PARTITION, "stage")
        self.ticks_deduplicated = self._counter("ticks_deduplicated", "Duplicate ticks dropped by a stage", by_stage)
        self.ticks_throttled = self._counter("ticks_throttled", "Ticks dropped by a stage's rate limit", by_stage)
        self.ticks_filtered = self._counter("ticks_filtered", "Ticks dropped by a stage's function", by_stage)
        self.dropped = {
            Account.DEDUPLICATED: self.ticks_deduplicated,
            Account.THROTTLED: self.ticks_throttled,
            Account.FILTERED: self.ticks_filtered,
        }
        self.ticks_routed_away = self._counter("ticks_routed_away", "Ticks sent to another topic", (*_PARTITION, "to"))
        self.ticks_held = self._gauge("ticks_held", "Ticks held back by conflation or tick.max_jump", _PARTITION)
        self.sequence_missing = self._counter("sequence_missing", "Ids missing from sequences", by_stage)
        self.stage_notices = self._counter(
            "stage_notices",
            "What stages noticed: gap, filled (an id that came after a later one), without_id, forgotten_early",
            (*by_stage, "what"),
        )
        self.misrouted_keys = self._counter(
            "misrouted_keys", "Keys that are not on the partition murmur2 gives", _PARTITION
        )
        self.ticks_sent = self._counter("ticks_sent", "Ticks queued for sending", ())
        self.frames = self._counter("frames", "Frames written", (*_PARTITION, "status", "trigger"))
        self.frames_oversized = self._counter("frames_oversized", "Frames too large for their topic", _PARTITION)

    def _commits(self) -> None:
        self.commits = self._counter("commits", "Successful commits", _PARTITION)
        self.commit_failures = self._counter("commit_failures", "Failed commits, by error", (*_PARTITION, "error"))
        self.commit_duration = self._histogram("commit_duration_seconds", "Duration of a commit", _DURATION_BUCKETS)
        self.restore_duration = self._histogram(
            "restore_duration_seconds", "Time to restore a partition's state", _RESTORE_BUCKETS
        )
        self.restored_records = self._counter("restored_records", "Changelog records read to restore state", _PARTITION)
        self.rebalances = self._counter("rebalances", "Rebalances of the group", ())
        self.partitions_owned = self._gauge("partitions_owned", "Partitions owned by this process", ())
        self.partitions_restoring = self._gauge("partitions_restoring", "Owned partitions still being restored", ())

    def _lanes(self) -> None:
        self.lane_depth = self._gauge("lane_depth_records", "Records fetched but not yet processed", _PARTITION)
        self.lane_paused = self._gauge("lane_paused", "1 while fetching is paused because the lane is full", _PARTITION)
        self.lane_pauses = self._counter("lane_pauses", "Times a full lane paused its partition", _PARTITION)
        self.keys = self._gauge("keys", "Keys with state", _PARTITION)
        self.longest_step = self._gauge(
            "longest_step_seconds",
            "Longest time one step has blocked the event loop: process, idle, flush, changes, pack or restore",
            ("step",),
        )
        self.partition_time = self._gauge(
            "partition_time_seconds", "Greatest accepted event time, seconds since the epoch", _PARTITION
        )
        self.watermark_delay = self._gauge(
            "watermark_delay_seconds",
            "How far the partition's watermark (greatest event time minus window.lag) is behind the current time",
            _PARTITION,
        )

    def _group(self) -> None:
        self.group_lag = self._group_gauge("lag", "Records not yet committed by the group", _GROUP_PARTITION)
        self.group_lag_sum = self._group_gauge("lag_sum", "Records not yet committed, all partitions", _GROUP)
        self.group_lag_seconds = self._group_gauge(
            "lag_seconds", "How long the partition's oldest uncommitted record has waited", _GROUP_PARTITION
        )
        self.group_offset = self._group_gauge("current_offset", "The group's committed offset", _GROUP_PARTITION)
        self.group_members = self._group_gauge("members", "Members of the group", ("consumergroup",))
        self.lag = self._gauge("lag_records", "The group's lag in records", ("consumergroup", "topic"))
        self.lag_seconds = self._gauge("lag_seconds", "Longest wait of an uncommitted record", _GROUP)
        self.event_lag_seconds = self._gauge(
            "event_time_lag_seconds", "Event time from the oldest uncommitted record to the newest", _GROUP
        )
        self.drain_seconds = self._gauge(
            "drain_seconds",
            "Time to drain the lag at the current rates of commits and arrivals; +Inf if it does not shrink",
            _GROUP,
        )
        self.group_rate = self._gauge("group_committed_records_per_second", "Rate of commits, smoothed", _GROUP)
        self.arrival_rate = self._gauge("group_arriving_records_per_second", "Rate of arrivals, smoothed", _GROUP)
        self.lost_records = self._gauge(
            "lost_records", "Upper bound of records that retention deleted before they were committed", _GROUP
        )
        self._of_group += [self.lag, self.lag_seconds, self.event_lag_seconds, self.drain_seconds, self.group_rate]
        self._of_group += [self.arrival_rate, self.lost_records]
        self.lag_failures = self._counter("lag_failures", "Failed measurements of the group's lag", ())

    def _pressure(self) -> None:
        provider = ("provider",)
        self.rate_scale = self._named_gauge(
            "pipeline_rate_scale_factor", "Fraction of its full rate that the provider keeps, 0 to 1", provider
        )
        self.backpressure_state = self._named_gauge(
            "pipeline_backpressure_state", "Level the provider obeys: 0 OK, 1 SOFT, 2 HARD", provider
        )
        self.feedback_queue_depth = self._named_gauge(
            "pipeline_feedback_queue_depth", "Queue size last reported by a source of feedback, in records", ("source",)
        )
        self.feedback_bad = self._counter("feedback_bad", "Invalid records in the feedback topic", ())
        self.held_seconds = self._counter(
            "held_seconds", "Time this worker paused reading because the store was behind", ()
        )

    def _process(self) -> None:
        self.build_info = self._gauge(
            "build_info", "Always 1; the versions are in the labels", ("version", "python", "aiokafka")
        )
        self.build_info.labels(_version("tick-workers"), platform.python_version(), _version("aiokafka")).set(1)
        ProcessCollector(registry=self.registry)  # process_cpu_seconds_total, process_resident_memory_bytes, ...

    # -- changing several at once -------------------------------------------------------------------------------------

    def forget_partition(self, topic: str, partition: int) -> None:
        """Drop the gauges of a partition that this process no longer owns."""
        for gauge in self._of_partition:
            with contextlib.suppress(KeyError):
                gauge.remove(topic, str(partition))

    def forget_lag(self) -> None:
        """Drop the group's series: another process exports them now, or nobody knows them."""
        for gauge in self._of_group:
            gauge.clear()

    def show_pressure(self, provider: str, level: int, scale: float) -> None:
        """Export what a provider (``producer``, ``worker``, ``group``) does about backpressure; ``level``: 0 OK, 1
        SOFT, 2 HARD."""
        self.backpressure_state.labels(provider).set(level)
        self.rate_scale.labels(provider).set(scale)

    # -- making -------------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        self.rows.append(CatalogueRow(f"workers_{name}_total", "counter", text, labels))
        return Counter(f"workers_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        gauge = self._named_gauge(f"workers_{name}", text, labels)
        if labels == _PARTITION:
            self._of_partition.append(gauge)
        return gauge

    def _group_gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        gauge = self._named_gauge(f"kafka_consumergroup_{name}", text, labels)
        self._of_group.append(gauge)
        return gauge

    def _named_gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        self.rows.append(CatalogueRow(name, "gauge", text, labels))
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        self.rows.append(CatalogueRow(f"workers_{name}", "histogram", text, ()))
        return Histogram(f"workers_{name}", text, registry=self.registry, buckets=buckets)


def catalogue() -> list[CatalogueRow]:
    """Every metric of this package, in the order of the code; those of the process itself are not among them."""
    return Metrics().rows


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a copy of the source
        return "unknown"
