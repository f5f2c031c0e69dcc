"""A tool server's process: started, spoken to on its pipes, ended; what it says on stderr."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ...isolation import Engine
from . import jsonrpc
from .jsonrpc import Message
from .links import Ears, Link
from .stdio import Pipe

if TYPE_CHECKING:
    from ...isolation.egress.connections import Connection
    from ..lives import Begin

# Runs the server on the three descriptors until it ends, and says how it ended; cancelled, it
# leaves nothing of it.
Launch = Callable[[tuple[int, int, int]], Awaitable[str]]

_GRACE_SECONDS = 2.0  # the SDK's, between the end of its stdin and the end of a server
_STDERR_LINES, _STDERR_LINE_BYTES, _STDERR_LINES_A_SECOND = 50, 500, 100


def sandboxed(
    engine: Engine, argv: Sequence[str], env: Mapping[str, str] | None = None,
    begin: Begin | None = None,
) -> Launch:  # fmt: skip
    """Run a server in a sandbox of its own.

    Args:
        engine: Entered; of the server's policy and workspace.
        argv: Its command.
        env: Added to the policy's environment: what the configuration names for this server.
        begin: Records its start; what that returns, its end. None records nothing.
    """

    async def launch(fds: tuple[int, int, int]) -> str:
        connected: list[Connection] = []
        end = begin() if begin is not None else None
        try:
            result = await engine.run_with(
                argv, fds, signals=asyncio.Queue(), env=env, on_end=connected.extend
            )
        finally:
            if end is not None:
                end(connected)
        if result.exit_code is not None:
            return f"exit status {result.exit_code}"
        return f"{result.reason}, signal {result.signal}"

    return launch


class Launcher:
    """Starts a server, again and again; a `Connector`.

    Args:
        name: Shown before each line of its stderr.
        launch: Starts it.
    """

    is_legacy = False
    is_shared = False

    def __init__(self, name: str, launch: Launch) -> None:
        self._launch = launch
        self._stderr = _Stderr(name)

    def connect(self, ears: Ears) -> Link:
        """As `Connector.connect`."""
        return _Process(self._launch, self._stderr, ears)

    def last(self) -> str:
        """As `Connector.last`."""
        return self._stderr.last()

    def say(self, line: bytes) -> None:
        """As `Connector.say`."""
        self._stderr.say(line)

    def close(self) -> None:
        """As `Connector.close`."""
        self._stderr.close()


class _Process:
    def __init__(self, launch: Launch, stderr: _Stderr, ears: Ears) -> None:
        theirs_in, ours_out = os.pipe2(os.O_CLOEXEC)
        ours_in, theirs_out = os.pipe2(os.O_CLOEXEC)
        theirs_err = stderr.open()
        self._ears = ears
        self._pipe = Pipe(
            ours_in, ours_out, on_frame=lambda frame: ears.frame(frame, None),
            on_closed=lambda: self._ended("it closed its stdout"), on_oversize=ears.oversize,
        )  # fmt: skip
        self._is_over = False
        self._task = asyncio.create_task(self._run(launch, (theirs_in, theirs_out, theirs_err)))
        self._pipe.start()

    @property
    def buffered_bytes(self) -> int:
        return self._pipe.buffered_bytes

    def send(self, message: Message) -> None:
        self._pipe.send(jsonrpc.encode(message))

    def greeted(self, era: Literal["legacy", "modern"], version: str) -> None:
        pass  # each message says what it needs

    def pause(self) -> None:
        self._pipe.pause()

    def resume(self) -> None:
        self._pipe.resume()

    async def aclose(self, *, at_once: bool = False) -> None:
        self._is_over = True
        if not at_once:
            self._pipe.close_writer()
            await asyncio.wait({self._task}, timeout=_GRACE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pipe.aclose(0)

    async def _run(self, launch: Launch, fds: tuple[int, int, int]) -> None:
        how = "it could not be started"
        try:
            how = await launch(fds)
        except Exception as error:  # said to whoever waits
            how = str(error)
        finally:
            for fd in fds:
                os.close(fd)
            self._ended(how)

    def _ended(self, how: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._ears.ended(self, how)


class _Stderr:
    """What a server writes to its stderr: the last lines kept, all of it shown, within bounds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._reader = -1
        self._rest = b""
        self._second, self._shown = 0, 0

    def open(self) -> int:
        """The writing end of a new pipe."""
        self.close()
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        asyncio.get_running_loop().add_reader(self._reader, self._read)
        return writer

    def close(self) -> None:
        """Read no more."""
        if self._reader >= 0:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1

    def last(self) -> str:
        """The last line, to be added to a sentence."""
        return f"; it last said: {self._lines[-1][:300]}" if self._lines else ""

    def say(self, line: bytes) -> None:
        """Take a line: no control characters, bounded in length and in number a second."""
        text = line[:_STDERR_LINE_BYTES].decode("utf-8", "replace")
        text = "".join(c if c.isprintable() else "�" for c in text.rstrip("\r"))
        if not text:
            return
        self._lines.append(text)
        now = int(asyncio.get_running_loop().time())
        if now != self._second:
            self._second, self._shown = now, 0
        self._shown += 1
        if self._shown <= _STDERR_LINES_A_SECOND:
            print(f"[{self._name}] {text}", file=sys.stderr)

    def _read(self) -> None:
        try:
            data = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_STDERR_LINE_BYTES]
        for line in lines:
            self.say(line)
