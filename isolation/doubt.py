"""Which protected names may be another running command's work, although they were there before this one.

A command that starts beside others finds what those have made, and has it read-only. When one of the
others ends, that is moved aside, and the name is free again: for this command, too, which must not pass
off what it then makes as what it had found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from .marks import Marks

Identity = tuple[int, int]  # device and inode


def doubtful(marks: Marks, others: Iterable[Marks]) -> Mapping[str, Identity | None]:
    """What is at those paths of `marks` that one of `others`, which still run, had not found."""
    found: dict[str, Identity | None] = {}
    for other in others:
        if other is not marks and other.protect != marks.protect:
            known = set(other.protect)
            found.update((path, _identity(path)) for path in marks.protect if path not in known)
    return found


def known(marks: Marks, doubted: Mapping[str, Identity | None]) -> Marks:
    """`marks` without those paths at which there is something else by now."""
    gone = {path for path, before in doubted.items() if _identity(path) != before}
    if not gone:
        return marks
    return marks._replace(protect=tuple(path for path in marks.protect if path not in gone))


def _identity(path: str) -> Identity | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
