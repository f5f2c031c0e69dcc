"""Which block devices lie under a policy's writable places, for cgroups to hold their I/O.

Sources: proc_pid_mountinfo(5); kernel Documentation/admin-guide/cgroup-v2.rst, "io.max".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

_IN_MEMORY = ("tmpfs", "ramfs")
_SYS = "/sys/dev/block"


def devices_under(paths: Iterable[str]) -> tuple[set[str], list[str]]:
    """`MAJOR:MINOR` of each whole disk under `paths`, and the paths whose disk cannot be told.

    Those are on a network file system, an overlay, or one that spans several devices.
    """
    found: set[str] = set()
    unknown: list[str] = []
    mounts = _mounts()
    for path in paths:
        kind, source = _mount_of(os.path.realpath(path), mounts)
        device = os.stat(path).st_dev
        if not os.path.exists(f"{_SYS}/{os.major(device)}:{os.minor(device)}"):
            # Anonymous, as btrfs has it: what the mount was made from.
            status = (
                os.stat(source) if source.startswith("/dev/") and os.path.exists(source) else None
            )
            device = status.st_rdev if status and stat.S_ISBLK(status.st_mode) else 0
        if device:
            found.add(_whole_disk(f"{os.major(device)}:{os.minor(device)}"))
        elif kind not in _IN_MEMORY:
            unknown.append(path)
    return found, unknown


def _whole_disk(number: str) -> str:
    """The disk of a partition: limits are a disk's (ENODEV otherwise)."""
    if not os.path.exists(f"{_SYS}/{number}/partition"):
        return number
    with open(f"{os.path.realpath(f'{_SYS}/{number}')}/../dev") as file:
        return file.read().strip()


def _mounts() -> list[tuple[str, str, str]]:
    """Mount point, type and source of each mount, as mounted."""
    mounts: list[tuple[str, str, str]] = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, source = after.split()[:2]
            mounts.append((before.split()[4].encode().decode("unicode_escape"), kind, source))
    return mounts


def _mount_of(path: str, mounts: list[tuple[str, str, str]]) -> tuple[str, str]:
    best = max(
        (m for m in mounts if path == m[0] or path.startswith(m[0].rstrip("/") + "/")),
        key=lambda m: len(m[0]),
        default=("/", "", ""),
    )
    return best[1], best[2]
