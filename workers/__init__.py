"""Kafka workers for market ticks, and their core as a library.

The library calls take and give ``datetime`` (naive is UTC) and ``timedelta``; inside, time is integer nanoseconds.
Importing this package loads nothing of it: a name brings its module along when it is first used. So a program pays for
what it uses, and the command ``workers`` does not load the library to show its help.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workers.backpressure.producer_throttle import AdaptiveThrottle
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

_FOUND_IN: Final = {
    "workers.backpressure.producer_throttle": ("AdaptiveThrottle",),
    "workers.core.aggregates": ("Aggregation",),
    "workers.core.frames": ("WindowFrame",),
    "workers.core.partitioning": ("PartitioningSpec",),
    "workers.core.ticks": ("Tick",),
    "workers.core.watermark": ("EventTimeClock", "WatermarkPolicy"),
    "workers.core.windows.window": ("Lateness",),
    "workers.errors": ("ChannelClosed", "WorkersError"),
    "workers.streams.channel": ("Channel", "Watermark"),
    "workers.streams.operators": ("buffer_async", "deduplicate", "filter_async", "map_async", "router", "throttle"),
    "workers.streams.partitioned": ("PartitionedChannel", "hash_partition"),
    "workers.streams.resample": ("Bar", "resample_ohlc"),
    "workers.streams.specs": ("CalendarWindowSpec", "HoppingWindowSpec", "SessionWindowSpec", "TumblingWindowSpec"),
    "workers.streams.stream": ("Stream",),
    "workers.streams.windows": (
        "WindowStream",
        "tumbling_window",
        "tumbling_window_event_time",
        "window_event_time",
    ),
}
_MODULES: Final = {name: module for module, names in _FOUND_IN.items() for name in names}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(module), name)
    globals()[name] = found  # from now on found without this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
