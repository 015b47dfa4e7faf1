"""The sections ``[lane]``, ``[backpressure]``, ``[store]``, ``[metrics]`` and ``[logging]``: how a process runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from workers.settings.section import Section
from workers.settings.values import DurationNs, Portion, Scale, Secret, allowed
from workers.times import NS_PER_MS, NS_PER_SECOND

__all__ = ["METRICS_OFF", "BackpressureSettings", "LaneSettings", "LoggingSettings", "MetricsSettings", "StoreSettings"]

METRICS_OFF: Final = -1
"""The value of ``metrics.port`` that means no metrics endpoint; users write ``off``."""


def _port(value: object) -> object:
    return METRICS_OFF if value == "off" else value


class LaneSettings(Section):
    """Bounds of one partition's queue inside a worker."""

    capacity: int = Field(
        default=50_000, ge=1, le=100_000_000, description="Fetched but unprocessed records that one partition may hold."
    )
    capacity_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=65_536,
        le=2**40,
        description="The same limit in bytes, as they were fetched (compressed); whichever is reached first.",
    )
    high_watermark: Portion = Field(
        default=0.75, description="Fraction of `capacity`, or of `capacity_bytes`, at which the partition is paused."
    )
    low_watermark: Portion = Field(default=0.25, description="Fraction of both at which it is resumed.")
    batch_size: int = Field(
        default=5_000,
        ge=1,
        le=100_000_000,
        description="Most records processed in one step; bounds how long the event loop is blocked.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1_024,
        description="Threads for native lanes, which compute different partitions side by side; 0: one a core.",
    )


class BackpressureSettings(Section):
    """When and how much producers are slowed down; lags are in records, summed over the group's partitions."""

    enabled: bool = Field(
        default=True, description="Publish the group's level to producers; false: only measure its lag."
    )
    soft_lag: int = Field(default=100_000, ge=1, description="Lag in records at which the level becomes SOFT.")
    hard_lag: int = Field(default=1_000_000, ge=1, description="Lag in records at which the level becomes HARD.")
    release: Portion = Field(
        default=0.5,
        description="A level is left once the lag is at most this fraction of its threshold, so it can't flap.",
    )
    min_dwell: DurationNs = Field(default=5 * NS_PER_SECOND, description="Minimum time at a level before it drops.")
    poll_interval: DurationNs = Field(
        default=NS_PER_SECOND, ge=100 * NS_PER_MS, description="How often the lag is measured."
    )
    rate_scale_soft: Scale = Field(default=0.5, description="Fraction of their rate that producers keep at SOFT.")
    rate_scale_hard: Scale = Field(
        default=0.0, description="Fraction of their rate that producers keep at HARD; 0 stops them."
    )


class StoreSettings(Section):
    """Where `workers store` keeps frames, and the bounds of its queue."""

    sqlite: str = Field(
        default="frames.db",
        min_length=1,
        description="SQLite file to store frames in, unless `store.postgres` is set.",
        json_schema_extra=allowed("the path of a file"),
    )
    postgres: Secret = Field(
        default=None,
        description="PostgreSQL database to store frames in, as a URI or name=value pairs. Also `WORKERS_STORE_DSN`.",
        json_schema_extra=allowed("postgresql://user@host:5432/database"),
    )
    batch_size: int = Field(default=5_000, ge=1, le=1_000_000, description="Most frames stored in one transaction.")
    flush_interval: DurationNs = Field(
        default=200 * NS_PER_MS, description="How long the first frame of a batch waits for more."
    )
    queue_capacity: int = Field(
        default=50_000, ge=1, le=100_000_000, description="Most frames read but not yet stored."
    )
    queue_bytes: int = Field(
        default=128 * 1024 * 1024,
        ge=1_024,
        le=2**40,
        description="The same limit in bytes; whichever is reached first.",
    )
    high_watermark: Portion = Field(
        default=0.75, description="Fraction of the queue at which the level becomes HARD and reading pauses."
    )
    low_watermark: Portion = Field(
        default=0.25, description="Fraction of the queue at which reading resumes; SOFT begins halfway between the two."
    )
    feedback: bool = Field(
        default=True,
        description="Publish the queue's level to producers; false for a store that backfills history.",
    )


class MetricsSettings(Section):
    """Where Prometheus finds the metrics."""

    port: Annotated[int, BeforeValidator(_port)] = Field(
        default=9404,
        ge=METRICS_OFF,
        le=65_535,
        description="Port of the metrics endpoint; 0: any free port (several workers on one host); off: no endpoint.",
        json_schema_extra=allowed("integer 0 to 65535, or off"),
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address the metrics endpoint listens on; it has no authentication, so open it deliberately.",
        json_schema_extra=allowed("an address of this host"),
    )


class LoggingSettings(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Minimum level to log.")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, JSON lines elsewhere."
    )
