"""Whose request it is: one server as it is, or many behind one front."""

from __future__ import annotations

from .acts import Backend
from .client import Client
from .exchange import Exchange
from .jsonrpc import Message


class Single:
    """One backend, whole: names, identity, and methods that nobody here knows."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def handle(self, exchange: Exchange) -> Message:
        """As `session.Handler.handle`."""
        if exchange.method in ("initialize", "server/discover"):
            return await self._backend.describe(exchange.client, exchange)
        return await self._backend.request(exchange, exchange.method, exchange.params)

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """As `session.Handler.notified`."""
        self._backend.notified(client, method, params)

    async def aclose(self) -> None:
        """As `session.Handler.aclose`."""
        await self._backend.aclose()
