"""What this host can enforce, found without changing it, and the command that mends a gap."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from dataclasses import dataclass

from . import landlock
from .cgroup import Hierarchy
from .enforcement import Status

_USERNS_SYSCTL = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
_UNSHARE = (
    "import ctypes, os, sys; l = ctypes.CDLL(None, use_errno=True); "
    "sys.exit(ctypes.get_errno() if l.unshare(0x7E020000 & ~0x80) else 0)"
)


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
    code = subprocess.run([sys.executable, "-I", "-S", "-c", _UNSHARE], check=False).returncode
    if code == 0:
        return Finding(
            layer="namespaces", status="full", detail="user, mount, pid, net, ipc, uts, cgroup"
        )
    fix = "sysctl -w user.max_user_namespaces=15000"
    if os.path.exists(_USERNS_SYSCTL):
        with open(_USERNS_SYSCTL) as file:
            if file.read().strip() == "1":
                fix = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    return Finding(layer="namespaces", status="none", detail=os.strerror(code), fix=fix)


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
