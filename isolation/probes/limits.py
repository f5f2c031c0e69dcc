"""Attacks on limits and cgroups, and on the environment."""

from __future__ import annotations

import os
import signal
import time

from .frame import each, target, write


def more_processes() -> object:
    children: list[int] = []
    try:
        for _ in range(target["processes"] + 64):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    return None


def change_cgroup() -> object:
    return each(
        lambda: os.listdir("/sys/fs/cgroup")[0],
        lambda: write("/sys/fs/cgroup/cgroup.procs", b"0"),
    )


def inherit_variables() -> object:
    found = sorted(
        name
        for name in os.environ
        if name.startswith(("LD_", "GIT_", "DYLD_", "PURPLE_ATTACK_")) or name in ("BASH_ENV", "NODE_OPTIONS", "PYTHONPATH", "ENV", "PERL5OPT")
        if name not in target["variables"]
    )  # fmt: skip
    return f"has {found}" if found else "none"
