"""The append-only, hash-chained log: JSON lines, each holding the hash of the one before.

Theory of operation
    A call is one `begin` line, written before it runs, and one `end` line; `pending` stands between
    them where a person was asked, `task` after them where the call made a task, once that has given
    something. A line is in the kernel's
    hands when `begin` or `end` returns, so that it survives the death of this process; a thread
    has it on the disk within a second (`SYNC_SECONDS`), which is what a power failure may cost.
    Several gateways may write to one file: each append takes a lock and, when somebody else has
    written, reads the tail. A side file (`.head`) names the last line, so that a cut tail is found,
    too. Who can write both files can forge both: the chain shows accidents and edits by hand; to
    hold against the machine's owner, ship the lines elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import Form, canonical, digest

_GENESIS = "0" * 64
_TAIL_BYTES = 1 << 16
SYNC_SECONDS = 1.0


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
    """Appends to one log file. Safe between processes.

    Args:
        path: The file; it and its directory are made, readable by the owner alone.

    Raises:
        OSError: it cannot be written. The call must then not run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags | os.O_APPEND, 0o600)
        self._head = os.open(_head_path(path), flags, 0o600)
        self._end = (-1, 0, _GENESIS)  # size of the file, number and hash of its last line
        self._failed: OSError | None = None
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._syncer = threading.Thread(target=self._sync, name="purple-audit", daemon=True)
        self._syncer.start()

    def begin(self, fields: Mapping[str, Any]) -> str:
        """Record that a call is about to run; returns its id."""
        call_id = os.urandom(16).hex()
        self._append("begin", {"call_id": call_id, **fields})
        return call_id

    def begin_as(self, form: Form, arguments: str) -> str:
        """As `begin`, its fields being those of a `begin_form` and these arguments, spelled."""
        call_id = os.urandom(16).hex()
        self._write(
            lambda seq, previous: form.filled(
                arguments, f'"{call_id}"', f'"{previous}"', str(seq), repr(time.time())
            )
        )
        return call_id

    def note(self, call_id: str, event: str, fields: Mapping[str, Any]) -> None:
        """Record what happens to a call before it ends, as `event` (not `begin` or `end`)."""
        self._append(event, {"call_id": call_id, **fields})

    def end(self, call_id: str, fields: Mapping[str, Any]) -> None:
        """Record how the call ended."""
        self._append("end", {"call_id": call_id, **fields})

    def close(self) -> None:
        """Have everything on the disk, and close the files."""
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        os.fdatasync(self._fd)
        os.close(self._fd)
        os.close(self._head)

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        self._write(
            lambda seq, previous: canonical(
                {**fields, "seq": seq, "time": time.time(), "event": event, "prev": previous}
            )
        )

    def _write(self, spell: Callable[[int, str], str]) -> None:
        """Append the line that `spell` makes of its number and the hash of the line before."""
        if self._failed is not None:
            raise self._failed
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            size, seq, previous = self._end
            found = os.fstat(self._fd).st_size
            if found != size:  # the first line, or another gateway's
                seq, previous = self._tail()
                found = os.fstat(self._fd).st_size
            body = spell(seq + 1, previous)
            stated = hashlib.sha256(body.encode()).hexdigest()
            data = f'{body[:-1]},"hash":"{stated}"}}\n'.encode()
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, "short write; is the disk full?", str(self.path))
            os.pwrite(self._head, _head(seq + 1, stated), 0)
            self._end = found + len(data), seq + 1, stated
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        if not self._dirty.is_set():
            self._dirty.set()

    def _sync(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fdatasync(self._fd)
            except OSError as error:  # said by the next append
                self._failed = error
                return
            self._closed.wait(SYNC_SECONDS)

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


def begin_form(fields: Mapping[str, Any]) -> Form:
    """The form of `begin` lines that have these fields and differ in their arguments."""
    return Form({**fields, "event": "begin"}, ("arguments", "call_id", "prev", "seq", "time"))


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _head(seq: int, last: str) -> bytes:
    # Of one length always, so that it is replaced by one write in place.
    return f"{seq:020} {last}\n".encode()


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
        elif entry.get("event") == "end":
            begun.pop(str(entry.get("call_id")), None)
    try:
        head = _head_path(path).read_bytes()
    except OSError:
        head = b""
    if head != _head(seq, previous) and (lines or head):
        problems.append("the end does not agree with the .head file (cut, or the file is missing)")
    return VerifyReport(
        lines=lines, calls=calls, interrupted=tuple(begun), problems=tuple(problems)
    )
