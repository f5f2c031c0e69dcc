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
        base = engine._link._cgroups["bases"][""]
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
