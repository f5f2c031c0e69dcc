"""Memory and processes held by looking at them, where no cgroup can be had.

What is over a limit is killed as a whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan
    from .slot import Slot

_PAGE = os.sysconf("SC_PAGESIZE")


class Watcher:
    """Adds up private resident memory, processes and threads of each sandbox every `seconds`.

    A sandbox may be over its limit for that long. RLIMIT_DATA holds each single process meanwhile,
    RLIMIT_NPROC its processes, which a user namespace of its own counts apart from all others.
    """

    seconds = 0.05

    def __init__(self, plan: Plan) -> None:
        self._max_bytes = plan.memory_bytes
        self._max_processes = plan.processes
        self._apart = plan.namespaces
        self._next = 0.0

    def look(self, slots: Iterable[Slot]) -> None:
        """Take note of peaks and kill what is over a limit; a look is taken when one is due."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.seconds
        slots = [slot for slot in slots if slot.pid_1]
        name = _namespace if self._apart else _Families(slot.pid_1 for slot in slots)
        sums = _sums(name)
        for slot in slots:
            size, processes = sums.get(name(slot.pid_1), (0, 1))
            processes -= 1  # pid 1 is ours
            slot.memory_peak_bytes = max(slot.memory_peak_bytes, size)
            slot.processes_peak = max(slot.processes_peak, processes)
            if self._max_bytes is not None and size > self._max_bytes:
                slot.over = "memory"
            elif self._max_processes is not None and processes > self._max_processes:
                slot.over = "processes"
            else:
                continue
            slot.kill()


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


class _Families:
    """Sandboxes by their first process, where they have no pid namespace: pid → pid of it, as text."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._parents = parents()
        self._roots = set(roots)

    def __call__(self, pid: int) -> str:
        while pid and pid not in self._roots:
            pid = self._parents.get(pid, 0)
        return str(pid)


def parents() -> dict[int, int]:
    """Pid → parent's, of every process that /proc shows. proc_pid_stat(5)."""
    found: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    return found


def _sums(sandbox_of: Callable[[int], str]) -> dict[str, tuple[int, int]]:
    """Private resident bytes, and processes and threads, by sandbox.

    proc_pid_statm(5); proc_pid_stat(5), num_threads.
    """
    sums: dict[str, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/statm") as file:
                fields = file.read().split()
            with open(f"/proc/{name}/stat") as file:
                threads = int(file.read().rpartition(")")[2].split()[17])
        except (OSError, IndexError):
            continue
        key = sandbox_of(int(name))
        size, processes = sums.get(key, (0, 0))
        size += (int(fields[1]) - int(fields[2])) * _PAGE
        sums[key] = size, processes + threads
    return sums
