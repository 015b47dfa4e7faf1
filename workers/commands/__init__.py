"""The commands, one module a family; `workers.commands.cli` imports each of them, and that registers it."""
