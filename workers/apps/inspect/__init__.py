"""Looking into an application from outside: its topics, its state, what became of a tick, its frames made again.

- `explain`: what happened to a symbol around a time
- `replay`: frames computed again from the log, and compared with those that were published
- `state`: stored state seen from outside: show and reset
- `tail`: reading results for people
- `witness`: the lane itself does it again, and is watched
"""
