"""The store writer: keeps the last word about every window in a database, for those who query rather than consume.

    frames topic ──▶ queue ──▶ one database transaction: rows + the offsets they reflect
    (read_committed)  (bounded)     │
                        └─▶ level OK/SOFT/HARD on the feedback topic, so that producers slow down with the database

Three rules carry "stored exactly once":

1. Rows and offsets change in one transaction, and where to read on comes from the database, never from Kafka.
2. A transaction moves an offset only from the value it started from (compare and set). A store that lost a partition
   without noticing therefore changes nothing: neither offsets nor rows.
3. A row is replaced only by a frame that takes precedence over it (`workers.apps.store.base.precedence`), so a frame
   that comes again changes nothing.

- `base`: what every store keeps to
- `choose`: which database
- `feedback`: the queue's level, published
- `metrics`: its series
- `parse`: a record as a row
- `postgres`: PostgreSQL
- `queue`: the bounded queue before the database
- `sqlite`: SQLite
- `writer`: the loop
- `batches`: what is stored in one transaction, and what of it the database is offered again after it refused
- `database`: the store's one connection to its database: whose turn it is, and whether the database can be used
"""

from workers.apps.store.base import Batch, FrameRow, OffsetMove, RejectedFrame, Store, StoreError
from workers.apps.store.choose import choose_store
from workers.apps.store.writer import StoreWriter, run_store

__all__ = [
    "Batch",
    "FrameRow",
    "OffsetMove",
    "RejectedFrame",
    "Store",
    "StoreError",
    "StoreWriter",
    "choose_store",
    "run_store",
]
