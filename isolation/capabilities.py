"""Capabilities and no_new_privs: capabilities(7)."""

from __future__ import annotations

import errno
from collections.abc import Collection

from . import libc


def drop_bounding_set(keep: Collection[int] = ()) -> None:
    """Make execve(2) unable to give any capability but `keep` to this thread and all that it starts.

    Capabilities held stay held until `drop_all`. Costs forty system calls, so the zygote does it
    once for all its sandboxes.

    Raises:
        OSError: the kernel refused; nothing may run after that.
    """
    for number in (n for n in range(64) if n not in keep):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the kernel's CAP_LAST_CAP
                break
            raise


def drop_all() -> None:
    """Empty the ambient, effective, permitted and inheritable sets of this thread."""
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    libc.capset_none()


def set_no_new_privs() -> None:
    """Make execve(2) unable to grant privileges, for good. Source: no_new_privs.rst."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
