"""The core: ticks, clocks, windows and lanes. Pure: no asyncio, no Kafka client, no logging, no clock; time comes in as
an argument.

Reading order, the same as the data's: `ticks`, `pipeline`, `watermark`, `windows`, `aggregates`, `frames`; `lane` joins
them, `ledger` keeps what is in no frame, and `snapshot` is state as bytes.

- `callbacks`: telling what a user's aggregation raises from what this package does
- `decimals`: sums of decimals, exact: volume and notional
- `encoding`: JSON as bytes that can be kept
- `failures`: what raised on the way of one record: it becomes a dead letter
- `jumps`: ticks far ahead of all before them: held until the next one of their key tells whether to believe them
- `packed`: records to be written that are no objects
- `partitioning`: murmur2 for Kafka partitions, murmur3 for lanes inside a process
- `portions`: a step of a lane: how much it takes, and how much may come of it, before others get their turn
- `quarantine`: jumps at work in a lane: with records, dead letters and stored state
- `records`: a record batch as fetched, its records still packed
- `steps`: long work in short steps, between which an event loop goes on
- `reasons`: why a record is in no frame, and why a frame came out: every reason and every trigger, once
- `effects`: what a lane gives back: what is to be written and reported of a step, and what became of every record
- `refusals`: rejections that a lane gives of its own accord, for what no decoder looks at
- `rescale`: state for more input partitions: each key's moves to where the partitioner puts it then
- `formats`: how records are read: ticks and messages about them as JSON, and the frames of another application
- `prices`: open, high, low and close: the one fold from which all bars are made
- `spec`: what a lane does with its partition: the settings that it knows, and which of them give stored state its
  meaning
- `token_bucket`: the token bucket, for all that limit a rate
"""
