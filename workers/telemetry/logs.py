"""Logging: structured events on standard error, for people on a terminal and as JSON lines elsewhere.

Other libraries log through the standard library; their lines come out in the same form.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

    from workers.settings import LoggingSettings

__all__ = ["CLIENT_LOGGER", "Sparing", "configure_logging"]

CLIENT_LOGGER: Final = "aiokafka"
"""What the Kafka client's loggers are below."""


def configure_logging(settings: LoggingSettings, *, debug: bool = False, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process.

    The Kafka client logs every retry of an outage as an error and every rebalance step as information; below
    ``debug`` only its warnings are let through.
    """
    stream = sys.stderr if stream is None else stream
    level = logging.DEBUG if debug else getattr(logging, settings.level.upper())
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(stream, as_json)],
        )
    )
    if level > logging.DEBUG:
        handler.addFilter(Sparing(level))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger(CLIENT_LOGGER).setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


_PASSING: Final = re.compile(
    # Numbers are Kafka's: a topic that is new, a leader or a coordinator that is being chosen or comes up.
    r"\[Error (3|5|6|14|15|16)\]|not found in cluster metadata|because it is rebalancing|arking the coordinator dead"
)
"""What the client says in any healthy run: of a first start, a rebalance, a broker that was started again."""


class Sparing(logging.Filter):
    """Lets a message of the Kafka client through once in ten seconds, and says how often it was left out meanwhile.

    With the broker away the client logs hundreds of errors a second, all alike: nobody could read the rest. What comes
    in any healthy run is let through where it goes on for ten seconds. And nothing that the client says is more than a
    warning, or has a traceback: what it tries again is none, and of what it gives up it tells its caller as well.
    """

    def __init__(
        self, level: int = logging.INFO, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._level = level
        self._every_s = every_s
        self._clock = clock
        self._passing: dict[tuple[str, str], tuple[float, float]] = {}  # since when, and when last; one a call site
        self._shown: dict[tuple[str, str], tuple[float, int]] = {}  # when last, and how many since; one a call site

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged; its message then tells of those left out."""
        if not record.name.startswith(CLIENT_LOGGER):
            return True
        if self._level > logging.WARNING:
            return False
        where, now_s = (record.pathname, str(record.lineno)), self._clock()
        if _PASSING.search(record.getMessage()) and self._is_short(where, now_s):
            return False
        _as_warning(record)
        last_s, left_out = self._shown.get(where, (-math.inf, 0))
        if now_s - last_s < self._every_s:
            self._shown[where] = (last_s, left_out + 1)
            return False
        self._shown[where] = (now_s, 0)
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out} more like it)"
            record.args = ()
        return True

    def _is_short(self, where: tuple[str, str], now_s: float) -> bool:
        """Whether what passes by itself has not gone on for long."""
        since_s, last_s = self._passing.get(where, (now_s, now_s))
        if now_s - last_s > self._every_s:
            since_s = now_s
        self._passing[where] = (since_s, now_s)
        return now_s - since_s < self._every_s


def _as_warning(record: logging.LogRecord) -> None:
    if record.exc_info:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]!r}", ()
        record.exc_info = record.exc_text = None
    if record.levelno > logging.WARNING:
        record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)


def _renderers(stream: TextIO, as_json: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
