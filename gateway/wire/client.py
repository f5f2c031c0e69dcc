"""A client as it states itself, and the words of the protocol's revisions that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from . import jsonrpc
from .jsonrpc import Message, RpcError, object_of

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSIONS = ("2026-07-28",)
_KEY = "io.modelcontextprotocol/"
VERSION, CLIENT_INFO, CAPABILITIES = (
    f"{_KEY}protocolVersion", f"{_KEY}clientInfo", f"{_KEY}clientCapabilities",
)  # fmt: skip
LOG_LEVEL, SERVER_INFO, SUBSCRIPTION = (
    f"{_KEY}logLevel", f"{_KEY}serverInfo", f"{_KEY}subscriptionId",
)  # fmt: skip
ENVELOPE = frozenset({VERSION, CLIENT_INFO, CAPABILITIES, LOG_LEVEL})
ANYBODY = "loopback"  # the principal of all HTTP clients where no token is asked for


@dataclass(kw_only=True)
class Client:
    """What a client has said of itself.

    Attributes:
        era: "legacy" has a handshake and sessions, "modern" neither.
        version: Protocol revision that it asked for.
        capabilities, info: As it stated them.
        initialize: The params of its `initialize`, whole; None in the modern era.
        principal: Who it is to the transport: the same for all that may share state.
    """

    era: Literal["legacy", "modern"]
    version: str
    capabilities: Message = field(default_factory=dict[str, Any])
    info: Message = field(default_factory=dict[str, Any])
    initialize: Message | None = None
    principal: str = ""

    @property
    def name(self) -> str:
        """Of its token, else what it calls itself, for rules and the record; "" when neither is."""
        if self.principal not in ("", ANYBODY):
            return self.principal
        name = self.info.get("name")
        return name[:200] if isinstance(name, str) else ""


def envelope(params: Message, principal: str) -> Client:
    """The client as the envelope of a modern request states it. Raises `RpcError`.

    Source: 2026-07-28, basic, "Per-request protocol fields".
    """
    meta = object_of(params.get("_meta"))
    missing = [key for key in (VERSION, CAPABILITIES) if key not in meta]
    if missing:
        raise RpcError(jsonrpc.INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}")
    version = meta[VERSION]
    if not isinstance(version, str):
        raise RpcError(jsonrpc.INVALID_PARAMS, f"{VERSION} must be a string")
    if version not in MODERN_VERSIONS:
        data = {"supported": list(MODERN_VERSIONS), "requested": version}
        raise RpcError(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)
    return Client(
        era="modern", version=version, capabilities=object_of(meta[CAPABILITIES]),
        info=object_of(meta.get(CLIENT_INFO)), principal=principal,
    )  # fmt: skip
