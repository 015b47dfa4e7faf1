"""Looking into an application from outside: its topics, its state, what became of a tick, its frames made again.

- `explain`: what happened to a symbol around a time
- `replay`: frames computed again from the log, and compared with those that were published
- `rescale`: more input partitions for an application that has state
- `state`: stored state seen from outside: show and reset
- `tail`: reading results for people
- `witness`: the lane itself does it again, and is watched
- `comparison`: frames that were made again beside those that were published: identical, or what is wrong and why it
  may be
- `explanation`: what an explanation says, as objects and as JSON: windows, ticks and frames, with what was found of
  each
- `fates`: what can become of a tick, and the story of one window: what a `workers.apps.inspect.witness` writes down
- `watched`: A lane that is watched: the lane itself, which notes what came of each record
"""
