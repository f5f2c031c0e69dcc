"""What is started for a server: its command, and the files that this command is."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Programs whose own binary says nothing of what they run: the first argument that is a file does.
_INTERPRETER = re.compile(
    r"(python|pypy|node|deno|bun|ruby|perl|php|bash|sh|dash|zsh|java|uv)[0-9.]*"
)
_known: dict[str, tuple[tuple[int, ...], str]] = {}


def launch_of(argv: Sequence[str], program: str, directory: Path) -> dict[str, Any]:
    """The definition that is pinned. Reads files: call it in a thread.

    Args:
        argv: The command.
        program: Absolute path of what it starts.
        directory: Where relative paths of `argv` begin.

    What a package runner (`npx`, `uvx`) fetches or keeps in a cache is not in it.
    """
    files = {program: _sha256(program)}
    if _INTERPRETER.fullmatch(Path(program).name) or _INTERPRETER.fullmatch(Path(argv[0]).name):
        for word in argv[1:]:
            path = os.path.join(directory, word)
            if not word.startswith("-") and os.path.isfile(path):
                files[path] = _sha256(path)
                break
    return {"command": list(argv), "files": files}


def _sha256(path: str) -> str:
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
        stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
        if real in _known and _known[real][0] == stamp:
            return _known[real][1]
        with open(real, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    _known[real] = stamp, digest
    return digest
