"""What an operation gives up, inside its sandbox, when it has its request and before it acts.

The sandbox holds what the policy allows; one call needs less. So the interpreter that will do it
first finds the places of its grant, going through no symbolic link, and restricts itself to them by a
second Landlock ruleset, and to the calls of such an operation by a second seccomp filter; the kernel
holds a thread to all that it has. A ruleset is about what was found, not about names: a link that is
put into the way later leads to something that may not be opened.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Mapping
from typing import Any

from . import landlock, libc

_READ = landlock.READ_FILE | landlock.READ_DIR
# Landlock has these by directory: who may change one name in it may change its others.
_WRITE = landlock.ALL & ~(_READ | landlock.EXECUTE | landlock.MAKE_CHAR | landlock.MAKE_BLOCK | landlock.IOCTL_DEV)  # fmt: skip
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def give_up(grant: Mapping[str, Any], *, links: bool) -> int:
    """Keep `grant` of what this process may do, for good.

    Args:
        grant: `read` and `write`, absolute paths without `..`; `filter`, a BPF program in base64.
        links: Whether the operation acts on symbolic links themselves, so that the last component
            of a path may be one.

    Returns:
        The Landlock ABI; 0 where the kernel has none.

    Raises:
        OSError: ELOOP, a path leads through a symbolic link; or the kernel refuses.
    """
    rules: list[tuple[int, int]] = []
    for path in grant["read"]:
        _, found = _find(path, links=False)
        if found is not None:
            rules.append((found, _READ))
    for path in grant["write"]:
        directory, found = _find(path, links=links)
        rules.append((directory, _WRITE))
        if found is not None and not stat.S_ISLNK(os.fstat(found).st_mode):
            rules.append((found, _READ))
    abi = landlock.restrict_to(rules)
    libc.seccomp(base64.b64decode(grant["filter"]))
    return abi


def _find(path: str, *, links: bool) -> tuple[int, int | None]:
    """Descriptors of the directory that `path` is or would be in (the last one on the way that
    exists), and of what it names; None where there is nothing."""
    directory = os.open("/", _PLACE | os.O_DIRECTORY)
    parts = [part for part in path.split("/") if part]
    if not parts:
        return directory, directory
    for number, part in enumerate(parts, 1):
        try:
            found = os.open(part, _PLACE, dir_fd=directory)
        except OSError:  # the operation itself says what is wrong with it
            return directory, None
        last = number == len(parts)
        mode = os.fstat(found).st_mode
        if stat.S_ISLNK(mode) and not (last and links):
            raise OSError(
                errno.ELOOP,
                "a symbolic link is in the way that was not there when the call was judged", path,
            )  # fmt: skip
        if last:
            return directory, found
        if not stat.S_ISDIR(mode):
            return directory, None
        directory = found
    raise AssertionError("unreachable: the last component returns")
