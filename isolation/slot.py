"""One sandbox as the zygote sees it: namespaces with a pid 1 that waits for its order."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Sequence
from typing import Any

from .landlock import add_writing
from .lockdown import Gate, Home, create_ruleset, start_pid_1
from .marks import Marks
from .mounts import mount_private, mount_proc, seal_root
from .netns import new_network, open_doors
from .pid1 import TERMINAL
from .plan import Plan
from .rlimits import set_limit


class Slot:
    """The zygote's account of one sandbox.

    Attributes:
        number: The gateway's name for it.
        pid_1: Its pid in the zygote's namespace; 0 before it exists.
        pidfd: Of pid 1; -1 before it exists.
        network: Descriptor of its network namespace; -1 before it exists.
        doors: Descriptors of its way out, for the gateway; empty when it has none. netns.py.
        shared: Whether the gateway has had other sockets in its network namespace.
        group: Its cgroup's number; 0 for none.
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
        self.shared = False
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
            mount_private(plan, self._marks)
            self._private = os.open("/tmp", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            sources: list[int | str] = list(fds)
            if self._terminal:
                self._master, inner = os.openpty()
                for index in self._terminal:
                    sources[index] = TERMINAL
            ruleset = create_ruleset(plan)
            if ruleset is not None and plan.names_threads:
                gate = Gate()  # its own /proc is to be in the ruleset, and does not exist before it
            self.pid_1 = start_pid_1(plan, sources, ruleset, bpf, group(), gate)
            self.pidfd = os.pidfd_open(self.pid_1)
            mount_proc(self.pid_1, held_by_landlock=ruleset is not None and gate is None)
            if ruleset is not None and gate is not None:
                add_writing(ruleset, "/proc", plan.landlock_abi)
                gate.open()
            seal_root()
        finally:
            home.come_back()
            for fd in (ruleset, inner):
                if fd is not None:
                    os.close(fd)
            if gate is not None:
                gate.close()

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
        """Descriptors for the gateway: pidfd of pid 1, its /tmp, doors, and terminal's master."""
        return [
            self.pidfd,
            self._private,
            *self.doors,
            *([self._master] if self._master >= 0 else []),
        ]

    def handed_over(self) -> None:
        """Close our copies of what from now on is the gateway's alone."""
        for fd in (*self.doors, self._private):
            if fd >= 0:
                os.close(fd)
        self.doors, self._private = [], -1

    def kill(self) -> None:
        """SIGKILL to pid 1, and so to everything in its pid namespace."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def forward(self, number: int) -> bool:
        """Send a signal to the command's process group; False where there is none yet, or any more."""
        command = _first_child(self.pid_1)
        if command is None:
            return False
        try:
            os.killpg(command, number)
        except ProcessLookupError:  # before its setsid(2)
            return False
        return True

    def release(self) -> None:
        """Reap pid 1, which has ended, and let its namespaces go but the network's."""
        os.waitpid(self.pid_1, 0)
        for fd in (self.pidfd, self._mounts, self._master):
            if fd >= 0:
                os.close(fd)

    def abandon(self) -> None:
        """End what `prepare` or `limit` has left, after an error."""
        if self.pid_1:
            os.kill(self.pid_1, signal.SIGKILL)
            os.waitpid(self.pid_1, 0)
        self.handed_over()
        for fd in (self.pidfd, self.network, self._mounts, self._master):
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
