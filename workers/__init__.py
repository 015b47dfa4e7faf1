"""Kafka workers for market ticks, and their core as a library.

The library calls take and give ``datetime`` (naive is UTC) and ``timedelta``; inside, time is integer nanoseconds.
Importing this package loads neither the Kafka client nor the settings nor the compiler: those come with the modules
that use them.
"""

from typing import TYPE_CHECKING

from workers.core.aggregates import Aggregation
from workers.core.frames import WindowFrame
from workers.core.partitioning import PartitioningSpec
from workers.core.ticks import Tick
from workers.core.watermark import EventTimeClock, WatermarkPolicy
from workers.core.windows.window import Lateness
from workers.errors import ChannelClosed, WorkersError
from workers.streams.channel import Channel, Watermark
from workers.streams.operators import buffer_async, deduplicate, filter_async, map_async, router, throttle
from workers.streams.partitioned import PartitionedChannel, hash_partition
from workers.streams.resample import Bar, resample_ohlc
from workers.streams.specs import CalendarWindowSpec, HoppingWindowSpec, SessionWindowSpec, TumblingWindowSpec
from workers.streams.stream import Stream
from workers.streams.windows import WindowStream, tumbling_window, tumbling_window_event_time, window_event_time

if TYPE_CHECKING:
    from workers.backpressure.producer_throttle import AdaptiveThrottle

__all__ = [
    "AdaptiveThrottle",
    "Aggregation",
    "Bar",
    "CalendarWindowSpec",
    "Channel",
    "ChannelClosed",
    "EventTimeClock",
    "HoppingWindowSpec",
    "Lateness",
    "PartitionedChannel",
    "PartitioningSpec",
    "SessionWindowSpec",
    "Stream",
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
    "window_event_time",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "AdaptiveThrottle":  # it loads the Kafka client
        from workers.backpressure.producer_throttle import AdaptiveThrottle

        return AdaptiveThrottle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
