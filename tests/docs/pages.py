"""The pages of the documentation site as a reader goes through them: what is in a block of code, and what is to happen.

A note in front of a block says what its reader does with it, where that is not just to run it:

    <!-- test: file trades.csv -->                   save it under this name
    <!-- test: background until: worker started -->  run it in a terminal of its own, and go on when it says that
    <!-- test: wait 30 s for: none different -->     run it, again if need be, until it says that
    <!-- test: ends with 2 -->                       run it; its last line ends with this exit code
    <!-- test: pasted -->                            paste it whole into one shell, which ends by itself
    <!-- test: output -->                            what the block before says: each line, with ... for anything
    <!-- test: output, in any order -->
    <!-- test: needs CLIENT_JARS -->                  run it where this can be had
    <!-- test: instead: COMMAND
    because: REASON -->                              run this instead
    <!-- test: not run
    because: REASON -->                              look at its syntax only

Without a note `python` runs by itself and prints what its comments say, `console` and `sh` run line by line in the
page's one shell, `toml` is a configuration that is possible, `json` and `yaml` can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["DOCS", "PAGES", "README", "ROOT", "Block", "blocks", "lines_of", "misses"]

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
OTHERS: Final = {"windows.md", "operators.md"}  # tests/unit/test_docs_examples.py has these
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted(path for path in DOCS.rglob("*.md") if str(path.relative_to(DOCS)) not in OTHERS))

Verb = Literal["run", "file", "background", "wait", "ends", "pasted", "output", "needs", "instead", "not run"]
_INCLUDE: Final = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
_BLOCK: Final = re.compile(
    r"(?:^<!-- test: (?P<note>(?:(?!-->).)+?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NOTE: Final = re.compile(r"^<!-- test:", re.MULTILINE)
_NOTES: Final[tuple[tuple[Verb, re.Pattern[str]], ...]] = (
    ("file", re.compile(r"file (?P<what>[\w.-]+)")),
    ("background", re.compile(r"background until: (?P<what>.+)")),
    ("wait", re.compile(r"wait (?P<number>\d+) s for: (?P<what>.+)")),
    ("ends", re.compile(r"ends with (?P<number>\d+)")),
    ("pasted", re.compile(r"pasted")),
    ("output", re.compile(r"output(?P<what>, in any order)?")),
    ("needs", re.compile(r"needs (?P<what>[A-Z_]+)")),
    ("instead", re.compile(r"instead: (?P<what>.+)\nbecause: (?P<reason>.+)")),
    ("not run", re.compile(r"not run\nbecause: (?P<reason>.+)")),
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and what its reader does with it."""

    page: Path
    line: int
    language: str
    body: str
    verb: Verb
    what: str = ""
    number: int = 0

    @property
    def where(self) -> str:
        """Where it is, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, with those of included files. Raises ``ValueError`` for a note that says nothing known."""
    text = _INCLUDE.sub(_included, page.read_text())
    found = [_block(page, text, match) for match in _BLOCK.finditer(text)]
    noted = sum(1 for match in _BLOCK.finditer(text) if match["note"])
    if noted != len(_NOTE.findall(text)):
        raise ValueError(f"{page}: a note `<!-- test: ... -->` stands in front of no block")
    return found


def _included(match: re.Match[str]) -> str:
    path = (DOCS / match[1]).resolve()
    language = "yaml" if path.suffix in (".yml", ".yaml") else {".py": "python"}.get(path.suffix, "text")
    return f"```{language}\n{path.read_text().rstrip()}\n```"


def _block(page: Path, text: str, match: re.Match[str]) -> Block:
    line = text.count("\n", 0, match.start("body"))
    note = match["note"]
    if note is None:
        return Block(page, line, match["language"], match["body"], "run")
    for verb, pattern in _NOTES:
        if (said := pattern.fullmatch(note)) is not None:
            groups = said.groupdict(default="")
            return Block(
                page, line, match["language"], match["body"], verb, groups.get("what", ""), int(groups.get("number", 0))
            )
    raise ValueError(f"{page}:{line}: the note {note!r} is none that is known, or lacks its reason")


def lines_of(body: str) -> list[str]:
    """The commands of a block, one for each line; a backslash at the end goes on with the next."""
    return [line for line in body.replace("\\\n", " ").splitlines() if line.strip()]


def misses(expected: str, output: str, *, in_order: bool) -> Iterator[str]:
    """Lines that were said to be in an output and are not; ``...`` stands for anything, blanks count as one."""
    flat = re.sub(r"[ \t]+", " ", output)
    begin = 0
    for line in expected.splitlines():
        wanted = re.sub(r"[ \t]+", " ", line).strip()
        pattern = ".*?".join(re.escape(part.strip(" ")) if part.strip() else "" for part in wanted.split("..."))
        found = re.compile(pattern).search(flat, begin if in_order else 0)
        if found is None:
            yield line
        elif in_order:
            begin = found.end()
