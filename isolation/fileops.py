"""File operations, done inside a sandbox: with plain system calls, in its own view.

Nothing here decides whether a path may be touched: the mounts, Landlock and the ids of the sandbox
do, and an `OSError` says how. Standard library only: a bare interpreter runs this inside (inside.py).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from . import fetch, narrowing

MAX_ENTRIES = 2000
MAX_READ_BYTES = 1 << 20
_MAX_SEARCHED_FILE_BYTES = 8 << 20
_SKIPPED = frozenset({".git", "node_modules", "__pycache__", ".venv"})


def read_file(arguments: dict[str, Any]) -> dict[str, Any]:
    """Lines `offset`… (0-based), at most `limit`, of a text file; bounded to 1 MiB."""
    path, offset, limit = arguments["path"], arguments.get("offset", 0), arguments.get("limit")
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        size = os.fstat(file.fileno()).st_size
        for _ in range(offset):
            if not file.readline():
                break
        kept: list[bytes] = []
        room = MAX_READ_BYTES
        truncated = False
        while line := file.readline(room + 1):
            if len(line) > room or (limit is not None and len(kept) >= limit):
                truncated = True
                break
            kept.append(line)
            room -= len(line)
    data = b"".join(kept)
    if b"\0" in data[:8192]:
        raise ValueError(f"{path} is a binary file of {size} bytes; use shell to look at it")
    text = data.decode("utf-8", "replace")
    return {
        "path": path,
        "content": text,
        "lines": len(kept),
        "size_bytes": size,
        "truncated": truncated,
    }


def write_file(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace or create a file, whole or not at all; missing directories are made."""
    path, content = arguments["path"], arguments["content"]
    data = content.encode("utf-8", "surrogatepass")
    created = not os.path.lexists(path)
    if parent := os.path.dirname(path):
        os.makedirs(parent, exist_ok=True)
    _replace(path, data, None if created else _regular(path))
    return {"path": path, "bytes_written": len(data), "created": created}


def _regular(path: str) -> int:
    """The mode of a regular file. A link is not followed: who asks names its target."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "a symbolic link; name what it leads to", path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a directory", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    return mode


def _replace(path: str, data: bytes, mode: int | None) -> None:
    temporary = os.path.join(os.path.dirname(path), f".purple-{os.urandom(6).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    wanted = 0o644 if mode is None else stat.S_IMODE(mode) & 0o777
    fd = os.open(temporary, flags, wanted)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            # Without namespaces fchmod(2) may be refused: seccomp.py.
            if stat.S_IMODE(os.fstat(fd).st_mode) != wanted:
                os.fchmod(fd, wanted)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def edit_file(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace `old_text`, which must be there exactly once unless `replace_all`."""
    path, old, new = arguments["path"], arguments["old_text"], arguments["new_text"]
    if not old:
        raise ValueError("old_text is empty; use write_file for a new file")
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    count = text.count(old)
    if count == 0:
        raise ValueError(f"old_text is not in {path}; read the file again and copy it exactly")
    if count > 1 and not arguments.get("replace_all", False):
        raise ValueError(
            f"old_text is {count} times in {path}; give more context or set replace_all"
        )
    _replace(path, text.replace(old, new).encode(), _regular(path))
    return {"path": path, "replacements": count}


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symlink"
    return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def list_directory(arguments: dict[str, Any]) -> dict[str, Any]:
    """Names, kinds and sizes of one directory, sorted by name."""
    path = arguments.get("path") or "."
    entries: list[dict[str, Any]] = []
    names = sorted(os.listdir(path))
    for name in names[:MAX_ENTRIES]:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(os.path.join(path, name))
            entries.append(
                {"name": _text(name), "kind": _kind(status.st_mode), "size_bytes": status.st_size}
            )
    return {"path": path, "entries": entries, "truncated": len(names) > MAX_ENTRIES}


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _files(top: str) -> Iterator[str]:
    for directory, names, files in os.walk(top):
        names[:] = sorted(n for n in names if n not in _SKIPPED)
        for name in sorted(files):
            path = os.path.join(directory, name)
            yield path[2:] if path.startswith("./") else path


def find_files(arguments: dict[str, Any]) -> dict[str, Any]:
    """Files whose name, or path below `path`, matches the glob `pattern`."""
    top, pattern = arguments.get("path") or ".", arguments["pattern"]
    os.listdir(top)  # walk(3) would swallow that it is missing
    plain = pattern.removeprefix("**/")
    found: list[str] = []
    for path in _files(top):
        inside = os.path.relpath(path, top)
        if fnmatch.fnmatchcase(os.path.basename(path), plain) or fnmatch.fnmatchcase(
            inside, pattern
        ):
            if len(found) == MAX_ENTRIES:
                return {"paths": found, "truncated": True}
            found.append(_text(path))
    return {"paths": found, "truncated": False}


def search_text(arguments: dict[str, Any]) -> dict[str, Any]:
    """Lines that match the regular expression `pattern`; binary and very large files are skipped."""
    try:
        expression = re.compile(arguments["pattern"])
    except re.error as error:
        raise ValueError(f"pattern is not a regular expression: {error}") from error
    top, glob = arguments.get("path") or ".", arguments.get("glob") or "*"
    matches: list[dict[str, Any]] = []
    skipped = 0
    os.stat(top)
    for path in [top] if os.path.isfile(top) else _files(top):
        if not fnmatch.fnmatchcase(os.path.basename(path), glob):
            continue
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SEARCHED_FILE_BYTES:
                skipped += 1
                continue
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            skipped += 1
            continue
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if expression.search(line):
                if len(matches) == MAX_ENTRIES:
                    return {"matches": matches, "truncated": True, "skipped_files": skipped}
                matches.append({"path": _text(path), "line": number, "text": line[:500]})
    return {"matches": matches, "truncated": False, "skipped_files": skipped}


def move(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename a file or directory; an existing target is refused unless `overwrite`, a directory anyway.

    A link at the target is replaced, never followed: shutil.move would move into what it leads to.
    """
    source, target = arguments["source"], arguments["destination"]
    exists = os.path.lexists(target)
    if exists and not arguments.get("overwrite", False):
        raise FileExistsError(
            errno.EEXIST, "destination exists; set overwrite to replace it", target
        )
    if exists and stat.S_ISDIR(os.lstat(target).st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory; name the new path in it", target)
    os.lstat(source)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if exists:
            os.unlink(target)
        shutil.move(source, target)
    return {"source": source, "destination": target}


def delete(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove a file or link (never its target), or a directory; a full one needs `recursive`."""
    path = arguments["path"]
    kind = _kind(os.lstat(path).st_mode)
    if kind != "directory":
        os.unlink(path)
    elif arguments.get("recursive", False):
        shutil.rmtree(path)
    else:
        os.rmdir(path)
    return {"path": path, "kind": kind}


def read_bytes(arguments: dict[str, Any]) -> dict[str, Any]:
    """All of a regular file, in base64; over `max_bytes` is EFBIG. A FIFO is not waited for."""
    path, most = arguments["path"], arguments["max_bytes"]
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "Is a directory", path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", path)
    return {"data": base64.b64encode(data).decode()}


def write_bytes(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace or create a file in place, through links; missing directories are made."""
    path = arguments["path"]
    if parent := os.path.dirname(path):
        try:
            os.makedirs(parent, exist_ok=True)
        except FileExistsError as error:
            raise OSError(errno.ENOTDIR, "Not a directory", parent) from error
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
    with open(fd, "wb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        file.truncate(0)
        written = file.write(base64.b64decode(arguments["data"]))
    return {"bytes_written": written}


def look(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a path is, links followed; with `entries`, what each name in a directory is."""
    path: str = arguments["path"]
    status = os.stat(path)
    found: dict[str, Any] = {
        "is_directory": stat.S_ISDIR(status.st_mode),
        "size_bytes": status.st_size,
        "modified": status.st_mtime,
    }
    if arguments.get("entries"):
        found["entries"] = [_entry(path, name) for name in sorted(os.listdir(path))]
    return found


def _entry(directory: str, name: str) -> dict[str, Any]:
    try:
        status = os.stat(os.path.join(directory, name))
    except OSError:  # a link to nothing, or to itself
        status = os.lstat(os.path.join(directory, name))
    return {
        "name": _text(name),
        "is_directory": stat.S_ISDIR(status.st_mode),
        "is_file": stat.S_ISREG(status.st_mode),
        "size_bytes": status.st_size,
        "modified": status.st_mtime,
    }


def make_directory(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make a directory and those above it."""
    os.makedirs(arguments["path"], exist_ok=True)
    return {}


def real_path(arguments: dict[str, Any]) -> dict[str, Any]:
    """The path with every link in it followed; what is missing stays as it is written."""
    return {"path": os.path.realpath(arguments["path"])}


OPERATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "read_file": read_file,
    "write_file": write_file,
    "edit_file": edit_file,
    "list_directory": list_directory,
    "find_files": find_files,
    "search_text": search_text,
    "move": move,
    "delete": delete,
    "http_request": fetch.http_request,
    # No tools: what the adapters of agent frameworks need of a workspace.
    "read_bytes": read_bytes,
    "write_bytes": write_bytes,
    "look": look,
    "make_directory": make_directory,
    "real_path": real_path,
}
# Done before anything is given up; what it returns takes the arguments' place.
_PREPARE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"http_request": fetch.prepare}


# Those that act on a symbolic link itself; the others are given paths that lead through none.
_ON_LINKS = frozenset({"move", "delete"})


def main() -> None:
    """Do the operation asked for on stdin; its JSON goes to stdout."""
    request = json.load(sys.stdin)
    operation, grant, arguments = request["operation"], request["grant"], request["arguments"]
    reply: dict[str, Any]
    try:
        if operation in _PREPARE:
            arguments = _PREPARE[operation](arguments)
        abi = None if grant is None else narrowing.give_up(grant, links=operation in _ON_LINKS)
        reply = {"value": OPERATIONS[operation](arguments), "landlock_abi": abi}
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "EIO")
        where = f": {error.filename}" if error.filename else ""
        reply = {"code": code, "message": f"{error.strerror or error}{where}"}
    except (ValueError, KeyError, TypeError) as error:
        reply = {"code": "EINVAL", "message": str(error)}
    sys.stdout.write(json.dumps(reply))
