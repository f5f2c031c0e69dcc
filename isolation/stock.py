"""The cgroups of an engine's sandboxes as its gateway has them: by number, made and removed by the keeper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .meter import Meter
from .plan import FIRST

_MOST_FREE = 16  # that are kept for the next sandboxes


class Stock:
    """Knows those in which nothing runs, for the next sandboxes, and has others made when there are none.

    Args:
        tell: Hands the keeper a request.

    Attributes:
        facts: What the keeper has found of cgroups: `version`, 0 where none can be had, `bases` and
            `reason`, see `Hierarchy`.
    """

    def __init__(self, tell: Callable[[dict[str, int]], None]) -> None:
        self.facts: dict[str, Any] = {"version": 0, "reason": "", "bases": {}}
        self._tell = tell
        self._last = FIRST  # the number of that which the keeper makes of its own accord
        self._free: list[Meter] = []
        self._closed = False

    @property
    def first(self) -> int:
        """The number of the first sandbox's; 0 where none can be had."""
        return FIRST if self.facts["version"] else 0

    def take(self) -> tuple[int, Meter | None]:
        """The number of one in which nothing runs, 0 where none can be had; and its meter, open, if it
        has one."""
        if self.facts["version"] == 0:
            return 0, None
        if self._free:
            meter = self._free.pop()
            return meter.number, meter
        self._last += 1
        self._tell({"make": self._last})  # at the same time as all else is prepared
        return self._last, None

    def meter(self, number: int) -> Meter:
        """A new one, of a cgroup that has been made."""
        return Meter(self.facts["version"], self.facts["bases"], number)

    def give_back(self, meter: Meter, *, ended: bool) -> None:
        """Keep a cgroup for another sandbox, or have it removed.

        Args:
            meter: Its own, open.
            ended: Whether nothing runs in it any more.
        """
        wanted = not self._closed and len(self._free) < _MOST_FREE
        if wanted and ended and meter.reset():
            self._free.append(meter)
        else:
            meter.close()
            self.remove(meter.number)

    def remove(self, number: int) -> None:
        """Have one removed, once nothing runs in it; nothing for 0."""
        if number and not self._closed:
            self._tell({"remove": number})

    def close(self) -> None:
        """Forget all: they are gone with the keeper."""
        self._closed = True
        while self._free:
            self._free.pop().close()
