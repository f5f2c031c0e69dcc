"""The order in which a sandbox is closed: by the thread that becomes it, and by its pid 1.

Namespaces except the user's, capabilities, no_new_privs, Landlock and seccomp belong to a *thread*
in Linux, when they are set by raw system calls: clone(2), landlock_restrict_self(2), seccomp(2).
So a thread of the zygote gives them up for good and whatever it starts has none of them, while the
zygote's main thread keeps what the next sandbox needs.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import NoReturn

from . import capabilities, landlock, libc, seccomp
from .mounts import mount_proc
from .netns import loopback_up
from .plan import HOME, PRIVATE, Plan

# pid 1 does nothing but wait for the end of a pipe that does not end. It is no Python, because its
# memory is a cost of every sandbox that waits; and no shell, which would catch SIGCHLD: that is
# ignored, so that the kernel reaps what is orphaned to it (sigaction(2), SA_NOCLDWAIT). The command
# itself is never pid 1, which the kernel shields from its own signals (pid_namespaces(7)).
_PID_1 = ("/bin/cat", "/usr/bin/cat", "/run/current-system/sw/bin/cat")


def enter_namespaces(network: int | None) -> None:
    """Give the calling thread namespaces of its own; the next child is pid 1 of its pid namespace.

    Args:
        network: A network namespace to enter, in which nothing runs any more; None makes one. The
            kernel makes and destroys a few hundred a second at the most, so those of one zygote,
            which have nothing but a loopback, are used again.
    """
    libc.unshare(
        libc.CLONE_NEWNS
        | libc.CLONE_NEWIPC
        | libc.CLONE_NEWUTS
        | libc.CLONE_NEWCGROUP
        | libc.CLONE_NEWPID
        | (libc.CLONE_NEWNET if network is None else 0)
    )
    socket.sethostname("purple")
    os.umask(0o022)  # the thread's own since it has mounts of its own
    if network is None:
        loopback_up()
        # Else a port that one sandbox has used would be taken for the next one's minute: tcp(7).
        with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as file:
            file.write("0")
    else:
        libc.setns(network, libc.CLONE_NEWNET)


def fork_pid_1(plan: Plan) -> tuple[int, int]:
    """Fork pid 1, which mounts /proc, locks itself down and becomes a minimal reaper.

    /proc shows the pid namespace of the process that mounts it: that is why pid 1 does it.

    Returns:
        Its pid, in the zygote's namespace, and a descriptor for `await_pid_1`.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become_pid_1(plan, writer)
    os.close(writer)
    return pid, reader


def await_pid_1(report: int) -> None:
    """Wait until pid 1 has mounted /proc and is locked down.

    Raises:
        OSError: with what pid 1 said.
    """
    with os.fdopen(report, "rb") as file:
        said = file.read()  # until execve closes the other end
    if said:
        raise OSError(f"pid 1: {said.decode(errors='replace')}")


def _become_pid_1(plan: Plan, report: int) -> NoReturn:
    try:
        mount_proc(held_by_landlock=landlock.abi_version() > 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        stdin, keep = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd, target in ((stdin, 0), (null, 1), (null, 2)):
            os.dup2(fd, target)
        os.set_inheritable(keep, True)  # held by itself, so it never sees its end
        capabilities.drop_all()
        landlock.restrict_self(["/"], ["/dev/null"])
        seccomp.load_filter(plan.bpf)
        os.execve(next(filter(os.path.exists, _PID_1), _PID_1[0]), ["cat"], {})
    except BaseException as error:  # it must never return into the zygote that it was forked from
        os.write(report, f"{type(error).__name__}: {error}".encode())
    os._exit(1)


def lock_down(plan: Plan) -> None:
    """Give up, for this thread and all that it starts: privilege, paths, system calls.

    The zygote has emptied the bounding set and set no_new_privs before.
    """
    os.chdir(plan.workspace or HOME)
    capabilities.drop_all()
    write = [*PRIVATE, "/dev", *plan.write]
    if plan.workspace is not None and plan.workspace_writable:
        write.append(plan.workspace)
    landlock.restrict_self(["/"], write)
    seccomp.load_filter(plan.bpf)
