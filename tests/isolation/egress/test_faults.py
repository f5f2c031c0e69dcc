"""What goes wrong between a program and its server: said clearly, with bounded memory, without leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation import SetupError
from purplebox.isolation.egress import dial
from purplebox.isolation.egress.relay import relay
from purplebox.isolation.egress.sockets import RawStream
from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio
DIRECT = "curl -sS --noproxy '*' --max-time 120"


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_reset_by_the_server_is_one_for_the_program(net: Net) -> None:
    async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"partial")
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await net.serve(resetting)
    net.names["a.test"] = ["127.0.0.1"]
    program = f"""
import errno, socket
s = socket.create_connection(("a.test", {server.port}), 60)
print(s.recv(7)); s.send(b"\\0")
try: print(s.recv(1))
except OSError as error: print(errno.errorcode[error.errno])
"""
    result = await net.python(net.policy({"host": "a.test", "ports": [server.port]}), program)
    assert result.stdout == b"b'partial'\nECONNRESET\n", result.stderr


async def test_a_server_that_is_not_there_is_said_to_be(net: Net) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        net.names["a.test"] = ["127.0.0.1"]
        policy = net.policy(
            {"host": "a.test", "ports": [port]}, {"host": "none.test", "ports": [port]}
        )
        result = await net.run(
            policy, f"curl -sS http://a.test:{port}/; curl -sS http://none.test:{port}/"
        )
    assert b"could not be reached: Connection refused [upstream_failed]" in result.stdout
    assert b"none.test does not resolve: no such name [unresolved]" in result.stdout
    assert [c.reason for c in result.connections] == [Why.UPSTREAM_FAILED, Why.UNRESOLVED]


async def test_a_silent_name_server_is_given_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "RESOLVE_SECONDS", 0.2)
    server = await net.http()
    net.names["b.test"] = ["127.0.0.1"]

    async def silent(name: str) -> list[object]:
        if name == "a.test":
            await asyncio.Event().wait()
        return list(await type(net).resolve(net, name))

    net.resolve = silent  # type: ignore[method-assign, assignment]
    rules = [{"host": f"{name}.test", "ports": [server.port]} for name in "ab"]
    ask = f"curl -sS http://a.test:{server.port}/ & curl -sS http://b.test:{server.port}/; wait"
    result = await net.run(net.policy(*rules), ask)
    assert b"no name server answered [unresolved]" in result.stdout
    assert len(server.seen) == 1  # the other name did not wait for it


async def test_a_slow_reader_holds_back_the_server_not_the_memory(net: Net) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        chunk = bytes(1 << 20)
        while True:
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)

    server = await net.serve(flood)
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = (
        "import socket, time\n"
        f"held = [socket.create_connection(('a.test', {server.port})) for _ in range(8)]\n"
        "[s.recv(1000) for s in held]; print(flush=True); time.sleep(60)"
    )
    async with net.engine(policy) as engine:
        before = resident_bytes()
        task = asyncio.create_task(engine.run(["python3", "-c", program], wall_seconds=250))
        last = -1
        while sent == 0 or sent != last:  # until nothing moves any more
            last = sent
            await asyncio.sleep(0.5)
        grown = resident_bytes() - before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # Eight connections of which each holds a buffer at the most; the kernel's are not ours.
    assert grown < 64 << 20
    assert sent < 512 << 20


@pytest.mark.parametrize("total", [1 << 30, pytest.param(10 << 30, marks=pytest.mark.slow)])
async def test_a_long_stream_passes_in_flat_memory(net: Net, total: int) -> None:

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunk = bytes(1 << 20)
        for _ in range(total >> 20):
            writer.write(chunk)
            await writer.drain()

    server = await net.serve(stream)
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = (
        f"import socket; s = socket.create_connection(('a.test', {server.port})); n = 0; b = bytearray(1 << 20)\n"
        "while got := s.recv_into(b): n += got\n"
        "print(n)"
    )
    before = resident_bytes()
    async with net.engine(policy) as engine:
        result = await engine.run(["python3", "-c", program], wall_seconds=1700)
    assert result.stdout == b"%d\n" % total, result
    assert result.connections[0].bytes_in == total
    assert resident_bytes() - before < 64 << 20


async def test_hundreds_of_idle_connections_and_nothing_left_after(net: Net) -> None:
    server = await net.echo()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = f"""
import socket
held = [socket.create_connection(("a.test", {server.port}), 60) for _ in range(300)]
for s in held: s.send(b"\\0x")
for s in held: assert s.recv(2) == b"\\0x"
print(len(held))
"""
    async with net.engine(policy) as engine:
        await engine.run(["true"])
        await asyncio.sleep(0.3)
        gc.collect()
        before = set(os.listdir("/proc/self/fd"))
        tasks = len(asyncio.all_tasks())
        result = await engine.run(["python3", "-c", program], wall_seconds=250)
        assert result.stdout == b"300\n", result.stderr
        assert server.connections == 300
        deadline = time.monotonic() + 120
        while len(os.listdir("/proc/self/fd")) > len(before) + 8:  # a ready sandbox more or less
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        while len(asyncio.all_tasks()) > tasks + 4:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_a_call_that_is_cancelled_in_a_transfer_ends_it(net: Net) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        try:
            while await reader.read(1 << 20):
                pass
        except OSError:
            pass
        ended.set()

    server = await net.serve(endless)
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = (
        f"import socket; s = socket.create_connection(('a.test', {server.port}))\n"
        "while True: s.sendall(bytes(1 << 20))"
    )
    async with net.engine(policy) as engine:
        task = asyncio.create_task(engine.run(["python3", "-c", program]))
        await asyncio.wait_for(begun.wait(), 120)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(ended.wait(), 120)


async def test_a_stream_tells_when_it_was_closed_under_a_reader() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        pair = socket.create_server(("127.0.0.1", 0))
        with pair:
            client = socket.create_connection(pair.getsockname())
            accepted, _ = pair.accept()
        ours.close()
        for sock in (client, accepted):
            sock.setblocking(False)
        stream = RawStream(client)
        read = asyncio.create_task(stream.read(10))
        await asyncio.sleep(0)
        stream.close()
        with pytest.raises(ConnectionAbortedError):
            await read
        other = RawStream(accepted)
        await relay(other, RawStream(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
        assert other.closed


@pytest.mark.parametrize(
    "ruleset",
    [
        "netns._nft(netns._NFT | 99, netns._ACK, b'')",  # no nftables
        "good.replace(b'tproxy', b'tqroxy')",  # no tproxy in it
    ],
)
async def test_a_host_without_tproxy_refuses_the_policy(
    net: Net, monkeypatch: pytest.MonkeyPatch, ruleset: str
) -> None:
    """The keeper's process finds out; what it says comes back as what to do."""
    from purplebox.isolation import forkserver, link

    program = forkserver.program

    def without(fd: int) -> str:
        broken = (
            "from purplebox.isolation import netns; "
            f"good = netns._ruleset(); netns._ruleset = lambda: {ruleset}; "
        )
        return program(fd).replace(
            "from purplebox.isolation.keeper", broken + "from purplebox.isolation.keeper"
        )

    assert (await net.run(net.policy(), "true")).exit_code == 0
    monkeypatch.setattr(forkserver, "program", without)
    monkeypatch.setattr(link, "FORK_SERVER", server := forkserver.ForkServer())
    try:
        with pytest.raises(SetupError, match="nft_tproxy"):
            await net.run(net.policy(), "true")
    finally:
        server.close()


KILLED = """
import asyncio, sys
from ipaddress import ip_address
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy
from purplebox.policies.model import Network

async def resolve(name):
    return [ip_address("127.0.0.1")]

async def main():
    rule = {"host": "a.test", "ports": [int(sys.argv[1])], "addresses": ["127.0.0.1"]}
    network = Network.model_validate({"isolated": False, "allow": [rule]}, strict=False)
    policy = load_policy("base").model_copy(update={"network": network})
    async with Engine(policy, Path(sys.argv[2]), resolve=resolve) as engine:
        print(engine._link._keeper, flush=True)
        send = "import socket; s = socket.create_connection(('a.test', %s))\\nwhile True: s.sendall(bytes(1 << 20))"
        await engine.run(["python3", "-c", send % sys.argv[1]])

asyncio.run(main())
"""


async def test_a_gateway_killed_in_a_transfer_leaves_nothing(net: Net) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        try:
            while await reader.read(1 << 20):
                pass
        except OSError:
            pass
        ended.set()

    server = await net.serve(endless)
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(server.port), str(net.workspace), stdout=subprocess.PIPE
    )
    assert gateway.stdout is not None
    keeper = os.pidfd_open(int(await gateway.stdout.readline()))
    try:
        await asyncio.wait_for(begun.wait(), 120)
        gateway.kill()
        await gateway.wait()
        await asyncio.wait_for(ended.wait(), 120)
        gone = asyncio.Event()  # the keeper ends when all that it held has
        asyncio.get_running_loop().add_reader(keeper, gone.set)
        await asyncio.wait_for(gone.wait(), 120)
    finally:
        asyncio.get_running_loop().remove_reader(keeper)
        os.close(keeper)
