"""A sandbox without namespaces: a process that ends all that a command started takes pid 1's place.

Theory of operation
    The zygote, which has no namespaces of its own either, forks a warden for each sandbox. It is a
    child subreaper, prctl(2): whatever is orphaned below it becomes its child, so it can find and
    kill everything to the last process, which it does when the command ends, when it is told to
    (SIGTERM) and when the zygote dies. The command restricts itself by Landlock and seccomp before
    it executes; the warden is outside of that, so that from ABI 6 on nothing inside can signal it.
    Before, a command can kill it: what it started then becomes the zygote's, which kills it, too.
    No socket can be made inside (seccomp.py, `apart`): one to D-Bus or Docker would lead out. What
    is private lies in a directory of the sandbox's own, in place of /tmp and HOME.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import signal
import struct
import termios
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from . import capabilities, landlock, leftovers, libc, pid1
from .lockdown import Home, read_filter
from .plan import HOME, Plan
from .rlimits import set_limit
from .slot import Slot
from .system import DEVICES
from .watcher import parents

# Of /proc what names no process; of sockets and the kernel's memory nothing.
_PROC = ("cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "sys")
_PLACE = "/tmp/purple-"
_WARDENS: set[int] = set()  # every one of this zygote, which has one process
PLACES = "/tmp", re.compile(r"purple-\d+-\d+-\d+")  # for leftovers.py


def stay() -> None:
    """Make this process the zygote of sandboxes without namespaces."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    capabilities.set_no_new_privs()
    with contextlib.suppress(PermissionError):  # then no_new_privs alone keeps it from serving
        capabilities.drop_bounding_set()


class WardedSlot(Slot):
    """The zygote's account of one sandbox without namespaces; `pid_1` is its warden."""

    _place, _held = "", -1

    def prepare(
        self, plan: Plan, home: Home, network: int | None, fds: Sequence[int], bpf: int,
        group: Callable[[], Sequence[int]],
    ) -> None:  # fmt: skip
        """As `Slot.prepare`; nothing is left and nothing mounted."""
        self.network = network if network is not None else os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)  # fmt: skip
        self._place = f"{_PLACE}{os.getppid()}-{os.getpid()}-{self.number}"
        self._held = leftovers.make(self._place, 0o700)
        for path in (f"{self._place}/tmp", f"{self._place}/home"):
            os.mkdir(path, 0o700)
        # What it fills cannot be told: it shares a file system.
        self._private = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
        sources = list(fds)
        inner = ruleset = None
        try:
            if self._terminal:
                self._master, inner = os.openpty()
                for index in self._terminal:
                    sources[index] = inner
            ruleset = _create_ruleset(plan, self._place)
            zygote = os.getpid()
            self.pid_1 = os.fork()
            if self.pid_1 == 0:
                _become_warden(plan, [*sources, ruleset], read_filter(bpf), self._place, zygote)
            _WARDENS.add(self.pid_1)
            self.pidfd = os.pidfd_open(self.pid_1)
            for file in group():
                os.write(file, str(self.pid_1).encode())
        finally:
            for fd in (inner, ruleset):
                if fd is not None:
                    os.close(fd)

    def limit(self, plan: Plan, open_files: tuple[int, int]) -> None:
        """As `Slot.limit`; the user's other processes count, and there are more of them."""
        super().limit(plan._replace(processes=None), open_files)
        if not self.group and plan.processes is not None:
            others = sum(1 for _ in _threads_of(os.getuid()))
            set_limit(self.pid_1, resource.RLIMIT_NPROC, others + plan.processes)

    def kill(self) -> None:
        """Have the warden end everything."""
        os.kill(self.pid_1, signal.SIGTERM)

    def release(self) -> None:
        """As `Slot.release`; ends what a warden that was killed has left."""
        super().release()
        self._clear()

    def abandon(self) -> None:
        """As `Slot.abandon`."""
        super().abandon()
        self._clear()

    def _clear(self) -> None:
        _WARDENS.discard(self.pid_1)
        while orphans := set(_children(os.getpid())) - _WARDENS:
            _end(orphans)
            for pid in orphans:
                os.waitpid(pid, 0)
        if self._held >= 0:
            leftovers.remove(self._place)
            os.close(self._held)


def _create_ruleset(plan: Plan, place: str) -> int:
    read = [*plan.system, *plan.read, *(f"/proc/{name}" for name in _PROC)]
    write = [place, *plan.write, *(f"/dev/{n}" for n in (*DEVICES, "tty")), *plan.devices]
    if plan.workspace is not None:
        (write if plan.workspace_writable else read).append(plan.workspace)
    ruleset = landlock.create_ruleset(read, write, plan.landlock_abi, connects=False)
    if ruleset is None:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock")
    return ruleset


class _Ended(Exception):
    """The warden is told to end everything."""


def _on_signal(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Ended


def _become_warden(
    plan: Plan, fds: Sequence[int], program: bytes, place: str, zygote: int
) -> NoReturn:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGTERM)
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
        if os.getppid() != zygote:
            os._exit(1)
        for target, source in enumerate(fds):
            os.dup2(source, target)
        os.closerange(pid1.RULESET + 1, os.sysconf("SC_OPEN_MAX"))
        os.set_inheritable(pid1.CONTROL, False)
        os.set_inheritable(pid1.RULESET, False)
        signal.signal(signal.SIGTERM, _on_signal)
        said = b""
        try:
            said = _run(plan, program, place)
        except _Ended:
            pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _end_all()
            leftovers.remove(place)
        with contextlib.suppress(OSError):  # the gateway may have gone
            os.write(pid1.CONTROL, said)
    finally:
        os._exit(0)


def _run(plan: Plan, program: bytes, place: str) -> bytes:
    """Wait for the order, carry it out, and say what came of it, as pid 1 does."""
    text = pid1.read_order(pid1.CONTROL)
    if text is None:
        raise _Ended
    reader, writer = os.pipe2(os.O_CLOEXEC)
    command = os.fork()
    if command == 0:
        _execute(plan, program, text, place, writer)
    for fd in (0, 1, 2, writer):
        os.close(fd)
    failed = os.read(reader, 8) or bytes(8)
    while True:
        pid, status, used = os.wait4(-1, 0)
        if pid == command:
            return failed + struct.pack("=ii", status, 0) + pid1.pack_usage(used)


def _execute(plan: Plan, program: bytes, text: bytes, place: str, failed: int) -> NoReturn:
    setup = True
    try:
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        order = pid1.Order.parse(text)
        env = order.environment
        if env.get(b"HOME") == HOME.encode():
            env[b"HOME"] = f"{place}/home".encode()
        if env.get(b"TMPDIR") == b"/tmp":
            env[b"TMPDIR"] = f"{place}/tmp".encode()
        os.setsid()
        if order.terminal:
            fcntl.ioctl(next(fd for fd in (0, 1, 2) if os.isatty(fd)), termios.TIOCSCTTY, 0)
        capabilities.drop_all()
        landlock.restrict_self(pid1.RULESET)
        libc.seccomp(program)
        setup = False
        os.chdir(order.directory or plan.workspace or f"{place}/home")
        order.execute()
    except OSError as error:
        code = error.errno or errno.EIO
        os.write(failed, struct.pack("=ii", code if setup else 0, 0 if setup else code))
    finally:
        os._exit(127)


def _end_all() -> None:
    """Kill whatever is below this process, and reap it, until there is nothing."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        _end(_children(os.getpid()))


def _end(pids: Iterable[int]) -> None:
    """Kill processes with all below them. Faster than they can multiply:

    who has SIGKILL pending makes no child any more, so what is read after that is all there will
    be, and who idles lets this process go first; both limits are inherited.
    """
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        waiting += _children(pid)


def _children(pid: int) -> list[int]:
    """proc_tid_children(5); by a look at every process where the kernel has none."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        if not os.path.exists("/proc/thread-self/children"):
            return [child for child, parent in parents().items() if parent == pid]
    return found


def _threads_of(uid: int) -> Iterable[str]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == uid:
                yield from os.listdir(f"/proc/{name}/task")


def remove_places(keeper: int) -> None:
    """Delete what zygotes and wardens of a keeper have left when they were killed; all have ended."""
    for entry in list(os.scandir(os.path.dirname(_PLACE))):
        own = entry.name.startswith(f"{os.path.basename(_PLACE)}{keeper}-")
        if own and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            leftovers.remove(entry.path)
