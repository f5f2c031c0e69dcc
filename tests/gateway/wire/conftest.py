"""A server on the other side of the wire, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from purplebox.gateway.wire import jsonrpc
from purplebox.gateway.wire.links import Ears


class Peer:
    """A server of one era; a `Connector` and its `Link`.

    Args:
        era: "legacy" or "modern".
        take: Called with each message that it gets, once that is noted.
        is_shared: As `Connector.is_shared`.
    """

    buffered_bytes = 0

    def __init__(self, era: str, take: Callable[[Any], None], *, is_shared: bool = False) -> None:
        self.era, self.is_legacy, self.is_shared = era, era == "legacy", is_shared
        self.got: list[Any] = []
        self._take = take
        self.ears: Ears

    def connect(self, ears: Ears) -> Any:
        self.ears = ears
        return self

    def say(self, line: bytes) -> None: ...
    def close(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def greeted(self, era: Any, version: str) -> None: ...
    async def aclose(self, *, at_once: bool = False) -> None: ...

    def last(self) -> str:
        return ""

    def send(self, message: Any) -> None:
        self.got.append(message)
        self._take(message)

    def hear(self, **message: Any) -> None:
        """Have the gateway hear a message, now."""
        self.ears.frame(jsonrpc.encode({"jsonrpc": "2.0", **message}), None)

    def emit(self, **message: Any) -> None:
        """Have it hear a message in the loop's next turn."""
        asyncio.get_running_loop().call_soon(lambda: self.hear(**message))


@pytest.fixture
def make_peer() -> type[Peer]:
    return Peer
