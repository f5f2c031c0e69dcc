"""HTTP/2 through the gate: one connection of a client, one to the server, stream by stream.

Theory of operation
    Each side is a `Side` (http2_side.py): a reader task hands h2 what comes and puts its events into the queue of their
    stream; whoever sends waits for the stream's window. Each stream of the client's is judged, then
    carried by a task of its own to a stream of the server's. Data is acknowledged when it has been sent
    on, so that the windows bound the memory: `WINDOW_BYTES` a connection and side. gRPC is this, with
    trailers.

Sources: RFC 9113; h2's documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import quote

import h2.errors
import h2.events

from .credentials import Cover
from .http import Admitted, Inspector, Refused, Request, forwarded
from .http1 import Dial
from .http2_side import Side, Stream, StreamError
from .tls import ByteStream


class Http2:
    """Serves one client's connection until either side ends it. Arguments as `http1.Http1`'s."""

    def __init__(self, client: ByteStream, dial: Dial, inspector: Inspector) -> None:
        self._client_stream = client
        self._dial = dial
        self._inspector = inspector
        self._tasks: set[asyncio.Task[None]] = set()
        self._down = Side(client, client=False, on_request=self._on_request)
        self._server_stream: ByteStream | None = None
        self._up: Side | None = None
        self._up_task: asyncio.Task[None] | None = None
        self._dialling = asyncio.Lock()

    async def serve(self) -> None:
        """Carry streams until the connection ends. Closes both sides."""
        try:
            await self._down.run()
        finally:
            tasks = [*self._tasks, *([self._up_task] if self._up_task else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._server_stream is not None:
                self._server_stream.abort()
            await self._client_stream.aclose()

    async def _connected(self) -> Side:
        async with self._dialling:
            if self._up is None:
                self._server_stream = await self._dial()
                self._up = Side(self._server_stream, client=True)
                self._up_task = asyncio.create_task(self._run_up(self._up))
            return self._up

    async def _run_up(self, up: Side) -> None:
        reader = asyncio.create_task(up.run())
        try:
            await up.going.wait()
            with contextlib.suppress(OSError):
                await self._down.say_goaway()
            if self._down.idle:
                self._client_stream.abort()
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _on_request(self, stream: Stream, event: h2.events.RequestReceived) -> None:
        task = asyncio.create_task(self._carry(stream, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, stream: Stream, event: h2.events.RequestReceived) -> None:
        exchange = _Exchange(self._down, stream, self._inspector)
        try:
            await exchange.run(event, self._connected)
        except OSError:
            pass  # the client has gone
        finally:
            exchange.over()
            self._down.forget(stream)
            if self._up is not None and self._up.going.is_set() and self._down.idle:
                self._client_stream.abort()


class _Exchange:
    """One stream of the client's and what becomes of it."""

    def __init__(self, down: Side, stream: Stream, inspector: Inspector) -> None:
        self._down = down
        self._stream = stream
        self._inspector = inspector
        self._request: Request | None = None
        self._answer: Admitted | Refused = inspector.failed("the connection ended")
        self._accept = b""
        self._grpc = self._request_ended = False
        self._status = 0
        self._bytes_out = self._bytes_in = 0
        self._failure = "client_or_server_ended"

    def over(self) -> None:
        """Record it."""
        self._inspector.over(
            self._request,
            self._answer,
            self._status,
            self._bytes_out,
            self._bytes_in,
            self._failure,
        )

    async def run(
        self, event: h2.events.RequestReceived, connected: Callable[[], Awaitable[Side]]
    ) -> None:
        """Judge it and carry it out. Raises OSError when the client has gone."""
        headers = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
        pseudo = {n: v for n, v in headers if n.startswith(b":")}
        plain = tuple((n, v) for n, v in headers if not n.startswith(b":"))
        self._accept = b",".join(v for n, v in plain if n == b"accept")
        self._grpc = any(
            n == b"content-type" and v.startswith(b"application/grpc") for n, v in plain
        )
        self._request = Request(
            method=pseudo.get(b":method", b"").decode("latin-1"),
            target=pseudo.get(b":path", b"").decode("latin-1"),
            headers=tuple((n, v) for n, v in plain if n != b"host"),
        )
        names = [v for n, v in headers if n in (b":authority", b"host")]
        if pseudo.get(b":scheme") != self._inspector.origin.scheme.encode():
            self._answer = self._inspector.malformed("its :scheme is not the connection's")
            return await self._refuse()
        self._answer = admitted = self._inspector.admit(self._request, names)
        if isinstance(admitted, Refused):
            return await self._refuse()
        try:
            server = await connected()
        except OSError as error:
            self._answer = self._inspector.unreachable(error)
            return await self._refuse()
        request = admitted.request
        head = [
            (b":method", request.method.encode()),
            (b":scheme", pseudo[b":scheme"]),
            (b":authority", names[0]),
            (b":path", request.target.encode("latin-1")),
            *((n.lower(), v) for n, v in request.headers),
        ]
        ended = event.stream_ended is not None
        try:
            there = await server.open(head, end=ended)
        except StreamError as error:
            return await self._down.reset(self._stream, error.code)
        try:
            await self._both(server, there, admitted, ended)
        finally:
            await server.reset(there, h2.errors.ErrorCodes.CANCEL)
            server.forget(there)

    async def _both(self, server: Side, there: Stream, admitted: Admitted, ended: bool) -> None:
        self._request_ended = ended
        tasks = [asyncio.create_task(self._pump_response(server, there, admitted))]
        if not ended:
            tasks.append(asyncio.create_task(self._pump_request(server, there, admitted)))
        else:
            tasks.append(asyncio.create_task(self._watch()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks[1:]:
                if task.done():
                    task.result()
            await tasks[0]
            self._failure = ""
            if not self._request_ended:
                # The answer is whole; what of the request is left is not wanted: section 8.1.
                await self._down.reset(self._stream, h2.errors.ErrorCodes.NO_ERROR)
        except StreamError as error:
            await self._down.reset(self._stream, error.code)
        except _Refusal as refusal:
            self._answer = refusal.answer
            if self._status:
                await self._down.reset(self._stream, h2.errors.ErrorCodes.CANCEL)
            else:
                await self._refuse()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Raise when the client takes its request back."""
        while True:
            await self._stream.next()

    async def _pump_request(self, server: Side, there: Stream, admitted: Admitted) -> None:
        while True:
            event = await self._stream.next()
            if isinstance(event, h2.events.DataReceived):
                data = event.data or b""
                self._look(admitted, data)
                self._bytes_out += len(data)
                await server.send_data(there, data)
                self._down.acknowledge(self._stream.number, event.flow_controlled_length or 0)
                await self._down.flush()
            elif isinstance(event, h2.events.TrailersReceived):
                trailers = [(bytes(n), bytes(v)) for n, v in event.headers or ()]
                for name, value in trailers:
                    self._look(admitted, name + b": " + value)
                await server.send_headers(there, trailers, end=True)
                self._request_ended = True
                return await self._watch()
            elif isinstance(event, h2.events.StreamEnded):
                await server.end(there)
                self._request_ended = True
                return await self._watch()

    def _look(self, admitted: Admitted, data: bytes) -> None:
        if admitted.search is not None and (name := admitted.search.feed(data)):
            raise _Refusal(self._inspector.misplaced(name))

    async def _pump_response(self, server: Side, there: Stream, admitted: Admitted) -> None:
        cover = admitted.cover()
        while True:
            event = await there.next()
            if isinstance(
                event, h2.events.ResponseReceived | h2.events.InformationalResponseReceived
            ):
                headers = _response(event.headers, cover)
                if isinstance(event, h2.events.ResponseReceived):
                    self._status = int(dict(headers).get(b":status", b"0"))
                await self._down.send_headers(self._stream, headers, end=False)
            elif isinstance(event, h2.events.DataReceived):
                data = event.data or b""
                await self._send_data(cover.feed(data) if cover else data)
                server.acknowledge(there.number, event.flow_controlled_length or 0)
                await server.flush()
            elif isinstance(event, h2.events.TrailersReceived):
                await self._send_data(cover.flush() if cover else b"")
                trailers = _response(event.headers, cover)
                return await self._down.send_headers(self._stream, trailers, end=True)
            elif isinstance(event, h2.events.StreamEnded):
                await self._send_data(cover.flush() if cover else b"")
                return await self._down.end(self._stream)

    async def _send_data(self, data: bytes) -> None:
        self._bytes_in += len(data)
        await self._down.send_data(self._stream, data)

    async def _refuse(self) -> None:
        """Answer in the server's place; gRPC's clients are told in their own way."""
        assert isinstance(self._answer, Refused)
        self._failure = ""
        self._status = self._answer.status
        with contextlib.suppress(StreamError):
            if self._grpc:
                codes = {
                    403: b"7",
                    502: b"14",
                }  # PERMISSION_DENIED, UNAVAILABLE: gRPC's statuscodes
                said = quote(self._answer.text, safe=" ,.:;'/()").encode()
                headers = [
                    (b":status", b"200"), (b"content-type", b"application/grpc"),
                    (b"grpc-status", codes.get(self._answer.status, b"3")), (b"grpc-message", said),
                ]  # fmt: skip
                await self._down.send_headers(self._stream, headers, end=True)
            else:
                answer, body = self._answer.headers(self._accept)
                status = (b":status", str(self._answer.status).encode())
                await self._down.send_headers(self._stream, [status, *answer], end=False)
                if self._request is None or self._request.method != "HEAD":
                    await self._down.send_data(self._stream, body)
                await self._down.end(self._stream)
            await self._down.reset(self._stream, h2.errors.ErrorCodes.NO_ERROR)


class _Refusal(Exception):
    """Found while the body flows."""

    def __init__(self, answer: Refused) -> None:
        super().__init__(answer.text)
        self.answer = answer


def _response(
    found: Iterable[tuple[bytes | str, bytes | str]] | None, cover: Cover | None
) -> list[tuple[bytes, bytes]]:
    pairs = tuple((_bytes(n), _bytes(v)) for n, v in found or ())
    return forwarded(pairs, cover)


def _bytes(text: bytes | str) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)
