"""One process from which the keepers of all engines are forked: what it spares, and what it does not tie."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from purplebox.isolation import Engine, SetupError, forkserver, keeper
from purplebox.isolation.descriptors import receive
from purplebox.isolation.forkserver import ForkServer
from purplebox.isolation.link import Link
from purplebox.policies import load_policy

pytestmark = pytest.mark.anyio
BASE = load_policy("base")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def family(keeper: int) -> list[int]:
    (outer,) = children(keeper)
    return [keeper, outer, *children(outer)]


def opened(pids: list[int]) -> set[str]:
    """Sockets, memory files and namespaces: what has a name of its own and could do harm."""
    links: set[str] = set()
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
                links.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {name for name in links if name.startswith(("socket:", "net:", "mnt:", "/memfd"))}


async def true(engine: Engine) -> int | None:
    return (await engine.run(["true"])).exit_code


async def test_engines_share_one_server_and_no_descriptor(
    server: ForkServer, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as first, Engine(BASE, workspace) as second:
        assert await true(first) == await true(second) == 0
        keepers = first._link._keeper, second._link._keeper
        assert server._process is not None
        assert [parent(keeper) for keeper in keepers] == [server._process.pid] * 2
        mine, other = (opened(family(keeper)) for keeper in keepers)
        # Memory files' names are equal; root's keepers come back to the host's own mounts.
        known = os.readlink("/proc/self/ns/mnt")
        shared = {name for name in (mine & other) - {known} if not name.startswith("/memfd")}
        assert (len(mine) > 4, shared) == (True, set())


async def test_an_engine_that_has_no_plan_yet_keeps_no_other_waiting(
    server: ForkServer, workspace: Path
) -> None:
    slow = Link()
    await slow.begin()
    with anyio.fail_after(15):
        async with Engine(BASE, workspace) as engine:
            assert await true(engine) == 0
    await slow.close()


async def test_the_end_of_one_zygote_is_that_of_its_engine_alone(
    server: ForkServer, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as first, Engine(BASE, workspace) as second:
        *_, zygote = family(first._link._keeper)
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(SetupError, match=r"is gone|cannot be reached"):
            while True:  # until what was ready has been used
                await true(first)
        assert await true(second) == 0
        async with Engine(BASE, workspace) as third:
            assert await true(third) == 0


async def test_a_server_that_died_is_replaced_and_its_keepers_go_on(
    server: ForkServer, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as first:
        assert server._process is not None
        died = server._process
        died.kill()
        died.wait()
        async with Engine(BASE, workspace) as second:  # by the keeper that had been forked ahead
            assert await true(second) == 0
            async with Engine(BASE, workspace) as third:
                assert await true(third) == 0
                assert server._process is not died
        assert await true(first) == 0


async def test_a_server_that_is_stopped_is_not_waited_for(
    server: ForkServer, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as engine:
        assert await true(engine) == 0
        stopped = server._process
        assert stopped is not None
        stopped.send_signal(signal.SIGSTOP)
        await anyio.to_thread.run_sync(server.close)
        assert stopped.returncode == -signal.SIGKILL
        assert await true(engine) == 0  # its keeper has gone on
    async with Engine(BASE, workspace) as engine:
        assert await true(engine) == 0


async def test_a_server_that_cannot_live_is_not_started_for_ever(
    server: ForkServer, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(forkserver, "program", "raise SystemExit(int({}))".format)
        with pytest.raises(SetupError, match="the fork server does not live"):
            await Engine(BASE, workspace).__aenter__()
    async with Engine(BASE, workspace) as engine:  # the control
        assert await true(engine) == 0


async def test_a_fork_of_the_gateway_has_a_server_of_its_own(
    server: ForkServer, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as engine:
        assert await true(engine) == 0
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        server.forget()
        os.write(writer, b"x" if (server._process, server._door) == (None, None) else b"-")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer):
        os.close(fd)
    async with Engine(BASE, workspace) as engine:  # ours is as it was
        assert await true(engine) == 0


async def test_a_view_can_be_read_whatever_the_umask_of_the_gateway(
    server: ForkServer, workspace: Path
) -> None:
    before = os.umask(0o077)
    try:
        async with Engine(BASE, workspace) as engine:
            result = await engine.run(["cat", "/etc/passwd"])
    finally:
        os.umask(before)
    assert (result.stdout, result.stderr) == (Path("/etc/passwd").read_bytes(), b"")


CLOSED = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        return (await engine.run(["true"])).exit_code

sys.exit(40 + asyncio.run(main()))
"""


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
async def test_a_gateway_may_have_closed_its_streams(closed: str, workspace: Path) -> None:
    script = f'exec "$0" "$@" {closed}'
    argv = ["sh", "-c", script, sys.executable, "-c", CLOSED, str(workspace)]
    assert subprocess.run(argv, check=False).returncode == 40


@pytest.mark.parametrize("gateway", ["waits", "has gone"])
def test_a_keeper_that_cannot_be_offered_waits_for_its_gateway_alone(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tries: list[bytes] = []
    send_fds = socket.send_fds

    def full(channel: socket.socket, buffers: list[bytes], fds: list[int]) -> int:
        tries.append(buffers[0])
        if gateway == "has gone" or len(tries) < 3:
            raise OSError(errno.ETOOMANYREFS, "Too many references")
        return send_fds(channel, buffers, fds)

    monkeypatch.setattr(socket, "send_fds", full)
    theirs.send(b"hurry")  # which nobody has read when the gateway dies
    if gateway == "has gone":
        theirs.close()
    with door, theirs:
        keeper._offer(door, b"facts", [door.fileno()])
        if gateway == "waits":
            message, fds = receive(theirs, 16, 1)
            assert (message, len(tries)) == (b"facts", 3)
            os.close(*fds)
    assert capfd.readouterr().err.count("a keeper has to wait") == 1
