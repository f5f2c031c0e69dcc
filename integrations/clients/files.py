"""A client's file as it is changed: read, edited, shown, written whole or not at all, and taken back.

Every change keeps the text that was there in `$XDG_STATE_HOME/purple/clients/CLIENT/`, so that
`undo` can put it back, as long as nobody has changed the file since.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import jsonc, toml
from .jsonc import JsoncError, member
from .known import Client, Place
from .toml import TomlError


class ClientFileError(Exception):
    """A client's file that cannot be used as it is; it has not been touched."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What will be written. `before` is None where the file does not exist yet."""

    client: Client
    file: Path
    before: str | None
    after: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return (self.before or "") == self.after

    def diff(self) -> str:
        """A unified diff."""
        old, new = (text.splitlines(keepends=True) for text in (self.before or "", self.after))
        name = str(self.file)
        lines = difflib.unified_diff(old, new, "/dev/null" if self.before is None else name, name)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def read_servers(client: Client, place: Place) -> dict[str, Any]:
    """The servers at `place`, by name; {} where there are none.

    Raises:
        ClientFileError: the file cannot be read or parsed.
    """
    text = _read(place.file)
    try:
        language = jsonc if client.language == "json" else toml
        document: Any = language.loads(text) if text else None
    except (JsoncError, TomlError) as error:
        raise _broken(place.file, error) from None
    servers: Any = member(document, place.keys)
    return dict(cast(Mapping[str, Any], servers)) if isinstance(servers, dict) else {}


def plan(client: Client, place: Place, entries: Mapping[str, Any | None]) -> Change:
    """The change that sets each of `entries` at `place`; None removes one. Nothing is written.

    Raises:
        ClientFileError: the file cannot be read or parsed.
    """
    before = _read(place.file)
    after = before or ""
    language = jsonc if client.language == "json" else toml
    try:
        for name, entry in entries.items():
            after = language.edit(after, (*place.keys, name), entry)
    except (JsoncError, TomlError) as error:
        raise _broken(place.file, error) from None
    return Change(client=client, file=place.file, before=before, after=after)


def write(change: Change) -> Path:
    """Keep what was there, then replace the file in one step; a link's target is what is written.

    Returns:
        The backup.

    Raises:
        ClientFileError: the file has changed since it was read, is read-only, or cannot be written.
    """
    file = change.file.resolve()
    if _read(file) != change.before:
        raise ClientFileError(f"{file} has changed meanwhile; nothing was written, run it again")
    _refuse_read_only(file)
    backup = _keep(change)
    try:
        _replace(file, change.after)
    except OSError as error:
        backup.unlink()
        raise ClientFileError(f"{file} cannot be written: {error.strerror}") from None
    return backup


def undo(client: Client) -> Change:
    """Take the client's last change back, once for each call.

    Raises:
        ClientFileError: there is none, the file is not as that change left it, or it is read-only.
    """
    backups = sorted(_backups(client).glob("*.json"))
    if not backups:
        raise ClientFileError(f"there is no change of {client.title}'s files to take back")
    kept: dict[str, Any] = json.loads(backups[-1].read_text())
    file = Path(kept["file"])
    now = _read(file)
    if now is None or _digest(now) != kept["after_sha256"]:
        raise ClientFileError(
            f"{file} has been changed since; what was there before is in {backups[-1]} (`before`)"
        )
    before: str | None = kept["before"]
    _refuse_read_only(file)
    try:
        if before is None:
            file.unlink()
        else:
            _replace(file, before)
    except OSError as error:
        raise ClientFileError(f"{file} cannot be written: {error.strerror}") from None
    backups[-1].unlink()
    return Change(client=client, file=file, before=now, after=before or "")


def _read(file: Path) -> str | None:
    try:
        # Bytes, so that line ends stay as they are.
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ClientFileError(f"{file} is not UTF-8; it was not touched") from None
    except OSError as error:
        raise ClientFileError(f"{file} cannot be read: {error.strerror}") from None


def _refuse_read_only(file: Path) -> None:
    """Raises `ClientFileError`: a directory that can be written would let it be replaced all the same."""
    with contextlib.suppress(FileNotFoundError):
        mode = file.stat().st_mode & 0o777
        if not mode & 0o200:
            raise ClientFileError(
                f"{file} is read-only (mode {mode:04o}) and was not touched; chmod u+w it first"
            )


def _broken(file: Path, error: JsoncError | TomlError) -> ClientFileError:
    return ClientFileError(f"{file}:{error.line}: {error}; mend it first, it was not touched")


def _backups(client: Client) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "purple" / "clients" / client.name


def _keep(change: Change) -> Path:
    directory = _backups(change.client)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{time.time_ns():020}.json"
    text = json.dumps({
        "file": str(change.file.resolve()), "before": change.before,
        "after_sha256": _digest(change.after),
    })  # fmt: skip
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(text.encode("utf-8"))
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(
            FileNotFoundError
        ):  # a new one keeps mkstemp's 0600: it may hold keys
            status = file.stat()
            os.chmod(temporary, status.st_mode & 0o777)
            if os.geteuid() == 0:
                os.chown(temporary, status.st_uid, status.st_gid)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
