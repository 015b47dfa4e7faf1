"""The library over async iterators, for streams inside one process: channels, windows, operators.

- `channel`: bounded channels with watermarks; a stream split over lanes by key
- `operators`: deduplicate, throttle, route, resample
- `windows`: windows over any async iterable; map, filter, buffer
- `calls`: calling functions of the user's: plain or async, with as many arguments as they require
- `event_time`: what all windows by event time share: the time of an item, the engine's rules, and what becomes of
  late items
- `partitioned`: A stream split by key over several bounded lanes
- `pump`: A source read by a task of its own, so that waiting for its next item can end early
- `resample`: bars of ticks, inside one process
- `specs`: which windows library users ask for: the kinds of `workers.core.windows.kinds`, with timedeltas for
  durations
- `stream`: streams: async iterators that a timeout does not end, over sources that they own
- `waiters`: tasks that wait for one another, in the order in which they came
"""
