"""The worker: the loop that moves records through lanes to commits, for the partitions that the group gives it.

- `all_rejected`: noticing that all records of a partition are rejected, and what raised, for the log
- `vitals`: health and gauges of a worker, looked up when asked
- `worker`: the loop, the partitions that this process owns, rebalances, start and end
- `committer`: when a partition commits, and what: results that wait, the state they come from, and the offset they
  reflect
- `life`: the life of an owned partition, as a table: in which phase which event leads where, and what is to be done
  then
- `lane_threads`: lanes of several partitions side by side, in threads
- `main`: one worker, run; and its health and gauges, looked up when somebody asks: they cost nothing in between
- `opening`: opening a partition: its state restored, and where to read on, on which state and group must agree
- `partition`: one partition while this process owns it: events in, actions out
- `setbacks`: commits that fail one after another: how long to rest, and when to give up
- `trouble`: why a partition can't be opened, and whether that lies in this process
- `report`: what a worker logs and counts of its partitions
- `watch`: what operators do to topics under a running worker, and what follows
- `runner`: the asyncio around a partition: it tells a `Partition` what happens, and carries out what that asks for
"""
