"""What ticks pass before the windows, where it is configured; a file an operator.

- `deduplicate`: drops ticks whose id came before
- `pipeline`: the stages in their order; filter, map and router
- `stage`: what every stage is made of: ticks on their way, the account, state per symbol
- `throttle`: a limit of ticks per second of event time, or the latest of each interval
"""
