"""A connection that waits for nobody: carried by callbacks, without a task of its own.

Most programs send their first bytes at once, and to a server that was reached a moment ago. What those
bytes are is looked at here. What is to be read (HTTP, TLS with `tls: inspect`), wants a question to a name
server, or fails goes to a task, with them. Where the server may be one that speaks first, it is dialled
before (dial.Ahead): it wakes up while all this is made. A program that asked a proxy for its server (proxy.py) is
told when that is reached, and sends its first bytes then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...policies.addresses import Address
from .connections import Entry
from .dial import CONNECT_SECONDS, Ahead, Dialer
from .inspect import HUSH_SECONDS, Interceptor
from .relay import Relay
from .sockets import RawStream
from .tls import CHUNK_BYTES


class Opening:
    """One connection of a program, allowed by its name or literal address.

    Args:
        client: The program's end.
        entry: Its account.
        literal: The address that was asked for; None where it was `entry.name`.
        dialer: Knows where servers were reached.
        interceptor: Knows what is to be read.
        opaque: Whether what is neither TLS nor HTTP may pass unseen.
        on_left: Called once, not before `start`: with the bytes that were read, for a task to go on
            with; with None when the connection is over.
        ahead: The server, dialled already.
        reply: What the program is still to be told when the server is reached, before its first bytes.
        held: What was read of its first bytes already.

    Attributes:
        reply: b"" when that was said.
        early: The server, if it was reached before a task goes on.
    """

    def __init__(
        self, client: RawStream, entry: Entry, literal: Address | None, *, dialer: Dialer,
        interceptor: Interceptor, opaque: bool, on_left: Callable[[Opening, bytes | None], None],
        ahead: Ahead | None = None, reply: bytes = b"", held: bytes = b"",
    ) -> None:  # fmt: skip
        self.reply = reply
        self._ahead = ahead
        self.early: RawStream | None = None
        self.client = client
        self.entry = entry
        self.literal = literal
        self._dialer = dialer
        self._interceptor = interceptor
        self._opaque = opaque
        self._on_left = on_left
        self._first = held
        self._address = literal
        self._text = ""
        self._server: RawStream | None = None
        self._waits: RawStream | None = None  # for the client's first bytes, or the server
        self._passes = False  # its first bytes have been looked at, and may
        self._relay: Relay | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_known(self) -> bool:
        """Whether the server's address is known, without a question."""
        if self._address is None:
            found = self._dialer.remembered(self.entry.name, self.entry.port)
            if found is not None:
                self._address, self.entry.rule = found
        return self._address is not None

    def start(self) -> None:
        """Go on with the server that was dialled, or look at what has come, or wait for it."""
        if self._ahead is None:
            self._listen()
            return
        self._server, self._address, self._text, self.entry.rule, connected = self._ahead
        self._server.tally = self.entry
        if connected:
            self._reached()
        else:
            self._wait_for_server()

    def _listen(self) -> None:
        if self._look():
            return
        self._waits = self.client
        self.client.watcher.add_reader(self.client.fd, self._look)
        if self._opaque:  # the server may be one that speaks first
            if self.early is not None:
                self.early.watcher.add_reader(self.early.fd, self._leave)
                self._relay = Relay(self.client, self.early, self._ended)
            else:
                self._in(HUSH_SECONDS)

    def abort(self) -> None:
        """Cut it; `on_left` is not called."""
        self._stop()
        self.client.abort()
        if self._server is not None:
            self._server.abort()

    def _look(self) -> bool:
        try:
            self._first = self.client.sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            pass  # reset: as ended before it said anything
        self._judge()
        return True

    def _judge(self) -> None:
        if not self._first:
            self._stop()
            self.client.close()
            if self._server is not None:
                self._server.close()
            self._on_left(self, None)
        elif self.is_known and self._interceptor.passes_unread(
            self._first, self.entry.name or str(self.literal), opaque=self._opaque
        ):
            self._passes = True
            if self._server is None:
                self._stop()
                self._dial()
            else:
                self._carry(self._server)
        else:
            self._leave()

    def _dial(self) -> None:
        assert self._address is not None
        self._text = str(self._address)
        self._server = self._dialer.stream(self._address, self.entry, self.client.watcher)
        if not self._connect():
            self._wait_for_server()

    def _wait_for_server(self) -> None:
        assert self._server is not None
        self._waits = self._server
        self._server.watcher.add_writer(self._server.fd, self._connect)
        self._in(CONNECT_SECONDS)

    def _connect(self) -> bool:
        assert self._server is not None
        try:
            if not self._server.connected(self._text, self.entry.port):
                return False
        except OSError:
            self._failed()
            return True
        self._stop()
        self._reached()
        return True

    def _reached(self) -> None:
        assert self._server is not None
        self.entry.address = self._text
        self.early = self._server
        if self._passes:
            self._carry(self._server)
        elif not self.reply or self._say():
            if self._first:
                self._judge()
            else:
                self._listen()

    def _failed(self) -> None:
        self._dialer.forget(self.entry.name, self.entry.port)
        if self.reply or self._passes:
            self._leave()
        else:  # how the program is told depends on what it says first
            self._stop()
            assert self._server is not None
            self._server.close()
            self._server = self._address = None
            self._listen()

    def _say(self) -> bool:
        try:
            whole = self.client.sock.send(self.reply) == len(self.reply)
        except OSError:
            whole = False
        self.reply = b""
        if not whole:  # it is the first that is sent there: so it has gone
            self._ended(ConnectionResetError())
        return whole

    def _carry(self, server: RawStream) -> None:
        self._waits = None  # what is watched already need not be anew
        if self._relay is None:
            self._relay = Relay(self.client, server, self._ended)
        self._relay.start(self._first)
        self._dialer.stock()

    def _ended(self, error: OSError | None) -> None:
        if error is None:
            # Whatever else has come by now goes first: to close both takes longer than to carry a message.
            asyncio.get_running_loop().call_soon(self._close)
        else:
            self.abort()
            self._on_left(self, None)

    def _close(self) -> None:
        if not self.client.closed:  # else it was cut meanwhile
            assert self._server is not None
            self.client.close()
            self._server.close()
            self._on_left(self, None)

    def _leave(self) -> None:
        self._stop()
        if self._server is not None and self.early is None:
            self._server.close()
        self._on_left(self, self._first)

    def _in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._leave)

    def _stop(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._relay is not None:
            self._relay.stop()
        if self._waits is not None and not self._waits.closed:
            self._waits.watcher.remove_reader(self._waits.fd)
            self._waits.watcher.remove_writer(self._waits.fd)
            if self._waits is self.client and self.early is not None:
                self.early.watcher.remove_reader(self.early.fd)
        self._waits = None
