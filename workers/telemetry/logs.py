"""Logging: structured events on standard error, for people on a terminal and as JSON lines elsewhere.

Other libraries log through the standard library; their lines come out in the same form.
"""

from __future__ import annotations

import logging
import math
import os
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
        handler.addFilter(Sparing())
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


class Sparing(logging.Filter):
    """Lets a message of the Kafka client through once in ten seconds, and says how often it was left out meanwhile.

    With the broker away the client logs hundreds of errors a second, all alike: nobody could read the rest.
    """

    def __init__(self, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._shown: dict[tuple[str, str], tuple[float, int]] = {}  # when last, and how many since; one a call site

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged; its message then tells of those left out."""
        if not record.name.startswith(CLIENT_LOGGER):
            return True
        where = (record.pathname, str(record.lineno))
        last_s, left_out = self._shown.get(where, (-math.inf, 0))
        now_s = self._clock()
        if now_s - last_s < self._every_s:
            self._shown[where] = (last_s, left_out + 1)
            return False
        self._shown[where] = (now_s, 0)
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out} more like it)"
            record.args = ()
        return True


def _renderers(stream: TextIO, as_json: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
