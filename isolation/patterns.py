"""The names of `filesystem.hide` and `.protect` that are no patterns or take no walk, and where links lead them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from fnmatch import translate

from .marks import Marks

_MOST_LINKS = 40  # MAXSYMLINKS, path_resolution(7)


class Found:
    """What exists: paths, links and ways as in `Marks`; `led` are those of the paths to which ways lead."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.led: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.ways: list[tuple[str, str]] = []

    def add(self, more: Found) -> None:
        self.paths += more.paths
        self.led += more.led
        self.links += more.links
        self.ways += more.ways


class Patterns:
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

    def present(self, root: str) -> Found:
        """Which of the literals exist."""
        found = Found()
        passed: dict[
            str, bool
        ] = {}  # whether there is a link before the last component, by directory
        for name in self.likely(root):
            path = f"{root}/{name}"
            inside = os.path.dirname(name)
            if inside not in passed:
                passed[inside] = _passes_link(root, inside)
            led = ""
            if passed[inside]:
                ways, led = lead(root, name)
                found.ways += ways
                if os.path.islink(led) or not led.startswith(f"{root}/"):
                    led = ""  # no mount holds that, or none in the workspace
            end = led
            try:
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    found.links.append((path, os.readlink(path)))
                else:
                    found.paths.append(path)
                    found.led += [led] if led else []
            except (PermissionError, NotADirectoryError):
                # As in `Guard`'s walk; or a file that stands for a directory, as `.git` of a worktree.
                found.paths.append(_end_of_way(root, name))
                end = _end_of_way(root, led[len(root) + 1 :]) if led else ""
            except OSError:
                continue
            found.paths += [end] if end else []
        return found

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


def still_known(before: Marks) -> set[str]:
    """Paths that were there and are what they were, as far as links lead to them."""
    known = set(before.protect) | {path for path, target in before.links if _leads(path, target)}
    if any(not _leads(link, target) for link, target in before.ways):
        ways = tuple(link for link, _ in before.ways)
        known = {path for path in known if not _begins(path, ways)}
    return known


def _begins(path: str, ways: tuple[str, ...]) -> bool:
    return path in ways or path.startswith(tuple(f"{link}/" for link in ways))


def _leads(link: str, target: str) -> bool:
    try:
        return os.readlink(link) == target
    except OSError:
        return False


def made_at(root: str, name: str, ways: set[tuple[str, str]]) -> str | None:
    """What there is to move aside where a command has made `name`; None for nothing.

    Args:
        root: The workspace.
        name: Relative to it.
        ways: Links that were there before: who goes by way of no other may go on.
    """
    if not _passes_link(root, os.path.dirname(name)):
        return name
    passed, led = lead(root, name)
    if not ways.issuperset(passed):
        return name  # the link
    if led.startswith(f"{root}/"):
        return led[len(root) + 1 :]
    return name if os.path.lexists(led) else None


def _passes_link(root: str, inside: str) -> bool:
    path = root
    for part in filter(None, inside.split("/")):
        path = f"{path}/{part}"
        if os.path.islink(path):
            return True
    return False


def lead(root: str, name: str) -> tuple[list[tuple[str, str]], str]:
    """Where `name` below `root` leads, its last component not followed, and the links on the way."""
    waiting = name.split("/")[::-1]
    here = root
    ways: list[tuple[str, str]] = []
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here).rstrip("/")
            continue
        path = f"{here}/{part}"
        try:
            target = os.readlink(path) if waiting and len(ways) < _MOST_LINKS else None
        except OSError:
            target = None
        if target is None:
            here = path
            continue
        ways.append((path, target))
        here = "" if target.startswith("/") else here
        waiting.extend(target.split("/")[::-1])
    return ways, here


def is_known(root: str, name: str, known: set[str]) -> bool:
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
