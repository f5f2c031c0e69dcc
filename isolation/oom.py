"""cgroup v1 kills one process at a memory limit; this kills the rest of its sandbox."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cgroup import Cgroup

_KERNEL_MILLISECONDS = 100


class OutOfMemory:
    """Listens to the cgroups of sandboxes. To be polled for reading; `kill` when it is readable."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, int]] = {}  # by number: event, pidfd of pid 1
        self._of_event: dict[int, tuple[Cgroup, int]] = {}

    def fileno(self) -> int:
        """For poll(2)."""
        return self._epoll.fileno()

    def watch(self, number: int, group: Cgroup, pid_1: int) -> None:
        """Kill sandbox `number` by its pid 1 (a pidfd, still the caller's) when `group` is full.

        Nothing to do in v2, where the kernel kills the group.
        """
        event = group.oom_event()
        if event < 0:
            return
        self._watched[number] = event, os.dup(pid_1)
        self._of_event[event] = group, self._watched[number][1]
        self._epoll.register(event, select.EPOLLIN)

    def kill(self) -> None:
        """Kill every sandbox whose cgroup has told of it."""
        for event, _ in self._epoll.poll(0):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(event)
            group, pidfd = self._of_event[event]
            # The event comes just before the kernel's own kill. That one is counted, so it goes
            # first: mem_cgroup_oom_notify() in mm/memcontrol-v1.c.
            for _ in range(_KERNEL_MILLISECONDS):
                if group.oom_kills():
                    break
                time.sleep(0.001)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def forget(self, number: int) -> None:
        """Stop listening for sandbox `number`."""
        event, pidfd = self._watched.pop(number, (-1, -1))
        if event >= 0:
            del self._of_event[event]
            self._epoll.unregister(event)
            os.close(event)
            os.close(pidfd)
