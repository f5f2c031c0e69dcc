# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""The same script with a tool server directly and through the gateway: what a client sees is equal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.audit import verify
from purplebox.gateway.gateway import Gateway
from purplebox.gateway.wire.process import Launcher
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.gateway.wire.upstream import Upstream

SERVER = Path(__file__).with_name("fake_server.py")
KEY = "io.modelcontextprotocol/"
ENVELOPE: dict[str, Any] = {
    KEY + "protocolVersion": "2026-07-28",
    KEY + "clientCapabilities": {"elicitation": {"form": {}, "url": {}}, "roots": {}},
    KEY + "clientInfo": {"name": "test", "version": "1"},
}


async def unconfined(era: str, fds: tuple[int, int, int]) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), era, stdin=fds[0], stdout=fds[1], stderr=fds[2]
    )
    try:
        return f"exit status {await process.wait()}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def through(connect: Any, era: str, workspace: Path) -> AsyncGenerator[Any]:
    """A raw client of the gateway in front of the fake server."""
    async with Gateway("mcp-server", workspace, audit_log=workspace.parent / "log") as gateway:

        def single(session: Session) -> Single:
            launch = lambda fds: unconfined(era, fds)  # noqa: E731
            return Single(
                Upstream("fake", Launcher("fake", launch), session, gateway.calls, gateway.version)
            )

        async with connect(single) as wire:
            yield wire


@contextlib.asynccontextmanager
async def direct(wire_type: Any, era: str) -> AsyncGenerator[Any]:
    there, up = os.pipe()
    down, here = os.pipe()
    server = asyncio.create_task(unconfined(era, (there, here, 2)))
    wire = wire_type(down, up)
    try:
        yield wire
    finally:
        await wire.pipe.aclose()
        os.close(there)
        os.close(here)
        await server


async def legacy_script(wire: Any) -> None:
    """Every detail of the older era, one after the other."""
    await wire.initialize(elicitation={}, roots={}, experimental={"x": [1]})
    await wire.ask("tools/list", {"cursor": "é", "unknown": 1})
    for arguments in ({"a": 2**80, "b": "\ud800", "n": None}, {}, {"d": 0.1, "deep": [[[]]]}):
        await wire.ask("tools/call", {"name": "echo", "arguments": arguments, "extra": True})
    await wire.ask("tools/call", {"name": "echo"})
    await wire.ask("tools/call", {"name": "notify", "_meta": {"progressToken": "t-1", "k": 1}})
    await wire.ask("tools/call", {"name": "notify", "_meta": {"progressToken": 77}})
    for reply in (
        {"result": {"action": "accept", "content": {"n": 1}, "u": 0}},
        {"error": {"code": 7, "message": "no", "data": [], "w": 1}},
    ):
        wire.send({"jsonrpc": "2.0", "id": f"e{len(reply)}{list(reply)}", "method": "tools/call",
                   "params": {"name": "elicit"}})  # fmt: skip
        known = len([m for m in wire.received if m.get("method") == "elicitation/create"])
        question = await wire.until(
            lambda m: m.get("method") == "elicitation/create" and not m.get("seen")
        )
        assert known >= 0
        question["seen"] = True
        wire.send({"jsonrpc": "2.0", "id": question["id"], **reply})
        await wire.answer(f"e{len(reply)}{list(reply)}")
    await wire.ask("acme/unknown", {"any": ["thing"]})
    await wire.ask("acme/fails")
    await wire.ask("ping")
    await wire.ask("logging/setLevel", {"level": "debug"})
    await wire.ask("tools/call", {"name": "url"})
    wire.send({"jsonrpc": "2.0", "id": "slow", "method": "tools/call", "params": {"name": "slow"}})
    await wire.until(lambda m: object_of(m).get("data") == "started")
    cancel = {"requestId": "slow", "reason": "enough\ud800"}
    wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel})
    await wire.until(lambda m: "cancelled" in str(object_of(m).get("data")))


async def modern_script(wire: Any) -> None:
    """The same for 2026-07-28."""
    await wire.ask("server/discover", {"_meta": ENVELOPE})
    await wire.ask("tools/list", {"_meta": ENVELOPE, "unknown": 1})
    call = {"name": "echo", "arguments": {"a": 2**80, "b": "\ud800"}, "_meta": ENVELOPE, "extra": 1}
    await wire.ask("tools/call", call)
    token = {**ENVELOPE, "progressToken": "t", KEY + "logLevel": "debug"}
    await wire.ask("tools/call", {"name": "notify", "_meta": token})
    listen = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
    wire.send({"jsonrpc": "2.0", "id": "L", "method": "subscriptions/listen", "params": listen})
    await wire.until(lambda m: str(m.get("method")).endswith("acknowledged"))
    await wire.ask("tools/call", {"name": "change", "_meta": ENVELOPE})
    params: Any = {"name": "elicit", "_meta": ENVELOPE}
    asked = (await wire.ask("tools/call", params))["result"]
    retry = {"requestState": asked["requestState"], "inputResponses": {"k": {"action": "accept"}}}
    await wire.ask("tools/call", {**params, **retry})
    await wire.ask("acme/unknown", {"_meta": ENVELOPE, "any": 1})
    await wire.ask("acme/fails", {"_meta": ENVELOPE})


def object_of(message: Any) -> Any:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def normal(messages: list[Any]) -> list[str]:
    """Canonical JSON; ids that a peer may choose freely are replaced by one word."""
    seen: list[str] = []
    for message in messages:
        message = {k: v for k, v in message.items() if k != "seen"}
        if "method" in message and "id" in message:
            message["id"] = "asked"
        seen.append(json.dumps(message, sort_keys=True))
    return seen


@pytest.mark.parametrize(("era", "script"), [("legacy", legacy_script), ("modern", modern_script)])
def test_a_client_sees_the_same_directly_and_through_the_gateway(
    raw_client: Any, wire_type: Any, workspace: Path, era: str, script: Callable[[Any], Any]
) -> None:
    async def go() -> tuple[list[str], list[str]]:
        async with direct(wire_type, era) as wire:
            await script(wire)
            first = normal(wire.received)
        async with through(raw_client, era, workspace) as wire:
            await script(wire)
            return first, normal(wire.received)

    first, second = asyncio.run(go())
    assert sorted(second) == sorted(first)
    assert [m for m in second if '"result"' in m] == [m for m in first if '"result"' in m]
    report = verify(workspace.parent / "log")
    assert (report.interrupted, report.problems) == ((), ())
    assert report.calls >= 4


def test_notifications_come_before_the_result_they_were_sent_before(
    raw_client: Any, workspace: Path
) -> None:
    async def go() -> list[Any]:
        async with through(raw_client, "legacy", workspace) as wire:
            await wire.initialize()
            params = {"name": "notify", "_meta": {"progressToken": 5}}
            await wire.ask("tools/call", params, id="n")
            return list(wire.received)

    received = asyncio.run(go())
    assert received[-1]["id"] == "n"
    assert [m["params"]["progress"] for m in received[1:21]] == list(range(20))
    assert all(m["params"]["progressToken"] == 5 for m in received[1:21])


def test_a_legacy_server_serves_a_modern_client(raw_client: Any, workspace: Path) -> None:
    async def go() -> None:
        async with through(raw_client, "legacy", workspace) as wire:
            found = (await wire.ask("server/discover", {"_meta": ENVELOPE}))["result"]
            assert found["supportedVersions"] == ["2026-07-28"]
            assert found["_meta"][KEY + "serverInfo"]["name"] == "fake"
            tools = (await wire.ask("tools/list", {"_meta": ENVELOPE}))["result"]
            assert (tools["resultType"], tools["ttlMs"], tools["cacheScope"]) == (
                "complete",
                0,
                "private",
            )
            assert (await wire.ask("ping", {"_meta": ENVELOPE}))["error"]["code"] == -32601
            for name, answer in (
                ("elicit", {"action": "accept", "content": {"n": 1}}),
                ("roots", {"roots": []}),
            ):
                params: Any = {"name": name, "arguments": {}, "_meta": ENVELOPE}
                asked = (await wire.ask("tools/call", params))["result"]
                assert asked["resultType"] == "input_required"
                [key] = asked["inputRequests"]
                params.update(requestState=asked["requestState"], inputResponses={key: answer})
                done = (await wire.ask("tools/call", params))["result"]
                assert json.loads(done["content"][0]["text"]) == {"result": answer}
            asked = (await wire.ask("tools/call", {"name": "url", "_meta": ENVELOPE}))["result"]
            [question] = asked["inputRequests"].values()
            assert question["params"]["url"] == "https://e.test"
            listen = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
            wire.send(
                {"jsonrpc": "2.0", "id": "L", "method": "subscriptions/listen", "params": listen}
            )
            await wire.until(lambda m: str(m.get("method")).endswith("acknowledged"))
            await wire.ask("tools/call", {"name": "change", "_meta": ENVELOPE})
            changed = await wire.until(
                lambda m: str(m.get("method")).endswith("tools/list_changed")
            )
            assert changed["params"]["_meta"] == {KEY + "subscriptionId": "L"}
            loud = {**ENVELOPE, KEY + "logLevel": "debug"}
            await wire.ask("tools/call", {"name": "notify", "_meta": ENVELOPE})
            assert not [m for m in wire.received if m.get("method") == "notifications/message"]
            await wire.ask("tools/call", {"name": "notify", "_meta": loud})
            assert [m for m in wire.received if m.get("method") == "notifications/message"]

    asyncio.run(go())


def test_a_modern_server_serves_a_legacy_client(raw_client: Any, workspace: Path) -> None:
    async def go() -> None:
        async with through(raw_client, "modern", workspace) as wire:
            hello = (await wire.initialize(elicitation={}))["result"]
            assert hello["protocolVersion"] == "2025-11-25"
            assert (hello["serverInfo"]["name"], hello["instructions"]) == ("fake", "modern")
            assert "resultType" not in (await wire.ask("tools/list"))["result"]
            assert (await wire.ask("ping"))["result"] == {}
            wire.send(
                {"jsonrpc": "2.0", "id": "e", "method": "tools/call", "params": {"name": "elicit"}}
            )
            question = await wire.until(lambda m: m.get("method") == "elicitation/create")
            wire.send({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}})
            text = (await wire.answer("e"))["result"]["content"][0]["text"]
            assert json.loads(text) == {"k": {"action": "decline"}}
            await wire.ask("tools/call", {"name": "change"})
            changed = await wire.until(
                lambda m: str(m.get("method")).endswith("tools/list_changed")
            )
            assert "params" not in changed

    asyncio.run(go())


def test_a_server_that_dies_or_talks_nonsense_answers_and_starts_again(
    raw_client: Any, workspace: Path
) -> None:
    async def go() -> None:
        async with through(raw_client, "legacy", workspace) as wire:
            await wire.initialize()
            bad = await wire.ask("tools/call", {"name": "garbage"})
            assert "Parse error" in bad["error"]["message"]
            gone = await wire.ask("tools/call", {"name": "die"})
            assert gone["error"]["code"] == -32050
            assert "exit status 3" in gone["error"]["message"]
            assert "about to �[31mdie" in gone["error"]["message"]
            again = await wire.ask("tools/call", {"name": "echo"})
            assert again["result"]["q"] == 1
            big = await wire.ask("tools/call", {"name": "big", "arguments": {"bytes": 50 << 20}})
            assert len(big["result"]["content"][0]["text"]) == 50 << 20

    asyncio.run(go())


def test_a_result_of_fifty_megabytes_passes_recorded_and_screened(
    raw_client: Any, workspace: Path
) -> None:
    size = 50_000_000

    async def go() -> None:
        async with through(raw_client, "legacy", workspace) as wire:
            await wire.initialize()
            call = {"name": "big", "arguments": {"bytes": size}}
            answer = await wire.ask("tools/call", call)
            (block,) = answer["result"]["content"]
            assert (len(block["text"]), block["text"].strip("x")) == (size, "")

    asyncio.run(go())
    report = verify(workspace.parent / "log")
    assert (report.calls, report.interrupted, report.problems) == (1, (), ())
