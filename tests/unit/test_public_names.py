"""What users import stays importable from where they import it: the lists are the promise, and change with a reason."""

from __future__ import annotations

import workers
from workers import testing

PUBLIC = [
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

FOR_TESTS = ["CorrectionRules", "LaneSpec", "TestDriver", "parse_duration"]


def test_the_public_names_of_the_package() -> None:
    assert sorted(workers.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(workers, name) is not None, name


def test_the_public_names_for_tests() -> None:
    assert set(FOR_TESTS) <= set(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name) is not None, name
