"""The one error of this package."""

from __future__ import annotations


class PolicyError(ValueError):
    """A policy that cannot be used; names the file, the line and the key."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(f"{place}{key + ': ' if key else ''}{message}")
        self.message = message
        self.file = file
        self.line = line
        self.key = key
