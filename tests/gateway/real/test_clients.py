"""Clients of others, each using the gateway's tools: what it has listed and called is what came."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
# Each prints the names that it lists and what the shell said, as JSON; run with the gateway's command.
FASTMCP = """
import asyncio, json, sys
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
async def main():
    async with Client(StdioTransport(sys.argv[1], sys.argv[2:])) as client:
        names = [tool.name for tool in await client.list_tools()]
        result = await client.call_tool("shell", {"command": "echo from $((6 * 7))"})
        print(json.dumps([names, result.content[0].text]))
asyncio.run(main())
"""
LANGCHAIN = """
import asyncio, json, sys
from langchain_mcp_adapters.client import MultiServerMCPClient
async def main():
    entry = {"transport": "stdio", "command": sys.argv[1], "args": sys.argv[2:]}
    tools = await MultiServerMCPClient({"purple": entry}).get_tools()
    shell = next(tool for tool in tools if tool.name == "shell")
    said = await shell.ainvoke({"command": "echo from $((6 * 7))"})
    print(json.dumps([[tool.name for tool in tools], said if isinstance(said, str) else said[0]["text"]]))
asyncio.run(main())
"""
AGENTS = """
import asyncio, json, sys
from agents.mcp import MCPServerStdio
async def main():
    params = {"command": sys.argv[1], "args": sys.argv[2:]}
    async with MCPServerStdio(params=params, client_session_timeout_seconds=30) as server:
        names = [tool.name for tool in await server.list_tools()]
        result = await server.call_tool("shell", {"command": "echo from $((6 * 7))"})
        print(json.dumps([names, result.content[0].text]))
asyncio.run(main())
"""
SDK = """
import asyncio, json, sys
from mcp import Client, StdioServerParameters
async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])
    for mode in ("legacy", "auto", "2026-07-28"):
        async with Client(server, mode=mode) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            result = await client.call_tool("shell", {"command": "echo from $((6 * 7))"})
    print(json.dumps([names, result.content[0].text]))
asyncio.run(main())
"""


@pytest.fixture
def gateway(workspace: Path) -> list[str]:
    """The command that serves the built-in tools on stdio."""
    return [sys.executable, "-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)]


@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("", SDK),
        ("fastmcp>=4,<5", FASTMCP),
        ("langchain-mcp-adapters==0.3.2", LANGCHAIN),  # needs mcp below 2, so nothing is shared
        ("openai-agents>=0.24,<1", AGENTS),
    ],
)
def test_python_clients(
    package: str, program: str, gateway: list[str], make_venv: Callable[..., Path]
) -> None:
    name = package.partition("=")[0].strip(">")
    python = str(make_venv(name, package) / "bin/python") if package else sys.executable
    run = subprocess.run(
        [python, "-c", program, *gateway], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    names, said = json.loads(run.stdout)
    assert "read_file" in names
    assert "from 42" in said


def test_inspectors_command_line(
    npm_install: Callable[..., Path], with_node: dict[str, str], gateway: list[str]
) -> None:
    inspector = npm_install("@modelcontextprotocol/inspector@2.12.0") / "mcp-inspector"

    def inspect(*words: str) -> str:
        run = subprocess.run(
            [inspector, "--cli", *gateway, *words], check=False, capture_output=True, text=True,
            env={**with_node, "HOME": os.environ["HOME"]}, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert "read_file" in inspect("--method", "tools/list")
    call = ("--method", "tools/call", "--tool-name", "shell")
    assert "from 42" in inspect(*call, "--tool-arg", "command=echo from $((6 * 7))")
