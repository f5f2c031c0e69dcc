"""The built-in tools as one more server behind the router, in both eras."""

from __future__ import annotations

import asyncio
import contextlib

from purplebox import __version__

from ..gateway import Gateway
from . import jsonrpc
from .asking import ClientAsker
from .client import HANDSHAKE_VERSIONS, MODERN_VERSIONS, SERVER_INFO, Client
from .exchange import Exchange
from .jsonrpc import Message, RpcError, is_object, object_of

_PROGRESS_SECONDS = 0.1  # running output is gathered for this long, so that a flood stays small
INFO: Message = {"name": "purple", "title": "Purple", "version": __version__}


class BuiltIns:
    """The gateway's own tools."""

    name = ""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._session = ""

    async def describe(self, client: Client, exchange: Exchange | None) -> Message:
        """As `Backend.describe`."""
        policy = self._gateway.policy
        about = f": {policy.description.rstrip('.')}" if policy.description else ""
        said: Message = {
            "capabilities": {"tools": {}, "logging": {}} if client.era == "legacy" else {"tools": {}},
            "instructions": (
                f"Tools run in a sandbox under policy {policy.name}{about}. "
                "A refusal names its rule; retrying the same call will not change it."
            ),
        }  # fmt: skip
        return described(client, INFO, said)

    async def request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        """As `Backend.request`."""
        if method == "tools/list":
            tools = [tool.to_wire() for tool in self._gateway.tools()]
            return cacheable(exchange.client, {"tools": tools})
        if method == "tools/call":
            return await self._call(exchange, params or {})
        if exchange.client.era == "legacy" and method in ("ping", "logging/setLevel"):
            return {}
        raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)

    async def _call(self, exchange: Exchange, params: Message) -> Message:
        name, arguments = params.get("name"), params.get("arguments", {})
        if not isinstance(name, str) or not is_object(arguments):
            raise RpcError(jsonrpc.INVALID_PARAMS, "name must be a string, arguments an object")
        self._session = exchange.session.id
        waiting: list[str] = []
        reporter = None
        if exchange.token is not None:
            reporter = asyncio.create_task(_report(exchange, waiting))
        try:
            outcome = await self._gateway.call(
                name, arguments, client=exchange.client.name, session=exchange.session.id,
                progress=waiting.append if reporter else None,
                asker=ClientAsker(exchange.session, exchange.client, exchange),
            )  # fmt: skip
        finally:
            if reporter is not None:
                reporter.cancel()
        return stamped(exchange.client, INFO, outcome.result)

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """As `Backend.notified`: nothing concerns us."""

    async def aclose(self) -> None:
        """As `Backend.aclose`: what the session has in the background; the gateway is its owner's."""
        await self._gateway.end_session(self._session)


async def _report(exchange: Exchange, waiting: list[str]) -> None:
    count = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            if waiting:
                text = "".join(waiting)[-4096:]
                waiting.clear()
                count += 1
                exchange.progress({"progress": count, "message": text})


def described(client: Client, info: Message, said: Message) -> Message:
    """The result of `initialize` or of `server/discover`, as the client's era has it."""
    if client.era == "legacy":
        version = client.version if client.version in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
        return {"protocolVersion": version, **said, "serverInfo": info}
    said = {"supportedVersions": list(MODERN_VERSIONS), **said}
    return cacheable(client, stamped(client, info, said))


def stamped(client: Client, info: Message, result: Message) -> Message:
    """`result` with the server's identity, where the era has it in each result."""
    if client.era == "legacy":
        return result
    meta = {SERVER_INFO: info, **object_of(result.get("_meta"))}
    return {"resultType": "complete", **result, "_meta": meta}


def cacheable(client: Client, result: Message) -> Message:
    """`result` with the hints that the modern era requires: stale at once, nobody else's."""
    if client.era == "legacy":
        return result
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **result}
