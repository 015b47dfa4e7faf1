"""The options of ``workers produce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Adaptive",
    "BadFraction",
    "CheckFile",
    "Count",
    "Disorder",
    "Duration",
    "FieldMap",
    "FileFormat",
    "Finish",
    "LateFraction",
    "MaxJump",
    "MetricsPort",
    "Rate",
    "Seed",
    "Speed",
    "Start",
    "Symbols",
    "Synthetic",
    "TicksFile",
    "Topic",
]

_MARKET = "Synthetic market"
_FILE = "File"

TicksFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="NDJSON or CSV, also .gz or .zst; - for standard input.",
        rich_help_panel=_FILE,
    ),
]
FileFormat = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="ndjson|csv", help="What the file is, if its name does not say.", rich_help_panel=_FILE
    ),
]
FieldMap = Annotated[
    str | None,
    typer.Option(
        "--field-map",
        metavar="ts=T,price=p",
        help="Which of the file's fields are symbol, ts, price and size, where they have other names.",
        rich_help_panel=_FILE,
    ),
]
MaxJump = Annotated[
    str | None,
    typer.Option(
        "--max-jump",
        metavar="DURATION",
        help="Hold a row further ahead in time of all before it until its symbol's next row, and don't send it if "
        "that goes back; 0 sends all. Files: 1d; pipes: 0.",
        rich_help_panel=_FILE,
    ),
]
CheckFile = Annotated[
    Path | None,
    typer.Option(
        "--check",
        metavar="FILE",
        help="Send nothing: say what workers would make of the file. Needs no broker.",
        rich_help_panel=_FILE,
    ),
]
Synthetic = Annotated[bool, typer.Option("--synthetic", help="Make ticks up instead.", rich_help_panel=_MARKET)]
Symbols = Annotated[
    int, typer.Option(min=1, max=10_000_000, help="Symbols traded, by Zipf's law.", rich_help_panel=_MARKET)
]
Disorder = Annotated[
    str, typer.Option(metavar="DURATION", help="How far ticks come out of order.", rich_help_panel=_MARKET)
]
Count = Annotated[int | None, typer.Option(min=1, help="Stop after so many ticks.", rich_help_panel=_MARKET)]
Duration = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Stop after this time.", rich_help_panel=_MARKET)
]
Seed = Annotated[int, typer.Option(help="The same seed, the same ticks.", rich_help_panel=_MARKET)]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Event time of the first tick (RFC 3339), for data that can be made again; else now.",
        rich_help_panel=_MARKET,
    ),
]
LateFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Share of ticks that come too late.", rich_help_panel=_MARKET)
]
BadFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Share of records that are no ticks.", rich_help_panel=_MARKET)
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Ticks a second, 0 for as fast as possible. Synthetic: 1000; file: 0; with --start also that of the "
        "event times, and not waited for unless given.",
    ),
]
Speed = Annotated[
    float | None,
    typer.Option(min=0, help="Replay by event time, 1 as it happened, 60 a minute a second, 0 without waiting."),
]
Finish = Annotated[
    bool,
    typer.Option(
        "--finish",
        help="When all is delivered, say that the input has ended: what is open comes out. Alone: say only that.",
    ),
]
Adaptive = Annotated[
    bool,
    typer.Option("--adaptive", help="Slow down and stop as the group's lag or the store's queue asks for."),
]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65_535, help="Serve metrics and health there; 0 takes a free port."),
]
Topic = Annotated[str | None, typer.Option(help="Where to; else topics.ticks. Made if it is missing.")]
