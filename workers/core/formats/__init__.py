"""How records are read: ticks and messages about them as JSON, and the frames of another application."""
