"""What this host can enforce, found without changing it, and the command that mends a gap."""

from __future__ import annotations

import ctypes.util
import os
from dataclasses import dataclass

from . import landlock, scope
from .enforcement import Status
from .fallback import namespaces_errno
from .hierarchy import Hierarchy

_USERNS_SYSCTL = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One layer on this host; `fix` is empty when it is full."""

    layer: str
    status: Status
    detail: str
    fix: str = ""


def probe_host() -> list[Finding]:
    """Look at every layer. Namespaces are tried in a child that does nothing else."""
    return [_namespaces(), _landlock(), _seccomp(), _cgroup()]


def _namespaces() -> Finding:
    code = namespaces_errno()
    if code == 0:
        return Finding(
            layer="namespaces", status="full", detail="user, mount, pid, net, ipc, uts, cgroup"
        )
    fix = "sysctl -w user.max_user_namespaces=15000"
    if os.path.exists(_USERNS_SYSCTL):
        with open(_USERNS_SYSCTL) as file:
            if file.read().strip() == "1":
                fix = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    detail = (
        f"{os.strerror(code)}: Landlock, seccomp and rlimits alone, where a policy accepts that by "
        "dangerously_without_namespaces; not held then: what names of files exist, hide, protect, tmp_size; "
        "no network"
    )
    return Finding(layer="namespaces", status="none", detail=detail, fix=fix)


def _landlock() -> Finding:
    abi = landlock.abi_version()
    if abi == 0:
        fix = "boot a kernel >= 6.2 with lsm=landlock,… on its command line"
        return Finding(layer="landlock", status="none", detail="not in this kernel", fix=fix)
    if abi < 3:
        return Finding(
            layer="landlock", status="partial", detail=f"ABI {abi}", fix="use Linux 6.2 or later"
        )
    return Finding(layer="landlock", status="full", detail=f"ABI {abi}")


def _seccomp() -> Finding:
    if ctypes.util.find_library("seccomp") is None:
        fix = "sudo apt install libseccomp2"
        return Finding(layer="seccomp", status="none", detail="libseccomp is missing", fix=fix)
    return Finding(layer="seccomp", status="full", detail="libseccomp")


def _cgroup() -> Finding:
    if scope.can_ask():  # not tried: it would move this process
        detail = "v2: systemd is asked for a delegated scope at each start"
        return Finding(layer="cgroup", status="full", detail=detail)
    hierarchy = Hierarchy()
    try:
        if hierarchy.version == 0:
            fix = "systemd-run --user --scope -p Delegate=yes -- purple serve"
            return Finding(layer="cgroup", status="partial", detail=hierarchy.reason, fix=fix)
        status: Status = "partial" if hierarchy.reason else "full"
        detail = hierarchy.reason or f"v{hierarchy.version}: memory, processes, CPU"
        return Finding(layer="cgroup", status=status, detail=detail)
    finally:
        hierarchy.close()
