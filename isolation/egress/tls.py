"""TLS over streams of bytes, on both sides of the gate.

`ssl` does the protocol on memory, so that bytes already read to look at a ClientHello are not lost
and the same code serves a socket, a pipe and a test. Sources: ssl, "Memory BIO Support"; RFC 8446.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..system import BUNDLES
from .ca import Authority

CHUNK_BYTES = 256 << 10
HANDSHAKE_SECONDS = 30.0
_MAX_HELLO_BYTES = 64 << 10  # a ClientHello with post-quantum key shares is under 4 kB


class ByteStream(Protocol):
    """A connection: bytes both ways."""

    async def read(self, max_bytes: int) -> bytes:
        """Up to `max_bytes`, as soon as there are any; b"" at the end. OSError when it is reset."""
        ...

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when little of it is left in memory. OSError when reset."""
        ...

    async def write_eof(self) -> None:
        """Say that nothing more will be sent; reading goes on."""
        ...

    async def aclose(self) -> None:
        """Send what was written and close both ways."""
        ...

    def abort(self) -> None:
        """Close both ways at once; the other side sees a reset or a cut."""
        ...


class SocketStream:
    """A `ByteStream` over asyncio's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int) -> bytes:
        return await self._reader.read(max_bytes)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        self._writer.transport.abort()


class Rewound:
    """A stream whose first bytes were read already and are read again."""

    def __init__(self, stream: ByteStream, first: bytes) -> None:
        self._stream = stream
        self._first = first

    def unwind(self) -> tuple[bytes, ByteStream]:
        """What is still to be read again, and the stream below. Ends the use of this one."""
        return self._first, self._stream

    async def read(self, max_bytes: int) -> bytes:
        if not self._first:
            return await self._stream.read(max_bytes)
        data, self._first = self._first[:max_bytes], self._first[max_bytes:]
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.write(data)

    async def write_eof(self) -> None:
        await self._stream.write_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        self._stream.abort()


class TlsStream:
    """A `ByteStream` inside another. Made by `accept` or `connect`.

    One task may read while another writes.
    """

    def __init__(
        self, stream: ByteStream, context: ssl.SSLContext, *, server_side: bool, name: str | None
    ) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=name
        )
        self._closed = False

    @property
    def protocol(self) -> str | None:
        """What ALPN agreed on."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Agree on keys. Raises ssl.SSLError, OSError, TimeoutError after HANDSHAKE_SECONDS."""
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._fill()
                except ssl.SSLError:
                    with contextlib.suppress(OSError):
                        await self._flush()  # the alert that says why
                    raise
            await self._flush()

    async def read(self, max_bytes: int) -> bytes:
        chunks: list[bytes] = []
        room = max_bytes
        while room > 0:
            try:
                data = self._tls.read(room)  # one record at the most: 16 KiB
            except ssl.SSLWantReadError:
                if chunks:
                    break
                if self._outgoing.pending:  # a key update wants an answer
                    await self._flush()
                await self._fill()
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {error.reason}") from error
            if not data:
                break
            chunks.append(data)
            room -= len(data)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.write(view[:CHUNK_BYTES]) :]
            except ssl.SSLWantReadError:  # TLS 1.2 renegotiation, which OpenSSL refuses
                raise ConnectionResetError("TLS: renegotiation") from None
            except ssl.SSLError as error:
                raise ConnectionResetError(f"TLS: {error.reason}") from error
            await self._flush()

    async def write_eof(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ssl.SSLError, OSError):
            self._tls.unwrap()  # writes close_notify, then wants to read the other's
        with contextlib.suppress(OSError):
            await self._flush()

    async def aclose(self) -> None:
        await self.write_eof()
        await self._stream.aclose()

    def abort(self) -> None:
        self._stream.abort()

    async def _fill(self) -> None:
        data = await self._stream.read(CHUNK_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        # No await between the two: writers must not overtake each other.
        if self._outgoing.pending:
            await self._stream.write(self._outgoing.read())


async def accept(stream: ByteStream, context: ssl.SSLContext) -> TlsStream:
    """Be the server that `context` describes. Raises as `TlsStream.handshake`."""
    tls = TlsStream(stream, context, server_side=True, name=None)
    await tls.handshake()
    return tls


async def connect(stream: ByteStream, name: str, context: ssl.SSLContext) -> TlsStream:
    """Be a client that asks for `name` and checks it. Raises as `TlsStream.handshake`."""
    tls = TlsStream(stream, context, server_side=False, name=name)
    await tls.handshake()
    return tls


class Trust:
    """Which servers the gate believes: the host's own authorities, and those added here.

    Args:
        extra: Files of further certificates, PEM. The gateway's configuration; no sandbox's.
    """

    def __init__(self, extra: Sequence[Path] = ()) -> None:
        self._extra = tuple(extra)
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}

    def context(self, protocols: tuple[str, ...]) -> ssl.SSLContext:
        """A client's context that offers `protocols`. Reading the bundle takes 10 ms, once."""
        found = self._contexts.get(protocols)
        if found is None:
            found = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or bundle())
            for path in self._extra:
                found.load_verify_locations(cafile=path)
            found.minimum_version = ssl.TLSVersion.TLSv1_2
            found.set_alpn_protocols(list(protocols))
            self._contexts[protocols] = found
        return found


def bundle() -> str | None:
    """The host's bundle of trusted authorities; None where there is none."""
    return next((path for path in BUNDLES if os.path.isfile(path)), None)


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a ClientHello says.

    Attributes:
        name: The SNI, lower case, without a last dot; None without one.
        protocols: Of "h2" and "http/1.1", those to offer the server for this client.
        data: The bytes read, for a `Rewound`.
    """

    name: str | None
    protocols: tuple[str, ...]
    data: bytes


class _Probe(ssl.SSLObject):
    asked: str | None = None
    heard = False  # the whole ClientHello


def _note(probe: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    assert isinstance(probe, _Probe)
    probe.asked = name
    probe.heard = True


def _note_and_stop(probe: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int:
    _note(probe, name, context)
    return ssl.ALERT_DESCRIPTION_USER_CANCELLED


def probe_context(authority: Authority, *, name_only: bool = False) -> ssl.SSLContext:
    """What `HelloReader` needs, made once; with `name_only` it tells no protocols, in a tenth of the time:
    OpenSSL stops before it makes keys."""
    context = authority.context(f"probe{name_only:d}.invalid", "h2")
    context.sni_callback = _note_and_stop if name_only else _note
    context.sslobject_class = _Probe
    return context


class HelloReader:
    """Reads a ClientHello without answering it.

    OpenSSL parses it, in a handshake that is thrown away after the first answer: no parser of ours
    stands before strangers' bytes.

    Args:
        context: `probe_context`'s.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        probe = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        assert isinstance(probe, _Probe)
        self._probe = probe
        self._name_only = context.sni_callback is _note_and_stop
        self._data = bytearray()

    def feed(self, chunk: bytes) -> Hello | None:
        """What it says once it is complete.

        Raises:
            ValueError: it is none, or longer than 64 KiB.
        """
        self._data += chunk
        if len(self._data) > _MAX_HELLO_BYTES:
            raise ValueError("the ClientHello is longer than 64 KiB")
        self._incoming.write(chunk)
        probe = self._probe
        try:
            probe.do_handshake()
        except ssl.SSLWantReadError:
            if not self._outgoing.pending:
                return None
        except ssl.SSLError as error:
            if not self._name_only or not probe.heard:
                raise ValueError(f"no ClientHello that OpenSSL accepts: {error.reason}") from error
        both = probe.selected_alpn_protocol() == "h2"
        return Hello(
            name=probe.asked.lower().rstrip(".") if probe.asked else None,
            protocols=("h2", "http/1.1") if both else ("http/1.1",),
            data=bytes(self._data),
        )


async def read_hello(stream: ByteStream, context: ssl.SSLContext) -> Hello:
    """Read a ClientHello from `stream`.

    Raises:
        ValueError: as `HelloReader.feed`, or the stream ended before.
        OSError: the connection was reset, or it did not come within HANDSHAKE_SECONDS.
    """
    reader = HelloReader(context)
    async with asyncio.timeout(HANDSHAKE_SECONDS):
        while chunk := await stream.read(_MAX_HELLO_BYTES):
            if (hello := reader.feed(chunk)) is not None:
                return hello
    raise ValueError("the connection ended before a ClientHello")
