"""From lag to levels, and from levels to slower producers and workers.

- `feedback`: the topic of levels: publish and listen
- `lag`: the group's lag, measured again and again
- `lag_reporter`: one worker measures it for all
- `levels`: levels of backpressure, with hysteresis; the strictest of several
- `producer_throttle`: producers that keep to the levels
- `reading_pace`: workers that obey the store
"""
