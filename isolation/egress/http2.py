"""HTTP/2 through the gate: one connection of a client, one to the server, stream by stream.

Theory of operation
    Each side is a `Side`: a reader task hands h2 what comes and puts its events into the queue of their
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

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from .credentials import Cover
from .http import Admitted, Inspector, Refused, Request, forwarded
from .http1 import Dial
from .tls import CHUNK_BYTES, ByteStream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 1 << 20
_STREAM_WINDOW_BYTES = 256 << 10
_MAX_STREAMS = 100
_MAX_HEAD_BYTES = 64 << 10  # what h2 itself keeps to
_GOAWAY = 7  # RFC 9113 section 6.8
_REFUSED = h2.errors.ErrorCodes.REFUSED_STREAM


class StreamError(Exception):
    """A stream was reset, or its connection ended. `code` is RFC 9113's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream error {code}")
        self.code = code


class _Stream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.events: asyncio.Queue[h2.events.Event | StreamError] = asyncio.Queue()
        self.window = asyncio.Event()
        self.failed: StreamError | None = None

    def fail(self, code: int) -> None:
        self.failed = StreamError(code)
        self.events.put_nowait(self.failed)
        self.window.set()

    async def next(self) -> h2.events.Event:
        """Its next event. Raises StreamError."""
        event = await self.events.get()
        if isinstance(event, StreamError):
            raise event
        return event


class Side:
    """One HTTP/2 connection.

    Args:
        stream: Its bytes.
        client: Whether we are the client.
        on_request: For a server: told of each new stream and its headers.
    """

    def __init__(
        self, stream: ByteStream, *, client: bool,
        on_request: Callable[[_Stream, h2.events.RequestReceived], None] | None = None,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._client = client
        self._on_request = on_request
        self._streams: dict[int, _Stream] = {}
        self._room = asyncio.Event()
        self._goaway = _Goaway(0 if client else len(PREFACE))
        self._writing = asyncio.Lock()
        self.going = asyncio.Event()
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding=None)
        )
        codes = h2.settings.SettingCodes
        settings: dict[h2.settings.SettingCodes, int] = {
            codes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
            codes.MAX_HEADER_LIST_SIZE: _MAX_HEAD_BYTES,
            codes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
        }
        if client:
            settings[codes.ENABLE_PUSH] = 0
        self._h2.local_settings = h2.settings.Settings(client=client, initial_values=settings)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW_BYTES - 65535)

    async def run(self) -> None:
        """Read until the connection ends; every stream that is left then fails."""
        try:
            await self.flush()
            while data := await self._stream.read(CHUNK_BYTES):
                for event in self._h2.receive_data(self._goaway.filter(data)):
                    self._dispatch(event)
                if self._goaway.last is not None and not self.going.is_set():
                    self.going.set()
                    for number, stream in list(self._streams.items()):
                        if self._client and number > self._goaway.last:
                            stream.fail(_REFUSED)
                await self.flush()
        except h2.exceptions.ProtocolError:
            with contextlib.suppress(OSError):
                await self.flush()  # the GOAWAY that says why
        except OSError:
            pass
        finally:
            self.going.set()
            for stream in self._streams.values():
                stream.fail(h2.errors.ErrorCodes.CANCEL)
            self._streams.clear()
            self._room.set()

    async def flush(self) -> None:
        """Send what h2 has to say."""
        async with self._writing:  # a long write has pauses, frames must have none
            if data := self._h2.data_to_send():
                await self._stream.write(data)

    def _dispatch(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None and self._on_request is not None
            stream = self._streams[event.stream_id] = _Stream(event.stream_id)
            self._on_request(stream, event)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for stream in self._streams.values():
                stream.window.set()
            self._room.set()
        elif isinstance(event, h2.events.StreamReset):
            if there := self._streams.get(event.stream_id or 0):
                there.fail(int(event.error_code or 0))
        elif number := getattr(event, "stream_id", None):
            if there := self._streams.get(number):
                there.events.put_nowait(event)
            elif isinstance(event, h2.events.DataReceived):  # of a stream that is over
                self.acknowledge(number, event.flow_controlled_length or 0)

    def acknowledge(self, number: int, size: int) -> None:
        """Open the windows again by `size` bytes that were sent on."""
        if size:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, number)

    async def open(self, headers: list[tuple[bytes, bytes]], *, end: bool) -> _Stream:
        """Start a stream as a client; waits while the server wants no more of them."""
        while True:
            if self.going.is_set():
                raise StreamError(_REFUSED)
            most = min(self._h2.remote_settings.max_concurrent_streams, _MAX_STREAMS)
            if self._h2.open_outbound_streams < most:
                break
            self._room.clear()
            await self._room.wait()
        stream = _Stream(self._h2.get_next_available_stream_id())
        self._streams[stream.number] = stream
        await self.send_headers(stream, headers, end=end)
        return stream

    async def send_headers(
        self, stream: _Stream, headers: list[tuple[bytes, bytes]], *, end: bool
    ) -> None:
        """Send a head or trailers. Raises StreamError when the stream is over."""
        try:
            self._h2.send_headers(stream.number, headers, end_stream=end)
        except (h2.exceptions.ProtocolError, KeyError):
            raise stream.failed or StreamError(h2.errors.ErrorCodes.INTERNAL_ERROR) from None
        await self.flush()

    async def send_data(self, stream: _Stream, data: bytes) -> None:
        """Send `data` as the window lets it. Raises StreamError when the stream is over."""
        view = memoryview(data)
        while view:
            if stream.failed:
                raise stream.failed
            try:
                room = min(
                    self._h2.local_flow_control_window(stream.number),
                    self._h2.max_outbound_frame_size,
                )
                if room <= 0:
                    stream.window.clear()
                    await stream.window.wait()
                    continue
                self._h2.send_data(stream.number, bytes(view[:room]))
            except (h2.exceptions.ProtocolError, KeyError):
                raise stream.failed or StreamError(h2.errors.ErrorCodes.INTERNAL_ERROR) from None
            view = view[room:]
            await self.flush()

    async def end(self, stream: _Stream) -> None:
        """Say that nothing more follows on the stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self._h2.end_stream(stream.number)
        await self.flush()

    async def reset(self, stream: _Stream, code: int) -> None:
        """End the stream at once; nothing when it has ended."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self._h2.reset_stream(stream.number, code)
        with contextlib.suppress(OSError):
            await self.flush()

    def forget(self, stream: _Stream) -> None:
        """The stream is over and nobody waits for it."""
        while not stream.events.empty():
            event = stream.events.get_nowait()
            if isinstance(event, h2.events.DataReceived):
                self.acknowledge(stream.number, event.flow_controlled_length or 0)
        self._streams.pop(stream.number, None)
        self._room.set()

    async def say_goaway(self) -> None:
        """Tell a client to make no further streams here; those that are there go on.

        Not through h2, which takes that for the end of everything.
        """
        last = max(self._h2.highest_inbound_stream_id, 0)
        async with self._writing:
            await self._stream.write(GoAwayFrame(0, last_stream_id=last).serialize())

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams


class _Goaway:
    """Takes GOAWAY frames out of what a server sends: h2 would stop at once, where RFC 9113 section
    6.8 lets the streams up to the last one end in peace, as servers do every thousand requests."""

    def __init__(self, skip: int) -> None:
        self.last: int | None = None
        self._skip = skip
        self._held = b""

    def filter(self, data: bytes) -> bytes:
        """`data` without them; a frame header that is not whole waits for the rest."""
        data, self._held = self._held + data, b""
        kept: list[bytes] = []
        position = start = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            if len(data) - position < 9:
                break
            length = int.from_bytes(data[position : position + 3], "big")
            if data[position + 3] != _GOAWAY or not 8 <= length <= 1 << 14:
                self._skip = length + 9
                continue
            if len(data) - position < 9 + length:
                break
            kept.append(data[start:position])
            last = int.from_bytes(data[position + 9 : position + 13], "big") & 0x7FFFFFFF
            self.last = last if self.last is None else min(self.last, last)
            position = start = position + 9 + length
        kept.append(data[start:position])
        self._held = data[position:]
        return b"".join(kept)


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

    def _on_request(self, stream: _Stream, event: h2.events.RequestReceived) -> None:
        task = asyncio.create_task(self._carry(stream, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, stream: _Stream, event: h2.events.RequestReceived) -> None:
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

    def __init__(self, down: Side, stream: _Stream, inspector: Inspector) -> None:
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

    async def _both(self, server: Side, there: _Stream, admitted: Admitted, ended: bool) -> None:
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

    async def _pump_request(self, server: Side, there: _Stream, admitted: Admitted) -> None:
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

    async def _pump_response(self, server: Side, there: _Stream, admitted: Admitted) -> None:
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
