"""What the cgroup of a sandbox has counted, as the gateway reads it.

Sources: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping

from .cgroup import read
from .plan import Plan
from .usage import Counters

_RESIDUE_BYTES = 1 << 20
_SIZE = 1 << 14  # of what is read at once
_NONE = (-1, -1, -1, -1, -1)


class Meter:
    """Reads the counters of one cgroup through files that are opened before its sandbox has a command.

    Args:
        version: Of its hierarchy.
        bases: Where a `Hierarchy` has its cgroups: one directory in v2, one per controller in v1.
        number: Which of them.

    Attributes:
        number: As given.
    """

    def __init__(self, version: int, bases: Mapping[str, str], number: int) -> None:
        self.number = number
        self._version = version
        self._paths = {name: f"{base}/{number}" for name, base in bases.items()}
        self._last: Counters | None = None
        self._files = _NONE

    def open(self) -> None:
        """Open what `count` and `reset` need, if it is not open. The cgroup must exist."""
        if self._files is not _NONE:
            return
        if self._version == 2:
            self._files = (
                self._open("memory", "memory.peak"),
                self._open("pids", "pids.peak"),
                self._open("cpu", "cpu.stat"),
                self._open("io", "io.stat"),
                -1,
            )
        else:
            self._files = (
                self._open("memory", "memory.max_usage_in_bytes", os.O_RDWR),
                self._open("pids", "pids.peak"),
                self._open("cpuacct", "cpuacct.usage", os.O_RDWR),
                self._open("blkio", "blkio.throttle.io_service_bytes"),
                self._open("memory", "memory.usage_in_bytes"),
            )

    def close(self) -> None:
        """Close it again. May be called when it is; nothing is counted then."""
        files, self._files = self._files, _NONE
        for fd in files:
            if fd >= 0:
                os.close(fd)

    def count(self, plan: Plan) -> Counters:
        """What has been counted so far.

        Each file costs some microseconds of every call, so what says how often a limit was met is
        read only where the peak has come near it.
        """
        memory, pids, cpu, io, _ = self._files
        peak, processes = _number(memory), _number(pids)
        oom_kills = refused = 0
        if plan.memory_bytes is not None and (peak is None or 2 * peak > plan.memory_bytes):
            oom_kills = self.oom_kills()
        if plan.processes is not None and (processes is None or processes > plan.processes):
            refused = _fields(self._read("pids", "pids.events")).get("max", 0)
        throttled = None
        if self._version == 2:
            stat = _fields(_text(cpu))
            used = stat.get("usage_usec", 0) / 1e6 if stat else None
            if plan.cpu_cores is not None and "throttled_usec" in stat:
                throttled = stat["throttled_usec"] / 1e6
        else:
            nanoseconds = _number(cpu)
            used = None if nanoseconds is None else nanoseconds / 1e9
            if plan.cpu_cores is not None:
                waited = _fields(self._read("cpu", "cpu.stat")).get("throttled_time")
                throttled = None if waited is None else waited / 1e9
        moved = (None, None) if io < 0 else _moved(_text(io))
        self._last = Counters(
            cpu_seconds=used,
            throttled_seconds=throttled,
            memory_peak_bytes=peak,
            oom_kills=oom_kills,
            processes_peak=None if processes is None else max(processes - 1, 0),  # our pid 1
            processes_refused=refused,
            read_bytes=moved[0],
            written_bytes=moved[1],
        )
        return self._last

    def reset(self) -> bool:
        """Count from nothing again, for another sandbox. Its processes must have ended.

        Returns:
            Whether it does; else the cgroup is of no more use: when it has counted what the kernel lets
            nobody reset, or is still charged for over a mebibyte of files that were read. In v2 the
            peak of memory is of that kind before Linux 6.12, and one directory costs little.
        """
        last, self._last = self._last, None  # of this sandbox, or none: then nobody has looked
        if self._version == 2 or last is None or not last.resettable:
            return False
        peak, _, cpu, _, usage = self._files
        left = _number(usage)
        if left is None or left > _RESIDUE_BYTES:
            return False
        try:
            os.write(peak, b"0")
            os.write(cpu, b"0")
        except OSError:
            return False
        return True

    def oom_kills(self) -> int:
        """How many the kernel has killed in it at its memory limit so far."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return _fields(self._read("memory", name)).get("oom_kill", 0)

    def _path(self, controller: str, name: str) -> str:
        return f"{self._paths['' if self._version == 2 else controller]}/{name}"

    def _open(self, controller: str, name: str, mode: int = os.O_RDONLY) -> int:
        """-1 where this kernel or hierarchy has no such file."""
        try:
            return os.open(self._path(controller, name), mode | os.O_CLOEXEC)
        except (OSError, KeyError):
            return -1

    def _read(self, controller: str, name: str) -> str:
        try:
            return read(self._path(controller, name))
        except OSError:
            return ""


def _number(fd: int) -> int | None:
    """None where it has none, for "max", and where the keeper has ended, and its cgroups with it."""
    try:
        return int(os.pread(fd, 64, 0)) if fd >= 0 else None
    except (ValueError, OSError):
        return None


def _text(fd: int) -> str:
    try:
        return os.pread(fd, _SIZE, 0).decode() if fd >= 0 else ""
    except OSError:  # ENODEV: see `_number`
        return ""


def _fields(text: str) -> dict[str, int]:
    """`name number` lines."""
    lines = map(str.split, text.splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def _moved(text: str) -> tuple[int, int]:
    """Bytes read and written, of all devices."""
    words = text.replace("=", " ").lower().split()
    sums = dict.fromkeys(("rbytes", "wbytes", "read", "write"), 0)
    for name, value in itertools.pairwise(words):
        if name in sums and value.isdigit():
            sums[name] += int(value)
    return sums["rbytes"] + sums["read"], sums["wbytes"] + sums["write"]
