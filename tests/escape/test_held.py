"""What is not one attack but a state or a race: races for a link, what stays of a write, the environment,
what Landlock holds by ABI, what a killed gateway leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purplebox.isolation import (
    Enforcement,
    EnforcementError,
    Engine,
    Layer,
    OperationError,
    Result,
    landlock,
)
from purplebox.isolation.landlock import handled_access
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")


def run(workspace: Path, command: str, policy: Policy = BASE) -> Result:
    async def go() -> Result:
        async with Engine(policy, workspace) as engine:
            return await engine.run(["sh", "-c", command])

    return asyncio.run(go())


SWAP = """
import os, sys
name, inside, outside = sys.argv[1:]
while True:
    for target in (inside, outside):
        os.symlink(target, name + ".new")
        os.rename(name + ".new", name)
"""


def test_a_link_swapped_while_it_is_read_never_shows_the_outside(
    workspace: Path, tmp_path: Path
) -> None:
    """Lesson 12: between check and open there is nothing to win, for the kernel decides at the open."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    (workspace / "own").write_text("own")
    link = workspace / "link"
    link.symlink_to("own")
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, str(link), "own", str(secret)])

    async def go() -> list[str]:
        seen: list[str] = []
        async with Engine(BASE, workspace) as engine:
            for _ in range(30):
                try:
                    seen.append((await engine.call("read_file", {"path": "link"})).value["content"])
                except OperationError as error:
                    seen.append(error.code)
            loop = (
                "for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6 7 8 9; do cat link; done; done"
            )
            seen.append((await engine.run(["sh", "-c", loop])).stdout.decode())
        return seen

    try:
        seen = asyncio.run(go())
    finally:
        swapper.kill()
        swapper.wait()
    assert "s3cret" not in "".join(seen)
    assert set(seen[:-1]) <= {"own", "ENOENT", "ELOOP", "EACCES"}
    assert secret.read_text() == "s3cret"  # the control: outside it is there to be read


def test_a_write_that_succeeds_is_there_afterwards(workspace: Path) -> None:
    """Lesson 17: where it may not write it fails; nothing lands in a place that vanishes unsaid."""
    result = run(
        workspace, "echo kept > kept && mkdir -p a/b && echo deep > a/b/c && echo no > /srv-x"
    )
    assert (workspace / "kept").read_text() == "kept\n"
    assert (workspace / "a" / "b" / "c").read_text() == "deep\n"
    assert result.exit_code != 0
    assert b"Read-only file system" in result.stderr or b"Permission denied" in result.stderr
    read_only = BASE.model_copy(
        update={"filesystem": BASE.filesystem.model_copy(update={"workspace": "read"})}
    )
    refused = run(workspace, "echo x > lost", read_only)
    assert b"Read-only file system" in refused.stderr
    assert not (workspace / "lost").exists()


def test_a_hard_link_shows_no_other_file_and_protects_the_named_one(workspace: Path) -> None:
    """Lesson 13: a link within the workspace is the workspace's; a protected file gets none."""
    (workspace / ".git").mkdir()
    (workspace / ".git" / "config").write_text("[core]\n")
    (workspace / "plain").write_text("plain")
    result = run(workspace, "ln plain second && echo changed > second; ln .git/config third")
    assert (workspace / "plain").read_text() == "changed\n"  # the control
    assert b"Invalid cross-device link" in result.stderr
    assert not (workspace / "third").exists()


def test_the_environment_is_what_the_policy_names(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lesson 33: what steers loaders, shells and interpreters does not pass by itself."""
    steering = ("LD_LIBRARY_PATH", "BASH_ENV", "NODE_OPTIONS", "GIT_DIR", "PYTHONPATH", "PERL5LIB")
    for name in steering:
        monkeypatch.setenv(name, "/nonexistent")
    names = {line.split("=")[0] for line in run(workspace, "env").stdout.decode().splitlines()}
    assert not names & set(steering)
    passing = BASE.environment.model_copy(update={"pass_": ("GIT_DIR",)})
    granted = run(workspace, "env", BASE.model_copy(update={"environment": passing}))
    assert b"GIT_DIR=/nonexistent" in granted.stdout


def test_no_new_privs_in_every_way_to_run(workspace: Path) -> None:
    """Lesson 29."""
    look = ["grep", "-E", "^(NoNewPrivs|Seccomp):", "/proc/self/status"]

    async def go() -> list[bytes]:
        async with Engine(BASE, workspace) as engine:
            pooled = await engine.run(look)
            with_stdin = await engine.run(look, stdin=b"x")
            reader, writer = os.pipe()
            null = os.open(os.devnull, os.O_RDONLY)
            await engine.run_with(look, (null, writer, writer), signals=asyncio.Queue())
            os.close(writer)
            os.close(null)
            with os.fdopen(reader, "rb") as file:
                handed = file.read()
            value = (await engine.call("read_file", {"path": "/proc/self/status"})).value
        lines = [
            line
            for line in value["content"].splitlines()
            if line.startswith(("NoNewPrivs:", "Seccomp:"))
        ]
        operation = "".join(f"{line}\n" for line in lines).encode()
        return [pooled.stdout, with_stdin.stdout, handed, operation]

    assert asyncio.run(go()) == [b"NoNewPrivs:\t1\nSeccomp:\t2\n"] * 4


RIGHTS = {
    1: (1 << 13) - 1,
    2: (1 << 14) - 1,
    3: (1 << 15) - 1,
    4: (1 << 15) - 1,
    5: (1 << 16) - 1,
    6: (1 << 16) - 1,
}


def test_every_right_of_an_abi_is_handled() -> None:
    """Lesson 32. Source: <linux/landlock.h>, LANDLOCK_ACCESS_FS_*."""
    assert {abi: handled_access(abi) for abi in RIGHTS} == RIGHTS


@pytest.mark.parametrize("abi", range(7))
def test_what_an_older_kernel_has_is_enough_where_mounts_hold_the_rest(
    workspace: Path, abi: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12 and Ubuntu 22.04 have ABI 2 and 1."""
    if abi > landlock.abi_version():
        return  # the kernel itself is older
    monkeypatch.setattr("purplebox.isolation.landlock.abi_version", lambda: abi)
    (granted := workspace.parent / "granted").mkdir()
    (file := granted / "file").write_text("xyz")
    os.chown(granted, *owner_of(workspace))
    os.chown(file, *owner_of(workspace))

    def truncate(grant: str) -> bytes:
        """By whom the file belongs to, inside as well: only what is granted is in the way."""
        files = BASE.filesystem.model_copy(update={grant: (str(granted),)})
        policy = BASE.model_copy(update={"filesystem": files, "require": ("mounts", "landlock")})
        program = f"import os; os.truncate({str(file)!r}, 1)"

        async def go() -> Result:
            async with Engine(policy, workspace) as engine:
                return await engine.run(["python3", "-c", program])

        return asyncio.run(go()).stderr

    if abi == 0:
        with pytest.raises(EnforcementError, match="landlock is none"):
            truncate("read")
        return
    assert b"Read-only file system" in truncate("read")  # mounts are asked before Landlock
    assert file.read_text() == "xyz"
    assert truncate("write") == b""  # the control
    assert file.read_text() == "x"


def owner_of(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def test_partly_held_alone_is_not_enough() -> None:
    half = Layer(status="partial", reason="half", held_by="mounts")
    for other, missing in (
        (Layer(status="full"), []),
        (Layer(status="none"), ["layer landlock is partial: half"]),
    ):
        layers = {"landlock": half, "mounts": other}
        assert Enforcement(layers=layers).missing(("landlock",)) == missing


@pytest.mark.parametrize("abi", range(7))
def test_an_older_kernel_holds_what_it_can_and_says_so(
    workspace: Path, abi: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if abi > landlock.abi_version():
        return  # the kernel itself is older
    monkeypatch.setattr("purplebox.isolation.landlock.abi_version", lambda: abi)
    policy = BASE.model_copy(update={"require": ()})

    async def go() -> tuple[Result, str, str]:
        async with Engine(policy, workspace) as engine:
            layer = engine.enforcement.layers["landlock"]
            tried = "echo x > own && echo x > /proc/self/comm; : > own"
            return await engine.run(["sh", "-c", tried]), layer.status, layer.reason

    result, status, reason = asyncio.run(go())
    assert status == ("none" if abi == 0 else "partial" if abi < 3 else "full")
    assert bool(reason) == (abi < 3)
    assert (workspace / "own").exists()
    assert (b"Permission denied" in result.stderr) == (abi > 0)


def test_landlock_holds_every_thread(workspace: Path) -> None:
    """Lesson 32: also one that was there before, and one that starts later."""
    program = (
        "import threading\n"
        "def attempt():\n"
        "    try: open('/proc/thread-self/comm', 'w').write('x'); print('ok')\n"
        "    except OSError as error: print(error.errno)\n"
        "threads = [threading.Thread(target=attempt) for _ in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; attempt()\n"
    )

    async def go() -> Result:
        async with Engine(BASE, workspace) as engine:
            return await engine.run(["python3", "-c", program])

    if landlock.abi_version():
        assert asyncio.run(go()).stdout == b"13\n" * 4


GATEWAY = """
import asyncio, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.policies import load_policy

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        await engine.run(["sh", "-c", "echo $$ > started; setsid sleep 300 & while :; do sleep 1; done"])

asyncio.run(main())
"""


def test_a_killed_gateway_leaves_nothing(workspace: Path) -> None:
    """Lesson 47."""
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, str(workspace)])
    while not (workspace / "started").exists():
        time.sleep(0.01)
    family = _descendants(gateway.pid)
    assert len(family) > 3  # the control: keeper, zygote, sandboxes
    groups = {path for pid in family for path in _groups(pid)}
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()
    while any(os.path.exists(f"/proc/{pid}") and not _zombie(pid) for pid in family):
        time.sleep(0.01)  # what never ends ends by the test's own time limit
    while any("purple-" in path and os.path.exists(path) for path in groups):
        time.sleep(0.01)


def _descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue
        parents[int(name)] = int(text.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def _groups(pid: int) -> list[str]:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [f"/sys/fs/cgroup/{names}{path}".replace("//", "/") for _, names, path in parts]


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
