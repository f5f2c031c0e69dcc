# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Tasks of 2025-11-25 and of the extension to 2026-07-28: to their server, and to nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.wire.aggregate import Many
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.tasks import EXTENSION, Tasks
from purplebox.gateway.wire.upstream import Upstream

KEY = "io.modelcontextprotocol/"
META: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28",
    KEY + "clientCapabilities": {"extensions": {EXTENSION: {}}},
}
KINDS: dict[str, Any] = {"list": {}, "requests": {"tools": {"call": {}}}}


class Server:
    """Makes tasks named by the caller, of any call. Ask it anything else and it says what it was asked."""

    def __init__(self, make_peer: Any, era: str, *, is_shared: bool = False) -> None:
        self.peer = make_peer(era, self.take, is_shared=is_shared)
        self.era, self.got, self.emit = era, self.peer.got, self.peer.emit
        self.answers: dict[Any, Any] = {}
        self.tasks: list[str] = []

    def take(self, message: Any) -> None:
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        result: Any = {"of": method, **{k: params[k] for k in ("taskId",) if k in params}}
        if method is None:
            self.answers[id] = message
            return
        if id is None:
            return
        if method == "initialize":
            result = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "p", "version": "1"},
                      "capabilities": {"tools": {}, "tasks": KINDS}}  # fmt: skip
        elif method == "server/discover":
            result = {"supportedVersions": ["2026-07-28"],
                      "capabilities": {"tools": {}, "extensions": {EXTENSION: {}}}}  # fmt: skip
        elif method == "tools/call":
            task = {"taskId": params["arguments"]["id"], "status": "working"}
            self.tasks.append(task["taskId"])
            legacy = self.era == "legacy"
            result = {"task": task} if legacy else {"resultType": "task", **task}
        elif method == "tasks/list":
            result = {"tasks": [{"taskId": t} for t in (*self.tasks, "of-somebody-else")]}
        self.emit(id=id, result=result)


@contextlib.asynccontextmanager
async def front(connect: Any, workspace: Path, peers: dict[str, Server]) -> AsyncGenerator[Any]:
    async with Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway:

        def many(session: Session) -> Many:
            return Many([
                Upstream(name, server.peer, session, gateway.calls, gateway.version)
                for name, server in peers.items()
            ])  # fmt: skip

        async with connect(many) as wire:
            yield wire


def call(server: str, id: str, **more: Any) -> dict[str, Any]:
    return {"name": f"{server}__t", "arguments": {"id": id}, **more}


def test_tasks_of_many_servers_go_to_their_own(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        peers = {"a": Server(make_peer, "legacy"), "b": Server(make_peer, "legacy")}
        async with front(raw_client, workspace, peers) as wire:
            said = (await wire.initialize(tasks={"list": {}, "requests": {}}))["result"]
            assert said["capabilities"]["tasks"] == KINDS
            first = await wire.ask(
                "tools/call", call("a", "t1", task={"ttl": 9}, _meta={"progressToken": "mine"})
            )
            assert first["result"] == {"task": {"taskId": "t1", "status": "working"}}
            await wire.ask("tools/call", call("b", "t2", task={}))
            for method in ("tasks/get", "tasks/result", "tasks/cancel"):
                assert (await wire.ask(method, {"taskId": "t2"}))["result"]["of"] == method
                assert peers["b"].got[-1]["method"] == method
            assert not [m for m in peers["a"].got if m["method"].startswith("tasks/")]
            listed = (await wire.ask("tasks/list"))["result"]["tasks"]
            # Two servers have named the same one: it stays with the first.
            assert [t["taskId"] for t in listed] == ["t1", "of-somebody-else", "t2"]
            refused = await wire.ask("tasks/get", {"taskId": "never-made"})
            assert refused["error"] == {"code": -32602, "message": "Unknown task"}
            # A task's progress comes after the answer, under the client's own token.
            token = next(m for m in peers["a"].got if m["method"] == "tools/call")
            token = token["params"]["_meta"]["progressToken"]
            for ours in (token, 10**9):
                said = {"progressToken": ours, "progress": 2}
                peers["a"].emit(method="notifications/progress", params=said)
            # A status is its own server's to tell.
            for name in ("b", "a"):
                said = {"taskId": "t1", "status": name}
                peers[name].emit(method="notifications/tasks/status", params=said)
            await wire.until(lambda m: m.get("method") == "notifications/tasks/status")
            told = [m["params"] for m in wire.received if "method" in m]
            assert told == [
                {"progressToken": "mine", "progress": 2},
                {"taskId": "t1", "status": "a"},
            ]
            stolen = await wire.ask("tools/call", call("b", "t1", task={}))
            assert "not its own" in stolen["error"]["message"]

    asyncio.run(go())


def test_a_clients_tasks_are_for_the_server_that_asked(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        peers = {"a": Server(make_peer, "legacy"), "b": Server(make_peer, "legacy")}
        async with front(raw_client, workspace, peers) as wire:
            await wire.initialize(
                elicitation={}, tasks={"requests": {"elicitation": {"create": {}}}}
            )
            for name in peers:
                await wire.ask("tools/call", call(name, f"of-{name}"))

            async def ask(name: str, id: str, method: str, params: Any, answer: Any) -> Any:
                before = len(wire.received)
                peers[name].emit(id=id, method=method, params=params)
                if answer is not None:
                    asked = await wire.until(
                        lambda m: m.get("method") == method and m in wire.received[before:]
                    )
                    wire.send({"jsonrpc": "2.0", "id": asked["id"], "result": answer})
                while id not in peers[name].answers:
                    await asyncio.sleep(0.01)
                return peers[name].answers[id]

            made = {"task": {"taskId": "c1", "status": "working"}}
            question = {"message": "?", "requestedSchema": {}, "task": {}}
            assert (await ask("a", "1", "elicitation/create", question, made))["result"] == made
            got = await ask("a", "2", "tasks/get", {"taskId": "c1"}, {"status": "working"})
            assert got["result"] == {"status": "working"}
            refused = await ask("b", "3", "tasks/get", {"taskId": "c1"}, None)
            assert refused["error"]["code"] == -32602
            both = {"tasks": [{"taskId": "c1"}, {"taskId": "c2"}]}
            seen = await ask("b", "4", "tasks/list", {}, both)
            assert seen["result"] == {"tasks": []}
            seen = await ask("a", "5", "tasks/list", {}, both)
            assert seen["result"] == {"tasks": [{"taskId": "c1"}]}

    asyncio.run(go())


def test_the_extension_is_routed(raw_client: Any, make_peer: Any, workspace: Path) -> None:
    async def go() -> None:
        peers = {"new": Server(make_peer, "modern"), "other": Server(make_peer, "modern")}
        async with front(raw_client, workspace, peers) as wire:

            async def ask(method: str, **params: Any) -> Any:
                return await wire.ask(method, {**params, "_meta": META})

            said = (await ask("server/discover"))["result"]["capabilities"]
            assert said["extensions"] == {EXTENSION: {}} and "tasks" not in said
            made = (await ask("tools/call", **call("new", "n1")))["result"]
            assert (made["resultType"], made["taskId"]) == ("task", "n1")
            for method in ("tasks/get", "tasks/update", "tasks/cancel"):
                assert (await ask(method, taskId="n1"))["result"]["of"] == method
            assert not [m for m in peers["other"].got if m["method"].startswith("tasks/")]
            assert (await ask("tasks/list"))["error"]["code"] == -32601

    asyncio.run(go())


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_shared_server_is_not_asked_for_another_clients_task(
    is_shared: bool, make_peer: Any, workspace: Path
) -> None:
    class Sink:
        buffered_bytes = 0

        def __init__(self) -> None:
            self.got: list[Any] = []

        def send(self, message: Any) -> None:
            self.got.append(message)

    async def go() -> None:
        server = Server(make_peer, "legacy", is_shared=is_shared)
        async with Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway:
            from purplebox.gateway.wire.router import Single

            sink = Sink()
            session = Session(
                lambda s: Single(Upstream("p", server.peer, s, gateway.calls, gateway.version)), sink,
                principal="somebody",
            )  # fmt: skip

            async def ask(id: int, method: str, **params: Any) -> Any:
                session.receive(
                    {"jsonrpc": "2.0", "id": id, "method": method, "params": params}, sink
                )
                await session.finish(5)
                return next(m for m in sink.got if m.get("id") == id)

            await ask(1, "initialize", protocolVersion="2025-11-25", capabilities={})
            await ask(2, "tools/call", name="t", arguments={"id": "mine"}, task={})
            assert "result" in await ask(3, "tasks/get", taskId="mine")
            other = await ask(4, "tasks/get", taskId="another clients")
            assert ("error" in other) is is_shared
            listed = (await ask(5, "tasks/list"))["result"]["tasks"]
            assert [t["taskId"] for t in listed] == ["mine"] + ["of-somebody-else"] * (
                not is_shared
            )
            await session.aclose()

    asyncio.run(go())


def test_owners_are_bounded() -> None:
    tasks = Tasks(most=2)
    assert all(tasks.own(f"t{n}", "a") for n in range(3))
    assert (tasks.owner("t0"), tasks.owner("t2")) == (None, "a")
    assert not tasks.own("t2", "b")
