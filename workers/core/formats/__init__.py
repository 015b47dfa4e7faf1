"""How records are read: ticks and messages about them as JSON, and the frames of another application.

- `corrections`: messages that cancel or correct a trade, among ticks as JSON
- `frames`: frames of another application as ticks: what one must be to be the child of a window here, and why it is
  none
- `json`: ticks as JSON: which record is one, and the reason why another is none
"""
