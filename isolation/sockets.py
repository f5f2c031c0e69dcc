"""Sockets inside sandboxes, as the gateway asks for them: the zygote makes them and hands them over."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from .errors import SetupError
from .netns import Want
from .outbox import Outbox

NO_ROOM = "no more files can be open here (RLIMIT_NOFILE, `ulimit -n`)"
_Found = list[socket.socket | None]


class Sockets:
    """What has been asked for and has not come yet.

    Args:
        zygote: Where it is asked for.
    """

    def __init__(self, zygote: Outbox) -> None:
        self._zygote = zygote
        self._asked: deque[asyncio.Future[_Found]] = deque()  # they are answered in order

    async def inside(self, number: int, wanted: Sequence[Want]) -> _Found:
        """As `Link.sockets_inside`, of the sandbox with that number."""
        future: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._zygote.send(json.dumps({"inside": number, "wanted": wanted}).encode())
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                for sock in filter(None, future.result()):
                    sock.close()
            raise

    def came(self, answer: dict[str, Any], fds: Sequence[int]) -> None:
        """Take what the zygote says, and the descriptors that came with it."""
        future = self._asked.popleft()
        left = deque(socket.socket(fileno=fd) for fd in fds)
        if future.done() or answer["error"] or len(fds) != answer["failed"].count(0):
            while left:
                left.popleft().close()
            if not future.done():
                why = answer["error"] or NO_ROOM
                future.set_exception(SetupError(f"no socket in the sandbox: {why}"))
            return
        for sock in left:
            sock.setblocking(False)
        future.set_result([None if code else left.popleft() for code in answer["failed"]])

    def lost(self, why: str) -> None:
        """Tell whoever waits that there will be none."""
        while self._asked:
            future = self._asked.popleft()
            if not future.done():
                future.set_exception(SetupError(why))
