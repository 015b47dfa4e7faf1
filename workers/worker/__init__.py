"""The worker: the loop that moves records through lanes to commits, for the partitions that the group gives it."""
