"""One sandbox as the zygote sees it: namespaces with a pid 1 that waits for its order."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from .hosts import no_hosts, own_hosts
from .landlock import TRUNCATE, WRITE_FILE, add
from .lockdown import Gate, Home, create_ruleset, let_write, start_pid_1
from .marks import Marks
from .mounts import furnish, granted_trees, mount_private, mount_proc, seal_root
from .netns import Want, new_network, open_doors, sockets_inside
from .pid1 import TERMINAL
from .plan import Plan
from .rlimits import set_limit
from .system import HOSTS


class Slot:
    """The zygote's account of one sandbox.

    Attributes:
        number: The gateway's name for it.
        pid_1: Its pid in the zygote's namespace; 0 before it exists.
        pidfd: Of pid 1, for the gateway; -1 before it exists, and when the gateway has it.
        network: Descriptor of its network namespace; -1 before it exists, and when it is shelved.
        doors: Descriptors of its way out, for the gateway; empty when it has none. netns.py, hosts.py.
        group: Its cgroup's number; 0 for none.
        streams: For the gateway where it has brought none: its end of pid 1's socket, and both ends of
            the pipes that are stdout and stderr.
        over, memory_peak_bytes, processes_peak: The watcher's; `over` names the limit for which it
            killed the sandbox, "" when it did not.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.number: int = order["spawn"]
        self.group: int = order["group"]
        self._terminal: list[int] = order["terminal"]
        self._marks = Marks(hide=tuple(order["hide"]), protect=tuple(order["protect"]))
        self.pid_1 = 0
        self.pidfd = self.network = -1
        self.doors: list[int] = []
        self.streams: list[int] = []
        self.over = ""
        self.memory_peak_bytes = self.processes_peak = 0
        self._mounts = self._private = self._master = -1

    def prepare(
        self, plan: Plan, home: Home, network: int | None, fds: Sequence[int], bpf: int,
        group: Callable[[], Sequence[int]],
    ) -> None:  # fmt: skip
        """Build it. Raises OSError; `abandon` undoes what had been done.

        Args:
            plan: The policy's.
            home: Where to come back to.
            network: A network namespace to use again; None makes one.
            fds: The command's stdin, stdout and stderr, and pid 1's socket to the gateway.
            bpf: A file that holds the seccomp filter.
            group: Gives the files of its cgroup, once they are needed. They are being made at the
                same time.
        """
        ruleset = inner = gate = None
        try:
            self.network = new_network() if network is None else network
            home.leave(self.network)
            if plan.network:
                self.doors = open_doors()
            # The last to leave mounts takes them down, which takes the kernel longer than a short
            # command runs. Let that be us, when the end has been told.
            # By way of our own /proc, which is here until the sandbox's covers it.
            self._mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            buried = granted_trees(plan.buried)
            mount_private(plan.tmp_bytes)
            furnish(plan.workspace, buried, self._marks)
            if plan.network:
                self.doors.append(own_hosts(plan.files[HOSTS]) if plan.asks else no_hosts())
            self._private = os.open("/tmp", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            sources: list[int | str] = list(fds)
            if self._terminal:
                self._master, inner = os.openpty()
                for index in self._terminal:
                    sources[index] = TERMINAL
            ruleset = create_ruleset(plan.landlock_abi)
            if ruleset is not None:
                let_write(ruleset, plan)
            if ruleset is not None and plan.names_threads:
                gate = Gate()  # its own /proc is to be in the ruleset, and does not exist before it
            self.pid_1 = start_pid_1(plan, sources, ruleset, bpf, group(), gate)
            self.pidfd = os.pidfd_open(self.pid_1)
            mount_proc(self.pid_1, held_by_landlock=ruleset is not None and gate is None)
            if ruleset is not None and gate is not None:
                add(ruleset, ["/proc"], WRITE_FILE | TRUNCATE, plan.landlock_abi)
                gate.open()
            seal_root()
        finally:
            home.come_back()
            for fd in (ruleset, inner):
                if fd is not None:
                    os.close(fd)
            if gate is not None:
                gate.close()

    def open_streams(self) -> list[int]:
        """Make `streams`. Returns what `prepare` takes, the caller's to close; stdin is /dev/null."""
        control, theirs = socket.socketpair()
        self.streams = [control.detach(), *os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]
        stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return [stdin, os.dup(self.streams[2]), os.dup(self.streams[4]), theirs.detach()]

    def limit(self, plan: Plan, open_files: tuple[int, int]) -> None:
        """Hold pid 1, and so whatever it starts, by rlimits: in all that its cgroup does not hold.

        Args:
            plan: The policy's.
            open_files: RLIMIT_NOFILE, soft and hard, where the plan has none.
        """
        set_limit(self.pid_1, resource.RLIMIT_CORE, 0)
        resource.prlimit(self.pid_1, resource.RLIMIT_NOFILE, open_files)
        set_limit(self.pid_1, resource.RLIMIT_NOFILE, plan.open_files)
        set_limit(self.pid_1, resource.RLIMIT_FSIZE, plan.disk_bytes)
        if not self.group:
            set_limit(self.pid_1, resource.RLIMIT_DATA, plan.memory_bytes)
            if plan.processes is not None:  # the watcher ends it, and says so, before it gets there
                set_limit(self.pid_1, resource.RLIMIT_NPROC, plan.processes + 64)

    def handed_out(self) -> list[int]:
        """Descriptors for the gateway: pidfd of pid 1, its /tmp, doors, terminal's master, `streams`."""
        return [
            self.pidfd,
            self._private,
            *self.doors,
            *([self._master] if self._master >= 0 else []),
            *self.streams,
        ]

    def shelve(self, held: Callable[[tuple[int, int, int]], bool]) -> None:
        """Have another hold what is to outlive pid 1. Call before `handed_over`."""
        if held((self.pidfd, self.network, self._mounts)):
            os.close(self.network)
            os.close(self._mounts)
            self.network = self._mounts = -1

    def sockets_inside(self, wanted: Sequence[Want]) -> list[int]:
        """See netns.py. Raises `OSError`, also when it has ended."""
        if self.network >= 0:
            return sockets_inside(self.network, wanted)
        network = os.open(f"/proc/{self.pid_1}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return sockets_inside(network, wanted)
        finally:
            os.close(network)

    def handed_over(self) -> None:
        """Close our copies of what from now on is the gateway's alone."""
        for fd in (*self.doors, *self.streams, self._private, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.doors, self.streams, self._private, self.pidfd = [], [], -1, -1

    def kill(self) -> None:
        """SIGKILL to pid 1, and so to everything in its pid namespace."""
        os.kill(self.pid_1, signal.SIGKILL)  # a child that we have not reaped: no other has its pid

    def forward(self, number: int) -> bool:
        """Send a signal to the command's process group; False where there is none yet, or any more.

        What is no signal's number does nothing: nobody else's sandbox is to end of it.
        """
        command = _first_child(self.pid_1)
        if command is None:
            return False
        try:
            os.killpg(command, number)
        except ProcessLookupError:  # before its setsid(2)
            return False
        except (OSError, OverflowError):  # kill(2), EINVAL
            pass
        return True

    def release(self) -> None:
        """Let the namespaces of pid 1, which has been reaped, go but the network's."""
        for fd in (self._mounts, self._master):
            if fd >= 0:
                os.close(fd)

    def abandon(self) -> None:
        """End what `prepare` or `limit` has left, after an error."""
        if self.pid_1:
            os.kill(self.pid_1, signal.SIGKILL)
            os.waitpid(self.pid_1, 0)
        self.handed_over()
        for fd in (self.network, self._mounts, self._master):
            if fd >= 0:
                os.close(fd)


def _first_child(pid_1: int) -> int | None:
    """The oldest child of a pid 1 and so its command: what is orphaned to it is younger."""
    children: list[tuple[int, int]] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[1]) == pid_1:
                children.append((int(fields[19]), int(name)))  # starttime: proc_pid_stat(5)
    return min(children)[1] if children else None
