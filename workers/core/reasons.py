"""Why a record is in no frame, and why a frame came out: every reason and every trigger, once.

    a record ─▶ in a frame                                      ── counted as `Account.AGGREGATED`
             ─▶ in none ── `Reason` ─▶ a text for people
                                    ─▶ an `Account`: the counter
                                    ─▶ a `Ledger`: the topic with the record and its reason
    a frame  ── a `Status`: what the window is from here on
             ── a `Trigger`: what brought it out

What counts, writes, shows or documents these takes them from here: the ledger, operators and windows, the metrics, the
dashboard, and the tables in the documents. To add a reason, add a member, and give it where it applies.

The names are the wire form in topics and metric labels, and stored state knows the accounts by theirs: they stay.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, NamedTuple

__all__ = [
    "STATUSES",
    "TRIGGERS",
    "Account",
    "LateReason",
    "Ledger",
    "Reason",
    "Status",
    "Trigger",
    "TriggerRow",
]


class Account(StrEnum):
    """Where a record of the input is counted: each in exactly one, so they add up to the records read.

    The name is a field of the stored counts (`workers.core.snapshot.Counts`); ``metric`` is the series; ``text`` says
    which records.
    """

    metric: str
    text: str

    def __new__(cls, name: str, metric: str, text: str) -> Account:
        account = str.__new__(cls, name)
        account._value_, account.metric, account.text = name, metric, text
        return account

    AGGREGATED = "aggregated", "workers_ticks_aggregated_total", "Ticks in a window."
    LATE = "late", "workers_ticks_late_total", "Ticks too late for their window, and those that no window is for."
    REJECTED = "rejected", "workers_ticks_rejected_total", "Records that are not ticks."
    DEDUPLICATED = (
        "deduplicated",
        "workers_ticks_deduplicated_total",
        "Ticks dropped as duplicates, and input frames that repeat what is known.",
    )
    THROTTLED = "throttled", "workers_ticks_throttled_total", "Ticks dropped by a rate limit."
    FILTERED = "filtered", "workers_ticks_filtered_total", "Ticks dropped by a filter."
    ROUTED_AWAY = "routed_away", "workers_ticks_routed_away_total", "Ticks sent to another topic."
    CORRECTED = "corrected", "workers_ticks_corrected_total", "Messages that cancelled or corrected a trade."
    CONTROL = "control", "workers_ticks_control_total", "Control records: each says that the input has ended."
    HELD = (
        "held",
        "workers_ticks_held",
        "Ticks held back for now, by conflation or `tick.max_jump`; they are counted elsewhere later.",
    )


class Ledger(StrEnum):
    """A topic that keeps what is in no frame, by the role that it has in the settings (``topics.late``)."""

    LATE = "late"
    DEAD_LETTERS = "dead_letters"


FRAMES_OVERSIZED: Final = "workers_frames_oversized_total"


class Reason(StrEnum):
    """Why a record is in no frame; the value is the wire form.

    ``ledger`` is the topic that has the record, None: none has. ``account`` is where the record is counted; None for
    what is no record of the input. ``text`` is a sentence for people, in Markdown.

    Several can apply to a record that is no tick; the first in this order is the one given.
    """

    account: Account | None
    ledger: Ledger | None
    text: str

    def __new__(cls, name: str, account: Account | None, ledger: Ledger | None, text: str) -> Reason:
        reason = str.__new__(cls, name)
        reason._value_, reason.account, reason.ledger, reason.text = name, account, ledger, text
        return reason

    @property
    def counter(self) -> str:
        """The series that counts what this happened to."""
        return FRAMES_OVERSIZED if self.account is None else self.account.metric

    # -- the record is no tick (`workers.core.ticks`) -----------------------------------------------------------------

    RECORD_TOO_LARGE = (  # `workers.core.records`
        "record_too_large",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The record is longer than 16 MiB, unpacked. The dead letter has the begin of its value, and none of its "
        "headers; the header `workers.truncated` says how long the record is.",
    )
    MALFORMED_JSON = (
        "malformed_json",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The value is not JSON, is nested more than 60 levels deep, or is missing (only a control record has none).",
    )
    MISSING_FIELD = (
        "missing_field",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "One of the four fields is missing.",
    )
    WRONG_TYPE = (
        "wrong_type",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The value is not an object, or a field has the wrong type. NaN and infinities in strings count as wrong "
        "types; as bare numbers they are `malformed_json`.",
    )
    NEGATIVE_SIZE = (
        "negative_size",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The size is below 0.",
    )
    KEY_MISMATCH = (
        "key_mismatch",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The record's key is not its symbol.",
    )
    TIMESTAMP_OUT_OF_RANGE = (
        "timestamp_out_of_range",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The time is before `tick.min_time`, or does not fit in 64-bit nanoseconds. Usually `tick.timestamp_unit` is "
        "not the unit of the data; the message names the unit that would fit.",
    )
    FUTURE_TIMESTAMP = (
        "future_timestamp",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The time is ahead of the record's own Kafka timestamp by more than `tick.max_future_skew`: one wrong clock "
        "must not make its symbol's next ticks late.",
    )
    WRONG_WINDOW = (  # `workers.core.windows.resample`
        "wrong_window",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "With frames as input: the frame does not lie within one window.",
    )
    MISROUTED = (
        "misrouted",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        'The record is on another partition than murmur2 gives for its key, and `tick.on_misrouted` is `"reject"`. By '
        "default it is counted, logged once per key, and used.",
    )
    CLOCK_JUMP = (  # it was a tick, and is none now: the next of its key did not confirm it (`workers.core.jumps`)
        "clock_jump",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The time was ahead of the whole partition by more than `tick.max_jump`, and the symbol's next tick went back. "
        "Off unless `tick.max_jump` is set.",
    )
    PROCESSING_FAILED = (  # none of the above: something raised that should not have (`workers.core.failures`)
        "processing_failed",
        Account.REJECTED,
        Ledger.DEAD_LETTERS,
        "The worker raised an unexpected error on this record: a bug, with its traceback in the log.",
    )

    # -- a record to be written is larger than its topic takes --------------------------------------------------------

    FRAME_TOO_LARGE = (
        "frame_too_large",
        None,
        Ledger.DEAD_LETTERS,
        "A frame is larger than its topic accepts; the dead letter has it without its items.",
    )
    ROUTED_TOO_LARGE = (
        "routed_too_large",
        Account.ROUTED_AWAY,
        Ledger.DEAD_LETTERS,
        "A routed tick is larger than the topic it was routed to accepts.",
    )

    # -- the tick joins no window (`workers.core.windows`) ------------------------------------------------------------

    WATERMARK = (
        "watermark",
        Account.LATE,
        Ledger.LATE,
        "The time is at or below the watermark less `window.allowed_lateness`.",
    )
    EXPIRED = (
        "expired",
        Account.LATE,
        Ledger.LATE,
        "The window began more than `window.key_ttl` behind the partition, and may have been forgotten.",
    )
    OUTSIDE_SESSION = (
        "outside_session",
        Account.LATE,
        Ledger.LATE,
        "The time is in no session of `window.calendar`.",
    )
    SETTLED = (
        "settled",
        Account.LATE,
        Ledger.LATE,
        "With frames as input: the frame is late, though its window is still kept. Give `window.allowed_lateness` at "
        "least the value of the application that wrote it.",
    )
    OVERLAPS = (
        "overlaps",
        Account.LATE,
        Ledger.LATE,
        "With frames as input: the frame overlaps another of its symbol.",
    )
    UNCORRECTABLE = (
        "uncorrectable",
        Account.LATE,
        Ledger.LATE,
        "A message cancels or corrects a trade that no window keeps, or that is cancelled already; see `detail`.",
    )
    REPEATED = (
        "repeated",
        Account.DEDUPLICATED,
        None,
        "With frames as input: the same frame, or a later revision of it, is known; it is counted as `duplicate` of "
        "stage `frames`.",
    )

    # -- an operator drops the tick (`workers.core.pipeline`); with ``ledger = false`` the late topic has none --------

    DUPLICATE = (
        "duplicate",
        Account.DEDUPLICATED,
        Ledger.LATE,
        "`deduplicate`: its symbol had a tick with this id before.",
    )
    THROTTLED = (
        "throttled",
        Account.THROTTLED,
        Ledger.LATE,
        "`throttle`: the rate was used up, or a later tick of the interval took its place.",
    )
    FILTERED = (
        "filtered",
        Account.FILTERED,
        Ledger.LATE,
        "`filter`: the function returned something false.",
    )


# What follows is in the library's typed API (`workers.Lateness`, `workers.WindowFrame`), whose users compare it with
# strings, and is made for each late tick and frame. So it is literals, which a type checker knows and which cost
# nothing; a test holds that the catalogue has all of them.

LateReason = Literal["watermark", "expired", "outside_session", "settled", "overlaps", "repeated"]
Status = Literal["provisional", "closed", "final"]
Trigger = Literal["watermark", "late", "merged", "correction", "idle", "timeout", "partial", "expiry", "end"]


class TriggerRow(NamedTuple):
    """What a trigger means, and the statuses that its frames can have."""

    statuses: tuple[Status, ...]
    text: str


STATUSES: Final[dict[Status, str]] = {
    "provisional": "The window is still open; it will come again.",
    "closed": "The window is complete so far; ticks within the allowed lateness may revise it. If none does, this "
    "stays the last word: no final frame follows.",
    "final": "The window will not change any more. Without `window.allowed_lateness` every closed window is final.",
}
TRIGGERS: Final[dict[Trigger, TriggerRow]] = {
    "watermark": TriggerRow(
        ("closed", "final"),
        'The symbol\'s clock passed the end (with `window.emit = "final"`: the end and the allowed lateness).',
    ),
    "late": TriggerRow(
        ("closed",),
        "A late tick joined a closed window, which comes out again, whole; or it changed the close that a filled bar "
        "shows.",
    ),
    "merged": TriggerRow(
        ("provisional", "closed"),
        "Session windows: this name was given up when a tick joined two sessions or came before one. `count` is 0, "
        "results are null: remove the row.",
    ),
    "correction": TriggerRow(("closed",), "A trade of a closed window was cancelled or corrected."),
    "idle": TriggerRow(("provisional",), "The symbol is quiet while the partition's event time goes on."),
    "timeout": TriggerRow(("provisional",), "The whole partition is quiet."),
    "partial": TriggerRow(("provisional",), "An open window shown on the way, with `window.emit_partial`."),
    "expiry": TriggerRow(
        ("final",), "With `window.key_ttl`: the symbol is more than that behind its partition, and is forgotten."
    ),
    "end": TriggerRow(("final",), "The input has ended (`workers produce --finish`). In the library: the source has."),
}
