"""The order in which a sandbox is closed: namespaces, mounts, then pid 1's own restrictions.

The zygote's only thread enters new namespaces, prepares what is in them, starts their pid 1 there
(pid1.py: no capabilities, Landlock, seccomp) and comes back. What it needs for the next sandbox, its
capabilities, pid 1 has lost by being executed: capabilities(7).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Sequence

from . import capabilities, landlock, libc, pid1
from .cgroup import MAX_FILES
from .plan import HOME, PRIVATE, Plan

FIRST_FREE = pid1.GROUPS + MAX_FILES + 1  # a gate
_SIGNALS = [int(number) for number in signal.valid_signals()]


class Home:
    """The zygote's own mount and pid namespaces, to come back to. Needs /proc of its own."""

    def __init__(self) -> None:
        self._mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def leave(self, network: int) -> None:
        """Enter new namespaces; the next child is pid 1 of its pid namespace.

        Args:
            network: Of a network namespace in which nothing runs, to enter.
        """
        libc.unshare(
            libc.CLONE_NEWNS
            | libc.CLONE_NEWIPC
            | libc.CLONE_NEWUTS
            | libc.CLONE_NEWCGROUP
            | libc.CLONE_NEWPID
        )
        libc.setns(network, libc.CLONE_NEWNET)
        socket.sethostname("purple")

    def enter(self, mounts: int) -> None:
        """Be in a sandbox's mount namespace once more."""
        libc.setns(mounts, libc.CLONE_NEWNS)

    def come_back(self) -> None:
        """Be in the zygote's own mounts again, and let the next sandbox have a pid namespace.

        Raises:
            RuntimeError: it cannot; the zygote is of no more use.
        """
        try:
            libc.setns(self._mounts, libc.CLONE_NEWNS)
            libc.setns(self._pids, libc.CLONE_NEWPID)
        except OSError as error:
            raise RuntimeError("the zygote cannot come back from a sandbox") from error


class Gate:
    """Where a pid 1 waits: it writes there as to its cgroup's files, and a full pipe takes nothing.

    Attributes:
        end: For pid 1: the pipe's other end, too, so that it may come after we have closed ours.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self._size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, bytes(self._size))
        os.close(writer)
        self.end = os.open(f"/proc/self/fd/{self._reader}", os.O_RDWR | os.O_CLOEXEC)

    def open(self) -> None:
        """Let it go on."""
        os.read(self._reader, self._size)

    def close(self) -> None:
        """Close our ends."""
        os.close(self._reader)
        os.close(self.end)


def create_ruleset(abi: int) -> int | None:
    """The view once more, for Landlock, without what is granted; None where there is none. Call when
    what is private has been mounted."""
    return landlock.create_ruleset(["/"], [*PRIVATE, "/dev"], abi)


def let_write(ruleset: int, plan: Plan) -> None:
    """Add what a plan grants for writing. Call when it has been mounted."""
    granted = [*plan.write]
    if plan.workspace is not None and plan.workspace_writable:
        granted.append(plan.workspace)
    landlock.add(ruleset, granted, landlock.ALL, plan.landlock_abi)


def start_pid_1(
    plan: Plan, fds: Sequence[int | str], ruleset: int | None, bpf: int, groups: Sequence[int],
    gate: Gate | None = None,
) -> int:  # fmt: skip
    """Start pid 1 of the namespaces entered last, in the command's working directory.

    Args:
        plan: The policy's.
        fds: The command's stdin, stdout, stderr, each a descriptor or a path to open, and pid 1's
            socket to the gateway.
        ruleset: From `create_ruleset`.
        bpf: A file that holds the seccomp filter.
        groups: From `Cgroup.open_procs`; empty where there is no cgroup. Then it gets a user
            namespace of its own, for RLIMIT_NPROC counts processes per user namespace and id since
            Linux 5.14, and one sandbox's must not be another's. (Not with several ids: it could
            map one only.)
        gate: Where it is to wait before it restricts itself; None for nowhere.

    Returns:
        Its pid, in the zygote's namespace.

    Descriptors are above all those that pid 1 gets: `FIRST_FREE`.
    """
    os.chdir(plan.workspace or HOME)
    program = os.path.exists(pid1.PATH)
    alone = not (groups or plan.id_maps)
    if gate is not None:
        groups = [*groups, gate.end]
    if alone or not program:
        return _fork_pid_1(plan, fds, [ruleset, bpf, *groups], alone=alone, program=program)
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for target, source in enumerate([*fds, ruleset, bpf, *groups]):
        if isinstance(source, int):
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
        elif source is not None:
            actions.append((os.POSIX_SPAWN_OPEN, target, source, os.O_RDWR | os.O_NOCTTY, 0))
    # Whatever Python ignores or handles goes back to the default; nothing stays blocked.
    return os.posix_spawn(
        pid1.PATH, _argv(ruleset, len(groups)), {}, file_actions=actions, setsigdef=_SIGNALS,
        setsigmask=[],
    )  # fmt: skip


def _argv(ruleset: int | None, groups: int) -> list[str]:
    """Its name says whether there is a ruleset; the count of its arguments, how many cgroups."""
    return ["init" if ruleset is not None else "no-landlock", *(["cgroup"] * groups)]


def _fork_pid_1(
    plan: Plan, fds: Sequence[int | str], closed_by: Sequence[int | None], *, alone: bool,
    program: bool,
) -> int:  # fmt: skip
    ruleset, _, *groups = closed_by
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writer)
        # A limit set before it has its namespace would be that of all the zygote's processes.
        os.read(reader, 1)
        os.close(reader)
        return pid
    try:
        if alone:
            ids = os.geteuid(), os.getegid()
            libc.unshare(libc.CLONE_NEWUSER)
            write_id_maps(*ids, *ids)
            capabilities.drop_bounding_set()  # of the new namespace
        for number in _SIGNALS:
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for target, source in enumerate([*fds, *closed_by]):
            if source is not None:
                opened = (
                    source if isinstance(source, int) else os.open(source, os.O_RDWR | os.O_NOCTTY)
                )
                os.dup2(opened, target)
        os.closerange(pid1.GROUPS + len(groups), os.sysconf("SC_OPEN_MAX"))
        if program:
            os.execve(pid1.PATH, _argv(ruleset, len(groups)), {})
        filter_ = read_filter(pid1.FILTER)
        os.close(pid1.FILTER)
        pid1.serve(filter_, restricted=ruleset is not None, groups=len(groups))
    finally:
        os._exit(1)


def read_filter(bpf: int) -> bytes:
    """The seccomp program in a file; at the most BPF_MAXINSNS, 4096, of eight bytes."""
    return os.pread(bpf, 1 << 15, 0)


def write_id_maps(uid: int, gid: int, inside_uid: int, inside_gid: int) -> None:
    """Map one id of each kind into the user namespace that this process has just made."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {uid} 1"),
        ("gid_map", f"{inside_gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
