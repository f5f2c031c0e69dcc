"""cgroups: memory, processes, CPU and block I/O of a sandbox, held and measured by the kernel.

v2 where the memory controller is there and delegated to us, v1 children as root where that is all
there is, nothing otherwise. Sources: kernel Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/; systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from . import leftovers, scope
from .blockio import devices_under
from .plan import Plan

if TYPE_CHECKING:
    from .usage import Counters

_ROOT = "/sys/fs/cgroup"
_CPU_PERIOD_US = 100_000
_TRIES = 100  # two milliseconds apart, where the kernel is busy for a moment
MAX_FILES = 8  # of one sandbox's cgroup: of `open_procs` and `open_oom`
_RESIDUE_BYTES = 1 << 20
_BASE = re.compile(r"purple-\d+")


def _read(path: str) -> str:
    # Plain system calls: three of these are in every call's way.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _own_paths() -> dict[str, str]:
    """Controller (or "" for v2) → path of this process in that hierarchy. cgroups(7)."""
    paths: dict[str, str] = {}
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    return paths


class Hierarchy:
    """Where this process may make cgroups. One per keeper; `close` leaves nothing behind.

    Args:
        plan: What is to be held; None to look only at what could be.

    Attributes:
        version: 2, 1, or 0 where no cgroup can be made.
        reason: Why not more than that; a sentence with the command that mends it.
        bases: Controller ("" for all of v2) → directory in which sandboxes have theirs.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self.version = 0
        self.reason = ""
        self.bases: dict[str, str] = {}
        self._devices: set[str] = set()
        self._held: list[int] = []  # the bases, so that no other keeper takes them for a dead one's
        self._io_wanted = plan is not None and plan.io_bytes_per_second is not None
        name = f"purple-{os.getpid()}"
        try:
            if not self._open_v2(name):
                self._open_v1(name)
        except OSError as error:
            self.version = 0
            self.reason = f"no cgroup can be made here ({error.strerror}: {error.filename})"
        if plan is not None and self._io_wanted and self.version:
            self._find_devices(plan)

    def _find_devices(self, plan: Plan) -> None:
        places = [*plan.write, *plan.read, *([plan.workspace] if plan.workspace else [])]
        self._devices, unknown = devices_under(places)
        if unknown:
            self.reason = self.reason or (
                f"resources.io cannot be held on {', '.join(unknown)}: no block device of its own"
            )

    def _open_v2(self, name: str) -> bool:
        own = _own_paths().get("")
        if own is None or not os.path.exists(f"{_ROOT}/cgroup.controllers"):
            return False
        here = f"{_ROOT}{own}".rstrip("/")
        places = [os.path.dirname(here), here]
        if os.path.basename(here) == scope.name_of(os.getpid()):  # whose parent is systemd's
            places = [here]
        parent = os.path.dirname(here)
        # io costs nothing more and counts; the others hold what every policy may ask for.
        wanted = ("memory", "pids", "cpu", "io")
        for base in places:
            # cgroup v2 has no processes in a cgroup that hands controllers down ("no internal
            # processes"), so a sibling of our own is tried first, then a child.
            if not base.startswith(_ROOT) or not os.access(f"{base}/cgroup.procs", os.W_OK):
                continue
            enabled = _read(f"{base}/cgroup.subtree_control").split()
            if base == parent and not {"memory", "pids"} <= set(enabled):
                continue
            if base == parent and os.geteuid() == 0 and base != _ROOT and not _delegated(base):
                continue
            if (
                base == here
                and not {"memory", "pids"} <= set(enabled)
                and not self._enable(here, wanted)
            ):
                continue
            path = f"{base}/{name}"
            self._held.append(leftovers.make(path))
            have = _read(f"{path}/cgroup.controllers").split()
            _write(f"{path}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted if c in have))
            self.version, self.bases = 2, {"": path}
            needed = wanted if self._io_wanted else wanted[:3]
            if missing := [c for c in needed if c not in have]:
                self.reason = f"controllers not delegated: {', '.join(missing)}"
            return True
        self.reason = (
            "no cgroup is delegated to this user; start through "
            "`systemd-run --user --scope -p Delegate=yes -- purple …`"
        )
        return True

    def _enable(self, here: str, wanted: tuple[str, ...]) -> bool:
        have = _read(f"{here}/cgroup.controllers").split()
        if not {"memory", "pids"} <= set(have):
            return False
        if here != _ROOT:
            if not _delegated(here):
                return False
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{here}/main")
        controllers = " ".join(f"+{c}" for c in wanted if c in have)
        for patience in reversed(range(_TRIES)):
            if here != _ROOT:
                _move_all(here, f"{here}/main")
            try:
                _write(f"{here}/cgroup.subtree_control", controllers)
                break
            except OSError as error:
                # One of them has been starting another, which is here now.
                if error.errno != errno.EBUSY or not patience:
                    raise
                time.sleep(0.002)
        return True

    def _open_v1(self, name: str) -> None:
        own = _own_paths()
        # Each is a hierarchy of its own, so a directory and two moves more for every sandbox.
        blkio = ("blkio",) if self._io_wanted else ()
        for controller in ("memory", "pids", "cpu", "cpuacct", *blkio):
            base = f"{_ROOT}/{controller}{own.get(controller, '/')}".rstrip("/")
            if controller not in own or not os.access(base, os.W_OK):
                self.reason = f"cgroup v1: {controller} is not writable for this user"
                for made in self.bases.values():
                    os.rmdir(made)
                self.bases = {}
                return
            path = f"{base}/{name}"
            self._held.append(leftovers.make(path))
            self.bases[controller] = path
        self.version = 1

    def create(self, number: int, plan: Plan) -> Cgroup:
        """Make cgroup `number` with the plan's limits. Not at version 0."""
        group = Cgroup.of(self.version, self.bases, number)
        for path in group.paths.values():
            os.mkdir(path)
        group.limit(plan, self._devices)
        return group

    def sweep(self) -> None:
        """Remove what keepers that were killed have left beside ours."""
        for path in self.bases.values():
            leftovers.sweep(os.path.dirname(path), _BASE, _remove_all)

    def close(self) -> None:
        """Remove our own cgroups; sandboxes in them must have ended."""
        for path in self.bases.values():
            with contextlib.suppress(FileNotFoundError):  # systemd removes a scope that is empty
                for entry in [e.path for e in os.scandir(path) if e.is_dir()]:
                    _remove(entry)
            _remove(path)
        for held in self._held:
            os.close(held)


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
                _write(f"{memory}/memory.max", str(plan.memory_bytes))
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    if os.path.exists(f"{memory}/{name}"):
                        _write(f"{memory}/{name}", value)
            if plan.cpu_cores is not None and os.path.exists(f"{cpu}/cpu.max"):
                _write(f"{cpu}/cpu.max", f"{int(plan.cpu_cores * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        else:
            if plan.memory_bytes is not None:
                _write(f"{memory}/memory.limit_in_bytes", str(plan.memory_bytes))
                _write(f"{memory}/memory.swappiness", "0")
                if os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
                    _write(f"{memory}/memory.memsw.limit_in_bytes", str(plan.memory_bytes))
            if plan.cpu_cores is not None:
                _write(f"{cpu}/cpu.cfs_quota_us", str(int(plan.cpu_cores * _CPU_PERIOD_US)))
        if plan.processes is not None:
            _write(f"{pids}/pids.max", str(plan.processes + 1))  # and our pid 1
        if (rate := plan.io_bytes_per_second) is not None:
            self._limit_io(rate, devices)

    def _limit_io(self, rate: int, devices: Iterable[str]) -> None:
        for device in devices:
            if self.version == 2:
                if os.path.exists(f"{self._path('io')}/io.max"):
                    _write(f"{self._path('io')}/io.max", f"{device} rbps={rate} wbps={rate}")
                continue
            for name in ("read_bps_device", "write_bps_device"):
                _write(f"{self._path('blkio')}/blkio.throttle.{name}", f"{device} {rate}")

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
        _write(f"{memory}/cgroup.event_control", f"{event} {control}")
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
            if int(_read(f"{memory}/memory.usage_in_bytes")) > _RESIDUE_BYTES:
                return False
            _write(f"{memory}/memory.max_usage_in_bytes", "0")
            _write(f"{cpu}/cpuacct.usage", "0")
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
            text = _read(f"{self._path('io' if self.version == 2 else 'blkio')}/{name}")
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
            _remove(path)


def _number(path: str) -> int | None:
    try:
        return _to_number(_read(path))
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
        lines = [line.split() for line in _read(path).splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def _delegated(path: str) -> bool:
    if os.stat(path).st_uid == os.geteuid() != 0:
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def _move_all(source: str, target: str) -> None:
    for pid in _read(f"{source}/cgroup.procs").split():
        with contextlib.suppress(OSError):
            _write(f"{target}/cgroup.procs", pid)


def _remove_all(base: str) -> None:
    """Without patience: what still runs in one keeps it for the next time."""
    for entry in [e.path for e in os.scandir(base) if e.is_dir()]:
        os.rmdir(entry)
    os.rmdir(base)


def _remove(path: str) -> None:
    # rmdir is EBUSY for a moment after the last process became a zombie that was reaped.
    for _ in range(_TRIES):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)
