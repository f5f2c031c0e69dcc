"""The append-only, hash-chained log: JSON lines, each holding the hash of the one before.

A call is one `begin` line, flushed before it runs, and one `end` line. Several gateways may write
to one file: each append takes a lock and reads the tail. A side file (`.head`) names the last line,
so that a cut tail is found, too. Who can write both files can forge both: the chain shows
accidents and edits by hand; to hold against the machine's owner, ship the lines elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import canonical, digest

_GENESIS = "0" * 64
_TAIL_BYTES = 1 << 16


def default_path() -> Path:
    """`$XDG_STATE_HOME/purple/audit.jsonl`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "purple" / "audit.jsonl"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found: `problems` are breaks, `interrupted` calls that have no end."""

    lines: int
    calls: int
    interrupted: tuple[str, ...]
    problems: tuple[str, ...]


class AuditLog:
    """Appends to one log file. Safe between processes; lines are on disk when a call returns.

    Args:
        path: The file; it and its directory are made, readable by the owner alone.

    Raises:
        OSError: it cannot be written. The call must then not run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, fields: Mapping[str, Any]) -> str:
        """Record that a call is about to run; returns its id."""
        call_id = uuid.uuid4().hex
        self._append("begin", {"call_id": call_id, **fields})
        return call_id

    def end(self, call_id: str, fields: Mapping[str, Any]) -> None:
        """Record how the call ended."""
        self._append("end", {"call_id": call_id, **fields})

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        with _locked(self._fd):
            seq, previous = self._tail()
            entry = {
                **fields,
                "seq": seq + 1,
                "time": time.time(),
                "event": event,
                "prev": previous,
            }
            entry["hash"] = digest(entry)
            data = (canonical(entry) + "\n").encode()
            if os.write(self._fd, data) != len(data):
                raise OSError(f"{self.path}: short write; is the disk full?")
            os.fdatasync(self._fd)
            _write_head(self.path, seq + 1, entry["hash"])

    def _tail(self) -> tuple[int, str]:
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        if size and data[-1:] != b"\n":
            # A writer died in the middle of a line: close the torn line; `verify` reports it.
            os.write(self._fd, b"\n")
            data = data[: data.rfind(b"\n") + 1]
        while data and (lines := data.splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(lines[-1])
                return int(entry["seq"]), str(entry["hash"])
            if len(lines) == 1 and size > _TAIL_BYTES:
                data = os.pread(self._fd, size, 0)  # a line longer than the window
                size = 0
                continue
            data = b"\n".join(lines[:-1])
        return 0, _GENESIS


@contextlib.contextmanager
def _locked(fd: int) -> Generator[None]:
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _write_head(path: Path, seq: int, last: str) -> None:
    temporary = path.with_name(path.name + ".head.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(f"{seq} {last}\n")
    os.replace(temporary, path.with_name(path.name + ".head"))


def entries(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line number and entry; None for a line that is no entry."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield number, entry if isinstance(entry, dict) else None


def verify(path: Path) -> VerifyReport:
    """Check the whole chain and its end. Raises `OSError` when the log cannot be read."""
    problems: list[str] = []
    begun: dict[str, None] = {}
    calls = lines = 0
    seq, previous = 0, _GENESIS
    for number, entry in entries(path):
        lines = number
        if entry is None:
            problems.append(f"line {number}: torn or not JSON")
            continue
        stated = entry.pop("hash", None)
        if stated != digest(entry):
            problems.append(f"line {number}: changed after it was written")
        if entry.get("prev") != previous or entry.get("seq") != seq + 1:
            problems.append(f"line {number}: does not follow the line before (deleted or moved)")
        seq, previous = int(entry.get("seq", seq + 1)), str(stated)
        if entry.get("event") == "begin":
            begun[str(entry.get("call_id"))] = None
            calls += 1
        else:
            begun.pop(str(entry.get("call_id")), None)
    try:
        head = path.with_name(path.name + ".head").read_text().split()
    except OSError:
        head = [str(seq), previous] if lines == 0 else []
    if head != [str(seq), previous]:
        problems.append("the end does not agree with the .head file (cut, or the file is missing)")
    return VerifyReport(
        lines=lines, calls=calls, interrupted=tuple(begun), problems=tuple(problems)
    )
