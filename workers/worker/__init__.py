"""The worker: the loop that moves records through lanes to commits, for the partitions that the group gives it.

- `all_rejected`: noticing that all records of a partition are rejected, and what raised, for the log
- `vitals`: health and gauges of a worker, looked up when asked
- `worker`: the loop, the partitions that this process owns, rebalances, start and end
"""
