"""cgroup v1 kills one process at a memory limit; this says of which sandbox, to kill the rest."""

from __future__ import annotations

import contextlib
import os
import select
import time

from .cgroup import Cgroup, read

_KERNEL_MILLISECONDS = 1000  # a microsecond, unless whoever kills is made to wait for a processor


class OutOfMemory:
    """Listens to cgroups by what `Cgroup.open_oom` gives. To be polled for reading."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}  # by number of the group
        self._of_event: dict[int, tuple[int, Cgroup]] = {}

    def fileno(self) -> int:
        """For poll(2)."""
        return self._epoll.fileno()

    def watch(self, number: int, group: Cgroup) -> None:
        """Listen to cgroup `number`. Nothing to do in v2."""
        if (event := group.open_oom()) >= 0:
            self._events[number] = event
            self._of_event[event] = number, group
            self._epoll.register(event, select.EPOLLIN)

    def told(self) -> list[int]:
        """Groups in which the kernel has killed, once it has counted that. Call when readable."""
        groups: list[int] = []
        for event, _ in self._epoll.poll(0):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(event)
            number, group = self._of_event[event]
            # The event comes just before the kernel's own kill, and also when a group is removed.
            # The kill is counted, so it goes first: mem_cgroup_oom_notify(), mm/memcontrol-v1.c.
            with contextlib.suppress(OSError):
                for _ in range(_KERNEL_MILLISECONDS):
                    if _kills(group):
                        groups.append(number)
                        break
                    time.sleep(0.001)
        return groups

    def forget(self, number: int) -> None:
        """Stop listening to cgroup `number`; before it is removed, which would be told, too."""
        if (event := self._events.pop(number, -1)) >= 0:
            del self._of_event[event]
            self._epoll.unregister(event)
            os.close(event)


def _kills(group: Cgroup) -> int:
    for line in read(f"{group.paths['memory']}/memory.oom_control").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
