"""What is built before there is a plan: it serves a plan only where it shows the host as it is then."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import Engine, SetupError, forkserver, link, sandbox, system
from purplebox.isolation.cgroup import Cgroup
from purplebox.isolation.ground import Ground, likely
from purplebox.isolation.marks import Marks
from purplebox.isolation.plan import Plan, compile_plan, compile_program, interpreters
from purplebox.isolation.system import NETWORK_FILES
from purplebox.policies import load_policy

pytestmark = pytest.mark.anyio
BASE = load_policy("base")
LIKELY = likely(interpreters())


def children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zygotes(engine: Engine) -> list[int]:
    (outer,) = children(engine._link._keeper)
    return [outer, *children(outer)]


def test_what_is_likely_serves_a_plan_with_and_without_network(workspace: Path) -> None:
    base = compile_plan(BASE, workspace)
    assert LIKELY.serves(base)
    assert LIKELY.serves(compile_plan(load_policy("web-scraper"), workspace))
    for other in (
        base._replace(system=base.system[1:]), base._replace(system=(*base.system, "/srv")),
        base._replace(devices=("/dev/tty",)), base._replace(namespaces=False),
        base._replace(runtime=("/srv",)),
        base._replace(id_maps=("newuidmap", "0 1 1")),
    ):  # fmt: skip
        assert not LIKELY.serves(other)
    assert set(NETWORK_FILES) & set(LIKELY.system) == {"/etc/hosts"}  # of which there is a copy


async def test_what_is_asked_for_meanwhile_is_left_to_the_zygote_that_the_plan_needs(
    workspace: Path,
) -> None:
    plan = compile_plan(BASE, workspace)
    for needed in (plan, plan._replace(system=(*plan.system, "/etc/dpkg"))):
        found = link.Link()
        try:
            await found.begin()
            os.kill(found._keeper, signal.SIGSTOP)  # while the zygote that it has goes on
            await found.open(needed)
            asked = asyncio.create_task(found.spawn_first(Marks()))
            await asyncio.sleep(0)  # it has been
            found.restrict(compile_program(BASE, needed))
            for _ in range(20):
                await asyncio.sleep(0.01)
            os.kill(found._keeper, signal.SIGCONT)
            async with asyncio.timeout(120):
                started = await asked
            await started.gone()
            found.gone(started)
        finally:
            await found.close()


async def test_there_is_no_sandbox_before_its_filter(workspace: Path) -> None:
    plan = compile_plan(BASE, workspace)
    found = link.Link()
    try:
        await found.begin()
        await found.open(plan)
        asked = asyncio.create_task(found.spawn_first(Marks()))
        for _ in range(20):  # it would come in a few milliseconds
            await asyncio.sleep(0.01)
        assert not asked.done()
        found.restrict(compile_program(BASE, plan))
        async with asyncio.timeout(60):
            started = await asked
        started.kill()
        await started.gone()
        found.gone(started)
    finally:
        await found.close()


async def test_a_zygote_that_dies_before_its_keeper_can_say_why_is_no_riddle(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    """Its end is heard first where the keeper is not done with hearing of it."""
    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    (to_keeper, keeper), (to_zygote, zygote) = ends
    for channel in (to_keeper, to_zygote):
        channel.setblocking(False)
    none: dict[str, Any] = {"version": 0, "reason": "", "bases": {}}
    with subprocess.Popen(["sleep", "inf"]) as process:

        async def take() -> forkserver.Offer:
            return forkserver.Offer(process.pid, none, to_keeper, to_zygote)

        monkeypatch.setattr(forkserver.FORK_SERVER, "take", take)
        found = link.Link()
        await found.begin()
        await found.open(compile_plan(BASE, workspace))
        standing = asyncio.create_task(found.built())
        asked = asyncio.create_task(found.spawn_first(Marks()))
        await asyncio.sleep(0)  # it has been
        zygote.close()
        for _ in range(10):  # in which the loop reads that
            await asyncio.sleep(0)
        assert not standing.done()
        keeper.send(b'{"error": "no tproxy"}')
        keeper.close()
        try:
            async with asyncio.timeout(60):
                with pytest.raises(SetupError, match="no tproxy"):
                    await standing
                with pytest.raises(SetupError, match="keeper is gone"):
                    await asked
        finally:
            await found.close()
            process.kill()


async def test_who_waits_for_a_view_hears_that_it_was_closed(workspace: Path) -> None:
    found = link.Link()
    await found.begin()
    os.kill(found._keeper, signal.SIGSTOP)
    await found.open(compile_plan(BASE, workspace))
    standing = asyncio.create_task(found.built())
    await asyncio.sleep(0)  # it waits
    os.kill(found._keeper, signal.SIGCONT)
    await found.close()
    async with asyncio.timeout(60):
        with pytest.raises(SetupError, match="gone"):
            await standing


async def test_a_plan_that_needs_another_view_gets_one(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    more = Path("/etc/dpkg")  # in no view otherwise
    monkeypatch.setattr(sandbox, "compile_plan", with_system(str(more)))
    async with Engine(BASE, workspace) as engine:
        seen = await engine.run(["cat", f"{more}/origins/debian"])
        written = await engine.run(["sh", "-c", f"> {more}/new"])
        keeper = engine._link._keeper
        assert len(zygotes(engine)) == 2  # and not those that had waited in vain, too
    assert seen.stdout == (more / "origins/debian").read_bytes()
    assert b"Read-only file system" in written.stderr or b"Permission denied" in written.stderr
    await ended(keeper)


async def ended(pid: int) -> None:
    while os.path.exists(f"/proc/{pid}"):  # its channel is closed shortly before
        await asyncio.sleep(0.01)


def with_system(path: str) -> Callable[..., Plan]:
    def compiled(*arguments: Any, **named: Any) -> Plan:
        made = compile_plan(*arguments, **named)
        return made._replace(system=(*made.system, path))

    return compiled


async def test_a_view_that_cannot_be_built_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    async with Engine(BASE, workspace) as engine:  # the control
        assert (await engine.run(["true"])).exit_code == 0
    monkeypatch.setattr(sandbox, "compile_plan", with_system("/nonexistent"))
    engine = Engine(BASE, workspace)
    with pytest.raises(SetupError, match=r"could not be built.*open_tree\('/nonexistent'"):
        await engine.__aenter__()
    assert engine._link._dead
    monkeypatch.undo()
    whole = BASE.filesystem.model_copy(update={"read": ("/",)})
    with pytest.raises(SetupError, match="/ cannot be granted as a whole"):
        await Engine(BASE.model_copy(update={"filesystem": whole}), workspace).__aenter__()


async def test_a_grant_above_the_system_keeps_the_system_on_top(workspace: Path) -> None:
    wide = ("/etc", "/proc", *(["/dev"] if os.geteuid() else []))  # devtmpfs has no idmapped mounts
    files = BASE.filesystem.model_copy(update={"read": wide})
    async with Engine(BASE.model_copy(update={"filesystem": files}), workspace) as engine:
        found = await engine.run(["sh", "-c", "echo x > /dev/null && ls -A /etc && ls /proc"])
        own = await engine.run(["sh", "-c", "ls /proc | grep -cE '^[0-9]+$'"])
    assert found.exit_code == 0, found.stderr
    assert set(os.listdir("/etc")) <= set(found.stdout.decode().splitlines())
    assert int(own.stdout) < 6  # of its own process namespace


def opened(pid: int) -> Iterator[str]:
    """What the descriptors of a process lead to, but for those that it has closed meanwhile."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry)


async def test_what_waits_holds_its_channels_and_namespaces_and_no_file_of_the_host(
    monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    server = forkserver.ForkServer()
    monkeypatch.setattr(link, "FORK_SERVER", server)
    try:
        offer = await server.take()
        allowed = {"socket", "mnt", "pid", "net", "anon_inode", "/memfd", "/dev/null", "pipe"}
        allowed |= {os.readlink("/proc/self/fd/2").partition(":")[0]}  # stderr is the gateway's
        until = time.monotonic() + 60
        while True:  # it may be at work still
            found = [pid for outer in children(offer.keeper) for pid in children(outer)]
            links = [name for pid in found for name in opened(pid)]
            kinds = {name.partition(":")[0] for name in links}
            if (len(found) == 1 and kinds <= allowed) or time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
        (zygote,) = found
        mounts = Path(f"/proc/{zygote}/mountinfo").read_text()
        for channel in (offer.to_keeper, offer.to_zygote):
            channel.close()
    finally:
        server.close()
    own = os.readlink("/proc/self/ns/mnt")
    assert own not in links
    assert kinds <= allowed, links
    assert "/.old" not in mounts and str(workspace) not in mounts


HOST = """
import asyncio, json, os, sys
from pathlib import Path
from purplebox.isolation import Engine, libc
from purplebox.policies import load_policy

uid, gid = os.geteuid(), os.getegid()
libc.unshare(libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if uid else 0))
if uid:
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
workspace, stage = sys.argv[1:]
Path(stage, "group").write_text("before:x:1:\\n")
libc.mount(f"{stage}/group", "/etc/group", None, libc.MS_BIND)

def mount():
    libc.mount("stage", f"{workspace}/mounted", "tmpfs")
    Path(workspace, "mounted", "inside").write_text("x")

def write():
    Path(stage, "group").write_text("after:x:1:\\n")

async def seen(said):
    async with Engine(load_policy("base"), Path(workspace)) as engine:
        result = await engine.run(["sh", "-c", "cat /etc/group; ls mounted"])
        said.append((result.stdout + result.stderr).decode().split())

async def main():
    said = []
    await seen(said)
    await asyncio.sleep(0.5)  # another waits by now; what follows holds if none does, too
    mount()
    await seen(said)
    await asyncio.sleep(0.5)
    write()
    await seen(said)
    print(json.dumps(said))

asyncio.run(main())
"""


def test_what_the_host_mounts_and_writes_meanwhile_is_seen(workspace: Path, tmp_path: Path) -> None:
    (workspace / "mounted").mkdir()
    argv = [sys.executable, "-c", HOST, str(workspace), str(tmp_path)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    before, after = "before:x:1:", "after:x:1:"
    assert json.loads(ran.stdout) == [[before], [before, "inside"], [after, "inside"]]


async def test_what_was_rehearsed_leaves_no_mount(workspace: Path) -> None:
    async with Engine(BASE, workspace) as engine:
        result = await engine.run(["cut", "-d ", "-f5", "/proc/self/mountinfo"])
    mounted = result.stdout.decode().split()
    assert [mounted.count(path) for path in ("/", "/usr", "/dev/null")] == [1, 1, 1], mounted


def test_system_software_that_comes_or_goes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr(system, "SYSTEM", places)
    monkeypatch.setattr(system, "_PARENTS", (str(tmp_path),))
    monkeypatch.setattr(system, "ETC", [])
    old = os.stat(tmp_path).st_ctime_ns + 2_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: old + 10_000_000_000)
    assert system.system_paths() == system.system_paths() == ()
    for index, place in enumerate(places):
        time.sleep(0.02)  # the kernel's tick
        Path(place).mkdir()
        assert system.system_paths() == system.system_paths() == tuple(places[: index + 1])
    time.sleep(0.02)
    Path(places[0]).rmdir()
    assert system.system_paths(["/", "/nonexistent"]) == (places[1], "/")


def test_a_zygote_that_dies_before_it_has_read_all_is_said_to_have_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(keeper: socket.socket, *_: object) -> None:
        select.select([keeper], [], [])
        os._exit(1)

    class NoFiles(Cgroup):
        def open_procs(self) -> list[int]:
            return []

    monkeypatch.setattr("purplebox.isolation.ground.become_zygote", die)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(SetupError, match="the zygote died"):
        Ground(theirs, LIKELY._replace(namespaces=False), group=NoFiles(2, {}))
