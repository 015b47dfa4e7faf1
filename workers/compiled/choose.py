"""Which lane: the compiled one where it can be used, else the reference; what comes out is the same."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

from workers.core.lane import Input, Lane
from workers.core.spec import LaneSpec
from workers.core.windows.kinds import TumblingWindows

__all__ = ["is_available", "make_lane", "supports", "takes_batches"]

SWITCH = "WORKERS_COMPILED"
LONGEST_NS = 366 * 86_400_000_000_000  # sums of a few of these and an event time fit 64 bits


def supports(spec: LaneSpec) -> bool:
    """Whether the compiled lane computes what the spec asks for: bars of tumbling windows, each key with its own clock,
    no pipeline, no ticks held."""
    form, window = spec.tick, spec.window
    if not isinstance(window, TumblingWindows) or window.fill_gaps_ns or window.time_zone is not None:
        return False
    names = (form.symbol, form.ts, form.price, form.size)
    durations = (window.size_ns, spec.lag_ns, spec.lateness_ns, spec.idle_after_ns, spec.key_ttl_ns or 0)
    return (
        spec.payload == "ohlcv"
        and spec.aggregation == "ohlcv"
        and spec.scope == "key"
        and len(set(names)) == len(names)
        and not spec.pipeline
        and spec.format == "json"
        and spec.corrections is None
        and spec.max_jump_ns == 0
        and max(*durations, form.max_future_skew_ns) <= LONGEST_NS
    )


def is_available() -> bool:
    """Whether compiled code can be used here: numba is there and works, and ``WORKERS_COMPILED`` is not 0.

    The first call loads the compiled code, or compiles it: half a minute, once for each version of the sources and of
    numba. Warns where numba is installed but can't be used.
    """
    return os.environ.get(SWITCH, "1") != "0" and _is_usable()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # it was taken out of sys.modules
        return False


@cache
def _is_usable() -> bool:
    if not all(map(_is_installed, ("numba", "numpy"))):
        return False
    try:
        from workers.compiled.lane import writes_as_orjson
    except Exception as error:  # whatever a broken or unknown numba raises, the reference lane still works
        problem = f"{type(error).__name__}: {error}"
    else:
        if writes_as_orjson():
            return True
        problem = "the installed orjson writes floats differently"
    warnings.warn(
        f"compiled lanes can't be used ({problem}); the same is computed by plain Python, some 40 times slower",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def takes_batches(spec: LaneSpec, compiled: bool | None = None) -> bool:
    """Whether `make_lane` makes a lane that takes record batches.

    ``compiled`` None: where possible; True: always; False: never. Raises ``ValueError`` where True can't be.
    """
    if compiled is None:
        return supports(spec) and is_available()  # in this order: what is not needed is not compiled
    if compiled and not supports(spec):
        raise ValueError(
            'a compiled lane needs payload and aggregation "ohlcv", scope "key", no pipeline, four distinct fields, '
            "and tumbling windows without time zone and filled gaps, of ticks that are never corrected, nor held"
        )
    if compiled and not _is_usable():
        raise ValueError("a compiled lane needs numba (pip install 'tick-workers[fast]')")
    return compiled


def make_lane(spec: LaneSpec, source: Input, compiled: bool | None = None) -> Lane:
    """A lane for the spec, as `takes_batches` says. A lane that takes batches takes records as well."""
    if not takes_batches(spec, compiled):
        return Lane(spec, source)
    from workers.compiled.lane import BatchLane  # not above: it needs numba, 60 MiB and half a second

    return BatchLane(spec, source)
