"""cgroups: memory, processes and CPU of a sandbox, held and measured by the kernel.

v2 where the memory controller is there and delegated to us, v1 children as root where that is all
there is, nothing otherwise. Sources: kernel Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/; systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import os
import time

from .plan import Plan

_ROOT = "/sys/fs/cgroup"
_CPU_PERIOD_US = 100_000


def _read(path: str) -> str:
    # Plain system calls: three of these are in every call's way.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


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

    Attributes:
        version: 2, 1, or 0 where no cgroup can be made.
        reason: Why not more than that; a sentence with the command that mends it.
    """

    def __init__(self) -> None:
        self.version = 0
        self.reason = ""
        self._bases: dict[str, str] = {}
        name = f"purple-{os.getpid()}"
        try:
            if not self._open_v2(name):
                self._open_v1(name)
        except OSError as error:
            self.version = 0
            self.reason = f"no cgroup can be made here ({error.strerror}: {error.filename})"

    def _open_v2(self, name: str) -> bool:
        own = _own_paths().get("")
        if own is None or not os.path.exists(f"{_ROOT}/cgroup.controllers"):
            return False
        here = f"{_ROOT}{own}".rstrip("/")
        parent = os.path.dirname(here)
        wanted = ("memory", "pids", "cpu")
        for base in (parent, here):
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
            os.mkdir(path)
            have = _read(f"{path}/cgroup.controllers").split()
            _write(f"{path}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted if c in have))
            self.version, self._bases = 2, {"": path}
            if missing := [c for c in wanted if c not in have]:
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
            leaf = f"{here}/main"
            with contextlib.suppress(FileExistsError):
                os.mkdir(leaf)
            for pid in _read(f"{here}/cgroup.procs").split():
                with contextlib.suppress(OSError):
                    _write(f"{leaf}/cgroup.procs", pid)
        _write(f"{here}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted if c in have))
        return True

    def _open_v1(self, name: str) -> None:
        own = _own_paths()
        for controller in ("memory", "pids", "cpu", "cpuacct"):
            base = f"{_ROOT}/{controller}{own.get(controller, '/')}".rstrip("/")
            if controller not in own or not os.access(base, os.W_OK):
                self.reason = f"cgroup v1: {controller} is not writable for this user"
                for made in self._bases.values():
                    os.rmdir(made)
                self._bases = {}
                return
            path = f"{base}/{name}"
            os.mkdir(path)
            self._bases[controller] = path
        self.version = 1

    def create(self, number: int, plan: Plan) -> Cgroup | None:
        """Make the cgroup of sandbox `number` with the plan's limits; None at version 0."""
        if self.version == 0:
            return None
        paths = {controller: f"{base}/{number}" for controller, base in self._bases.items()}
        for path in paths.values():
            os.mkdir(path)
        group = Cgroup(self.version, paths)
        group.limit(plan)
        return group

    def close(self) -> None:
        """Remove our own cgroups; sandboxes in them must have ended."""
        for path in self._bases.values():
            for entry in [e.path for e in os.scandir(path) if e.is_dir()]:
                _remove(entry)
            _remove(path)


class Cgroup:
    """The cgroup of one sandbox: one directory in v2, one per controller in v1."""

    def __init__(self, version: int, paths: dict[str, str]) -> None:
        self.version = version
        self.paths = paths

    def _path(self, controller: str) -> str:
        return self.paths["" if self.version == 2 else controller]

    def limit(self, plan: Plan) -> None:
        """Set the plan's limits. Swap is off: at the memory limit the whole group is killed."""
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
                if os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
                    _write(f"{memory}/memory.memsw.limit_in_bytes", str(plan.memory_bytes))
            if plan.cpu_cores is not None:
                _write(f"{cpu}/cpu.cfs_quota_us", str(int(plan.cpu_cores * _CPU_PERIOD_US)))
        if plan.processes is not None:
            _write(f"{pids}/pids.max", str(plan.processes + 1))  # and our pid 1

    def attach(self, pid: int) -> None:
        """Move a process in; its children follow."""
        for path in self.paths.values():
            _write(f"{path}/cgroup.procs", str(pid))

    def usage(self) -> dict[str, float | int | None]:
        """`cpu_seconds`, `memory_peak_bytes` and `oom_kills`; None where the kernel has no figure."""
        memory = self._path("memory")
        usage: dict[str, float | int | None] = {
            "cpu_seconds": None,
            "memory_peak_bytes": None,
            "oom_kills": 0,
        }
        with contextlib.suppress(OSError, ValueError, KeyError):
            if self.version == 2:
                stat = dict(line.split() for line in _read(f"{memory}/cpu.stat").splitlines())
                usage["cpu_seconds"] = int(stat["usage_usec"]) / 1e6
            else:
                usage["cpu_seconds"] = int(_read(f"{self.paths['cpuacct']}/cpuacct.usage")) / 1e9
        names = ("memory.peak", "memory.events") if self.version == 2 else (
            "memory.max_usage_in_bytes", "memory.oom_control")  # fmt: skip
        with contextlib.suppress(OSError, ValueError):
            usage["memory_peak_bytes"] = int(_read(f"{memory}/{names[0]}"))
        with contextlib.suppress(OSError, ValueError, KeyError):
            events = dict(line.split() for line in _read(f"{memory}/{names[1]}").splitlines())
            usage["oom_kills"] = int(events["oom_kill"])
        return usage

    def remove(self) -> None:
        """Delete the directories; the sandbox's processes must have ended."""
        for path in self.paths.values():
            _remove(path)


def _delegated(path: str) -> bool:
    if os.stat(path).st_uid == os.geteuid() != 0:
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def _remove(path: str) -> None:
    # rmdir is EBUSY for a moment after the last process became a zombie that was reaped.
    for _ in range(100):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)
