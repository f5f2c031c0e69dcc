"""What goes off in one sandbox stays there, while another of the same policy keeps answering."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from purplebox.isolation import Engine, Result
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
MIB = 1 << 20
RESOURCES = BASE.resources.model_copy(
    update={
        "memory_bytes": 96 * MIB,
        "processes": 64,
        "wall_seconds": 250.0,
        "output_bytes": 1 << 16,
        "disk_bytes": 16 * MIB,
    }
)
POLICY = BASE.model_copy(update={"resources": RESOURCES})

FORK_BOMB = "f() { f | f & f; }; f"
MEMORY_BOMB = "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'"
MEMORY_HERD = "for i in 1 2 3 4 5 6; do python3 -c 'x = bytearray(40 << 20); import time; time.sleep(60)' & done; wait"
SHM_BOMB = "while :; do head -c 1M /dev/zero >> /dev/shm/fill || break; done"
DISK_FILL = (
    "n=0; while head -c 1M /dev/zero > /tmp/$n && head -c 1M /dev/zero > ~/$n; do n=$((n+1)); done"
)
OUTPUT_FLOOD = "yes & yes >&2"
DEAF = "trap '' TERM INT HUP QUIT; while :; do sleep 1; done"
DAEMON = "(setsid sh -c 'setsid sh -c \"while :; do date > beat; sleep 0.05; done\" &' &); sleep 60"
ZOMBIES = """python3 -c '
import os, time
made = 0
while made < 1000:
    try:
        if os.fork() == 0: os._exit(0)
    except BlockingIOError: break
    made += 1
print(made, flush=True)'"""
DESCRIPTORS = "python3 -c 'import os\nwhile True: os.pipe()'"
THREADS = """python3 -c '
import os, threading, time
try:
    while True: threading.Thread(target=time.sleep, args=(60,)).start()
except RuntimeError as error:
    os.write(2, str(error).encode())
    os._exit(3)'"""
LONG = 250.0  # each ends long before that, on whatever machine


async def go_off(workspace: Path, bomb: str, policy: Policy, seconds: float) -> Result:
    """The bomb's end; others answer from its start to its end."""
    async with Engine(policy, workspace) as engine:
        task = asyncio.create_task(
            engine.run(["sh", "-c", f": > begun; {bomb}"], wall_seconds=seconds)
        )
        while not (workspace / "begun").exists() and not task.done():
            await asyncio.sleep(0.005)
        answers = 0
        while not task.done() or not answers:
            other = await engine.run(["echo", "alive"])
            assert (other.stdout, other.exit_code) == (b"alive\n", 0), other
            answers += 1
        result = await task
        assert (await engine.run(["echo", "after"])).stdout == b"after\n"
        return result


@pytest.mark.parametrize(
    ("bomb", "seconds", "key"),
    [
        pytest.param(FORK_BOMB, LONG, "resources.processes", id="fork bomb"),
        pytest.param(THREADS, LONG, "resources.processes", id="thread bomb"),
        pytest.param(MEMORY_HERD, LONG, "resources.memory_limit", id="memory bomb of many"),
        pytest.param(DISK_FILL, LONG, "resources.disk", id="disk fill"),
        pytest.param(OUTPUT_FLOOD, 3, "resources.output_limit", id="output flood"),
        pytest.param(DEAF, 1.5, "timeout_seconds", id="signals ignored"),
        pytest.param(DAEMON, 1.5, "timeout_seconds", id="double-forked daemon"),
        pytest.param(DESCRIPTORS, LONG, "resources.open_files", id="descriptor bomb"),
    ],
)
def test_it_is_contained_and_named(workspace: Path, bomb: str, seconds: float, key: str) -> None:
    result = asyncio.run(go_off(workspace, bomb, POLICY, seconds))
    assert key in [limit.key for limit in result.limits], result
    assert len(result.stdout) + len(result.stderr) <= 2 << 16


@pytest.mark.parametrize("bomb", [MEMORY_BOMB, SHM_BOMB], ids=["one process", "shared memory"])
def test_memory_that_one_process_takes(workspace: Path, bomb: str) -> None:
    resources = RESOURCES.model_copy(update={"disk_bytes": None})
    policy = POLICY.model_copy(update={"resources": resources})
    result = asyncio.run(go_off(workspace, bomb, policy, LONG))
    if result.usage.counted_by == "cgroup":
        assert result.reason == "out_of_memory", result
    else:  # RLIMIT_DATA refuses; shared memory is held by tmp_size alone
        assert b"MemoryError" in result.stderr or result.limits[0].key == "filesystem.tmp_size"


def test_a_thousand_zombies(workspace: Path) -> None:
    many = POLICY.model_copy(
        update={
            "resources": RESOURCES.model_copy(update={"processes": 1200, "memory_bytes": 1 << 30})
        }
    )
    result = asyncio.run(go_off(workspace, ZOMBIES, many, LONG))
    assert result.stdout == b"1000\n", result
    assert result.usage.processes_peak is not None
    if result.usage.counted_by == "cgroup":  # else as many as there were at the last look
        assert result.usage.processes_peak >= 1000
    fewer = asyncio.run(go_off(workspace, ZOMBIES, POLICY, LONG))
    if fewer.usage.counted_by == "cgroup":
        assert fewer.stdout == b"62\n"  # of 64, with the shell and Python; a zombie is a process
        assert "resources.processes" in [limit.key for limit in fewer.limits]


def test_nothing_beats_after_the_end(workspace: Path) -> None:
    seconds = 1.0
    while not (workspace / "beat").exists():  # where it had no time to begin, it gets more
        asyncio.run(go_off(workspace, DAEMON, POLICY, seconds))
        seconds *= 4
    before = (workspace / "beat").stat().st_mtime_ns

    async def a_while() -> None:
        await asyncio.sleep(0.3)

    asyncio.run(a_while())
    assert (workspace / "beat").stat().st_mtime_ns == before


def test_no_cgroup_can_be_changed_from_inside(workspace: Path) -> None:
    look = "ls -A /sys; mkdir /tmp/c && mount -t cgroup2 none /tmp/c"

    async def go() -> Result:
        async with Engine(POLICY, workspace) as engine:
            return await engine.run(["sh", "-c", look])

    result = asyncio.run(go())
    assert result.stdout == b""
    assert result.exit_code != 0
    assert os.listdir("/sys")  # the control: outside there is something


def test_processes_of_one_are_not_counted_for_another(workspace: Path) -> None:
    # Those within their limit go on until all four have as many as they want.
    herd = "for i in $(seq 40); do sleep 300 & done; echo > began.$0; until test -e over; do sleep 0.05; done"

    async def go() -> list[Result]:
        async with Engine(POLICY, workspace) as engine:
            within = [asyncio.create_task(engine.run(["sh", "-c", herd, str(n)])) for n in range(4)]
            while len(list(workspace.glob("began.*"))) < 4 and not any(t.done() for t in within):
                await asyncio.sleep(0.01)
            many = "for i in $(seq 200); do sleep 300 & done; wait"
            over = await engine.run(["sh", "-c", many])
            (workspace / "over").touch()
            return [*await asyncio.gather(*within), over]

    *within, over = asyncio.run(go())
    assert [(result.exit_code, result.limits) for result in within] == [(0, ())] * 4
    assert [limit.key for limit in over.limits] == ["resources.processes"]


# Few files can be open here, so that few descriptors under way are too many.
BESIDE_A_HOG = """
import asyncio, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from purplebox.isolation import Engine, SetupError
from purplebox.policies import load_policy

HOG = '''
import array, os, socket, time
pairs = []
fds = array.array("i", [0] * 253)
try:
    while True:
        pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        sender = pairs[-1][0]
        sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
except OSError as error:
    print(error.errno, flush=True)
time.sleep(1000)
'''

async def main():
    async with Engine(load_policy("base"), Path(sys.argv[1])) as engine:
        bystander = await engine.start(["cat"])
        hog = await engine.start(["python3", "-c", HOG], stdin="null")
        assert int(await hog.stdout.receive()) == 109  # the control: ETOOMANYREFS
        refused = 0
        try:
            for _ in range(100):
                sandbox = await engine.start(["sleep", "1000"], stdin="null")
                await sandbox.aclose()
        except SetupError as error:
            assert "Too many references" in str(error), error
            refused = 1
        await bystander.stdin.send(b"here")
        assert await bystander.stdout.receive() == b"here"
        await hog.aclose()
        while True:  # what is under way is closed by the kernel in its own time
            try:
                assert (await engine.run(["true"])).exit_code == 0
                break
            except SetupError:
                await asyncio.sleep(0.01)
        await bystander.aclose()
        print("refused" if refused else "served")

asyncio.run(main())
"""


def test_descriptors_under_way_without_end_are_nobody_elses_end(workspace: Path) -> None:
    """They are counted for a user, and so for all of its sandboxes."""
    argv = [sys.executable, "-c", BESIDE_A_HOG, str(workspace)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr
    # A process says why it refuses, and none of ours has ended.
    assert all("Too many references" in line for line in done.stderr.splitlines()), done.stderr
    assert "failed" not in done.stderr
