"""The zygote: a policy's namespaces and root view, built once; every sandbox is forked from it.

It is pid 1 of a pid namespace of its own, so that its death is its sandboxes' death, and
single-threaded, so that fork(2) is clean and cheap. Namespaces: see user_namespaces(7),
pid_namespaces(7): a process may enter a new pid namespace for its children again and again only
by returning to its own in between.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket

from . import libc
from .init import run_init
from .mounts import build_root
from .plan import UNUSED_ID, Plan


def become_zygote(keeper: socket.socket, plan: Plan, *, limit_by_rlimits: bool) -> None:
    """Turn this forked process into the zygote and serve the keeper; never returns."""
    try:
        _enter(keeper, plan, limit_by_rlimits=limit_by_rlimits)
    except BaseException as error:  # the keeper must hear of it, whatever it was
        keeper.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(1)


def _enter(keeper: socket.socket, plan: Plan, *, limit_by_rlimits: bool) -> None:
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    uid, gid = os.geteuid(), os.getegid()
    spaces = libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWPID
    if uid == 0:
        # Real root may do what a user namespace may not: reach below /root, map owners. So the
        # view is built first, then root is given up for an id that nobody has.
        libc.unshare(libc.CLONE_NEWNS)
        build_root(plan, owner_id=UNUSED_ID)
        uid = gid = UNUSED_ID
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        libc.prctl(libc.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
        libc.unshare(spaces)
        _write_maps(uid, gid)
    else:
        libc.unshare(spaces)
        _write_maps(uid, gid)
        build_root(plan, owner_id=None)
    pid = os.fork()
    if pid:
        keeper.close()
        # Changing ids cleared it; and from here on it is this process that holds the zygote.
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    _serve(keeper, plan, limit_by_rlimits=limit_by_rlimits)


def _write_maps(uid: int, gid: int) -> None:
    inside = 1000
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _serve(keeper: socket.socket, plan: Plan, *, limit_by_rlimits: bool) -> None:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps; the gateway has a pidfd
    keeper.send(b"{}")
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it marks
    while keeper.recv(16):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        libc.unshare(libc.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            keeper.close()
            ours.close()
            os.close(own)
            run_init(theirs, plan, limit_by_rlimits=limit_by_rlimits)
        libc.setns(own, libc.CLONE_NEWPID)
        theirs.close()
        pidfd = os.pidfd_open(pid)
        socket.send_fds(keeper, [b"forked"], [ours.fileno(), pidfd])
        ours.close()
        os.close(pidfd)
    os._exit(0)
