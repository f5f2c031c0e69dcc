"""cgroup v1 kills one process at a memory limit; this says of which sandbox, to kill the rest."""

from __future__ import annotations

import contextlib
import os
import select
import time

_KERNEL_MILLISECONDS = 1000  # a microsecond, unless whoever kills is made to wait for a processor


class OutOfMemory:
    """Listens to cgroups by what `Cgroup.open_oom` gives. To be polled for reading."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._files: dict[int, list[int]] = {}  # by group: event, counter
        self._of_event: dict[int, int] = {}

    def fileno(self) -> int:
        """For poll(2)."""
        return self._epoll.fileno()

    def watch(self, group: int, files: list[int]) -> None:
        """Listen to cgroup `group`; its files are this object's to close. Nothing to do in v2."""
        if files:
            self._files[group] = files
            self._of_event[files[0]] = group
            self._epoll.register(files[0], select.EPOLLIN)

    def told(self) -> list[int]:
        """Groups in which the kernel has killed, once it has counted that. Call when readable."""
        groups: list[int] = []
        for event, _ in self._epoll.poll(0):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(event)
            group = self._of_event[event]
            # The event comes just before the kernel's own kill, and also when a group is removed.
            # The kill is counted, so it goes first: mem_cgroup_oom_notify(), mm/memcontrol-v1.c.
            with contextlib.suppress(OSError):
                for _ in range(_KERNEL_MILLISECONDS):
                    if _kills(self._files[group][1]):
                        groups.append(group)
                        break
                    time.sleep(0.001)
        return groups

    def forget(self, group: int) -> None:
        """Stop listening to cgroup `group`."""
        files = self._files.pop(group, [])
        if files:
            del self._of_event[files[0]]
            self._epoll.unregister(files[0])
        for fd in files:
            os.close(fd)


def _kills(counter: int) -> int:
    for line in os.pread(counter, 4096, 0).splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0
