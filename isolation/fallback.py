"""Without namespaces: whether they can be had here, and what a policy loses where they cannot.

Many containers let nobody make a user namespace. What is left are Landlock, seccomp and rlimits, for
policies that accept it (`dangerously_without_namespaces`); warden.py then takes pid 1's place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from . import landlock
from .errors import SetupError

if TYPE_CHECKING:
    from ..policies import Policy

# All that the zygote will do, in a child that does nothing else: where a mandatory access control lets
# the namespace be made, but gives no rights in it, mounting fails.
_TRY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result:
        os._exit(ctypes.get_errno())
try:
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(0x7E020000))  # NEWNS, CGROUP, UTS, IPC, USER, PID, NET
    for name, text in ("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1"):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    check(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    child = os.fork()
    if child == 0:
        check(libc.mount(b"proc", b"/proc", b"proc", 14, None))
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
except OSError as error:
    os._exit(error.errno)
"""


def namespaces_errno() -> int:
    """What the kernel says to user, mount and pid namespaces of this caller's; 0 where it lets them."""
    return subprocess.run([sys.executable, "-I", "-S", "-c", _TRY], check=False).returncode


def unheld(policy: Policy) -> list[str]:
    """What of `policy` cannot be held without namespaces, in the words of
    `dangerously_without_namespaces`."""
    files = policy.filesystem
    found = (
        ("view", True),
        ("root", os.geteuid() == 0),
        ("hide", bool(files.hide) and files.workspace != "none"),
        ("protect", bool(files.protect) and files.workspace == "write"),
    )
    return [word for word, lost in found if lost]


def waived() -> tuple[str, ...]:
    """Layers that a policy which accepts all of `unheld` does not require."""
    return ("namespaces", "mounts", *(("capabilities",) if os.geteuid() == 0 else ()))


def check_accepted(policy: Policy) -> None:
    """Refuse a policy whose promises would be broken without its consent.

    Raises:
        SetupError: it loses what it does not accept, or what nothing else can hold.
    """
    if landlock.abi_version() == 0:
        raise SetupError(
            "neither namespaces nor Landlock can be had here, so nothing would hold the view; "
            "boot with lsm=landlock,… or allow user namespaces"
        )
    if not policy.network.isolated:
        raise SetupError(
            "network rules cannot be held without namespaces, whatever the policy accepts; "
            "set network.isolated: true, or allow user namespaces"
        )
    if missing := [w for w in unheld(policy) if w not in policy.dangerously_without_namespaces]:
        raise SetupError(
            f"no namespaces can be had here, and policy {policy.name} does not accept to lose "
            f"{', '.join(missing)}; add it to dangerously_without_namespaces (docs/hosts.md), or allow "
            "user namespaces: `purple doctor` says how"
        )
