"""The root of a view, a tmpfs: its directories, and copies of the small files of /etc.

Sources: fsopen(2), fsmount(2), move_mount(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from . import libc, pid1
from .plan import HOME

_MAX_COPIES, _MAX_COPY_BYTES = 16, 128 << 10
_DIRECTORIES = (
    "/proc", "/dev", "/dev/shm", "/dev/pts", "/etc", "/home", HOME, "/run", "/sys", "/tmp",
    "/var", "/var/tmp", "/.old",
)  # fmt: skip
_LINKS = {
    "/dev/fd": "/proc/self/fd", "/dev/stdin": "/dev/fd/0", "/dev/stdout": "/dev/fd/1",
    "/dev/stderr": "/dev/fd/2", "/dev/ptmx": "pts/ptmx",
}  # fmt: skip


class Stage:
    """The root of one view. Raises `OSError`: nothing may be mounted here."""

    def __init__(self) -> None:
        self._mount = libc.tmpfs(
            "mode=755", "size=16m", attributes=libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
        )
        self._root = f"/proc/self/fd/{self._mount}"
        for path in _DIRECTORIES:
            os.mkdir(self._root + path)
        for path, target in _LINKS.items():
            os.symlink(target, self._root + path)
        if program := pid1.executable():
            self.write(pid1.PATH, program, 0o555)

    def write(self, path: str, data: bytes, mode: int, mtime_ns: int | None = None) -> None:
        """Make a file, or make it anew; changed just now, or at `mtime_ns` since the epoch."""
        if not os.path.isdir(parent := os.path.dirname(self._root + path)):
            os.makedirs(parent)
        with open(self._root + path, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        if mtime_ns is not None:
            os.utime(self._root + path, ns=(mtime_ns, mtime_ns))

    def copy(self, path: str) -> bool:
        """Have a copy of a file, or of the files in a directory, as the host has them now.

        Each mount costs the kernel some microseconds at the start and again at the end of every
        sandbox, so one for each of /etc's files would be half of what a view costs.

        Returns:
            Whether it has; not what is large, or not ours to read: that is to be mounted.
        """
        found = small_files(path)
        for file, content in found.items():
            self.write(file, *content)
        return bool(found)

    def attach(self, target: str) -> None:
        """Mount it; `write` goes on to work."""
        libc.move_mount(self._mount, target)
        os.close(self._mount)
        self._root = target

    def entered(self) -> None:
        """Take note that it has become the root."""
        self._root = ""


def looked_at(paths: Iterable[str]) -> list[str]:
    """Of what `states` are equal for as long as a stage, and mounts, for `paths` show what is there:
    of files that are copied, and of the directories in which they and all else have their names."""
    found = [os.path.dirname(path) for path in paths]
    for path in paths:
        if path.startswith("/etc/") and not os.path.islink(path) and (files := small_files(path)):
            found += [path, *files]
    return list(dict.fromkeys(found))


def states(paths: Iterable[str]) -> list[tuple[int, ...]]:
    """What differs when one has changed, or has another in its place. Raises `OSError`: has none."""
    found = map(os.stat, paths)
    return [(s.st_dev, s.st_ino, s.st_ctime_ns, s.st_size) for s in found]


def small_files(path: str) -> dict[str, tuple[bytes, int, int]]:
    """Contents, modes and times of change, by path; {} where there are more or larger ones than are copied.

    A file's time of change is part of it: Python compiles a module anew, each time that it is imported,
    whose time is not the one in its .pyc; Debian's sitecustomize.py lies in /etc.
    """
    found: dict[str, tuple[bytes, int, int]] = {}
    try:
        inside = [f"{path}/{name}" for name in os.listdir(path)] if os.path.isdir(path) else [path]
        if len(inside) > _MAX_COPIES:
            return {}
        for name in inside:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                mode = status.st_mode
                data = os.read(fd, _MAX_COPY_BYTES + 1) if stat.S_ISREG(mode) else None
            finally:
                os.close(fd)
            if data is None or len(data) > _MAX_COPY_BYTES:
                return {}
            found[name] = data, stat.S_IMODE(mode) & 0o555, status.st_mtime_ns
    except OSError:
        return {}
    return found
