"""The store writer's series; they may share a registry with those of `workers.telemetry.metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["StoreMetrics"]

_PARTITION = ("topic", "partition")
_DURATION_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class StoreMetrics:
    """The series of one store process. ``read`` = ``stored`` + ``rejected`` + ``control`` + what is still queued or was
    given up to be read again, by this process or another."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.read = self._counter("records_read", "Records read from the frames topic", _PARTITION)
        self.stored = self._counter("frames", "Frames stored, repeats included", _PARTITION)
        self.rejected = self._counter(
            "frames_rejected", "Records that are not valid frames, kept in rejected_frames", (*_PARTITION, "reason")
        )
        self.control = self._counter(
            "control_records", "Control records that mark the end of another application's input", _PARTITION
        )
        self.stale = self._counter("stale_offsets", "Times another writer had moved a partition's offset", ())
        self.outages = self._counter("outages", "Times the database became unavailable", ())
        self.up = self._gauge("up", "1 while the database is usable", ())
        self.depth = self._gauge("queue_depth_records", "Records read but not yet stored", ())
        self.depth_bytes = self._gauge("queue_depth_bytes", "Bytes of keys and values read but not yet stored", ())
        self.capacity = self._gauge("queue_capacity_records", "Capacity of the queue, in records", ())
        self.level = self._gauge("queue_level", "Level of the queue: 0 OK, 1 SOFT, 2 HARD", ())
        self.pauses = self._counter("pauses", "Times a full queue paused reading", ())
        self.partitions_owned = self._gauge("partitions_owned", "Partitions owned by this process", ())
        self.flush_duration = Histogram(
            "workers_store_transaction_seconds",
            "Duration of a transaction",
            registry=self.registry,
            buckets=_DURATION_BUCKETS,
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"workers_store_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"workers_store_{name}", text, labels, registry=self.registry)
