"""An /etc/hosts that one sandbox has for itself, and that the gateway adds to. hosts(5).

Names that a policy allows by a pattern cannot stand in the view that its sandboxes share; and what one of
them has asked for is no other's business. Standard library only: loaded by the zygote.
Sources: open_tree(2), move_mount(2), which takes no file without a name.
"""

from __future__ import annotations

import contextlib
import os

from . import libc

_PATH = "/etc/hosts"
_MADE = "/tmp/.hosts-of-purple"  # for as long as it is being laid over the other
_READ_ONLY = (
    libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV | libc.MOUNT_ATTR_NOEXEC
)


def own_hosts(text: str) -> int:
    """Lay an /etc/hosts over the view's, which begins with `text`; read-only to all that see it.

    Call once in a sandbox's mount namespace, when its /tmp is mounted, which holds it, and nothing runs in
    it yet. Where there is no room, or no file to lay it over, the view's stays.

    Returns:
        A descriptor to append to it by.

    Raises:
        OSError: a mount was refused, or something that is granted has its place.
    """
    fd = os.open(_MADE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC)
    try:
        data, whole = text.encode(), False
        with contextlib.suppress(OSError):
            whole = os.write(fd, data) == len(data)
        if whole and os.path.isfile(_PATH):
            os.fchmod(fd, 0o444)
            _lay_over()
        os.unlink(_MADE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def no_hosts() -> int:
    """What there is in the place of that descriptor where a sandbox has none for itself."""
    return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)


def _lay_over() -> None:
    tree = libc.open_tree(_MADE, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC)
    try:
        libc.mount_setattr(tree, _READ_ONLY)
        libc.move_mount(tree, _PATH)
    finally:
        os.close(tree)
