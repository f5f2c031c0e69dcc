"""Claude Agent SDK: `pip install 'purplebox[claude-agent]'`.

`purple_server` has Purple's own tools as an in-process MCP server; `purple_hooks` puts every tool call of
the agent, Claude Code's own among them, through the gateway: decided, approved, recorded, and `Bash`, if
wanted, run in a sandbox.

Theory of operation
    The agent's process carries its tools out; hooks stand before and after. A call is begun in
    `PreToolUse` and ended in `PostToolUse` or `PostToolUseFailure`, by its `tool_use_id`; between them
    the gateway's side of it waits. One that never ends (the client refused it, the session ended)
    is recorded as cancelled when its session stops, or when too many wait.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from typing import Any, Literal, cast

from claude_agent_sdk import HookMatcher, SdkMcpTool, create_sdk_mcp_server
from claude_agent_sdk.types import HookContext, HookJSONOutput, McpSdkServerConfig
from pydantic_core import to_json

from ..gateway.calls import Call, Outcome, Ran, text_result
from ..gateway.reasons import Reason
from .bridge import AnyGateway, Bridge

CLIENT = "claude-agent"
_MOST_OPEN = 1000


def purple_server(gateway: AnyGateway, name: str = "purple") -> McpSdkServerConfig:
    """Purple's tools for `ClaudeAgentOptions(mcp_servers={name: purple_server(gateway)})`.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.
        name: The server's; its tools are `mcp__NAME__shell`, ….
    """
    bridge = Bridge(gateway)
    tools = [
        SdkMcpTool[Any](
            name=tool.name, description=tool.description, input_schema=tool.input_schema,
            handler=_Handler(bridge, tool.name),
        )
        for tool in bridge.gateway.tools()
    ]  # fmt: skip
    return create_sdk_mcp_server(name, tools=tools)


class _Handler:
    """One tool of the in-process server."""

    def __init__(self, bridge: Bridge, tool: str) -> None:
        self._bridge = bridge
        self._tool = tool

    async def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        outcome = await self._bridge.acall(self._tool, dict(arguments), client=CLIENT)
        return {"content": outcome.result["content"], "is_error": outcome.is_error}


def purple_hooks(
    gateway: AnyGateway, *, server: str = "claude-code", sandbox_bash: bool = False,
    own_server: str = "purple",
) -> dict[Any, list[HookMatcher]]:  # fmt: skip
    """Hooks for `ClaudeAgentOptions(hooks=purple_hooks(gateway))`.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.
        server: What rules and the record call the place that the agent's tools are from.
        sandbox_bash: Have the commands of `Bash` run by `purple run` under the gateway's policy,
            which must be a profile that its name finds, in the gateway's workspace. Background
            commands are refused then: they would outlive their sandbox's owner.
        own_server: Of `purple_server`: its calls go through the gateway by themselves.

    What the gateway lets pass, the agent's own permissions still judge; what runs in a sandbox is
    allowed. A hook that fails blocks the call.
    """
    hooks = _Hooks(Bridge(gateway), server, sandbox_bash, own_server)
    return {
        "PreToolUse": [HookMatcher(hooks=[hooks.before], on_failure="block")],
        "PostToolUse": [HookMatcher(hooks=[hooks.after])],
        "PostToolUseFailure": [HookMatcher(hooks=[hooks.after])],
        "Stop": [HookMatcher(hooks=[hooks.stopped])],
    }


class _Open:
    """A call between its hooks."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.allowed: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self.ran: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Outcome]


class _Hooks:
    def __init__(self, bridge: Bridge, server: str, sandbox_bash: bool, own_server: str) -> None:
        self._bridge = bridge
        self._server = server
        self._sandbox_bash = sandbox_bash
        self._own = f"mcp__{own_server}__"
        self._open: dict[str, _Open] = {}

    async def before(
        self, given: Any, tool_use_id: str | None, context: HookContext
    ) -> HookJSONOutput:
        """PreToolUse."""
        tool = given["tool_name"]
        if tool.startswith(self._own):
            return {}
        open_ = _Open(given.get("session_id", ""))
        call = Call(
            tool=tool, arguments=given["tool_input"], server=self._server, client=CLIENT,
            session=open_.session,
        )  # fmt: skip

        async def between(judged: Call) -> Ran:
            open_.allowed.set_result(judged)
            return await open_.ran

        open_.task = asyncio.create_task(self._bridge.aaround(call, between))
        waiting: list[asyncio.Future[Any]] = [open_.task, open_.allowed]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not open_.allowed.done():
            outcome = open_.task.result()  # refused, or an error that blocks the call
            return _decision("deny", f"[{outcome.reason}] {outcome.text}")
        self._keep(tool_use_id or given["tool_use_id"], open_)
        arguments = dict(open_.allowed.result().arguments)
        if tool == "Bash" and self._sandbox_bash:
            if arguments.get("run_in_background"):
                why = "a command in the background would outlive its sandbox; run it without"
                await self._end(tool_use_id or given["tool_use_id"], _failed(why))
                return _decision("deny", why)
            command = self._sandboxed(str(arguments.get("command", "")))
            return _decision("allow", "in Purple's sandbox", {**arguments, "command": command})
        if arguments != given["tool_input"]:
            return _decision("ask", "arguments in their canonical form", arguments)
        return {}

    async def after(
        self, given: Any, tool_use_id: str | None, context: HookContext
    ) -> HookJSONOutput:
        """PostToolUse, PostToolUseFailure."""
        failed = given["hook_event_name"] == "PostToolUseFailure"
        answer = given.get("error") if failed else given.get("tool_response")
        text = answer if isinstance(answer, str) else to_json(answer, fallback=repr).decode()
        ran = _failed(text) if failed else Ran(result=text_result(text))
        outcome = await self._end(tool_use_id or given["tool_use_id"], ran)
        if outcome is None or outcome.result == ran.result or failed:
            return {}
        # A stage has changed the text: the model must not see the original.
        replaced: Any = {"hookEventName": "PostToolUse", "updatedToolOutput": outcome.text}
        return {"hookSpecificOutput": replaced}

    async def stopped(
        self, given: Any, tool_use_id: str | None, context: HookContext
    ) -> HookJSONOutput:
        """Stop: what is still open has not been carried out."""
        session = given.get("session_id", "")
        for key, open_ in list(self._open.items()):
            if open_.session == session:
                del self._open[key]
                open_.task.cancel()
        return {}

    def _keep(self, key: str, open_: _Open) -> None:
        self._open[key] = open_
        while len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open))).task.cancel()

    async def _end(self, key: str, ran: Ran) -> Outcome | None:
        open_ = self._open.pop(key, None)
        if open_ is None:
            return None
        open_.ran.set_result(ran)
        return await open_.task

    def _sandboxed(self, command: str) -> str:
        gateway = self._bridge.gateway
        words = [
            sys.executable, "-m", "purplebox.gateway.cli", "run", "-p", gateway.policy.name,
            "-w", str(gateway.workspace.resolve()), "--", "/bin/sh", "-c", command,
        ]  # fmt: skip
        return shlex.join(words)


def _failed(text: str) -> Ran:
    return Ran(result=text_result(text, is_error=True), reason=Reason.OPERATION_FAILED)


def _decision(
    decision: Literal["allow", "deny", "ask"], why: str, arguments: dict[str, Any] | None = None
) -> HookJSONOutput:
    said: dict[str, Any] = {
        "hookEventName": "PreToolUse", "permissionDecision": decision,
        "permissionDecisionReason": why,
    }  # fmt: skip
    if arguments is not None:
        said["updatedInput"] = arguments
    return {"hookSpecificOutput": cast(Any, said)}
