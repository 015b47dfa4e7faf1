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
        "--format", metavar="ndjson|csv", help="File format, if the file's name does not say.", rich_help_panel=_FILE
    ),
]
FieldMap = Annotated[
    str | None,
    typer.Option(
        "--field-map",
        metavar="ts=T,price=p",
        help="The file's fields for symbol, ts, price and size, if they are named differently.",
        rich_help_panel=_FILE,
    ),
]
MaxJump = Annotated[
    str | None,
    typer.Option(
        "--max-jump",
        metavar="DURATION",
        help="Hold a row that jumps ahead by more than this until its symbol's next row, and skip it if that goes "
        "back; 0: off. Default: 1d for files, 0 for pipes.",
        rich_help_panel=_FILE,
    ),
]
CheckFile = Annotated[
    Path | None,
    typer.Option(
        "--check",
        metavar="FILE",
        help="Send nothing; report what workers would make of the file. Needs no broker.",
        rich_help_panel=_FILE,
    ),
]
Synthetic = Annotated[bool, typer.Option("--synthetic", help="Generate ticks instead.", rich_help_panel=_MARKET)]
Symbols = Annotated[
    int, typer.Option(min=1, max=10_000_000, help="Number of symbols, traded by Zipf's law.", rich_help_panel=_MARKET)
]
Disorder = Annotated[
    str, typer.Option(metavar="DURATION", help="How far ticks are out of order.", rich_help_panel=_MARKET)
]
Count = Annotated[int | None, typer.Option(min=1, help="Stop after N ticks.", rich_help_panel=_MARKET)]
Duration = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Stop after this long.", rich_help_panel=_MARKET)
]
Seed = Annotated[int, typer.Option(help="Same seed, same ticks.", rich_help_panel=_MARKET)]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Event time of the first tick (RFC 3339), for reproducible data; default: now.",
        rich_help_panel=_MARKET,
    ),
]
LateFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of ticks that come too late.", rich_help_panel=_MARKET)
]
BadFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of records that are not valid ticks.", rich_help_panel=_MARKET)
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Ticks per second; 0: as fast as possible. Default: 1000 synthetic, 0 file. With --start it also spaces "
        "event times, and paces sending only if given.",
    ),
]
Speed = Annotated[
    float | None,
    typer.Option(min=0, help="Replay by event time: 1 in real time, 60 a minute per second, 0 without waiting."),
]
Finish = Annotated[
    bool,
    typer.Option(
        "--finish",
        help="When all is delivered, mark the end of the input, which emits all open windows. Alone: only mark it.",
    ),
]
Adaptive = Annotated[
    bool,
    typer.Option("--adaptive", help="Slow down or stop with the group's lag and the store's queue."),
]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65_535, help="Serve metrics and health on this port; 0: any free one."),
]
Topic = Annotated[str | None, typer.Option(help="Topic to send to; default: topics.ticks. Created if missing.")]
