"""Many sandboxes that wait: what each has of the zygote, and that each is as good as the first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import Engine, SetupError
from purplebox.isolation.descriptors import receive
from purplebox.isolation.ground import likely
from purplebox.isolation.marks import Marks
from purplebox.isolation.outbox import Outbox
from purplebox.isolation.plan import Plan
from purplebox.isolation.pool import Ready, prepare
from purplebox.isolation.zygote import SPARE_NETWORKS, Zygote
from purplebox.policies import load_policy

BASE = load_policy("base")
MANY = 40  # some ten descriptors of ours each


async def some(engine: Engine, count: int = MANY) -> list[Ready]:
    await engine.run(["true"])
    one = (prepare(engine._link, Marks(), "null") for _ in range(count))
    return await asyncio.gather(*one)


async def end(engine: Engine, sandboxes: list[Ready]) -> None:
    for sandbox in sandboxes:
        await sandbox.started.gone()
        engine._discard(sandbox)


def pid_1(sandbox: Ready) -> int:
    """In this process's own pid namespace."""
    return field(f"/proc/self/fdinfo/{sandbox.started.pidfd}", "Pid")


def field(path: str, name: str) -> int:
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def network(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def descriptors(pid: int, kind: str = "") -> int:
    found: list[str] = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sum(link.startswith(kind) for link in found)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not true():
            await asyncio.sleep(0.01)


def test_a_pid_1_does_not_begin_with_room_for_what_all_others_need(workspace: Path) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            sandboxes = await some(engine)
            zygote = field(f"/proc/{pid_1(sandboxes[0])}/status", "PPid")
            before = descriptors(zygote)
            sandboxes += await some(engine)
            await until(lambda: descriptors(zygote) <= before + SPARE_NETWORKS)
            sizes = {field(f"/proc/{pid_1(sandbox)}/status", "FDSize") for sandbox in sandboxes}
            assert max(sizes) <= 256, sizes
            # The control: somebody has them, so that the end of a sandbox is not what takes its mounts.
            await until(lambda: descriptors(engine._link._keeper, "mnt:") > MANY)
            await end(engine, sandboxes)
            # But for those of the engine's own that wait.
            await until(lambda: descriptors(engine._link._keeper, "mnt:") < 10)

    asyncio.run(go())


def test_the_network_of_one_that_has_ended_is_the_next_ones_and_a_shared_one_is_nobodys(
    workspace: Path,
) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            sandboxes = await some(engine)
            *_, shared, other, last = sandboxes
            zygote = field(f"/proc/{pid_1(last)}/status", "PPid")
            networks = [network(pid_1(sandbox)) for sandbox in (shared, other)]
            assert len({network(pid_1(sandbox)) for sandbox in sandboxes}) == MANY
            wanted = ("listen", "127.0.0.1", 8000), ("connect", "127.0.0.1", 0)
            inside = await engine._link.sockets_inside(shared.started, wanted)
            listener, client = inside
            assert listener is not None and client is not None
            listener.setblocking(True)
            client.setblocking(True)
            client.connect(("127.0.0.1", 8000))  # both are in one
            here = socket.socket()
            cookie = 71  # SO_NETNS_COOKIE, <asm-generic/socket.h>
            assert listener.getsockopt(socket.SOL_SOCKET, cookie, 8) != here.getsockopt(
                socket.SOL_SOCKET, cookie, 8
            )
            here.close()

            spare = descriptors(zygote, "net:")
            await end(engine, [shared])
            await end(engine, [other])
            await until(lambda: descriptors(zygote, "net:") > spare)
            found = await some(engine, SPARE_NETWORKS)
            found_networks = [network(pid_1(sandbox)) for sandbox in found]
            assert networks[0] not in found_networks  # whose sockets we still hold
            assert networks[1] in found_networks
            for sock in (listener, client):
                sock.close()
            await end(engine, found + sandboxes[:-3] + [last])

    asyncio.run(go())


# Serves on whatever socket comes through "rdv", and says what is in it.
HOLDER = """
import socket
meet = socket.socket(socket.AF_UNIX)
meet.bind("rdv")
meet.listen()
_, (fd,), *_ = socket.recv_fds(meet.accept()[0], 1, 1)
listener = socket.socket(fileno=fd)
while True:
    listener.accept()[0].sendall(b"another session's")
"""
# Passes a listening socket on, meets who has it, and says in which namespace.
PASSER = """
import os, socket
listener = socket.create_server(("127.0.0.1", 5432))
meet = socket.socket(socket.AF_UNIX)
meet.connect("rdv")
socket.send_fds(meet, [b"x"], [listener.fileno()])
client = socket.create_connection(("127.0.0.1", 5432))
print(client.recv(100).decode(), os.stat("/proc/self/ns/net").st_ino)
"""
CLIENT = """
import os, socket
try:
    print(socket.create_connection(("127.0.0.1", 5432)).recv(100))
except ConnectionRefusedError:
    print("refused", os.stat("/proc/self/ns/net").st_ino)
"""


def test_a_network_in_which_a_process_of_another_session_has_a_socket_is_nobodys(
    workspace: Path,
) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            python = "python3", "-c"
            async with await engine.start([*python, HOLDER], stdin="null", session="A"):
                async with asyncio.timeout(120):
                    while not (workspace / "rdv").exists():
                        await asyncio.sleep(0.01)
                passed = await engine.run([*python, PASSER], session="A", wall_seconds=120)
                *said, held = passed.stdout.decode().split()
                assert said == ["another", "session's"]  # the control
                found: set[str] = set()
                for _ in range(2):
                    calls = (
                        engine.run([*python, CLIENT], session="B")
                        for _ in range(SPARE_NETWORKS + 4)
                    )
                    for result in await asyncio.gather(*calls):
                        refused, inside = result.stdout.decode().split()
                        assert refused == "refused"
                        found.add(inside)
                assert held not in found

    asyncio.run(go())


def test_calls_by_the_dozen_are_counted_each_by_itself_time_after_time(workspace: Path) -> None:
    """More than the zygote keeps the files of whose groups, one after the other in the same ones."""

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            for _ in range(4):
                spend = ["python3", "-c", "import time; bytearray(32 << 20); time.sleep(0.2)"]
                sleep = ["sleep", "0.2"]
                results = await asyncio.gather(
                    *(engine.run(spend if n % 2 else sleep) for n in range(24))
                )
                assert [result.exit_code for result in results] == [0] * 24
                peaks = [result.usage.memory_peak_bytes or 0 for result in results]
                assert max(peaks[::2]) < 32 << 20 < min(peaks[1::2])

    asyncio.run(go())


async def full(engine: Engine) -> None:
    """Wait until its pool has all that it wants."""
    while engine._commands._missing() or engine._commands._making:
        await asyncio.sleep(0.01)


def test_what_counts_stays_open_for_the_next_and_no_longer_than_the_engine(workspace: Path) -> None:
    def counters() -> int:
        return descriptors(os.getpid(), "/sys/fs/cgroup/")

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            await asyncio.gather(*(engine.run(["true"]) for _ in range(8)))
            await full(engine)
            before = counters()
            assert (before > 0) == bool(engine._link._cgroups.facts["version"])
            for _ in range(4):
                await asyncio.gather(*(engine.run(["true"]) for _ in range(8)))
            await full(engine)
            assert counters() <= 2 * before  # and not 5 times as many

    held = counters()
    asyncio.run(go())
    assert counters() == held


def test_who_may_open_no_more_files_is_told_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message's descriptors that there is no room for are closed by the kernel: unix(7)."""

    def none_fit(*arguments: Any) -> tuple[bytes, list[int]]:
        message, fds = receive(*arguments)
        for fd in fds:
            os.close(fd)
        return message, []

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            await engine.run(["true"])
            link, wanted = engine._link, [("connect", "127.0.0.1", 0)]
            one = await prepare(link, Marks(), "null")
            with monkeypatch.context() as patch:
                patch.setattr("purplebox.isolation.link.receive", none_fit)
                with pytest.raises(SetupError, match="RLIMIT_NOFILE"):
                    await prepare(link, Marks(), "null")
                with pytest.raises(SetupError, match="RLIMIT_NOFILE"):
                    await link.sockets_inside(one.started, wanted)
            (sock,) = await link.sockets_inside(one.started, wanted)  # the control
            assert sock is not None
            sock.close()
            await end(engine, [one, await prepare(link, Marks(), "null")])

    asyncio.run(go())


def test_what_a_sandbox_has_under_way_does_not_count_against_a_soft_limit_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the kernel does it for an ordinary user, with a thousand descriptors under way: unix(7)."""
    send_fds = socket.send_fds
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    under_way = soft - 1

    def counted(*arguments: Any) -> int:
        if under_way >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            raise OSError(errno.ETOOMANYREFS, "too many references")
        return send_fds(*arguments)

    monkeypatch.setattr(socket, "send_fds", counted)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        failures: list[OSError] = []
        Outbox(ours).send(b"x", [0], failures.append)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft - 1, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        message, fds = receive(theirs, 16, 1)
        assert (message, len(fds), failures) == (b"x", 1, [])
        os.close(fds[0])
        under_way = hard  # the control
        Outbox(ours).send(b"x", [0], failures.append)
        assert [error.errno for error in failures] == [errno.ETOOMANYREFS]


def test_a_zygote_without_room_for_descriptors_goes_on() -> None:
    """Nobody's network comes to it, and no cgroup that could be entered in part."""
    keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = object.__new__(Zygote)
    zygote._keeper, zygote._networks, zygote._groups = theirs, deque(), {}
    zygote._shut = set()
    zygote._plan = Plan.from_json(likely(()).example().to_json())
    before = _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with keeper, theirs:
        for has_room in (False, True):
            first, second = os.dup(0), os.dup(0)
            os.close(first)
            os.close(second)
            socket.send_fds(keeper, [b'{"network": 1}'], [0])
            socket.send_fds(keeper, [b'{"group": 1}'], [0, 0])
            try:
                if not has_room:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (first, hard))
                zygote._on_keeper()
                if not has_room:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (second, hard))
                zygote._on_keeper()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert len(zygote._networks) == (1 if has_room else 0)
            if not has_room:
                with pytest.raises(OSError, match="could not be made or entered"):
                    zygote._files_of(1)
        files = zygote._files_of(1)
        assert len(files) == 2
        for fd in (*files, *zygote._networks):
            os.close(fd)


def test_of_a_message_all_descriptors_are_received_or_none() -> None:
    """Else a pid 1 would be in some of its cgroups alone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for room in (0, 1, 2, 3):
            free: list[int] = []
            while len(free) < 4:
                free.append(os.dup(0))
            for fd in free:
                os.close(fd)
            socket.send_fds(ours, [b"x"], [0, 0, 0])
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(free[room], soft), hard))
            try:
                message, fds = receive(theirs, 16, 8)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert (message, len(fds)) == (b"x", 3 if room == 3 else 0)
            assert os.dup(0) == (free[3] if fds else free[0])  # nothing is left open
            for fd in (*fds, free[3] if fds else free[0]):
                os.close(fd)
