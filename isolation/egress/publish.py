"""`network.listen`: ports of a sandbox's loopback, published on the host's loopback.

Theory of operation
    client of the host ──127.0.0.1 or ::1, PORT── Publisher ──a socket made inside── program, 127.0.0.1:PORT

    The port of the host belongs to the engine. A connection goes to the sandbox that started last among
    those in which a program listens on that port; where none does it is reset. Nothing else comes in.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from ..errors import SetupError
from .connections import Ledger
from .relay import relay
from .sockets import RawStream

Inside = tuple[Ledger, Callable[[], Awaitable[socket.socket]]]
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_MOST_OPEN = 1024  # connections at once


class Publisher:
    """Publishes an engine's ports. Made and used on its event loop.

    Args:
        ports: Of the host's 127.0.0.1 and ::1, and of the sandboxes' 127.0.0.1.
        running: Sandboxes that run a command, the latest last: where connections of each are noted,
            and how a TCP socket in its network namespace is had.

    Raises:
        SetupError: a port is in use, or below 1024 for an ordinary user.
    """

    def __init__(self, ports: Sequence[int], running: Callable[[], Sequence[Inside]]) -> None:
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._doors: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        for port, host in ((p, h) for p in dict.fromkeys(ports) for h in ("127.0.0.1", "::1")):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                door = socket.create_server((host, port), family=family)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    continue
                self.close()
                raise SetupError(
                    f"network.listen: port {port} of this host's loopback cannot be had "
                    f"({os.strerror(error.errno or 0)}); end what uses it, or choose another port"
                ) from error
            door.setblocking(False)
            self._doors.append(door)
            self._loop.add_reader(door.fileno(), self._accept, door, port)

    def close(self) -> None:
        """Close the ports and what came through them."""
        for door in self._doors:
            self._loop.remove_reader(door.fileno())
            door.close()
        self._doors.clear()
        for task in self._tasks:
            task.cancel()

    def _accept(self, door: socket.socket, port: int) -> None:
        try:
            sock, _ = door.accept()
        except OSError:
            return
        sock.setblocking(False)
        client = RawStream(sock)
        if len(self._tasks) >= _MOST_OPEN:
            client.abort()
            return
        task = self._loop.create_task(self._serve(client, port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: RawStream, port: int) -> None:
        try:
            for ledger, make in reversed(self._running()):
                program = RawStream(await make())
                try:
                    await program.connect("127.0.0.1", port)
                except OSError:
                    program.close()
                    continue
                entry = ledger.begin("listen", address="127.0.0.1", port=port)
                entry.rule = "network.listen"
                client.tally = entry  # what leaves the sandbox goes to the client
                try:
                    await relay(program, client)
                finally:
                    program.close()
                    entry.end()
                return
            client.abort()
        except (OSError, SetupError):
            client.abort()
        finally:
            client.close()
