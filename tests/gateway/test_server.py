"""The server as a client sees it: real sandboxes, the SDK's client."""

# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from purplebox.gateway.audit import AuditLog, verify
from purplebox.gateway.audit.log import entries
from purplebox.gateway.gateway import Gateway
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.policies import load_policy

RULES = """
name: ruled
extends: code-assistant
tools:
  rules:
    - {tool: shell, when: 'args.command.contains("git push")', effect: deny, reason: pushes leave}
    - {tool: delete, effect: ask, reason: a person decides}
"""


Body = Callable[[Client], Awaitable[Any]]
WithClient = Callable[..., Any]


@pytest.fixture
def with_client(sdk_transport: Callable[..., Any]) -> WithClient:
    """Runs a coroutine with the SDK's client of a gateway under `RULES`."""
    return partial(_with_client, sdk_transport)


def _with_client(
    transport: Callable[..., Any], workspace: Path, log: Path, body: Body, mode: Any = "auto"
) -> Any:
    rules = workspace.parent / "ruled.yaml"
    rules.write_text(RULES)
    policy = load_policy(str(rules))

    async def go() -> Any:
        async with (
            Gateway(policy, workspace, audit_log=log) as gateway,
            Client(transport(lambda _: Single(BuiltIns(gateway))), mode=mode) as client,
        ):
            return await body(client)

    return asyncio.run(go())


def test_tools_are_listed_with_schemas_and_annotations(
    workspace: Path, tmp_path: Path, with_client: WithClient
) -> None:
    async def body(client: Client) -> list[Any]:
        return list((await client.list_tools()).tools)

    tools = {tool.name: tool for tool in with_client(workspace, tmp_path / "log", body)}
    assert list(tools) == [
        "shell", "read_file", "write_file", "edit_file", "list_directory", "find_files",
        "search_text", "move", "delete", "process_start", "process_output", "process_input",
        "process_stop", "process_list",
    ]  # fmt: skip
    assert all(tool.output_schema for tool in tools.values())
    assert tools["read_file"].annotations.read_only_hint is True
    assert tools["shell"].annotations.destructive_hint is True


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_every_call_ends_with_its_reason_and_one_record(
    workspace: Path, tmp_path: Path, mode: str, with_client: WithClient
) -> None:
    calls: list[tuple[str, dict[str, Any], bool, str]] = [
        ("shell", {"command": "echo hi"}, False, "hi"),
        ("shell", {"command": "exit 3"}, True, "exit status 3"),
        ("shell", {"command": "git push origin"}, True, "rule tools.rules[0] of policy ruled: pushes leave"),
        ("shell", {"command": "cat ~/.ssh/id_rsa"}, True, "~/.ssh/id_rsa is outside what policy ruled grants"),
        ("shell", {"command": 5}, True, "command: 5 is not of type 'string'"),
        ("shell", {"command": "true", "sandbox": "off"}, True, "'sandbox' was unexpected"),
        ("shell", {"command": "sleep 9", "timeout_seconds": 0.2}, True, "timed_out"),
        ("shell", {"command": "printf '\\377\\376'"}, False, "\ufffd\ufffd"),
        ("shell", {"command": "true", "cwd": "nowhere"}, True, "cwd 'nowhere'"),
        ("write_file", {"path": "a.txt", "content": "one\ntwo\n"}, False, '"created": true'),
        ("read_file", {"path": "a.txt", "offset": 1}, False, "two"),
        ("search_text", {"pattern": "t.o"}, False, '"line": 2'),
        ("find_files", {"pattern": "*.txt"}, False, "a.txt"),
        ("list_directory", {}, False, '"name": "a.txt"'),
        ("move", {"source": "a.txt", "destination": "b.txt"}, False, "b.txt"),
        ("read_file", {"path": "a.txt"}, True, "ENOENT"),
        ("delete", {"path": "b.txt"}, True, "approval"),
        ("nonesuch", {}, True, "There is no tool 'nonesuch'"),
    ]  # fmt: skip

    async def body(client: Client) -> None:
        for tool, arguments, is_error, words in calls:
            result = await client.call_tool(tool, arguments)
            text = "".join(getattr(block, "text", "") for block in result.content)
            assert words in text, (tool, arguments, text)
            assert result.is_error == is_error, (tool, arguments, text)

    log = tmp_path / "log"
    with_client(workspace, log, body, mode)
    report = verify(log)
    assert (report.calls, report.interrupted, report.problems) == (len(calls), (), ())
    ended = [entry for _, entry in entries(log) if entry and entry["event"] == "end"]
    assert ended[0]["exit_code"] == 0
    assert [e["reason"] for e in ended[1:5]] == [
        "completed", "policy_denied", "completed", "invalid_arguments",
    ]  # fmt: skip


def test_long_output_is_progress_and_a_flood_is_bounded(
    workspace: Path, tmp_path: Path, with_client: WithClient
) -> None:
    seen: list[str] = []

    async def progress(
        progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        seen.append(message or "")

    async def body(client: Client) -> Any:
        command = "echo first; sleep 0.5; head -c 100000000 /dev/zero | tr '\\0' x"
        return await client.call_tool("shell", {"command": command}, progress_callback=progress)

    content = with_client(workspace, tmp_path / "log", body).structured_content
    assert content["truncated"] is True
    assert len(content["stdout"]) == 1 << 20
    assert "first" in seen[0]


def test_the_log_shows_edits_deletions_and_a_cut_tail(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    for index in range(3):
        call = log.begin({"tool": "shell", "arguments": {"n": index, "text": "a\nb\x1b[31m"}})
        if index < 2:
            log.end(call, {"reason": "completed"})
    log.close()
    path = tmp_path / "log"
    assert len(verify(path).interrupted) == 1
    assert verify(path).problems == ()
    lines = path.read_text().splitlines(keepends=True)
    for broken in (
        [*lines[:2], *lines[3:]],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace('"n":0', '"n":7'), *lines[1:]],
        lines[:-1],
    ):
        path.write_text("".join(broken))
        assert verify(path).problems
    path.write_text("".join(lines))
    assert verify(path).problems == ()


def test_over_stdio_a_killed_gateway_leaves_a_record_and_nothing_else(
    workspace: Path, private_home: Path
) -> None:
    command = [sys.executable, "-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)]
    seconds = f"98{os.getpid():07}"  # another run of the tests may go on
    messages: list[dict[str, Any]] = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"}}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
            "name": "shell", "arguments": {"command": f"echo $$ > started; exec sleep {seconds}"}}},
    ]  # fmt: skip

    def runs() -> bool:
        shown = subprocess.run(["ps", "axww"], capture_output=True, check=True).stdout
        return f"sleep {seconds}".encode() in shown

    async def go() -> None:
        server = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        for message in messages:
            server.stdin.write(json.dumps(message).encode() + b"\n")
            if "id" in message and message["id"] == 1:
                await server.stdout.readline()
        while not (workspace / "started").exists():
            await asyncio.sleep(0.02)
        assert runs()
        server.kill()
        await server.wait()
        while runs():  # ends by the test's own time limit if it never does
            await asyncio.sleep(0.02)

    asyncio.run(go())
    report = verify(private_home / "state" / "purple" / "audit.jsonl")
    assert (report.calls, len(report.interrupted), report.problems) == (1, 1, ())


def test_the_readme_example_prints_what_the_readme_says(private_home: Path) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(root / "examples" / "first_call.py")],
        capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(private_home)},
    )  # fmt: skip
    shown = (root / "README.md").read_text().split("```text\n")[1].split("```")[0]
    assert run.stdout.strip() == shown.strip()


def test_the_sdks_client_speaks_to_the_command(workspace: Path) -> None:
    async def go() -> str:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)],
            env=dict(os.environ),
        )
        async with Client(server) as client:
            result = await client.call_tool("shell", {"command": "pwd"})
            return str(getattr(result.content[0], "text", ""))

    assert asyncio.run(go()) == str(workspace)
