"""What every view holds, whatever its policy: an empty root, and copies of the small files of /etc.

It is a tmpfs that is mounted nowhere yet, so that it can be made before there is a policy, by a
process that has not left the host's mounts. Sources: fsopen(2), fsmount(2), move_mount(2).
"""

from __future__ import annotations

import contextlib
import os
import stat

from . import libc, pid1
from .plan import ETC, HOME

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
        self._copied: dict[str, tuple[object, tuple[str, ...]]] = {}  # its state then, and files
        for path in _DIRECTORIES:
            os.mkdir(self._root + path)
        for path, target in _LINKS.items():
            os.symlink(target, self._root + path)
        if program := pid1.executable():
            self.write(pid1.PATH, program, 0o555)
        for name in ETC:
            with contextlib.suppress(OSError):
                if not os.path.islink(f"/etc/{name}"):
                    self.copy(f"/etc/{name}")

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
        now = _state(path)
        then, files = self._copied.pop(path, (None, ()))
        if now != then:
            for file in files:
                os.unlink(self._root + file)
            found = _small_files(path)
            for file, content in found.items():
                self.write(file, *content)
            files = tuple(found)
        if files:
            self._copied[path] = now, files
        return bool(files)

    def attach(self, target: str) -> None:
        """Mount it; `write` goes on to work."""
        libc.move_mount(self._mount, target)
        os.close(self._mount)
        self._root = target


def _state(path: str) -> object:
    """What differs when a file has changed, or one in a directory has, or the directory itself."""
    found = os.stat(path)
    state = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    if not stat.S_ISDIR(found.st_mode) or found.st_nlink > 2:
        return state
    names = os.listdir(path)
    return state, len(names) <= _MAX_COPIES and [(name, _state(f"{path}/{name}")) for name in names]


def _small_files(path: str) -> dict[str, tuple[bytes, int, int]]:
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
