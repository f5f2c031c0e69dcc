"""Connections that are carried by callbacks: remembered servers, and when they are remembered no more."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress import dial
from purplebox.isolation.egress.sockets import RawStream
from purplebox.isolation.poller import Poller
from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio
# What is sent looks like neither TLS nor HTTP; each line of stdin is one connection.
CLIENT = """
import socket, sys
for line in sys.stdin:
    with socket.create_connection(("a.test", int(sys.argv[1])), 60) as s:
        try:
            s.sendall(b"\\0" + line.encode())
            s.shutdown(socket.SHUT_WR)
            print(len(s.makefile("rb").read()), flush=True)
        except OSError as error:
            print(error.strerror, flush=True)
"""


async def test_a_server_that_was_reached_a_moment_ago_is_not_looked_up_again(net: Net) -> None:
    server = await net.echo()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        argv = ["python3", "-c", CLIENT, str(server.port)]
        result = await engine.run(argv, stdin=b"x\n" * 5)
    assert result.stdout.split() == [b"3"] * 5, result.stderr
    assert net.asked == ["a.test"]
    assert server.connections == 5
    assert [(c.address, c.bytes_out, c.bytes_in, c.rule) for c in result.connections] == [
        ("127.0.0.1", 3, 3, "network.allow[0]")
    ] * 5


async def test_nor_for_connections_that_are_read_or_come_by_a_proxys_protocols(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    ask = f"curl -sSf -o /dev/null --max-time 120 {{}} http://a.test:{server.port}/;"
    ways = ("--noproxy '*'", "", "-p", "--proxy socks5h://127.0.0.1:1023")
    result = await net.run(policy, "set -e;" + "".join(map(ask.format, ways)))
    assert result.exit_code == 0, result.stderr
    assert [(c.address, c.rule) for c in result.connections] == [
        ("127.0.0.1", "network.allow[0]")
    ] * 4
    assert net.asked == ["a.test"]
    assert len(server.seen) == 4


TLS_CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="servers.pem")
context.check_hostname = False
for line in sys.stdin:
    name = line.strip() or None
    try:
        with socket.create_connection(("a.test", int(sys.argv[1])), 60) as s:
            with context.wrap_socket(s, server_hostname=name) as t:
                t.sendall(b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n")
                print(t.recv(15).decode(), flush=True)
    except OSError as error:
        print("cut", flush=True)
"""


async def test_tls_to_a_remembered_server_still_names_it(net: Net) -> None:
    server = await net.http(tls="a.test")
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        argv = ["python3", "-c", TLS_CLIENT, str(server.port)]
        result = await engine.run(argv, stdin=b"a.test\nA.TEST\nb.test\n\na.test\n")
    ok = b"HTTP/1.1 200 OK"
    assert result.stdout.splitlines() == [ok, ok, b"cut", b"cut", ok], result.stderr
    assert [c.reason for c in result.connections] == [
        Why.NONE, Why.NONE, Why.NAME_MISMATCH, Why.NAME_MISSING, Why.NONE,
    ]  # fmt: skip
    assert net.asked == ["a.test"]
    assert len(server.seen) == 3


async def test_what_is_remembered_is_forgotten_in_time(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_REMEMBERED_SECONDS", 0.0)
    server = await net.echo()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        argv = ["python3", "-c", CLIENT, str(server.port)]
        assert (await engine.run(argv, stdin=b"x\n" * 2)).stdout.split() == [b"3"] * 2
    assert net.asked == ["a.test"] * 2


async def test_a_server_that_has_moved_is_looked_up_again(net: Net) -> None:
    old = await net.serve(_hang_up, host="127.0.0.1")
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [old.port]})
    async with net.engine(policy) as engine:
        argv = ["python3", "-c", CLIENT, str(old.port)]
        first = await engine.run(argv, stdin=b"x\n")
        await net.stack.aclose()
        listening = await asyncio.start_server(_hang_up, "127.0.0.2", old.port)
        net.names["a.test"] = ["127.0.0.2"]
        async with listening:
            moved = await engine.run(argv, stdin=b"x\n")
        net.names["a.test"] = ["10.0.0.1"]  # and where it may not lead
        refused = await engine.run(argv, stdin=b"x\n")
    assert [c.address for c in first.connections] == ["127.0.0.1"]
    assert [(c.address, c.reason) for c in moved.connections] == [("127.0.0.2", Why.NONE)]
    assert [c.reason for c in refused.connections] == [Why.ADDRESS_NOT_ALLOWED]
    assert net.asked == ["a.test"] * 3


async def test_a_server_may_speak_first_each_time(net: Net) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write(await reader.read())

    server = await net.serve(greet)
    net.names["a.test"] = ["127.0.0.1"]
    program = f"""
import socket
for said in (b"\\0x", b"\\0x", b""):
    with socket.create_connection(("a.test", {server.port}), 60) as s:
        if said:
            print(s.recv(5))
            s.sendall(said)
        s.shutdown(socket.SHUT_WR)
        print(s.makefile("rb").read())
"""
    result = await net.python(net.policy({"host": "a.test", "ports": [server.port]}), program)
    lines = result.stdout.decode().splitlines()
    assert lines[:4] == ["b'hello'", r"b'\x00x'"] * 2, result.stderr
    assert [(c.name, c.reason) for c in result.connections] == [("a.test", Why.NONE)] * 3
    assert [c.bytes_out for c in result.connections] == [2, 2, 0]


async def test_what_a_program_says_is_read_though_its_server_was_dialled_before(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    program = f"""
import socket, time
for host in ("a.test", "a.test", "b.test"):
    with socket.create_connection(("a.test", {server.port}), 60) as s:
        time.sleep(0.1)
        s.sendall(f"GET / HTTP/1.1\\r\\nHost: {{host}}:{server.port}\\r\\n\\r\\n".encode())
        print(s.recv(12).decode())
"""
    result = await net.python(net.policy({"host": "a.test", "ports": [server.port]}), program)
    assert result.stdout.decode().splitlines() == [
        "HTTP/1.1 200", "HTTP/1.1 200", "HTTP/1.1 421",
    ], result.stderr  # fmt: skip
    assert [c.reason for c in result.connections] == [Why.NONE, Why.NONE, Why.NAME_MISMATCH]
    assert len(server.seen) == 2


async def test_a_server_that_has_gone_is_said_to_have(net: Net) -> None:
    async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        listening.close()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(last, "127.0.0.1", 0)
    port: int = listening.sockets[0].getsockname()[1]
    net.names["a.test"] = ["127.0.0.1"]
    ask = f"curl -sS --noproxy '*' --max-time 120 -w '%{{http_code}} ' -o /dev/null http://a.test:{port}/;"
    result = await net.run(net.policy({"host": "a.test", "ports": [port]}), ask * 2)
    assert result.stdout.split() == [b"200", b"502"], result.stderr
    assert [c.reason for c in result.connections] == [Why.NONE, Why.UPSTREAM_FAILED]
    assert net.asked == ["a.test"] * 2  # what did not answer is looked up again


@pytest.mark.parametrize("answers", [True, False])
async def test_a_server_that_takes_its_time_to_be_reached_is_waited_for(
    net: Net, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    connected, seen = RawStream.connected, set[RawStream]()

    def later(self: RawStream, address: str, port: int) -> bool:
        done = connected(self, address, port)
        if self in seen and not answers:
            raise OSError(errno.ETIMEDOUT, "timed out")
        late = bool(net.asked) and self not in seen
        seen.add(self)
        return done and not late

    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    ask = f"curl -sS -o /dev/null -w '%{{http_code}} ' --max-time 120 WAY http://a.test:{server.port}/;"
    ways = ("--noproxy '*'", "-p", "--proxy socks5h://127.0.0.1:1023")
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        await engine.run(["bash", "-c", ask.replace("WAY", ways[0])])
        monkeypatch.setattr(RawStream, "connected", later)
        result = await engine.run(["bash", "-c", "".join(ask.replace("WAY", way) for way in ways)])
    assert [(c.via, c.reason) for c in result.connections] == [
        (via, Why.NONE if answers else Why.UPSTREAM_FAILED)
        for via in ("direct", "http_proxy", "socks")
    ]
    if answers:
        assert result.stdout.split() == [b"200"] * 3, result.stderr
        assert net.asked == ["a.test"]
        assert len(server.seen) == 4
    else:
        assert result.stdout.split() == [b"502", b"000", b"000"], result.stderr
        assert len(server.seen) == 1


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_a_poller_calls_for_what_is_watched_and_for_nothing_after() -> None:
    poller = Poller()
    ours, theirs = socket.socketpair()
    called = asyncio.Event()
    calls: list[str] = []

    def note(what: str) -> None:
        calls.append(what)
        called.set()

    async def wait() -> None:
        called.clear()
        await asyncio.wait_for(called.wait(), 120)

    with ours, theirs:
        poller.add_writer(ours.fileno(), note, "write")
        await wait()
        assert set(calls) == {"write"}
        poller.add_reader(ours.fileno(), note, "read")
        assert poller.remove_writer(ours.fileno())
        assert not poller.remove_writer(ours.fileno())
        calls.clear()
        theirs.send(b"x")
        await wait()
        assert set(calls) == {"read"}
        poller.close()
        calls.clear()
        await asyncio.sleep(0)
        assert calls == []
        assert not poller.remove_reader(ours.fileno())
        with pytest.raises(ConnectionAbortedError):
            poller.add_reader(ours.fileno(), note, "read")
