# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What each era has, to a server of each era: completions, sampling with tools, roots, subscriptions, logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.upstream import Upstream

KEY = "io.modelcontextprotocol/"
KINDS: dict[str, Any] = {
    "sampling": {"tools": {}},
    "roots": {},
    "elicitation": {"form": {}, "url": {}},
}
META: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28", KEY + "clientCapabilities": KINDS, KEY + "logLevel": "info",
}  # fmt: skip
OFFERS: dict[str, Any] = {
    "tools": {}, "completions": {}, "logging": {}, "resources": {"subscribe": True},
}  # fmt: skip
# Sampling as 2025-11-25 has it, with tools; `own` is nobody's, and passes.
SAMPLING: dict[str, Any] = {
    "messages": [{"role": "user", "content": {"type": "text", "text": "2+2?"}}], "maxTokens": 9,
    "tools": [{"name": "add", "inputSchema": {"type": "object"}, "own": 2**70}],
    "toolChoice": {"mode": "required"},
}  # fmt: skip
USED: dict[str, Any] = {
    "role": "assistant", "model": "m", "stopReason": "toolUse",
    "content": [{"type": "tool_use", "id": "u", "name": "add", "input": {"a": 2}, "own": 1}],
}  # fmt: skip
QUESTIONS: list[tuple[str, Any, Any]] = [
    ("sampling/createMessage", SAMPLING, USED),
    ("roots/list", {}, {"roots": [{"uri": "file:///w", "own": 1}]}),
    ("elicitation/create", {"mode": "url", "url": "https://e.test/x", "elicitationId": "1",
                            "message": "?"}, {"action": "accept"}),
    ("elicitation/create", {"mode": "form", "message": "?", "requestedSchema": {
        "type": "object", "properties": {"n": {"type": "integer"}}}},
     {"action": "accept", "content": {"n": 2**60}}),
]  # fmt: skip


class Server:
    """A server of one era."""

    def __init__(self, make_peer: Any, era: str) -> None:
        self.peer = make_peer(era, self.take)
        self.is_legacy, self.got, self.emit = era == "legacy", self.peer.got, self.peer.emit
        self.waiting: dict[str, Any] = {}
        self.stream: Any = None

    def note(self, method: str, **params: Any) -> None:
        if not self.is_legacy and method != "notifications/message":
            params["_meta"] = {KEY + "subscriptionId": self.stream}
        self.emit(method=method, params=params)

    def take(self, message: Any) -> None:
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        if method is None:
            self.emit(
                id=self.waiting.pop(id),
                result={"content": [], "structuredContent": message["result"]},
            )
        elif method == "initialize" and self.is_legacy:
            self.emit(id=id, result={"protocolVersion": "2025-11-25", "capabilities": OFFERS,
                                     "serverInfo": {"name": "p", "version": "1"}})  # fmt: skip
        elif method == "server/discover" and not self.is_legacy:
            self.emit(id=id, result={"supportedVersions": ["2026-07-28"], "capabilities": OFFERS})
        elif method in ("initialize", "server/discover"):
            self.emit(id=id, error={"code": -32601, "message": "Method not found"})
        elif method == "subscriptions/listen":
            self.stream = id
            self.note(
                "notifications/subscriptions/acknowledged", notifications=params["notifications"]
            )
        elif method == "tools/call":
            self.called(id, params)
        elif id is not None:
            told = {k: v for k, v in params.items() if k != "_meta"}
            self.emit(id=id, result={"did": method, "with": told})

    def called(self, id: Any, params: Any) -> None:
        asked = params["arguments"]
        if "log" in asked:
            for level in asked["log"]:
                self.note("notifications/message", level=level, data=level)
            self.emit(id=id, result={"content": []})
        elif self.is_legacy:
            self.waiting[f"q{id}"] = id
            self.emit(id=f"q{id}", **asked)
        elif "inputResponses" in params:
            answer = params["inputResponses"]["k"]
            self.emit(id=id, result={"content": [], "structuredContent": answer})
        else:
            self.emit(id=id, result={"resultType": "input_required", "inputRequests": {"k": asked}})


class Client:
    """A client of one era."""

    def __init__(self, era: str, wire: Any) -> None:
        self.era, self.wire = era, wire

    def params(self, params: Any) -> Any:
        return params if self.era == "legacy" else {**params, "_meta": META}

    async def ask(self, method: str, **params: Any) -> Any:
        answer = await self.wire.ask(method, self.params(params))
        assert "result" in answer, answer
        return answer["result"]

    async def asked(self, question: Any, answer: Any) -> Any:
        """Call a tool that asks, and answer; returns what the server was told."""
        call = {"name": "t", "arguments": question}
        if self.era == "modern":
            first = await self.ask("tools/call", **call)
            ((key, seen),) = first["inputRequests"].items()
            assert seen == question
            retry = {"inputResponses": {key: answer}}
            if "requestState" in first:
                retry["requestState"] = first["requestState"]
            return (await self.ask("tools/call", **call, **retry))["structuredContent"]
        name = f"call {len(self.wire.received)}"
        self.wire.send({"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": call})
        seen = await self.wire.until(lambda m: question.items() <= m.items() and "done" not in m)
        seen["done"] = True
        self.wire.send({"jsonrpc": "2.0", "id": seen["id"], "result": answer})
        return (await self.wire.answer(name))["result"]["structuredContent"]

    async def subscribe(self, uri: str) -> None:
        if self.era == "legacy":
            await self.ask("resources/subscribe", uri=uri)
            return
        wanted = {"notifications": {"resourceSubscriptions": [uri]}, "_meta": META}
        self.wire.send(
            {"jsonrpc": "2.0", "id": "L", "method": "subscriptions/listen", "params": wanted}
        )
        await self.wire.until(lambda m: str(m.get("method")).endswith("acknowledged"))


def test_a_server_that_cancels_what_is_no_id_is_heard_further(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        async with pair(raw_client, make_peer, workspace, "legacy", "legacy") as (here, there):
            await here.wire.ask("tools/list")
            wrong: list[Any] = [[], {}, True, 1.0, None]
            for id in wrong:
                said = {"method": "notifications/cancelled", "params": {"requestId": id}}
                there.peer.hear(**said)  # raises nothing
            assert "result" in await here.wire.ask("tools/list")

    asyncio.run(go())


@contextlib.asynccontextmanager
async def pair(
    connect: Any, make_peer: Any, workspace: Path, client: str, server: str
) -> AsyncGenerator[tuple[Client, Server]]:
    there = Server(make_peer, server)
    async with Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway:

        def serve(session: Session) -> Single:
            return Single(Upstream("p", there.peer, session, gateway.calls, gateway.version))

        async with connect(serve) as wire:
            if client == "legacy":
                await wire.initialize(**KINDS)
            yield Client(client, wire), there


@pytest.mark.parametrize("client", ["legacy", "modern"])
@pytest.mark.parametrize("server", ["legacy", "modern"])
def test_each_feature_passes_within_an_era_and_across(
    client: str, server: str, raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        async with pair(raw_client, make_peer, workspace, client, server) as (here, there):
            reference = {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": "b"},
                         "context": {"arguments": {"x": "y"}}, "own": [1]}  # fmt: skip
            done = await here.ask("completion/complete", **reference)
            assert (done["did"], done["with"]) == ("completion/complete", reference)
            for method, params, answer in QUESTIONS:
                question = {"method": method, "params": params}
                assert await here.asked(question, answer) == answer, method
            # A resource that is subscribed to, and one that is not.
            await here.subscribe("w:1")
            while not any(m.get("method") in ("resources/subscribe", "subscriptions/listen")
                          and "w:1" in str(m) for m in there.got):  # fmt: skip
                await asyncio.sleep(0)
            there.note("notifications/resources/updated", uri="w:1", own=1)
            updated = "notifications/resources/updated"
            told = await here.wire.until(lambda m: m.get("method") == updated)
            assert (told["params"]["uri"], told["params"]["own"]) == ("w:1", 1)
            assert (KEY + "subscriptionId" in told["params"].get("_meta", {})) is (
                client == "modern"
            )
            # Logs: from the level that the client has named.
            if client == "legacy":
                await here.ask("logging/setLevel", level="info")
            await here.ask("tools/call", name="t", arguments={"log": ["debug", "info", "error"]})
            logs = [m["params"]["level"] for m in here.wire.received
                    if m.get("method") == "notifications/message"]  # fmt: skip
            named = [m for m in there.got if m.get("method") == "logging/setLevel"]
            inside = [m for m in there.got if KEY + "logLevel" in str(m)]
            # Who sends is told the level; between eras the gateway holds to it, too.
            assert named or inside
            assert logs[-2:] == ["info", "error"]
            if client == "modern" and server == "legacy":
                assert logs == ["info", "error"]

    asyncio.run(go())
