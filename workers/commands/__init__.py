"""The commands, one module a family; `workers.cli` imports each of them, and that registers it."""
