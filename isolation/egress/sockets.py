"""Sockets as streams of bytes, counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from ..poller import Poller, Watcher


class Tally(Protocol):
    """Counts what a connection carries."""

    def sending(self, count: int) -> None:
        """Called before `count` bytes go to the server. Raises OSError when they may not."""
        ...

    def received(self, count: int) -> None:
        """Called when `count` bytes have come from the server."""
        ...


class RawStream:
    """A `ByteStream` over a non-blocking socket. It holds no buffer: memory is the kernel's.

    Args:
        sock: Closed by this.
        tally: Told of what goes to the server and comes from it; None for a program's end.
        watcher: What tells when it is ready; None is the running event loop.
        at_once: Whether what is written is sent at once already: TCP_NODELAY, tcp(7). Sockets have it
            from the one that they were accepted from.
    """

    def __init__(
        self, sock: socket.socket, tally: Tally | None = None, watcher: Watcher | None = None, *,
        at_once: bool = False,
    ) -> None:  # fmt: skip
        if not at_once:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        # Numbers, not sockets, go to the event loop: it prints what is not registered yet.
        self.fd = sock.fileno()
        self.tally = tally
        self.closed = False
        self.watcher: Watcher = asyncio.get_running_loop() if watcher is None else watcher
        self._waiting: set[asyncio.Future[None]] = set()

    async def read(self, max_bytes: int) -> bytes:
        while True:
            self._check()
            try:
                data = self.sock.recv(max_bytes)
            except BlockingIOError:
                await self._ready(self.watcher.add_reader, self.watcher.remove_reader)
                continue
            if self.tally is not None:
                self.tally.received(len(data))
            return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.tally is not None:
            self.tally.sending(len(data))
        view = memoryview(data)
        while view:
            self._check()
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await self._ready(self.watcher.add_writer, self.watcher.remove_writer)

    async def connect(self, address: str, port: int) -> None:
        """Connect it. Raises OSError, as connect(2)."""
        while not self.connected(address, port):
            await self._ready(self.watcher.add_writer, self.watcher.remove_writer)

    def connected(self, address: str, port: int) -> bool:
        """Begin to connect it, or look how far that is. Raises OSError, as connect(2)."""
        code = self.sock.connect_ex((address, port))
        if code == errno.EINPROGRESS:  # on the loopback it is there by now
            code = self.sock.connect_ex((address, port))
        if code not in (0, errno.EALREADY, errno.EISCONN):
            raise OSError(code, os.strerror(code))
        return code != errno.EALREADY

    async def write_eof(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self.close()

    def abort(self) -> None:
        """Close with a reset: socket(7), SO_LINGER."""
        if not self.closed:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close; what was written is still sent. Whoever reads or writes gets an OSError."""
        if self.closed:
            return
        self.closed = True
        if isinstance(self.watcher, Poller):
            self.watcher.forget(self.fd)
        else:
            self.watcher.remove_reader(self.fd)
            self.watcher.remove_writer(self.fd)
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionAbortedError("closed"))
        self.sock.close()

    def _check(self) -> None:
        if self.closed:
            raise ConnectionAbortedError("closed")

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        add(self.fd, _wake, future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if not self.closed:
                remove(self.fd)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
