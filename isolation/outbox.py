"""Messages to a process that may be behind with reading them: none is lost, and their order is kept."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple


class _Untold(NamedTuple):
    message: bytes
    fds: list[int]  # our own copies
    failed: Callable[[OSError], None]


def _is_heard_elsewhere(_: OSError) -> None:
    """Whoever reads what the other says hears that it has died."""


class Outbox:
    """What is to be sent, on asyncio's loop.

    Args:
        to: SOCK_SEQPACKET, non-blocking; still the caller's to close, after `close`.
    """

    def __init__(self, to: socket.socket) -> None:
        self._to = to
        self._untold: deque[_Untold] = deque()
        self._closed = False

    def send(
        self, message: bytes, fds: Sequence[int] = (),
        failed: Callable[[OSError], None] = _is_heard_elsewhere,
    ) -> None:  # fmt: skip
        """Send one now, or as soon as there is room for it; nothing after `close`.

        Args:
            message: Not empty.
            fds: Descriptors to send along, the caller's to close.
            failed: Is told, now or later, when it cannot be sent.
        """
        if self._closed:
            return
        try:
            if not self._untold:
                try:
                    _send(self._to, message, fds)
                    return
                except BlockingIOError:
                    asyncio.get_running_loop().add_writer(self._to, self._send_more)
            self._untold.append(_Untold(message, _copies(fds), failed))
        except OSError as error:
            failed(error)

    def close(self) -> None:
        """Forget what has not been sent."""
        self._closed = True
        if self._untold:
            asyncio.get_running_loop().remove_writer(self._to)
        while self._untold:
            _close(self._untold.popleft().fds)

    def _send_more(self) -> None:
        while self._untold:
            message, fds, failed = self._untold[0]
            try:
                _send(self._to, message, fds)
            except BlockingIOError:
                return
            except OSError as error:
                failed(error)
            _close(fds)
            self._untold.popleft()
        asyncio.get_running_loop().remove_writer(self._to)


def _send(to: socket.socket, message: bytes, fds: Sequence[int]) -> None:
    try:
        socket.send_fds(to, [message], fds)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
        # All descriptors under way that this user has sent, a sandbox's processes too, are held against
        # the soft limit of whoever sends one more: unix(7). It is ours to raise, for that moment.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            socket.send_fds(to, [message], fds)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _copies(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        _close(copies)
        raise
    return copies


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
