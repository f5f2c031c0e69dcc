"""Tokens that upstream servers are reached with, kept between runs: one file a server, its owner's alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .wire.jsonrpc import is_object


def default_directory() -> Path:
    """`$XDG_STATE_HOME/purple/tokens`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "purple" / "tokens"


class TokenFile:
    """What is kept of one server: a JSON object.

    Args:
        url: Of the server.
        directory: None is the user's own.
    """

    def __init__(self, url: str, directory: Path | None = None) -> None:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.path = (directory or default_directory()) / f"{name}.json"

    def read(self) -> dict[str, Any]:
        """The object; {} where there is none.

        Raises:
            OSError: it cannot be read, or others can read it: then it is no secret any more.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return {}
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                text = f"{self.path} is not yours alone; delete it and run `purple login`"
                raise PermissionError(text)
            try:
                value: Any = json.load(file)
            except ValueError:
                return {}
        return value if is_object(value) else {}

    def write(self, value: dict[str, Any]) -> None:
        """Replace the object as a whole. Raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.path.with_suffix(f".{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(value, file)
        new.replace(self.path)

    def delete(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
