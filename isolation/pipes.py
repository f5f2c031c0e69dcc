"""Our ends of a process's pipes, as anyio's byte streams.

Nothing is kept here: what nobody receives stays in the pipe (64 KiB, pipe(7)), and then its writer
waits. So a flood costs its sender time and nobody memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from anyio import (
    BrokenResourceError,
    BusyResourceError,
    ClosedResourceError,
    EndOfStream,
    ResourceGuard,
    notify_closing,
    wait_readable,
    wait_writable,
)
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint

Stdin = Literal["pipe", "null"]
Stderr = Literal["pipe", "stdout"]


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Three descriptors; -1 where there is none."""

    stdin: int
    stdout: int
    stderr: int

    def close(self) -> None:
        """Close each once."""
        for fd in {self.stdin, self.stdout, self.stderr} - {-1}:
            os.close(fd)


def open_pipes(stdin: Stdin, stderr: Stderr) -> tuple[Ends, Ends]:
    """The command's ends and ours. Raises OSError (EMFILE)."""
    opened: list[int] = []

    def pipe() -> tuple[int, int]:
        opened.extend(ends := os.pipe2(os.O_CLOEXEC))
        return ends

    try:
        if stdin == "pipe":
            theirs_in, ours_in = pipe()
        else:
            theirs_in, ours_in = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
            opened.append(theirs_in)
        ours_out, theirs_out = pipe()
        ours_err, theirs_err = (-1, theirs_out) if stderr == "stdout" else pipe()
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return (
        Ends(stdin=theirs_in, stdout=theirs_out, stderr=theirs_err),
        Ends(stdin=ours_in, stdout=ours_out, stderr=ours_err),
    )


class _Pipe:
    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._guard = ResourceGuard("using")

    def close(self) -> None:
        """Close it at once; whoever waits on it gets `ClosedResourceError`. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            notify_closing(fd)
            os.close(fd)

    def drop(self) -> None:
        """Close it where no event loop runs any more in which somebody could wait on it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def aclose(self) -> None:
        """Close it. May be called again."""
        self.close()
        await checkpoint()

    def _open(self) -> int:
        if self._fd < 0:
            raise ClosedResourceError
        return self._fd


class ReceivePipe(_Pipe, ByteReceiveStream):
    """What a process writes. Closing it gives the process EPIPE (SIGPIPE) at its next write."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at least one and at most `max_bytes`, as soon as there are any.

        Raises:
            EndOfStream: everything that could write has ended.
            ClosedResourceError: it has been closed here.
            BusyResourceError: somebody else is receiving.
        """
        with self._guard:
            await checkpoint()
            while True:
                try:
                    data = os.read(self._open(), max_bytes)
                except BlockingIOError:
                    await wait_readable(self._open())
                    continue
                if not data:
                    raise EndOfStream
                return data


class SendPipe(_Pipe, ByteSendStream):
    """What a process reads. Closing it is the end of its input."""

    def send_now(self, item: bytes) -> bool:
        """Send PIPE_BUF bytes at the most, pipe(7), all or none; whether there was room, and nobody else
        is sending, and somebody may read it."""
        try:
            with self._guard:
                return os.write(self._open(), item) == len(item)
        except (BlockingIOError, BrokenPipeError, BusyResourceError, ClosedResourceError):
            return False

    async def send(self, item: bytes) -> None:
        """Return when all of `item` is in the pipe, which is when the process has read most of it.

        Raises:
            BrokenResourceError: nobody will read it.
            ClosedResourceError: it has been closed here.
            BusyResourceError: somebody else is sending.
        """
        rest = memoryview(item)
        with self._guard:
            await checkpoint()
            while rest:
                try:
                    rest = rest[os.write(self._open(), rest) :]
                except BlockingIOError:
                    await wait_writable(self._open())
                except BrokenPipeError as error:
                    raise BrokenResourceError from error
