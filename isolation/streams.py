"""A command's output as the gateway reads it: as it comes, kept up to a bound, counted in full."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Literal

Name = Literal["stdout", "stderr"]
OnOutput = Callable[[Name, bytes], None]
_CHUNK_BYTES = 1 << 18


def send_all(fd: int, data: bytes, done: Callable[[], None]) -> None:
    """Write all of `data` as fast as the other side takes it; then call `done`, which may close `fd`.

    Args:
        fd: Non-blocking. What its other side does not read is lost with it.
        data: Anything.
        done: Called when all is written or nobody reads any more; may be at once.
    """
    loop = asyncio.get_running_loop()
    rest = memoryview(data)

    def more() -> bool:
        nonlocal rest
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            rest = rest[:0]
        return not rest

    def writable() -> None:
        if more():
            loop.remove_writer(fd)
            done()

    if more():
        done()
    else:
        loop.add_writer(fd, writable)


class Output:
    """One pipe.

    Attributes:
        writer: The command's end; -1 once closed.
        kept: The first `keep_bytes` of what was written.
        total_bytes: What was written.
        keep_bytes: May be set until the first byte comes.
        on_output: Called with each chunk before any truncation; None for nobody.
    """

    def __init__(self, name: Name) -> None:
        self.name: Name = name
        self.kept = bytearray()
        self.total_bytes = 0
        self.keep_bytes = 0
        self.on_output: OnOutput | None = None
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def close_writer(self) -> None:
        """Close the command's end here, once it has been handed over."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def drain(self) -> None:
        """Take what is left in the pipe. Call when every writer has ended."""
        while self._open:
            before = self.total_bytes
            self._read()
            if self.total_bytes == before:
                break

    def close(self) -> None:
        """Close both ends."""
        if self._open:
            asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()

    def _read(self) -> None:
        try:
            data = os.read(self._reader, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._reader)
            return
        self.total_bytes += len(data)
        if (room := self.keep_bytes - len(self.kept)) > 0:
            self.kept += data[:room]
        if self.on_output is not None:
            self.on_output(self.name, data)
