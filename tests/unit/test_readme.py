"""What the documents say is so: commands parse, settings exist, links lead somewhere, examples run, tests exist."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from workers.commands.cli import app
from workers.settings import load_settings
from workers.settings.reference import reference

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = tuple(sorted((ROOT / "docs").rglob("*.md")))
SECURE = ROOT / "docs" / "howto" / "security.md"
DOCUMENTS = (README, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")), *PAGES)
README_LIMIT_BYTES = 8_192
PACKAGE = ROOT / "workers"
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
KEYS = {row.key for row in reference()}
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key} - {"kafka"}
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
OPENINGS = (["workers"], ["python", "-m", "workers"], ["docker", "compose", "run", "--rm", "worker"])
ENVIRONMENT_OF_OTHERS = {"KAFKA_HOST_PORT"}  # the compose file's own


def _ids(paths: tuple[Path, ...] | list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def _blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(path.read_text()) if language in languages]


def _inline(path: Path) -> list[str]:
    found: list[str] = INLINE.findall(BLOCK.sub("", path.read_text()))
    return found


def _shell_lines(path: Path) -> Iterator[str]:
    for block in _blocks(path, "console", "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def _commands(path: Path) -> list[list[str]]:
    """Every command of `workers` in the shell blocks, and in backquotes, as its arguments."""
    named = [text for text in _inline(path) if text.startswith("workers ")]
    found = []
    for line in (*_shell_lines(path), *named):
        words = shlex.split(re.sub(r"( \d?> ?\S+)? &$", "", line.partition(" | ")[0]), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        opening = next((each for each in OPENINGS if words[: len(each)] == each), None)
        if opening is not None:
            found.append(words[len(opening) :])
    return found


def _parse(arguments: list[str]) -> None:
    """Parse a command line as the command itself does, without running it; a command that is only named must exist.

    typer brings a click of its own or takes the installed one, so neither is imported here.
    """
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="workers")
    while arguments and hasattr(command, "commands") and not arguments[0].startswith("-"):
        _name, command, arguments = command.resolve_command(context, arguments)
        context = command.context_class(command, info_name=command.name, parent=context)
    if arguments:
        command.parse_args(context, list(arguments))


@pytest.fixture(scope="module")
def reference_script() -> ModuleType:
    """`docs/generate_reference.py`, as a module."""
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _slugs(path: Path) -> set[str]:
    """The anchors that headings have, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_can_be_read_at_one_sitting() -> None:
    assert len(README.read_bytes()) <= README_LIMIT_BYTES, "move what not every reader needs to docs/"


def test_own_bars_take_six_lines_that_can_be_pasted() -> None:
    """`tests/docs` pastes them; here is only what would keep a shell from coming to its next line."""
    (lines,) = [body.splitlines() for body in _blocks(README, "console") if "workers run" in body]
    assert len(lines) == 6
    for line in lines:
        assert " tail " not in line or "--max-messages" in line or "--exit-when-idle" in line
        assert " run" not in line or line.endswith("&")


@pytest.mark.parametrize("path", PAGES, ids=_ids(PAGES))
def test_what_a_page_takes_from_the_code_is_what_the_code_has(path: Path, reference_script: ModuleType) -> None:
    text = path.read_text()
    assert reference_script.updated(text) == text, f"{path.name} is behind the code; run `make reference`"


def test_a_page_that_is_behind_the_code_or_lacks_a_marker_would_be_noticed(reference_script: ModuleType) -> None:
    page = "<!-- generated: exit-codes -->\n\n| 0 | Fine. |\n\n<!-- end: exit-codes -->\n"
    assert "Fine." not in reference_script.updated(page)
    for cut in ("<!-- generated: exit-codes -->\n", "<!-- end: exit-codes -->\n"):
        with pytest.raises(ValueError, match="in pairs"):
            reference_script.updated(page.replace(cut, ""))


def test_no_page_of_the_reference_is_hollow() -> None:
    for path in (ROOT / "docs" / "reference").glob("*.md"):
        assert all(
            each.strip() for each in re.findall(r"<!-- generated: \S+ -->(.*?)<!-- end", path.read_text(), re.DOTALL)
        )


def test_the_settings_tables_name_every_setting_once_with_its_default() -> None:
    tables = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)`<br>.*? \| (?:`(.*?)`)? *\|", tables, re.MULTILINE)
    assert sorted(key for key, _default in rows) == sorted(row.key for row in reference())
    assert dict(rows)["window.lag"] == "2s"


@pytest.mark.parametrize("path", DOCUMENTS, ids=_ids(DOCUMENTS))
def test_every_command_named_exists_and_takes_its_options(path: Path) -> None:
    commands = _commands(path)
    for arguments in commands:
        try:
            _parse(arguments)
        except USAGE_ERROR as error:
            pytest.fail(f"{path.name}: workers {' '.join(arguments)}: {error}")
    if path == README:
        assert len(commands) >= 5


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for wrong in (["rum"], ["tail", "framez"], ["lag", "--json=2", "--nothing"], ["topics", "make"]):
        with pytest.raises(USAGE_ERROR):
            _parse(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=_ids(DOCUMENTS))
def test_every_make_target_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for line in (*_shell_lines(path), *_inline(path)) if (words := line.split())[0] == "make"}
    assert named <= targets
    if path == README:
        assert {"demo", "test"} <= named


@pytest.mark.parametrize("path", DOCUMENTS, ids=_ids(DOCUMENTS))
def test_every_setting_and_variable_named_exists(path: Path) -> None:
    text = path.read_text()
    dotted = {
        word.removeprefix("--set ").partition("=")[0].strip()
        for word in (*_inline(path), *re.findall(r"--set [a-z_.]+", text))
        if word.removeprefix("--set ").partition(".")[0] in SECTIONS
    }
    settings = {word for word in dotted if re.fullmatch(r"[a-z_]+\.[a-z_.]+", word) and not word.endswith(".py")}
    assert settings <= KEYS
    ours = {name for name in re.findall(r"\bWORKERS__(\w+)", text) if name != "SECTION__KEY"}
    assert {name.lower().replace("__", ".") for name in ours} <= KEYS
    kafka = {key.replace(".", "_").upper() for key in KEYS if key.startswith("kafka.")} | {"KAFKA_BOOTSTRAP_SERVERS"}
    assert set(re.findall(r"\bKAFKA_[A-Z_]*[A-Z]\b", text)) <= kafka | ENVIRONMENT_OF_OTHERS


def test_the_configuration_shown_is_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secret := tmp_path / "secret").write_text("secret\n")
    for block in _blocks(SECURE, "toml")[:1]:
        (file := tmp_path / "workers.toml").write_text(re.sub(r'"/run/secrets/[^"]+"', f'"{secret}"', block))
        load_settings(file, environ={})
    exports = [line.removeprefix("export ") for line in _shell_lines(SECURE) if line.startswith("export ")]
    environ = dict(line.replace("/run/secrets/sasl-password", str(secret)).split("=", 1) for line in exports)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workers.toml").unlink()
    settings = load_settings(environ=environ)
    assert (settings.application_id, settings.kafka.security_protocol) == ("bars-5s", "SASL_SSL")


@pytest.mark.parametrize("path", DOCUMENTS, ids=_ids(DOCUMENTS))
def test_every_link_inside_the_project_leads_somewhere(path: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in _slugs(file), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=_ids(DOCUMENTS))
def test_every_test_named_exists(path: Path) -> None:
    named = re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", path.read_text())
    for file, name in named:
        assert (ROOT / file).is_file(), f"{path.name} names {file}"
        assert not name or re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{path.name} names {file}::{name}"
    if path == README:
        assert len(named) >= 4


def _run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=_ids(EXAMPLES))
def test_the_examples_run(path: Path) -> None:
    assert _run_python(str(path)).strip()


def test_the_example_aggregation_is_what_a_worker_would_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import Aggregation
    from workers.core.aggregates import load_aggregation

    page = (ROOT / "docs" / "howto" / "aggregation.md").read_text()
    (name,) = set(re.findall(r"window\.aggregation=(\S+:\w+)", page))
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    assert isinstance(load_aggregation(name), Aggregation)


def test_the_architecture_and_the_guide_name_files_that_exist() -> None:
    for document in (ROOT / "docs" / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"):
        named = {name for name in _inline(document) if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", name)}
        gone = [name for name in named if not any((root / name).exists() for root in (ROOT, PACKAGE))]
        assert not gone, f"{document.name} names {', '.join(sorted(gone))}"
        assert len(named) > 20


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert {f"`{path.parent.name}/`" for path in PACKAGE.glob("*/__init__.py")} <= set(re.findall(r"`\w+/`", text))


@pytest.mark.parametrize("room", ROOMS, ids=_ids(ROOMS))
def test_each_room_says_what_its_files_are_for(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    inside = [path for path in room.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    missing = sorted(path.stem for path in inside if not path.stem.startswith("__") and f"`{path.stem}`" not in said)
    assert not missing, f"workers/{room.relative_to(PACKAGE)}/__init__.py says nothing of {', '.join(missing)}"
