"""What the gateway adds to a forwarded tools/call, beside a bare pipe and the SDK's transports.

    .venv/bin/python benchmarks/wire.py [--rounds 5] [--calls 400]   # stdio
    .venv/bin/python benchmarks/wire.py --http                       # streamable HTTP, 2026-07-28
    .venv/bin/python benchmarks/wire.py --large                      # a result of 50 MB, over stdio
    .venv/bin/python benchmarks/wire.py --memory 1000000             # resident memory over so many calls

In one run, interleaved: the echo server directly; behind a bare asyncio and JSON pipe; behind a frame
pump on the SDK's stock transports; behind `purple wrap` (sandbox, decision and record included).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
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
    elif "bytes" in m.get("params", {}).get("arguments", {}):
        r = {"content": [{"type": "text", "text": "x" * m["params"]["arguments"]["bytes"]}]}
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
BARE_HTTP = r"""
import asyncio, json, sys, uvicorn
async def app(scope, receive, send):
    data = b""
    while True:
        part = await receive()
        data += part.get("body", b"")
        if not part.get("more_body"):
            break
    async with lock:
        process.stdin.write(json.dumps(json.loads(data)).encode() + b"\n")
        body = await process.stdout.readline()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
async def main():
    global process, lock
    lock = asyncio.Lock()
    process = await asyncio.create_subprocess_exec(*sys.argv[2:], stdin=-1, stdout=-1)
    await uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]), log_level="error", lifespan="off", loop="asyncio")).serve()
asyncio.run(main())
"""
SDK_HTTP = r"""
import sys, uvicorn
from mcp.server import MCPServer
server = MCPServer("echo")
@server.tool()
def echo(message: str) -> str:
    return message
uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), log_level="error")
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

    async def stop(self) -> None:
        self.process.terminate()
        await self.process.wait()

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


CALL: dict[str, Any] = {
    "method": "tools/call",
    "params": {"name": "echo", "arguments": {"message": "hi"}},
}


class HttpClient:
    """A raw client of one URL, on one connection, that is always open."""

    def __init__(self, port: int) -> None:
        self.port = port
        meta: dict[str, Any] = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {}}  # fmt: skip
        params = {**CALL["params"], "_meta": meta}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        self.request = (
            f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            "accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n"
            f"mcp-method: tools/call\r\nmcp-name: echo\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def open(self) -> None:
        for _ in range(200):
            try:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
                return
            except OSError:
                await asyncio.sleep(0.05)
        raise SystemExit(f"nothing listens on {self.port}")

    async def call(self) -> None:
        self.writer.write(self.request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"failed: {head.decode()}")
        if b"content-length: " in head:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await self.reader.readexactly(length)
        else:
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        if b'"result"' not in body:
            raise SystemExit(f"failed: {body.decode()}")


def commands_in(scratch: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """The echo server, the beginning of `purple wrap` in front of it, and the environment."""
    workspace = scratch / "workspace"
    workspace.mkdir()
    programs = {
        "echo": ECHO,
        "bare": BARE,
        "sdk": SDK,
        "bare_http": BARE_HTTP,
        "sdk_http": SDK_HTTP,
    }
    for name, text in programs.items():
        (workspace / f"{name}.py").write_text(text)
    echo = [os.path.realpath(sys.executable), str(workspace / "echo.py")]
    return (
        echo,
        ["wrap", "-w", str(workspace)],
        {**os.environ, "XDG_STATE_HOME": str(scratch / "state")},
    )


async def compare(rounds: int, calls: int, scratch: Path) -> None:
    """Print a table: stdio."""
    echo, wrap, env = commands_in(scratch)
    programs = str(scratch / "workspace")
    purple = [sys.executable, "-m", "purplebox.gateway.cli"]
    commands = {
        "direct": echo,
        "bare pipe": [echo[0], f"{programs}/bare.py", *echo],
        "SDK frame pump": [sys.executable, f"{programs}/sdk.py", *echo],
        "purple wrap": [*purple, *wrap, "--", *echo],
    }  # fmt: skip
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
        await client.stop()


async def compare_http(rounds: int, calls: int, scratch: Path) -> None:
    """Print a table: streamable HTTP."""
    echo, wrap, env = commands_in(scratch)
    programs, ports = str(scratch / "workspace"), free_ports(3)
    purple = [sys.executable, "-m", "purplebox.gateway.cli", *wrap]
    commands = {
        "uvicorn and a bare pipe": [sys.executable, f"{programs}/bare_http.py", str(ports[0]), *echo],
        "SDK server, nothing behind it": [sys.executable, f"{programs}/sdk_http.py", str(ports[1])],
        "purple wrap --http": [*purple, "--http", f"127.0.0.1:{ports[2]}", "--", *echo],
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        clients: dict[str, list[HttpClient]] = {}
        for port, (name, command) in zip(ports, commands.items(), strict=True):
            nothing = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(*command, env=env, stderr=nothing)
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            clients[name] = [HttpClient(port) for _ in range(16)]
        await measure_http(clients, rounds, calls)


async def measure_http(clients: dict[str, list[HttpClient]], rounds: int, calls: int) -> None:
    """Print the table, servers being up or about to be."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, some in clients.items():
            for client in some:  # anew: servers close what is idle, meanwhile for others
                await client.open()
                await client.call()
            for _ in range(calls):
                start = time.perf_counter()
                await some[0].call()
                times[name].append(time.perf_counter() - start)

            async def many(client: HttpClient) -> None:
                for _ in range(calls // 4):
                    await client.call()

            start = time.perf_counter()
            await asyncio.gather(*map(many, some))
            rates[name].append(calls // 4 * 16 / (time.perf_counter() - start))
    print("| path | p50 ms | calls/s on 16 connections |\n|---|---|---|")
    for name in clients:
        p50, rate = statistics.median(times[name]), statistics.median(rates[name])
        print(f"| {name} | {p50 * 1e3:.3f} | {rate:.0f} |")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for one in sockets:
        one.close()
    return ports


async def large(scratch: Path, size: int = 50_000_000) -> None:
    """Print how long a large result takes."""
    echo, wrap, env = commands_in(scratch)
    purple = [sys.executable, "-m", "purplebox.gateway.cli", *wrap, "--", *echo]
    bare = [echo[0], str(scratch / "workspace" / "bare.py"), *echo]
    for name, command in (("direct", echo), ("bare pipe", bare), ("purple wrap", purple)):
        client = Client()
        await client.start(command, env)
        await client.latencies(20)
        params = {"name": "echo", "arguments": {"bytes": size}}
        found: list[float] = []
        for _ in range(3):
            start = time.perf_counter()
            answer = await client.call({"method": "tools/call", "params": params})
            found.append(time.perf_counter() - start)
            assert len(answer["result"]["content"][0]["text"]) == size
        print(f"{name}: {statistics.median(found):.2f} s")
        await client.stop()


async def memory(calls: int, scratch: Path) -> None:
    """Print resident memory of the gateway while it forwards so many calls."""
    echo, wrap, env = commands_in(scratch)
    client = Client()
    await client.start([sys.executable, "-m", "purplebox.gateway.cli", *wrap, "--", *echo], env)
    await client.latencies(1000)
    for step in range(11):
        text = Path(f"/proc/{client.process.pid}/status").read_text()
        resident = next(int(x.split()[1]) for x in text.splitlines() if x.startswith("VmRSS"))
        print(f"after {calls * step // 10} calls: {resident / 1024:.1f} MiB", flush=True)
        if step < 10:
            await client.throughput(calls // 10, 64)
    await client.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--memory", type=int, default=0, metavar="CALLS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="purple-bench-") as directory:
        if given.memory:
            asyncio.run(memory(given.memory, Path(directory)))
        elif given.large:
            asyncio.run(large(Path(directory)))
        else:
            run = compare_http if given.http else compare
            asyncio.run(run(given.rounds, given.calls, Path(directory)))
