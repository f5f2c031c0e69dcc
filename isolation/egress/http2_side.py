"""One side of HTTP/2 in the gate: a connection, its streams, and what waits for their windows.

Data is acknowledged when it has been sent on, so that the windows bound the memory: `WINDOW_BYTES` a
connection and side. Sources: RFC 9113; h2's documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from .tls import CHUNK_BYTES, ByteStream

WINDOW_BYTES = 1 << 20
_STREAM_WINDOW_BYTES = 256 << 10
_MAX_STREAMS = 100
_MAX_HEAD_BYTES = 64 << 10  # what h2 itself keeps to
_GOAWAY = 7  # RFC 9113 section 6.8
_REFUSED = h2.errors.ErrorCodes.REFUSED_STREAM
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class StreamError(Exception):
    """A stream was reset, or its connection ended. `code` is RFC 9113's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream error {code}")
        self.code = code


class Stream:
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
        on_request: Callable[[Stream, h2.events.RequestReceived], None] | None = None,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._client = client
        self._on_request = on_request
        self._streams: dict[int, Stream] = {}
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
            stream = self._streams[event.stream_id] = Stream(event.stream_id)
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

    async def open(self, headers: list[tuple[bytes, bytes]], *, end: bool) -> Stream:
        """Start a stream as a client; waits while the server wants no more of them."""
        while True:
            if self.going.is_set():
                raise StreamError(_REFUSED)
            most = min(self._h2.remote_settings.max_concurrent_streams, _MAX_STREAMS)
            if self._h2.open_outbound_streams < most:
                break
            self._room.clear()
            await self._room.wait()
        stream = Stream(self._h2.get_next_available_stream_id())
        self._streams[stream.number] = stream
        await self.send_headers(stream, headers, end=end)
        return stream

    async def send_headers(
        self, stream: Stream, headers: list[tuple[bytes, bytes]], *, end: bool
    ) -> None:
        """Send a head or trailers. Raises StreamError when the stream is over."""
        try:
            self._h2.send_headers(stream.number, headers, end_stream=end)
        except (h2.exceptions.ProtocolError, KeyError):
            raise stream.failed or StreamError(h2.errors.ErrorCodes.INTERNAL_ERROR) from None
        await self.flush()

    async def send_data(self, stream: Stream, data: bytes) -> None:
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

    async def end(self, stream: Stream) -> None:
        """Say that nothing more follows on the stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self._h2.end_stream(stream.number)
        await self.flush()

    async def reset(self, stream: Stream, code: int) -> None:
        """End the stream at once; nothing when it has ended."""
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self._h2.reset_stream(stream.number, code)
        with contextlib.suppress(OSError):
            await self.flush()

    def forget(self, stream: Stream) -> None:
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
