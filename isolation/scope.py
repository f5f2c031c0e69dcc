"""A cgroup of our own where systemd manages them: a delegated scope, asked for over D-Bus.

systemd alone writes to cgroups that it has not delegated (its CGROUP_DELEGATION.md), so on a desktop an
ordinary user has none until the user's service manager makes a scope. `busctl` asks, which is a part of
systemd and so wherever this is of use. The scope ends, with all cgroups in it, when nothing runs in it.
"""

from __future__ import annotations

import contextlib
import os
import time

_BOOTED = "/run/systemd/system"  # sd_booted(3)
_BUSCTL = ("/usr/bin/busctl", "/bin/busctl", "/run/current-system/sw/bin/busctl")
_PATIENCE_SECONDS = 30.0  # whoever has the bus answers, on a busy machine after seconds


def can_ask() -> bool:
    """Whether this process should ask for a scope: systemd runs the host, on cgroup v2 alone, and has
    not delegated our cgroup, and there is somebody to ask."""
    line = _cgroup().decode().strip()
    if not line.startswith("0::"):
        return False
    own = line.removeprefix("0::")
    asked = os.path.isdir(_BOOTED) and _busctl() is not None and os.path.exists(_bus())
    # Its parent's delegation is as good: an earlier engine has moved us into a leaf of it.
    return asked and not any(_delegated(f"/sys/fs/cgroup{p}") for p in (own, os.path.dirname(own)))


def name_of(pid: int) -> str:
    """The scope that process `pid` asks for."""
    return f"purple-{pid}.scope"


def ask(*others: int) -> bool:
    """Have systemd move this process, and `others`, into a scope of their own, delegated to us.

    Whoever starts processes that are to be in cgroups of the scope has to be in it: to move from one
    cgroup to another takes rights over what they have in common (cgroup-v2.rst, "Delegation").

    Returns:
        Whether it is there; else nothing has changed. It takes some ten milliseconds.
    """
    pids = [str(pid) for pid in (os.getpid(), *others)]
    program, before = _busctl(), {pid: _cgroup(pid) for pid in pids}
    if program is None:
        return False
    call = [
        program, f"--address=unix:path={_bus()}", "--quiet", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", name_of(os.getpid()), "fail", "4",
        "Description", "s", "purple: sandboxes",
        "PIDs", "au", str(len(pids)), *pids,
        "Delegate", "b", "true",
        "CollectMode", "s", "inactive-or-failed",
        "0",
    ]  # fmt: skip
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
    try:
        pid = os.posix_spawn(program, call, {}, file_actions=actions)
    finally:
        os.close(null)
    if os.waitpid(pid, 0)[1]:
        return False
    # What was begun is a job, which then moves us, one after the other. Until all are there nothing may
    # be done in the scope: with controllers handed down it takes no more, and systemd gives it up.
    until = time.monotonic() + _PATIENCE_SECONDS
    while any(_cgroup(pid) == was for pid, was in before.items()):
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):  # the latter is shown to root alone
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1" and os.stat(path).st_uid == os.geteuid()
    return False


def _busctl() -> str | None:
    return next((path for path in _BUSCTL if os.access(path, os.X_OK)), None)


def _bus() -> str:
    """The socket of the user's bus; root asks the system's manager."""
    uid = os.geteuid()
    return f"/run/user/{uid}/bus" if uid else "/run/dbus/system_bus_socket"


def _cgroup(pid: str = "self") -> bytes:
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        return file.read()
