"""The gate as a proxy, for programs that prefer one: HTTP CONNECT and absolute-form, SOCKS5.

The same rules hold as for programs that know nothing of it; here the name comes in the request.
Sources: RFC 9110 section 9.3.6, RFC 9112 section 3.2.2, RFC 1928.
"""

from __future__ import annotations

import asyncio
import re
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

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
_STATUS = {Why.NAME_INVALID: 400, Why.UNRESOLVED: 502, Why.UPSTREAM_FAILED: 502}


class Proxy:
    """Serves the connections of one gate that speak to it as to a proxy."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def serve(self, client: RawStream) -> None:
        """Serve one connection. Raises OSError when it is reset or says nothing in time."""
        async with asyncio.timeout(_HEAD_SECONDS):
            first = await client.read(_MAX_HEAD_BYTES)
        if first[:1] == b"\x05":
            await self._socks(client, first)
        elif first:
            await self._http(client, first)

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
        return entry, None, self._gate.decide_name(name, port)

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
            elif connects:
                entry.rule = verdict.rule
                try:
                    server = await self._gate.dialling(entry, literal)()
                except Refused as error:
                    await _refuse(client, error.verdict)
                    return
                await client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                stream = Rewound(client, head.partition(b"\r\n\r\n")[2])
                await self._gate.carry(stream, entry, literal, early=server)
            else:
                entry.rule = verdict.rule
                await self._gate.carry(Rewound(client, head), entry, literal, single=True)
        finally:
            entry.end()

    async def _socks(self, client: RawStream, held: bytes) -> None:
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
            methods = await take((await take(2))[1])
            if 0 not in methods:
                await client.write(b"\x05\xff")
                return
            await client.write(b"\x05\x00")
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
            try:
                server = await self._gate.dialling(entry, literal)()
            except Refused as error:
                failed = error.verdict.reason in (Why.UNRESOLVED, Why.UPSTREAM_FAILED)
                await client.write(_socks_reply(_HOST_UNREACHABLE if failed else _NOT_ALLOWED))
                return
            await client.write(_socks_reply(_SUCCEEDED))
            await self._gate.carry(Rewound(client, held), entry, literal, early=server)
        finally:
            entry.end()


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
    phrase = {400: b"Bad Request", 403: b"Forbidden"}.get(answer.status, b"Bad Gateway")
    lines = b"".join(n + b": " + v + b"\r\n" for n, v in headers)
    start = b"HTTP/1.1 %d %s\r\n" % (answer.status, phrase)
    await client.write(start + lines + b"connection: close\r\n\r\n" + body)
    await client.write_eof()
