"""The Python shown in the documents runs as it stands, and prints what is shown below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from workers.settings import load_settings
from workers.settings.lane import lane_spec

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "docs" / "windows.md", ROOT / "docs" / "operators.md")
BLOCK = re.compile(
    r"^```python\n(?P<program>.*?)^```$(?:\n\n```text\n(?P<printed>.*?)^```$)?", re.MULTILINE | re.DOTALL
)

EXAMPLES = [
    pytest.param(
        found["program"], found["printed"], id=f"{path.name}:{path.read_text()[: found.start()].count(chr(10)) + 1}"
    )
    for path in DOCUMENTS
    for found in BLOCK.finditer(path.read_text())
]


@pytest.mark.parametrize(("program", "printed"), EXAMPLES)
def test_the_example_runs_and_prints_what_is_shown(program: str, printed: str | None, tmp_path: Path) -> None:
    """In a process and a directory of its own, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    if printed is not None:
        assert done.stdout == printed


def test_there_are_examples_to_run() -> None:
    assert len(EXAMPLES) >= 3


def test_an_example_that_fails_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        test_the_example_runs_and_prints_what_is_shown("1 / 0", None, tmp_path)
    with pytest.raises(AssertionError):
        test_the_example_runs_and_prints_what_is_shown("print(1)", "2\n", tmp_path)


@pytest.mark.parametrize(
    "block", re.findall(r"^```toml\n(.*?)^```$", DOCUMENTS[0].read_text(), re.MULTILINE | re.DOTALL)
)
def test_the_configuration_shown_is_possible(block: str, tmp_path: Path) -> None:
    (file := tmp_path / "workers.toml").write_text(block)
    lane_spec(load_settings(file, environ={})).rules()
