"""The executions of one engine that have not ended."""

from __future__ import annotations

import asyncio
from typing import Protocol

from .marks import Marks

_END_SECONDS = 10.0  # after SIGKILL; whoever is not gone by then loses the zygote, too


class Killable(Protocol):
    """An `Execution`."""

    marks: Marks

    def kill(self) -> None:
        """SIGKILL to all of it."""
        ...


class Running:
    """Whoever runs says when it begins, and when all has been done that comes after its end.

    Attributes:
        all: Who runs.
    """

    def __init__(self) -> None:
        self.all: set[Killable] = set()
        self._emptied: asyncio.Future[None] | None = None  # while somebody waits for it

    def add(self, execution: Killable) -> None:
        """It begins."""
        self.all.add(execution)

    def discard(self, execution: Killable) -> None:
        """It has ended, and nothing is awaited any more of what comes after."""
        self.all.discard(execution)
        if self._emptied is not None and not self.all and not self._emptied.done():
            self._emptied.set_result(None)

    async def end(self) -> None:
        """Kill all, and return when they have been accounted for, or after ten seconds."""
        if self.all:
            self._emptied = asyncio.get_running_loop().create_future()
            for execution in self.all:
                execution.kill()
            await asyncio.wait({self._emptied}, timeout=_END_SECONDS)
