"""The library over async iterators, for streams inside one process: channels, windows, operators.

- `channel`: bounded channels with watermarks; a stream split over lanes by key
- `operators`: deduplicate, throttle, route, resample
- `windows`: windows over any async iterable; map, filter, buffer
"""
