# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What no peer should say: whoever waits gets one answer, and the next request is served."""

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
from purplebox.gateway.wire.tasks import EXTENSION
from purplebox.gateway.wire.upstream import Upstream


@contextlib.asynccontextmanager
async def served(raw_client: Any, workspace: Path, peer: Any) -> AsyncGenerator[Any]:
    """A raw client of a gateway in front of `peer` alone."""
    async with Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway:

        def serve(session: Session) -> Single:
            return Single(Upstream("p", peer, session, gateway.calls, gateway.version))

        async with raw_client(serve) as wire:
            yield wire


KEY = "io.modelcontextprotocol/"
META: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28",
    KEY + "clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {}},
}
SAID: dict[str, Any] = {
    "initialize": {"protocolVersion": "2025-11-25", "serverInfo": {"name": "p", "version": "1"},
                   "capabilities": {"tools": {}, "tasks": {"requests": {"tools": {"call": {}}}}}},
    "server/discover": {"supportedVersions": ["2026-07-28"],
                        "capabilities": {"tools": {}, "extensions": {EXTENSION: {}}}},
}  # fmt: skip
METHODS = ("tools/list", "tools/call", "resources/read", "prompts/get", "tasks/get", "tasks/result",
           "tasks/update", "tasks/cancel", "tasks/list", "completion/complete", "of/nobody")  # fmt: skip
RESULTS: list[Any] = [
    None, True, 0, 1.5, "x", [], {}, [{}], {"content": 1}, {"content": [None]}, {"_meta": 1},
    {"tools": {}}, {"tools": [None, 1, {"name": 1}, {"name": "a", "inputSchema": []}]},
    {"tasks": [1, {"taskId": []}]}, {"contents": 1}, {"task": []}, {"task": {"taskId": 1}},
    {"task": {"taskId": "t", "status": []}}, {"resultType": "task"}, {"resultType": 1},
    {"resultType": "task", "taskId": "t", "status": "working", "ttlMs": "x",
     "pollIntervalMs": 1},
    {"taskId": "t", "status": "completed", "result": 1}, {"taskId": "t", "status": "failed"},
    {"taskId": "t", "status": "failed", "error": 1}, {"taskId": "t", "status": {}},
    {"taskId": "t", "status": "input_required", "inputRequests": [1], "pollIntervalMs": -1},
    {"resultType": "input_required", "inputRequests": {"k": {"method": 1}}},
    {"content": [{"type": "text", "text": "\ud800\0\r\n"}]},
]  # fmt: skip
ERRORS: list[Any] = [
    None, 1, [], {}, {"code": "x", "message": 1}, {"code": None, "message": "m"},
    {"code": -32601, "message": "no"}, {"code": -32002, "message": "m"},
    {"code": -32042, "message": "m", "data": {"elicitations": 1}},
]  # fmt: skip
UNSENT: list[dict[str, Any]] = [
    {"method": "notifications/progress", "params": {"progressToken": []}},
    {"method": "notifications/tasks/status", "params": {"taskId": {}, "status": []}},
    {"method": "notifications/tasks", "params": {"taskId": "t", "status": "completed"}},
    {"method": "notifications/message", "params": {"level": [], "data": {}}},
    {"method": "notifications/resources/updated", "params": {"uri": []}},
    {"method": "notifications/cancelled", "params": {"requestId": {}}},
    {"method": "notifications/x", "params": {"_meta": {KEY + "subscriptionId": []}}},
    {"id": "q1", "method": "tasks/get", "params": {"taskId": []}},
    {"id": "q2", "method": "elicitation/create", "params": {"_meta": {KEY + "related-task": 1}}},
    {"id": [], "result": {}}, {"id": 10**30, "result": {}},
]  # fmt: skip


class Odd:
    """A server that answers each request with the next of RESULTS and ERRORS, and says more before."""

    def __init__(self, make_peer: Any, era: str) -> None:
        self.peer = make_peer(era, self.take)
        self.opens = "initialize" if era == "legacy" else "server/discover"
        self.count = 0

    def take(self, message: Any) -> None:
        method, id = message.get("method"), message.get("id")
        if method is None or id is None:
            return
        if method in SAID:
            no = {"error": {"code": -32601, "message": "no"}}
            self.peer.emit(id=id, **({"result": SAID[method]} if method == self.opens else no))
            return
        self.count += 1
        self.peer.emit(**UNSENT[self.count % len(UNSENT)])
        index = self.count % (len(RESULTS) + len(ERRORS))
        if index < len(RESULTS):
            self.peer.emit(id=id, result=RESULTS[index])
        else:
            self.peer.emit(id=id, error=ERRORS[index - len(RESULTS)])


async def decline(wire: Any) -> None:
    """Answer whatever the client is asked with an error."""
    answered = 0
    while True:
        for message in wire.received[answered:]:
            answered += 1
            if "method" in message and "id" in message:
                error = {"code": -32601, "message": "no"}
                wire.send({"jsonrpc": "2.0", "id": message["id"], "error": error})
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("client", ["legacy", "modern"])
@pytest.mark.parametrize("server", ["legacy", "modern"])
def test_each_request_has_one_answer_whatever_the_server_says(
    client: str, server: str, raw_client: Any, make_peer: Any, workspace: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    async def go() -> None:
        odd = Odd(make_peer, server)
        meta = {"_meta": META} if client == "modern" else {}
        async with served(raw_client, workspace, odd.peer) as wire:
            declining = asyncio.create_task(decline(wire))
            if client == "legacy":
                await wire.initialize(tasks={})
            rounds = len(RESULTS) + len(ERRORS) + 1
            ids = [f"{method} {n}" for n in range(rounds) for method in METHODS]
            for id in ids:
                params = {"name": "t", "arguments": {}, "uri": "x:y", "taskId": "t", **meta}
                if "tools/call" in id and client == "legacy":
                    params["task"] = {}
                method = id.partition(" ")[0]
                wire.send({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
                # A task may be waited for as long as it takes: what it says last ends it.
                if not id.startswith("tasks/result"):
                    await wire.answer(id)
            for task in [m for m in ids if m.startswith("tasks/result")]:
                await wire.answer(task)
            declining.cancel()
            answers = [m["id"] for m in wire.received if "method" not in m]
            assert sorted(answers.count(id) for id in ids) == [1] * len(ids)

    asyncio.run(go())
    said = capfd.readouterr().err
    assert "Traceback" not in said, said


def test_a_question_that_comes_with_the_answer_is_not_put_to_a_client_that_has_it(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        refusals: list[Any] = []

        def take(message: Any) -> None:
            id, method = message.get("id"), message.get("method")
            if method is None:
                refusals.append(message)
            elif method == "initialize":
                peer.emit(id=id, result=SAID["initialize"])
            elif method == "server/discover":
                peer.emit(id=id, error={"code": -32601, "message": "no"})
            elif id is not None:
                asked = {"message": "?", "requestedSchema": {}}
                peer.emit(id="q", method="elicitation/create", params=asked)
                peer.emit(id=id, result={"content": []})

        peer = make_peer("legacy", take)
        async with served(raw_client, workspace, peer) as wire:
            call = {"name": "t", "arguments": {}, "_meta": META}
            for n in range(20):
                await wire.ask("tools/call", call, id=f"n{n}")
            async with asyncio.timeout(120):
                while len(refusals) < 20:
                    await asyncio.sleep(0.01)
            ids = [m["id"] for m in wire.received]
            assert len(ids) == len(set(ids))
            assert all("error" in m for m in refusals)

    asyncio.run(go())


def test_an_id_that_cannot_be_said_is_answered_all_the_same(
    raw_client: Any, make_peer: Any, workspace: Path
) -> None:
    async def go() -> None:
        peer = make_peer("legacy", lambda message: None)
        async with served(raw_client, workspace, peer) as wire:
            wire.send(b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}')
            wire.send(b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}')
            assert (await wire.answer(None))["error"]["code"] == -32600
            assert (await wire.answer(1.5))["error"]["code"] == -32600

    asyncio.run(go())
