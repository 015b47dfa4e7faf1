"""The crate in native/ as Python gets it: built where cargo is, typed as it is, and said alike wherever it is named."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from aiokafka.record.util import calc_crc32c_py
from hypothesis import given
from hypothesis import strategies as st

from workers.core.partitioning import murmur2

ROOT = Path(__file__).parents[2]
MANIFEST = tomllib.loads((ROOT / "native" / "Cargo.toml").read_text())


@pytest.fixture(scope="module")
def native() -> ModuleType:
    """The extension; a machine that has cargo has no excuse."""
    if shutil.which("cargo") is None:
        return pytest.importorskip("workers._native", reason="no cargo", exc_type=ImportError)
    return importlib.import_module("workers._native")


@given(data=st.binary(max_size=300))
def test_hashes_are_those_of_python(native: ModuleType, data: bytes) -> None:
    assert native.murmur2(data) == murmur2(data)
    assert native.crc32c(data) == calc_crc32c_py(data)


def test_the_types_name_what_is_there(native: ModuleType) -> None:
    """All but the shape of a dictionary, which has no class there."""
    stub = ast.parse((ROOT / "workers" / "_native.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - {"Departures"}
    named |= {ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert named == {name for name in vars(native) if not name.startswith("_")}


def test_the_oldest_cargo_is_said_alike() -> None:
    oldest = MANIFEST["package"]["rust-version"]
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools-rust"]["ext-modules"]
    assert extension["rust-version"] == f">={oldest}"
    for name in ("README.md", "CONTRIBUTING.md", "Dockerfile", "Makefile", "docs/howto/run.md"):
        said = re.findall(r"cargo\W[^.]*?(\d\.\d+) or newer", (ROOT / name).read_text())
        assert set(said) == {oldest}, name


def test_versions_of_crates_are_exact() -> None:
    """They stand in for a lock file, which would name a registry's host."""
    assert "Cargo.lock" in (ROOT / "native" / ".gitignore").read_text().split()
    for group in ("dependencies", "dev-dependencies"):
        for name, wanted in MANIFEST[group].items():
            version = wanted if isinstance(wanted, str) else wanted["version"]
            assert re.fullmatch(r"=\d+\.\d+\.\d+", version), name
