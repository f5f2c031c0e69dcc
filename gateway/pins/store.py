"""The file of pins: one JSON document, replaced in one step, readable by its owner alone.

Theory of operation
    For each server `accepted` holds what a person has accepted or what was seen first, `pending` what
    it says now where that differs: kind → name → definition. A reader looks at the file's stat and
    reads it again when that has changed, so that `purple pins accept` is seen by gateways that run.
    Writers take a lock beside the file. A file that cannot be read makes every pinned server
    unusable: nobody knows what a person has accepted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

Kind = str
Definitions = dict[str, Any]  # by name
VERSION = 1


class PinError(Exception):
    """The file is damaged, of another version, or cannot be used; the text says what to do."""


def default_path() -> Path:
    """`$XDG_STATE_HOME/purple/pins.json`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "purple" / "pins.json"


class Server:
    """One server's pins, as values.

    Attributes:
        name: What people call it.
        since: When it was first seen, in seconds of the epoch.
        accepted, pending: Kind → name → definition. In `pending`, None: it is new, or not there.
    """

    def __init__(self, name: str, since: float) -> None:
        self.name, self.since = name, since
        self.accepted: dict[Kind, Definitions] = {}
        self.pending: dict[Kind, Definitions] = {}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "since": self.since, "accepted": self.accepted,
            "pending": {kind: found for kind, found in self.pending.items() if found},
        }  # fmt: skip


class PinStore:
    """The file.

    Args:
        path: None is the user's own.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._stamp: tuple[int, ...] | None = None
        self._servers: dict[str, Server] = {}

    def read(self) -> Mapping[str, Server]:
        """By key; not to be changed. Raises `PinError`."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._stamp, self._servers = None, {}
            return self._servers
        except OSError as error:
            raise PinError(f"{self.path}: {error.strerror}; pinned servers are withheld") from None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._servers = _parse(self.path)
            self._stamp = stamp
        return self._servers

    def update(self, change: Callable[[dict[str, Server]], None]) -> None:
        """Change it, alone. Raises `PinError`; the file is then as it was."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(
                self.path.with_name(self.path.name + ".lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600,
            )  # fmt: skip
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                servers = dict(_parse(self.path)) if self.path.exists() else {}
                change(servers)
                self._write(servers)
            finally:
                os.close(lock)
        except OSError as error:
            raise PinError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _write(self, servers: Mapping[str, Server]) -> None:
        document = {
            "version": VERSION,
            "servers": {key: server.to_json() for key, server in sorted(servers.items())},
        }
        data = json.dumps(document, indent=1, sort_keys=True) + "\n"
        fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # 0600
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def new_server(name: str) -> Server:
    """One that has not been seen before."""
    return Server(name, round(time.time()))


def _parse(path: Path) -> dict[str, Server]:
    def damaged(what: str) -> PinError:
        return PinError(
            f"{path} is damaged ({what}), so it is not known what was accepted, and every pinned server is "
            "withheld. Put it back from a copy; or remove it, and each server is pinned anew as it is."
        )

    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(str(error)[:200]) from None
    top = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    if isinstance(top.get("version"), int) and top["version"] > VERSION:
        raise PinError(
            f"{path} was written by a newer version of Purple; use that one, or remove the file"
        )
    found: object = top.get("servers")
    if top.get("version") != VERSION or not isinstance(found, dict):
        raise damaged("not a file of pins")
    servers: dict[str, Server] = {}
    for key, value in cast("dict[str, Any]", found).items():
        try:
            server = servers[key] = Server(str(value["name"]), float(value["since"]))
            for side, kept in (("accepted", server.accepted), ("pending", server.pending)):
                for kind, definitions in dict(value[side]).items():
                    kept[str(kind)] = dict(definitions)
        except (KeyError, TypeError, ValueError):
            raise damaged(f"servers.{key}") from None
    return servers
