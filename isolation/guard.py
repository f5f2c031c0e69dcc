"""What of a writable workspace is hidden or protected: found before a sandbox is prepared, and
looked for again when its command has ended.

A mount can hold only what exists. So a protected path that a command has *made* is moved aside
before anybody on the host is told that the command ended: nothing is lost, and nothing that runs
by its name (`.git/hooks`, `.vscode`, …) is left. Names in patterns are relative to the workspace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from .errors import ProtectionError
from .marks import Marks
from .patterns import Found, Patterns, is_known, made_at, still_known
from .quarantine import identity, move_aside, open_root, opened
from .repositories import Repositories, TooMany
from .unchanged import Stamp, is_unchanged, stamp

_RESCAN_SECONDS = 1.0
_RESCAN_RATIO = 20.0  # a walk may take a twentieth of the time
_MAX_MATCHES = 1000
_MOST_SAID = 20
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # os.fsencode
_FOR_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # it says nothing of the directory


class _Look(NamedTuple):
    """What was found, and of which directories it is true as long as they have this stamp."""

    marks: Marks
    nested: Patterns
    places: tuple[str, ...]
    stamp: Stamp
    is_repository: bool


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
        hide, protect = tuple(hide), tuple(protect)
        self._names = (*hide, *protect)
        self._hide = Patterns(hide)
        self._protect = Patterns(protect)
        nested = workspace is not None and ".git/config" in self._protect.literals
        self._repositories = Repositories(workspace or "") if nested else None
        self._identity = None if workspace is None else identity(workspace)
        self._left: dict[str, str] = {}  # what could not be moved aside, and why
        self._unlooked: list[Marks] = []  # of commands after which nobody could look
        self._why = ""
        # Where links of the person's have led to: it stays what it is when a command removes the link.
        self._led_hide: dict[str, None] = {}
        self._led_protect: dict[str, None] = {}
        self._late: list[str] = []  # what was moved aside, but not when its command ended
        self._nested = Patterns(())
        self._walked: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._next_walk = 0.0
        self._last: _Look | None = None

    def look(self) -> Marks:
        """What matches now.

        Raises:
            ValueError: more than a thousand paths match, a git index is too large, what a command has
                made cannot be moved aside, the workspace is another directory, or a name is not spelled
                in UTF-8; says what to do.
        """
        root = self._workspace
        if root is None:
            return Marks()
        if self._left or self._unlooked:
            self._move_again(root)
        if (self._hide.globs or self._protect.globs) and time.monotonic() >= self._next_walk:
            began = time.monotonic()
            try:
                self._walked = self._walk(root)
            except OSError as error:
                raise ValueError(f"{root} cannot be looked through: {error.strerror}") from error
            ended = time.monotonic()
            self._next_walk = ended + max(_RESCAN_SECONDS, _RESCAN_RATIO * (ended - began))
        last = self._last
        if last is not None and not last.is_repository and is_unchanged(last.places, last.stamp):
            return last.marks
        protecting = self._protecting()
        if last is not None and self._is_as_it_was(last):
            return last.marks
        self._check_identity(root)
        _check_spelling(self._names)
        places = tuple(self._places(root))
        state = None if self._hide.globs or self._protect.globs else stamp(places)
        hidden = self._hide.present(root)
        protected = Found()
        for patterns in protecting:
            protected.add(patterns.present(root))
        self._led_hide.update(dict.fromkeys(hidden.led))
        self._led_protect.update(dict.fromkeys(protected.led))
        led = filter(os.path.lexists, self._led_protect)
        hide = tuple(dict.fromkeys((*hidden.paths, *self._led_hide, *self._walked[0])))
        protect = tuple(dict.fromkeys((*protected.paths, *led, *self._walked[1])))
        if len(hide) + len(protect) > _MAX_MATCHES:
            raise ValueError(
                f"filesystem.hide and .protect match over {_MAX_MATCHES} paths in {root}; "
                "name their directory instead"
            )
        _check_spelling((*hide, *protect))
        links, ways = tuple(protected.links), tuple(dict.fromkeys(protected.ways))
        marks = Marks(hide=hide, protect=protect, links=links, ways=ways)
        self._last = None
        if state is not None:
            # Without a `.git` in it, it says itself whether it becomes one.
            is_repository = self._repositories is not None and os.path.lexists(f"{root}/.git")
            self._last = _Look(marks, self._nested, places, state, is_repository)
        return marks

    def _check_identity(self, root: str) -> None:
        try:
            found = identity(root)
        except OSError as error:
            raise ValueError(f"the workspace {root} cannot be found: {error.strerror}") from error
        if found not in (self._identity, None):
            raise ValueError(
                f"the workspace {root} was made anew, and sandboxes see the one that was there before: "
                "restart purple"
            )

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

        Raises:
            ProtectionError: not all could be; names those. `look` tries them again.
        """
        root = self._workspace
        if root is None:
            return ()
        last = self._last
        if (
            not self._late
            and last is not None and not last.is_repository and last.marks is before
            and is_unchanged(last.places, last.stamp)
        ):  # fmt: skip
            return ()
        is_settled = not (self._late or self._left or self._unlooked)
        if is_settled and self._nothing_new(before):
            return ()
        self._late += self._move(root, before)
        if self._left or self._unlooked:
            raise ProtectionError(self._say_left(root))
        said, self._late = self._late, []
        return tuple(said)

    def _nothing_new(self, before: Marks) -> bool:
        """Whether that can be told without a look."""
        last = self._last
        if last is None or last.marks != before:
            return False
        with contextlib.suppress(TooMany):
            self._protecting()
            return self._is_as_it_was(last)
        return False

    def _move_again(self, root: str) -> None:
        """Try what could not be moved aside. Raises `ValueError` as long as it is there."""
        unlooked: list[Marks | None] = [*self._unlooked]
        self._unlooked = []
        for before in unlooked or [None]:
            self._late += self._move(root, before)
        if self._left or self._unlooked:
            raise ValueError(self._say_left(root))

    def _move(self, root: str, before: Marks | None) -> list[str]:
        """Move aside what was left, and what was made since `before`.

        Returns:
            A sentence for each; what could not be is in `_left` and `_unlooked`.
        """
        try:
            directory = open_root(root)
            if directory is None:
                self._left = {}
                return []
            try:
                # Nobody is to lose what stands in another workspace: the command was not in it.
                names = list(self._left) if identity(directory) == self._identity else []
                if before is not None and identity(directory) == self._identity:
                    names += self._made(root, directory, before)
                moved, self._left = move_aside(directory, names)
                return moved
            finally:
                os.close(directory)
        except OSError as error:
            self._unlooked += [before] if before is not None else []
            self._why = error.strerror or str(error)
            return []

    def _made(self, root: str, directory: int, before: Marks) -> list[str]:
        """Names that are protected, there may be, and were not in `before`. Raises `OSError`."""
        names: list[str] = []
        protecting = self._protect, self._nested
        try:
            protecting = self._protecting()
        except TooMany:  # git reads no index that is not there, and enters nothing
            names.append(".git/index")
        known = still_known(before)
        ways = set(before.ways)
        for patterns in protecting:
            for name in patterns.likely(root):
                if is_known(root, name, known):
                    continue
                at = made_at(root, name, ways)
                if at is not None and not is_known(root, at, known):
                    names.append(at)
        if self._protect.globs:
            is_open = os.access(root, os.R_OK | os.X_OK)
            with contextlib.nullcontext() if is_open else opened(directory):
                walked = self._walk(root)[1]
            names += [os.path.relpath(path, root) for path in walked if path not in known]
        return names

    def _say_left(self, root: str) -> str:
        left = [f"{name} ({why})" for name, why in self._left.items()]
        more = f" and {len(left) - _MOST_SAID} more" if len(left) > _MOST_SAID else ""
        what = ", ".join(left[:_MOST_SAID]) + more or f"nobody can look for it ({self._why})"
        moved = "; ".join(["", *self._late])
        return (
            f"what a command has made under protected names in {root} could not be moved aside: {what}; "
            f"it may run outside the sandbox: remove it, or move it away{moved}"
        )

    def _protecting(self) -> tuple[Patterns, Patterns]:
        """What needs no walk: of the policy, and of what git enters by itself. Raises `TooMany`."""
        if self._repositories is not None:
            names = self._repositories.names()
            if names != tuple(self._nested.literals):
                self._nested = Patterns(names, are_paths=True)
        return self._protect, self._nested

    def _walk(self, root: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths that match `hide` and `protect`. Raises `OSError` for want of descriptors or memory."""
        hide: list[str] = []
        protect: list[str] = []
        waiting = [root]
        while waiting:
            directory = waiting.pop()
            try:
                entries = list(os.scandir(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno in _FOR_WANT:
                    raise
                # A command may close what it may open again: what is in it is not known, so all is.
                hide += [directory] if self._hide.globs else []
                protect += [directory] if self._protect.globs else []
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


def _check_spelling(names: Iterable[str]) -> None:
    """Raise `ValueError` for a name that is another one where sandboxes are made.

    The zygote has an empty environment, and so UTF-8, whatever the gateway's locale. A name that it does not
    find it would not cover.
    """
    for name in names:
        if name.isascii():
            continue
        with contextlib.suppress(UnicodeEncodeError):
            if name.encode(_ENCODING, _ERRORS) == name.encode("utf-8", _ERRORS):
                continue
        raise ValueError(
            f"{name!a} is hidden or protected, and its name is not read as UTF-8 but as {_ENCODING}; run "
            "purple with LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        )
