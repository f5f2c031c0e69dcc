"""The gate as a proxy, for programs that prefer one: HTTP CONNECT and absolute-form, SOCKS5.

The same rules hold as for programs that know nothing of it; here the name comes in the request.
Sources: RFC 9110 section 9.3.6, RFC 9112 section 3.2.2, RFC 1928.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from ...policies.addresses import Address, literal_address
from ...policies.hosts import Verdict, Why, canonical_name
from .connections import Entry, Via
from .dial import Refused
from .http import Refused as Answer
from .sockets import RawStream
from .target import TargetError, split_absolute, split_authority
from .tls import Rewound

if TYPE_CHECKING:
    from .gate import Gate

_MAX_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 60.0
_LINE = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+) ([!-~]+) HTTP/1\.[01]\r\n")
# RFC 1928, section 6.
_SUCCEEDED, _NOT_ALLOWED, _HOST_UNREACHABLE, _COMMAND_UNKNOWN = 0, 2, 4, 7
_CONNECT, _IPV4, _NAME, _IPV6 = 1, 1, 3, 4
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_SOCKS_WELCOME = b"\x05\x00"
_SOCKS_GREETINGS = (
    b"\x05\x01\x00",
    b"\x05\x02\x00\x01",
    b"\x05\x02\x00\x02",
    b"\x05\x03\x00\x01\x02",
)
_MOST_DECIDED, _MOST_READ_BYTES = 1024, 1024
_STATUS = {Why.NAME_INVALID: 400, Why.UNRESOLVED: 502, Why.UPSTREAM_FAILED: 502}


class _Asked(NamedTuple):
    """What a program wants to be connected with, and how it is told."""

    via: Via
    host: str
    port: int
    rest: bytes  # its first bytes, where they came along

    @property
    def reply(self) -> bytes:
        return _CONNECTED if self.via == "http_proxy" else _socks_reply(_SUCCEEDED)


class Asking:
    """A connection that speaks to the gate as to a proxy, until it is known what it asks for.

    By callbacks, as in opening.py: most programs send all of a request at once. What is no CONNECT, or
    not whole, goes to a task.

    Args:
        client: The program's end.
        proxy: Goes on with it.
        on_left: Called once, not before `start`, when it has been handed on or has ended.
    """

    def __init__(self, client: RawStream, proxy: Proxy, on_left: Callable[[Asking], None]) -> None:
        self._client = client
        self._proxy = proxy
        self._on_left = on_left
        self._greeted = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at what has come, or wait for it."""
        if not self._look():
            self._wait()

    def abort(self) -> None:
        """Cut it; `on_left` is not called."""
        self._stop()
        self._client.abort()

    def _wait(self) -> None:
        self._client.watcher.add_reader(self._client.fd, self._look)
        self._timer = asyncio.get_running_loop().call_later(_HEAD_SECONDS, self._cut)

    def _look(self) -> bool:
        client = self._client
        try:
            data = client.sock.recv(_MAX_HEAD_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._stop()
        if not data:
            client.close()
        elif not self._greeted and data in _SOCKS_GREETINGS:
            try:
                client.sock.send(_SOCKS_WELCOME)
            except OSError:
                client.abort()
            else:
                self._greeted = True
                self._wait()
                return True
        else:
            if not self._proxy.connect(client, data, greeted=self._greeted):
                self._proxy.serve_later(client, data, greeted=self._greeted)
        self._on_left(self)
        return True

    def _cut(self) -> None:
        self.abort()
        self._on_left(self)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if not self._client.closed:
                self._client.watcher.remove_reader(self._client.fd)


class Proxy:
    """Serves the connections of one gate that speak to it as to a proxy."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        # Canonical name and verdict of names that are allowed, by what was asked for.
        self._decided: dict[tuple[str, int], tuple[str, Verdict]] = {}
        # What a CONNECT asks for, and the same, by how it is spelled.
        self._read: dict[bytes, tuple[_Asked, str, Verdict]] = {}

    def connect(self, client: RawStream, said: bytes, *, greeted: bool) -> bool:
        """Serve what was asked for before and allowed; False when it was not, and nothing has been done.

        Args:
            client: The program's end.
            said: What was read of it.
            greeted: Whether it had said before that it speaks SOCKS.
        """
        known = None if greeted else self._read.get(said)
        if known is None:
            asked = _socks_asked(said) if greeted else _connect_asked(said)
            if asked is None or (found := self._decided.get((asked.host, asked.port))) is None:
                return False
            known = asked, *found
            if not greeted and not asked.rest and len(said) <= _MOST_READ_BYTES:
                if len(self._read) >= _MOST_DECIDED:
                    self._read.clear()
                self._read[said] = known
        asked, name, verdict = known
        self._gate.tunnel(client, asked.via, name, asked.port, verdict, asked.reply, asked.rest)
        return True

    def serve_later(self, client: RawStream, first: bytes, *, greeted: bool) -> None:
        """Serve it by a task, with the bytes that were read."""
        self._gate.spawn(self._serve(client, first, greeted=greeted))

    async def _serve(self, client: RawStream, first: bytes, *, greeted: bool) -> None:
        """Serve one connection, and close it."""
        try:
            if greeted or first[:1] == b"\x05":
                await self._socks(client, first, greeted=greeted)
            else:
                await self._http(client, first)
        except OSError:
            client.abort()
        finally:
            client.close()

    def _decide(self, via: Via, host: str, port: int) -> tuple[Entry, Address | None, Verdict]:
        try:
            address = literal_address(host)
            name = canonical_name(host) if address is None else ""
        except ValueError as error:
            entry = self._gate.ledger.begin(via, name=host[:253], port=port)
            return entry, None, Verdict(allowed=False, reason=Why.NAME_INVALID, text=str(error))
        if address is not None:
            entry = self._gate.ledger.begin(via, address=str(address), port=port)
            return entry, address, self._gate.decide_literal(address, port)
        entry = self._gate.ledger.begin(via, name=name, port=port)
        verdict = self._gate.decide_name(name, port)
        if verdict.allowed:
            if len(self._decided) >= _MOST_DECIDED:
                self._decided.clear()
            self._decided[host, port] = name, verdict
        return entry, None, verdict

    async def _http(self, client: RawStream, head: bytes) -> None:
        async with asyncio.timeout(_HEAD_SECONDS):
            while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
                more = await client.read(_MAX_HEAD_BYTES)
                if not more:
                    return
                head += more
        line = _LINE.match(head)
        if line is None or b"\r\n\r\n" not in head:
            await _say(client, 400, "this is neither a request to a proxy nor SOCKS5")
            return
        method, target = line[1].decode(), line[2].decode()
        connects = method == "CONNECT"
        try:
            if connects:
                host, port = split_authority(target, -1)
            else:
                scheme, authority, _ = split_absolute(target)
                host, port = split_authority(authority, 80)
                if scheme != "http":
                    raise TargetError("a proxy is asked for https with CONNECT")
            if not 0 < port < 65536:
                raise TargetError("the port is missing")
        except TargetError as error:
            await _say(client, 400, str(error))
            return
        entry, literal, verdict = self._decide("http_proxy", host, port)
        try:
            if not verdict.allowed:
                entry.refuse(verdict)
                await _refuse(client, verdict)
                return
            entry.rule = verdict.rule
            if connects:
                rest = head.partition(b"\r\n\r\n")[2]
                await self.reach(client, entry, literal, _CONNECTED, rest)
            else:
                await self._gate.carry(Rewound(client, head), entry, literal, single=True)
        finally:
            entry.end()

    async def reach(
        self, client: RawStream, entry: Entry, literal: Address | None, reply: bytes, rest: bytes
    ) -> None:
        """Dial what is allowed, say so with `reply`, and carry what follows, of which `rest` was read."""
        try:
            server = await self._gate.dialling(entry, literal)()
        except Refused as error:
            if entry.via == "http_proxy":
                await _refuse(client, error.verdict)
            else:
                failed = error.verdict.reason in (Why.UNRESOLVED, Why.UPSTREAM_FAILED)
                await client.write(_socks_reply(_HOST_UNREACHABLE if failed else _NOT_ALLOWED))
            return
        await client.write(reply)
        await self._gate.carry(Rewound(client, rest), entry, literal, early=server)

    async def _socks(self, client: RawStream, held: bytes, *, greeted: bool) -> None:
        async def take(count: int) -> bytes:
            nonlocal held
            while len(held) < count:
                more = await client.read(_MAX_HEAD_BYTES)
                if not more:
                    raise ConnectionResetError("SOCKS: the connection ended")
                held += more
            taken, held = held[:count], held[count:]
            return taken

        async with asyncio.timeout(_HEAD_SECONDS):
            if not greeted:
                methods = await take((await take(2))[1])
                if 0 not in methods:
                    await client.write(b"\x05\xff")
                    return
                await client.write(_SOCKS_WELCOME)
            _, command, _, kind = await take(4)
            host = ""
            if kind == _IPV4:
                host = str(IPv4Address(await take(4)))
            elif kind == _IPV6:
                host = str(IPv6Address(await take(16)))
            elif kind == _NAME:
                host = (await take((await take(1))[0])).decode("latin-1")
            port = int.from_bytes(await take(2))
        if command != _CONNECT or not host or not port:
            await client.write(_socks_reply(_COMMAND_UNKNOWN))
            return
        entry, literal, verdict = self._decide("socks", host, port)
        try:
            if not verdict.allowed:
                entry.refuse(verdict)
                await client.write(_socks_reply(_NOT_ALLOWED))
                return
            entry.rule = verdict.rule
            await self.reach(client, entry, literal, _socks_reply(_SUCCEEDED), held)
        finally:
            entry.end()


def _connect_asked(head: bytes) -> _Asked | None:
    """What a whole CONNECT asks for; None for anything else."""
    line = _LINE.match(head)
    start, ended, rest = head.partition(b"\r\n\r\n")
    if line is None or line[1] != b"CONNECT" or not ended or len(start) > _MAX_HEAD_BYTES:
        return None
    try:
        host, port = split_authority(line[2].decode(), -1)
    except TargetError:
        return None
    return _Asked("http_proxy", host, port, rest)


def _socks_asked(data: bytes) -> _Asked | None:
    """What a whole SOCKS5 request to connect with a name asks for; None for anything else."""
    if len(data) < 7 or data[1] != _CONNECT or data[3] != _NAME:
        return None
    end = 5 + data[4]
    if not data[4] or len(data) < end + 2:
        return None
    port = int.from_bytes(data[end : end + 2])
    return _Asked("socks", data[5:end].decode("latin-1"), port, data[end + 2 :])


def _socks_reply(code: int) -> bytes:
    return bytes([5, code, 0, _IPV4]) + bytes(6)


async def _refuse(client: RawStream, verdict: Verdict) -> None:
    status = _STATUS.get(verdict.reason, 403)
    await _answer(
        client, Answer(status=status, reason=verdict.reason, rule=verdict.rule, text=verdict.text)
    )


async def _say(client: RawStream, status: int, text: str) -> None:
    await _answer(client, Answer(status=status, reason=Why.REQUEST_INVALID, rule="", text=text))


async def _answer(client: RawStream, answer: Answer) -> None:
    headers, body = answer.headers(b"")
    lines = b"".join(n + b": " + v + b"\r\n" for n, v in headers)
    start = b"HTTP/1.1 %d %s\r\n" % (answer.status, answer.phrase)
    await client.write(start + lines + b"connection: close\r\n\r\n" + body)
    await client.write_eof()
