"""The sandbox that is made before there is a plan: it holds what any other holds, or is not used."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from purplebox.isolation import Engine
from purplebox.isolation.forkserver import ForkServer
from purplebox.isolation.hierarchy import Hierarchy
from purplebox.policies import Policy, load_policy
from purplebox.policies.model import SyscallRule

pytestmark = pytest.mark.anyio
BASE = load_policy("base")
AHEAD_SECONDS = 0.3  # until it has come to rest

# All by which one sandbox could differ from another of its policy.
LOOK = """
import json, os, socket, stat, sys

def read(path):
    with open(path) as file:
        return file.read()

def tried(path, act):
    try:
        act(path)
    except OSError as error:
        return error.errno
    return 0

def make(path):
    os.close(os.open(path + "/probe", os.O_CREAT | os.O_WRONLY))
    os.unlink(path + "/probe")

mounts = {}
for line in read("/proc/self/mountinfo").splitlines():
    fields = line.split()
    after = fields.index("-")
    mounts[fields[4]] = [fields[5], fields[6:after], fields[after + 1], fields[after + 3]]  # the topmost
status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
held = [name for name in status if name.startswith(("Cap", "Uid", "Gid", "Groups", "NoNew", "Seccomp"))]
room = os.statvfs("/tmp")
places = ["/", "/usr", "/etc", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/proc/sys", os.environ["HOME"], *sys.argv[1:]]
print(json.dumps({
    "mounts": mounts, "held": {name: status[name] for name in held}, "limits": read("/proc/self/limits"),
    "room": [room.f_blocks, room.f_files], "made": {place: tried(place, make) for place in places},
    "seen": {place: tried(place, os.listdir) for place in places},
    "names": {place: sorted(os.listdir(place)) for place in ("/", "/dev", "/dev/pts", "/etc", "/run")},
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()),
    "fds": sorted(os.readlink("/proc/self/fd/" + fd).partition(":")[0] for fd in os.listdir("/proc/self/fd") if fd in "012"),
    "count": len(os.listdir("/proc/self/fd")), "cwd": os.getcwd(), "host": socket.gethostname(),
    "environment": dict(os.environ), "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "peer": tried("/proc/1", lambda path: os.readlink(path + "/exe")),
    "cgroups": sorted(line.split(":")[1] for line in read("/proc/self/cgroup").splitlines() if "/purple-" in line),
}))
"""


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(name) for name in text.split()]
    return []


def family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += children(one)
    return found


def program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def pids_1(pid: int) -> list[int]:
    return [one for one in family(pid) if program(one) == "init"]


async def waiting(server: ForkServer) -> int:
    """Have a sandbox wait for a plan, for some time; its pid 1, on the host."""
    if server._process is None:
        offer = await server.take()  # the first of all is made in a hurry
        for channel in (offer.to_keeper, offer.to_zygote):
            channel.close()
    assert server._process is not None
    while True:
        pids = pids_1(server._process.pid)
        if len(pids) == 1:
            await anyio.sleep(AHEAD_SECONDS)
            if pids == pids_1(server._process.pid):
                return pids[0]
        await anyio.sleep(0.02)


async def look(engine: Engine, *places: str) -> dict[str, Any]:
    python = os.path.realpath(sys.executable)
    result = await engine.run([python, "-I", "-S", "-c", LOOK, *places])
    assert (result.exit_code, result.stderr) == (0, b"")
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def changed(section: str, **values: object) -> Policy:
    part = getattr(BASE, section).model_copy(update=values)
    return BASE.model_copy(update={section: part})


def policies(more: Path) -> dict[str, tuple[Policy, bool]]:
    """By name: one, and whether it is served by what was made ahead."""
    deny = changed("syscalls", deny=(*BASE.syscalls.deny, "chdir"))
    rule = SyscallRule(syscall="chdir", arg=0, op="eq", value=7, action="deny")
    wide = ("/etc", "/proc", *(["/dev"] if os.geteuid() else []))  # devtmpfs has no idmapped mounts
    return {
        "base": (BASE, True),
        "other limits": (
            changed("resources", open_files=77, disk_bytes=1 << 20, memory_bytes=None, processes=9),
            True,
        ),
        "little room": (changed("filesystem", tmp_bytes=1 << 20), True),
        "grants": (changed("filesystem", read=(str(more),), write=(str(more / "w"),)), True),
        "workspace read": (changed("filesystem", workspace="read"), True),
        "workspace none": (changed("filesystem", workspace="none"), True),
        "another filter": (changed("syscalls", deny=(*BASE.syscalls.deny, "sethostname")), True),
        "above our own": (changed("filesystem", read=wide), False),
        "no chdir": (deny, False),
        "chdir by rule": (changed("syscalls", rules=(rule,)), False),
        "network": (changed("network", isolated=False), False),
        "block I/O": (changed("resources", io_bytes_per_second=1 << 30), False),
    }


NAMES = list(policies(Path("/")))


@pytest.mark.parametrize("name", NAMES)
async def test_the_first_is_as_the_others(
    name: str, server: ForkServer, workspace: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    (more / "w").mkdir(parents=True)
    (workspace / ".git").mkdir()
    (workspace / ".git" / "config").write_text("")
    (workspace / ".env").write_text("secret")
    policy, ahead = policies(more)[name]
    hidden = policy.filesystem.model_copy(update={"hide": (".env",)})
    policy = policy.model_copy(update={"filesystem": hidden})
    places = [str(workspace), str(workspace / ".git"), str(more), str(more / "w")]
    pid = await waiting(server)
    async with Engine(policy, workspace) as engine:
        while not engine._commands._ready:
            await anyio.sleep(0.01)
        assert is_alive(pid) == ahead
        first, second = await look(engine, *places), await look(engine, *places)
        assert not is_alive(pid)  # it was used
    assert first == second


async def test_what_waits_for_a_plan_is_confined_by_it_before_it_obeys(
    server: ForkServer, workspace: Path
) -> None:
    """The denial of a policy's own beside its control, in first sandboxes both."""
    command = ["chmod", "600", "file"]
    (workspace / "file").write_text("")
    (workspace / "file").chmod(0o666)
    codes: list[int | None] = []
    for deny in ((), ("chmod", "fchmod", "fchmodat", "fchmodat2")):
        await waiting(server)
        policy = changed("syscalls", deny=(*BASE.syscalls.deny, *deny))
        async with Engine(policy, workspace) as engine:
            result = await engine.run(command)
            codes.append(result.exit_code)
    assert codes == [0, 1]
    assert b"Operation not permitted" in result.stderr


async def test_a_pid_1_that_waits_has_been_lent_nothing(
    server: ForkServer, workspace: Path
) -> None:
    pid = await waiting(server)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    opened = {os.readlink(entry).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert {name for name in opened if not name.startswith("/sys/fs/cgroup")} <= {
        "/dev/null", "pipe", "socket", "anon_inode", "/memfd", "/",
    }  # fmt: skip
    assert str(workspace) not in Path(f"/proc/{pid}/mountinfo").read_text()
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


async def test_one_that_died_while_it_waited_is_replaced(
    server: ForkServer, workspace: Path
) -> None:
    os.kill(pid := await waiting(server), signal.SIGKILL)
    while is_alive(pid):  # kill(2) does not wait for the end
        await anyio.sleep(0.01)
    async with Engine(BASE, workspace) as engine:
        assert (await engine.run(["true"])).exit_code == 0


async def test_what_is_hidden_is_hidden_in_the_first(server: ForkServer, workspace: Path) -> None:
    await waiting(server)
    many = workspace / "many"
    many.mkdir()
    for number in range(3):
        (many / f"{number}.env").write_text("")
    policy = changed("filesystem", hide=("many/*.env",))
    async with Engine(policy, workspace) as engine:
        first = await engine.run(["sh", "-c", "cat many/*"])
        second = await engine.run(["sh", "-c", "cat many/*"])
    assert (first.exit_code, first.stdout) == (second.exit_code, second.stdout) == (0, b"")


async def test_two_engines_have_two(server: ForkServer, workspace: Path) -> None:
    seen: list[set[int]] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await anyio.sleep(AHEAD_SECONDS)
            engine = await stack.enter_async_context(Engine(BASE, workspace))
            assert (await engine.run(["true"])).exit_code == 0
            while not (pids := set(pids_1(engine._link._keeper))):  # its replacement
                await anyio.sleep(0.01)
            seen.append(pids)
    assert not seen[0] & seen[1]


GATEWAY = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        await engine.run(["true"])
    print("ended", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_gateway_leaves_none_that_waits(workspace: Path) -> None:
    argv = [sys.executable, "-c", GATEWAY, str(workspace)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        gateway.stdout.readline()
        while not pids_1(gateway.pid):  # the control: there is one
            await anyio.sleep(0.02)
        await anyio.sleep(AHEAD_SECONDS)
        left = family(gateway.pid)[1:]
        names = {f"purple-{pid}" for pid in left}
        made = cgroups() & names
        gateway.kill()
    assert made or not can_have_cgroups()
    until = time.monotonic() + 120
    while any(map(is_alive, left)) or cgroups() & names:
        assert time.monotonic() < until, (list(filter(is_alive, left)), cgroups() & names)
        await anyio.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def cgroups() -> set[str]:
    return {path.name for path in Path("/sys/fs/cgroup").glob("**/purple-*")}


def can_have_cgroups() -> bool:
    hierarchy = Hierarchy()
    hierarchy.close()
    return hierarchy.version > 0
