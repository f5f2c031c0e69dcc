"""Responses of streamable HTTP: one JSON text, or what a stream holds for as long as it lasts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .event_stream import COMMENT, Stream
from .wire import jsonrpc
from .wire.jsonrpc import Message, object_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_SECONDS = 60.0
PING_SECONDS = 15.0
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


class Refused(Exception):
    """A request that is answered with an error of the protocol, and with this status."""

    def __init__(self, status: int, code: int, text: str, id: Any = None, data: Any = None) -> None:
        super().__init__(text)
        error: Message = {"code": code, "message": text}
        if data is not None:
            error["data"] = data
        self.status, self.body = status, jsonrpc.error(id, error)

    @classmethod
    def by(cls, status: int, body: Message) -> Refused:
        """With an answer that is there already."""
        made = cls(status, 0, "")
        made.body = body
        return made


class Response:
    """One response that reads a stream.

    Args:
        send: ASGI's.
        hung_up: Ends when the client does.
        stream: What it reads; the reader before is ended.
        headers: Besides those of its kind.
        is_modern: Errors have a status of their own, and a stream begins when something precedes
            the answer.
    """

    def __init__(
        self, send: Send, hung_up: asyncio.Task[None], stream: Stream,
        headers: list[tuple[bytes, bytes]], *, is_modern: bool = False,
    ) -> None:  # fmt: skip
        self.stream = stream
        self._send, self._hung_up, self._headers = send, hung_up, headers
        self._is_modern = is_modern
        self._reader = stream.attach()
        self._begun = False

    @property
    def is_last(self) -> bool:
        """Whether nobody has read the stream since."""
        return self.stream.is_reader(self._reader)

    async def run(
        self, *, resumable: bool = False, seconds: float = math.inf, first: bytes = b"",
        while_: Callable[[], bool] = lambda: True,
    ) -> Message | None:  # fmt: skip
        """Send until the answer has left or the client has hung up.

        Args:
            resumable: The client is told how to come back, and the stream stays open for it.
            seconds: Then it has to.
            first: Begins an event stream at once.
            while_: Once false, the stream ends with its next event or pause.

        Returns the answer where it has been sent.
        """
        stream, loop = self.stream, asyncio.get_running_loop()
        self._hung_up.add_done_callback(lambda _: stream.wake())
        end = loop.time() + (seconds if resumable else math.inf)
        final = False
        try:
            if resumable:
                first += stream.primer()
            if first:
                await self._begin(first)
            while not self._hung_up.done() and while_() and self.is_last:
                left = min(PING_SECONDS, end - loop.time())
                if left <= 0:
                    break
                event = await stream.next(self._reader, left)
                if event is None:
                    if self._hung_up.done() or not self.is_last:
                        break
                    if loop.time() < end:
                        await self._begin(COMMENT)
                    continue
                final = event.is_final
                if final and not self._begun:
                    stream.closed = True
                    await respond(
                        self._send, self._status(event.message), event.data, self._headers
                    )
                    return event.message
                stream.closed = stream.closed or final
                await self._begin(event.encode())
                if final:
                    await self._send({"type": "http.response.body", "body": b""})
                    return event.message
            if self._begun:
                await self._send({"type": "http.response.body", "body": b""})
            return None
        finally:
            if not resumable:
                stream.closed = True
            self._hung_up.cancel()

    async def _begin(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            headers = [*_STREAM, *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def _status(self, answer: Message) -> int:
        code = object_of(answer.get("error")).get("code")
        return _STATUS.get(code, 200) if self._is_modern and type(code) is int else 200


async def hung_up(receive: Receive) -> None:
    """Returns when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def body_of(receive: Receive) -> bytes:
    """The whole body. Raises `Refused`: cut, too slow, or over the limit of a frame."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _body_of(receive)
    except TimeoutError:
        text = f"The body did not come within {BODY_SECONDS:g} s"
        raise Refused(408, jsonrpc.INVALID_REQUEST, text) from None


async def _body_of(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, jsonrpc.INVALID_REQUEST, "The body was cut")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > jsonrpc.MAX_FRAME_BYTES:
            raise Refused(413, jsonrpc.INVALID_REQUEST, "The body is too large")
        if not message.get("more_body"):
            return b"".join(parts)


async def respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole response."""
    kind = [(b"content-type", b"application/json")] if body else []
    start = {"type": "http.response.start", "status": status, "headers": [*kind, *(headers or [])]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
