"""Where cgroups can be made: found once for each keeper, whose sandboxes have theirs there.

v2 where the memory controller is there and delegated to us, v1 children as root where that is all
there is, nothing otherwise. Sources: kernel Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/; systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time

from . import leftovers, scope
from .blockio import devices_under
from .cgroup import TRIES, Cgroup, read, remove, write
from .plan import Plan

_ROOT = "/sys/fs/cgroup"
_BASE = re.compile(r"purple-\d+")


class Hierarchy:
    """Where this process may make cgroups. One per keeper; `close` leaves nothing behind.

    Attributes:
        version: 2, 1, or 0 where no cgroup can be made.
        reason: Why not more than that; a sentence with the command that mends it.
        bases: Controller ("" for all of v2) → directory in which sandboxes have theirs.
    """

    def __init__(self) -> None:
        self.version = 0
        self.reason = ""
        self.bases: dict[str, str] = {}
        self._devices: set[str] = set()
        self._held: list[int] = []  # the bases, so that no other keeper takes them for a dead one's
        self._name = f"purple-{os.getpid()}"
        try:
            if not self._open_v2():
                self._open_v1()
        except OSError as error:
            self.version = 0
            self.reason = f"no cgroup can be made here ({error.strerror}: {error.filename})"

    def hold_io(self, plan: Plan) -> None:
        """Hold block I/O, too, in all that is created from now on; `reason` says what cannot be."""
        if self.version == 0:
            return
        if self.version == 2:
            self._look_for("memory", "pids", "cpu", "io")
        # In v1 a hierarchy of its own, so a directory and two moves more for every sandbox.
        elif not self._open_controller("blkio"):
            return
        self._devices, unknown = devices_under(plan.granted)
        if unknown:
            self.reason = self.reason or (
                f"resources.io cannot be held on {', '.join(unknown)}: no block device of its own"
            )

    def _look_for(self, *needed: str) -> None:
        have = read(f"{self.bases['']}/cgroup.controllers").split()
        if missing := [name for name in needed if name not in have]:
            self.reason = f"controllers not delegated: {', '.join(missing)}"

    def _open_v2(self) -> bool:
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
            enabled = read(f"{base}/cgroup.subtree_control").split()
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
            path = f"{base}/{self._name}"
            self._held.append(leftovers.make(path))
            have = read(f"{path}/cgroup.controllers").split()
            write(f"{path}/cgroup.subtree_control", " ".join(f"+{c}" for c in wanted if c in have))
            self.version, self.bases = 2, {"": path}
            self._look_for(*wanted[:3])
            return True
        self.reason = (
            "no cgroup is delegated to this user; start through "
            "`systemd-run --user --scope -p Delegate=yes -- purple …`"
        )
        return True

    def _enable(self, here: str, wanted: tuple[str, ...]) -> bool:
        have = read(f"{here}/cgroup.controllers").split()
        if not {"memory", "pids"} <= set(have):
            return False
        if here != _ROOT:
            if not _delegated(here):
                return False
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{here}/main")
        controllers = " ".join(f"+{c}" for c in wanted if c in have)
        for patience in reversed(range(TRIES)):
            if here != _ROOT:
                _move_all(here, f"{here}/main")
            try:
                write(f"{here}/cgroup.subtree_control", controllers)
                break
            except OSError as error:
                # One of them has been starting another, which is here now.
                if error.errno != errno.EBUSY or not patience:
                    raise
                time.sleep(0.002)
        return True

    def _open_v1(self) -> None:
        if not all(map(self._open_controller, ("memory", "pids", "cpu", "cpuacct"))):
            for made in self.bases.values():
                os.rmdir(made)
            self.bases = {}
            return
        self.version = 1

    def _open_controller(self, name: str) -> bool:
        """Whether one of v1 is ours to use."""
        own = _own_paths()
        base = f"{_ROOT}/{name}{own.get(name, '/')}".rstrip("/")
        if name not in own or not os.access(base, os.W_OK):
            self.reason = f"cgroup v1: {name} is not writable for this user"
            return False
        path = f"{base}/{self._name}"
        self._held.append(leftovers.make(path))
        self.bases[name] = path
        return True

    def create(self, number: int) -> Cgroup:
        """Make cgroup `number`, or what of it is not there yet, without limits. Not at version 0."""
        group = Cgroup.of(self.version, self.bases, number)
        for path in group.paths.values():
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
        return group

    def limit(self, group: Cgroup, plan: Plan) -> None:
        """Set a plan's limits on a cgroup."""
        group.limit(plan, self._devices)

    def sweep(self) -> None:
        """Remove what keepers that were killed have left beside ours."""
        for path in self.bases.values():
            leftovers.sweep(os.path.dirname(path), _BASE, _remove_all)

    def close(self) -> None:
        """Remove our own cgroups; sandboxes in them must have ended."""
        for path in self.bases.values():
            with contextlib.suppress(FileNotFoundError):  # systemd removes a scope that is empty
                for entry in [e.path for e in os.scandir(path) if e.is_dir()]:
                    remove(entry)
            remove(path)
        for held in self._held:
            os.close(held)


def _own_paths() -> dict[str, str]:
    """Controller (or "" for v2) → path of this process in that hierarchy. cgroups(7)."""
    paths: dict[str, str] = {}
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    return paths


def _delegated(path: str) -> bool:
    if os.stat(path).st_uid == os.geteuid() != 0:
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def _move_all(source: str, target: str) -> None:
    for pid in read(f"{source}/cgroup.procs").split():
        with contextlib.suppress(OSError):
            write(f"{target}/cgroup.procs", pid)


def _remove_all(base: str) -> None:
    """Without patience: what still runs in one keeps it for the next time."""
    for entry in [e.path for e in os.scandir(base) if e.is_dir()]:
        os.rmdir(entry)
    os.rmdir(base)
