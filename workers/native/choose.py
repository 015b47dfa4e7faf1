"""Which lane: the native one where it can be used, else the reference; what comes out is the same."""

from __future__ import annotations

import os
import warnings
from dataclasses import astuple
from functools import cache
from importlib.util import find_spec

from workers.core.lane import Input, Lane
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import OperatorSpec, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import SessionWindows, TumblingWindows, Windows

__all__ = ["is_available", "make_lane", "supports", "takes_batches"]

SWITCH = "WORKERS_NATIVE"
LONGEST_NS = 366 * 86_400_000_000_000  # sums of a few of these and an event time fit 64 bits


def supports(spec: LaneSpec) -> bool:
    """Whether the native lane computes what the spec asks for: everything but functions and aggregations of one's own,
    operators before corrections or frames, and ticks held for being ahead of their time."""
    if spec.format == "frames":
        return _supports_frames(spec)
    form = spec.tick
    names = (form.symbol, form.ts, form.price, form.size)
    durations = (spec.lag_ns, spec.lateness_ns, spec.idle_after_ns, spec.key_ttl_ns or 0, form.max_future_skew_ns)
    return (
        spec.aggregation == "ohlcv"
        and len(set(names)) == len(names)
        and all(map(_is_native, spec.pipeline))
        and not (spec.pipeline and spec.corrections is not None)
        and spec.max_jump_ns == 0
        and max(*durations, *_lengths(spec.window)) <= LONGEST_NS
    )


def _is_native(operator: OperatorSpec) -> bool:
    if isinstance(operator, Router):
        return True
    if not isinstance(operator, Deduplicate | Throttle | Conflate):
        return False
    return all(value < 2**62 for value in astuple(operator) if isinstance(value, int))


def _supports_frames(spec: LaneSpec) -> bool:
    """Of frames as input: what of the spec means something for them, and no windows that they can't be in."""
    window = spec.window
    filled_ns = window.fill_gaps_ns if isinstance(window, TumblingWindows) else 0
    return (
        not isinstance(window, SessionWindows)
        and not filled_ns
        and not spec.pipeline
        and spec.scope == "key"
        and max(spec.lateness_ns, spec.idle_after_ns, spec.key_ttl_ns or 0, *_lengths(window)) <= LONGEST_NS
    )


def _lengths(window: Windows) -> tuple[int, ...]:
    if isinstance(window, SessionWindows):
        return (window.gap_ns,)
    if isinstance(window, TumblingWindows):
        return (window.size_ns, window.fill_gaps_ns)
    return (getattr(window, "size_ns", 0),)


def is_available() -> bool:
    """Whether native code can be used here: it was built, fits, and ``WORKERS_NATIVE`` is not 0."""
    return os.environ.get(SWITCH, "1") != "0" and _is_usable()


@cache
def _is_usable() -> bool:
    try:
        if find_spec("workers._native") is None:
            return False
        from workers.native.probe import fits, writes_as_orjson
    except Exception as error:  # whatever a broken extension raises, the reference lane still works
        problem = f"{type(error).__name__}: {error}"
    else:
        if fits() and writes_as_orjson():
            return True
        problem = "the installed orjson writes floats differently"
        if not fits():
            problem = "workers._native was built of other sources; install again"
    warnings.warn(
        f"native lanes can't be used ({problem}); the same is computed by plain Python, some 40 times slower",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def takes_batches(spec: LaneSpec, native: bool | None = None) -> bool:
    """Whether `make_lane` makes a lane that takes record batches.

    ``native`` None: where possible; True: always; False: never. Raises ``ValueError`` where True can't be.
    """
    if native is None:
        return supports(spec) and is_available()
    if native and not supports(spec):
        raise ValueError(
            'a native lane needs the aggregation "ohlcv", no function in the pipeline, no pipeline before corrections '
            "or frames, four distinct fields, and ticks that are never held"
        )
    if native and not _is_usable():
        raise ValueError("a native lane needs workers._native, which is built where there is a Rust compiler")
    return native


def make_lane(spec: LaneSpec, source: Input, native: bool | None = None) -> Lane:
    """A lane for the spec, as `takes_batches` says. A lane that takes batches takes records as well."""
    if not takes_batches(spec, native):
        return Lane(spec, source)
    from workers.native.lane import NativeLane  # not above: it may not be there

    return NativeLane(spec, source)
