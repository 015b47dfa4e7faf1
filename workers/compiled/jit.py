"""Compiling: numba where it is installed, told once what this package needs of it.

Compiled code is kept in a folder whose name carries the package's version and a digest of the sources it was made from:
numba notices that a function's own file changed, but not that one it calls did, and old machine code over a new layout
of state would corrupt it silently.

Every function is compiled for one explicit signature, when its module is imported. So nothing compiles later, at a
moment when a partition waits.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BYTES", "FLOATS", "FLOATS2", "INTS", "INTS2", "READ_BYTES", "compiled", "inlined", "load64", "mulhi"]
__all__ += ["bits_of", "float_of", "store64"]

F = TypeVar("F", bound=Callable[..., Any])

COMPILED_SOURCES: Final = (
    "jit.py",
    "numbers.py",
    "tables.py",
    "../core/decimals.py",
    "decimals.py",
    "decode.py",
    "windows.py",
)

INTS: Final = types.Array(types.int64, 1, "C")
INTS2: Final = types.Array(types.int64, 2, "C")
FLOATS: Final = types.Array(types.float64, 1, "C")
FLOATS2: Final = types.Array(types.float64, 2, "C")
BYTES: Final = types.Array(types.uint8, 1, "C")
READ_BYTES: Final = types.Array(types.uint8, 1, "C", readonly=True)


def cache_folder() -> Path:
    """Where compiled code is kept: ``NUMBA_CACHE_DIR`` if set, else the user's cache, else a temporary folder.

    A temporary folder is private to the user: what is loaded from it is executed.
    """
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in COMPILED_SOURCES)).hexdigest()[:12]
    caches = os.environ.get("XDG_CACHE_HOME", "")
    own = Path(tempfile.gettempdir()) / f"tick-workers-{os.getuid()}"
    for root in (Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache", own):
        folder = root / "tick-workers" / f"numba-{numba.__version__}-{digest}"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root == own and (own.is_symlink() or own.stat().st_uid != os.getuid() or own.stat().st_mode & 0o077):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError):  # not writable, or no home
            continue
    return Path(tempfile.mkdtemp(prefix="tick-workers-"))


_FOLDER: Final = cache_folder()

# numba's annotations know neither the configuration nor ``_nrt``. That switches reference counting of arrays off: code
# here makes no array and keeps none, and counting at every call of a helper took more than half of the time.
_config: Any = numba.config
_njit: Any = numba.njit
_OPTIONS: Final = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}


@contextmanager
def _own_cache() -> Iterator[None]:
    """Our folder while one of our functions is compiled; other users of numba in the process keep theirs."""
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(_FOLDER)
    try:
        yield
    finally:
        _config.CACHE_DIR = before


def compiled(*signature: object, returns: Any) -> Callable[[F], F]:
    """Compile a function for one signature, now; division by zero gives infinities, and no float rule is relaxed."""

    def wrap(function: F) -> F:
        with _own_cache():
            made: F = _njit(returns(*signature), cache=True, **_OPTIONS)(function)
        return made

    return wrap


def inlined(function: F) -> F:
    """A helper of compiled functions: compiled with, and into, each of them."""
    made: F = _njit(no_cpython_wrapper=True, **_OPTIONS)(function)
    return made


@intrinsic
def load64(typingctx: Any, array: Any, position: Any) -> Any:
    """Eight bytes of an array at any position as a little-endian unsigned integer. Nothing checks the bounds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, types.int64), codegen


@intrinsic
def store64(typingctx: Any, array: Any, position: Any, value: Any) -> Any:
    """Write an unsigned integer as eight little-endian bytes at any position. Nothing checks the bounds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), codegen


@intrinsic
def mulhi(typingctx: Any, left: Any, right: Any) -> Any:
    """The upper 64 bits of the product of two unsigned 64-bit integers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def bits_of(typingctx: Any, value: Any) -> Any:
    """The bits of a float64 as an unsigned integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """The float64 that has these bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen
