"""One sandbox as the zygote sees it: a thread, a pid 1, and a command held at its gate."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
from collections.abc import Generator
from typing import Any

from .gated import GatedProcess, last_pid, unknown_child
from .guard import Marks
from .lockdown import await_pid_1, enter_namespaces, fork_pid_1, lock_down
from .mounts import mount_private, seal_root
from .netns import open_doors
from .plan import Plan
from .rlimits import filled_bytes, rusage, set_limit


class Births:
    """Lets one thread at a time have a child, so that the main thread knows whose it is.

    A thread that spawns at the gate is suspended: only the main thread can find the child's pid.
    """

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._turn = threading.Lock()
        self._known: set[int] = set()
        self._after = 0
        self.expected: Slot | None = None
        self._failed: list[Slot] = []

    @contextlib.contextmanager
    def turn(self) -> Generator[None]:
        """Hold others back while a child is made whose pid is told by fork(2)."""
        with self._turn:
            yield

    def add(self, pid: int) -> None:
        """Take note of a child."""
        self._known.add(pid)

    def remove(self, pid: int) -> None:
        """A child has been reaped; its pid may come again."""
        self._known.discard(pid)

    def expect(self, slot: Slot) -> None:
        """Announce that `slot`'s thread spawns next; its turn ends when the main thread has it."""
        self._turn.acquire()
        self._after = last_pid()
        self.expected = slot
        os.write(self._wake, b"x")

    def fail(self, slot: Slot) -> None:
        """Announce that `slot` could not be prepared."""
        self._failed.append(slot)
        os.write(self._wake, b"x")

    def drain(self) -> None:
        """Empty the pipe that woke the main thread."""
        os.read(self.fd, 4096)

    def found(self) -> list[Slot]:
        """Slots that have a command now, or an error. Called by the main thread."""
        slots, self._failed = self._failed, []
        if (slot := self.expected) is not None:
            pid = unknown_child(self._after, self._known)
            if pid is None and slot.spawned.is_set():
                slot.error = slot.error or f"posix_spawn: {os.strerror(slot.code)}"
            if pid is not None or slot.error:
                if pid is not None:
                    self._known.add(pid)
                    slot.command = pid
                self.expected = None
                self._turn.release()
                slots.append(slot)
        return slots


class Slot:
    """The zygote's account of one sandbox.

    Attributes:
        number: The gateway's name for it.
        command, pid_1: Pids in the zygote's namespace; 0 before they exist.
        network: Descriptor of its network namespace; -1 before it exists.
        doors: Descriptors of its way out, for the gateway; empty when it has none. netns.py.
        error: Why it could not be prepared; "" when it was.
        code: What posix_spawn returned: 0, or the errno of execve.
        over, memory_peak_bytes, processes_peak: The watcher's; `over` names the limit for which it
            killed the sandbox, "" when it did not.
    """

    def __init__(self, order: dict[str, Any], fds: tuple[int, int, int], address: int) -> None:
        self.number: int = order["fork"]
        self._terminal: list[int] = order["terminal"]
        self._marks = Marks(hide=tuple(order["hide"]), protect=tuple(order["protect"]))
        self.command = self.pid_1 = 0
        self.error = ""
        self.code = 0
        self.over = ""
        self.memory_peak_bytes = self.processes_peak = 0
        self._thread = 0
        self._used: dict[str, Any] = {}
        self.spawned = threading.Event()
        self._reported = threading.Event()
        self.pidfds: list[int] = []
        self._fds = fds
        self._address = address
        self.network = -1
        self.doors: list[int] = []
        self._master = self._inner = -1
        self._gated: GatedProcess | None = None
        self._births: Births | None = None
        self._status: dict[bool, int] = {}
        self._alive: set[int] = set()
        self._told = False

    def prepare(self, plan: Plan, births: Births, network: int | None) -> None:
        """Become the sandbox. Runs in a thread of its own and ends after `release`."""
        self._births = births
        try:
            enter_namespaces(network)
            self._thread = threading.get_native_id()
            own = f"/proc/self/task/{self._thread}/ns/net"
            self.network = os.open(own, os.O_RDONLY | os.O_CLOEXEC) if network is None else network
            if plan.network:
                self.doors = open_doors()
            mount_private(plan, self._marks)
            with births.turn():
                self.pid_1, report = fork_pid_1(plan)
                births.add(self.pid_1)
            await_pid_1(report)
            seal_root()
            fds: list[int | None] = list(self._fds)
            name = None
            if self._terminal:
                self._master, self._inner = os.openpty()
                name = os.ttyname(self._inner)
                for index in self._terminal:
                    fds[index] = None
            self._gated = GatedProcess(fds, self._address, "/tmp", name)
            lock_down(plan)
            births.expect(self)
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            births.fail(self)
            return
        self.code = self._gated.spawn()
        self.spawned.set()
        # The last to leave a namespace takes it down, which takes the kernel longer than a short
        # command runs. Let it be this thread, when the end has been reported.
        self._reported.wait()

    def limit(self, plan: Plan, rlimits: bool) -> None:
        """Set the command's rlimits, and take hold of both processes: setrlimit(2), pidfd_open(2)."""
        set_limit(self.command, resource.RLIMIT_CORE, 0)
        set_limit(self.command, resource.RLIMIT_NOFILE, plan.open_files)
        set_limit(self.command, resource.RLIMIT_FSIZE, plan.disk_bytes)
        if rlimits:
            set_limit(self.command, resource.RLIMIT_DATA, plan.memory_bytes)
            if plan.processes is not None:  # the user's other processes count, too
                set_limit(self.command, resource.RLIMIT_NPROC, plan.processes + 64)
        self.pidfds = [os.pidfd_open(self.pid_1), os.pidfd_open(self.command)]
        self._alive = {self.pid_1, self.command}
        for fd in self._fds:
            os.close(fd)

    def handed_out(self) -> list[int]:
        """Descriptors for the keeper: pidfds of pid 1 and command, gate, doors, and terminal's master."""
        assert self._gated is not None
        master = [self._master] if self._master >= 0 else []
        return [*self.pidfds, self._gated.gate, *self.doors, *master]

    def forward(self, number: int) -> None:
        """Send a signal to the command's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.command, number)

    def ended(self, fd: int) -> None:
        """Reap the process that `fd` says has ended; with the command, pid 1 is ended, too."""
        command = fd == self.pidfds[1]
        os.close(fd)
        pid = self.command if command else self.pid_1
        with contextlib.suppress(ChildProcessError):  # posix_spawn reaps what could not execute
            _, self._status[command], used = os.wait4(pid, 0)
            if command:
                self._used = rusage(used)
        self._alive.discard(pid)
        if self.pid_1 in self._alive:
            # Its end is the end of all that is left in its namespace; the gateway waits for it.
            os.kill(self.pid_1, signal.SIGKILL)

    @property
    def to_report(self) -> bool:
        """Whether the command has ended and nobody has been told."""
        return self.command not in self._alive and not self._told

    @property
    def dead(self) -> bool:
        """Whether command and pid 1 have both ended."""
        return not self._alive

    def release(self) -> None:
        """Let the sandbox's thread go, and its namespaces with it. Call when it is `dead`."""
        self._reported.set()
        self.close()

    def abandon(self) -> None:
        """Undo a preparation that failed."""
        if self.pid_1:
            os.kill(self.pid_1, signal.SIGKILL)
            os.waitpid(self.pid_1, 0)
        for fd in self._fds:
            os.close(fd)
        self.close()

    def close(self) -> None:
        """Close the gate and the terminal, and forget the pids."""
        if self._gated is not None:
            self._gated.close()
        if self._births is not None:
            for pid in (self.command, self.pid_1):
                self._births.remove(pid)
        for fd in (self._master, self._inner):
            if fd >= 0:
                os.close(fd)
        self.close_doors()

    def close_doors(self) -> None:
        """Close our copies of the doors: from now on they are the gateway's alone."""
        for fd in self.doors:
            os.close(fd)
        self.doors = []

    def report(self) -> dict[str, Any]:
        """What the gateway hears when the command has ended. Call once."""
        self._told = True
        self.spawned.wait()
        if self.code:
            return {"ended": self.number, "refused": errno.errorcode[self.code]}
        return {
            "ended": self.number,
            "status": self._status.get(True),
            "over": self.over,
            **self._account(),
        }

    def _account(self) -> dict[str, Any]:
        used = dict(self._used)
        # As large as the largest process, or as all of them when they were looked at.
        largest = used.get("memory_peak_bytes", 0)
        used["memory_peak_bytes"] = max(largest, self.memory_peak_bytes) or None
        used["processes_peak"] = self.processes_peak or None
        with contextlib.suppress(
            OSError
        ):  # the thread is there, and so is its view, until `release`
            used["disk_bytes"] = filled_bytes(f"/proc/self/task/{self._thread}/root/tmp")
        return used
