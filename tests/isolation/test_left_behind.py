"""Nothing is left behind: after many calls, and after a gateway was killed at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purplebox.isolation import Engine, SetupError, leftovers, scope
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
                with contextlib.suppress(FileNotFoundError):  # it has been removed meanwhile
                    inside = sum(entry.is_dir() for entry in os.scandir(Path(place, name)))
                    counts[name] = inside + counts.get(name, 0)
    return counts


def dead_cgroups() -> set[str]:
    return {name for name in cgroups() if not os.path.exists(f"/proc/{name[7:]}")}


def descriptors(pid: int) -> list[str]:
    found: list[str] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def of_sandboxes(keeper: int, zygote: int) -> dict[str, int]:
    """Descriptors of both, but for those of which some are kept for the next sandboxes; and those of
    mounts, which either has."""
    both = descriptors(keeper) + descriptors(zygote)
    kinds = {
        kind: sum(kind in link for link in both) for kind in ("net:", "mnt:", "cgroup", "[pidfd]")
    }
    assert kinds["net:"] <= SPARE_NETWORKS + 16  # and those of what waits
    assert kinds["cgroup"] <= 8 * 4 + 4
    assert kinds["[pidfd]"] <= 16
    mounts = kinds.pop("mnt:")
    return {"descriptors of both": len(both) - mounts - sum(kinds.values()), "mounts held": mounts}


def state(gateway: int, keeper: int, zygote: int) -> dict[str, int]:
    """What there is of each kind, in the three processes and of their sandboxes."""
    return {
        "descriptors of gateway": len(descriptors(gateway)),
        **of_sandboxes(keeper, zygote),
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


def test_the_zygote_reaps_what_has_ended_although_nothing_more_is_asked_of_it(
    workspace: Path,
) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            (outer,) = children(engine._link._keeper)
            (zygote,) = children(outer)
            await engine.run(["true"])
            before = await settled(engine, engine._link._keeper, zygote)
            processes = [await engine.start(["true"], stdin="null") for _ in range(4)]
            assert len(children(zygote)) > before["sandboxes"]
            for process in processes:
                async with process:
                    assert (await process.wait()).exit_code == 0
            after = await settled(engine, engine._link._keeper, zygote)
            assert after["sandboxes"] == before["sandboxes"]

    asyncio.run(go())


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
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them gets to remove anything
            for pid in family:
                with contextlib.suppress(
                    ProcessLookupError
                ):  # it has ended, or ends with one before it
                    os.kill(pid, number)
                family += [child for child in children(pid) if child not in family]
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
                while left & set(cgroups()):  # when nothing has been to do for a moment
                    await asyncio.sleep(0.01)

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


@pytest.mark.parametrize("moment", ["open", "flock"])
def test_what_is_swept_before_it_is_held_is_made_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another gateway starts just then."""
    module = {"open": os, "flock": fcntl}[moment]
    real = getattr(module, moment)

    def swept(*arguments: object) -> object:
        monkeypatch.setattr(module, moment, real)
        leftovers.sweep(str(tmp_path), re.compile(r"purple-\d"), os.rmdir)
        assert not (tmp_path / "purple-1").exists()
        return real(*arguments)

    monkeypatch.setattr(module, moment, swept)
    held = leftovers.make(f"{tmp_path}/purple-1")
    leftovers.sweep(str(tmp_path), re.compile(r"purple-\d"), os.rmdir)
    assert (tmp_path / "purple-1").is_dir()
    os.close(held)


@pytest.mark.parametrize("stopped", [True, False])
def test_an_engine_closes_though_its_keeper_is_stopped_and_the_next_one_removes_what_that_leaves(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as other, Engine(BASE, workspace) as engine:
            await other.run(["true"])
            keeper = engine._link._keeper
            running = asyncio.create_task(engine.run(["sh", "-c", "touch begun; sleep 1000"]))
            while not (workspace / "begun").exists():
                await asyncio.sleep(0.01)
            family = [keeper]
            for pid in family:
                family += children(pid)
            assert len(family) > 4
            have = f"purple-{keeper}" in cgroups()
            if stopped:
                monkeypatch.setattr("purplebox.isolation.ending._LOOK_SECONDS", 0.2)
                os.kill(keeper, signal.SIGSTOP)
            async with asyncio.timeout(120):
                await engine.aclose()
                with contextlib.suppress(SetupError):
                    assert (await running).exit_code != 0
                while any(_state(pid) not in "ZX" for pid in family):
                    await asyncio.sleep(0.01)
            # The control: one that is not stopped is left its time and removes its own.
            if stopped and have and scope.can_ask():  # systemd ends the scope, when it gets to it
                async with asyncio.timeout(120):
                    while f"purple-{keeper}" in cgroups():
                        await asyncio.sleep(0.01)
            else:
                assert (f"purple-{keeper}" in cgroups()) == (stopped and have)
            assert (await other.run(["true"])).exit_code == 0
            async with Engine(BASE, workspace) as following:
                await following.run(["true"])
                while f"purple-{keeper}" in cgroups():  # when nothing has been to do for a moment
                    await asyncio.sleep(0.01)

    asyncio.run(go())


def test_what_is_asked_of_a_keeper_and_a_zygote_that_are_behind_is_not_lost(
    workspace: Path,
) -> None:
    """Many sandboxes that end at once are more messages than there is room for."""

    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            link, stock = engine._link, engine._link._cgroups
            (outer,) = children(link._keeper)
            (zygote,) = children(outer)
            for channel in (link._to_keeper, link._to_zygote):
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # a few messages
            sleep = ["sleep", "1000"]
            *many, last = [await engine.start(sleep, stdin="null") for _ in range(40)]

            os.kill(link._keeper, signal.SIGSTOP)
            for process in many:
                process.kill()
            for process in many:
                await process.wait()
            os.kill(zygote, signal.SIGSTOP)
            for _ in range(40):
                last.send_signal(signal.SIGCONT)
            last.send_signal(signal.SIGTERM)
            calls = [asyncio.create_task(engine.run(["true"])) for _ in range(40)]
            await asyncio.sleep(0)
            # The control: there is more to be said than there is room for.
            assert link._for_zygote._untold
            assert link._for_keeper._untold or not stock.facts["version"]
            for pid in (zygote, link._keeper):
                os.kill(pid, signal.SIGCONT)

            assert (await last.wait()).signal == signal.SIGTERM
            for result in await asyncio.gather(*calls):
                assert result.exit_code == 0
            for process in (*many, last):
                await process.aclose()
            while cgroups().get(f"purple-{link._keeper}", 0) != len(stock.facts["bases"]) * (
                len(stock._free) + len(link._started)
            ):
                await asyncio.sleep(0.01)

    async def in_time() -> None:
        async with asyncio.timeout(250):
            await go()

    asyncio.run(in_time())


def test_what_a_zygote_has_said_when_its_keeper_is_killed_is_for_nobody(workspace: Path) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            await engine.run(["true"])
            while len(engine._commands._ready) < 2:  # whose sandboxes nobody here waits for
                await asyncio.sleep(0.01)
            link, loop = engine._link, asyncio.get_running_loop()
            problems: list[object] = []
            loop.set_exception_handler(lambda _, context: problems.append(context))
            calls = [
                asyncio.create_task(engine.start(["true"], stdin="null", stderr="stdout"))
                for _ in range(4)
            ]
            while not link._spawning:
                await asyncio.sleep(0)
            # Both have something for the loop when it looks next: the answers, and the end.
            while not select.select([link._to_zygote], [], [], 0.01)[0]:
                pass
            held = len(link._spawning)
            os.kill(link._keeper, signal.SIGKILL)
            while not link._dead:
                select.select([link._to_keeper], [], [])
                link._on_keeper()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert held and sum(isinstance(error, SetupError) for error in ended) >= held
            await asyncio.sleep(0)  # what the loop was about to call
            assert not problems

    before = None
    for _ in range(2):  # the first starts what is started once for all engines
        asyncio.run(go())
        before = before or descriptors(os.getpid())
    assert len(descriptors(os.getpid())) == len(before or ())


@pytest.mark.parametrize("number", [100, -1, 1 << 40])
def test_what_is_no_signal_is_refused_and_ends_nobody(workspace: Path, number: int) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            link = engine._link
            async with await engine.start(["cat"]) as process:
                await process.stdin.send(b"x")
                assert await process.stdout.receive() == b"x"  # it has a process group
                with pytest.raises(ValueError, match=f"no signal {number}"):
                    process.send_signal(number)
                sandbox = process._held.execution._started.number
                request = json.dumps({"number": sandbox, "signal": number}).encode()
                link._for_zygote.send(request)  # as if nobody had looked
                assert (await engine.run(["true"])).exit_code == 0
                async with await engine.start(["true"], stdin="null") as another:
                    assert (await another.wait()).exit_code == 0  # made after that was read
                process.send_signal(0)
                process.terminate()  # the control
                assert (await process.wait()).signal == signal.SIGTERM

    asyncio.run(go())
