"""Lines over a pair of descriptors, on the event loop: no threads, no copies beyond the buffers.

Theory of operation
    What is sent leaves at once while frames come one by one. Where the last read of any pipe held
    several, only the first that is sent within a turn of the loop does, and what follows leaves in
    one write(2) at its end: a peer with one request in flight waits no turn and costs none, one with
    many costs few calls. A peer that does not read makes
    `buffered_bytes` grow; whoever feeds it stops its own reading (`pause`) above `HIGH_WATER_BYTES`
    and goes on when `on_drained` says so. A frame over the limit is skipped to its end, and its
    beginning is handed to `on_oversize`, where the id of whoever waits may be found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections import deque
from collections.abc import Callable

from .jsonrpc import MAX_FRAME_BYTES

_READ_BYTES = 1 << 18  # one turn's share, so that one peer's flood leaves the loop to others
_HEAD_BYTES = 4096
HIGH_WATER_BYTES = 1 << 20


class Pipe:
    """A transport of newline-delimited frames.

    Attributes:
        buffered_bytes: What the peer has not taken yet.
        on_drained: Called when all that could not be written at once has been.

    Args:
        reader, writer: Descriptors; closed by `aclose`.
        on_frame: Called with each frame, without its line end; blank lines are skipped.
        on_closed: Called once: the peer has closed its end, or cannot be written to.
        on_oversize: Called with the first 4 KiB of a frame over `max_frame_bytes`.
    """

    _crowded = False  # of all pipes: what one brings in, another one takes out

    def __init__(
        self, reader: int, writer: int, *, on_frame: Callable[[bytes], None],
        on_closed: Callable[[], None], on_oversize: Callable[[bytes], None],
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:  # fmt: skip
        self._reader, self._writer = reader, writer
        self._on_frame, self._on_closed, self._on_oversize = on_frame, on_closed, on_oversize
        self._max_frame_bytes = max_frame_bytes
        self._loop = asyncio.get_running_loop()
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._skipping = False
        self._out: deque[bytes | memoryview] = deque()
        self._flush_due = False
        self._writing = False
        self._paused = 0
        self._open = True
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._file: asyncio.Task[None] | None = None
        self.buffered_bytes = 0
        self.on_drained: Callable[[], None] | None = None
        self._blocking = {fd: os.get_blocking(fd) for fd in {reader, writer}}
        for fd in self._blocking:
            os.set_blocking(fd, False)

    def start(self) -> None:
        """Begin to read."""
        try:
            self._loop.add_reader(self._reader, self._readable)
        except PermissionError:  # epoll_ctl(2), EPERM: a regular file, always readable
            self._file = self._loop.create_task(self._read_file())

    def pause(self) -> None:
        """Stop reading until as many `resume` have come."""
        self._paused += 1
        if self._paused == 1 and self._open and self._file is None:
            self._loop.remove_reader(self._reader)

    def resume(self) -> None:
        """Take one `pause` back."""
        self._paused -= 1
        if self._paused == 0 and self._open and self._file is None:
            self._loop.add_reader(self._reader, self._readable)

    def send(self, data: bytes) -> None:
        """Queue whole lines; nothing happens once the peer is gone."""
        if self._closed:
            return
        if self._flush_due or self._writing:
            self._out.append(data)
            self.buffered_bytes += len(data)
            return
        try:
            written = os.write(self._writer, data)
        except OSError:  # full or gone: seen by `_flush`, outside of the caller's work
            written = 0
        if written < len(data):
            self._out.append(memoryview(data)[written:] if written else data)
            self.buffered_bytes += len(data) - written
        elif not Pipe._crowded:
            return
        self._flush_due = True
        self._idle.clear()
        self._loop.call_soon(self._flush)

    async def aclose(self, flush_seconds: float = 1.0) -> None:
        """Write what is queued, for so long at the most, and close."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), flush_seconds)
        self._lost()
        if self._file is not None:
            self._file.cancel()
        for fd, blocking in self._blocking.items():
            with contextlib.suppress(OSError):
                os.set_blocking(fd, blocking)
                os.close(fd)
        self._blocking = {}

    def has_reader(self) -> bool:
        """Whether somebody could still read what is sent."""
        poll = select.poll()
        poll.register(self._writer, 0)  # POLLERR is always reported: poll(2)
        return not self._closed and not poll.poll(0)

    def close_writer(self) -> None:
        """Say that no more will come; what is queued is dropped."""
        self._closed = True
        self._stop_writing()
        if self._writer != self._reader and self._blocking.pop(self._writer, None) is not None:
            os.close(self._writer)

    def _readable(self) -> None:
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._take(data)

    async def _read_file(self) -> None:
        while self._open:
            self._take(await asyncio.to_thread(os.read, self._reader, _READ_BYTES))

    def _take(self, data: bytes) -> None:
        if not data:
            if self._partial and not self._skipping:
                self._emit(b"".join(self._partial))  # a last line without its end
                self._partial = []
            self._lost()
            return
        first, newline, rest = data.partition(b"\n")
        Pipe._crowded = bool(rest)
        if not newline:
            self._keep(data)
            return
        if self._partial or self._skipping:
            self._keep(first)
            if not self._skipping:
                self._emit(b"".join(self._partial))
            self._partial, self._partial_bytes, self._skipping = [], 0, False
        else:
            self._emit(first)
        if rest:
            lines = rest.split(b"\n")
            last = lines.pop()
            for line in lines:
                self._emit(line)
            if last:
                self._keep(last)

    def _keep(self, data: bytes) -> None:
        if self._skipping:
            return
        self._partial.append(data)
        self._partial_bytes += len(data)
        if self._partial_bytes > self._max_frame_bytes:
            head = b"".join(self._partial)[:_HEAD_BYTES]
            self._partial, self._partial_bytes, self._skipping = [], 0, True
            self._on_oversize(head)

    def _emit(self, line: bytes) -> None:
        line = line.strip(b" \t\r")
        if line:
            self._on_frame(line)

    def _flush(self) -> None:
        self._flush_due = False
        while self._out:
            # As much as a pipe takes at once; a long frame is not copied again.
            if len(self._out) > 1 and len(self._out[0]) < 1 << 16:
                gathered: list[bytes | memoryview] = []
                size = 0
                while self._out and size < 1 << 16:
                    size += len(self._out[0])
                    gathered.append(self._out.popleft())
                self._out.appendleft(b"".join(gathered))
            head = self._out[0]
            try:
                written = os.write(self._writer, head)
            except BlockingIOError:
                self._wait_writable()
                return
            except OSError:  # EPIPE: the peer has gone
                self._out.clear()
                self.buffered_bytes = 0
                self._closed = True
                self._stop_writing()
                self._lost()
                return
            self.buffered_bytes -= written
            if written == len(head):
                self._out.popleft()
            else:
                self._out[0] = memoryview(head)[written:]
        self._stop_writing()
        if self.on_drained is not None:
            self.on_drained()

    def _wait_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._writer, self._flush)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._writer)
        self._idle.set()

    def _lost(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._paused and self._file is None:
            self._loop.remove_reader(self._reader)
        self._on_closed()
