"""Where systemd has the cgroups, an engine asks for a scope of its own, and it is gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import scope

RUN = """
import asyncio, json, sys
from pathlib import Path
from purplebox.isolation import Engine
from purplebox.isolation.probe import probe_host
from purplebox.policies import load_policy

async def main():
    base = load_policy("base")
    few = base.resources.model_copy(update={"processes": 8, "memory_bytes": 64 << 20, "cpu_cores": 0.5})
    policy = base.model_copy(update={"resources": few, "require": (*base.require, "cgroup")})
    async with Engine(policy, Path(sys.argv[1])) as engine:
        many = await engine.run(["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do sleep 1 & done"])
        much = await engine.run(["python3", "-c", "x = bytearray(200 << 20)"])
        base = engine._link._cgroups.facts["bases"][""]
    own = Path("/proc/self/cgroup").read_text()
    (found,) = [finding for finding in probe_host() if finding.layer == "cgroup"]
    print(json.dumps({"many": [limit.key for limit in many.limits], "much": much.reason,
        "base": base, "own": own, "doctor": [found.status, found.detail]}))
asyncio.run(main())
"""


def in_a_scope(workspace: Path, *options: str) -> dict[str, Any]:
    """As from a terminal of a desktop: in a scope of systemd's that is not delegated."""
    if not os.path.isdir("/run/systemd/system") or os.path.exists("/sys/fs/cgroup/memory"):
        pytest.skip("needs a host that systemd runs, on cgroup v2")
    manager = ["--user"] if os.geteuid() else []
    command = ["systemd-run", *manager, "--scope", "-q", *options, sys.executable, "-c", RUN]
    ran = subprocess.run(
        [*command, str(workspace)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    return said


def test_a_scope_is_asked_for_and_its_limits_hold(workspace: Path) -> None:
    said = in_a_scope(workspace)
    assert "purple-" in said["base"] and ".scope/" in said["base"], said
    assert "purple-" not in said["own"]  # the gateway stays where it was
    assert said["doctor"][0] == "full" and "asked" in said["doctor"][1]
    assert said["much"] == "out_of_memory"
    assert "resources.processes" in said["many"]
    asked = os.path.dirname(said["base"])
    while os.path.exists(asked):  # ends by the test's own time limit if it never does
        time.sleep(0.01)


def test_what_is_delegated_already_is_used(workspace: Path) -> None:
    said = in_a_scope(workspace, "-p", "Delegate=yes")
    # A user's manager leaves no mark of it, so there one more scope is asked for.
    scope = "purple-" if os.geteuid() else "run-"
    assert os.path.basename(os.path.dirname(said["base"])).startswith(scope), said
    assert said["much"] == "out_of_memory"


def test_where_systemd_does_not_run_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "_BOOTED", "/nonexistent")
    assert not scope.can_ask()
    monkeypatch.setattr(scope, "_BUSCTL", ("/nonexistent",))
    assert not scope.ask()


# What an MCP client does with a registered `purple serve`: starts it, calls a tool, and kills it.
CLIENT = """
import fnmatch, json, os, pathlib, subprocess, sys, time
purple = [sys.executable, "-m", "purplebox.gateway.cli"]
groups = pathlib.Path("/sys/fs/cgroup")

def scopes():
    return {d for d, _, _ in os.walk(groups) if fnmatch.fnmatch(os.path.basename(d), "purple-*.scope")}

def read(scope, name):  # what is gone meanwhile is left out
    found = []
    for directory, _, _ in os.walk(scope):
        try:
            found += pathlib.Path(directory, name).read_text().split()
        except OSError:
            pass
    return found

before = scopes()
doctor = subprocess.run([*purple, "doctor", "--json"], capture_output=True, text=True)
server = subprocess.Popen(
    [*purple, "serve", "-p", "base", "--workspace", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)

def tell(message):
    server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\\n")
    server.stdin.flush()

def ask(number, method, params):
    tell({"id": number, "method": method, "params": params})
    for line in server.stdout:
        if (said := json.loads(line)).get("id") == number:
            return said["result"]

who = {"name": "client", "version": "1"}
ask(1, "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": who})
tell({"method": "notifications/initialized"})
short = ask(2, "tools/call", {"name": "shell", "arguments": {"command": "echo hi"}})
command = "(setsid sleep 3600 &); echo > begun; sleep 3600"
tell({"id": 3, "method": "tools/call", "params": {"name": "shell", "arguments": {"command": command}}})
while not os.path.exists(sys.argv[1] + "/begun"):
    time.sleep(0.01)
new = scopes() - before  # that of the engine; one that waits for the next may have its own
inside = max(len(read(scope, "cgroup.procs")) for scope in new)
limits = [limit for scope in new for limit in read(scope, "memory.max")]
server.kill()
server.wait()
while scopes() - before:  # ends by the test's own time limit if it never does
    time.sleep(0.01)
def sleeps(process):
    try:
        return b"sleep\\x003600" in (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False

sleeping = list(filter(sleeps, pathlib.Path("/proc").glob("[0-9]*")))
print(json.dumps({
    "doctor": {f["layer"]: f["status"] for f in json.loads(doctor.stdout)}, "status": doctor.returncode,
    "text": short["content"][0]["text"], "scopes": sorted(new), "inside": inside, "limits": limits,
    "sleeping": len(sleeping), "own": pathlib.Path("/proc/self/cgroup").read_text(),
}))
"""


@pytest.mark.parametrize("place", ["service", "scope"])
def test_a_server_that_a_client_starts_has_its_scope_and_leaves_nothing(
    place: str, workspace: Path
) -> None:
    if not os.path.isdir("/run/systemd/system") or os.path.exists("/sys/fs/cgroup/memory"):
        pytest.skip("needs a host that systemd runs, on cgroup v2")
    manager = ["--user"] if os.geteuid() else []
    how = ["--scope"] if place == "scope" else ["--wait", "--pipe", "--collect"]
    # A service has nothing of its caller's environment; a client's has at least this.
    kept = [f"--setenv={name}={os.environ[name]}" for name in ("HOME", "PATH")]
    ran = subprocess.run(
        ["systemd-run", *manager, "-q", *how, *kept, sys.executable, "-c", CLIENT, str(workspace)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert place in said["own"]  # the control: where the client was
    assert (set(said["doctor"].values()), said["status"]) == ({"full"}, 0), said
    assert said["text"].startswith("hi")
    assert said["inside"] >= 4  # zygote, pid 1 and what the command has started
    assert any(limit != "max" for limit in said["limits"]), said
    assert said["sleeping"] == 0
