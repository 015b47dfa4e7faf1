"""Who may look at the dashboard. Pure: headers and addresses come in, a decision comes out.

| danger | answer |
|---|---|
| anybody on the network | listens on loopback; another address needs a token, compared in constant time |
| a page of somebody else's that has its own name resolve to this host (DNS rebinding) | the Host header must be ours |
| a page of somebody else's that opens the socket | the Origin header must be that of the page served |
| a token that shows in addresses, logs and referrers | it is traded for a cookie at once; the cookie holds a digest |

The token travels in clear text, as does the page: over a network that is not trusted, put a proxy with TLS in front.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from workers.errors import ConfigError

__all__ = ["COOKIE", "Access"]

COOKIE: Final = "workers-dashboard"
MIN_TOKEN_CHARS: Final = 16
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """The rules for one address. Raises ``ConfigError`` where an address needs a token and has none, or a weak one."""

    host: str
    token: str | None = None
    allowed_hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} lets others than this machine look, so it needs a token: set "
                "WORKERS_DASHBOARD_TOKEN (or --token), or leave --host at 127.0.0.1"
            )
        if self.token is not None and len(self.token) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"the dashboard's token has {len(self.token)} characters; expected at least {MIN_TOKEN_CHARS}, as "
                "python -c 'import secrets; print(secrets.token_urlsafe())' gives"
            )

    @classmethod
    def to(cls, host: str, token: str | None, allowed_hosts: Iterable[str] = ()) -> Access:
        """The rules for an address to listen on; ``allowed_hosts`` are further names that it is reached by."""
        return cls(host, token or None, frozenset(name.strip("[]").lower() for name in allowed_hosts))

    @property
    def cookie(self) -> str:
        """What the cookie of somebody who knew the token holds: the same after a restart, and not the token."""
        assert self.token is not None
        return hmac.new(self.token.encode(), b"workers dashboard cookie", hashlib.sha256).hexdigest()

    def right_token(self, given: str) -> bool:
        """Whether it is the token; takes as long for a wrong one."""
        return self.token is not None and _same(given, self.token)

    def may_look(self, cookie: str | None, authorization: str | None) -> bool:
        """Whether a request with these headers may see anything."""
        if self.token is None:
            return True
        if cookie is not None and _same(cookie, self.cookie):
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and _same(given.strip(), self.token)

    def right_host(self, host_header: str | None) -> bool:
        """Whether a request was meant for here: a Host header with one of our names.

        An address instead of a name can't be rebound, so any is taken where others than this machine may look.
        """
        name = _host_name(host_header)
        if name is None:
            return False
        if name in _LOOPBACK_NAMES or name in self.allowed_hosts or name == self.host.lower():
            return True
        return not is_loopback(self.host) and (_is_address(name) or name == socket.gethostname().lower())

    @staticmethod
    def right_origin(origin: str | None, host_header: str | None) -> bool:
        """Whether a request comes from the page itself; one without an Origin header comes from no page."""
        if origin is None:
            return True
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host_header is not None and host.lower() == host_header.lower()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass"))


def _host_name(header: str | None) -> str | None:
    """The name in a Host header, without port and brackets."""
    if not header:
        return None
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        return name.lower() if bracket and (not port or port[1:].isdigit()) else None
    name, _, port = header.partition(":")
    return name.lower() if not port or port.isdigit() else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
