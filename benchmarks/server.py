"""A `shell` call of `true` over stdio: Purple beside the same server without a sandbox.

Run it: python benchmarks/server.py [--rounds N]
The peer is an MCP server of the same SDK whose only tool runs the command with
asyncio.create_subprocess_exec. Both are real processes on stdio, spoken to by the SDK's client,
interleaved. Purple's call is also decided, recorded twice on disk and put on a span.
Then: from `git clone` to a first sandboxed call, and `purple --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcp import Client, StdioServerParameters

PLAIN = """
import asyncio
import mcp_types as types
from mcp.server import Server
from mcp.server.stdio import stdio_server

async def listed(context, params):
    schema = {"type": "object", "properties": {"command": {"type": "string"}}}
    return types.ListToolsResult(tools=[types.Tool(name="shell", input_schema=schema)])

async def called(context, params):
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", params.arguments["command"], start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return types.CallToolResult(content=[types.TextContent(type="text", text=out.decode())])

async def main():
    server = Server("plain", on_list_tools=listed, on_call_tool=called)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())

asyncio.run(main())
"""


async def compare(rounds: int, workspace: Path) -> None:
    """Print the medians of both servers."""
    env = {**os.environ, "XDG_STATE_HOME": str(workspace.parent / "state")}
    plain = StdioServerParameters(command=sys.executable, args=["-c", PLAIN], env=env)
    ours = StdioServerParameters(
        command=sys.executable,
        args=["-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)],
        env=env,
    )
    times: dict[str, list[float]] = {"without sandbox": [], "purple": []}
    async with Client(plain) as first, Client(ours) as second:
        for number in range(rounds + 5):
            for name, client in (("without sandbox", first), ("purple", second)):
                await asyncio.sleep(0.02)
                start = time.perf_counter()
                result = await client.call_tool("shell", {"command": "true"})
                if result.is_error:
                    raise SystemExit(f"{name}: {result}")
                if number >= 5:
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["without sandbox"])
    print("\nshell true over stdio\n| server | median ms | × without sandbox |\n|---|---|---|")
    for name, found in times.items():
        print(
            f"| {name} | {statistics.median(found) * 1000:.2f} | {statistics.median(found) / base:.2f} |"
        )


def newcomer(source: Path, scratch: Path) -> None:
    """Print the seconds from `git clone` to a first sandboxed call, and of `purple --help`."""
    start = time.perf_counter()
    clone = scratch / "clone"
    subprocess.run(["git", "clone", "-q", str(source), str(clone)], check=True)
    install = "python3 -m venv .venv && .venv/bin/pip install -q ."
    subprocess.run(install, shell=True, check=True, cwd=clone, stderr=subprocess.DEVNULL)
    purple = str(clone / ".venv" / "bin" / "purple")
    subprocess.run([purple, "run", "--", "true"], check=True, cwd=clone)
    print(f"\nfrom git clone to a first sandboxed call: {time.perf_counter() - start:.1f} s")
    times: list[float] = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run([purple, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    print(f"purple --help: {statistics.median(times):.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    with tempfile.TemporaryDirectory(prefix="purple-bench-") as directory:
        scratch = Path(directory)
        scratch.chmod(0o755)
        (scratch / "workspace").mkdir()
        asyncio.run(compare(parser.parse_args().rounds, scratch / "workspace"))
        newcomer(Path(__file__).parents[1], scratch)
