"""`POST /approvals/ID`: where a webhook's answer comes to when it was not the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .approvals import Approvals

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = "/approvals/"
_MAX_BODY_BYTES = 64 << 10


class Callbacks:
    """An ASGI application that takes answers and leaves everything else to another.

    Who answers is known by the signature alone: neither the bearer token of clients nor `Host` is
    looked at, for the other side has its own way here (the policy's `approvals.webhook.callback`).
    """

    def __init__(self, inner: Application, approvals: Approvals) -> None:
        self._inner, self._approvals = inner, approvals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._inner(scope, receive, send)
            return
        status = 405
        if scope["method"] == "POST":
            body = await _body(receive)
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            id = scope["path"].removeprefix(PREFIX)
            taken = body is not None and self._approvals.called_back(id, headers, body)
            # One answer for a wrong signature, an unknown question and a second answer.
            status = 204 if taken else 403
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > _MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)
