"""Where a path leads in a sandbox's view: symbolic links followed on the host, where both agree.

The view shows granted trees and system software at the host's own paths, so that the host's links are
the view's. It is a look from outside, before a call is judged; that it still holds when the call runs
is the kernel's (narrowing.py).
"""

from __future__ import annotations

import os

from .plan import Plan

_MOST_LINKS = 40  # MAXSYMLINKS, path_resolution(7)


def follow(plan: Plan, path: str, *, last: bool = True) -> tuple[str, list[str]]:
    """The path that `path` leads to, and the links on the way.

    Args:
        plan: Of the sandbox.
        path: Absolute, without `.` and `..`.
        last: Whether the last component is followed, too.

    A link that leads out of the view is followed up to where it leaves it. After forty links the
    path is returned as it is: the kernel says ELOOP.
    """
    waiting = path.split("/")[::-1]
    done = ""
    through: list[str] = []
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = os.path.dirname(done).rstrip("/")
            continue
        here = f"{done}/{part}"
        target = None
        if (last or any(waiting)) and plan.shows(here):
            try:
                target = os.readlink(here)
            except OSError:  # no link, or nothing
                target = None
        if target is None:
            done = here
            continue
        through.append(here)
        if len(through) > _MOST_LINKS:
            return path, []
        if target.startswith("/"):
            done = ""
        waiting.extend(target.split("/")[::-1])
    return done or "/", through
