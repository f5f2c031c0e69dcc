"""Memory held by looking at it, where no cgroup can be had: what is over the limit is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .slot import Slot

_PAGE = os.sysconf("SC_PAGESIZE")


class Watcher:
    """Adds up the private resident memory of each sandbox's processes every `seconds`.

    A sandbox may be over its limit for that long; RLIMIT_DATA holds each single process meanwhile.
    """

    seconds = 0.05

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._next = 0.0

    def look(self, slots: Iterable[Slot]) -> None:
        """Kill the sandboxes that use more than they may; a look is taken when one is due."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.seconds
        sums = _resident_bytes()
        for slot in slots:
            if sums.get(_namespace(slot.pid_1), 0) > self._max_bytes:
                slot.out_of_memory = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid_1, signal.SIGKILL)


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _resident_bytes() -> dict[str, int]:
    """Private resident bytes by pid namespace. proc_pid_statm(5)."""
    sums: dict[str, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/statm") as file:
                fields = file.read().split()
        except OSError:
            continue
        key = _namespace(int(name))
        sums[key] = sums.get(key, 0) + (int(fields[1]) - int(fields[2])) * _PAGE
    return sums
