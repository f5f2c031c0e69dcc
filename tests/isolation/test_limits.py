"""What happens at each limit of a policy is in the result, and what was used always is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from purplebox.isolation import Engine, Limit, Result
from purplebox.isolation.blockio import devices_under
from purplebox.isolation.hierarchy import Hierarchy
from purplebox.isolation.limits import Ended, reached
from purplebox.isolation.usage import Counters, Usage, merge
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
MIB = 1 << 20


def limited(**limits: object) -> Policy:
    resources = BASE.resources.model_copy(update={"wall_seconds": 50.0, **limits})
    return BASE.model_copy(update={"resources": resources})


def run(workspace: Path, policy: Policy, *argv: str, wall_seconds: float | None = None) -> Result:
    async def go() -> Result:
        async with Engine(policy, workspace) as engine:
            return await engine.run(argv, wall_seconds=wall_seconds)

    return asyncio.run(go())


def python(workspace: Path, policy: Policy, program: str) -> Result:
    return run(workspace, policy, "python3", "-c", program)


def cgroups() -> int:
    hierarchy = Hierarchy()
    hierarchy.close()
    return hierarchy.version


def only(result: Result) -> Limit:
    (limit,) = result.limits
    return limit


def test_every_result_says_what_was_used(workspace: Path) -> None:
    program = (
        "import os, subprocess, time\n"
        "x = b'x' * (40 << 20)\n"
        "open('/tmp/y', 'wb').write(x[: 3 << 20])\n"
        "children = [subprocess.Popen(['cat'], stdin=subprocess.PIPE) for _ in range(5)]\n"
        "while time.process_time() < 0.2: pass\n"
        "[child.communicate() for child in children]\n"
    )
    result = python(workspace, BASE, program)
    assert (result.exit_code, result.limits, result.ended_by) == (0, (), None), result.stderr
    usage = result.usage
    assert usage.counted_by == ("cgroup" if cgroups() else "rusage")
    assert usage.cpu_seconds is not None and 0.2 <= usage.cpu_seconds < 100
    assert usage.memory_peak_bytes is not None and usage.memory_peak_bytes >= 40 * MIB
    assert usage.processes_peak is not None and usage.processes_peak >= 6
    assert usage.disk_bytes is not None and 3 * MIB <= usage.disk_bytes < 4 * MIB
    assert usage.read_bytes is not None and usage.written_bytes is not None
    assert result.facts()["usage"]["cpu_seconds"] == usage.cpu_seconds


def test_memory_ends_all_of_the_sandbox(workspace: Path) -> None:
    # The shell that waits for the eater would go on: the whole group is killed, not one process.
    eater = "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; sleep 100"
    policy = limited(memory_bytes=64 * MIB)
    if not cgroups():  # where RLIMIT_DATA holds one process, several are over the limit together
        eater = "for i in 1 2 3 4; do python3 -c 'x = bytearray(30 << 20); import time; time.sleep(100)' & done; wait"
    result = run(workspace, policy, "sh", "-c", eater)
    assert (result.reason, result.exit_code) == ("out_of_memory", None)
    limit = only(result)
    assert (limit.key, limit.limit, limit.effect) == ("resources.memory_limit", 64 * MIB, "ended")
    assert limit.used is not None and limit.used >= 60 * MIB
    assert result.ended_by == limit
    control = python(workspace, BASE, "x = bytearray(90 << 20)")
    assert (control.exit_code, control.limits) == (0, ())


def test_time_ends_what_ignores_sigterm(workspace: Path) -> None:
    command = ("sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done")
    limit = only(run(workspace, limited(wall_seconds=0.5), *command))
    assert (limit.key, limit.limit, limit.effect) == ("resources.timeout", 0.5, "ended")
    assert limit.used is not None and limit.used >= 0.5
    asked = run(workspace, limited(), *command, wall_seconds=0.4)
    assert (only(asked).key, only(asked).limit, asked.reason) == (
        "timeout_seconds",
        0.4,
        "timed_out",
    )


FORKS = """
import os, time
made = 0
try:
    for _ in range(40):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError as error:
    print(error.errno == 11)
print(made, flush=True)
time.sleep({seconds})
"""


def test_beyond_processes_fork_is_refused(workspace: Path) -> None:
    # Without a cgroup a look at it ends it, whenever that comes.
    seconds = 0 if cgroups() else 40
    result = python(workspace, limited(processes=16), FORKS.format(seconds=seconds))
    limit = only(result)
    assert (limit.key, limit.limit) == ("resources.processes", 16)
    if cgroups():
        assert result.stdout == b"True\n15\n"
        assert (limit.effect, limit.used, result.reason) == ("refused", 16, "exited")
    else:  # the watcher looks twenty times a second
        assert (limit.effect, result.reason) == ("ended", "signaled")
    control = python(workspace, limited(processes=64), FORKS.format(seconds=0))
    assert (control.stdout, control.limits) == (b"40\n", ())


def test_cpu_beyond_its_share_waits(workspace: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    result = python(workspace, limited(cpu_cores=0.05), spin)
    if not cgroups():
        assert "CPU and block" in result.enforcement.layers["cgroup"].reason
        return
    limit = only(result)
    assert (limit.key, limit.limit, limit.effect) == ("resources.cpu_shares", 0.05, "slowed")
    assert limit.used is not None and limit.used < 0.2
    assert result.usage.cpu_throttled_seconds
    assert python(workspace, BASE, spin).limits == ()


def test_open_files_are_refused(workspace: Path) -> None:
    program = "files = [open('/dev/null') for _ in range(64)]"
    result = python(workspace, limited(open_files=32), program)
    limit = only(result)
    assert b"OSError: [Errno 24]" in result.stderr
    assert (limit.key, limit.limit, limit.used, limit.effect) == ("resources.open_files", 32, None, "refused")  # fmt: skip
    assert python(workspace, BASE, program).limits == ()


def test_output_is_cut_and_counted(workspace: Path) -> None:
    policy = limited(output_bytes=4096)
    result = run(workspace, policy, "head", "-c", "50000000", "/dev/zero")
    limit = only(result)
    assert (limit.key, limit.limit, limit.used, limit.effect) == ("resources.output_limit", 4096, 50_000_000, "cut")  # fmt: skip
    assert (result.exit_code, len(result.stdout)) == (0, 4096)
    assert run(workspace, policy, "head", "-c", "4096", "/dev/zero").limits == ()


FILL = "head -c 3M /dev/zero > /tmp/a; head -c 3M /dev/zero > $HOME/b; head -c 3M /dev/zero > /dev/shm/c; head -c 3M /dev/zero > /var/tmp/d"


@pytest.mark.parametrize("key", ["filesystem.tmp_size", "resources.disk"])
def test_private_places_share_one_bound(workspace: Path, key: str) -> None:
    policy = limited(disk_bytes=8 * MIB) if key == "resources.disk" else limited()
    size = 8 * MIB if key == "filesystem.tmp_size" else 64 * MIB
    filesystem = policy.filesystem.model_copy(update={"tmp_bytes": size})
    policy = policy.model_copy(update={"filesystem": filesystem})
    result = run(workspace, policy, "sh", "-c", FILL)
    limit = only(result)
    assert (limit.key, limit.limit, limit.used, limit.effect) == (key, 8 * MIB, 8 * MIB, "refused")
    assert b"No space left on device" in result.stderr
    control = run(workspace, limited(), "sh", "-c", FILL)
    assert (control.exit_code, control.limits) == (0, ())


def test_a_thousand_empty_files_more_than_there_is_room_for_are_refused(workspace: Path) -> None:
    filesystem = BASE.filesystem.model_copy(update={"tmp_bytes": MIB})
    policy = limited().model_copy(update={"filesystem": filesystem})
    result = python(workspace, policy, "for n in range(2000): open(f'/tmp/{n}', 'w').close()")
    limit = only(result)
    assert (limit.key, limit.used) == ("filesystem.tmp_size", None)
    assert b"[Errno 28]" in result.stderr


def test_no_file_grows_beyond_the_disk_limit(workspace: Path) -> None:
    write = "python3 -c \"open('big', 'wb').truncate(9 << 20)\""
    refused = run(workspace, limited(disk_bytes=8 * MIB), "sh", "-c", write)
    assert b"[Errno 27]" in refused.stderr
    assert (only(refused).key, only(refused).effect) == ("resources.disk", "refused")
    killed = run(workspace, limited(disk_bytes=8 * MIB), "head", "-c", "9M", "/dev/zero")
    assert killed.exit_code == 0  # a pipe is no file
    write = "exec head -c 9M /dev/zero > big"
    killed = run(workspace, limited(disk_bytes=8 * MIB), "sh", "-c", write)
    assert (killed.signal, only(killed).effect) == (signal.SIGXFSZ, "ended")
    assert os.path.getsize(workspace / "big") == 8 * MIB
    assert run(workspace, limited(), "sh", "-c", write).exit_code == 0


READ = """
import mmap, os
fd = os.open('data', os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
while os.readv(fd, [buffer]): pass
"""


def test_block_io_is_slowed_down(workspace: Path) -> None:
    """Reads past the page cache, of a file that the disk really holds."""
    found, unknown = devices_under([str(workspace)])
    policy = limited(io_bytes_per_second=4 * MIB)
    if not found or not cgroups():
        result = run(workspace, policy, "true")
        if unknown:
            assert "resources.io" in result.enforcement.layers["cgroup"].reason or not cgroups()
        return
    with open(workspace / "data", "wb") as file:
        file.write(os.urandom(6 * MIB))
        os.fsync(file.fileno())
    result = python(workspace, policy, READ)
    assert result.exit_code == 0, result.stderr
    if "io" in result.enforcement.layers["cgroup"].reason:
        return  # v2 without the io controller; said so
    # A disk that has no more to give is not slowed down: what must hold is the upper bound.
    for limit in result.limits:
        assert (limit.key, limit.limit, limit.effect) == ("resources.io", 4 * MIB, "slowed")
        assert limit.used is not None and limit.used <= 1.5 * 4 * MIB
    assert result.usage.read_bytes is not None and result.usage.read_bytes >= 6 * MIB
    assert python(workspace, limited(), READ).limits == ()


def ended(report: dict[str, object], counters: Counters | None = None) -> Ended:
    return Ended(
        wall_seconds=1.0, asked_seconds=None, timed_out=False, report=report, counters=counters,
        usage=merge(counters, report), kept=0, written=0, tail=b"",
    )  # fmt: skip


def test_what_ended_it_comes_first() -> None:
    counters = Counters(cpu_seconds=1.0, throttled_seconds=0.5, oom_kills=1, memory_peak_bytes=64)
    policy = limited(memory_bytes=64, cpu_cores=1.0)
    keys = [limit.key for limit in reached(policy, ended({}, counters))]
    assert keys == ["resources.memory_limit", "resources.cpu_shares"]


def test_a_write_counts_once_whoever_saw_it() -> None:
    report = {"written_bytes": 4096, "cpu_seconds": 9.0, "memory_peak_bytes": 1}
    usage = merge(Counters(cpu_seconds=1.0, memory_peak_bytes=7, written_bytes=0), report)
    assert usage == Usage(
        counted_by="cgroup", cpu_seconds=1.0, memory_peak_bytes=7, written_bytes=4096
    )


def test_a_limit_reads_as_a_sentence() -> None:
    limit = Limit(key="resources.memory_limit", limit=64 * MIB, used=65 * MIB, unit="bytes", effect="ended")  # fmt: skip
    assert limit.sentence() == (
        "resources.memory_limit reached (limit 64 MiB, used 65 MiB): ended: everything in the "
        "sandbox was killed"
    )
