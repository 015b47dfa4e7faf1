"""Looking into an application from outside: its topics, its state, what became of a tick, its frames made again."""
