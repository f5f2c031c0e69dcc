"""Ports of a session's processes: on the localhost of its other sandboxes, and on nobody else's."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from purplebox.isolation import Engine, Process, Result, SyncEngine
from purplebox.policies import Policy, load_policy
from purplebox.policies.hosts import Why
from purplebox.policies.model import Network

pytestmark = pytest.mark.anyio

PORT = 8000
BASE = load_policy("base")
ALONE = BASE.model_copy(update={"network": Network(loopback="sandbox")})
# Answers each connection with a word and what it got, to its end; "stop" ends it.
SERVER = """
import socket, sys, threading
host, port, word = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
sock = socket.socket(family)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if host == "::" and len(sys.argv) > 4:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
sock.bind((host, port))
sock.listen(1000)
print("ready", flush=True)
def serve(peer):
    data = b""
    while more := peer.recv(1 << 16):
        data += more
    peer.sendall(word + b" " + data)
    peer.close()
while True:
    threading.Thread(target=serve, args=(sock.accept()[0],)).start()
"""
ASK = """
import socket, sys
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, int(sys.argv[1])), 120) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            data = b""
            while more := sock.recv(1 << 16):
                data += more
        print(data.decode())
    except OSError as error:
        print(type(error).__name__)
"""
REFUSED = "ConnectionRefusedError"


@asynccontextmanager
async def serving(
    engine: Engine, *options: str, host: str = "127.0.0.1", port: int = PORT, word: str = "served",
    session: Hashable = "a", name: str = "process p",
) -> AsyncGenerator[Process]:  # fmt: skip
    argv = ["python3", "-c", SERVER, host, str(port), word, *options]
    async with await engine.start(
        argv, stdin="null", stderr="stdout", session=session, name=name
    ) as process:
        assert await process.stdout.receive() == b"ready\n"
        yield process


async def python(engine: Engine, program: str, *args: str, session: Hashable = "a") -> Result:
    result = await engine.run(["python3", "-c", program, *args], wall_seconds=250, session=session)
    assert result.exit_code == 0, result.stderr
    return result


async def settled(engine: Engine) -> None:
    """Returns when as many sandboxes wait as are wanted."""
    with anyio.fail_after(120):
        while engine._commands._missing() or engine._commands._making:
            await anyio.sleep(0.01)


async def ask(engine: Engine, *hosts: str, port: int = PORT, session: Hashable = "a") -> list[str]:
    """What is answered at each host."""
    result = await python(engine, ASK, str(port), *(hosts or ("127.0.0.1",)), session=session)
    return result.stdout.decode().splitlines()


async def test_its_session_reaches_a_process_and_nobody_else(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        assert await ask(engine, "localhost") == [REFUSED]  # there is nobody yet
        async with serving(engine):
            assert await ask(engine, "localhost") == ["served hello"]
            assert await ask(engine, "localhost", session="b") == [REFUSED]
            assert await ask(engine, "localhost", session=None) == [REFUSED]
        assert await ask(engine, "localhost") == [REFUSED]
        assert await ask(engine, "localhost", session=None) == [REFUSED]


async def test_a_namespace_that_had_a_door_is_nobody_elses(workspace: Path) -> None:
    """Without network, namespaces are used again: more sandboxes than are ever kept."""
    async with Engine(BASE, workspace) as engine, serving(engine):
        for _ in range(4):
            assert await ask(engine) == ["served hello"]
        for _ in range(24):
            assert await ask(engine, session="b") == [REFUSED]


async def test_a_policy_may_keep_loopbacks_apart(workspace: Path) -> None:
    for policy, answer in ((BASE, "served hello"), (ALONE, REFUSED)):
        async with Engine(policy, workspace) as engine, serving(engine):
            assert await ask(engine) == [answer]


async def test_engines_do_not_share(workspace: Path) -> None:
    async with Engine(BASE, workspace) as one, Engine(BASE, workspace) as other, serving(one):
        assert await ask(other) == [REFUSED]
        assert await ask(one) == ["served hello"]


async def test_the_connection_is_told_with_its_bytes(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine, serving(engine, name="process p-1") as process:
        result = await python(engine, ASK, str(PORT), "127.0.0.1")
        (told,) = result.connections
        process.kill()
        assert (await process.wait()).connections == ()
    assert (told.via, told.name, told.address, told.port) == (
        "loopback", "process p-1", "127.0.0.1", PORT,
    )  # fmt: skip
    assert (told.bytes_out, told.bytes_in, told.rule) == (5, 12, "network.loopback")
    assert told.reason == Why.NONE


@pytest.mark.parametrize(
    ("host", "options", "four", "six"),
    [
        ("127.0.0.1", (), True, False),
        ("0.0.0.0", (), True, False),
        ("::1", (), False, True),
        ("::", (), True, True),
        ("::", ("v6only",), False, True),
    ],
)
async def test_the_address_is_the_process_s(
    workspace: Path, host: str, options: tuple[str, ...], four: bool, six: bool
) -> None:
    wanted = ["served hello" if there else REFUSED for there in (four, six)]
    async with Engine(BASE, workspace) as engine, serving(engine, *options, host=host):
        assert await ask(engine, "127.0.0.1", "::1") == wanted


async def test_with_network_it_is_the_same(workspace: Path) -> None:
    policy = BASE.model_copy(update={"network": Network(isolated=False)})
    async with Engine(policy, workspace) as engine, serving(engine):
        assert await ask(engine, "localhost") == ["served hello"]
        assert await ask(engine, "127.0.0.1", session="b") == [REFUSED]
        result = await python(engine, ASK, str(PORT), "192.0.2.7")  # the gate's, as ever
        assert [c.reason for c in result.connections] == [Why.HOST_NOT_ALLOWED]


async def test_a_port_that_comes_later_and_goes_is_followed(workspace: Path) -> None:
    patient = """
import socket, sys, time
def answer():
    try:
        with socket.create_connection(("127.0.0.1", 8000), 30) as sock:
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(100)
    except OSError:
        return b""
while not (said := answer()):
    time.sleep(0.02)
print(said, flush=True)
open("seen", "w").close()
while answer():
    time.sleep(0.02)
print("gone")
"""
    results: list[Result] = []
    async with Engine(BASE, workspace) as engine:

        async def client() -> None:
            results.append(await python(engine, patient))

        async with anyio.create_task_group() as group:
            group.start_soon(client)
            await anyio.sleep(0.3)  # it is refused a few times
            async with serving(engine):
                with anyio.fail_after(120):
                    while not (workspace / "seen").exists():
                        await anyio.sleep(0.02)
    assert [result.stdout for result in results] == [b"b'served '\ngone\n"]


async def test_processes_reach_each_other(workspace: Path) -> None:
    async with (
        Engine(BASE, workspace) as engine,
        serving(engine, word="first", port=8000),
        serving(engine, word="second", port=8001, name="process q"),
        await engine.start(
            ["sh", "-c", 'read line; exec python3 -c "$0" 8000 127.0.0.1', ASK], session="a"
        ) as third,
        await engine.start(
            ["sh", "-c", 'read line; exec python3 -c "$0" 8001 127.0.0.1', ASK], session="a"
        ) as fourth,
    ):
        for process, said in ((third, b"first hello\n"), (fourth, b"second hello\n")):
            await process.stdin.send(b"go\n")
            assert await process.stdout.receive() == said
            result = await process.wait()
            assert [c.via for c in result.connections] == ["loopback"]


BIND = """
import socket, sys
try:
    sock = socket.create_server(("127.0.0.1", 8000))
except OSError as error:
    print(error.errno)
else:
    print("bound")
"""


async def test_a_port_can_be_bound_once(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        assert (await python(engine, BIND)).stdout == b"bound\n"
        async with serving(engine):
            assert (await python(engine, BIND)).stdout == b"98\n"  # EADDRINUSE
            assert (await python(engine, BIND, session="b")).stdout == b"bound\n"


async def test_who_has_the_port_first_keeps_it(workspace: Path) -> None:
    own = """
import socket, sys, time
sock = socket.create_server(("127.0.0.1", 8000))
print("bound", flush=True)
sys.stdin.readline()
with socket.create_connection(("127.0.0.1", 8000)) as client:
    sock.settimeout(120)
    print("own" if sock.accept()[0].getpeername() == client.getsockname() else "other")
"""
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["python3", "-c", own], session="a", name="process q") as first,
    ):
        assert await first.stdout.receive() == b"bound\n"
        # Another one of the session has no door yet: as if both had begun at once.
        async with await engine.start(["sleep", "0"], session="a") as nothing:
            await nothing.wait()
        assert await ask(engine, port=8001) == [REFUSED]
        await first.stdin.send(b"go\n")
        assert await first.stdout.receive() == b"own\n"


async def test_udp_is_not_carried(workspace: Path) -> None:
    both = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 8000))
tcp = socket.create_server(("127.0.0.1", 8000))
print("ready", flush=True)
tcp.accept()
udp.setblocking(False)
try:
    print(udp.recv(10))
except BlockingIOError:
    print("nothing")
"""
    send = """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("127.0.0.1", 8000))
udp.send(b"x")
try:
    udp.send(b"x")
    print("sent")
except ConnectionRefusedError:
    print("refused")
socket.create_connection(("127.0.0.1", 8000))
"""
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["python3", "-c", both], session="a") as process,
    ):
        assert await process.stdout.receive() == b"ready\n"
        assert (await python(engine, send)).stdout == b"refused\n"
        assert await process.stdout.receive() == b"nothing\n"


async def test_many_connections_and_much_data(workspace: Path) -> None:
    program = """
import socket, sys, threading
sent = 0
def one(size):
    with socket.create_connection(("127.0.0.1", 8000), 60) as sock:
        sock.sendall(b"x" * size)
        sock.shutdown(socket.SHUT_WR)
        got = 0
        while more := sock.recv(1 << 16):
            got += len(more)
    assert got == size + len("served "), got
def several():
    for _ in range(10):
        one(1000)
threads = [threading.Thread(target=several) for _ in range(30)]
threads.append(threading.Thread(target=one, args=(20_000_000,)))
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""
    async with Engine(BASE, workspace) as engine, serving(engine):
        result = await python(engine, program)
    assert (result.stdout, result.stderr) == (b"done\n", b"")
    assert len(result.connections) == 301
    assert sum(c.bytes_out for c in result.connections) == 20_000_000 + 300 * 1000


async def test_a_reset_is_passed_on(workspace: Path) -> None:
    resets = """
import socket, struct
sock = socket.create_server(("127.0.0.1", 8000))
print("ready", flush=True)
while True:
    peer, _ = sock.accept()
    peer.recv(5)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
"""
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["python3", "-c", resets], session="a") as process,
    ):
        assert await process.stdout.receive() == b"ready\n"
        asks = ASK.replace("sock.shutdown(socket.SHUT_WR)", "pass")  # it may be too late for that
        result = await python(engine, asks, str(PORT), "127.0.0.1")
        assert result.stdout == b"ConnectionResetError\n"


async def test_what_was_sent_arrives_though_its_sender_has_ended(workspace: Path) -> None:
    listens = """
import socket
sock = socket.create_server(("127.0.0.1", 8000))
print("ready", flush=True)
peer, _ = sock.accept()
print(peer.recv(100), peer.recv(100), flush=True)
"""
    sends = 'import socket; socket.create_connection(("127.0.0.1", 8000)).sendall(b"last")'
    async with (
        Engine(BASE, workspace) as engine,
        await engine.start(["python3", "-c", listens], session="a") as process,
    ):
        assert await process.stdout.receive() == b"ready\n"
        result = await python(engine, sends)
        assert [(c.bytes_out, c.reason) for c in result.connections] == [(4, Why.NONE)]
        assert await process.stdout.receive() == b"b'last' b''\n"


async def test_a_process_with_thousands_of_ports_has_its_lowest_or_none(workspace: Path) -> None:
    many = """
import resource, socket, sys
first, count = int(sys.argv[1]), int(sys.argv[2])
socks = [socket.create_server(("127.0.0.1", first + i), backlog=1) for i in range(count)]
print("ready", flush=True)
sys.stdin.read()
"""
    for count, expected in ((80, ["TimeoutError", REFUSED]), (4000, [REFUSED, REFUSED])):
        async with (
            Engine(BASE, workspace) as engine,
            await engine.start(
                ["python3", "-c", many, "9000", str(count)], session="a", stderr="stdout"
            ) as process,
        ):
            assert await process.stdout.receive() == b"ready\n"
            for port, answer in zip((9063, 9064), expected, strict=True):
                # What is reached never answers; only where that is expected is it not waited for.
                program = ASK if answer == REFUSED else ASK.replace(", 120)", ", 2)")
                result = await python(engine, program, str(port), "127.0.0.1")
                assert result.stdout.decode().strip() == answer


async def test_nothing_is_left(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        assert await ask(engine) == [REFUSED]
        await settled(engine)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with serving(engine):
                assert await ask(engine) == ["served hello"]
        with anyio.fail_after(120):
            while len(os.listdir("/proc/self/fd")) > before:
                await anyio.sleep(0.02)


async def test_a_call_that_is_cancelled_leaves_nothing(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine, serving(engine):
        assert await ask(engine) == ["served hello"]
        await settled(engine)
        before = len(os.listdir("/proc/self/fd"))
        for delay in (0, 0.001, 0.003, 0.1):
            with anyio.move_on_after(delay):
                await engine.run(["sleep", "60"], session="a")
        with anyio.fail_after(120):
            while len(os.listdir("/proc/self/fd")) > before:
                await anyio.sleep(0.02)
        assert await ask(engine) == ["served hello"]


def test_without_an_event_loop(workspace: Path) -> None:
    argv = ["python3", "-c", SERVER, "127.0.0.1", str(PORT), "served"]
    with SyncEngine(BASE, workspace) as engine, engine.start(argv, session=1) as process:
        assert process.stdout.readline() == b"ready\n"
        run = ["python3", "-c", ASK, str(PORT), "127.0.0.1"]
        assert engine.run(run, session=1).stdout == b"served hello\n"
        assert engine.run(run, session=2).stdout == f"{REFUSED}\n".encode()


def test_the_policy_says_which(workspace: Path) -> None:
    assert Policy(name="x").network.loopback == "session"
    with pytest.raises(ValueError, match="loopback"):
        Network.model_validate({"loopback": "host"})
