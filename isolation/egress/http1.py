"""HTTP/1.1 through the gate: one connection of a client, one to the server.

Theory of operation
    h11 reads each message and writes it anew, so the server gets what was judged, framed by us. Before
    h11 sees a request its head is looked at as bytes, for what h11 forgives and another server may
    understand differently (`_flaw`). Request body and response flow at the same time, a piece at a
    time: neither is held in memory. A connection whose two sides could disagree about where a message
    ends is closed.

Sources: RFC 9112; section 11.2 for request smuggling.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable

import h11

from .credentials import Cover
from .http import Admitted, Inspector, Refused, Request, forwarded
from .relay import relay
from .tls import CHUNK_BYTES, ByteStream

MAX_HEAD_BYTES = 128 << 10
HEAD_SECONDS = 60.0  # from a head's first byte to its last
_LINGER_SECONDS = 5.0
_LINGER_BYTES = 64 << 20
_FRAMING = (b"content-length", b"transfer-encoding")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_FOLD = re.compile(rb"\n[ \t]")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:", re.IGNORECASE)
_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)

Dial = Callable[[], Awaitable[ByteStream]]


class _Ended(Exception):
    """The connection is over; nothing more is to be said on it."""


class Http1:
    """Serves one client's connection until either side ends it.

    Args:
        client: What the program inside sends and gets.
        dial: Connects to the server; called when the first request was admitted. Raises OSError,
            whose text goes to the client.
        inspector: Judges.
        single: Whether the connection is closed after one request, as where the next one may be
            for another host (a proxy's client).
    """

    def __init__(
        self, client: ByteStream, dial: Dial, inspector: Inspector, *, single: bool = False
    ) -> None:
        self._single = single
        self._client = client
        self._dial = dial
        self._inspector = inspector
        self._server: ByteStream | None = None
        self._down = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._up = _up()
        self._bytes_out = self._bytes_in = 0

    async def serve(self) -> None:
        """Carry requests until the connection ends. Closes both sides."""
        try:
            while await self._head():
                await self._exchange()
                if self._down.our_state is not h11.DONE or self._down.their_state is not h11.DONE:
                    break
                self._down.start_next_cycle()
                if self._up.our_state is h11.DONE and self._up.their_state is h11.DONE:
                    self._up.start_next_cycle()
                else:
                    await self._hang_up()
            await self._linger()
        except (_Ended, OSError):
            self._client.abort()
        finally:
            await self._hang_up()
            await self._client.aclose()

    async def _hang_up(self) -> None:
        """Leave the server; a further request is another connection to it."""
        if self._server is not None:
            server, self._server = self._server, None
            with contextlib.suppress(OSError):
                await server.aclose()
        self._up = _up()

    async def _linger(self) -> None:
        """Let a client that still sends read its answer: RFC 9112 section 9.6."""
        await self._client.write_eof()
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0 and (data := await self._client.read(CHUNK_BYTES)):
                    left -= len(data)

    async def _head(self) -> bool:
        """Wait for a request's head and look at it; False when none comes or it is flawed."""
        timer: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(None) as timer:
                while True:
                    held = self._down.trailing_data[0]
                    end = held.find(b"\r\n\r\n")
                    if end >= 0:
                        break
                    if _BARE.search(held[:-1]) or len(held) > MAX_HEAD_BYTES:
                        break
                    if held and timer.when() is None:
                        timer.reschedule(asyncio.get_running_loop().time() + HEAD_SECONDS)
                    data = (
                        await self._read_idle()
                        if not held
                        else await self._client.read(CHUNK_BYTES)
                    )
                    if not data:
                        return False
                    self._down.receive_data(data)
        except TimeoutError:
            return False
        flaw = (
            "its head is over 128 KiB"
            if end < 0 or end > MAX_HEAD_BYTES
            else _flaw(held[: end + 2])
        )
        if end < 0 and _BARE.search(held):
            flaw = "its head has a line break that is not CR LF"
        if flaw:
            await self._answer_raw(self._inspector.malformed(flaw))
            return False
        return True

    async def _read_idle(self) -> bytes:
        """The client's next bytes. A server that ends the idle connection meanwhile is left."""
        if self._server is None:
            return await self._client.read(CHUNK_BYTES)
        client = asyncio.ensure_future(self._client.read(CHUNK_BYTES))
        server = asyncio.ensure_future(self._server.read(1))
        try:
            await asyncio.wait((client, server), return_when=asyncio.FIRST_COMPLETED)
            if server.done():
                # One that speaks unasked has ended the connection, too: RFC 9112 section 9.2.
                await self._hang_up()
            return await client
        finally:
            for read in (client, server):
                read.cancel()
            await asyncio.gather(client, server, return_exceptions=True)

    async def _exchange(self) -> None:
        self._bytes_out = self._bytes_in = 0
        try:
            event = self._down.next_event()
        except h11.RemoteProtocolError as error:
            await self._answer_raw(
                self._inspector.malformed(str(error), status=error.error_status_hint)
            )
            return
        assert isinstance(event, h11.Request)
        request = Request(
            method=event.method.decode(),
            target=event.target.decode("latin-1"),
            headers=tuple(event.headers.raw_items()),
        )
        hosts = [value for name, value in event.headers if name == b"host"]
        answer = self._inspector.admit(request, hosts)
        status = 0
        failure = "client_or_server_ended"
        try:
            if isinstance(answer, Refused):
                status = answer.status
                await self._answer(answer, request)
                return
            try:
                if self._server is None:
                    self._server = await self._dial()
            except OSError as error:
                answer = self._inspector.unreachable(error)
                status = answer.status
                await self._answer(answer, request)
                return
            status = await self._forward(answer, request)
            failure = ""
        except _Refusal as refusal:
            answer = refusal.answer
            status = answer.status
            if self._down.our_state is not h11.SEND_RESPONSE:
                raise _Ended from None  # half an answer is there already: cut it
            await self._answer(answer, request)
        finally:
            self._inspector.over(request, answer, status, self._bytes_out, self._bytes_in, failure)

    async def _forward(self, admitted: Admitted, request: Request) -> int:
        assert self._server is not None
        headers = list(admitted.request.headers)
        if admitted.websocket:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        await self._send_up(
            h11.Request(
                method=admitted.request.method, target=admitted.request.target.encode("latin-1"),
                headers=headers,
            )
        )  # fmt: skip
        if not any(n.lower() in _FRAMING for n, _ in request.headers):
            await self._pump_request(admitted)  # only its end is left to say
            return await self._pump_response(admitted)
        pump = asyncio.create_task(self._pump_request(admitted))
        answer = asyncio.create_task(self._pump_response(admitted))
        try:
            await asyncio.wait((pump, answer), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            return await answer
        finally:
            for task in (pump, answer):
                task.cancel()
            await asyncio.gather(pump, answer, return_exceptions=True)

    async def _pump_request(self, admitted: Admitted) -> None:
        while True:
            try:
                event = self._down.next_event()
            except h11.RemoteProtocolError as error:
                raise _Refusal(self._inspector.malformed(str(error))) from None
            if event is h11.NEED_DATA:
                self._down.receive_data(await self._client.read(CHUNK_BYTES))
            elif isinstance(event, h11.Data):
                self._look(admitted, bytes(event.data))
                self._bytes_out += len(event.data)
                await self._send_up(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                for name, value in event.headers.raw_items():
                    self._look(admitted, name + b": " + value)
                await self._send_up(h11.EndOfMessage(headers=event.headers.raw_items()))
                return
            else:  # the client has gone
                raise _Ended

    def _look(self, admitted: Admitted, data: bytes) -> None:
        if admitted.search is not None and (name := admitted.search.feed(data)):
            raise _Refusal(self._inspector.misplaced(name))

    async def _pump_response(self, admitted: Admitted) -> int:
        assert self._server is not None
        cover = admitted.cover()
        status = 0
        while True:
            try:
                event = self._up.next_event()
            except h11.RemoteProtocolError as error:
                raise _Refusal(self._inspector.failed(f"the server broke HTTP: {error}")) from None
            if event is h11.NEED_DATA:
                self._up.receive_data(await self._server.read(CHUNK_BYTES))
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    if not admitted.websocket:
                        raise _Refusal(
                            self._inspector.failed("the server switched protocols unasked")
                        )
                    await self._switch(event)
                    return 101
                await self._send_down(
                    h11.InformationalResponse(
                        status_code=event.status_code, headers=forwarded(_raw(event), cover),
                        reason=event.reason,
                    )
                )  # fmt: skip
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = forwarded(_raw(event), cover)
                if self._single:
                    headers.append((b"connection", b"close"))
                await self._send_down(
                    h11.Response(status_code=status, headers=headers, reason=event.reason)
                )
            elif isinstance(event, h11.Data):
                await self._send_data(bytes(event.data), cover)
            elif isinstance(event, h11.EndOfMessage):
                if cover is not None and (rest := cover.flush()):
                    self._bytes_in += len(rest)
                    await self._send_down(h11.Data(data=rest))
                trailers = forwarded(tuple(event.headers.raw_items()), cover)
                await self._send_down(h11.EndOfMessage(headers=trailers))
                return status
            else:
                raise _Refusal(self._inspector.failed("the server ended the connection"))

    async def _send_data(self, data: bytes, cover: Cover | None) -> None:
        if cover is not None:
            data = cover.feed(data)
        self._bytes_in += len(data)
        if data:
            await self._send_down(h11.Data(data=data))

    async def _switch(self, event: h11.InformationalResponse) -> None:
        """The request was allowed and the server agrees: from here on it is bytes."""
        assert self._server is not None
        headers = [
            *forwarded(_raw(event), None),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
        ]
        await self._send_down(
            h11.InformationalResponse(status_code=101, headers=headers, reason=event.reason)
        )
        early, late = self._down.trailing_data[0], self._up.trailing_data[0]
        self._bytes_out, self._bytes_in = len(early), len(late)
        if early:
            await self._server.write(early)
        if late:
            await self._client.write(late)
        await relay(self._client, self._server, self._count)
        await self._server.aclose()
        await self._client.aclose()
        raise _Ended

    def _count(self, out: int, back: int) -> None:
        self._bytes_out += out
        self._bytes_in += back

    async def _send_up(self, event: h11.Event) -> None:
        assert self._server is not None
        if data := self._up.send(event):
            await self._server.write(data)

    async def _send_down(self, event: h11.Event) -> None:
        if data := self._down.send(event):
            await self._client.write(data)

    async def _answer(self, refused: Refused, request: Request) -> None:
        """Answer in the server's place. What is left of the request is not read: the end follows."""
        accept = b",".join(v for n, v in request.headers if n.lower() == b"accept")
        headers, body = refused.headers(accept)
        ends = self._down.their_state is not h11.SEND_BODY
        try:
            await self._send_down(
                h11.Response(
                    status_code=refused.status, reason=refused.phrase,
                    headers=[*headers, *([] if ends and not self._single else [(b"connection", b"close")])],
                )
            )  # fmt: skip
            if request.method != "HEAD":
                await self._send_down(h11.Data(data=body))
            await self._send_down(h11.EndOfMessage())
        except h11.LocalProtocolError:
            raise _Ended from None

    async def _answer_raw(self, refused: Refused) -> None:
        """Answer what h11 did not accept, and end."""
        headers, body = refused.headers(b"")
        lines = b"".join(n + b": " + v + b"\r\n" for n, v in headers)
        start = f"HTTP/1.1 {refused.status} ".encode() + refused.phrase + b"\r\n"
        await self._client.write(start + lines + b"connection: close\r\n\r\n" + body)
        self._inspector.over(None, refused, refused.status, 0, 0)


class _Refusal(Exception):
    """Found while the message flows: its answer, if it can still be given."""

    def __init__(self, answer: Refused) -> None:
        super().__init__(answer.text)
        self.answer = answer


def _up() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)


def _raw(event: h11.Response | h11.InformationalResponse) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(event.headers.raw_items())


def _flaw(head: bytes) -> str:
    """What another server might read differently; "" when there is nothing. `head` ends in CR LF."""
    if _BARE.search(head):
        return "its head has a line break that is not CR LF, or a NUL"
    if _FOLD.search(head):
        return "a header goes on in a second line"
    lengths, codings = len(_LENGTH.findall(head)), len(_CODING.findall(head))
    if lengths > 1 or codings > 1 or (lengths and codings):
        return "it gives its length twice (Content-Length and Transfer-Encoding)"
    return ""
