"""A cgroup: memory, processes, CPU and block I/O of a sandbox, held and measured by the kernel.

Sources: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .plan import Plan

if TYPE_CHECKING:
    from .usage import Counters

_CPU_PERIOD_US = 100_000
TRIES = 100  # two milliseconds apart, where the kernel is busy for a moment
MAX_FILES = 8  # of one sandbox's cgroup: of `open_procs` and `open_oom`
_RESIDUE_BYTES = 1 << 20


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
        self._last: Counters | None = None
        self._open: dict[str, int] = {}

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

    def open_oom(self) -> list[int]:
        """An eventfd that tells of a kill at the memory limit, and the file in which it is counted.

        v1 kills one process, where v2 has memory.oom.group and this is empty. cgroup-v1/memory.rst,
        "OOM Control".
        """
        if self.version == 2:
            return []
        memory = self._path("memory")
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(f"{memory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        write(f"{memory}/cgroup.event_control", f"{event} {control}")
        return [event, control]

    def open_procs(self) -> list[int]:
        """Descriptors to which a process writes "0" to move itself in; its children follow.

        Who writes needs no right of its own: the kernel looks at who opened. cgroups(7). Of v1 it is
        the file for one thread, because a thread that moves itself has to wait for nobody.
        """
        name = "cgroup.procs" if self.version == 2 else "tasks"
        return [
            os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC) for path in self.paths.values()
        ]

    def reset(self) -> bool:
        """Count from nothing again, for another sandbox. Its processes must have ended.

        Returns:
            Whether it does; else it is of no more use: when it has counted what the kernel lets
            nobody reset, or is still charged for over a mebibyte of files that were read. In v2 the
            peak of memory is of that kind before Linux 6.12, and one directory costs little.
        """
        if self.version == 2 or self._last is None or not self._last.resettable:
            return False
        memory, cpu = self.paths["memory"], self.paths["cpuacct"]
        try:
            if int(read(f"{memory}/memory.usage_in_bytes")) > _RESIDUE_BYTES:
                return False
            write(f"{memory}/memory.max_usage_in_bytes", "0")
            write(f"{cpu}/cpuacct.usage", "0")
        except (OSError, ValueError):
            return False
        return True

    def oom_kills(self) -> int:
        """How many processes the kernel has killed for the memory limit."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _fields(f"{self._path('memory')}/{name}").get("oom_kill", 0)

    def open_counters(self) -> None:
        """Open what `count` will read, while there is nothing else to do; `close` closes it."""
        names = (("memory", self._peak_name), ("pids", "pids.peak"), ("cpuacct", "cpuacct.usage"))
        with contextlib.suppress(OSError):  # one that is not there: count will see
            for controller, name in names[: 2 if self.version == 2 else 3]:
                path = f"{self._path(controller)}/{name}"
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close what is open. May be called again."""
        for fd in self._open.values():
            os.close(fd)
        self._open = {}

    @property
    def _peak_name(self) -> str:
        return "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"

    def _counter(self, path: str) -> int | None:
        fd = self._open.get(path)
        if fd is None:
            return _number(path)
        try:
            return _to_number(os.pread(fd, 64, 0))
        except OSError:  # ENODEV: the keeper has ended, and its cgroups with it
            return None

    def count(self, plan: Plan) -> Counters:
        """What has been counted so far.

        Each file costs some microseconds of every call, so what says how often a limit was met is
        read only where the peak has come near it.
        """
        from .usage import Counters  # the keeper, which never counts, need not import it

        memory, pids = self._path("memory"), self._path("pids")
        peak = self._counter(f"{memory}/{self._peak_name}")
        oom_kills = 0
        if plan.memory_bytes is not None and (peak is None or 2 * peak > plan.memory_bytes):
            oom_kills = self.oom_kills()
        processes = self._counter(f"{pids}/pids.peak")
        refused = 0
        if plan.processes is not None and (processes is None or processes > plan.processes):
            refused = _fields(f"{pids}/pids.events").get("max", 0)
        cpu_seconds, throttled = self._cpu(limited=plan.cpu_cores is not None)
        read, written = self._io()
        self._last = Counters(
            cpu_seconds=cpu_seconds,
            throttled_seconds=throttled,
            memory_peak_bytes=peak,
            oom_kills=oom_kills,
            processes_peak=None if processes is None else max(processes - 1, 0),  # our pid 1
            processes_refused=refused,
            read_bytes=read,
            written_bytes=written,
        )
        return self._last

    def _cpu(self, *, limited: bool) -> tuple[float | None, float | None]:
        cpu = self._path("cpu")
        if self.version == 2:
            stat = _fields(f"{cpu}/cpu.stat")
            used, waited = stat.get("usage_usec"), stat.get("throttled_usec")
            return used and used / 1e6, None if waited is None or not limited else waited / 1e6
        used = self._counter(f"{self._path('cpuacct')}/cpuacct.usage")
        waited = _fields(f"{cpu}/cpu.stat").get("throttled_time") if limited else None
        return used and used / 1e9, None if waited is None else waited / 1e9

    def _io(self) -> tuple[int | None, int | None]:
        if self.version == 1 and "blkio" not in self.paths:
            return None, None
        name = "io.stat" if self.version == 2 else "blkio.throttle.io_service_bytes"
        try:
            text = read(f"{self._path('io' if self.version == 2 else 'blkio')}/{name}")
        except OSError:
            return None, None
        words = text.replace("=", " ").lower().split()
        sums = dict.fromkeys(("rbytes", "wbytes", "read", "write"), 0)
        for name, value in itertools.pairwise(words):
            if name in sums and value.isdigit():
                sums[name] += int(value)
        return sums["rbytes"] + sums["read"], sums["wbytes"] + sums["write"]

    def remove(self) -> None:
        """Delete the directories; the sandbox's processes must have ended."""
        for path in self.paths.values():
            remove(path)


def _number(path: str) -> int | None:
    try:
        return _to_number(read(path))
    except OSError:
        return None


def _to_number(text: str | bytes) -> int | None:
    """None for "max"."""
    try:
        return int(text)
    except ValueError:
        return None


def _fields(path: str) -> dict[str, int]:
    """`name number` lines; {} where the file is missing."""
    try:
        lines = [line.split() for line in read(path).splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


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
