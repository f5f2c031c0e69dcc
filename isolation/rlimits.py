"""Limits that each process carries, and what a file system of limited size holds.

Sources: setrlimit(2), statvfs(3).
"""

from __future__ import annotations

import os
import resource


def set_limit(pid: int, kind: int, value: int | None) -> None:
    """Lower a limit of process `pid`, soft and hard; it is never raised. None leaves it."""
    if value is None:
        return
    _, hard = resource.prlimit(pid, kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.prlimit(pid, kind, (value, value))


def filled_bytes(place: str | int) -> int | None:
    """How much of the file system at `place`, a path or descriptor, is taken; None where it has no size."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize if found.f_blocks else None
