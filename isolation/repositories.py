"""Git repositories that git enters by itself from the workspace's: its submodules, at any depth.

`git status` in a repository runs git in each directory that its index names as a repository of its own
(a gitlink, mode 160000; gitformat-index(5)), and that one obeys the configuration there: `core.fsmonitor`
alone executes what it likes. Anybody who may write the index can add such an entry, so it is the index
that says what there is to protect, and not a walk through the workspace: it is read again when it has
changed, and a call costs two system calls where there are no submodules.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

# Of each repository: what git executes, or takes as the place of another configuration.
_NAMES = ("config", "hooks", "commondir", "config.worktree")
_GITLINK = b"\x00\x00\xe0\x00"  # a mode: 32 bits, big-endian
_MOST_DEEP = 8
_MOST = 1000  # of them, those that are not there among them
_MOST_INDEX_BYTES = 256 << 20  # two million files
_HASHES = (20, 32)  # SHA-1, SHA-256
_SETTLED_NS = 100_000_000  # ctime(2) is coarser than a write


class TooMany(ValueError):
    """More than can be looked through at each call; the text says what to do."""


class Repositories:
    """Those in one workspace.

    Args:
        root: The workspace; absolute, resolved.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._index = f"{root}/.git/index"
        self._links: dict[str, tuple[object, tuple[str, ...]]] = {}  # by index
        self._alone: object = None  # the stamp of the workspace's own, when it names no others

    def names(self) -> tuple[str, ...]:
        """What is to be protected of them, relative to the workspace, whether it exists or not.

        Raises:
            TooMany: an index is over 256 MiB, or there are over a thousand.
        """
        try:
            if self._alone is not None and _stamp(self._index) == self._alone:
                return ()
        except OSError:
            pass
        self._alone = None
        found: dict[str, None] = {}
        waiting, entered = [("", 0)], set[str]()
        places = 0
        while waiting:
            place, depth = waiting.pop()
            places += 1
            if places > _MOST:
                raise TooMany(
                    f"the git index in {self._root} names over {_MOST} repositories; take .git/config "
                    "out of filesystem.protect if their configurations need not be protected"
                )
            directory = self._git_directory(place)
            inside = f"{place}/.git" if place else ""
            if inside:
                found.update(dict.fromkeys(f"{inside}/{name}" for name in _NAMES))
            if directory is None or directory in entered:
                continue
            entered.add(directory)
            if place and directory.startswith(f"{self._root}/"):
                own = directory[len(self._root) + 1 :]
                found.update(dict.fromkeys(f"{own}/{name}" for name in _NAMES))
            if depth < _MOST_DEEP:
                below = f"{place}/" if place else ""
                waiting += [(below + link, depth + 1) for link in self._gitlinks(directory)]
        if not found and self._index in self._links:
            self._alone = self._links[self._index][0]
        return tuple(found)

    def _git_directory(self, place: str) -> str | None:
        """Of the repository at `place`: `.git`, or where that file or link leads. gitrepository-layout(5)."""
        path = f"{self._root}/{place}/.git" if place else f"{self._root}/.git"
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                return path
            if stat.S_ISLNK(mode):
                return os.path.realpath(path)
            if not stat.S_ISREG(mode):
                return None
            said = _contents(path, 4096)
        except OSError:
            return None
        if not said.startswith(b"gitdir: "):
            return None
        named = os.fsdecode(said[8:].split(b"\n")[0].rstrip(b"\r\n"))
        return (
            os.path.realpath(os.path.join(os.path.dirname(path), named))
            if "\0" not in named
            else None
        )

    def _gitlinks(self, directory: str) -> tuple[str, ...]:
        path = f"{directory}/index"
        try:
            stamp = _stamp(path)
        except OSError:
            return ()
        known = self._links.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        links, whole = self._read(directory, path)
        # One that changes again within a tick of the clock looks the same; so it is read once more.
        if whole and time.time_ns() - stamp[1] > _SETTLED_NS:
            self._links[path] = stamp, links
        else:
            self._links.pop(path, None)
        return links

    def _read(self, directory: str, path: str) -> tuple[tuple[str, ...], bool]:
        """The paths of gitlinks in an index, and whether they are all in this file."""
        try:
            data = _contents(path, _MOST_INDEX_BYTES)
            found = dict.fromkeys(gitlinks(data))
            split = b"link" in data  # gitformat-index(5), "Split index"
            for name in os.listdir(directory) if split else ():
                if name.startswith("sharedindex."):
                    data = _contents(f"{directory}/{name}", _MOST_INDEX_BYTES)
                    found.update(dict.fromkeys(gitlinks(data)))
        except OSError:  # gone meanwhile
            return (), False
        return tuple(found), not split


def _stamp(path: str) -> tuple[int, int, int]:
    """What changes with each write, and cannot be set."""
    found = os.stat(path)
    return found.st_ino, found.st_ctime_ns, found.st_size


def _contents(path: str, most_bytes: int) -> bytes:
    """Of a file that a command may have put there: not of a pipe, which would be waited for, and not
    mapped, for one that is cut off then ends who reads it (SIGBUS)."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise TooMany(f"{path} is over {most_bytes >> 20} MiB; move it away")
    return data


def gitlinks(index: bytes) -> Iterator[str]:
    """The paths of an index's gitlinks; of damaged ones too many rather than too few."""
    if index[:4] != b"DIRC":
        return
    version = int.from_bytes(index[4:8], "big")
    if version == 4:
        for size in _HASHES:
            yield from _compressed(index, size)
        return
    at = index.find(_GITLINK)
    while at >= 0:
        for size in _HASHES:
            flags_at = at + 4 + 12 + size  # uid, gid, size; then the object's name
            flags = int.from_bytes(index[flags_at : flags_at + 2], "big")
            begin = flags_at + (4 if flags & 0x4000 else 2)
            end = index.find(b"\0", begin)
            if end > begin and min(end - begin, 0xFFF) == flags & 0xFFF:
                yield from _checked(index[begin:end])
        at = index.find(_GITLINK, at + 1)  # what comes before a mode can look like the half of one


def _compressed(index: bytes, size: int) -> Iterator[str]:
    """Of version 4, in which a name continues the one before."""
    at, name = 12, b""
    for _ in range(int.from_bytes(index[8:12], "big")):
        mode = index[at + 24 : at + 28]
        flags_at = at + 40 + size
        flags = int.from_bytes(index[flags_at : flags_at + 2], "big")
        at = flags_at + (4 if flags & 0x4000 else 2)
        strip, more = 0, True
        while more:  # as in packs: gitformat-pack(5), "offset encoding"
            if at >= len(index):
                return
            byte = index[at]
            strip = (strip << 7) + (byte & 0x7F)
            more, at = byte >= 0x80, at + 1
            strip += more
        end = index.find(b"\0", at)
        if end < 0 or strip > len(name):
            return
        name = name[: len(name) - strip] + index[at:end]
        at = end + 1
        if mode == _GITLINK:
            yield from _checked(name)


def _checked(name: bytes) -> Iterator[str]:
    """`name` if it is one that git takes: verify_path(), read-cache.c."""
    parts = name.split(b"/")
    if len(name) <= 4096 and not any(part in (b"", b".", b"..") for part in parts):
        yield os.fsdecode(name)
