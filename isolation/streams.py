"""A command's output as the gateway reads it: as it comes, kept up to a bound, counted in full."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Literal

from .poller import Poller

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
    """One pipe. Both of its ends are kept open until the command has ended: nobody is woken for the pipe's
    own end, and `drain` then takes what is left.

    Args:
        name: Which of the command's streams.
        poller: Tells when there is something to read.
        pipe: Both ends, from here on this object's to close; None makes one.

    Attributes:
        writer: The command's end, to be handed over.
        kept: The first `keep_bytes` of what was written.
        total_bytes: What was written.
        keep_bytes: May be set until the first byte comes.
        on_output: Called with each chunk before any truncation; None for nobody. What it raises goes to the
            event loop's exception handler.
    """

    def __init__(self, name: Name, poller: Poller, pipe: tuple[int, int] | None = None) -> None:
        self.name: Name = name
        self.kept = bytearray()
        self.total_bytes = 0
        self.keep_bytes = 0
        self.on_output: OnOutput | None = None
        self._reader, self.writer = pipe or os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._poller = poller
        poller.add_reader(self._reader, self._read)

    def drain(self) -> None:
        """Take what is left in the pipe. Call when every other writer has ended."""
        if self.writer >= 0:
            os.close(
                self.writer
            )  # so that the last read says so, which an exception would take longer for
            self.writer = -1
        while self._read():
            pass

    def close(self) -> None:
        """Close what is open of it."""
        self._poller.forget(self._reader)
        os.close(self._reader)
        if self.writer >= 0:
            os.close(self.writer)

    def _read(self) -> bool:
        try:
            data = os.read(self._reader, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return False
        self.total_bytes += len(data)
        if (room := self.keep_bytes - len(self.kept)) > 0:
            self.kept += data[:room]
        if self.on_output is not None:
            try:
                self.on_output(self.name, data)
            except Exception as error:  # its caller's, and no reason to lose what comes after it
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "Exception in on_output", "exception": error}
                )
        return True
