"""The cgroups of one engine's sandboxes, by number: what its keeper has of them."""

from __future__ import annotations

import contextlib
from typing import Any

from .cgroup import Cgroup
from .hierarchy import Hierarchy
from .oom import OutOfMemory
from .plan import FIRST, Plan


class Groups:
    """None at first; one for a sandbox that is made ahead can be made before there is a plan.

    Attributes:
        ooms: Listens to kills in them.
    """

    def __init__(self) -> None:
        self._hierarchy = Hierarchy()
        self._made: dict[int, Cgroup] = {}
        self.ooms = OutOfMemory()

    @property
    def can_be_made(self) -> bool:
        """Whether any can be had here."""
        return self._hierarchy.version > 0

    def facts(self) -> dict[str, Any]:
        """What the gateway has to know of them."""
        found = self._hierarchy
        return {"version": found.version, "reason": found.reason, "bases": found.bases}

    def get(self, number: int) -> Cgroup | None:
        """One that has been made."""
        return self._made.get(number)

    def make_first(self) -> Cgroup | None:
        """One for the first sandbox, without limits; None where none can be had."""
        if self.can_be_made:
            with contextlib.suppress(OSError):  # whoever asks for a sandbox will hear of it
                self._made[FIRST] = self._hierarchy.create(FIRST)
                self.ooms.watch(FIRST, self._made[FIRST])
        return self._made.get(FIRST)

    def know(self, plan: Plan) -> None:
        """Set a plan's limits on what has been made. Raises OSError."""
        if plan.io_bytes_per_second is not None:
            self._hierarchy.hold_io(plan)
        for number in self._made:
            if plan.io_bytes_per_second is not None:
                self._made[number] = self._hierarchy.create(number)  # in one more hierarchy
            self._hierarchy.limit(self._made[number], plan)

    def make(self, number: int, plan: Plan) -> None:
        """One with a plan's limits. Raises OSError."""
        self._made[number] = group = self._hierarchy.create(number)
        self._hierarchy.limit(group, plan)
        self.ooms.watch(number, group)

    def remove(self, number: int) -> None:
        """Its sandbox must have ended."""
        self.ooms.forget(number)
        if group := self._made.pop(number, None):
            group.remove()

    def sweep(self) -> None:
        """Remove what keepers that were killed have left."""
        self._hierarchy.sweep()

    def close(self) -> None:
        """Remove all; every sandbox must have ended."""
        self._hierarchy.close()
