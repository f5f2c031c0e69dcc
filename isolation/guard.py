"""What of a writable workspace is hidden or protected: found before a sandbox is prepared, and
looked for again when its command has ended.

A mount can hold only what exists. So a protected path that a command has *made* is moved aside
before anybody on the host is told that the command ended: nothing is lost, and nothing that runs
by its name (`.git/hooks`, `.vscode`, …) is left. Names in patterns are relative to the workspace.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable
from fnmatch import translate
from typing import NamedTuple

from .marks import Marks
from .repositories import Repositories, TooMany
from .unchanged import Stamp, is_unchanged, stamp

_RESCAN_SECONDS = 1.0
_RESCAN_RATIO = 20.0  # a walk may take a twentieth of the time
_MAX_MATCHES = 1000


class _Look(NamedTuple):
    """What was found, and of which directories it is true as long as they have this stamp."""

    marks: Marks
    nested: _Patterns
    places: tuple[str, ...]
    stamp: Stamp


class Guard:
    """The patterns of `filesystem.hide` and `.protect` over one workspace.

    Args:
        workspace: Absolute, resolved; None guards nothing.
        hide: Patterns of what is covered.
        protect: Patterns of what is read-only; empty where the whole workspace is.

    A pattern without `*?[` is looked at before each call. Others need a walk through the workspace,
    which is repeated when it is older than a second or twenty times its own duration: a match that
    is younger may be seen once. Where `.git/config` is protected, so are those of the repositories that
    git enters from there: repositories.py.
    """

    def __init__(self, workspace: str | None, hide: Iterable[str], protect: Iterable[str]) -> None:
        self._workspace = workspace
        self._hide = _Patterns(hide)
        self._protect = _Patterns(protect)
        nested = workspace is not None and ".git/config" in self._protect.literals
        self._repositories = Repositories(workspace or "") if nested else None
        self._nested = _Patterns(())
        self._walked: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._next_walk = 0.0
        self._last: _Look | None = None

    def look(self) -> Marks:
        """What matches now.

        Raises:
            ValueError: more than a thousand paths match, or a git index is too large; says what to do.
        """
        root = self._workspace
        if root is None:
            return Marks()
        if (self._hide.globs or self._protect.globs) and time.monotonic() >= self._next_walk:
            began = time.monotonic()
            self._walked = self._walk(root)
            ended = time.monotonic()
            self._next_walk = ended + max(_RESCAN_SECONDS, _RESCAN_RATIO * (ended - began))
        protecting = self._protecting()
        if self._last is not None and self._is_as_it_was(self._last):
            return self._last.marks
        places = tuple(self._places(root))
        state = None if self._hide.globs or self._protect.globs else stamp(places)
        hidden, _ = self._hide.present(root)
        protected: list[str] = []
        links: list[tuple[str, str]] = []
        for patterns in protecting:
            paths, more = patterns.present(root)
            protected += paths
            links += more
        hide, protect = (
            tuple(dict.fromkeys((*found, *walked)))
            for found, walked in zip((hidden, protected), self._walked, strict=True)
        )
        if len(hide) + len(protect) > _MAX_MATCHES:
            raise ValueError(
                f"filesystem.hide and .protect match over {_MAX_MATCHES} paths in {root}; "
                "name their directory instead"
            )
        marks = Marks(hide=hide, protect=protect, links=tuple(links))
        self._last = None if state is None else _Look(marks, self._nested, places, state)
        return marks

    def _is_as_it_was(self, last: _Look) -> bool:
        return last.nested is self._nested and is_unchanged(last.places, last.stamp)

    def _places(self, root: str) -> dict[str, None]:
        """The directories in which names come and go that matter: the workspace, and those on the way."""
        places = {root: None}
        for patterns in (self._hide, self._protect, self._nested):
            for name in patterns.likely(root):
                while name := os.path.dirname(name):
                    if os.path.lexists(f"{root}/{name}"):
                        places[f"{root}/{name}"] = None
        return places

    def move_aside(self, before: Marks) -> tuple[str, ...]:
        """Rename each protected path that exists now but did not in `before`.

        Returns:
            For each, `NAME was moved to NAME.purple-quarantine-N`, relative to the workspace.
        """
        root = self._workspace
        if root is None:
            return ()
        said: list[str] = []
        protecting = self._protect, self._nested
        try:
            protecting = self._protecting()
        except TooMany:  # git reads no index that is not there, and enters nothing
            said += filter(None, [_quarantine(root, ".git/index")])
        if (last := self._last) and last.marks == before and self._is_as_it_was(last):
            return tuple(said)
        known = set(before.protect)
        if before.links:
            links = {link for patterns in protecting for link in patterns.present(root)[1]}
            known |= {path for path, _ in set(before.links) & links}
        for patterns in protecting:
            for name in patterns.likely(root):
                if not _known(root, name, known) and (moved := _quarantine(root, name)):
                    said.append(moved)
        if self._protect.globs:
            for path in self._walk(root)[1]:
                if path not in known and (moved := _quarantine(root, os.path.relpath(path, root))):
                    said.append(moved)
        return tuple(said)

    def _protecting(self) -> tuple[_Patterns, _Patterns]:
        """What needs no walk: of the policy, and of what git enters by itself. Raises `TooMany`."""
        if self._repositories is not None:
            names = self._repositories.names()
            if names != tuple(self._nested.literals):
                self._nested = _Patterns(names, are_paths=True)
        return self._protect, self._nested

    def _walk(self, root: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        hide: list[str] = []
        protect: list[str] = []
        waiting = [root]
        while waiting:
            directory = waiting.pop()
            try:
                entries = list(os.scandir(directory))
            except PermissionError:
                # A command may close what it may open again: what is in it is not known, so all is.
                hide += [directory] if self._hide.globs else []
                protect += [directory] if self._protect.globs else []
                continue
            except OSError:
                continue
            for entry in entries:
                if entry.is_symlink():  # its target decides
                    continue
                inside = entry.path[len(root) + 1 :]
                if self._hide.match(entry.name, inside):
                    hide.append(entry.path)
                    continue
                if self._protect.match(entry.name, inside):
                    protect.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        return tuple(hide), tuple(protect)


class _Patterns:
    def __init__(self, patterns: Iterable[str], *, are_paths: bool = False) -> None:
        paths = list(patterns) if are_paths else []
        patterns = () if are_paths else patterns
        cleaned = [p.rstrip("/").removesuffix("/**").removeprefix("./") for p in patterns]
        self.literals = [
            name
            for name in map(os.path.normpath, (p for p in cleaned if not _is_glob(p)))
            if not name.startswith(("../", "/")) and name not in (".", "..")
        ] + paths
        self.globs = [p.removeprefix("**/") for p in cleaned if _is_glob(p)]
        # A name alone is matched at any depth as it is; of a path that takes one more.
        self.globs += [f"*{p[2:]}" for p in cleaned if p.startswith("**/") and "/" in p[3:]]
        self.by_first: dict[str, list[str]] = {}  # literals by their first component
        for name in self.literals:
            self.by_first.setdefault(name.split("/", 1)[0], []).append(name)
        self._pattern = re.compile("|".join(map(translate, self.globs)) or r"(?!)")

    def match(self, name: str, inside: str) -> bool:
        return bool(self._pattern.match(name) or self._pattern.match(inside))

    def present(self, root: str) -> tuple[list[str], list[tuple[str, str]]]:
        """Paths of the literals that exist, and those that are links with their targets."""
        found: list[str] = []
        links: list[tuple[str, str]] = []
        for name in self.likely(root):
            path = f"{root}/{name}"
            try:
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    links.append((path, os.readlink(path)))
                else:
                    found.append(path)
            except (PermissionError, NotADirectoryError):
                # As in `_walk`; or a file that stands for a directory, as `.git` of a worktree.
                found.append(_end_of_way(root, name))
            except OSError:
                continue
        return found, links

    def likely(self, root: str) -> list[str]:
        """Literals whose first component is there, or may be.

        Every call looks three times, so what lies below a name that is missing is not asked for, and that by
        faccessat(2), which costs no exception. It does not tell a name that is missing from one that we
        may not look for, nor from a kernel (before 5.8) or a filter of system calls that refuses it.
        """
        if not self.by_first:
            return []
        if not os.access(root, os.X_OK) or not os.access("/", os.F_OK, follow_symlinks=False):
            return self.literals
        return [
            name
            for first, names in self.by_first.items()
            if os.access(f"{root}/{first}", os.F_OK, follow_symlinks=False)
            for name in names
        ]


def _known(root: str, name: str, known: set[str]) -> bool:
    """Whether `name`, or what stood in the way to it, was there and protected."""
    parts = name.split("/")
    return any(f"{root}/{'/'.join(parts[:n])}" in known for n in range(1, len(parts) + 1))


def _end_of_way(root: str, name: str) -> str:
    """How far below `root` the way to `name` leads: to a directory that does not let its contents be
    looked at, or to what is none."""
    path = root
    for part in name.split("/"):
        try:
            os.lstat(f"{path}/{part}")
        except OSError:
            break
        path = f"{path}/{part}"
    return path


def _is_glob(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")


def _quarantine(root: str, name: str) -> str | None:
    """Rename `name` below `root` if it is there; no link of the sandbox's making is followed."""
    parent = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    done: list[str] = []
    try:
        *parts, last = name.split("/")
        for part in parts:
            try:
                mode = _look(part, parent).st_mode
            except OSError:
                return None
            if not stat.S_ISDIR(mode):
                # A link could lead to the protected name elsewhere, and so could a file: gitfile,
                # gitrepository-layout(5).
                last = part
                break
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                below = os.open(part, flags, dir_fd=parent)
            except OSError:
                return None
            os.close(parent)
            parent = below
            done.append(part)
        try:
            _look(last, parent)
        except OSError:
            return None
        number = 1
        while _exists(f"{last}.purple-quarantine-{number}", parent):
            number += 1
        aside = f"{last}.purple-quarantine-{number}"
        os.rename(last, aside, src_dir_fd=parent, dst_dir_fd=parent)
        return f"{'/'.join([*done, last])} was moved to {'/'.join([*done, aside])}"
    finally:
        os.close(parent)


def _look(name: str, directory: int) -> os.stat_result:
    """lstat(2) of what is in a directory of ours, which a command may have closed."""
    try:
        return os.lstat(name, dir_fd=directory)
    except PermissionError:
        os.chmod(f"/proc/self/fd/{directory}", 0o700)  # fchmod(2) refuses O_PATH
        return os.lstat(name, dir_fd=directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except OSError:
        return False
    return True
