"""Ticks into the topic: from files, from a pipe, from a synthetic market.

- `check`: what workers would make of rows, before they are sent
- `files`: NDJSON and CSV, plain or compressed
- `market`: a synthetic market
- `names`: which names of fields may be meant
- `send`: paced delivery of ticks to a topic
"""
