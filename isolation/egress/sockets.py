"""Sockets as streams of bytes, counted, and the fast way to carry bytes from one to the other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from .tls import CHUNK_BYTES, ByteStream, Rewound


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
    """

    def __init__(self, sock: socket.socket, tally: Tally | None = None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        # Numbers, not sockets, go to the event loop: it prints what is not registered yet.
        self.fd = sock.fileno()
        self.tally = tally
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    async def read(self, max_bytes: int) -> bytes:
        while True:
            self._check()
            try:
                data = self.sock.recv(max_bytes)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
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
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def connect(self, address: str, port: int) -> None:
        """Connect it. Raises OSError, as connect(2)."""
        code = self.sock.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            await self._ready(self._loop.add_writer, self._loop.remove_writer)
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

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
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionAbortedError("closed"))
        self.sock.close()

    def _check(self) -> None:
        if self.closed:
            raise ConnectionAbortedError("closed")

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
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


async def relay(
    client: ByteStream, server: ByteStream, count: Callable[[int, int], None] | None = None
) -> None:
    """Carry bytes both ways until both sides have ended; a half that ends is passed on.

    When one side is reset, so is the other. Neither is closed otherwise.

    Args:
        client: One side.
        server: The other.
        count: Told of bytes carried (to the server, to the client).
    """
    held_client, raw_client = _unwound(client)
    held_server, raw_server = _unwound(server)
    if held_client is None or held_server is None:
        await _relay_streams(client, server, count)
        return
    assert isinstance(raw_client, RawStream)
    assert isinstance(raw_server, RawStream)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pumps = [_Pump(raw_client, raw_server, done), _Pump(raw_server, raw_client, done)]
    try:
        await raw_server.write(held_client)
        await raw_client.write(held_server)
        for pump in pumps:
            pump.start(pumps)
        await done
    except OSError:
        raw_client.abort()
        raw_server.abort()
    finally:
        for pump in pumps:
            pump.stop()
        if count is not None:
            count(len(held_client) + pumps[0].carried, len(held_server) + pumps[1].carried)


def _unwound(stream: ByteStream) -> tuple[bytes | None, ByteStream]:
    """What was read of a stream already, and the socket below; None when there is none below."""
    held = b""
    while isinstance(stream, Rewound):
        first, stream = stream.unwind()
        held = first + held
    return (held, stream) if isinstance(stream, RawStream) else (None, Rewound(stream, held))


_thread = threading.local()


def _buffer() -> memoryview:
    """One for all connections of a thread: it is empty whenever the event loop has control."""
    found: memoryview | None = getattr(_thread, "buffer", None)
    if found is None:
        found = _thread.buffer = memoryview(bytearray(CHUNK_BYTES))
    return found


class _Pump:
    """One direction. What a slow reader has not taken is kept: a buffer's worth at the most."""

    def __init__(self, source: RawStream, sink: RawStream, done: asyncio.Future[None]) -> None:
        self.carried = 0
        self.ended = False
        self._source = source
        self._sink = sink
        self._done = done
        self._rest = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self._all: list[_Pump] = []

    def start(self, every: list[_Pump]) -> None:
        """Begin to carry; `every` is both directions."""
        self._all = every
        self._loop.add_reader(self._source.fd, self._readable)

    def stop(self) -> None:
        """Carry no more."""
        if not self._source.closed:
            self._loop.remove_reader(self._source.fd)
        if not self._sink.closed:
            self._loop.remove_writer(self._sink.fd)

    def _readable(self) -> None:
        buffer = _buffer()
        try:
            got = self._source.sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not got:
            self._loop.remove_reader(self._source.fd)
            with contextlib.suppress(OSError):
                self._sink.sock.shutdown(socket.SHUT_WR)
            self.ended = True
            if all(pump.ended for pump in self._all) and not self._done.done():
                self._done.set_result(None)
            return
        self.carried += got
        try:
            if self._source.tally is not None:
                self._source.tally.received(got)
            if self._sink.tally is not None:
                self._sink.tally.sending(got)
            sent = self._sink.sock.send(buffer[:got])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            return
        if sent < got:
            self._rest = memoryview(bytes(buffer[sent:got]))
            self._loop.remove_reader(self._source.fd)
            self._loop.add_writer(self._sink.fd, self._writable)

    def _writable(self) -> None:
        try:
            self._rest = self._rest[self._sink.sock.send(self._rest) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not self._rest:
            self._loop.remove_writer(self._sink.fd)
            self._loop.add_reader(self._source.fd, self._readable)

    def _fail(self, error: OSError) -> None:
        if not self._done.done():
            self._done.set_exception(error)


async def _relay_streams(
    client: ByteStream, server: ByteStream, count: Callable[[int, int], None] | None
) -> None:
    async def carry(source: ByteStream, sink: ByteStream, out: bool) -> None:
        while data := await source.read(CHUNK_BYTES):
            await sink.write(data)
            if count is not None:
                count(len(data) if out else 0, 0 if out else len(data))
        await sink.write_eof()

    tasks = [
        asyncio.create_task(carry(client, server, True)),
        asyncio.create_task(carry(server, client, False)),
    ]
    try:
        await asyncio.gather(*tasks)
    except OSError:
        client.abort()
        server.abort()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
