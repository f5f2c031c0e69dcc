"""The MCP server: built-in tools over stdio, in both protocol eras (the SDK's)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

from purplebox import __version__

from ..policies import Policy
from .audit import spans
from .gateway import Gateway

_PROGRESS_SECONDS = 0.1  # running output is gathered for this long, so that a flood stays small


def build_server(gateway: Gateway) -> Server[Any]:
    """An SDK server whose tools are ours; it can be served on any of the SDK's transports."""

    async def list_tools(
        _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools = [types.Tool.model_validate(tool.to_wire()) for tool in gateway.tools()]
        return types.ListToolsResult(tools=tools)

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        waiting: list[str] = []
        reporter = asyncio.create_task(_report(context, waiting))
        try:
            with spans.serving():
                outcome = await gateway.call(
                    params.name, params.arguments or {}, progress=waiting.append
                )
        finally:
            reporter.cancel()
        return types.CallToolResult.model_validate(outcome.result)

    policy = gateway.policy
    return Server(
        "purple",
        version=__version__,
        instructions=(
            f"Tools run in a sandbox under policy {policy.name}: {policy.description} "
            "A refusal names its rule; retrying the same call will not change it."
        ),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _report(context: ServerRequestContext[Any], waiting: list[str]) -> None:
    count = 0
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        if waiting:
            text = "".join(waiting)[-4096:]
            waiting.clear()
            count += 1
            await context.session.report_progress(count, message=text)


async def serve_stdio(policy: Policy, workspace: Path) -> None:
    """Serve on stdin and stdout until the client closes them.

    Raises:
        SetupError: the sandbox cannot be built, or less than the policy requires is enforced.
        OSError: the audit log cannot be written.
    """
    spans.configure()
    async with Gateway(policy, workspace) as gateway:
        server = build_server(gateway)
        async with stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())
