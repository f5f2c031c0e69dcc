"""How an `Upstream` reaches its server: over the pipes of a process, or over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

from .jsonrpc import Id, Message

Kind = Literal["http", "sse"]


@dataclass(frozen=True, kw_only=True)
class Grant:
    """How leave is got.

    Attributes:
        issuer: Of the authorization server; nothing is sent to another one.
        client_id: "" registers a client with it (RFC 7591).
        client_secret: With it the grant is `client_credentials`; "" is the authorization code.
        scope: Asked for; "" is what the server names.
    """

    issuer: str
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scope: str = ""


@dataclass(frozen=True)
class Ears:
    """Who is told what comes over a link.

    Attributes:
        frame: A frame, and the id of the request of ours on whose answer's stream it came; None
            where nothing says so.
        oversize: The beginning of a frame over the limit.
        ended: Called once: the link has ended, and how.
    """

    frame: Callable[[bytes, Id | None], None]
    oversize: Callable[[bytes], None]
    ended: Callable[[Link, str], None]


class Link(Protocol):
    """A connection to a server."""

    @property
    def buffered_bytes(self) -> int:
        """What it has not taken yet."""
        ...

    def send(self, message: Message) -> None:
        """Queue one. Raises `ValueError`: it is no JSON."""
        ...

    def greeted(self, era: Literal["legacy", "modern"], version: str) -> None:
        """The handshake is done: what both have agreed on."""
        ...

    def pause(self) -> None:
        """Read no more until as many `resume` have come."""
        ...

    def resume(self) -> None:
        """Take one `pause` back."""
        ...

    async def aclose(self, *, at_once: bool = False) -> None:
        """End it; `at_once` without giving the server time."""
        ...


class Connector(Protocol):
    """Makes links to one server, one after the other.

    Attributes:
        is_legacy: It cannot speak 2026-07-28.
        is_shared: It serves others, too, who may look the same to it.
    """

    is_legacy: bool
    is_shared: bool

    def connect(self, ears: Ears) -> Link:
        """A new link; what is wrong with it is told to `ears.ended`."""
        ...

    def last(self) -> str:
        """What the server said last outside the protocol, to be added to a sentence; "" for none."""
        ...

    def say(self, line: bytes) -> None:
        """Take note of a line that is not the protocol's."""
        ...

    def close(self) -> None:
        """No more links will be made."""
        ...


def destination(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises `ValueError`: no such URL, or one with a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url[:200]!r} is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with user name or password is not taken; use headers")
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
