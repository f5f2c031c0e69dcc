"""What the keeper holds for a zygote with many sandboxes: descriptors that are needed at their ends.

Each pid 1 begins with as large a table of descriptors as the zygote has at that moment, and keeps it
whatever it closes (dup_fd(), fs/file.c): at a thousand sandboxes a few for each were 16 KiB for each,
and to copy and close them was a good part of the time to start one.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

MOST = 3  # descriptors for one sandbox


class Shelf:
    """By number of a sandbox: its pidfd, its network namespace, its mounts. To be polled for reading."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._held: dict[int, tuple[int, int, int]] = {}  # by pidfd

    def fileno(self) -> int:
        """For poll(2)."""
        return self._epoll.fileno()

    def put(self, number: int, fds: list[int]) -> None:
        """Hold `fds`, which are this object's to close, until the sandbox has ended."""
        if len(fds) != MOST:  # no more could be received: the namespaces go when pid 1 does
            for fd in fds:
                os.close(fd)
            return
        pidfd, network, mounts = fds
        self._held[pidfd] = number, network, mounts
        self._epoll.register(pidfd, select.EPOLLIN)

    def ended(self) -> Iterator[tuple[int, int]]:
        """Sandboxes that have: number, and network namespace, the caller's to close. The mounts are
        taken down by that."""
        for pidfd, _ in self._epoll.poll(0):
            number, network, mounts = self._held.pop(pidfd)
            self._epoll.unregister(pidfd)
            os.close(pidfd)
            yield number, network
            os.close(mounts)


def shelve(keeper: socket.socket, message: bytes, fds: tuple[int, int, int]) -> bool:
    """Ask the keeper to hold `fds`; False when it cannot be asked now."""
    try:
        socket.send_fds(keeper, [message], fds, socket.MSG_DONTWAIT)
    except OSError:  # it is behind; or too many descriptors are under way: unix(7), ETOOMANYREFS
        return False
    return True
