"""The commands, one module a family; `workers.commands.cli` imports each of them, and that registers it.

- `cli`: the command `workers`; a command is made known by importing its module here
- `common`: options, exit codes, how errors and foreign text are shown
- `config`: what is set, where it comes from, whether it is possible, and what could be set
- `dashboard`: one live page about an application
- `demo`: everything at once, on a broker of its own
- `explain`: what happened to a symbol around a time
- `lag`: how far the group is behind
- `produce`: send ticks from a file, from standard input, or from a synthetic market
- `replay`: make frames again from the ticks, and compare them with what was published
- `run`: one worker process
- `state`: what is stored for recovery, and how to drop it
- `store`: keep frames in a database, and show what it holds
- `tail`: watch frames, late ticks or dead letters as they come
- `topics`: create, list or delete the topics of an application
- `produce_options`: the options of ``workers produce``
"""
