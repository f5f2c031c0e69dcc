"""What a client wants to hear of, put to a server of the other era."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from . import eras, jsonrpc
from .client import SUBSCRIPTION, Client
from .exchange import Exchange
from .hearing import Hearing
from .jsonrpc import Message, RpcError, list_of, object_of


class Subscriptions:
    """One session's, to one server.

    Args:
        hearing: Hands on what is heard.
        ask: The result of a request on behalf of one of the client's.
        ask_alone: The result of one of the gateway's own.
        owns: Whether a task is the server's.
    """

    def __init__(
        self, hearing: Hearing,
        ask: Callable[[Exchange, str, Message | None], Awaitable[Any]],
        ask_alone: Callable[[str, Message], Awaitable[Any]], owns: Callable[[Any], bool],
    ) -> None:  # fmt: skip
        self._hearing, self._ask, self._ask_alone, self._owns = hearing, ask, ask_alone, owns
        self._uris: set[str] = set()
        self._open: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Listen no longer."""
        if self._open is not None:
            self._open.cancel()
            await asyncio.gather(self._open, return_exceptions=True)

    async def listen(self, exchange: Exchange, params: Message) -> Message:
        """`subscriptions/listen` in front of a server that knows only subscribe."""
        filters = object_of(params.get("notifications"))
        uris = [u for u in list_of(filters.get("resourceSubscriptions")) if isinstance(u, str)]
        honored: Message = {k: True for k in eras.LISTS.values() if filters.get(k) is True}
        for uri in uris:
            await self._ask(exchange, "resources/subscribe", {"uri": uri})
        if uris:
            honored["resourceSubscriptions"] = uris
        if tasks := [id for id in list_of(filters.get("taskIds")) if self._owns(id)]:
            honored["taskIds"] = tasks
        meta = {SUBSCRIPTION: exchange.id}
        self._hearing.listeners[exchange.key] = exchange, honored
        acknowledged = {"notifications": honored, "_meta": meta}
        exchange.emit(
            jsonrpc.notification("notifications/subscriptions/acknowledged", acknowledged)
        )
        try:
            await asyncio.Event().wait()  # until it is cancelled, or the session ends
        finally:
            self._hearing.listeners.pop(exchange.key, None)
        return {"_meta": meta}

    def change(self, client: Client, method: str, params: Message | None) -> None:
        """`resources/subscribe` or `resources/unsubscribe` of a legacy client. Raises `RpcError`."""
        uri = (params or {}).get("uri")
        if not isinstance(uri, str):
            raise RpcError(jsonrpc.INVALID_PARAMS, "uri must be a string")
        (self._uris.add if method == "resources/subscribe" else self._uris.discard)(uri)
        self.listen_for(client)

    def listen_for(self, client: Client) -> None:
        """Have one `subscriptions/listen` open for a legacy client, with all that it may want."""
        wanted: Message = dict.fromkeys(eras.LISTS.values(), True)
        if self._uris:
            wanted["resourceSubscriptions"] = sorted(self._uris)
        params = eras.enveloped(client, {"notifications": wanted})
        if self._open is not None:
            self._open.cancel()

        async def listen() -> None:
            with contextlib.suppress(RpcError):
                await self._ask_alone("subscriptions/listen", params)

        self._open = asyncio.create_task(listen())
