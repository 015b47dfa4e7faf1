"""Write the settings' tables into README.md, between the two markers: ``make readme``."""

from __future__ import annotations

from pathlib import Path

from workers.commands.config import markdown_tables
from workers.settings.reference import reference

__all__ = ["BEGIN", "END", "updated"]

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- settings: begin; made by `make readme` -->"
END = "<!-- settings: end -->"


def updated(text: str) -> str:
    """The README with the tables as the code has them. Raises ``ValueError`` where a marker is missing."""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has lost a marker; expected {BEGIN!r} and then {END!r}")
    return f"{before}{begin}\n\n{markdown_tables(reference())}\n{end}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
