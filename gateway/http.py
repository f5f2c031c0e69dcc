"""Streamable HTTP: an ASGI application that serves sessions, in both eras.

Theory of operation
    A POST is one message. Its answer leaves as JSON when nothing precedes it, else as an event
    stream, which is also begun when nothing has come for 15 s. A legacy client has a session by
    `Mcp-Session-Id`, bound to its principal; all modern requests of a principal share one session,
    for they have no state of their own. Host and Origin are checked before anything else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .wire import jsonrpc
from .wire.jsonrpc import Message, object_of
from .wire.session import (
    HANDSHAKE_VERSIONS,
    MODERN_VERSIONS,
    VERSION,
    Handler,
    Session,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATH = "/mcp"
MAX_SESSIONS = 256
_PING_SECONDS = 15.0
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_ROUTING = ("mcp-protocol-version", "mcp-method", "mcp-name")
# 2026-07-28, "Streamable HTTP": errors of the protocol have a status of their own.
_STATUS = {
    -32700: 400,
    -32600: 400,
    -32602: 400,
    -32020: 400,
    -32021: 400,
    -32022: 400,
    -32601: 404,
}
_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform")]


class _Refused(Exception):
    def __init__(self, status: int, code: int, text: str, id: Any = None, data: Any = None) -> None:
        super().__init__(text)
        error: Message = {"code": code, "message": text}
        if data is not None:
            error["data"] = data
        self.status, self.body = status, jsonrpc.error(id, error)


class _Stream:
    """A sink whose messages one response sends."""

    def __init__(self, drained: Callable[[], None]) -> None:
        self.buffered_bytes = 0
        self.closed = False
        self._queue: deque[tuple[bytes, Message]] = deque()
        self._news = asyncio.Event()
        self._drained = drained

    def send(self, message: Message) -> None:
        data = jsonrpc.encode(message)
        if not self.closed:
            self._queue.append((data, message))
            self.buffered_bytes += len(data)
            self._news.set()

    async def next(self, seconds: float) -> tuple[bytes, Message] | None:
        """The next message; None when none has come in time."""
        while not self._queue:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except TimeoutError:
                return None
        data, message = self._queue.popleft()
        self.buffered_bytes -= len(data)
        if not self._queue:
            self._drained()
        return data, message


class HttpServer:
    """The application.

    Args:
        handler: Serves a session; see `Session`.
        hosts: What `Host` may be, with the port; `Origin`, where there is one, must name one, too.
        token: What `Authorization: Bearer` must hold; "" asks for none.
    """

    def __init__(
        self, handler: Callable[[Session], Handler], hosts: set[str], token: str = ""
    ) -> None:
        self._handler, self._hosts, self._token = handler, hosts, token
        self._sessions: dict[str, Session] = {}
        self._stateless: dict[str, Session] = {}

    async def aclose(self) -> None:
        """End every session."""
        sessions = [*self._sessions.values(), *self._stateless.values()]
        await asyncio.gather(*(s.aclose() for s in sessions), return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            principal = self._check(scope)
            if scope["method"] == "POST":
                await self._post(scope, receive, send, principal)
            elif scope["method"] == "GET":
                await self._get(scope, receive, send, principal)
            elif scope["method"] == "DELETE":
                session = self._session(scope, principal)
                del self._sessions[session.id]
                await session.aclose()
                await _respond(send, 200, b"")
            else:
                raise _Refused(405, jsonrpc.INVALID_REQUEST, "POST, GET or DELETE")
        except _Refused as refused:
            await _respond(send, refused.status, jsonrpc.encode(refused.body))

    def _check(self, scope: Scope) -> str:
        """Who asks. Raises `_Refused`."""
        host = _header(scope, "host") or ""
        if host.lower() not in self._hosts:
            raise _Refused(403, jsonrpc.INVALID_REQUEST, f"Host {host[:200]!r} is not served here")
        origin = _header(scope, "origin")
        if origin is not None and origin.lower().partition("://")[2] not in self._hosts:
            raise _Refused(403, jsonrpc.INVALID_REQUEST, "Requests of other origins are refused")
        if scope["path"].rstrip("/") != PATH:
            raise _Refused(404, jsonrpc.INVALID_REQUEST, f"Nothing is here; try {PATH}")
        if not self._token:
            return "loopback"
        given = (_header(scope, "authorization") or "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise _Refused(401, jsonrpc.INVALID_REQUEST, "A bearer token is needed")
        return hashlib.sha256(self._token.encode()).hexdigest()[:16]

    def _session(self, scope: Scope, principal: str) -> Session:
        name = _header(scope, "mcp-session-id")
        if name is None:
            raise _Refused(400, jsonrpc.INVALID_REQUEST, "Mcp-Session-Id is missing")
        session = self._sessions.get(name)
        if session is None or session.principal != principal:
            raise _Refused(
                404, jsonrpc.INVALID_REQUEST, "There is no such session; initialize anew"
            )
        version = _header(scope, "mcp-protocol-version")
        if version is not None and version not in HANDSHAKE_VERSIONS:
            raise _Refused(400, jsonrpc.INVALID_REQUEST, f"Unsupported version {version[:50]!r}")
        return session

    async def _post(self, scope: Scope, receive: Receive, send: Send, principal: str) -> None:
        accept = _header(scope, "accept") or ""
        if not (
            "*/*" in accept or ("application/json" in accept and "text/event-stream" in accept)
        ):
            text = "Accept must name application/json and text/event-stream"
            raise _Refused(406, jsonrpc.INVALID_REQUEST, text)
        if (_header(scope, "content-type") or "").partition(";")[0].strip() != "application/json":
            raise _Refused(415, jsonrpc.INVALID_REQUEST, "Content-Type must be application/json")
        try:
            message = jsonrpc.decode(await _body(receive))
        except jsonrpc.FrameError as problem:
            await _respond(send, 400, jsonrpc.encode(problem.answers[0]))
            return
        assert jsonrpc.is_object(message)
        named = _header(scope, "mcp-protocol-version")
        inside = VERSION in object_of(object_of(message.get("params")).get("_meta"))
        if message.get("method") != "initialize" and (inside or named in MODERN_VERSIONS):
            await self._modern(scope, receive, send, principal, message)
            return
        if named is not None and named not in HANDSHAKE_VERSIONS:
            data = {"supported": list(MODERN_VERSIONS), "requested": named}
            text = "Unsupported protocol version"
            raise _Refused(400, jsonrpc.UNSUPPORTED_VERSION, text, message.get("id"), data)
        if message.get("method") == "initialize":
            if len(self._sessions) >= MAX_SESSIONS:
                oldest = self._sessions.pop(next(iter(self._sessions)))
                await oldest.aclose()
            session = Session(self._handler, None, principal=principal)
            session.has_streams = True
            self._sessions[session.id] = session
        else:
            session = self._session(scope, principal)
        await self._exchange(receive, send, session, message, stateless=False)

    async def _modern(
        self, scope: Scope, receive: Receive, send: Send, principal: str, message: Message
    ) -> None:
        id, method = message.get("id"), message.get("method")
        if method is None:
            raise _Refused(400, jsonrpc.INVALID_REQUEST, "A client posts no responses")
        if "id" not in message:
            # Possession of an id is no right to cancel: hanging up is how a request is cancelled.
            await _respond(send, 202, b"")
            return
        for header in _ROUTING:
            if sum(key == header.encode() for key, _ in scope["headers"]) > 1:
                raise _Refused(400, jsonrpc.HEADER_MISMATCH, f"{header} is there twice", id)
        params = object_of(message.get("params"))
        version = object_of(params.get("_meta")).get(VERSION)
        if version is not None and _header(scope, "mcp-protocol-version") != version:
            text = "MCP-Protocol-Version differs from the envelope's"
            raise _Refused(400, jsonrpc.HEADER_MISMATCH, text, id)
        if _header(scope, "mcp-method") != method:
            raise _Refused(400, jsonrpc.HEADER_MISMATCH, "Mcp-Method differs from the method", id)
        if (key := _NAMED.get(method)) and params.get(key) is not None:
            name = _decoded(_header(scope, "mcp-name"))
            if name != params[key]:
                raise _Refused(400, jsonrpc.HEADER_MISMATCH, f"Mcp-Name differs from {key}", id)
        session = self._stateless.get(principal)
        if session is None:
            session = self._stateless[principal] = Session(self._handler, None, principal=principal)
            session.has_streams = True
        await self._exchange(receive, send, session, message, stateless=True)

    async def _exchange(
        self, receive: Receive, send: Send, session: Session, message: Message, *, stateless: bool
    ) -> None:
        stream = _Stream(session.drained)
        exchange = session.receive(message, stream, stateless=stateless)
        if "id" not in message or "method" not in message:
            await _respond(send, 202, b"")
            return
        headers: list[tuple[bytes, bytes]] = []
        if not stateless:
            headers.append((b"mcp-session-id", session.id.encode()))
        hung_up = asyncio.create_task(_hung_up(receive))
        if stateless and exchange is not None:

            def on_hung_up(_: object) -> None:
                if not stream.closed:
                    session.disconnected(exchange)

            hung_up.add_done_callback(on_hung_up)
        try:
            begun = False
            while not hung_up.done():
                got = await _first(stream.next(_PING_SECONDS), hung_up)
                final = got is not None and "method" not in got[1]
                if got is not None and final and not begun:
                    code = object_of(got[1].get("error")).get("code")
                    status = _STATUS.get(code, 200) if stateless and type(code) is int else 200
                    stream.closed = True
                    await _respond(send, status, got[0], headers)
                    return
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200,
                                "headers": [*_STREAM, *headers]})  # fmt: skip
                if final:
                    stream.closed = True
                await send(
                    {"type": "http.response.body", "body": _event(got), "more_body": not final}
                )
                if final:
                    return
        finally:
            stream.closed = True
            hung_up.cancel()

    async def _get(self, scope: Scope, receive: Receive, send: Send, principal: str) -> None:
        session = self._session(scope, principal)
        if session.sink is not None:
            raise _Refused(409, jsonrpc.INVALID_REQUEST, "This session has a stream already")
        stream = session.sink = _Stream(session.drained)
        hung_up = asyncio.create_task(_hung_up(receive))
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        try:
            await send({"type": "http.response.body", "body": b": open\r\n\r\n", "more_body": True})
            while not hung_up.done() and session.id in self._sessions:
                got = await _first(stream.next(_PING_SECONDS), hung_up)
                await send({"type": "http.response.body", "body": _event(got), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            session.sink = None
            hung_up.cancel()


async def _first(message: Any, hung_up: asyncio.Task[None]) -> tuple[bytes, Message] | None:
    """The next message, or None when the client has hung up or nothing came."""
    waiting: asyncio.Task[tuple[bytes, Message] | None] = asyncio.create_task(message)
    await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    return None


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, jsonrpc.INVALID_REQUEST, "The body was cut")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > jsonrpc.MAX_FRAME_BYTES:
            raise _Refused(413, jsonrpc.INVALID_REQUEST, "The body is too large")
        if not message.get("more_body"):
            return b"".join(parts)


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    kind = [(b"content-type", b"application/json")] if body else []
    start = {"type": "http.response.start", "status": status, "headers": [*kind, *(headers or [])]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _event(got: tuple[bytes, Message] | None) -> bytes:
    if got is None:
        return b": ping\r\n\r\n"
    return b"event: message\r\ndata: " + got[0].rstrip(b"\n") + b"\r\n\r\n"


def _header(scope: Scope, name: str) -> str | None:
    for key, value in scope["headers"]:
        if key == name.encode():
            return str(value.decode("latin-1"))
    return None


def _decoded(value: str | None) -> str | None:
    """A header's value, also where it is wrapped in base64 (2026-07-28, "Custom headers")."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
