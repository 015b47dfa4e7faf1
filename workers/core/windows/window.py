"""What windows are made of: the rules they follow, what is kept of one and of its key, and what comes out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from workers.core.reasons import LateReason, Status, Trigger
from workers.core.windows.assign import Assigner

__all__ = [
    "LONG_AGO",
    "Emission",
    "K",
    "KeyState",
    "Lateness",
    "Window",
    "WindowRules",
]

K = TypeVar("K", bound=Hashable)

LONG_AGO: Final = -(2**63)


@dataclass(frozen=True, slots=True)
class WindowRules:
    """When windows come out; durations in nanoseconds. ``idle_after_ns`` None: never provisionally for idleness.
    ``key_ttl_ns`` None: no key expires.

    Raises ``ValueError`` where ``lag_ns + lateness_ns`` is 0: by the lateness rule every tick would then be late.
    """

    assigner: Assigner
    lag_ns: int
    lateness_ns: int = 0
    idle_after_ns: int | None = None
    key_ttl_ns: int | None = None
    emit: Literal["eager", "final"] = "eager"
    scope: Literal["key", "partition"] = "key"
    needs_lag: ClassVar[bool] = True  # or allowed lateness, so that not every tick is late

    def __post_init__(self) -> None:
        is_nothing = self.needs_lag and self.lag_ns + self.lateness_ns == 0
        if self.lag_ns < 0 or self.lateness_ns < 0 or is_nothing:
            raise ValueError(
                f"lag is {self.lag_ns} ns and allowed lateness {self.lateness_ns} ns; neither may be negative, and "
                "with both 0 every tick would be late (ts <= watermark - allowed lateness); 1 ns of lag is enough"
            )


@dataclass(slots=True, eq=False)
class Window(Generic[K]):
    """One window of one key while it is kept. ``rev`` is that of its next non-provisional frame."""

    key: K
    start_ns: int
    end_ns: int
    state: Any = None
    items: list[Any] | None = None
    orders: list[int] | None = None  # where windows merge: of each item, its place among all
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    clock_ns: int = LONG_AGO  # the greatest time that the clock was set to through it; last_ns, as a rule
    rev: int = 0
    closed: bool = False
    changed: bool = False  # since it was last emitted, in whatever status
    settled: bool = False  # its input has ended; it is kept for what it knows, and never comes out again
    overdue: bool = False  # partition time has passed end + lag + idle_after, or it came too late to wait for that
    shown: bool = (
        False  # came out, though only provisionally; kept where windows merge (`workers.core.windows.sessions`)
    )
    dropped: bool = False
    due_ns: int = LONG_AGO  # the watermark at which it is looked at next
    stored_items: int = 0  # how many of the items the changelog holds
    stored_segments: int = 0
    stored: bool = False  # the changelog holds a record of this window


@dataclass(slots=True)
class KeyState(Generic[K]):
    """A key's clock, and its windows by start. An engine may keep more of a key, in a type of its own."""

    key: K
    max_ns: int
    windows: dict[int, Window[K]] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)  # heap of (watermark that acts, start); key scope only


@dataclass(frozen=True, slots=True)
class Lateness:
    """Why a tick joined no window, and by how much: ``watermark``: how far its time is below the threshold (0: on it,
    which is late); ``expired``: how much more than ``key_ttl`` the start of its window is behind the partition;
    ``outside_session``: there is no window for its time, whenever it comes, and ``late_by_ns`` is 0; the others are
    explained in `workers.core.windows.resample`."""

    reason: LateReason
    watermark_ns: int
    late_by_ns: int


@dataclass(frozen=True, slots=True)
class Emission(Generic[K]):
    """A window as it was when it came out."""

    key: K
    start_ns: int
    end_ns: int
    rev: int
    status: Status
    trigger: Trigger
    count: int
    first_ns: int
    last_ns: int
    result: Mapping[str, object]
    items: tuple[Any, ...] | None
    filled: bool = False  # no ticks: what it shows is the close before
