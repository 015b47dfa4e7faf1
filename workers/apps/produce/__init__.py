"""Ticks into the topic: from files, from a pipe, from a synthetic market.

- `check`: what workers would make of rows, before they are sent
- `files`: NDJSON and CSV, plain or compressed
- `market`: a synthetic market
- `names`: which names of fields may be meant
- `send`: paced delivery of ticks to a topic
- `pacing`: when ticks are due: so many a second, or as fast as they happened, less what the group can't take
- `parsers`: NDJSON and CSV into the keys and values of records
- `sender`: packing ticks into batches, and handing those to the producer
- `sources`: where the ticks to send come from: files, pipes and iterators
"""
