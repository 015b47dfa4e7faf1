"""What `native/src/python.rs` exports; where it was not built, importing it fails with an ImportError."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypedDict, overload

from workers.core.formats.frames import Child
from workers.core.frames import OutRecord
from workers.core.pipeline.pipeline import OperatorSpec
from workers.native.spec import NativeSpec

INTERFACE: int
"""What Python and this module agree on; `workers.native.probe` has the same number."""

class BatchError(ValueError):
    """A record batch is not what Kafka's format v2 says."""

_Parts = tuple[int, int, bytes | None, bytes | None, list[tuple[bytes, bytes | None]]]
"""A record: offset, timestamp in ms, key, value, headers."""

class BatchReader:
    """The records of one batch, unpacked piece by piece."""

    def __init__(
        self,
        packed: bytes,
        codec: int,
        base_offset: int,
        count: int,
        first_timestamp: int,
        fixed_timestamp: int | None,
        start_offset: int,
        most_passed: int,
    ) -> None:
        """Of records before the wanted at most ``most_passed`` bytes are unpacked. Raises `BatchError`."""
    def read(self) -> tuple[_Parts, int | None] | None:
        """The next record that is wanted, and its length where it is longer than what is read of it; None behind the
        last. Raises `BatchError`."""

class Records:
    """As `workers.core.packed.PackedRecords`."""

    def __new__(cls, records: Iterable[OutRecord] = ..., /) -> Self: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[OutRecord]: ...
    @overload
    def __getitem__(self, index: int, /) -> OutRecord: ...
    @overload
    def __getitem__(self, index: slice, /) -> Self: ...
    def __iadd__(self, more: Iterable[OutRecord], /) -> Self: ...
    def append(self, record: OutRecord, /) -> None: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def largest_bytes(self) -> int: ...
    @property
    def oldest_ms(self) -> int | None: ...
    def portions(self, size_bytes: int, /) -> list[Self]: ...
    def batches(
        self, *, partitions: int, partition: int | None, keyless: int, limit_bytes: int, now_ms: int, codec: int
    ) -> list[tuple[int, Batch]]: ...

class Batch:
    """As `workers.core.packed.PackedBatch`."""

    @property
    def count(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def build(self, producer_id: int, producer_epoch: int, base_sequence: int, is_transactional: bool, /) -> bytes: ...

class Departures(TypedDict):
    """What the stages of a pipeline have to report."""

    taken_out: list[tuple[str, str, int]]
    """Reason, stage, ticks."""
    noticed: list[tuple[str, str, int]]
    """What, stage, times."""
    gaps: list[tuple[str, str, int, int, int]]
    """Stage, symbol, first and last of the ids that were skipped, offset."""
    routed: list[tuple[str, Records]]
    held: int

class Lane:
    """One partition's state: record batches in, frames, late records and changes out. Times in nanoseconds.

    Of a batch: `begin`, then `advance` until it gives None. Each record that it gives is decoded by Python, and taken
    with `take` where it is a tick, before `advance` is asked again. After any error the lane must be discarded. A panic
    in there is a `LaneError` that names topic, partition and offset.
    """

    position: int
    """The next input offset."""

    def __init__(self, spec: NativeSpec, stages: Sequence[OperatorSpec]) -> None:
        """Raises ``ValueError`` for what is not native."""
    @property
    def key_count(self) -> int:
        """Keys with a clock."""

    @property
    def row_counts(self) -> tuple[int, int]:
        """Rows for keys and for windows, used or not."""

    @property
    def partition_max_ns(self) -> int:
        """The greatest accepted event time; -2**63 before any."""

    @property
    def changes_waiting(self) -> int:
        """How many windows `take_changes` would write, and as many more as their new items would take time."""

    def begin(
        self,
        packed: bytes,
        codec: int,
        base_offset: int,
        next_offset: int,
        count: int,
        first_timestamp: int,
        fixed_timestamp: int | None,
        start_offset: int,
    ) -> None:
        """Begin with a batch, of which ``packed`` are the records, ``codec`` says how. Raises `BatchError`."""

    @property
    def is_within(self) -> bool:
        """Whether records of the batch are left."""

    def advance(self, records_end: int, size_bytes: int) -> tuple[_Parts, int | None] | None:
        """Take records until one is to be decoded by Python, and give that one, and its length where it is longer than
        what is read of it. None at the end of the batch, or when there are ``records_end`` records since `take_counts`,
        or ``size_bytes`` of results: then `is_within`. Raises `BatchError`."""

    def take(
        self,
        symbol: str,
        ts_ns: int,
        price: float,
        size: float,
        offset: int,
        timestamp: int,
        value: bytes,
        facts: bytes,
        trade_id: str | None,
    ) -> None:
        """Take a tick that Python decoded, with what the stages of the pipeline need to know of it
        (`workers.native.facts`), and its own id where trades are corrected. Raises ``ValueError`` where these are no
        facts."""

    def take_child(
        self, symbol: str, child: Child, provisional: bool, is_correction: bool, offset: int, value: bytes
    ) -> None:
        """Place a child that Python decoded."""

    def take_repeated(self) -> int:
        """How many children changed nothing since the last call."""

    def find_trade(self, symbol: str, trade_id: str) -> tuple[int, int, int | None, bytes | None] | None:
        """The trade that a message is about: its offset, its time, the offset of what cancelled it, and its value where
        that is kept."""

    def change_trade(self, symbol: str, ts_ns: int, offset: int, change: bytes) -> list[tuple[int, int]]:
        """Have a change follow a trade that was found; the windows that it changed, as start and end."""

    def watermark_ns(self, symbol: str) -> int | None:
        """The watermark that judges a symbol's next tick; None before its clock has seen anything."""

    def is_misplaced(self, symbol: str) -> bool:
        """Whether a symbol has no state yet and belongs on another partition."""

    def learn(self, pieces: list[tuple[int, int, int]]) -> None:
        """Take over a stretch of the time zone, none of which is known: begin, end, offset from UTC, side by side."""

    def count(self, offset: int, headers: list[tuple[str, bytes | None]]) -> None:
        """Count a record that did not come in a batch, and that `take` may follow."""

    def end_input(self) -> None:
        """The input has ended: windows that wait come out."""

    def settle(self, silence_ns: int, most: int) -> bool:
        """Show what is overdue, looking at ``most`` windows; whether there may be more."""

    def next_timeout(self) -> int | None:
        """The silence after which `settle` would show something more."""

    def flush_partial(self) -> None:
        """Show every open window that changed."""

    def take_counts(self) -> tuple[int, int]:
        """Records and accepted ticks since the last call."""

    def take_frames(self) -> tuple[Records, list[tuple[str, str, int]]] | None:
        """The frames since the last call, and how many there are of each status and trigger."""

    def take_late(self) -> tuple[Records, list[tuple[str, int]]] | None:
        """The late records since the last call, and how many there are for each reason."""

    def take_changes(self) -> Records:
        """The changelog's records of what changed; those without a value delete their keys."""

    @property
    def stored(self) -> tuple[int, int, int, int]:
        """How many records of each kind the changelog holds once what was taken of it is written: of windows, items,
        operators, and held ticks."""

    @property
    def restored(self) -> tuple[int, int, int, int]:
        """As many of each kind as `restore` was given."""

    def restore(self, entries: list[tuple[bytes, bytes]]) -> bool:
        """Take stored records over, some at a time; false where one is not what is written here."""

    def end_restore(self, partition_max_ns: int) -> bool:
        """After the last of the stored records; false where something is missing."""

    def restore_stages(self) -> tuple[bool, bool]:
        """Take over some of the stages' stored state: whether there is more, and whether it could be read."""

    def doubtful(self) -> tuple[bytes, int] | None:
        """The value of a held tick that was restored, and the first of the stages that are to be told what it is."""

    def settle_doubt(self, facts: bytes) -> bool:
        """Say what the stages need to know of the tick that is `doubtful`; false where these are no facts."""

    def held_times(self) -> list[int]:
        """The times of the ticks that stages hold back."""

    def take_departures(self) -> Departures | None:
        """What the stages have to report since the last call; None where there is no pipeline."""

def put_entries(
    entries: dict[bytes, bytes], packed: bytes, codec: int, base_offset: int, count: int, start_offset: int
) -> None:
    """Put a batch of a compacted topic into ``entries``: the last value of each key, without keys that were deleted.
    Raises `BatchError`; records before the bad one are in it then."""

def murmur2(data: bytes) -> int:
    """Kafka's hash of a key, unsigned: its lower 31 bits, modulo a topic's partitions, are the key's partition."""

def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), the checksum of a record batch; unsigned."""

def float_text(value: float) -> str:
    """The text of a float in frames."""

class PipelineProbe:
    """The stages of a pipeline as tests drive them."""

    def __init__(
        self, specs: Sequence[OperatorSpec], unit_ns: int, key_ttl_ns: int | None, topic: str, partition: int
    ) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
