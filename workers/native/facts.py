"""Facts: what the native pipeline needs to know of a tick's JSON, said by the stages' own functions.

Native code reads them itself where it is sure that it reads as Python does, and asks for the others; the bytes that it
takes are described where it reads them, in ``native/src/pipeline/facts.rs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from struct import Struct

from workers.core.pipeline.deduplicate import Deduplicate, identity_of, sequence_number
from workers.core.pipeline.pipeline import OperatorSpec, Router, matcher
from workers.core.ticks import Tick

__all__ = ["FactTeller"]

_NUMBER = Struct("<q")


class FactTeller:
    """Says the facts of ticks, for one pipeline of operators that native code has."""

    def __init__(self, specs: Sequence[OperatorSpec]) -> None:
        self._stages = [_teller(spec) for spec in specs]

    def __call__(self, tick: Tick, first: int = 0) -> bytes:
        """What the stages from ``first`` on need to know of a tick."""
        return b"".join(tell(tick) for tell in self._stages[first:])


def _teller(spec: OperatorSpec) -> Callable[[Tick], bytes]:
    match spec:
        case Deduplicate():
            return lambda tick: _identity(tick, spec)
        case Router():
            rules = [matcher(replace(route, symbol=None)) for route in spec.routes if route.field is not None]
            return lambda tick: _rules(tick, rules)
        case _:
            return lambda tick: b""


def _identity(tick: Tick, spec: Deduplicate) -> bytes:
    identity = identity_of(tick, spec.fields) or b""
    said = bytes((len(identity),)) + identity
    if not spec.gaps:
        return said
    number = sequence_number(tick.fields.get(spec.fields[0]))
    return said + (b"\0" if number is None else b"\1" + _NUMBER.pack(number))


def _rules(tick: Tick, rules: Sequence[Callable[[Tick], bool]]) -> bytes:
    bits = sum(rule(tick) << number for number, rule in enumerate(rules))
    return bits.to_bytes(-(-len(rules) // 8), "little")
