"""Ports of processes in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.anyio

LONG = {"wait_seconds": 60}  # at the most: it ends with the first line
SERVER = """
import socket
server = socket.create_server(("127.0.0.1", PORT))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"served")
    client.close()
"""
ASK = "python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", 8000)).recv(9))'"


async def served(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await asyncio.wait_for(reader.read(), 120)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_a_published_port_leads_to_a_process(
    here: Here, free_port: Callable[[], int]
) -> None:
    port = free_port()
    network = {"isolated": False, "listen": (port,)}
    async with here.entered(here.policy(network=network)) as gateway:
        (here.workspace / "server.py").write_text(SERVER.replace("PORT", str(port)))
        assert await served(port) == b"reset"  # the control: nobody serves
        server = {"command": "exec python3 server.py", **LONG}
        begun = here.content(await gateway.call("process_start", server))
        assert begun["output"] == "ready\n"
        assert await served(port) == b"served"
        await gateway.call("shell", {"command": "true"})
        assert await served(port) == b"served"
        await gateway.call("process_stop", {"process_id": begun["process_id"]})
        assert await served(port) == b"reset"
    (record,) = here.records()
    assert [(c["via"], c["port"]) for c in record["connections"]] == [("listen", port)] * 2


async def test_a_port_of_a_process_is_on_its_session_s_localhost(here: Here) -> None:
    async with here.entered() as gateway:
        (here.workspace / "server.py").write_text(SERVER.replace("PORT", "8000"))
        server = {"command": "exec python3 server.py", **LONG}
        begun = here.content(await gateway.call("process_start", server, client="me", session="1"))
        assert begun["output"] == "ready\n"
        ask = {"command": ASK}
        reached = await gateway.call("shell", ask, client="me", session="1")
        assert here.content(reached)["stdout"] == "b'served'\n"
        for client, session in (("me", "2"), ("other", "1"), ("", "")):
            alone = await gateway.call("shell", ask, client=client, session=session)
            assert "ConnectionRefusedError" in here.content(alone)["stderr"]
        named = {"process_id": begun["process_id"]}
        await gateway.call("process_stop", named, client="me", session="1")
        ended = await gateway.call("shell", ask, client="me", session="1")
        assert "ConnectionRefusedError" in here.content(ended)["stderr"]
    made = [r["connections"] for r in here.records("shell") if "connections" in r]
    ((told,),) = made
    assert (told["via"], told["name"]) == ("loopback", f"process {begun['process_id']}")
    assert (told["port"], told["bytes_in"]) == (8000, 6)


async def test_a_policy_may_keep_localhost_apart(here: Here) -> None:
    async with here.entered(here.policy(network={"loopback": "sandbox"})) as gateway:
        (here.workspace / "server.py").write_text(SERVER.replace("PORT", "8000"))
        named = {"process_id": await here.start(gateway, "sh 2>&1"), **LONG}
        for line, output in (("python3 server.py &", "ready\n"), (ASK, "b'served'\n")):
            told = await gateway.call("process_input", {**named, "input": f"{line}\n"})
            assert here.content(told)["output"] == output
        alone = await gateway.call("shell", {"command": ASK})
        assert "ConnectionRefusedError" in here.content(alone)["stderr"]
