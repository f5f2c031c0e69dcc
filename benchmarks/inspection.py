"""What `tls: inspect` costs: curl to a TLS server directly and through the inspecting gate.

Run it: python benchmarks/inspection.py [--rounds N]
Server (a process of its own), gate (this process) and curl share the machine; each round runs every
case once. Figures are medians and their ratios; only ratios inside one run mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import ssl
import statistics
import subprocess
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from purplebox.isolation.egress.ca import Authority
from purplebox.isolation.egress.credentials import Vault
from purplebox.isolation.egress.http import Judgement
from purplebox.isolation.egress.inspect import Interceptor
from purplebox.isolation.egress.tls import SocketStream

HOST = "bench.test"
LARGE_BYTES = 128 << 20


def serve(pipe: Connection) -> None:
    """A server that sends `LARGE_BYTES` for /large and a few bytes for anything else."""
    authority = Authority()
    large = b"x" * (1 << 20)

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = LARGE_BYTES if b" /large " in head else 5
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                while size > 0:
                    writer.write(large[: min(size, len(large))])
                    size -= len(large)
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async def main() -> None:
        context = authority.context(HOST, "http/1.1")
        server = await asyncio.start_server(on_client, "127.0.0.1", 0, ssl=context)
        pipe.send((server.sockets[0].getsockname()[1], authority.certificate))
        await server.serve_forever()

    asyncio.run(main())


async def curl(port: int, bundle: Path, path: str, number: int = 1) -> tuple[float, float]:
    """Seconds in all, bytes a second."""
    url = f"https://{HOST}:{port}{path}"
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--http1.1", "--noproxy", "*", "--resolve", f"{HOST}:{port}:127.0.0.1",
        "--cacert", str(bundle), "-w", "%{stderr}%{time_total} %{speed_download}\n",
        *[url] * number, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines = (await process.communicate())[1].decode().splitlines()
    fields = [[float(text) for text in line.split()] for line in lines]
    return sum(f[0] for f in fields), fields[-1][1]


async def measure(rounds: int, port: int, certificate: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        direct, inside = Path(directory, "direct.pem"), Path(directory, "inside.pem")
        direct.write_text(certificate)
        authority = Authority()
        inside.write_text(authority.certificate)
        interceptor = Interceptor(authority, Vault(()), [direct])

        async def dial() -> SocketStream:
            return SocketStream(*await asyncio.open_connection("127.0.0.1", port, limit=256 << 10))

        async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await interceptor.serve(
                SocketStream(reader, writer), HOST, gate_port, dial=dial, opaque=False,
                decide=lambda *_: Judgement(allowed=True, rule="bench"), on_exchange=lambda _: None,
            )  # fmt: skip

        gate = await asyncio.start_server(on_client, "127.0.0.1", 0, limit=256 << 10)
        gate_port = gate.sockets[0].getsockname()[1]
        ways = {"direct": (port, direct), "inspect": (gate_port, inside)}
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, (at, bundle) in ways.items():
                for case, value in (
                    ("MB/s", (await curl(at, bundle, "/large"))[1] / 1e6),
                    ("ms, connect and request", (await curl(at, bundle, "/"))[0] * 1e3),
                    ("ms, 50 requests kept alive", (await curl(at, bundle, "/", 50))[0] * 1e3),
                ):
                    found.setdefault(f"{case}|{way}", []).append(value)
        gate.close()
        print("| case | direct | inspect | × direct |\n|---|---|---|---|")
        for case in dict.fromkeys(key.partition("|")[0] for key in found):
            one, two = (statistics.median(found[f"{case}|{way}"]) for way in ways)
            print(f"| {case} | {one:.1f} | {two:.1f} | {two / one:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port, certificate = ours.recv()
    print(f"{ssl.OPENSSL_VERSION}")
    try:
        asyncio.run(measure(rounds, port, certificate))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
