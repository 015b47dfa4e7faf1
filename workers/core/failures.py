"""What raised on the way of one record, where nothing should: it takes out that record, and not the worker.

Decoders know what a stranger may send and give a `Rejection` for it. What raises all the same, be it in decoding, in a
stage, at a window or when a ledger entry is written, is a fault of this program that one record has shown: the record
becomes a dead letter with reason ``processing_failed``, and the traceback a line in the log. Whoever reads the record
again would fail of it again; so it is not tried again, and what it does to the state is the same each time.

Errors that this package raises on purpose (a user's callable that raised is one) and those of the machine say nothing
about the record: they go on.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Final

from workers.core.reasons import Reason
from workers.core.ticks import Record, Rejection
from workers.errors import WorkersError

__all__ = ["Failure", "raise_unless_of_record", "rejection_of"]

_NOT_OF_THE_RECORD: Final = (WorkersError, MemoryError, OSError, ImportError)
_LONGEST_ERROR: Final = 300
_ENTRIES_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Failure:
    """What a record made raise: at which offset, in a line, and where."""

    offset: int
    error: str
    traceback: str = field(compare=False, repr=False)

    @classmethod
    def of(cls, record: Record, error: Exception) -> Failure:
        """What there is to say of it; it may be kept, as nothing of the record is."""
        last = "".join(traceback.format_tb(error.__traceback__, limit=-_ENTRIES_SHOWN))
        return cls(record.offset, _line(error), last)


def raise_unless_of_record(error: Exception) -> None:
    """Raise what is not the record's fault again."""
    if isinstance(error, _NOT_OF_THE_RECORD):
        raise error


def rejection_of(record: Record, error: Exception) -> Rejection:
    """The record as one that can't be processed."""
    message = f"the record could not be processed, for a fault of this program: {_line(error)}"
    return Rejection(Reason.PROCESSING_FAILED, message, record)


def _line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + "…"
