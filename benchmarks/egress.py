"""The way out beside a direct connection, squid, tinyproxy and srt: bandwidth, latency, connections a second.

Run it: python benchmarks/egress.py [--rounds N]
One server (a process of its own) on loopback; the same client program, outside for the direct connection
and the two proxies (CONNECT), in a sandbox of srt (npm's @anthropic-ai/sandbox-runtime; its proxies by CONNECT),
each left out and said so where it is not installed; inside a sandbox for the
gate: knowing nothing of it, with a name that is resolved for each connection (one that the policy has as such, one by a pattern) or once, and
by CONNECT. Each round runs every way once; figures are medians,
and only ratios inside one run mean anything. Server, gate and client share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path

from purplebox.isolation import Engine
from purplebox.policies import Policy, load_policy
from purplebox.policies.addresses import Address
from purplebox.policies.model import Network

LARGE_BYTES = 512 << 20
IDLE = 1000
# A request is a zero byte and how many bytes are wanted back; it looks like neither TLS nor HTTP.
CLIENT = """
import base64, json, os, socket, sys, time
from urllib.parse import unquote, urlsplit
host, port, proxy, large, what = json.loads(sys.argv[1])
if what == "once": host = socket.gethostbyname(host)
user = urlsplit(os.environ.get("HTTP_PROXY", ""))
auth = b"" if not user.username else b"Proxy-Authorization: Basic " + base64.b64encode(
    f"{unquote(user.username)}:{unquote(user.password)}".encode()) + b"\\r\\n"
def connect():
    s = socket.create_connection(("127.0.0.1", proxy) if proxy else (host, port), 30)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if proxy:
        s.sendall(b"CONNECT %s:%d HTTP/1.1\\r\\nHost: %s:%d\\r\\n" % ((host.encode(), port) * 2) + auth + b"\\r\\n")
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            got = s.recv(4096)
            assert got, head
            head += got
        assert b" 200 " in head, head
    return s
def once(size=1):
    s = connect()
    s.sendall(b"\\0" + size.to_bytes(7, "big"))
    buffer, left = bytearray(min(size, 1 << 20)), size
    while left:
        left -= s.recv_into(buffer)
    s.close()
def timed(action):
    began = time.perf_counter(); action(); return time.perf_counter() - began
once()
if what == "idle":
    held = [connect() for _ in range(large)]
    for s in held: s.sendall(b"\\0" + (1).to_bytes(7, "big"))
    for s in held: assert len(s.recv(1)) == 1
    print("held", flush=True); time.sleep(2.5); sys.exit()
latency = sorted(timed(once) for _ in range(100))[50]
pids, began = [], time.perf_counter()
for _ in range(8):
    pid = os.fork()
    if not pid:
        for _ in range(60): once()
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
rate = 480 / (time.perf_counter() - began)
print(json.dumps([large / timed(lambda: once(large)) / 1e6, latency * 1e3, rate]))
"""


def serve(pipe: Connection) -> None:
    chunk = memoryview(bytes(1 << 20))

    class Served(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.left, self.room = transport, 0, True

        def data_received(self, data: bytes) -> None:
            self.left = int.from_bytes(data[:8])
            self.resume_writing()

        def pause_writing(self) -> None:
            self.room = False

        def resume_writing(self) -> None:
            self.room = True
            while self.left and self.room:
                part = chunk[: min(self.left, len(chunk))]
                self.left -= len(part)
                self.transport.write(part)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Served, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def proxies(directory: Path) -> Generator[dict[str, int]]:
    """Ports of those that are installed."""
    found: dict[str, int] = {}
    running: list[subprocess.Popen[bytes]] = []
    configurations = {
        "squid": ("-N", "-f", "http_port 127.0.0.1:{0}\nhttp_access allow all\ncache deny all\n"
                  "access_log none\ncache_log /dev/null\npid_filename none\n"),
        "tinyproxy": ("-d", "-c", "Port {0}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients 200\n"
                      "LogLevel Critical\n"),
    }  # fmt: skip
    for name, (*flags, text) in configurations.items():
        program = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        if program is None:
            print(f"{name} is not installed: left out", file=sys.stderr)
            continue
        port = free_port()
        path = directory / f"{name}.conf"
        path.write_text(text.format(port))
        quiet = subprocess.DEVNULL
        running.append(subprocess.Popen([program, *flags, str(path)], stdout=quiet, stderr=quiet))
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                found[name] = port
                break
            time.sleep(0.05)
        else:
            print(f"{name} did not start: left out", file=sys.stderr)
    try:
        yield found
    finally:
        for process in running:
            process.terminate()
            process.wait()


def sandbox_runtime(directory: Path) -> list[str]:
    """The start of a command line that runs something in srt; empty where it is not installed."""
    program = shutil.which("srt")
    if program is None:
        print("srt is not installed: left out", file=sys.stderr)
        return []
    settings = directory / "srt.json"
    network = {"allowedDomains": ["127.0.0.1"], "deniedDomains": []}
    files = {"denyRead": [], "allowWrite": ["/tmp"], "denyWrite": []}
    settings.write_text(json.dumps({"network": network, "filesystem": files}))
    return [program, "--settings", str(settings)]


async def outside(arguments: list[object], within: Sequence[str] = ()) -> list[float]:
    argv = [sys.executable, "-c", CLIENT, json.dumps(arguments)]
    if within:
        argv = [*within, "-c", shlex.join(argv)]  # it quotes no arguments
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    return [float(value) for value in json.loads(said)]


async def inside(engine: Engine, arguments: list[object]) -> list[float]:
    result = await engine.run(["python3", "-c", CLIENT, json.dumps(arguments)])
    assert result.exit_code == 0, result.stderr.decode()
    return [float(value) for value in json.loads(result.stdout)]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def idle(engine: Engine, port: int) -> float:
    """Bytes of the gateway's memory for each idle connection."""
    arguments = ["bench.test", port, 0, IDLE, "idle"]
    held = asyncio.Event()

    def on_output(_name: str, _data: bytes) -> None:
        held.set()

    before = resident_bytes()
    run = asyncio.create_task(
        engine.run(
            ["python3", "-c", CLIENT, json.dumps(arguments)],
            on_output=on_output,
        )
    )
    await held.wait()
    grown = resident_bytes() - before
    result = await run
    assert result.exit_code == 0, result.stderr.decode()
    return grown / IDLE


def policy(port: int) -> Policy:
    allow = [
        {"host": host, "ports": [port], "addresses": ["127.0.0.1"]}
        for host in ("bench.test", "*.pattern.test")
    ]
    network = Network.model_validate({"isolated": False, "allow": allow}, strict=False)
    return load_policy("base").model_copy(update={"network": network})


async def measure(rounds: int, port: int) -> None:
    async def resolve(_: str) -> Sequence[Address]:
        return [ip_address("127.0.0.1")]

    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        workspace = Path(directory, "workspace")
        workspace.mkdir()
        within = sandbox_runtime(Path(directory))
        with proxies(Path(directory)) as others:
            async with Engine(policy(port), workspace, resolve=resolve) as engine:
                per_connection = await idle(engine, port)
                for _ in range(rounds):
                    rest = [LARGE_BYTES, "each"]
                    found.setdefault("direct", []).append(
                        await outside(["127.0.0.1", port, 0, *rest])
                    )
                    found.setdefault("purple, nothing set", []).append(
                        await inside(engine, ["bench.test", port, 0, *rest])
                    )
                    found.setdefault("purple, by a pattern", []).append(
                        await inside(engine, ["a.pattern.test", port, 0, *rest])
                    )
                    found.setdefault("purple, name resolved once", []).append(
                        await inside(engine, ["bench.test", port, 0, LARGE_BYTES, "once"])
                    )
                    found.setdefault("purple, CONNECT", []).append(
                        await inside(engine, ["bench.test", port, 1023, *rest])
                    )
                    for name, at in others.items():
                        found.setdefault(f"{name}, CONNECT", []).append(
                            await outside(["127.0.0.1", port, at, *rest])
                        )
                    if within:
                        found.setdefault("srt", []).append(
                            await outside(["127.0.0.1", port, 3128, *rest], within)
                        )
    medians = {
        way: [statistics.median(c) for c in zip(*rows, strict=True)] for way, rows in found.items()
    }
    base = medians["direct"]
    print(
        "| way | MB/s | × direct | ms, connect + request | × direct | connections/s at 8 | × direct |"
    )
    print("|---|---|---|---|---|---|---|")
    for way, row in medians.items():
        cells = " | ".join(
            f"{value:.{digits}f} | {value / one:.2f}"
            for value, one, digits in zip(row, base, (0, 3, 0), strict=True)
        )
        print(f"| {way} | {cells} |")
    print(f"\n{IDLE} idle connections: {per_connection / 1000:.1f} kB of the gateway's memory each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        asyncio.run(measure(rounds, ours.recv()))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
