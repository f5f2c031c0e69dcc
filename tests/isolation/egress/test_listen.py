"""Published ports: what comes in, to which sandbox, and that nothing else does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation import SetupError

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio

FreePort = Callable[[], int]


def server(port: int, word: str, address: str = "127.0.0.1") -> list[str]:
    """Serves `word` and the request, until it is asked to stop."""
    program = f"""
import socket
s = socket.create_server(("{address}", {port}))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    data = c.recv(100)
    c.sendall(b"{word} " + data)
    c.close()
    if data == b"stop": break
"""
    return ["python3", "-c", program]


def sets(event: asyncio.Event) -> Callable[[str, bytes], None]:
    return lambda name, data: event.set()


async def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(-1), 120)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_a_published_port_leads_to_the_sandbox_that_serves_it(
    net: Net, free_port: FreePort
) -> None:
    port, other = free_port(), free_port()
    async with net.engine(net.policy(listen=[port])) as engine:
        assert await ask(port, b"x") == b"reset"  # nobody serves
        ready = [asyncio.Event(), asyncio.Event()]
        first = asyncio.create_task(
            engine.run(server(port, "first"), wall_seconds=250, on_output=sets(ready[0]))
        )
        await asyncio.wait_for(ready[0].wait(), 120)
        assert await ask(port, b"hello") == b"first hello"
        second = asyncio.create_task(
            engine.run(server(port, "second"), wall_seconds=250, on_output=sets(ready[1]))
        )
        await asyncio.wait_for(ready[1].wait(), 120)
        assert await ask(port, b"hello", "::1") == b"second hello"
        assert await ask(port, b"stop") == b"second stop"
        assert (await second).exit_code == 0
        assert await ask(port, b"stop") == b"first stop"
        result = await first
        assert [(c.via, c.port, c.rule) for c in result.connections] == [
            ("listen", port, "network.listen")
        ] * 2
        assert (result.connections[0].bytes_in, result.connections[0].bytes_out) == (5, 11)
        # The control: a port that is not published is the sandbox's own.
        begun = asyncio.Event()
        unpublished = asyncio.create_task(
            engine.run(server(other, "x"), wall_seconds=250, on_output=sets(begun))
        )
        await asyncio.wait_for(begun.wait(), 120)
        with pytest.raises(ConnectionRefusedError):
            await ask(other, b"x")
        with pytest.raises(ConnectionRefusedError):
            await ask(other, b"x", "::1")
        unpublished.cancel()
        await asyncio.gather(unpublished, return_exceptions=True)
    with pytest.raises(ConnectionRefusedError):
        await ask(port, b"x")  # given back


async def test_a_port_in_use_is_said_to_be(net: Net, free_port: FreePort) -> None:
    port = free_port()
    in_use = pytest.raises(SetupError, match=f"network.listen: port {port}")
    with socket.create_server(("127.0.0.1", port)), in_use:
        await net.run(net.policy(listen=[port]), "true")
    assert (await net.run(net.policy(listen=[port]), "true")).exit_code == 0


async def test_a_sandbox_with_a_published_port_reaches_out_no_further(
    net: Net, free_port: FreePort
) -> None:
    host = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    command = f"curl -sS --max-time 120 --noproxy '*' http://a.test:{host.port}/"
    assert (await net.run(net.policy(listen=[free_port()]), command)).exit_code == 6
    policy = net.policy({"host": "a.test", "ports": [host.port]}, listen=[free_port()])
    assert (await net.run(policy, command)).exit_code == 0


async def test_a_port_of_a_process_leads_to_it_while_it_runs(net: Net, free_port: FreePort) -> None:
    port = free_port()
    async with net.engine(net.policy(listen=[port])) as engine:
        async with await engine.start(server(port, "process"), stdin="null") as process:
            assert await process.stdout.receive() == b"ready\n"
            assert await ask(port, b"x") == b"process x"
            assert await ask(port, b"stop") == b"process stop"
            result = await process.wait()
        assert await ask(port, b"x") == b"reset"
    told = [(c.via, c.port, c.rule) for c in result.connections]
    assert told == [("listen", port, "network.listen")] * 2
