"""Starts commands inside one sandbox, for a gateway outside that keeps it: standing.py.

It is that sandbox's own command: an interpreter that reads requests from its stdin and writes to its
stdout what comes of them, in frames, until its stdin ends. Nothing is kept here but what a command has not
read yet; whoever does not read its answers makes its commands wait. It is not apart from what it starts: commands
are the same user's, and one that wants to can end it or answer for it, inside. Standard library only: a
bare interpreter runs this (inside.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import struct
import subprocess
import time
from typing import Any

# The number of a run, the kind of what follows, its length.
HEAD = struct.Struct("!IcQ")
RUN, KILL = b"r", b"k"  # a line of JSON and the command's stdin; nothing
READY, OUT, ERR, END = b"h", b"o", b"e", b"x"  # nothing; bytes; bytes; JSON
CHUNK_BYTES = 1 << 16
_PIPES = 16  # chunks that a pipe holds at the most, pipe-max-size: pipe(7)
_DYING_SECONDS = 2.0  # that is waited for who has been killed
_BLOCK_BYTES = 512  # of ru_inblock and ru_oublock: <linux/task_io_accounting_ops.h>


class _Command:
    """One that runs."""

    def __init__(self, number: int, asked: dict[str, Any], given: bytes) -> None:
        self.number = number
        self.given = memoryview(given)
        where = os.path.normpath(os.path.join(os.getcwd(), asked["cwd"]))
        environment = {**os.environ, **asked["env"], "PWD": where}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            asked["argv"], cwd=where, env=environment, stdout=pipe, stderr=pipe,
            stdin=pipe if given else subprocess.DEVNULL, bufsize=0, start_new_session=True,
        )  # fmt: skip
        self.streams: dict[bytes, Any] = {OUT: self.process.stdout, ERR: self.process.stderr}
        for stream in (self.process.stdin, *self.streams.values()):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)

    def kill(self) -> None:
        """End it and what is in its session; what has left that goes on."""
        killed: set[int] = set()
        while True:  # until nobody is left who could have started another
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            others = {pid for pid in _processes() if _session(pid) == self.process.pid} - killed
            if not others:
                break
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= others
        give_up = time.monotonic() + _DYING_SECONDS
        while not all(map(_is_dead, killed)) and time.monotonic() < give_up:
            time.sleep(0.001)  # nothing tells of the end of those who are not our children


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # without namespaces it is not shown
        return []


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _do_nothing(*_: object) -> None:
    """A signal with a handler is told to the wakeup descriptor."""


class Attendant:
    """One loop over requests, outputs and ends."""

    def __init__(self) -> None:
        self._commands: dict[int, _Command] = {}
        self._asked = bytearray()
        self._selector = selectors.DefaultSelector()
        self._woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_ends)
        self._selector.register(0, selectors.EVENT_READ, self._on_request)

    def serve(self) -> None:
        """Until stdin ends."""
        self._say(0, READY)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _say(self, number: int, kind: bytes, what: bytes = b"") -> None:
        rest = memoryview(HEAD.pack(number, kind, len(what)) + what)
        while rest:
            rest = rest[os.write(1, rest) :]

    def _on_request(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            os._exit(0)
        self._asked += data
        while len(self._asked) >= HEAD.size:
            number, kind, length = HEAD.unpack_from(self._asked)
            whole = HEAD.size + length
            if len(self._asked) < whole:
                return
            what = bytes(self._asked[HEAD.size : whole])
            del self._asked[:whole]
            if kind == RUN:
                self._run(number, what)
            elif command := self._commands.get(number):
                command.kill()
            else:  # it has ended, or its caller was cancelled before it had been asked for
                self._refuse(number, errno.ESRCH)

    def _run(self, number: int, what: bytes) -> None:
        line, _, given = what.partition(b"\n")
        asked = json.loads(line)
        try:
            command = _Command(number, asked, given)
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL  # a NUL is a ValueError
            # Of a directory and of a command that is not there the error is the same.
            nowhere = bool(asked["cwd"]) and not os.path.isdir(asked["cwd"])
            self._refuse(number, code, nowhere=nowhere)
            return
        self._commands[number] = command
        for kind, stream in command.streams.items():
            self._register(stream, selectors.EVENT_READ, command, kind)
        if command.process.stdin is not None:
            self._register(command.process.stdin, selectors.EVENT_WRITE, command, b"")

    def _refuse(self, number: int, code: int, *, nowhere: bool = False) -> None:
        said = {"code": errno.errorcode.get(code, "EIO"), "cwd": nowhere}
        self._say(number, END, json.dumps(said).encode())

    def _register(self, stream: Any, event: int, command: _Command, kind: bytes) -> None:
        def act() -> None:
            if stream.closed:  # by what was done for another just now
                return
            if kind:
                self._pass_on(command, kind, stream)
            else:
                self._give(command, stream)

        self._selector.register(stream, event, act)

    def _close(self, stream: Any) -> None:
        if stream is not None and not stream.closed:
            self._selector.unregister(stream)
            stream.close()

    def _give(self, command: _Command, stream: Any) -> None:
        try:
            command.given = command.given[os.write(stream.fileno(), command.given[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it reads no more
            command.given = command.given[:0]
        if not command.given:
            self._close(stream)

    def _pass_on(self, command: _Command, kind: bytes, stream: Any) -> bool:
        """Whether there was something."""
        try:
            data = os.read(stream.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._say(command.number, kind, data)
            return True
        self._close(stream)
        return False

    def _on_ends(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass
        for command in list(self._commands.values()):
            pid, status, used = os.wait4(command.process.pid, os.WNOHANG)
            if pid:
                command.process.returncode = status  # it has been waited for
                self._end(command, status, used)

    def _end(self, command: _Command, status: int, used: Any) -> None:
        """Say what it wrote to its end, and that: what it has left in the background writes to nobody."""
        del self._commands[command.number]
        for kind, stream in command.streams.items():
            for _ in range(_PIPES):
                if stream.closed or not self._pass_on(command, kind, stream):
                    break
            self._close(stream)
        self._close(command.process.stdin)
        said = {
            "status": status, "cpu_seconds": used.ru_utime + used.ru_stime,
            "memory_peak_bytes": used.ru_maxrss * 1024,
            "read_bytes": used.ru_inblock * _BLOCK_BYTES,
            "written_bytes": used.ru_oublock * _BLOCK_BYTES,
        }  # fmt: skip
        self._say(command.number, END, json.dumps(said).encode())


def main() -> None:
    """Serve the gateway."""
    Attendant().serve()
