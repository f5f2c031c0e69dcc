"""Streamable HTTP: an ASGI application that serves sessions, in both eras.

Theory of operation
    A POST is one message. Its answer leaves as JSON when nothing precedes it, else as an event
    stream, which is also begun when nothing has come for 15 s. A client of 2025-11-25 has a stream
    from the start, and can come back to it (`event_stream`). A legacy client has a session by
    `Mcp-Session-Id`, bound to its principal; all modern requests of a principal share one session,
    for they have no state of their own. Host and Origin are checked before anything else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from .event_stream import Stream, Streams
from .response import (
    PING_SECONDS,
    Receive,
    Refused,
    Response,
    Scope,
    Send,
    body_of,
    hung_up,
    respond,
)
from .wire import agreement, jsonrpc
from .wire.agreement import Annotation
from .wire.client import ANYBODY, CAPABILITIES, HANDSHAKE_VERSIONS, MODERN_VERSIONS, VERSION
from .wire.jsonrpc import Message, is_object, list_of, object_of
from .wire.rate import MAX_FRAMES_A_SECOND, Rate
from .wire.session import Handler, Session

PATH = "/mcp"
MAX_SESSIONS = 256
_RESUMABLE = "2025-11-25"  # before it, clients take an event without data for an error
_AWAY_SECONDS = 60.0  # how long a session's own stream outlives its client's hanging up
_MOST_PAGES = 100


class _Legacy:
    """A session that its client names in each request."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.streams = Streams(session.drained)

    @property
    def is_resumable(self) -> bool:
        """Whether its client comes back to a stream that has broken."""
        client = self.session.client
        return client is not None and client.version >= _RESUMABLE


class _Modern:
    """What all requests of one principal share."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._annotated: dict[str, list[Annotation]] = {}
        self._listing = asyncio.Lock()

    async def annotated(self, tool: Any, meta: Message) -> list[Annotation]:
        """The arguments of `tool` that headers repeat, as its client was shown it; lists if need be.

        Raises:
            Refused: the tools cannot be listed.
        """
        if tool not in self._annotated:
            async with self._listing:
                if tool not in self._annotated:
                    await self._list(meta)
        return self._annotated.get(tool, [])

    def shown(self, result: Any) -> None:
        """A client has been shown these tools."""
        for tool in list_of(object_of(result).get("tools")):
            name = object_of(tool).get("name")
            if isinstance(name, str):
                self._annotated[name] = agreement.annotated_by(tool.get("inputSchema"))

    async def _list(self, meta: Message) -> None:
        envelope = {k: v for k, v in meta.items() if k in (VERSION, CAPABILITIES)}
        params: Message = {"_meta": envelope}
        for _ in range(_MOST_PAGES):
            stream = Stream(self.session.drained)
            reader = stream.attach()
            listing = jsonrpc.request("list", "tools/list", params)
            self.session.receive(listing, stream, stateless=True)
            event = None
            while event is None or not event.is_final:
                event = await stream.next(reader, PING_SECONDS)
            if "error" in event.message:
                if object_of(event.message["error"]).get("code") == jsonrpc.METHOD_NOT_FOUND:
                    return
                raise Refused.by(200, event.message)
            result = object_of(event.message["result"])
            self.shown(result)
            if not isinstance(result.get("nextCursor"), str):
                return
            params = {"_meta": envelope, "cursor": result["nextCursor"]}


class HttpServer:
    """The application.

    Args:
        handler: Serves a session; see `Session`.
        hosts: What `Host` may be, with the port; `Origin`, where there is one, must name one, too.
        tokens: What `Authorization: Bearer` must hold, by the client's name, which is its
            principal; empty asks for none, and all clients are one principal.
        stream_seconds: After that the stream of a POST is ended, if its client can resume it by GET
            (2025-11-25, "polling"): what stands between them may not hold a request so long.
        frames_a_second: That a principal may send; what is too much is answered 429.
    """

    def __init__(
        self, handler: Callable[[Session], Handler], hosts: set[str],
        tokens: Mapping[str, str], *, stream_seconds: float,
        frames_a_second: float = MAX_FRAMES_A_SECOND,
    ) -> None:  # fmt: skip
        self._handler, self._hosts = handler, hosts
        self._principals = {hashlib.sha256(t.encode()).digest(): n for n, t in tokens.items()}
        self._stream_seconds, self._frames_a_second = stream_seconds, frames_a_second
        self._legacy: dict[str, _Legacy] = {}
        self._modern: dict[str, _Modern] = {}
        self._rates: dict[str, Rate] = {}  # by principal: more sessions are not more frames

    async def aclose(self) -> None:
        """End every session."""
        sessions = [h.session for h in self._legacy.values()]
        sessions += [h.session for h in self._modern.values()]
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
                session = self._session(scope, principal).session
                del self._legacy[session.id]
                await session.aclose()
                await respond(send, 200, b"")
            else:
                raise Refused(405, jsonrpc.INVALID_REQUEST, "POST, GET or DELETE")
        except Refused as refused:
            # RFC 9110, 11.6.1: a 401 says how to authenticate.
            how = [(b"www-authenticate", b"Bearer")] if refused.status == 401 else []
            await respond(send, refused.status, jsonrpc.encode(refused.body), how)

    def _check(self, scope: Scope) -> str:
        """Who asks. Raises `Refused`."""
        host = _header(scope, "host") or ""
        if host.lower() not in self._hosts:
            raise Refused(403, jsonrpc.INVALID_REQUEST, f"Host {host[:200]!r} is not served here")
        origin = _header(scope, "origin")
        if origin is not None and origin.lower().partition("://")[2] not in self._hosts:
            raise Refused(403, jsonrpc.INVALID_REQUEST, "Requests of other origins are refused")
        if scope["path"].rstrip("/") != PATH:
            raise Refused(404, jsonrpc.INVALID_REQUEST, f"Nothing is here; try {PATH}")
        if not self._principals:
            return ANYBODY
        given = (_header(scope, "authorization") or "").removeprefix("Bearer ")
        # Looked up by digest: how long that takes tells nothing of a token.
        principal = self._principals.get(hashlib.sha256(given.encode()).digest())
        if principal is None:
            raise Refused(401, jsonrpc.INVALID_REQUEST, "A bearer token is needed")
        return principal

    def _session(self, scope: Scope, principal: str) -> _Legacy:
        name = _header(scope, "mcp-session-id")
        if name is None:
            raise Refused(400, jsonrpc.INVALID_REQUEST, "Mcp-Session-Id is missing")
        held = self._legacy.get(name)
        if held is None or held.session.principal != principal:
            raise Refused(404, jsonrpc.INVALID_REQUEST, "There is no such session; initialize anew")
        version = _header(scope, "mcp-protocol-version")
        if version is not None and version not in HANDSHAKE_VERSIONS:
            raise Refused(400, jsonrpc.INVALID_REQUEST, f"Unsupported version {version[:50]!r}")
        return held

    async def _post(self, scope: Scope, receive: Receive, send: Send, principal: str) -> None:
        accept = _header(scope, "accept") or ""
        if not (
            "*/*" in accept or ("application/json" in accept and "text/event-stream" in accept)
        ):
            text = "Accept must name application/json and text/event-stream"
            raise Refused(406, jsonrpc.INVALID_REQUEST, text)
        if (_header(scope, "content-type") or "").partition(";")[0].strip() != "application/json":
            raise Refused(415, jsonrpc.INVALID_REQUEST, "Content-Type must be application/json")
        body = await body_of(receive)
        rate = self._rates.get(principal)
        if rate is None:
            rate = self._rates[principal] = Rate(self._frames_a_second)
        too_fast = not rate.take()
        try:
            message = jsonrpc.decode(body, strict=True)
        except jsonrpc.FrameError as problem:
            await respond(send, 400, jsonrpc.encode(problem.answers[0]))
            return
        assert jsonrpc.is_object(message)
        if too_fast and rate.concerns(message):
            raise Refused.by(429, jsonrpc.error(message.get("id"), rate.refusal().error))
        named = _header(scope, "mcp-protocol-version")
        inside = VERSION in object_of(object_of(message.get("params")).get("_meta"))
        if inside or named in MODERN_VERSIONS:
            await self._post_modern(scope, receive, send, principal, message)
            return
        if named is not None and named not in HANDSHAKE_VERSIONS:
            data = {"supported": list(MODERN_VERSIONS), "requested": named}
            text = "Unsupported protocol version"
            raise Refused(400, jsonrpc.UNSUPPORTED_VERSION, text, message.get("id"), data)
        if message.get("method") == "initialize":
            if len(self._legacy) >= MAX_SESSIONS:
                oldest = self._legacy.pop(next(iter(self._legacy)))
                await oldest.session.aclose()
            session = Session(self._handler, None, principal=principal)
            session.has_streams = True
            held = self._legacy[session.id] = _Legacy(session)
        else:
            held = self._session(scope, principal)
        session = held.session
        resumable = held.is_resumable and "id" in message and "method" in message
        stream = held.streams.open() if resumable else Stream(session.drained)
        session.receive(message, stream)
        if "id" not in message or "method" not in message:
            await respond(send, 202, b"")
            return
        headers = [(b"mcp-session-id", session.id.encode())]
        response = Response(send, asyncio.create_task(hung_up(receive)), stream, headers)
        await response.run(resumable=resumable, seconds=self._stream_seconds)

    async def _post_modern(
        self, scope: Scope, receive: Receive, send: Send, principal: str, message: Message
    ) -> None:
        id, method = message.get("id"), message.get("method")
        if method is None:
            raise Refused(400, jsonrpc.INVALID_REQUEST, "A client posts no responses")
        if "id" not in message:
            # Possession of an id is no right to cancel: hanging up is how a request is cancelled.
            await respond(send, 202, b"")
            return
        if wrong := agreement.disagreement(scope["headers"], message):
            raise Refused(400, jsonrpc.HEADER_MISMATCH, wrong, id)
        held = self._modern.get(principal)
        if held is None:
            session = Session(self._handler, None, principal=principal)
            session.has_streams = True
            held = self._modern[principal] = _Modern(session)
        params = object_of(message.get("params"))
        arguments = params.get("arguments", {})
        if method == "tools/call" and is_object(arguments) and isinstance(params.get("name"), str):
            try:
                annotated = await held.annotated(params["name"], object_of(params.get("_meta")))
            except Refused as refused:
                raise Refused.by(refused.status, {**refused.body, "id": id}) from None
            wrong = agreement.parameter_disagreement(scope["headers"], annotated, arguments)
            if wrong:
                raise Refused(400, jsonrpc.HEADER_MISMATCH, wrong, id)
        session = held.session
        stream = Stream(session.drained)
        exchange = session.receive(message, stream, stateless=True)
        gone = asyncio.create_task(hung_up(receive))
        response = Response(send, gone, stream, [], is_modern=True)
        if exchange is not None:

            def on_hung_up(_: object) -> None:
                if not stream.closed:
                    session.disconnected(exchange)

            gone.add_done_callback(on_hung_up)
        final = await response.run()
        if method == "tools/list" and final is not None:
            held.shown(final.get("result"))

    async def _get(self, scope: Scope, receive: Receive, send: Send, principal: str) -> None:
        held = self._session(scope, principal)
        session = held.session
        if "text/event-stream" not in (_header(scope, "accept") or "*/*").replace(
            "*/*", "text/event-stream"
        ):
            raise Refused(406, jsonrpc.INVALID_REQUEST, "Accept must name text/event-stream")
        came = _header(scope, "last-event-id")
        if came is not None:
            stream = held.streams.resume(came)
            if stream is None:
                text = "What came after this event is no longer there"
                raise Refused(404, jsonrpc.INVALID_REQUEST, text)
        elif session.sink is not None:
            raise Refused(409, jsonrpc.INVALID_REQUEST, "This session has a stream already")
        else:
            stream = held.streams.open() if held.is_resumable else Stream(session.drained)
            session.sink = stream
        response = Response(send, asyncio.create_task(hung_up(receive)), stream, [])
        own = stream is session.sink
        try:
            await response.run(
                resumable=held.is_resumable, first=b": open\r\n\r\n",
                while_=lambda: session.id in self._legacy,
            )  # fmt: skip
        finally:
            if own and not held.is_resumable:
                session.sink = None
            elif own:
                asyncio.get_running_loop().call_later(_AWAY_SECONDS, _leave, session, response)


def _leave(session: Session, response: Response) -> None:
    """Take a session's own stream from it unless its client has come back."""
    if session.sink is response.stream and response.is_last:
        session.sink = None


def _header(scope: Scope, name: str) -> str | None:
    return agreement.header(scope["headers"], name)
