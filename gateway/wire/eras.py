"""What one protocol era says in the words of the other. Pure functions; `upstream` uses them.

Modern is 2026-07-28: no handshake, an envelope in each request's `_meta`, no requests from the
server. Legacy is 2025-11-25 and before.
"""

from __future__ import annotations

from typing import Any

from . import jsonrpc, task_eras
from .builtin import cacheable, described, stamped
from .client import (
    CAPABILITIES,
    CLIENT_INFO,
    ENVELOPE,
    HANDSHAKE_VERSIONS,
    LOG_LEVEL,
    MODERN_VERSIONS,
    SERVER_INFO,
    SUBSCRIPTION,
    VERSION,
    Client,
)
from .jsonrpc import Message, RpcError, list_of, object_of
from .tasks import EXTENSION

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
CACHEABLE = frozenset({
    "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read",
})  # fmt: skip
# Gone at 2026-07-28: a modern client that sends them is told so, whatever the server would say.
GONE = frozenset({"ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
LISTS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}


def handshake(client: Client) -> Message:
    """The params of an `initialize` on behalf of a client; a legacy client's own, whole."""
    if client.initialize is not None:
        return client.initialize
    return {
        "protocolVersion": HANDSHAKE_VERSIONS[-1], "capabilities": client.capabilities,
        "clientInfo": client.info or {"name": "purple", "version": "1"},
    }  # fmt: skip


def enveloped(
    client: Client, params: Message | None, level: str = "", *, takes_tasks: bool = False
) -> Message:
    """A legacy client's params as a modern request has them."""
    capabilities = client.capabilities
    if client.era == "legacy":
        capabilities = {k: v for k, v in capabilities.items() if k != "tasks"}
        if takes_tasks:
            known = object_of(capabilities.get("extensions"))
            capabilities["extensions"] = {**known, EXTENSION: {}}
    meta: Message = {
        **object_of((params or {}).get("_meta")),
        VERSION: MODERN_VERSIONS[-1], CAPABILITIES: capabilities,
    }  # fmt: skip
    if client.info:
        meta[CLIENT_INFO] = client.info
    if level:
        meta[LOG_LEVEL] = level
    return {**(params or {}), "_meta": meta}


def bare(params: Message | None) -> Message | None:
    """A modern client's params without the envelope and what only a modern server knows."""
    if params is None:
        return None
    kept = {k: v for k, v in params.items() if k not in ("_meta", "inputResponses", "requestState")}
    meta = {k: v for k, v in object_of(params.get("_meta")).items() if k not in ENVELOPE}
    return {**kept, "_meta": meta} if meta else kept


def introduction(client: Client, said: Message, modern_server: bool) -> Message:
    """A server's answer to one era's opening request, as the other era's."""
    kept = {k: v for k, v in said.items() if k in ("capabilities", "instructions")}
    offered = task_eras.offered_to_legacy if modern_server else task_eras.offered_to_modern
    kept["capabilities"] = offered(object_of(kept.get("capabilities")))
    info = said.get("serverInfo")
    if modern_server:
        info = object_of(said.get("_meta")).get(SERVER_INFO)
    return described(client, object_of(info) or {"name": "unknown", "version": "0"}, kept)


def modern_result(client: Client, method: str, info: Message, result: Message) -> Message:
    """A legacy server's result for a modern client."""
    result = stamped(client, info, result)
    return cacheable(client, result) if method in CACHEABLE else result


def legacy_result(result: Message) -> Message:
    """A modern server's result for a legacy client."""
    kept = {k: v for k, v in result.items() if k not in ("resultType", "ttlMs", "cacheScope")}
    meta = {k: v for k, v in object_of(result.get("_meta")).items() if k != SERVER_INFO}
    kept.pop("_meta", None)
    return {**kept, "_meta": meta} if meta else kept


def modern_error(error: RpcError) -> RpcError:
    """A legacy server's error for a modern client: -32002, resource not found, is gone."""
    if error.code == -32002:
        return RpcError.of({**error.error, "code": jsonrpc.INVALID_PARAMS})
    return error


def url_questions(error: RpcError) -> list[Message]:
    """The elicitations that a legacy server's -32042 asks for; none for any other error."""
    if error.code != -32042:
        return []
    return [object_of(e) for e in list_of(object_of(error.error.get("data")).get("elicitations"))]


def without_subscription(params: Message | None) -> Message | None:
    """A modern notification's params without its subscription."""
    meta = object_of((params or {}).get("_meta"))
    if params is None or SUBSCRIPTION not in meta:
        return params
    rest = {k: v for k, v in meta.items() if k != SUBSCRIPTION}
    kept = {k: v for k, v in params.items() if k != "_meta"}
    return {**kept, "_meta": rest} if rest else kept or None


def heard(filters: Message, method: str, params: Message | None) -> bool:
    """Whether a `subscriptions/listen` with these `notifications` asks for this one."""
    if method in LISTS:
        return filters.get(LISTS[method]) is True
    if method == "notifications/tasks":
        return (params or {}).get("taskId") in list_of(filters.get("taskIds"))
    uri: Any = (params or {}).get("uri")
    return method == "notifications/resources/updated" and uri in list_of(
        filters.get("resourceSubscriptions")
    )


def loud_enough(level: Any, wanted: Any) -> bool:
    """Whether a log message of `level` is for one who wants `wanted` and above."""
    if wanted not in LEVELS:
        return False
    return level not in LEVELS or LEVELS.index(level) >= LEVELS.index(wanted)
