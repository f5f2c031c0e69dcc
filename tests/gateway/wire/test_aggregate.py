# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Many servers behind one front: names, order, and one server's trouble that stays its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.config import ConfigError, load_servers
from purplebox.gateway.wire import aggregate
from purplebox.gateway.wire.aggregate import Many
from purplebox.gateway.wire.jsonrpc import RpcError

FAKE = Path(__file__).parents[1] / "fidelity" / "fake_server.py"


class Fake:
    """A backend with lists that a test gives it."""

    def __init__(self, name: str, tools: list[Any], resources: list[str] | None = None) -> None:
        self.name = name
        self.tools = tools
        self.resources = resources or []
        self.down = self.hanging = False
        self.calls: list[Any] = []

    async def describe(self, client: Any, exchange: Any) -> Any:
        if self.down:
            raise RpcError(-32050, "is down\x1b[2J")
        if self.hanging:
            await asyncio.Event().wait()
        kinds = {"tools": {}, "resources": {"subscribe": True}, "logging": {}}
        return {"capabilities": kinds, "instructions": f"use {self.name} well"}

    async def request(self, exchange: Any, method: str, params: Any) -> Any:
        self.calls.append((method, params))
        if method == "tools/list":
            start = int((params or {}).get("cursor", 0))
            page = {"tools": self.tools[start : start + 2]}
            return {**page, "nextCursor": str(start + 2)} if start + 2 < len(self.tools) else page
        if method == "resources/list":
            return {"resources": [{"uri": uri, "name": "r"} for uri in self.resources]}
        return {"from": self.name, "params": params}

    def notified(self, client: Any, method: str, params: Any) -> None:
        self.calls.append((method, params))

    async def aclose(self) -> None:
        self.calls.append("closed")


def tool(name: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def deep(levels: int) -> Any:
    schema: Any = {"type": "object"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def test_lists_are_merged_in_order_and_what_cannot_be_told_apart_is_left_out(
    raw_client: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    b = Fake("b", [
        tool("read", x=[1]), tool("Read"), tool("re ad"), tool(5), "junk", tool("1ist"), tool("list"),
        tool("far", inputSchema={"properties": {"a": {"$ref": "https://e.test/s"}}}),
        tool("near", inputSchema={"$ref": "#/$defs/x"}),
        tool("deep", inputSchema=deep(80)), tool("huge", inputSchema={"d": "x" * (1 << 19)}),
    ])  # fmt: skip
    a = Fake("a", [tool("read"), tool("a__b")])
    own = Fake("", [tool("shell")])

    async def go() -> None:
        async with raw_client(lambda _: Many([own, b, a])) as wire:
            hello = (await wire.initialize())["result"]
            assert hello["instructions"] == "use  well\n\n[b] use b well\n\n[a] use a well"
            assert hello["capabilities"]["tools"] == {"listChanged": True}
            tools: list[Any] = []
            for _ in range(2):
                tools = (await wire.ask("tools/list"))["result"]["tools"]
                assert [t["name"] for t in tools] == [
                    "shell", "b__read", "b__1ist", "b__near", "a__read", "a__a__b",
                ]  # fmt: skip
            assert tools[1]["x"] == [1]
            got = (await wire.ask("tools/call", {"name": "a__a__b", "e": 1}))["result"]
            assert got == {"from": "a", "params": {"name": "a__b", "e": 1}}
            assert (await wire.ask("tools/call", {"name": "shell"}))["result"]["from"] == ""
            for unknown in ("c__read", "__read", 7):
                assert (await wire.ask("tools/call", {"name": unknown}))["error"]["code"] == -32602

    asyncio.run(go())
    said = capfd.readouterr().err
    for words in ("b__Read is left out: it looks like b__read", "refers to the network", "over 256 KiB",
                  "nested deeper than 64", "no name by MCP's rules"):  # fmt: skip
        assert words in said


def test_a_server_that_is_down_or_slow_leaves_the_others(
    raw_client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aggregate, "START_SECONDS", 1.0)
    down, slow, good = (
        Fake("down", [tool("x")]),
        Fake("slow", [tool("y")]),
        Fake("good", [tool("z")]),
    )
    down.down = slow.hanging = True

    async def go() -> None:
        async with raw_client(lambda _: Many([down, slow, good])) as wire:
            assert "[good]" in (await wire.initialize())["result"]["instructions"]
            tools = (await wire.ask("tools/list"))["result"]["tools"]
            assert [t["name"] for t in tools] == ["good__z"]
            assert (await wire.ask("tools/call", {"name": "good__z"}))["result"]["from"] == "good"
            down.down = False  # it has come back
            tools = (await wire.ask("tools/list"))["result"]["tools"]
            assert [t["name"] for t in tools] == ["down__x", "good__z"]

    asyncio.run(go())
    assert "server down is left out: is down�[2J" in capfd.readouterr().err


def test_a_resource_is_asked_of_its_own_server_only(raw_client: Any) -> None:
    one, two = Fake("one", [], ["a:1", "a:2"]), Fake("two", [], ["a:2", "a:3"])

    async def go() -> None:
        async with raw_client(lambda _: Many([one, two])) as wire:
            await wire.initialize()
            refused = await wire.ask("resources/read", {"uri": "a:3"})
            assert refused["error"]["code"] == -32602
            listed = (await wire.ask("resources/list"))["result"]["resources"]
            assert [r["uri"] for r in listed] == ["a:1", "a:2", "a:3"]
            for uri, owner in (("a:1", "one"), ("a:2", "one"), ("a:3", "two")):
                got = (await wire.ask("resources/read", {"uri": uri}))["result"]
                assert got["from"] == owner

    asyncio.run(go())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no mcpServers"),
        ("{mcpServers: {a__b: {command: x}}}", "no '__'"),
        ("{mcpServers: {files: {command: x}, fi1es: {command: y}}}", "looks like files"),
        ("{mcpServers: {a: {command: x, comand: y}}}", "a.comand: unknown key"),
        ("{mcpServers: {a: {url: 'http://x', command: y}}}", "command"),
        ("{mcpServers: {a: {command: '${NOPE}'}}}", "variable NOPE is not set"),
        ("{mcpServers: {a: {command: x, args: y}}}", "args a list"),
        ("{mcpServers: [", "servers.yaml:1:15: expected"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_servers(path, {})
    assert words in str(caught.value)


def test_variables_are_replaced_in_the_configuration_of_a_client(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    fields = {"command": "${HOME}/run", "args": ["${env:A}", "${B:-two}"], "env": {"K": "v${A}"}}
    path.write_text(json.dumps({"mcpServers": {"x": {"type": "stdio", **fields}}}))
    [server] = load_servers(path, {"HOME": "/h", "A": "one"})
    assert server.argv == ("/h/run", "one", "two")
    assert server.env == {"K": "vone"}


def test_serve_with_a_configuration_lists_and_calls_all_and_siblings_see_no_environment(
    workspace: Path, tmp_path: Path
) -> None:
    (workspace / "fake.py").write_text(FAKE.read_text())
    python = os.path.realpath(sys.executable)
    config = tmp_path / "servers.json"
    config.write_text(json.dumps({"mcpServers": {
        "one": {"command": python, "args": ["fake.py", "legacy"], "env": {"TOKEN_ONE": "1"}},
        "two": {"command": python, "args": ["fake.py", "modern"], "env": {"TOKEN_TWO": "2"}},
        "bad": {"command": "nonesuch"},
    }}))  # fmt: skip
    messages = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
         "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}},
        {"id": 2, "method": "tools/list"},
        {"id": 3, "method": "tools/call", "params": {"name": "one__environ"}},
        {"id": 4, "method": "tools/call", "params": {"name": "two__environ"}},
        {"id": 5, "method": "tools/call", "params": {"name": "shell", "arguments": {"command": "echo hi"}}},
    ]  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "purplebox.gateway.cli", "serve", "-w", str(workspace), "--config", str(config)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    answers: dict[Any, Any] = {}
    with server:
        for message in messages:
            server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            server.stdin.flush()
            while message["id"] not in answers:
                answer = json.loads(server.stdout.readline())
                answers[answer.get("id")] = answer
        server.stdin.close()
        assert server.stderr is not None
        said = server.stderr.read()
    names = [t["name"] for t in answers[2]["result"]["tools"]]
    assert (names[0], names[-2:]) == ("shell", ["one__odd", "two__odd"])
    first, second = (answers[i]["result"]["content"][0]["text"] for i in (3, 4))
    assert "TOKEN_ONE" in first and "TOKEN_TWO" not in first
    assert "TOKEN_TWO" in second and "TOKEN_ONE" not in second
    assert "hi" in answers[5]["result"]["content"][0]["text"]
    assert "server bad is left out" in said
