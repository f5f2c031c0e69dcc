"""Nothing is left behind: after many calls, and after a gateway was killed at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purplebox.isolation import Engine, leftovers, scope
from purplebox.isolation.zygote import SPARE_NETWORKS
from purplebox.policies import load_policy

BASE = load_policy("base")
CALLS, KILLS, FLIGHT = 10_000, 100, 8


def children(pid: int) -> list[int]:
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(name))
    return found


def cgroups() -> dict[str, int]:
    """Directories below those of keepers that are no more, or of the keepers given by pid."""
    counts: dict[str, int] = {}
    for place, directories, _ in os.walk("/sys/fs/cgroup"):
        for name in directories:
            if name.startswith("purple-") and name[7:].isdigit():
                counts[name] = len(list(Path(place, name).glob("*/"))) + counts.get(name, 0)
    return counts


def dead_cgroups() -> set[str]:
    return {name for name in cgroups() if not os.path.exists(f"/proc/{name[7:]}")}


def descriptors(pid: int) -> int:
    """But for the network namespaces that the zygote keeps for the next sandboxes."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
             if os.path.lexists(f"/proc/{pid}/fd/{fd}")]  # fmt: skip
    networks = sum(link.startswith("net:") for link in links)
    assert networks <= SPARE_NETWORKS + 16  # and those of what waits
    return len(links) - networks


def state(gateway: int, keeper: int, zygote: int) -> dict[str, int]:
    """What there is of each kind, in the three processes and of their sandboxes."""
    return {
        **{f"descriptors of {n}": descriptors(n) for n in (gateway, keeper, zygote)},
        **{f"mounts of {n}": mounts(n) for n in (gateway, keeper, zygote)},
        "sandboxes": len(children(zygote)),
        "cgroups": cgroups().get(f"purple-{keeper}", 0),
    }  # fmt: skip


def mounts(pid: int) -> int:
    return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())


async def settled(engine: Engine, keeper: int, zygote: int) -> dict[str, int]:
    """The state with nothing in flight: as many sandboxes wait as are wanted, and no more."""
    async with asyncio.timeout(120):
        while True:
            await asyncio.sleep(0.3)
            found = state(os.getpid(), keeper, zygote)
            if found["sandboxes"] == engine._commands._wanted:
                return found


@pytest.mark.slow
def test_nothing_is_left_after_ten_thousand_calls(workspace: Path, tmp_path: Path) -> None:
    def outside() -> tuple[object, ...]:
        here = os.getpid()
        files = sorted(os.listdir(tmp_path)), sorted(os.listdir(workspace))
        return len(os.listdir("/proc/self/fd")), mounts(here), children(here), files

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            keeper = engine._link._keeper
            (outer,) = children(keeper)
            (zygote,) = children(outer)
            gate = asyncio.Semaphore(FLIGHT)

            async def call(number: int) -> None:
                async with gate:
                    result = await engine.run(
                        ["sh", "-c", "echo $0 > /tmp/x; sleep 1 &", str(number)]
                    )
                    assert result.exit_code == 0, result.stderr

            await asyncio.gather(*(call(n) for n in range(100)))
            before = await settled(engine, keeper, zygote)
            await asyncio.gather(*(call(n) for n in range(CALLS)))
            after = await settled(engine, keeper, zygote)
            assert after == before

    async def once() -> None:
        async with Engine(BASE, workspace) as engine:
            await engine.run(["true"])

    asyncio.run(once())  # what is started once for all engines is there
    before = outside()
    asyncio.run(go())
    assert outside() == before


GATEWAY = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.isolation.zygote import SPARE_NETWORKS
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        while True:
            await asyncio.gather(
                *(engine.run(["sh", "-c", "echo x > /tmp/x; sleep 5 & sleep 0.01"]) for _ in range(3))
            )

asyncio.run(main())
"""

# Whatever loses its parent becomes a child of this process (PR_SET_CHILD_SUBREAPER): when it has
# none left, nothing of any gateway is alive.
KILLER = """
import os, random, subprocess, sys, time
from purplebox.isolation import libc
workspace, program, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
libc.prctl(36, 1)
random.seed(seed)
for number in range(kills):
    gateway = subprocess.Popen([sys.executable, "-c", program, workspace])
    time.sleep(random.uniform(0.0, 1.5))
    gateway.kill()
    gateway.wait()
deadline = time.monotonic() + 120
while True:
    try:
        if os.waitpid(-1, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "something lives"
            time.sleep(0.05)
    except ChildProcessError:
        break
"""


@pytest.mark.slow
def test_nothing_is_left_when_the_gateway_is_killed_at_any_moment(
    workspace: Path, tmp_path: Path
) -> None:
    seed = str(random.random())
    places = tmp_path / "tmp"
    places.mkdir()
    before = dead_cgroups(), mounts(os.getpid())
    arguments = [str(workspace), GATEWAY, str(KILLS), seed]
    subprocess.run(
        [sys.executable, "-c", KILLER, *arguments], check=True, env={**os.environ, "TMPDIR": str(places)}
    )  # fmt: skip
    until = time.monotonic() + 120  # other programs' keepers may be about to remove theirs
    while dead_cgroups() - before[0] and time.monotonic() < until:
        time.sleep(0.1)
    assert dead_cgroups() - before[0] == set(), seed
    assert mounts(os.getpid()) == before[1]
    assert os.listdir(places) == [] == os.listdir(workspace)


ENGINE = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        await engine.run(["true"])
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def killed_family(workspace: Path) -> set[str]:
    """The names of the cgroups that a gateway killed with all its processes has left."""
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(workspace)], stdout=subprocess.PIPE) as gateway:  # fmt: skip
        assert gateway.stdout is not None
        gateway.stdout.readline()
        family = [gateway.pid]
        for pid in family:
            family += children(pid)
        for pid in family:  # none of them gets to remove anything
            os.kill(pid, signal.SIGSTOP)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):  # it ends with one that was before it
                os.kill(pid, signal.SIGKILL)
    while any(os.path.exists(f"/proc/{pid}") and _state(pid) not in "ZX" for pid in family):
        time.sleep(0.01)
    return {f"purple-{pid}" for pid in family} & set(cgroups())


def test_what_a_whole_killed_family_has_left_goes_at_the_next_start(workspace: Path) -> None:
    """Keepers remove what gateways leave; nobody is there for a keeper that is killed, too."""
    left = killed_family(workspace)
    for _ in range(2):  # another gateway that is started just now may have been quicker
        left = left or killed_family(workspace)

    async def go() -> None:
        async with Engine(BASE, workspace) as first:  # whose are kept
            async with Engine(BASE, workspace) as second:
                await asyncio.gather(first.run(["true"]), second.run(["true"]))
            assert (await first.run(["true"])).exit_code == 0
            if first.enforcement.layers["cgroup"].status == "full":
                # The control: there was something to remove, but where systemd does it itself.
                assert left or scope.can_ask()
                assert not left & set(cgroups())

    asyncio.run(go())


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_a_directory_that_is_held_is_not_swept(tmp_path: Path) -> None:
    names = re.compile(r"purple-\d+")
    held = leftovers.make(f"{tmp_path}/purple-1")
    os.close(leftovers.make(f"{tmp_path}/purple-2"))
    (tmp_path / "purple-other").mkdir()
    (tmp_path / "purple-3").symlink_to("purple-other")
    leftovers.sweep(str(tmp_path), names, os.rmdir)
    assert {p.name for p in tmp_path.glob("purple-*")} == {"purple-1", "purple-3", "purple-other"}
    os.close(held)
    leftovers.sweep(str(tmp_path), names, os.rmdir)
    assert not (tmp_path / "purple-1").exists()
