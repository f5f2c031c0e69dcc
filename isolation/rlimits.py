"""Limits that each process carries, and what the kernel says of a process when it has ended.

Sources: setrlimit(2), getrusage(2), statvfs(3).
"""

from __future__ import annotations

import os
import resource
from typing import Any

_BLOCK_BYTES = 512  # of ru_inblock and ru_oublock: <linux/task_io_accounting_ops.h>


def set_limit(pid: int, kind: int, value: int | None) -> None:
    """Lower a limit of process `pid`, soft and hard; it is never raised. None leaves it."""
    if value is None:
        return
    _, hard = resource.prlimit(pid, kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.prlimit(pid, kind, (value, value))


def rusage(used: resource.struct_rusage) -> dict[str, Any]:
    """What a process and the children that it waited for have used, as `Usage` names it."""
    return {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "memory_peak_bytes": used.ru_maxrss * 1024,
        "read_bytes": used.ru_inblock * _BLOCK_BYTES,
        "written_bytes": used.ru_oublock * _BLOCK_BYTES,
    }


def filled_bytes(place: str | int) -> int | None:
    """How much of the file system at `place`, a path or descriptor, is taken; None where it has no size."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize if found.f_blocks else None
