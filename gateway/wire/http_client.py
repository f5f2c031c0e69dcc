"""HTTP/1.1 to one origin, under egress rules: nothing is followed, shared or sent that was not asked for.

No redirects, cookies, proxies or pools of others: a token goes to the origin that it was written for
and nowhere else. The name is resolved once for each connection, and an address that passed is dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from urllib.parse import urlsplit

import h11

from ...isolation.egress.dial import Dialer, Refused
from ...policies.addresses import literal_address
from ...policies.hosts import Hosts
from .links import destination

_CHUNK_BYTES = 1 << 16
_IDLE = 4  # connections kept for the next request
_RESPONSE_SECONDS = 600.0


class Response:
    """A response whose body has yet to be read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: AsyncIterator[bytes]) -> None:
        self.status, self.headers, self.body = status, headers, body

    async def read(self, most_bytes: int) -> bytes:
        """The whole body. Raises `OSError` over the limit."""
        parts: list[bytes] = []
        size = 0
        async for part in self.body:
            size += len(part)
            if size > most_bytes:
                raise OSError(f"the answer is over {most_bytes >> 20} MiB")
            parts.append(part)
        return b"".join(parts)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 18)

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.state.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self.state.receive_data(await self.reader.read(_CHUNK_BYTES))

    def close(self) -> None:
        self.writer.close()


class Origin:
    """One scheme, host and port.

    Args:
        url: Any URL of it, `http` or `https`, without user name or password.
        hosts: The egress rules.
        dialer: Dials by them.
        bytes_out: The most that may be sent; None for no limit.

    Raises:
        ValueError: no such URL.
    """

    def __init__(
        self, url: str, hosts: Hosts, dialer: Dialer, bytes_out: int | None = None
    ) -> None:
        self._scheme, self._host, self._port = destination(url)
        self._authority = urlsplit(url).netloc
        self._hosts, self._dialer = hosts, dialer
        self._left = bytes_out
        self._idle: list[_Connection] = []

    def holds(self, url: str) -> bool:
        """Whether a URL is of this origin. Raises `ValueError`: it is none."""
        return destination(url) == (self._scheme, self._host, self._port)

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncGenerator[Response]:
        """Send a request; leaving the context ends it, read or not.

        Args:
            method, target: As on the request line.
            headers: Besides Host and Content-Length.
            body: Whole.

        Raises:
            OSError: refused by the rules (its text says which), not reached, or cut.
        """
        if not (verdict := self._hosts.decide_request(
            method, self._host, target.partition("?")[0], port=self._port
        )).allowed:  # fmt: skip
            raise Refused(verdict)
        connection = self._idle.pop() if self._idle else await self._connect()
        whole = False
        try:
            sent = [("Host", self._authority), *headers.items()]
            if body or method == "POST":
                sent.append(("Content-Length", str(len(body))))
            request = h11.Request(method=method, target=target, headers=sent)
            data = connection.state.send(request) or b""
            if body:
                data += connection.state.send(h11.Data(body)) or b""
            data += connection.state.send(h11.EndOfMessage()) or b""
            self.sending(len(data))
            connection.writer.write(data)
            await connection.writer.drain()
            async with asyncio.timeout(_RESPONSE_SECONDS):
                event = await connection.event()
                while isinstance(event, h11.InformationalResponse):
                    event = await connection.event()
            if not isinstance(event, h11.Response):
                raise ConnectionError("the server hung up")
            found = {k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers}

            async def parts() -> AsyncIterator[bytes]:
                nonlocal whole
                while True:
                    event = await connection.event()
                    if isinstance(event, h11.Data):
                        yield bytes(event.data)
                    elif isinstance(event, h11.EndOfMessage):
                        whole = True
                        return
                    else:
                        raise ConnectionError("the server hung up")

            yield Response(event.status_code, found, parts())
        except h11.ProtocolError as error:
            raise OSError(f"the server's HTTP is broken: {error}") from None
        finally:
            if whole and connection.state.our_state is connection.state.their_state is h11.DONE:
                connection.state.start_next_cycle()
                self._idle.append(connection)
                while len(self._idle) > _IDLE:
                    self._idle.pop(0).close()
            else:
                connection.close()

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    def sending(self, count: int) -> None:
        """Called before so much is sent. Raises `OSError`: `network.bytes_out` is reached."""
        if self._left is not None:
            if count > self._left:
                raise OSError(
                    "network.bytes_out of its policy is reached; ask the person to raise it"
                )
            self._left -= count

    def received(self, count: int) -> None:
        """Called when so much has come: there is no limit on that but a message's."""

    async def _connect(self) -> _Connection:
        literal = literal_address(self._host)
        if literal is not None:
            verdict = self._dialer.literal(literal, self._port)
        else:
            verdict = self._hosts.decide_name(self._host, self._port)
        if not verdict.allowed:
            raise Refused(verdict)
        addresses = [literal] if literal is not None else []
        if literal is None:
            addresses, _ = await self._dialer.addresses(self._host, self._port)
        stream, _ = await self._dialer.connect(addresses, self._port, self._host, self)
        context = None
        if self._scheme == "https":
            context = ssl.create_default_context()
        reader, writer = await asyncio.open_connection(
            sock=stream.sock,
            ssl=context,
            server_hostname=self._host if context else None,
            limit=1 << 20,
        )
        return _Connection(reader, writer)


async def events(body: AsyncIterator[bytes], most_bytes: int) -> AsyncIterator[dict[str, str]]:
    """The server-sent events in a body: `event`, `data`, `id`, `retry`, where they are there.

    Raises:
        OSError: an event over the limit.

    Source: WHATWG HTML, "Server-sent events", parsing an event stream.
    """
    rest = b""
    fields: dict[str, str] = {}
    data: list[str] = []
    size = 0
    async for part in body:
        # A line may be of many parts, so it is only cut where a part brings an end of line.
        rest += part
        if b"\n" not in part and b"\r" not in part:
            if len(rest) > most_bytes:
                raise OSError(f"an event is over {most_bytes >> 20} MiB")
            continue
        held = b"\r" if rest.endswith(b"\r") else b""  # its \n may be in the next part
        lines = rest.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop() + held
        for line in lines:
            if not line:
                if data:
                    fields["data"] = "\n".join(data)
                if fields:
                    yield fields
                fields, data, size = {}, [], 0
                continue
            name, _, value = line.partition(b":")
            text = value.removeprefix(b" ").decode("utf-8", "surrogatepass")
            size += len(text)
            if size > most_bytes:
                raise OSError(f"an event is over {most_bytes >> 20} MiB")
            if name == b"data":
                data.append(text)
            elif name in (b"event", b"id", b"retry"):
                fields[name.decode()] = text
