"""Which profiles of projects a person has accepted: this file with this content, and no other.

Theory of operation
    A profile decides what commands may do, and names programs that the gateway runs itself (`${command:…}`).
    One that came with a project is somebody else's: it is read when the digest of what was read is
    the one that a person has accepted for that place. The store is a JSON document in the user's state
    directory, replaced in one step. One that is damaged, or that another could have written, accepts nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from . import atomic
from .errors import PolicyError

_VERSION = 1

State = Literal["accepted", "changed", "new"]


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A file of a policy that a person has to accept.

    Attributes:
        path: Where it lies, absolute.
        digest: SHA-256 of what was read, in hex.
        state: `new` has never been accepted, `changed` had another content when it was.
    """

    path: Path
    digest: str
    state: State


def default_path() -> Path:
    """`$XDG_STATE_HOME/purple/profiles.json`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "purple" / "profiles.json"


def judge(path: Path, data: bytes) -> Brought:
    """Whether the file at `path`, in which `data` was read, is accepted.

    Raises:
        PolicyError: the store cannot be used.
    """
    digest = hashlib.sha256(data).hexdigest()
    accepted = _read(default_path()).get(str(path))
    state: State = "accepted" if accepted == digest else "changed"
    if accepted is None:
        state = "new"
    return Brought(path=path, digest=digest, state=state)


def accept(files: Iterable[Brought]) -> None:
    """Accept these, as they were read. Raises `PolicyError`: nothing is accepted then."""
    _update(lambda accepted: accepted.update({str(file.path): file.digest for file in files}))


def renew(path: Path, before: bytes, after: bytes) -> None:
    """Where `path` was accepted with the content `before`, accept `after`. Raises `PolicyError`."""
    if judge(path, before).state == "accepted":
        accept([Brought(path=path, digest=hashlib.sha256(after).hexdigest(), state="accepted")])


def forget(path: Path) -> None:
    """Accept nothing at `path` any more. Raises `PolicyError`."""
    if str(path) in _read(default_path()):
        _update(lambda accepted: accepted.pop(str(path), None))


def stamp() -> tuple[int, ...]:
    """Changes whenever something is accepted."""
    try:
        found = default_path().stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unusable(path: Path, what: str) -> PolicyError:
    return PolicyError(
        f"{what}, so it is not known which profiles of projects were accepted, and none is used; "
        "mend it, or remove it and accept them again", file=str(path),
    )  # fmt: skip


def _read(path: Path) -> dict[str, str]:
    """Digests by path."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    try:
        if not _ours(directory, 0o022):
            raise _unusable(path.parent, "others than you can write here")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(path.name, flags, dir_fd=directory), "rb") as file:
            if not _ours(file.fileno(), 0o077):
                raise _unusable(path, "is not yours alone (chmod 600)")
            return _parse(path, file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:  # ELOOP: a link, which leads to what others may have written
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(directory)


def _ours(fd: int, mode: int) -> bool:
    found = os.fstat(fd)
    return found.st_uid == os.geteuid() and not found.st_mode & mode


def _parse(path: Path, data: bytes) -> dict[str, str]:
    try:
        document: Any = json.loads(data)
    except ValueError:
        raise _unusable(path, "is damaged") from None
    top = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    accepted: Any = top.get("accepted")
    if top.get("version") != _VERSION or not isinstance(accepted, dict):
        raise _unusable(path, "is damaged, or of another version")
    return {str(k): str(v) for k, v in cast("dict[str, Any]", accepted).items()}


def _update(change: Callable[[dict[str, str]], object]) -> None:
    path = default_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            accepted = _read(path)
            change(accepted)
            document = {"version": _VERSION, "accepted": accepted}
            atomic.replace(path, f"{json.dumps(document, indent=1, sort_keys=True)}\n".encode())
        finally:
            os.close(lock)
    except OSError as error:
        raise PolicyError(
            f"cannot be written: {error.strerror}; nothing was accepted", file=str(path)
        ) from None
