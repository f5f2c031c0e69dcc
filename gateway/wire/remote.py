"""A tool server that is reached by URL: streamable HTTP in both eras, and the HTTP with SSE before it.

Theory of operation
    Each message is one POST; what comes back on its answer, JSON or a stream, is handed on as frames,
    with the id of the request whose answer it came on. Notifications and answers of ours leave in
    order, and before a request that was sent after them. A legacy server has a session and one stream
    of its own (GET); a stream that breaks before its answer is taken up again with `Last-Event-ID`.
    A modern request is cancelled by hanging up. 2024-11-05 has one stream for all, whose first event
    names where to POST: within the same origin, or nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol
from urllib.parse import urljoin, urlsplit

from . import agreement, jsonrpc
from .http_client import Response, events
from .jsonrpc import Id, Message, is_object, list_of, object_of
from .links import Ears, Kind, Link

_END_SECONDS = 2.0
_RESUMES = 20
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.5, 30.0
_MOST_BODY_BYTES = jsonrpc.MAX_FRAME_BYTES


class Carrier(Protocol):
    """Carries requests to one origin: an `Origin`, as it is or with tokens."""

    def holds(self, url: str) -> bool:
        """As `Origin.holds`."""
        ...

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AbstractAsyncContextManager[Response]:
        """As `Origin.request`."""
        ...

    def close(self) -> None:
        """As `Origin.close`."""
        ...


class Remote:
    """Reaches a server by URL; a `Connector`.

    Args:
        url: Of its endpoint.
        origin: Carries the requests.
        headers: Sent with each request, to this origin only; never shown.
        kind: "sse" is the transport of 2024-11-05.
    """

    def __init__(self, url: str, origin: Carrier, headers: Mapping[str, str], kind: Kind) -> None:
        self._url, self._origin, self._headers = url, origin, headers
        self._kind: Kind = kind
        self.is_legacy = kind == "sse"
        self.is_shared = True

    def connect(self, ears: Ears) -> Link:
        """As `Connector.connect`."""
        return _Exchanges(self._url, self._origin, self._headers, self._kind, ears)

    def last(self) -> str:
        """As `Connector.last`: a remote server says nothing beside the protocol."""
        return ""

    def say(self, line: bytes) -> None:
        """As `Connector.say`: whoever waits has been answered."""

    def close(self) -> None:
        """As `Connector.close`."""
        self._origin.close()


class _Exchanges:
    def __init__(
        self, url: str, origin: Carrier, headers: Mapping[str, str], kind: Kind, ears: Ears
    ) -> None:
        self._origin, self._headers, self._ears = origin, headers, ears
        self._url = url
        self._session = ""
        self._version = ""
        self._is_modern = False
        self._is_over = False
        self._schemas: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: dict[Id, asyncio.Task[None]] = {}
        self._before: asyncio.Task[None] | None = None
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._pauses = 0
        self._endpoint: asyncio.Future[str] | None = None
        self.buffered_bytes = 0
        if kind == "sse":
            self._endpoint = asyncio.get_running_loop().create_future()
            self._start(self._listen_to_all())

    def send(self, message: Message) -> None:
        body = jsonrpc.encode(message)
        method, id = message.get("method"), message.get("id")
        if method is not None and id is not None:
            headers = self._request_headers(message)
            self._requests[id] = self._start(self._request(id, str(method), headers, body))
            self._requests[id].add_done_callback(lambda _: self._requests.pop(id, None))
            return
        if method == "notifications/cancelled" and self._is_modern:
            cancelled = object_of(message.get("params")).get("requestId")
            task = self._requests.get(cancelled) if jsonrpc.is_id(cancelled) else None
            if task is not None:
                task.cancel()
            return
        self._before = self._start(self._post_quietly(body, self._before))

    def greeted(self, era: Literal["legacy", "modern"], version: str) -> None:
        self._is_modern, self._version = era == "modern", version
        if era == "legacy" and self._endpoint is None:
            self._start(self._listen())

    def pause(self) -> None:
        self._pauses += 1
        self._unpaused.clear()

    def resume(self) -> None:
        self._pauses -= 1
        if not self._pauses:
            self._unpaused.set()

    async def aclose(self, *, at_once: bool = False) -> None:
        self._is_over = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session and not at_once:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    async with self._origin.request("DELETE", self._target(), self._common()):
                        pass

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _target(self) -> str:
        parts = urlsplit(self._url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _common(self) -> dict[str, str]:
        headers = dict(self._headers)
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        if self._version and not self._is_modern:
            headers["MCP-Protocol-Version"] = self._version
        return headers

    def _request_headers(self, message: Message) -> dict[str, str]:
        """What 2026-07-28 has repeated of a request in its headers; {} in the other era."""
        schema = None
        if message.get("method") == "tools/call":
            schema = self._schemas.get(str(object_of(message.get("params")).get("name")))
        return agreement.request_headers(message, schema)

    async def _request(self, id: Id, method: str, more: Mapping[str, str], body: bytes) -> None:
        if self._before is not None:
            await asyncio.wait({self._before})
        try:
            await self._exchange(id, method, more, body)
        except (OSError, TimeoutError) as error:
            self._fail(id, jsonrpc.SERVER_UNAVAILABLE, f"not reached: {error or 'no answer'}")

    async def _exchange(self, id: Id, method: str, more: Mapping[str, str], body: bytes) -> None:
        if self._endpoint is not None:
            await self._post(body)  # answered on the one stream
            return
        headers = {**self._posting(), **more}
        last, retry = "", _RETRY_SECONDS
        async with self._origin.request("POST", self._target(), headers, body) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if response.status == 200 and kind == "text/event-stream":
                if method == "initialize":
                    self._session = response.headers.get("mcp-session-id", "")
                done, last, retry = await self._take(response, id, last, retry)
                if done:
                    return
            else:
                await self._whole(id, method, response)
                return
        for _ in range(_RESUMES if last else 0):
            await asyncio.sleep(retry)
            headers = {**self._common(), "Accept": "text/event-stream", "Last-Event-ID": last}
            async with self._origin.request("GET", self._target(), headers) as response:
                if response.status != 200:
                    break
                done, last, retry = await self._take(response, id, last, retry)
                if done:
                    return
        self._fail(id, jsonrpc.SERVER_UNAVAILABLE, "the server ended its answer in the middle")

    async def _whole(self, id: Id, method: str, response: Response) -> None:
        """Take an answer that is no stream."""
        data = await response.read(_MOST_BODY_BYTES)
        if response.status == 404 and self._session:
            self._over("the server has forgotten the session")
            return
        try:
            message: Any = jsonrpc.decode(data)
        except jsonrpc.FrameError:
            message = None
        if not is_object(message) or "method" in message:
            hint = (
                "; check the headers in the configuration" if response.status in (401, 403) else ""
            )
            self._fail(id, jsonrpc.INTERNAL_ERROR, f"it answered HTTP {response.status}{hint}")
            return
        if method == "initialize" and response.status == 200:
            self._session = response.headers.get("mcp-session-id", "")
        if message.get("id") != id:  # errors before a server has read the request have none
            data = jsonrpc.encode({**message, "id": id})
        self._frame(data, id, message)

    async def _take(
        self, response: Response, id: Id | None, last: str, retry: float
    ) -> tuple[bool, str, float]:
        """Take a stream's events; whether the answer to `id` was there, the last id, the pause."""
        async for event in events(response.body, _MOST_BODY_BYTES):
            last = event.get("id", last)
            if event.get("retry", "").isdigit():
                retry = min(_LONGEST_RETRY_SECONDS, int(event["retry"]) / 1000)
            if not event.get("data") or event.get("event", "message") != "message":
                continue
            await self._unpaused.wait()
            data = event["data"].encode("utf-8", "surrogatepass")
            try:
                message: Any = jsonrpc.decode(data)
            except jsonrpc.FrameError:
                message = None  # the ears know what to do
            self._frame(data, id, message)
            if is_object(message) and "method" not in message and message.get("id") == id:
                return True, last, retry
        return False, last, retry

    def _frame(self, data: bytes, related: Id | None, message: Any) -> None:
        for tool in list_of(object_of(object_of(message).get("result")).get("tools")):
            found = object_of(tool)
            self._schemas[str(found.get("name"))] = found.get("inputSchema")
        self._ears.frame(data, related)

    async def _post_quietly(self, body: bytes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        with contextlib.suppress(OSError, TimeoutError):
            await self._post(body)

    async def _post(self, body: bytes) -> None:
        if self._endpoint is not None:
            self._url = await self._endpoint
        request = self._origin.request("POST", self._target(), self._posting(), body)
        async with request as response:
            await response.read(_MOST_BODY_BYTES)
            if response.status >= 400:
                raise OSError(f"it answered HTTP {response.status}")

    def _posting(self) -> dict[str, str]:
        return {
            **self._common(), "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }  # fmt: skip

    async def _listen(self) -> None:
        """The stream of a legacy session, for what belongs to no request."""
        last, retry = "", _RETRY_SECONDS
        while not self._is_over:
            if self._before is not None:
                await asyncio.wait({self._before})
            headers = {**self._common(), "Accept": "text/event-stream"}
            if last:
                headers["Last-Event-ID"] = last
            with contextlib.suppress(OSError, TimeoutError):
                async with self._origin.request("GET", self._target(), headers) as response:
                    if response.status != 200:
                        return  # 405: the server has no such stream
                    _, last, retry = await self._take(response, None, last, retry)
            await asyncio.sleep(max(retry, 0.1))

    async def _listen_to_all(self) -> None:
        """The one stream of 2024-11-05."""
        how = "it closed its stream"
        assert self._endpoint is not None
        try:
            headers = {**self._headers, "Accept": "text/event-stream"}
            async with self._origin.request("GET", self._target(), headers) as response:
                if response.status != 200:
                    raise OSError(f"it answered HTTP {response.status}")
                async for event in events(response.body, _MOST_BODY_BYTES):
                    if event.get("event") == "endpoint" and not self._endpoint.done():
                        url = urljoin(self._url, event.get("data", ""))
                        if not self._origin.holds(url):
                            raise OSError("it names an endpoint of another origin")
                        self._endpoint.set_result(url)
                    elif event.get("data") and event.get("event", "message") == "message":
                        await self._unpaused.wait()
                        self._frame(event["data"].encode("utf-8", "surrogatepass"), None, None)
        except (OSError, TimeoutError, ValueError) as error:
            how = str(error) or "it does not answer"
        self._over(how)

    def _fail(self, id: Id, code: int, why: str) -> None:
        problem = {"code": code, "message": f"The server could not be asked: {why}"}
        self._ears.frame(jsonrpc.encode(jsonrpc.error(id, problem)), id)

    def _over(self, how: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._ears.ended(self, how)
