"""The metric catalogue: every series this package exports, in one place, typed.

Names follow Prometheus: prefix, unit last, ``_total`` on counters. ``Metrics`` belongs to one process and one registry,
so that tests and embedders can have several.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics"]

_PARTITION = ("topic", "partition")
_DURATION_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The series of one process. What happens to records balances:

    ``workers_ticks_in_total`` is the sum of ``workers_ticks_aggregated_total``, ``workers_ticks_late_total`` and
    ``workers_ticks_rejected_total`` (and of what operators took out), over partitions and reasons.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.ticks_in = self._counter("ticks_in", "Records read from the input topic", _PARTITION)
        self.ticks_aggregated = self._counter("ticks_aggregated", "Ticks that joined a window", _PARTITION)
        self.ticks_late = self._counter("ticks_late", "Ticks that joined none, by why", (*_PARTITION, "reason"))
        self.ticks_rejected = self._counter(
            "ticks_rejected", "Records that are no tick", (*_PARTITION, "reason")
        )
        self.misrouted_keys = self._counter(
            "misrouted_keys", "Keys where murmur2 would not put them", _PARTITION
        )
        self.frames = self._counter("frames", "Frames written", (*_PARTITION, "status", "trigger"))
        self.frames_oversized = self._counter("frames_oversized", "Frames too large for their topic", _PARTITION)
        self.commits = self._counter("commits", "Commits that succeeded", _PARTITION)
        self.commit_failures = self._counter("commit_failures", "Commits that failed", (*_PARTITION, "error"))
        self.commit_duration = self._histogram("commit_duration_seconds", "Time of a commit")
        self.restore_duration = self._histogram("restore_duration_seconds", "Time to restore a partition's state")
        self.restored_records = self._counter("restored_records", "Changelog records read back", _PARTITION)
        self.rebalances = self._counter("rebalances", "Rebalances of the group seen", ())
        self.partitions_owned = self._gauge("partitions_owned", "Partitions this process owns", ())
        self.partitions_restoring = self._gauge("partitions_restoring", "Owned partitions still being restored", ())
        self.lane_depth = self._gauge("lane_depth_records", "Records fetched and not yet processed", _PARTITION)
        self.lane_paused = self._gauge("lane_paused", "1 while fetching is paused for a full lane", _PARTITION)
        self.lane_pauses = self._counter("lane_pauses", "Times that a full lane paused its partition", _PARTITION)
        self.keys = self._gauge("keys", "Keys with state", _PARTITION)
        self.partition_time = self._gauge(
            "partition_time_seconds", "Greatest accepted event time, seconds since the epoch", _PARTITION
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"workers_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"workers_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"workers_{name}", text, registry=self.registry, buckets=_DURATION_BUCKETS)
