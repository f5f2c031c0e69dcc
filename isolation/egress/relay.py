"""Carries bytes between a program and a server until both have ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from .sockets import RawStream
from .tls import CHUNK_BYTES, ByteStream, Rewound

_LEAST_BYTES, _MOST_BYTES = 64 << 10, 1 << 20  # read at once
_MOST_KEPT_BYTES = 64 << 20  # of all connections together, beyond which none reads much at once

OnEnd = Callable[[OSError | None], None]


class Relay:
    """Both ways between two sockets, by callbacks. A half that ends is passed on.

    Args:
        client: One side.
        server: The other.
        on_end: Told once: None when both have ended, or what went wrong. It closes both, or calls `stop`.
    """

    def __init__(self, client: RawStream, server: RawStream, on_end: OnEnd) -> None:
        self._on_end: OnEnd | None = on_end
        self.out = _Pump(client, server, self._ended)
        self.back = _Pump(server, client, self._ended)
        self.out.other, self.back.other = self.back, self.out

    def start(self, to_server: bytes = b"", to_client: bytes = b"") -> None:
        """Begin, with what was read from each side already. `on_end` may be called before this returns."""
        self.out.start(to_server)
        if self._on_end is not None:
            self.back.start(to_client)

    def stop(self) -> None:
        """Carry no more, and call nobody."""
        self._on_end = None
        self.out.stop()
        self.back.stop()

    def _ended(self, error: OSError | None) -> None:
        on_end = self._on_end
        if on_end is not None and (error is not None or (self.out.ended and self.back.ended)):
            self._on_end = None
            on_end(error)


class _Room(threading.local):
    """One buffer for all connections of a thread: it is empty whenever the event loop has control."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_MOST_BYTES))
        self.kept_bytes = 0


_room = _Room()


class _Pump:
    """One direction. What a slow reader has not taken is kept: one read's worth at the most."""

    def __init__(self, source: RawStream, sink: RawStream, on_end: OnEnd) -> None:
        self.carried = 0
        self.ended = False
        self.other: _Pump | None = None  # the opposite direction
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._rest = memoryview(b"")
        self._size = _LEAST_BYTES

    def start(self, held: bytes) -> None:
        if held:
            self._send(memoryview(held))
        if not self._rest and not self._source.closed:
            self._source.watcher.add_reader(self._source.fd, self._readable)

    def stop(self) -> None:
        if not self._source.closed:
            self._source.watcher.remove_reader(self._source.fd)
        if not self._sink.closed:
            self._sink.watcher.remove_writer(self._sink.fd)
        self._keep(memoryview(b""))

    def _readable(self) -> None:
        buffer = _room.buffer[: self._size]
        if _room.kept_bytes > _MOST_KEPT_BYTES:
            buffer = buffer[:_LEAST_BYTES]
        try:
            got = self._source.sock.recv_into(buffer)
            if self._source.tally is not None:
                self._source.tally.received(got)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_end(error)
            return
        if got:
            self._send(buffer[:got])
            return
        self.ended = True
        if self.other is None or not self.other.ended:  # else both are closed next
            self._source.watcher.remove_reader(self._source.fd)
            with contextlib.suppress(OSError):
                self._sink.sock.shutdown(socket.SHUT_WR)
        self._on_end(None)

    def _send(self, data: memoryview) -> None:
        self.carried += len(data)
        try:
            if self._sink.tally is not None:
                self._sink.tally.sending(len(data))
            sent = self._sink.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._on_end(error)
            return
        if sent < len(data):
            self._keep(memoryview(bytes(data[sent:])))
            self._source.watcher.remove_reader(self._source.fd)
            self._sink.watcher.add_writer(self._sink.fd, self._writable)
        elif len(data) == self._size < _MOST_BYTES:
            self._size *= 2

    def _writable(self) -> None:
        try:
            sent = self._sink.sock.send(self._rest)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_end(error)
            return
        self._keep(self._rest[sent:])
        if not self._rest:
            self._sink.watcher.remove_writer(self._sink.fd)
            self._source.watcher.add_reader(self._source.fd, self._readable)

    def _keep(self, rest: memoryview) -> None:
        _room.kept_bytes += len(rest) - len(self._rest)
        self._rest = rest


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
    held_client, raw_client = unwound(client)
    held_server, raw_server = unwound(server)
    if held_client is None or held_server is None:
        await _relay_streams(client, server, count)
        return
    assert isinstance(raw_client, RawStream)
    assert isinstance(raw_server, RawStream)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_end(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    both = Relay(raw_client, raw_server, on_end)
    try:
        both.start(held_client, held_server)
        await done
    except OSError:
        raw_client.abort()
        raw_server.abort()
    finally:
        both.stop()
        if count is not None:
            count(both.out.carried, both.back.carried)


def unwound(stream: ByteStream) -> tuple[bytes | None, ByteStream]:
    """What was read of a stream already, and the socket below; None when there is none below."""
    held = b""
    while isinstance(stream, Rewound):
        first, stream = stream.unwind()
        held = first + held
    return (held, stream) if isinstance(stream, RawStream) else (None, Rewound(stream, held))


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
