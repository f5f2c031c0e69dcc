"""Moving aside what a command has made under a protected name.

The way there is gone by descriptors, one component after the other: what other commands rename or link
meanwhile leads nowhere else. A directory that its command has closed is opened for that moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NAME_MAX = 255  # bytes; limits.h


def identity(directory: str | int) -> tuple[int, int] | None:
    """What tells a directory, by path or descriptor, from another at the same place; None if it is gone."""
    try:
        found = os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def open_root(root: str) -> int | None:
    """A descriptor of `root`, for this module; None if it is gone. Raises `OSError`."""
    try:
        return os.open(root, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def move_aside(root: int, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Rename those of `names` that are there; no link is followed.

    Args:
        root: From `open_root`.
        names: Relative to it, normal.

    Returns:
        A sentence for each that was moved, and why by name for those that could not be.
    """
    said: list[str] = []
    left: dict[str, str] = {}
    for name in names:
        try:
            moved = _move(root, name)
        except OSError as error:
            left[name] = error.strerror or str(error)
        else:
            said += [moved] if moved else []
    return said, left


@contextlib.contextmanager
def opened(directory: int) -> Generator[None]:
    """Have all rights in a directory of ours; afterwards its mode is what it was. Raises `OSError`."""
    path = f"/proc/self/fd/{directory}"  # fchmod(2) refuses O_PATH
    mode = stat.S_IMODE(os.fstat(directory).st_mode)
    if mode & stat.S_IRWXU == stat.S_IRWXU:
        yield
        return
    os.chmod(path, mode | stat.S_IRWXU)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what was to be done is done
            os.chmod(path, mode)


def _move(root: int, name: str) -> str | None:
    parent = os.dup(root)
    done: list[str] = []
    try:
        *parts, last = name.split("/")
        for part in parts:
            below = _within(parent, _enter, part)
            if below is None:
                # A link could lead to the protected name elsewhere, and so could a file: gitfile,
                # gitrepository-layout(5).
                last = part
                break
            os.close(parent)
            parent = below
            done.append(part)
        aside = _within(parent, _rename, last)
    except FileNotFoundError:
        return None
    finally:
        os.close(parent)
    return f"{'/'.join([*done, last])} was moved to {'/'.join([*done, aside])}"


def _within(directory: int, act: Callable[[int, str], T], name: str) -> T:
    """Call `act` for what is in a directory of ours, which a command may have closed."""
    try:
        return act(directory, name)
    except PermissionError:
        with opened(directory):
            return act(directory, name)


def _enter(parent: int, name: str) -> int | None:
    """Descriptor of a directory; None for what is none."""
    if not stat.S_ISDIR(_look(parent, name).st_mode):
        return None
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _rename(parent: int, name: str) -> str:
    """Give `name` one that is free, which is returned."""
    _look(parent, name)
    number = 1
    while True:
        end = f".purple-quarantine-{number}"
        aside = os.fsdecode(os.fsencode(name)[: _NAME_MAX - len(end)]) + end
        try:
            _look(parent, aside)
        except FileNotFoundError:
            os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)
            return aside
        number += 1


def _look(parent: int, name: str) -> os.stat_result:
    """lstat(2). Raises `FileNotFoundError` also for a name that is too long to be there."""
    try:
        return os.lstat(name, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
