"""What the gateway adds to a forwarded tools/call over stdio, beside a bare pipe and the SDK's transports.

    .venv/bin/python benchmarks/wire.py [--rounds 5] [--calls 400]

In one run, interleaved: the echo server directly; behind a bare asyncio and JSON pipe; behind a frame
pump on the SDK's stock transports; behind `purple wrap` (sandbox, decision and record included).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ECHO = r"""
import sys, json
for line in sys.stdin.buffer:
    m = json.loads(line)
    if m.get("method") == "initialize":
        r = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "echo", "version": "1"}}
    else:
        r = {"content": [{"type": "text", "text": m.get("params", {}).get("arguments", {}).get("message", "")}]}
    if "id" in m:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}) + "\n")
        sys.stdout.flush()
"""
BARE = r"""
import asyncio, json, sys
async def streams(r, w):
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), r)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, w)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
async def pump(reader, writer):
    while line := await reader.readline():
        writer.write(json.dumps(json.loads(line)).encode() + b"\n")
        await writer.drain()
    writer.close()
async def main():
    p = await asyncio.create_subprocess_exec(*sys.argv[1:], stdin=-1, stdout=-1, limit=1 << 26)
    r, w = await streams(sys.stdin, sys.stdout)
    await asyncio.gather(pump(r, p.stdin), pump(p.stdout, w))
asyncio.run(main())
"""
SDK = r"""
import anyio, sys
from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.server.stdio import stdio_server
async def pump(r, w):
    async for m in r:
        await w.send(m)
async def main():
    async with stdio_client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])) as (ur, uw), stdio_server() as (r, w), anyio.create_task_group() as g:
        g.start_soon(pump, r, uw)
        g.start_soon(pump, ur, w)
anyio.run(main)
"""


class Client:
    """A raw client of one command."""

    async def start(self, command: list[str], env: dict[str, str]) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *command, stdin=-1, stdout=-1, stderr=asyncio.subprocess.DEVNULL, env=env, limit=1 << 26
        )
        await self.call({"method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "b", "version": "1"},
        }})  # fmt: skip
        self.send({"method": "notifications/initialized"})

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(await self.process.stdout.readline())

    async def call(self, message: dict[str, Any]) -> Any:
        self.send({"id": 1, **message})
        answer = await self.read()
        if "result" not in answer:
            raise SystemExit(f"failed: {answer}")
        return answer

    async def latencies(self, calls: int) -> list[float]:
        found: list[float] = []
        for _ in range(calls):
            start = time.perf_counter()
            await self.call(CALL)
            found.append(time.perf_counter() - start)
        return found

    async def throughput(self, calls: int, flight: int) -> float:
        sent = done = 0
        start = time.perf_counter()
        while done < calls:
            while sent < calls and sent - done < flight:
                sent += 1
                self.send({"id": sent, **CALL})
            await self.read()
            done += 1
        return calls / (time.perf_counter() - start)


CALL = {"method": "tools/call", "params": {"name": "echo", "arguments": {"message": "hi"}}}


async def compare(rounds: int, calls: int, scratch: Path) -> None:
    """Print a table."""
    workspace = scratch / "workspace"
    workspace.mkdir()
    for name, text in (("echo", ECHO), ("bare", BARE), ("sdk", SDK)):
        (workspace / f"{name}.py").write_text(text)
    python = os.path.realpath(sys.executable)
    echo = [python, str(workspace / "echo.py")]
    commands = {
        "direct": echo,
        "bare pipe": [python, str(workspace / "bare.py"), *echo],
        "SDK frame pump": [sys.executable, str(workspace / "sdk.py"), *echo],
        "purple wrap": [sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-w", str(workspace), "--", *echo],
    }  # fmt: skip
    env = {**os.environ, "XDG_STATE_HOME": str(scratch / "state")}
    clients = {name: Client() for name in commands}
    for name, command in commands.items():
        await clients[name].start(command, env)
        await clients[name].latencies(50)
    times: dict[str, list[float]] = {name: [] for name in commands}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, client in clients.items():
            times[name] += await client.latencies(calls)
            rates[name].append(await client.throughput(calls * 4, 64))
    base = statistics.median(times["direct"])
    bare = statistics.median(times["bare pipe"]) - base
    pump = statistics.median(rates["SDK frame pump"])
    print(
        "| path | p50 ms | added ms | × bare | calls/s at 64 | × SDK pump |\n|---|---|---|---|---|---|"
    )
    for name in commands:
        p50, rate = statistics.median(times[name]), statistics.median(rates[name])
        print(
            f"| {name} | {p50 * 1e3:.3f} | {(p50 - base) * 1e3:.3f} | {(p50 - base) / bare:.2f} "
            f"| {rate:.0f} | {rate / pump:.2f} |"
        )
    for client in clients.values():
        client.process.terminate()
        await client.process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="purple-bench-") as directory:
        asyncio.run(compare(given.rounds, given.calls, Path(directory)))
