"""The core: ticks, clocks, windows and lanes. Pure: no asyncio, no Kafka client, no logging, no clock; time comes in as
an argument.

Reading order, the same as the data's: `ticks`, `pipeline`, `watermark`, `windows`, `aggregates`, `frames`; `lane` joins
them, `ledger` keeps what is in no frame, and `snapshot` is state as bytes.
"""
