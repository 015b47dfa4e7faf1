"""Everything that can be set, where each value came from, and which combinations are refused.

Settings are frozen, checked as a whole before anything starts, and able to say where each value came from. A key is
written ``section.key`` everywhere (``window.size``, ``kafka.session.timeout.ms``); `load` says which sources there are
and which of them wins.

- `model`: the whole, every section checked together
- `topics`, `ticks`, `windows`, `kafka`: the sections of those names; `ticks` also holds that of corrections
- `process`: the sections of how a process runs: lane, backpressure, store, metrics, logging
- `pipeline`: the options of the operators that ticks pass before windows
- `section`: what every section is
- `values`: what sections are made of: durations, instants, topics, servers
- `wording`: how errors say things
- `jaas`: a login as Java clients write it
- `conflicts`: settings that can't be together, and those that may not be meant
- `keys`: the settings as flat keys, the variables that set them, and what may be written
- `sources`: a file, the environment, flags, each a layer of keys
- `load`: the layers merged, each value with its origin, and checked
- `reference`: the settings in force, and the settings that exist, as rows
- `lane`: what the settings ask of a lane
"""

from workers.settings.conflicts import advice
from workers.settings.kafka import KafkaSettings
from workers.settings.load import DEFAULT_CONFIG_PATH, load_settings
from workers.settings.model import Settings
from workers.settings.pipeline import (
    OPERATORS,
    DeduplicateSettings,
    FilterSettings,
    MapSettings,
    Operator,
    RouterSettings,
    RuleSettings,
    ThrottleSettings,
)
from workers.settings.process import (
    METRICS_OFF,
    BackpressureSettings,
    LaneSettings,
    LoggingSettings,
    MetricsSettings,
    StoreSettings,
)
from workers.settings.ticks import CorrectionsSettings, TickSettings
from workers.settings.topics import TopicsSettings
from workers.settings.values import DurationNs, InstantNs
from workers.settings.windows import WindowSettings

__all__ = [
    "DEFAULT_CONFIG_PATH",
    "METRICS_OFF",
    "OPERATORS",
    "BackpressureSettings",
    "CorrectionsSettings",
    "DeduplicateSettings",
    "DurationNs",
    "FilterSettings",
    "InstantNs",
    "KafkaSettings",
    "LaneSettings",
    "LoggingSettings",
    "MapSettings",
    "MetricsSettings",
    "Operator",
    "RouterSettings",
    "RuleSettings",
    "Settings",
    "StoreSettings",
    "ThrottleSettings",
    "TickSettings",
    "TopicsSettings",
    "WindowSettings",
    "advice",
    "load_settings",
]
