"""Directories by which a killed process is found out: each is locked for as long as its owner lives.

A keeper that is killed together with all the others removes nothing; the next one does it. A lock and
no pid says whether an owner lives, for a pid may be another's by now, or of another pid namespace. flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable


def make(path: str, mode: int = 0o777) -> int:
    """Make directory `path` and hold it.

    Returns:
        A descriptor; it is held until that, and each copy in a forked process, is closed.

    Raises:
        OSError: it cannot be made, or is there already.
    """
    while True:
        os.mkdir(path, mode)
        # Who sweeps may come at any moment before it is held.
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(held)):
                return held
        os.close(held)


def sweep(parent: str, name: re.Pattern[str], remove: Callable[[str], None]) -> None:
    """Remove directories of ours in `parent` whose names fit and whom nobody holds.

    Args:
        parent: Where they are.
        name: Of all that `make` makes there.
        remove: Takes a path; what it raises as OSError is let go.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not name.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                _remove_unheld(entry.path, remove)


def _remove_unheld(path: str, remove: Callable[[str], None]) -> None:
    found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(found).st_uid == os.geteuid():
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
    finally:
        os.close(found)


def remove(place: str) -> None:
    """Delete a directory of a sandbox's; its processes must have ended."""
    for directory, _, _ in os.walk(place):  # top-down: each is made readable before it is read
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
    for directory, directories, names in os.walk(place, topdown=False):
        for path in (f"{directory}/{name}" for name in (*names, *directories)):
            with contextlib.suppress(OSError):
                is_directory = os.path.isdir(path) and not os.path.islink(path)
                os.rmdir(path) if is_directory else os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(place)
