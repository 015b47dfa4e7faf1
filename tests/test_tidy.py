"""The house is tidy: what a reader may rely on when they open any file of `workers`. Which room may import which is in
pyproject.toml, and checked by `make check`.

The lists of exceptions may only shrink: an entry that is not needed any more fails, too.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workers"
TESTS = ROOT / "tests"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

LONGEST_FUNCTION = 60  # lines, its docstring included: what fits a screen
LONGEST_MODULE = 500

LONG_FUNCTIONS: set[str] = {
    "workers.commands.explain.explain",
}
LONG_MODULES: set[str] = {
    "workers.core.windows.engine",
}
PRIVATE_IMPORTS: set[str] = set()
SAME_NAMES: set[str] = set()
UNTESTED: set[str] = set()


def _long_functions() -> Iterator[str]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    yield f"{module}.{node.name}"


def _long_modules() -> Iterator[str]:
    return (module for module, path in MODULES.items() if len(path.read_text().splitlines()) > LONGEST_MODULE)


def _private_imports() -> Iterator[str]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workers"):
                for alias in node.names:
                    if alias.name == "_native":
                        continue  # a module, named as extensions are
                    if alias.name.startswith("_") and not alias.name.startswith("__"):
                        yield f"{module} from {node.module} import {alias.name}"


def _same_names() -> Iterator[str]:
    defined = defaultdict(set)
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].add(module)
    return (name for name, modules in defined.items() if len(modules) > 1)


def _untested() -> Iterator[str]:
    """Modules that no test names, and that have no test of their own in their room's folder; those that ``python -m``
    runs are named by their package."""
    named = set()
    for path in set(TESTS.rglob("*.py")) - {Path(__file__)}:
        named |= set(re.findall(r"workers(?:\.\w+)+", path.read_text()))
    named |= {f"{package}.{name}" for package in list(named) for name in _imported_from(package)}
    rooms = {".".join(path.relative_to(TESTS / "unit").parts) for path in (TESTS / "unit").rglob("*") if path.is_dir()}
    for module, path in MODULES.items():
        room = module.removeprefix("workers.").rpartition(".")[0]
        if not path.name.startswith("__") and module not in named and room not in rooms:
            yield module


def _imported_from(package: str) -> set[str]:
    found = set()
    for path in TESTS.rglob("*.py"):
        for names in re.findall(rf"^\s*from {re.escape(package)} import ([^(\n]+)", path.read_text(), re.MULTILINE):
            found |= {each.strip().partition(" as ")[0] for each in names.split(",")}
    return found


@pytest.mark.parametrize(
    ("found", "excepted"),
    [
        (_long_functions, LONG_FUNCTIONS),
        (_long_modules, LONG_MODULES),
        (_private_imports, PRIVATE_IMPORTS),
        (_same_names, SAME_NAMES),
        (_untested, UNTESTED),
    ],
    ids=[
        "functions fit a screen",
        "modules are short",
        "private names stay",
        "classes have names of their own",
        "tests",
    ],
)
def test_the_house_is_tidy(found: object, excepted: set[str]) -> None:
    assert callable(found)
    now = set(found())
    assert not now - excepted, f"new: {sorted(now - excepted)}"
    assert not excepted - now, f"no longer needed in the list of exceptions: {sorted(excepted - now)}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{MODULES[module].relative_to(ROOT)} has no docstring"
