"""Where nobody can have namespaces: refused, or held by Landlock, seccomp and rlimits if the policy accepts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import landlock
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
ALL = ("view", "root", "hide", "protect")

# A user namespace of the test's own in which there can be no other: what an ordinary user has in many
# containers, and root in others.
WITHOUT = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from purplebox.isolation import Engine, IsolationError, OperationError, libc
from purplebox.policies import Policy

def no_namespaces(inside):
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    if inside:
        libc.capset_none()
"""
MAIN = """
async def main(policy, workspace, commands, seconds):
    async with Engine(policy, workspace) as engine:
        runs = [engine.run(["bash", "-c", c], wall_seconds=seconds, stdin=b"in") for c in commands]
        results = await asyncio.gather(*runs)
        layers = engine.enforcement.to_json()
        listed = await engine.call("list_directory", {"path": "."})
        await engine.call("write_file", {"path": "written", "content": "x"})
    return {"layers": layers, "listed": str(listed.value), "results": [
        {"out": r.stdout.decode(), "err": r.stderr.decode(), "code": r.exit_code, "reason": r.reason,
         "limits": [l.key for l in r.limits], "disk": r.usage.disk_bytes} for r in results]}

no_namespaces(int(sys.argv[1]))
policy = Policy.model_validate_json(sys.argv[2])
try:
    said = asyncio.run(main(policy, Path(sys.argv[3]), json.loads(sys.argv[4]), float(sys.argv[5])))
except IsolationError as error:
    said = {"error": str(error)}
print(json.dumps(said))
"""


def accepting(*words: str, **sections: Any) -> Policy:
    return BASE.model_copy(update={"dangerously_without_namespaces": words, **sections})


def without(
    policy: Policy,
    workspace: Path,
    *commands: str,
    inside: int = 1000,
    seconds: float = 250.0,
    before: str = "",
) -> dict[str, Any]:
    words = [str(inside), policy.model_dump_json(by_alias=True), str(workspace), json.dumps(commands), str(seconds)]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", before + WITHOUT + MAIN, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def results(policy: Policy, workspace: Path, *commands: str, **more: Any) -> list[dict[str, Any]]:
    said = without(policy, workspace, *commands, **more)
    found: list[dict[str, Any]] = said["results"]
    return found


pytestmark = pytest.mark.skipif(
    landlock.abi_version() < 6, reason="the kernel's Landlock is older than ABI 6"
)


@pytest.mark.parametrize("accepted", [(), ("view",), ("protect", "hide")])
def test_what_is_not_accepted_is_refused_by_name(accepted: Sequence[str], workspace: Path) -> None:
    said = without(accepting(*accepted), workspace, "true")
    assert "dangerously_without_namespaces" in said["error"]
    if accepted:
        assert f"lose {'protect' if accepted == ('view',) else 'view'};" in said["error"]


def test_a_network_is_refused_whatever_is_accepted(workspace: Path) -> None:
    network = BASE.network.model_copy(update={"isolated": False})
    said = without(accepting(*ALL, network=network), workspace, "true")
    assert "network.isolated" in said["error"]


@pytest.mark.parametrize("inside", [1000, 0])
def test_a_command_runs_and_what_holds_is_said(inside: int, workspace: Path) -> None:
    said = without(accepting(*ALL), workspace, "cat; pwd; echo x > made; exit 3", inside=inside)
    (result,) = said["results"]
    assert (result["out"], result["code"]) == (f"in{workspace}\n", 3)
    assert result["disk"] is None
    assert (workspace / "made").read_text() == "x\n"
    assert "made" in said["listed"]  # a file tool works, too
    status = {name: layer["status"] for name, layer in said["layers"].items()}
    assert (status["namespaces"], status["mounts"]) == ("none", "none")
    assert {status[n] for n in ("landlock", "seccomp", "network")} == {"full"}
    assert status["capabilities"] == ("full" if inside else "partial")


PROBE = """python3 - <<'END'
import errno, json, os, resource, socket
def tried(what):
    try:
        return what() or "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
said = {
    "secret": tried(lambda: open("SECRET").read()),
    "write": tried(lambda: open("NOT-MINE", "w").close()),
    "inet": tried(lambda: socket.socket().close()),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "pair": tried(lambda: [s.close() for s in socket.socketpair()] and None),
    "signal": tried(lambda: os.kill(PID, 0)),
    "limits": tried(lambda: resource.prlimit(PID, resource.RLIMIT_CORE, (0, 0)) and None),
    "nice": tried(lambda: os.setpriority(os.PRIO_PROCESS, PID, 19)),
    "environ": tried(lambda: open("/proc/PID/environ").read() and "read"),
    "cmdline": tried(lambda: open("/proc/PID/cmdline").read() and "read"),
    "processes": tried(lambda: os.listdir("/proc") and "seen"),
    "cpus": tried(lambda: open("/proc/cpuinfo").read() and None),
    "mode": tried(lambda: os.chmod("OTHER", 0o777)),
    "times": tried(lambda: os.utime("OTHER", (1, 1))),
    "private": tried(lambda: open(os.environ["TMPDIR"] + "/x", "w").close()),
    "home": tried(lambda: open(os.path.expanduser("~/x"), "w").close()),
}
print(json.dumps(said))
END"""


def test_what_is_held_is_refused_and_its_control_is_not(workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    other = subprocess.Popen(["sleep", "60"])
    (tmp_path / "other").write_text("")
    probe = (
        PROBE.replace("OTHER", str(tmp_path / "other"))
        .replace("SECRET", str(secret))
        .replace("NOT-MINE", str(tmp_path / "not-mine"))
        .replace("PID", str(other.pid))
    )
    free = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=True, env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    (inside,) = results(accepting(*ALL), workspace, probe)
    other.kill()
    other.wait()
    assert inside["code"] == 0, inside
    outside, held = json.loads(free.stdout), json.loads(inside["out"])
    assert outside["secret"] == "s3cret" and outside["environ"] == "read"
    refused = (
        "mode",
        "times",
        "write",
        "inet",
        "unix",
        "signal",
        "limits",
        "nice",
        "cmdline",
        "processes",
    )
    assert {outside[name] for name in refused} <= {"ok", "read", "seen"}
    assert {held[name] for name in ("secret", "write", "environ", "cmdline", "processes")} == {
        "EACCES"
    }
    assert {
        held[name] for name in ("mode", "times", "inet", "unix", "signal", "limits", "nice")
    } == {"EPERM"}
    assert {held[name] for name in ("pair", "cpus", "private", "home")} == {"ok"}


DAEMON = "(setsid sh -c 'while :; do date +%s%N > beat; sleep 0.02; done' &) ; (setsid sh -c 'trap \"\" TERM HUP; sleep 99' &); "


@pytest.mark.parametrize(
    ("end", "seconds", "reason"),
    [("until test -s beat; do sleep 0.02; done", 250, "exited"), ("sleep 30", 0.5, "timed_out"), ("kill -9 $PPID; sleep 30", 1, "timed_out")],
)  # fmt: skip
def test_nothing_is_left(workspace: Path, end: str, seconds: float, reason: str) -> None:
    beat, begin = workspace / "beat", f"echo $TMPDIR > where; {DAEMON}"
    while not beat.exists():  # the control: it was alive; where it had no time to be, it gets more
        (result,) = results(accepting(*ALL), workspace, begin + end, seconds=seconds)
        assert result["reason"] == reason
        seconds *= 4
    before = beat.read_text()
    time.sleep(0.1)
    assert beat.read_text() == before
    place = Path((workspace / "where").read_text().strip()).parent
    assert place.name.startswith("purple-")
    assert list(place.parent.glob(place.name.rpartition("-")[0] + "-*")) == []  # nor a file tool's


KILLED = """
no_namespaces(1000)
async def main():
    async with Engine(Policy.model_validate_json(sys.argv[1]), Path(sys.argv[2])) as engine:
        task = asyncio.create_task(engine.run(["bash", "-c", sys.argv[3]]))
        while not Path(sys.argv[2], "beat").exists():
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_a_killed_gateway_leaves_nothing(workspace: Path) -> None:
    policy = accepting(*ALL).model_dump_json(by_alias=True)
    subprocess.run([sys.executable, "-c", WITHOUT + KILLED, policy, str(workspace), DAEMON + "sleep 60"], check=False)  # fmt: skip
    beat, last = workspace / "beat", ""
    while beat.read_text() != last:  # ends by the test's own time limit if it never does
        last = beat.read_text()
        time.sleep(0.1)


# Not one that multiplies: RLIMIT_NPROC does not hold root, and where there is no cgroup a look does.
MANY = "for n in $(seq 80); do sleep 60 & done; wait"


def test_processes_and_memory_are_bounded(workspace: Path) -> None:
    few = BASE.resources.model_copy(update={"processes": 32, "memory_bytes": 256 << 20})
    (many,) = results(accepting(*ALL, resources=few), workspace, MANY, seconds=250)
    hungry = "python3 -c 'x = bytearray(400 << 20)'"
    (hog,) = results(accepting(*ALL, resources=few), workspace, hungry)
    assert "resources.processes" in many["limits"], many
    assert "MemoryError" in hog["err"] or hog["reason"] == "out_of_memory"
    more = BASE.resources.model_copy(update={"processes": 128})
    (control,) = results(accepting(*ALL, resources=more), workspace, MANY.replace("60", "0"))
    assert (control["code"], control["limits"]) == (0, [])


ATTACK = """
from purplebox.isolation.attack import attack
no_namespaces(int(sys.argv[1]))
for layer in asyncio.run(attack(Policy.model_validate_json(sys.argv[2]))):
    print(layer.sentence())
"""


def test_attacks_on_what_is_left_are_refused(private_home: Path) -> None:
    policy = accepting(*ALL).model_dump_json(by_alias=True)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT + ATTACK, "1000", policy], capture_output=True, text=True, check=True
    )  # fmt: skip
    said = {line.split()[0]: line for line in ran.stdout.splitlines()}
    assert "skipped" in said["namespaces"] and "skipped" in said["mounts"]
    for layer in ("capabilities", "landlock", "seccomp", "network", "environment"):
        assert said[layer].split()[1] == "held", said[layer]


TALK = """
async def main():
    async with Engine(Policy.model_validate_json(sys.argv[2]), Path(sys.argv[3])) as engine:
        async with await engine.start(["sh", "-c", "read x; echo got $x; sleep 60"]) as process:
            await process.stdin.send(b"it\\n")
            print((await process.stdout.receive()).decode(), end="")
            process.terminate()
            print((await process.wait()).signal)
        async with await engine.start(["sleep", "60"]) as process:
            process.terminate()
            print((await process.wait()).signal)
        async with await engine.start(["sh", "-c", "sleep 60 & echo on; wait"]) as process:
            await process.stdout.receive()
        print(process.result.signal)

no_namespaces(int(sys.argv[1]))
asyncio.run(main())
"""


STAND = """
async def main():
    async with Engine(Policy.model_validate_json(sys.argv[2]), Path(sys.argv[3])) as engine:
        async with await engine.sandbox() as sandbox:
            await sandbox.run(["sh", "-c", "echo kept > $TMPDIR/state"])
            print((await sandbox.run(["sh", "-c", "cat $TMPDIR/state"])).stdout.decode(), end="")
            late = await sandbox.run(["sh", "-c", "echo on; sleep 1000"], wall_seconds=0.5)
            print(late.stdout.decode(), late.reason, (await sandbox.run(["true"])).exit_code)
        print(sandbox.result.signal)

no_namespaces(int(sys.argv[1]))
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("program", "said"), [(TALK, "got it 15 15 9"), (STAND, "kept on timed_out 0 9")]
)
def test_a_process_is_talked_with_and_a_sandbox_stands(
    workspace: Path, program: str, said: str
) -> None:
    words = ["1000", accepting(*ALL).model_dump_json(by_alias=True), str(workspace)]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.split(), ran.returncode) == (said.split(), 0), ran.stderr


@pytest.mark.parametrize(
    ("abi", "words"), [(0, "neither namespaces nor Landlock"), (1, "landlock is partial"), (5, "landlock is partial: without namespaces, ABI 5")]
)  # fmt: skip
def test_an_older_kernel_holds_less_and_is_refused_unless_the_policy_does_not_require_it(
    abi: int, words: str, workspace: Path
) -> None:
    older = f"from purplebox.isolation import landlock\nlandlock.abi_version = lambda: {abi}\n"
    assert words in without(accepting(*ALL), workspace, "true", before=older)["error"]
    lenient = accepting(*ALL, require=("seccomp", "network"))
    said = without(lenient, workspace, "cat /etc/shadow; echo ran", before=older)
    if abi:  # the control: what that ABI has does hold
        (result,) = said["results"]
        assert result["out"] == "ran\n" and "Permission denied" in result["err"]
    else:
        assert words in said["error"]


def test_attributes_can_be_changed_where_that_is_accepted(workspace: Path) -> None:
    """A compiler's output is executable by chmod(2); so is the caller's other files' loss."""
    (refused,) = results(accepting(*ALL), workspace, "echo x > made && chmod +x made")
    assert refused["code"] == 1 and "Operation not permitted" in refused["err"]
    (accepted,) = results(accepting(*ALL, "attributes"), workspace, "chmod +x made && test -x made")
    assert accepted["code"] == 0
