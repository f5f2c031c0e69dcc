"""Claude Agent SDK: its hooks, as the SDK calls them over its control protocol, and the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Transport

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.integrations.claude_agent import purple_hooks, purple_server
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio


class Code(Transport):
    """In place of Claude Code: sends what a test tells it to, over the SDK's own protocol."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[dict[str, Any]](100)
        self._answers: dict[str, anyio.Event] = {}
        self._said: dict[str, Any] = {}
        self.hooks: dict[str, list[dict[str, Any]]] = {}
        self._count = 0

    async def connect(self) -> None: ...

    async def write(self, data: str) -> None:
        for line in data.splitlines():
            message = json.loads(line)
            if message["type"] == "control_request":
                self.hooks = message["request"].get("hooks") or {}
                able = {"hook_on_failure_supported": True}  # as the CLI that the SDK brings along
                answer = {
                    "subtype": "success",
                    "request_id": message["request_id"],
                    "response": able,
                }
                await self._send.send({"type": "control_response", "response": answer})
            elif message["type"] == "control_response":
                said = message["response"]
                self._said[said["request_id"]] = said
                self._answers[said["request_id"]].set()

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        async def read() -> AsyncIterator[dict[str, Any]]:
            async for message in self._receive:
                yield message

        return read()

    async def close(self) -> None:
        self._send.close()
        self._receive.close()

    def is_ready(self) -> bool:
        return True

    async def end_input(self) -> None: ...

    async def ask(self, request: dict[str, Any]) -> Any:
        self._count += 1
        key = f"code-{self._count}"
        self._answers[key] = anyio.Event()
        await self._send.send({"type": "control_request", "request_id": key, "request": request})
        with anyio.fail_after(15):
            await self._answers[key].wait()
        return self._said[key]

    async def mcp(self, message: dict[str, Any]) -> Any:
        message = {"jsonrpc": "2.0", **message}
        said = await self.ask(
            {"subtype": "mcp_message", "server_name": "purple", "message": message}
        )
        return said["response"]["mcp_response"].get("result")

    async def hook(self, event: str, tool: str = "", use: str = "", **more: Any) -> dict[str, Any]:
        (matcher,) = self.hooks[event]
        given = {
            "hook_event_name": event, "session_id": "s1", "transcript_path": "", "cwd": "/",
            "tool_name": tool, "tool_use_id": use, **more,
        }  # fmt: skip
        request = {
            "subtype": "hook_callback", "callback_id": matcher["hookCallbackIds"][0],
            "input": given, "tool_use_id": use or None,
        }  # fmt: skip
        said = await self.ask(request)
        answer: dict[str, Any] = said["response"].get("hookSpecificOutput", {})
        return answer


def with_rules(*rules: dict[str, Any], **more: Any) -> Policy:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    tools = {"rules": rules, **more}
    return Policy.model_validate({**base, "name": "code-assistant", "tools": tools})


def recorded(log: Path, event: str = "end") -> list[dict[str, Any]]:
    return [entry for _, entry in entries(log) if entry and entry["event"] == event]


async def test_every_call_is_decided_before_and_recorded_after(
    workspace: Path, tmp_path: Path
) -> None:
    log, code = tmp_path / "log", Code()
    rule = {"tool": "Bash", "server": "claude-code", "when": "'curl' in command.programs", "effect": "deny", "reason": "no network"}  # fmt: skip
    policy = with_rules(rule, arguments={"claude-code__Bash": {"command": "command"}})
    async with Gateway(policy, workspace, audit_log=log) as gateway:
        options = ClaudeAgentOptions(hooks=purple_hooks(gateway))
        async with ClaudeSDKClient(options, transport=code):
            assert code.hooks["PreToolUse"][0]["onFailure"] == "block"
            allowed = await code.hook("PreToolUse", "Bash", "u1", tool_input={"command": "ls"})
            assert allowed == {}  # the agent's own permissions go on
            assert recorded(log) == []
            response = {"stdout": "a", "stderr": "", "interrupted": False}
            await code.hook("PostToolUse", "Bash", "u1", tool_input={}, tool_response=response)
            denied = await code.hook("PreToolUse", "Bash", "u2", tool_input={"command": "curl x"})
            assert denied["permissionDecision"] == "deny"
            assert denied["permissionDecisionReason"].startswith("[policy_denied] ")
            await code.hook("PreToolUse", "Read", "u3", tool_input={"file_path": "/x"})
            await code.hook("PostToolUseFailure", "Read", "u3", tool_input={}, error="not there")
            await code.hook("PreToolUse", "Write", "u4", tool_input={"file_path": "/x"})
            await code.hook("Stop")
    assert [(e["tool"], e["session"], e["client"]) for e in recorded(log, "begin")] == [
        (tool, "s1", "claude-agent") for tool in ("Bash", "Bash", "Read", "Write")
    ]  # fmt: skip
    assert [e["reason"] for e in recorded(log)] == [
        "completed", "policy_denied", "operation_failed", "cancelled",
    ]  # fmt: skip


async def test_bash_runs_in_a_sandbox(workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    code = Code()
    async with Gateway(workspace=workspace, audit_log=tmp_path / "log") as gateway:
        options = ClaudeAgentOptions(hooks=purple_hooks(gateway, sandbox_bash=True))
        async with ClaudeSDKClient(options, transport=code):
            command = f"pwd; cat {secret}"
            said = await code.hook("PreToolUse", "Bash", "u1", tool_input={"command": command})
            assert said["permissionDecision"] == "allow"
            done = await anyio.run_process(said["updatedInput"]["command"], check=False)
            assert done.stdout.decode().strip() == str(workspace)
            assert b"No such file or directory" in done.stderr
            background = {"command": "sleep 60", "run_in_background": True}
            said = await code.hook("PreToolUse", "Bash", "u2", tool_input=background)
            assert said["permissionDecision"] == "deny"


async def test_the_server_has_the_gateways_tools(workspace: Path, tmp_path: Path) -> None:
    log, code = tmp_path / "log", Code()
    result: Any = None
    async with Gateway(workspace=workspace, audit_log=log) as gateway:
        options = ClaudeAgentOptions(
            mcp_servers={"purple": purple_server(gateway)}, hooks=purple_hooks(gateway)
        )
        async with ClaudeSDKClient(options, transport=code):
            hello = {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": "claude-code", "version": "1"},
            }  # fmt: skip
            await code.mcp({"id": 1, "method": "initialize", "params": hello})
            await code.mcp({"method": "notifications/initialized"})
            call = {"name": "shell", "arguments": {"command": "echo hi"}}
            assert await code.hook("PreToolUse", "mcp__purple__shell", "u1", tool_input={}) == {}
            result = await code.mcp({"id": 2, "method": "tools/call", "params": call})
    assert result["content"][0]["text"] == "hi"
    assert [e["tool"] for e in recorded(log, "begin")] == ["shell"]  # once
