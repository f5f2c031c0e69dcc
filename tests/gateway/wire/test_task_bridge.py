# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A task of one era for a client of the other, from the call to its record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.audit.log import entries, verify
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.tasks import EXTENSION, RELATED
from purplebox.gateway.wire.upstream import Upstream
from purplebox.policies import load_policy

KEY = "io.modelcontextprotocol/"
META: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28",
    KEY + "clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {"form": {}}},
}
QUESTION: dict[str, Any] = {"mode": "form", "message": "name?", "requestedSchema": {}}
RESULT: dict[str, Any] = {"content": [{"type": "text", "text": "done"}], "own": 2**70}
_BASE = load_policy("mcp-server")
FULL = _BASE.model_copy(update={"audit": _BASE.audit.model_copy(update={"output": "full"})})


class Legacy:
    """A server of 2025-11-25 whose tool only runs as a task."""

    def __init__(self, make_peer: Any) -> None:
        self.peer = make_peer("legacy", self.take)
        self.task: dict[str, Any] = {"taskId": "t", "status": "working", "createdAt": "c",
                                     "lastUpdatedAt": "u", "ttl": 60, "pollInterval": 5}  # fmt: skip
        self.waiting: Any = None
        self.told: dict[str, Any] = {}

    def take(self, message: Any) -> None:
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        emit = self.peer.emit
        if method is None:
            self.told[id] = message
        elif method == "initialize":
            emit(id=id, result={"protocolVersion": "2025-11-25", "serverInfo": {"name": "old", "version": "1"},
                                "capabilities": {"tools": {}, "tasks": {"requests": {"tools": {"call": {}}}}}})  # fmt: skip
        elif method == "tools/call" and "task" not in params:
            emit(id=id, error={"code": -32601, "message": "Task augmentation required"})
        elif method == "tools/call":
            emit(id=id, result={"task": self.task})
        elif method == "tasks/get":
            emit(id=id, result=self.task)
        elif method == "tasks/result":
            self.waiting = id
            if self.task["status"] == "input_required":
                meta = {"_meta": {RELATED: {"taskId": "t"}}}
                emit(id="q", method="elicitation/create", params={**QUESTION, **meta})
            else:
                self.end()
        elif method == "tasks/cancel":
            emit(id=id, error={"code": -32602, "message": "It has ended"})

    def end(self, status: str = "completed") -> None:
        self.task = {**self.task, "status": status}
        if self.waiting is not None:
            self.peer.emit(id=self.waiting, result=RESULT)


class Modern:
    """A server of 2026-07-28 that makes a task of each call whose client takes one."""

    def __init__(self, make_peer: Any) -> None:
        self.peer = make_peer("modern", self.take)
        self.task: dict[str, Any] = {"taskId": "t", "status": "working", "createdAt": "c",
                                     "lastUpdatedAt": "u", "ttlMs": 60, "pollIntervalMs": 5}  # fmt: skip
        self.makes_tasks = True
        self.updates: list[Any] = []

    def take(self, message: Any) -> None:
        method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
        emit = self.peer.emit
        stated = str(params.get("_meta", {}).get(KEY + "clientCapabilities"))
        if method == "server/discover":
            emit(id=id, result={"supportedVersions": ["2026-07-28"],
                                "capabilities": {"tools": {}, "extensions": {EXTENSION: {}}}})  # fmt: skip
        elif method == "initialize":
            emit(id=id, error={"code": -32601, "message": "Method not found"})
        elif method == "tools/list":
            emit(id=id, result={"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
        elif method == "tools/call" and EXTENSION in stated and self.makes_tasks:
            assert "task" not in params
            emit(id=id, result={"resultType": "task", **self.task})
        elif method == "tools/call":
            emit(id=id, result={"resultType": "complete", **RESULT})
        elif method == "tasks/get":
            emit(id=id, result={"resultType": "complete", **self.task})
        elif method == "tasks/update":
            self.updates.append(params["inputResponses"])
            self.task = {**self.task, "status": "completed", "result": RESULT}
            del self.task["inputRequests"]
            emit(id=id, result={"resultType": "complete"})
        elif method == "tasks/cancel":
            self.task = {**self.task, "status": "cancelled"}
            emit(id=id, result={"resultType": "complete"})


@contextlib.asynccontextmanager
async def front(connect: Any, workspace: Path, server: Any) -> AsyncGenerator[Any]:
    async with Gateway(FULL, workspace, audit_log=workspace.parent / "log") as gateway:

        def single(session: Session) -> Single:
            return Single(Upstream("p", server.peer, session, gateway.calls, gateway.version))

        async with connect(single) as wire:
            yield wire


def in_record(workspace: Path) -> list[Any]:
    """What the record says of tasks, each by the call that made it."""
    log = workspace.parent / "log"
    assert not verify(log).problems
    found = [entry for _, entry in entries(log) if entry is not None]
    called = {e["call_id"]: e["tool"] for e in found if e["event"] == "begin"}
    return [
        (called[e["call_id"]], e["task"], e["task_reason"], e["output"])
        for e in found
        if e["event"] == "task"
    ]


def test_a_modern_client_has_a_legacy_servers_task(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        server = Legacy(make_peer)
        async with front(raw_client, workspace, server) as wire:

            async def ask(method: str, **params: Any) -> Any:
                return (await wire.ask(method, {**params, "_meta": META}))["result"]

            said = (await ask("server/discover"))["capabilities"]
            assert said["extensions"] == {EXTENSION: {}} and "tasks" not in said
            listen = {"notifications": {"taskIds": ["t", "not-mine"]}, "_meta": META}
            made = await ask("tools/call", name="t", arguments={})
            assert made.items() >= {"resultType": "task", "taskId": "t", "status": "working",
                                    "ttlMs": 60, "pollIntervalMs": 5}.items()  # fmt: skip
            await ask("tools/call", name="t", arguments={})
            plain = [m for m in server.peer.got if m.get("method") == "tools/call"
                     and "task" not in m["params"]]  # fmt: skip
            assert len(plain) == 1, "a tool that demands tasks is remembered"
            wire.send({"jsonrpc": "2.0", "id": "L", "method": "subscriptions/listen",
                       "params": listen})  # fmt: skip
            heard = await wire.until(lambda m: str(m.get("method")).endswith("acknowledged"))
            assert heard["params"]["notifications"] == {"taskIds": ["t"]}
            state = await ask("tasks/get", taskId="t")
            assert (state["resultType"], state["status"]) == ("complete", "working")
            # A question of the task's comes with its state and is answered by an update.
            server.task["status"] = "input_required"
            while "inputRequests" not in (state := await ask("tasks/get", taskId="t")):
                await asyncio.sleep(0.01)
            ((key, question),) = state["inputRequests"].items()
            assert question["method"] == "elicitation/create"
            assert question["params"]["message"] == "name?"
            answer = {"action": "accept", "content": {"n": 2**60}}
            await ask("tasks/update", taskId="t", inputResponses={key: answer, "other": 1})
            while not server.told:
                await asyncio.sleep(0.01)
            assert server.told["q"]["result"] == answer
            assert in_record(workspace) == []
            server.end()
            state = await ask("tasks/get", taskId="t")
            assert (state["status"], state["result"]) == ("completed", RESULT)
            server.peer.emit(method="notifications/tasks/status", params=server.task)
            told = await wire.until(lambda m: m.get("method") == "notifications/tasks")
            assert (told["params"]["taskId"], told["params"]["result"]) == ("t", RESULT)
            assert (await ask("tasks/cancel", taskId="t"))["resultType"] == "complete"
            assert in_record(workspace) == [("t", "t", "completed", RESULT)]
            for gone in ("tasks/result", "tasks/list"):
                refused = await wire.ask(gone, {"taskId": "t", "_meta": META})
                assert refused["error"]["code"] == -32601

    asyncio.run(go())


def test_a_modern_client_that_takes_no_tasks_gets_none(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        async with front(raw_client, workspace, Legacy(make_peer)) as wire:
            meta = {**META, KEY + "clientCapabilities": {}}
            call = {"name": "t", "arguments": {}, "_meta": meta}
            refused = await wire.ask("tools/call", call)
            assert refused["error"]["message"] == "Task augmentation required"

    asyncio.run(go())


def test_a_legacy_client_has_a_modern_servers_task(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        server = Modern(make_peer)
        async with front(raw_client, workspace, server) as wire:

            async def ask(method: str, **params: Any) -> Any:
                return (await wire.ask(method, params))["result"]

            said = (await wire.initialize(elicitation={}, tasks={}))["result"]["capabilities"]
            assert said["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
            (tool,) = (await ask("tools/list"))["tools"]
            assert tool["execution"] == {"taskSupport": "optional"}
            # Who does not ask for a task gets none.
            assert await ask("tools/call", name="t", arguments={}) == RESULT
            made = await ask("tools/call", name="t", arguments={}, task={"ttl": 9})
            task = {"taskId": "t", "status": "working", "createdAt": "c", "lastUpdatedAt": "u",
                    "ttl": 60, "pollInterval": 5}  # fmt: skip
            assert made == {"task": task}
            assert await ask("tasks/get", taskId="t") == task
            # The result is waited for, and the client asked on the way.
            wire.send(
                {"jsonrpc": "2.0", "id": "R", "method": "tasks/result", "params": {"taskId": "t"}}
            )
            asked = {"k": {"method": "elicitation/create", "params": QUESTION}}
            server.task |= {"status": "input_required", "inputRequests": asked}
            seen = await wire.until(lambda m: m.get("method") == "elicitation/create")
            assert seen["params"] == {**QUESTION, "_meta": {RELATED: {"taskId": "t"}}}
            answer = {"action": "accept", "content": {"n": 1}}
            wire.send({"jsonrpc": "2.0", "id": seen["id"], "result": answer})
            result = (await wire.answer("R"))["result"]
            assert result == {**RESULT, "_meta": {RELATED: {"taskId": "t"}}}
            assert server.updates == [{"k": answer}]
            assert in_record(workspace) == [("t", "t", "completed", result)]

    asyncio.run(go())


def test_a_legacy_client_that_asks_for_a_task_gets_one_though_the_server_answers_at_once(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        server = Modern(make_peer)
        server.makes_tasks = False
        async with front(raw_client, workspace, server) as wire:
            await wire.initialize(tasks={})
            call = {"name": "t", "arguments": {}, "task": {}}
            task = (await wire.ask("tools/call", call))["result"]["task"]
            assert task["status"] == "completed"
            assert (await wire.ask("tasks/get", {"taskId": task["taskId"]}))["result"] == task
            for _ in range(2):
                result = (await wire.ask("tasks/result", {"taskId": task["taskId"]}))["result"]
                assert result["content"] == RESULT["content"]
            assert len(in_record(workspace)) == 1

    asyncio.run(go())


@pytest.mark.parametrize("is_error", [True, False])
def test_a_task_that_fails_is_said_in_each_eras_own_way(
    is_error: bool, raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        server = Modern(make_peer)
        async with front(raw_client, workspace, server) as wire:
            await wire.initialize(tasks={})
            await wire.ask("tools/call", {"name": "t", "arguments": {}, "task": {}})
            if is_error:  # a result all the same, in the modern era
                server.task |= {"status": "completed", "result": {"content": [], "isError": True}}
            else:
                error = {"code": -32099, "message": "broken", "data": 1}
                server.task |= {"status": "failed", "error": error}
            state = await wire.ask("tasks/get", {"taskId": "t"})
            assert state["result"]["status"] == "failed"
            answer = await wire.ask("tasks/result", {"taskId": "t"})
            if is_error:
                assert answer["result"]["isError"] is True
            else:
                assert answer["error"] == {"code": -32099, "message": "broken", "data": 1}
            ((_, _, reason, _),) = in_record(workspace)
            assert reason == "operation_failed"
            await wire.ask("tasks/cancel", {"taskId": "t"})

    asyncio.run(go())


def test_a_result_that_cannot_be_had_is_not_the_tasks_end(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    class Forgetful(Legacy):
        def take(self, message: Any) -> None:
            if message.get("method") != "tasks/result":
                super().take(message)
            elif self.answers:
                self.peer.emit(id=message["id"], error=self.answers.pop(0))
            else:
                self.peer.emit(id=message["id"], result=RESULT)

        def __init__(self, make_peer: Any) -> None:
            super().__init__(make_peer)
            self.answers = [
                {"code": -32602, "message": "expired"},
                {"code": -32099, "message": "broken"},
            ]

    async def go() -> None:
        server = Forgetful(make_peer)
        async with front(raw_client, workspace, server) as wire:
            await wire.ask("tools/call", {"name": "t", "arguments": {}, "_meta": META})
            server.task["status"] = "failed"
            answer = await wire.ask("tasks/get", {"taskId": "t", "_meta": META})
            assert answer["error"]["message"] == "expired"
            assert in_record(workspace) == []
            answer = await wire.ask("tasks/get", {"taskId": "t", "_meta": META})
            assert answer["result"]["status"] == "failed"
            assert answer["result"]["error"] == {"code": -32099, "message": "broken"}
            ((_, _, reason, _),) = in_record(workspace)
            assert reason == "operation_failed"

    asyncio.run(go())
