"""A cgroup: memory, processes, CPU and block I/O of a sandbox, held by the kernel; meter.py reads it.

Sources: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from .plan import Plan

_CPU_PERIOD_US = 100_000
TRIES = 100  # two milliseconds apart, where the kernel is busy for a moment
MAX_FILES = 8  # of one sandbox's cgroup: of `open_procs`


def read(path: str) -> str:
    """What is in a file of a cgroup or of /proc, 64 KiB at the most."""
    # Plain system calls: three of these are in every call's way.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def write(path: str, text: str) -> None:
    """Write to such a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class Cgroup:
    """The cgroup of one sandbox: one directory in v2, one per controller in v1."""

    def __init__(self, version: int, paths: dict[str, str]) -> None:
        self.version = version
        self.paths = paths

    @staticmethod
    def of(version: int, bases: Mapping[str, str], number: int) -> Cgroup:
        """Cgroup `number` of a `Hierarchy` with that version and those bases."""
        return Cgroup(version, {name: f"{base}/{number}" for name, base in bases.items()})

    def _path(self, controller: str) -> str:
        return self.paths["" if self.version == 2 else controller]

    def limit(self, plan: Plan, devices: Iterable[str] = ()) -> None:
        """Set the plan's limits; block I/O on `devices`, each `MAJOR:MINOR` of a whole disk.

        Swap is off. At the memory limit the whole group is killed: by the kernel in v2, by whoever
        listens to `open_oom` in v1. At the others the system call fails or waits.
        """
        memory, pids, cpu = self._path("memory"), self._path("pids"), self._path("cpu")
        if self.version == 2:
            if plan.memory_bytes is not None:
                write(f"{memory}/memory.max", str(plan.memory_bytes))
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    if os.path.exists(f"{memory}/{name}"):
                        write(f"{memory}/{name}", value)
            if plan.cpu_cores is not None and os.path.exists(f"{cpu}/cpu.max"):
                write(f"{cpu}/cpu.max", f"{int(plan.cpu_cores * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        else:
            if plan.memory_bytes is not None:
                write(f"{memory}/memory.limit_in_bytes", str(plan.memory_bytes))
                write(f"{memory}/memory.swappiness", "0")
                if os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
                    write(f"{memory}/memory.memsw.limit_in_bytes", str(plan.memory_bytes))
            if plan.cpu_cores is not None:
                write(f"{cpu}/cpu.cfs_quota_us", str(int(plan.cpu_cores * _CPU_PERIOD_US)))
        if plan.processes is not None:
            write(f"{pids}/pids.max", str(plan.processes + 1))  # and our pid 1
        if (rate := plan.io_bytes_per_second) is not None:
            self._limit_io(rate, devices)

    def _limit_io(self, rate: int, devices: Iterable[str]) -> None:
        for device in devices:
            if self.version == 2:
                if os.path.exists(f"{self._path('io')}/io.max"):
                    write(f"{self._path('io')}/io.max", f"{device} rbps={rate} wbps={rate}")
                continue
            for name in ("read_bps_device", "write_bps_device"):
                write(f"{self._path('blkio')}/blkio.throttle.{name}", f"{device} {rate}")

    def open_oom(self) -> int:
        """An eventfd that tells of a kill at the memory limit, for as long as it is open.

        v1 kills one process, where v2 has memory.oom.group and this is -1. cgroup-v1/memory.rst,
        "OOM Control".
        """
        if self.version == 2:
            return -1
        memory = self._path("memory")
        control = os.open(f"{memory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            write(f"{memory}/cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event

    def open_procs(self) -> list[int]:
        """Descriptors to which a process writes "0" to move itself in; its children follow.

        Who writes needs no right of its own: the kernel looks at who opened. cgroups(7). Of v1 it is
        the file for one thread, because a thread that moves itself has to wait for nobody.
        """
        name = "cgroup.procs" if self.version == 2 else "tasks"
        return [
            os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC) for path in self.paths.values()
        ]

    def remove(self) -> None:
        """Delete the directories; the sandbox's processes must have ended."""
        for path in self.paths.values():
            remove(path)


def remove(path: str) -> None:
    """Delete a cgroup's directory; its processes must have ended."""
    # rmdir is EBUSY for a moment after the last process became a zombie that was reaped.
    for _ in range(TRIES):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)
