"""From lag to levels, and from levels to slower producers and workers."""
