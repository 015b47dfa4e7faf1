"""What the operators of a pipeline must do, modelled by brute force and apart from the package.

Each operator is a function from the whole sequence of ticks it is given to the sequence that goes on, with an account
of the rest. Nothing is incremental but the loop over the ticks: what is remembered is a list, and is searched.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tests.support import oracle

__all__ = ["Account", "End", "Item", "conflate", "deduplicate", "keep", "rewrite", "route", "throttle"]

LONG_AGO = -(10**30)


@dataclass(frozen=True)
class Item:
    """A tick: its record, and what its JSON object says by now."""

    symbol: str
    ts_ns: int
    fields: dict[str, object]
    record: oracle.Record
    value: bytes

    def as_record(self) -> oracle.Record:
        """The record that would have brought this very tick."""
        return replace(self.record, value=self.value)


@dataclass(frozen=True)
class End:
    """The record that ends the input, at its place among the ticks. No operator takes it out."""

    record: oracle.Record

    def as_record(self) -> oracle.Record:
        """The record itself."""
        return self.record


@dataclass
class Account:
    """What did not go on: (offset, reason), ids that were skipped, records by topic, and what is held back."""

    dropped: list[tuple[int, str]] = field(default_factory=list)
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    routed: dict[str, list[oracle.Record]] = field(default_factory=dict)
    noticed: dict[str, int] = field(default_factory=dict)
    held: int = 0


@dataclass
class _Clocks:
    """Greatest event time per symbol, and the symbols that the partition has left too far behind."""

    ttl_ns: int
    of: dict[str, int] = field(default_factory=dict)
    partition_ns: int = LONG_AGO

    def observe(self, symbol: str, ts_ns: int) -> list[str]:
        """The symbols forgotten at this tick, by clock and name."""
        self.of[symbol] = max(self.of.get(symbol, LONG_AGO), ts_ns)
        if ts_ns <= self.partition_ns:
            return []
        self.partition_ns = ts_ns
        old = sorted((at, name) for name, at in self.of.items() if self.partition_ns - at > self.ttl_ns)
        for _, name in old:
            del self.of[name]
        return [name for _, name in old]


def deduplicate(
    items: Sequence[Item | End],
    account: Account,
    *,
    names: Sequence[str],
    ttl_ns: int,
    gaps: bool,
    max_ids: int,
    key_ttl_ns: int,
) -> list[Item | End]:
    """Every id of a symbol once, as long as it is remembered."""
    clocks = _Clocks(key_ttl_ns)
    seen: dict[str, list[tuple[str, int]]] = {}
    ids: dict[str, list[int]] = {}
    going: list[Item | End] = []
    for item in items:
        if isinstance(item, End):
            going.append(item)
            continue
        for name in clocks.observe(item.symbol, item.ts_ns):
            seen.pop(name, None)
            ids.pop(name, None)
        now_ns = clocks.of[item.symbol]
        mine = seen.setdefault(item.symbol, [])
        while mine and mine[0][1] + ttl_ns <= now_ns:
            mine.pop(0)
        found = [item.fields.get(name) for name in names]
        if any(each is None for each in found):
            account.noticed["without_id"] = account.noticed.get("without_id", 0) + 1
            going.append(item)
            continue
        identity = json.dumps(found, sort_keys=True)
        if any(each == identity and at + ttl_ns > now_ns for each, at in mine):
            account.dropped.append((item.record.offset, "duplicate"))
            continue
        going.append(item)
        if item.ts_ns + ttl_ns > now_ns:
            mine.append((identity, item.ts_ns))
            if len(mine) > max_ids:
                mine.pop(0)
                account.noticed["forgotten_early"] = account.noticed.get("forgotten_early", 0) + 1
        if gaps:
            _find_gap(item, found[0], ids.setdefault(item.symbol, []), account)
    return going


def _find_gap(item: Item, number: object, known: list[int], account: Account) -> None:
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or number >= 2**63:
        account.noticed["without_id"] = account.noticed.get("without_id", 0) + 1
        return
    if known and number > max(known) + 1:
        account.gaps.append((item.symbol, max(known) + 1, number - 1))
        account.noticed["gap"] = account.noticed.get("gap", 0) + 1
    elif known and known[0] < number <= max(known):
        account.noticed["filled"] = account.noticed.get("filled", 0) + 1
    known.append(number)


def throttle(
    items: Sequence[Item | End], account: Account, *, spacing_ns: int, burst: int, per_symbol: bool, key_ttl_ns: int
) -> list[Item | End]:
    """A bucket of tokens in exact fractions."""
    clocks = _Clocks(key_ttl_ns)
    buckets: dict[str, tuple[Fraction, int]] = {}  # tokens, and when they were counted
    going: list[Item | End] = []
    for item in items:
        if isinstance(item, End):
            going.append(item)
            continue
        name = item.symbol if per_symbol else "all"
        for each in clocks.observe(name, item.ts_ns):
            buckets.pop(each, None)
        now_ns = clocks.of[name]
        tokens, then_ns = buckets.get(name, (Fraction(burst), now_ns))
        tokens = min(Fraction(burst), tokens + Fraction(now_ns - then_ns, spacing_ns))
        if tokens >= 1:
            going.append(item)
            tokens -= 1
        else:
            account.dropped.append((item.record.offset, "throttled"))
        buckets[name] = (tokens, now_ns)
    return going


def conflate(
    items: Sequence[Item | End], account: Account, *, interval_ns: int, margin_ns: int, key_ttl_ns: int
) -> list[Item | End]:
    """The latest of each interval; all that is held is looked at with every tick."""
    clocks = _Clocks(key_ttl_ns)
    held: dict[str, Item] = {}
    newest: dict[str, int] = {}
    going: list[Item | End] = []

    def end_ns(item: Item) -> int:
        return item.ts_ns - item.ts_ns % interval_ns + interval_ns

    for item in items:
        if isinstance(item, End):
            going += [held.pop(name) for name in sorted(held)]
            going.append(item)
            continue
        for name in clocks.observe(item.symbol, item.ts_ns):
            newest.pop(name, None)
            if name in held:
                going.append(held.pop(name))
        for _, name in sorted((end_ns(each), name) for name, each in held.items()):
            if end_ns(held[name]) + margin_ns <= clocks.partition_ns:
                going.append(held.pop(name))
        mine = held.get(item.symbol)
        if mine is not None and end_ns(mine) < end_ns(item):
            going.append(held.pop(item.symbol))
        if item.ts_ns < newest.get(item.symbol, LONG_AGO):
            account.dropped.append((item.record.offset, "throttled"))
            continue
        newest[item.symbol] = item.ts_ns
        if end_ns(item) + margin_ns <= clocks.partition_ns:
            going.append(item)
            continue
        if item.symbol in held:
            account.dropped.append((held[item.symbol].record.offset, "throttled"))
        held[item.symbol] = item
    account.held += len(held)
    return going


def route(
    items: Sequence[Item | End],
    account: Account,
    *,
    rules: Sequence[tuple[str | None, str | None, object, str]],
    default: str,
) -> list[Item | End]:
    """``rules``: pattern, field, value, topic; None for a pattern or field that is not asked."""
    going: list[Item | End] = []
    for item in items:
        if isinstance(item, End):
            going.append(item)
            continue
        to = default
        for pattern, name, value, topic in reversed(rules):
            matches = pattern is None or fnmatch.fnmatchcase(item.symbol, pattern)
            if name is not None:
                matches = matches and name in item.fields and json.dumps(item.fields[name]) == json.dumps(value)
            if matches:
                to = topic
        if to == "window":
            going.append(item)
        else:
            account.routed.setdefault(to, []).append(item.record)
    return going


def keep(items: Sequence[Item | End], account: Account, wanted: Callable[[Item], bool]) -> list[Item | End]:
    """The filter."""
    ticks = [item for item in items if isinstance(item, Item)]
    account.dropped += [(item.record.offset, "filtered") for item in ticks if not wanted(item)]
    return [item for item in items if isinstance(item, End) or wanted(item)]


def rewrite(items: Sequence[Item | End], change: Callable[[Item], Item]) -> list[Item | End]:
    """The map."""
    return [item if isinstance(item, End) else change(item) for item in items]
