"""Watches many descriptors for a short time each, by one entry in the event loop for all of them.

An event loop's own add_reader and its selector cost more than the system calls of a short connection or
command; epoll(7) itself does not, and an epoll that another one watches is readable when one of its own is.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, Protocol

_Call = tuple[Callable[..., object], tuple[Any, ...]]
_NEITHER: tuple[_Call | None, _Call | None] = (None, None)


class Watcher(Protocol):
    """What an event loop and a `Poller` have in common. A callback may come once too often."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Call back while `fd` can be read or is broken."""
        ...

    def remove_reader(self, fd: int) -> bool:
        """No more of these; whether there were."""
        ...

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Call back while `fd` can be written or is broken."""
        ...

    def remove_writer(self, fd: int) -> bool:
        """No more of these; whether there were."""
        ...


class Poller:
    """A `Watcher` on the running event loop. A descriptor must be removed before it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._on: dict[int, tuple[_Call | None, _Call | None]] = {}  # reader and writer
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._dispatch)

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        self._set(fd, (callback, args), self._on.get(fd, _NEITHER)[1])

    def remove_reader(self, fd: int) -> bool:
        reader, writer = self._on.get(fd, _NEITHER)
        if reader is not None:
            self._set(fd, None, writer)
        return reader is not None

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        self._set(fd, self._on.get(fd, _NEITHER)[0], (callback, args))

    def remove_writer(self, fd: int) -> bool:
        reader, writer = self._on.get(fd, _NEITHER)
        if writer is not None:
            self._set(fd, reader, None)
        return writer is not None

    def add_once(self, fd: int, callback: Callable[..., object]) -> None:
        """Call back at most once when `fd` can be read. Nothing else is asked of `fd` here."""
        self._on[fd] = ((callback, ()), None)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def forget(self, fd: int) -> None:
        """Call nobody for `fd` any more, which is closed next, and open under no other number or in no other
        process, or has had its one call."""
        self._on.pop(fd, None)

    def close(self) -> None:
        """Call nobody any more."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._on.clear()

    def _set(self, fd: int, reader: _Call | None, writer: _Call | None) -> None:
        if self._epoll.closed:
            raise ConnectionAbortedError("closed")
        before = _mask(*self._on.get(fd, _NEITHER))
        mask = _mask(reader, writer)
        if not mask:
            del self._on[fd]
            self._epoll.unregister(fd)
            return
        self._on[fd] = (reader, writer)
        if not before:
            self._epoll.register(fd, mask)
        elif mask != before:
            self._epoll.modify(fd, mask)

    def _dispatch(self) -> None:
        # A callback may close the epoll and any descriptor; one that was opened since under a number
        # in this list is called for nothing.
        for fd, events in self._epoll.poll(0):
            for side, others in ((0, select.EPOLLOUT), (1, select.EPOLLIN)):
                if events & ~others and (call := self._on.get(fd, _NEITHER)[side]) is not None:
                    try:
                        call[0](*call[1])
                    except Exception as error:  # the others in this list are told no other time
                        self._loop.call_exception_handler(
                            {"message": f"Exception in callback {call[0]!r}", "exception": error}
                        )


def _mask(reader: _Call | None, writer: _Call | None) -> int:
    return (0 if reader is None else select.EPOLLIN) | (0 if writer is None else select.EPOLLOUT)
