"""What each framework's adapter adds to a tool call, beside the bare framework, interleaved in one run.

    tests/frameworks/run -k nothing; .venv-frameworks/bin/python benchmarks/adapters.py [--rounds 60]

Two rows a framework. "decided": a tool that does nothing, in this process, called by the framework's own
way, bare and under the gateway (verdict, record, span). "command": `true` run by the framework's own local
shell, or `subprocess.run`, and by the adapter in a sandbox of its own. Medians, and how often the bare one.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from agents import ShellActionRequest, ShellCallData, ShellCommandRequest
from agents.sandbox.sandboxes.unix_local import UnixLocalSandboxClient
from deepagents.backends.local_shell import LocalShellBackend
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage
from pydantic_ai.workspaces import LocalWorkspaceBackend

from purplebox import Gateway
from purplebox.integrations.claude_agent import purple_hooks
from purplebox.integrations.deepagents import PurpleBackend
from purplebox.integrations.langchain import PurpleMiddleware, PurpleToolkit, sandboxed
from purplebox.integrations.openai_agents import PurpleSandboxClient, purple_shell
from purplebox.integrations.pydantic_ai import PurpleToolset, PurpleWorkspace

Work = Callable[[], Awaitable[Any]]


@tool
def nothing(n: int) -> int:
    """Do nothing."""
    return n


async def bare_subprocess() -> None:
    await asyncio.to_thread(subprocess.run, ["/bin/sh", "-c", "true"], capture_output=True)


def langchain(gateway: Gateway) -> dict[str, tuple[Work, Work]]:
    middleware = PurpleMiddleware(gateway)
    call: Any = {"name": "nothing", "args": {"n": 1}, "id": "1", "type": "tool_call"}
    request = ToolCallRequest(call, nothing, {}, cast(Any, None))

    async def handler(request: ToolCallRequest) -> ToolMessage:
        message: ToolMessage = await nothing.ainvoke(cast(Any, request.tool_call))
        return message

    shell = PurpleToolkit(gateway, ["shell"]).get_tools()[0]
    inside = sandboxed(nothing, gateway)
    return {
        "LangChain, decided": (
            lambda: handler(request), lambda: middleware.awrap_tool_call(request, handler),
        ),
        "LangChain, command": (bare_subprocess, lambda: shell.ainvoke({"command": "true"})),
        "LangChain, a function in a sandbox": (
            lambda: nothing.ainvoke({"n": 1}), lambda: inside.ainvoke({"n": 1}),
        ),
    }  # fmt: skip


def deepagents(gateway: Gateway) -> dict[str, tuple[Work, Work]]:
    bare = LocalShellBackend(root_dir=gateway.workspace, virtual_mode=False)
    ours = PurpleBackend(gateway)
    path = str(Path(gateway.workspace, "file").resolve())
    return {
        "deepagents, command": (lambda: bare.aexecute("true"), lambda: ours.aexecute("true")),
        "deepagents, read": (lambda: bare.aread(path), lambda: ours.aread(path)),
    }


def pydantic_ai(gateway: Gateway) -> dict[str, tuple[Work, Work]]:
    tools = FunctionToolset[None]()

    @tools.tool_plain
    def nothing(n: int) -> int:
        """Do nothing."""
        return n

    context: RunContext[None] = RunContext(deps=None, model=TestModel(), usage=RunUsage())
    ours = PurpleToolset(tools, gateway)

    def call(toolset: Any) -> Work:
        async def go() -> None:
            known = (await tools.get_tools(context))["nothing"]
            await toolset.call_tool("nothing", {"n": 1}, context, known)

        return go

    local, workspace = LocalWorkspaceBackend(gateway.workspace), PurpleWorkspace(gateway)
    path = str(Path(gateway.workspace, "file").resolve())
    return {
        "pydantic-ai, decided": (call(tools), call(ours)),
        "pydantic-ai, command": (
            lambda: local.run("true", shell=True), lambda: workspace.run("true", shell=True),
        ),
        "pydantic-ai, read": (lambda: local.read_bytes(path), lambda: workspace.read_bytes(path)),
    }  # fmt: skip


async def openai_agents(gateway: Gateway) -> dict[str, tuple[Work, Work]]:
    shell = purple_shell(gateway)
    action = ShellActionRequest(commands=["true"])
    request = ShellCommandRequest(cast(Any, None), ShellCallData(call_id="1", action=action))
    local = await UnixLocalSandboxClient().create()
    await local.start()
    ours = await PurpleSandboxClient(gateway).create()
    await ours.start()
    return {
        "OpenAI Agents, ShellTool": (bare_subprocess, lambda: shell(request)),
        "OpenAI Agents, sandbox": (lambda: local.exec("true"), lambda: ours.exec("true")),
    }


def claude_agent(gateway: Gateway) -> dict[str, tuple[Work, Work]]:
    hooks: Any = purple_hooks(gateway)
    before, after = hooks["PreToolUse"][0].hooks[0], hooks["PostToolUse"][0].hooks[0]
    call = {"tool_name": "Read", "tool_input": {"file_path": "/x"}, "tool_use_id": "1", "session_id": "1"}  # fmt: skip

    async def both() -> None:
        await before({**call, "hook_event_name": "PreToolUse"}, "1", {"signal": None})
        given = {**call, "hook_event_name": "PostToolUse", "tool_response": "x"}
        await after(given, "1", {"signal": None})

    async def no_hook() -> None: ...

    return {"Claude Agent SDK, both hooks": (no_hook, both)}


async def measure(work: Work) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def main(rounds: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="purple-adapters-"))
    (directory / "workspace").mkdir()
    (directory / "workspace" / "file").write_text("x\n" * 100)
    try:
        async with Gateway(
            workspace=directory / "workspace", audit_log=directory / "log"
        ) as gateway:
            rows = {
                **langchain(gateway), **deepagents(gateway), **pydantic_ai(gateway),
                **await openai_agents(gateway), **claude_agent(gateway),
            }  # fmt: skip
            times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in rows}
            for turn in range(rounds + 3):
                for name, (bare, ours) in rows.items():
                    # Each goes first every other time: what one leaves to be done, the next pays.
                    first, second = (bare, ours) if turn % 2 else (ours, bare)
                    pair = await measure(first), await measure(second)
                    pair = pair if turn % 2 else pair[::-1]
                    if turn >= 3:  # the first warm up
                        times[name][0].append(pair[0])
                        times[name][1].append(pair[1])
    finally:
        shutil.rmtree(directory)
    print("| adapter | bare | with Purple | added |\n|---|---|---|---|")
    for name, pair in times.items():
        bare, ours = (statistics.median(values) for values in pair)
        print(f"| {name} | {bare:.2f} ms | {ours:.2f} ms | {ours - bare:.2f} ms |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    asyncio.run(main(parser.parse_args().rounds))
