"""Kafka workers for market ticks, and their core as a library.

The library calls take and give ``datetime`` (naive is UTC) and ``timedelta``; inside, time is integer nanoseconds.
Importing this package loads neither the Kafka client nor the settings nor the compiler: those come with the modules
that use them.
"""

from workers.aggregates import Aggregation
from workers.channel import Channel, PartitionedChannel, Watermark, hash_partition
from workers.errors import ChannelClosed, WorkersError
from workers.frames import WindowFrame
from workers.operators import Bar, deduplicate, resample_ohlc, router, throttle
from workers.partitioning import PartitioningSpec
from workers.streams import (
    WindowStream,
    buffer_async,
    filter_async,
    map_async,
    tumbling_window,
    tumbling_window_event_time,
)
from workers.ticks import Tick
from workers.watermark import EventTimeClock, WatermarkPolicy
from workers.windows import Lateness, TumblingWindowSpec

__all__ = [
    "Aggregation",
    "Bar",
    "Channel",
    "ChannelClosed",
    "EventTimeClock",
    "Lateness",
    "PartitionedChannel",
    "PartitioningSpec",
    "Tick",
    "TumblingWindowSpec",
    "Watermark",
    "WatermarkPolicy",
    "WindowFrame",
    "WindowStream",
    "WorkersError",
    "__version__",
    "buffer_async",
    "deduplicate",
    "filter_async",
    "hash_partition",
    "map_async",
    "resample_ohlc",
    "router",
    "throttle",
    "tumbling_window",
    "tumbling_window_event_time",
]

__version__ = "0.1.0"
