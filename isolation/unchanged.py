"""Whether directories still hold the names that they held, told by the time of their last change alone.

Theory of operation
    Who makes, renames or removes an entry of a directory, or changes its mode, sets its ctime to now, and
    nobody can set it to anything else: utimensat(2) sets it to now, too. inode(7). So where a directory's
    ctime is what it was when it was last looked through, there is nothing new in it. Three things would
    make that untrue, and are not trusted:
    - A clock that ticks: two changes within one tick (10 ms at the most, CONFIG_HZ) may have one time.
      So a directory that has changed within the last tenth of a second has no stamp.
    - File systems whose times somebody else keeps, or nobody: only those of the kernel's own have one.
    - Links, which lead elsewhere than to what the stamp is of.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

from . import libc

_SETTLED_NS = 100_000_000
# <linux/magic.h>: ext2 to ext4, XFS, Btrfs, tmpfs, F2FS, overlayfs (whose times are its upper's).
_KEPT_BY_KERNEL = {0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x794C7630}

Stamp = tuple[tuple[int, int, int], ...]


def stamp(directories: Iterable[str]) -> Stamp | None:
    """What `is_unchanged` takes; to be had before the directories are looked through.

    None where nothing could be told by it: a directory is missing, is a link, has just changed, or is not
    on a file system that is known to keep its time.
    """
    now = time.time_ns()
    found: list[tuple[int, int, int]] = []
    try:
        for path in directories:
            status = os.lstat(path)
            if (
                not stat.S_ISDIR(status.st_mode)
                or now - status.st_ctime_ns < _SETTLED_NS
                or libc.file_system(path) not in _KEPT_BY_KERNEL
            ):
                return None
            found.append((status.st_dev, status.st_ino, status.st_ctime_ns))
    except OSError:
        return None
    return tuple(found)


def is_unchanged(directories: Iterable[str], since: Stamp) -> bool:
    """Whether no name in these directories has come, gone or changed since their stamp was taken."""
    try:
        for path, before in zip(directories, since, strict=True):
            status = os.lstat(path)
            if (status.st_dev, status.st_ino, status.st_ctime_ns) != before:
                return False
    except OSError:
        return False
    return True
