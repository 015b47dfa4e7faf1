"""``python -m workers.apps.broker``: one broker in the foreground, until Ctrl-C or SIGTERM.

Prints ``bootstrap=host:port`` as soon as clients can use it. Exit codes: 0 after Ctrl-C or SIGTERM, 1 when no broker
could be had or it ended by itself, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from workers.apps.broker.base import Broker
from workers.apps.broker.find import find_broker
from workers.errors import WorkersError

__all__ = ["main"]

_LOOK_EVERY_S = 1.0


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(argv)
    enough = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: enough.set())
    try:
        with find_broker(way=options.way, config=dict(options.config)) as broker:
            print(f"bootstrap={broker.bootstrap_servers}", flush=True)
            print(f"{broker.description}; Ctrl-C stops it. For other shells:", file=sys.stderr, flush=True)
            print(f"  export KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}", file=sys.stderr, flush=True)
            return _watch(broker, enough)
    except WorkersError as error:
        print(f"workers.apps.broker: {error}", file=sys.stderr)
        return 1


def _watch(broker: Broker, enough: threading.Event) -> int:
    while not enough.wait(_LOOK_EVERY_S):
        if not broker.running():
            print(f"workers.apps.broker: {broker!r} ended by itself", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.apps.broker", description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=("auto", "env", "docker", "jvm"), default="auto", help="default: auto")
    parser.add_argument(
        "--config",
        metavar="KEY=VALUE",
        type=_key_value,
        action="append",
        default=[],
        help="a server property, like log.segment.bytes=1048576; may be repeated",
    )
    return parser


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
