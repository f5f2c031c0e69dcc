"""What happens to a connection once its name and port are allowed.

Theory of operation
    program ──TLS, our certificate── gate ──TLS, the server's certificate── server

    The first bytes say what the connection is. TLS: the ClientHello is read, and names the host that
    was asked for or the connection is cut. With `tls: pass` the rest passes unseen; with
    `tls: inspect` the server is asked for
    the same name with the protocols that the program offers, its certificate is checked as any client
    checks it, and the program gets a certificate of the sandbox's own authority and the protocol that
    the server chose. HTTP in the clear is read in both modes. Anything else cannot be looked into: it
    passes where the rule asks for no look (no `methods`, no `paths`) and is cut where it does. A
    server that speaks first (SSH, SMTP) is heard in the latter sense, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from ...policies.hosts import Why
from .ca import Authority
from .credentials import Vault
from .http import Decide, Inspector, OnExchange, Origin
from .http1 import Dial, Http1
from .http2 import Http2
from .http2_side import PREFACE
from .relay import relay
from .tls import (
    CHUNK_BYTES,
    ByteStream,
    HelloReader,
    Rewound,
    TlsStream,
    Trust,
    accept,
    connect,
    probe_context,
    read_hello,
)

HUSH_SECONDS = 0.01  # then the server may be one that speaks first
_TLS_HANDSHAKE = 0x16  # RFC 8446 section 5.1
_REQUEST_LINE = re.compile(rb"\r?\n?[A-Z]{1,24}(?: |$)")


class Interceptor:
    """Looks into the connections of one policy's sandboxes. Made once, used by every connection.

    Args:
        authority: Whose certificate the sandboxes trust.
        vault: Credentials to put in.
        trust: Certificates beside the host's own with which a server may identify itself. The
            gateway's configuration: nothing inside can add one.
        tls: The policy's `network.tls`.
    """

    def __init__(
        self, authority: Authority, vault: Vault, trust: Sequence[Path] = (), *,
        tls: Literal["pass", "inspect"] = "inspect",
    ) -> None:  # fmt: skip
        self.authority = authority
        self.vault = vault
        self._trust = Trust(trust)
        self._passes = tls == "pass"
        self._probe = probe_context(authority, name_only=self._passes)

    def passes_unread(self, first: bytes, host: str, *, opaque: bool) -> bool:
        """Whether a connection that begins with `first` can be carried as it is, by what is known now.

        Args:
            first: At least one byte.
            host, opaque: As in `serve`, which says what is to be done with any other.
        """
        if first[0] != _TLS_HANDSHAKE:
            return opaque and not _speaks_http2(first) and not _REQUEST_LINE.match(first)
        if not self._passes:
            return False
        try:
            hello = HelloReader(self._probe).feed(first)
        except ValueError:
            return False
        return hello is not None and hello.name == host

    async def serve(
        self,
        client: ByteStream,
        host: str,
        port: int,
        *,
        dial: Dial,
        decide: Decide,
        on_exchange: OnExchange,
        opaque: bool,
        single: bool = False,
        hushed: bool = False,
    ) -> None:
        """Serve one connection until it ends, and close it.

        Args:
            client: The program's end.
            host: The name that it asked for: lower case, A-labels, no last dot; or an address.
            port: The port that it asked for.
            dial: Connects to the server; raises OSError, whose text goes to the program.
            decide: The policy's word on a method and path.
            on_exchange: Told of every request, and of what went wrong before the first.
            opaque: Whether what is neither TLS nor HTTP may pass unseen.
            single: Whether only one request of HTTP in the clear is served.
            hushed: Whether the program has had its time to speak first, and has not.
        """
        line = _Line(dial)
        try:
            first = await self._first_bytes(client, line, opaque, hushed)
            if first is None:  # the server spoke first
                await self._unseen(client, line)
                return
            if not first:
                return
            stream = Rewound(client, first)
            is_tls = first[0] == _TLS_HANDSHAKE
            origin = Origin(scheme="https" if is_tls else "http", host=host, port=port)
            inspector = Inspector(origin, decide, self.vault, on_exchange)
            if is_tls:
                await self._tls(stream, inspector, line)
            elif _speaks_http2(first):
                await Http2(stream, line.dial, inspector).serve()
            elif _REQUEST_LINE.match(first):
                await Http1(stream, line.dial, inspector, single=single).serve()
            elif opaque:
                await self._unseen(stream, line)
            else:
                inspector.report(
                    Why.PROTOCOL_NOT_ALLOWED,
                    f"Cut: what was sent to {host}:{port} is neither TLS nor HTTP, and its rule "
                    "allows methods or paths only.",
                )
                client.abort()
        except OSError:
            client.abort()
        finally:
            await line.close()
            await client.aclose()

    async def _unseen(self, client: ByteStream, line: _Line) -> None:
        server = await line.dial()
        try:
            await relay(client, server)
        finally:
            await server.aclose()

    async def _first_bytes(
        self, client: ByteStream, line: _Line, opaque: bool, hushed: bool
    ) -> bytes | None:
        """What the program says first; None when the server has spoken before it."""
        if not opaque:
            return await client.read(CHUNK_BYTES)
        # Most programs speak at once, and then there is no need to listen to both.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if hushed else HUSH_SECONDS):
                return await client.read(CHUNK_BYTES)
        read = asyncio.create_task(client.read(CHUNK_BYTES))
        spoken = asyncio.create_task(line.spoken())
        try:
            await asyncio.wait((read, spoken), return_when=asyncio.FIRST_COMPLETED)
            if read.done():
                return read.result()
            return None if spoken.result() else await read
        finally:
            for task in (read, spoken):
                task.cancel()
            await asyncio.gather(read, spoken, return_exceptions=True)

    async def _tls(self, stream: Rewound, inspector: Inspector, line: _Line) -> None:
        host = inspector.origin.host
        try:
            hello = await read_hello(stream, self._probe)
        except ValueError as error:
            inspector.report(Why.CLIENT_TLS, f"Cut: {error}.")
            stream.abort()
            return
        if hello.name is not None and hello.name != host:
            inspector.report(
                Why.NAME_MISMATCH,
                f"Cut: the connection is to {host}, its TLS handshake names {hello.name[:253]}.",
            )
            hello_protocols: tuple[str, ...] = ()
        elif self._passes:
            if hello.name is None and not _is_address(host):
                inspector.report(
                    Why.NAME_MISSING,
                    f"Cut: the TLS handshake with {host} does not name it (no SNI), so where it goes "
                    "cannot be known.",
                )
                stream.abort()
                return
            await self._unseen(Rewound(stream, hello.data), line)
            return
        else:
            hello_protocols = hello.protocols
        server: TlsStream | None = None
        failure: OSError | None = None
        if hello_protocols:
            try:
                server = await self._connect(line, host, hello_protocols)
            except OSError as error:
                failure = error
        protocol = (server.protocol if server else None) or "http/1.1"
        try:
            # A name that is not `host` gets its alert here.
            context = self.authority.context(host, protocol)
            inside = await accept(Rewound(stream, hello.data), context)
        except (ssl.SSLError, OSError) as error:
            if hello_protocols:
                why = error.reason if isinstance(error, ssl.SSLError) else error
                inspector.report(
                    Why.CLIENT_TLS,
                    f"The program ended the TLS handshake for {host} ({why}). If it has a list of "
                    "authorities of its own, point it to the file in SSL_CERT_FILE.",
                )
            if server is not None:
                server.abort()
            await stream.aclose()  # the alert is on its way
            return
        ready = [server] if server is not None else []

        async def dial() -> ByteStream:
            if failure is not None:
                raise failure
            return ready.pop() if ready else await self._connect(line, host, (protocol,))

        try:
            if protocol == "h2":
                await Http2(inside, dial, inspector).serve()
            else:
                await Http1(inside, dial, inspector).serve()
        finally:
            for unused in ready:
                unused.abort()

    async def _connect(self, line: _Line, host: str, protocols: tuple[str, ...]) -> TlsStream:
        raw = await line.dial()
        try:
            return await connect(raw, host, self._trust.context(protocols))
        except ssl.SSLCertVerificationError as error:
            raw.abort()
            raise OSError(
                f"the certificate of {host} was not accepted: {error.verify_message}"
            ) from error
        except ssl.SSLError as error:
            raw.abort()
            raise OSError(f"TLS with {host} failed: {error.reason}") from error
        except TimeoutError as error:
            raw.abort()
            raise OSError(f"{host} did not finish its TLS handshake") from error
        except BaseException:
            raw.abort()
            raise


def _speaks_http2(first: bytes) -> bool:
    return PREFACE.startswith(first[: len(PREFACE)])


class _Line:
    """The way to the server: the first connection may be made before it is known what for."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._first: asyncio.Task[ByteStream] | None = None
        self._said = b""

    async def spoken(self) -> bool:
        """Connect, wait, and say whether the server spoke unasked."""
        if self._first is None:
            self._first = asyncio.create_task(self._connected())
        try:
            stream = await asyncio.shield(self._first)
            self._said = await stream.read(CHUNK_BYTES)
        except OSError:
            return False  # told to the program when it asks for the connection
        return bool(self._said)

    async def _connected(self) -> ByteStream:
        return await self._dial()

    async def dial(self) -> ByteStream:
        """The connection that is there, or a new one. Raises OSError."""
        first, self._first = self._first, None
        if first is None:
            return await self._dial()
        return Rewound(await first, self._said)

    async def close(self) -> None:
        """Close the connection that nobody took."""
        first, self._first = self._first, None
        if first is None:
            return
        first.cancel()
        for stream in await asyncio.gather(first, return_exceptions=True):
            if not isinstance(stream, BaseException):
                stream.abort()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
