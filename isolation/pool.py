"""Sandboxes that wait: as many as are likely to be wanted at once, and no more."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from .errors import SetupError
from .link import Link
from .marks import Marks
from .started import Started
from .streams import Output, send_all

_CLOSED = "the engine has been closed"
_IDLE_SECONDS = 30.0  # after that the pool shrinks by one
# A replacement must not compete with the calls that are being made: it is begun when there are none any
# more, when this time is over, or at once when somebody waits for it.
REFILL_SECONDS = 0.02
_QUIET_SECONDS = 0.002  # after the last of them, whose caller may have something to do first


class Ready:
    """A sandbox with the pipes of its command: stdin, stdout, stderr.

    Attributes:
        started: The sandbox itself.
        stdin: Our end of its stdin; -1 where that is /dev/null.
        stdout, stderr: What it writes.
        marks: What of the workspace is covered and what is read-only in it.
    """

    def __init__(
        self, started: Started, marks: Marks, stdin: int, stdout: Output, stderr: Output
    ) -> None:
        self.started = started
        self.marks = marks
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def write_stdin(self, data: bytes) -> None:
        """Write all of `data` and close; what the command does not read is lost with it."""
        fd, self.stdin = self.stdin, -1
        os.set_blocking(fd, False)
        send_all(fd, data, lambda: os.close(fd))

    def close(self) -> None:
        """Close every pipe; everything inside must have ended."""
        self.stdout.close()
        self.stderr.close()
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


async def prepare(link: Link, marks: Marks, stdin: Literal["null", "pipe"]) -> Ready:
    """Have a sandbox prepared with pipes of its own. Raises `SetupError`."""
    try:
        return await _prepare(link, marks, stdin)
    except OSError as error:  # EMFILE, ENOMEM
        raise SetupError(f"no sandbox can be prepared: {error}") from error


async def _prepare(link: Link, marks: Marks, stdin: Literal["null", "pipe"]) -> Ready:
    if stdin == "null" and link.has_first:
        started = await link.spawn_first(marks)
        out, into_out, err, into_err = started.take_pipes()
        stdout = Output("stdout", link.poller, (out, into_out))
        return Ready(started, marks, -1, stdout, Output("stderr", link.poller, (err, into_err)))
    if stdin == "pipe":
        theirs, ours = os.pipe2(os.O_CLOEXEC)
    else:
        theirs, ours = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
    outputs: list[Output] = []
    try:
        outputs += [Output("stdout", link.poller)]
        outputs += [Output("stderr", link.poller)]
        started = await link.spawn((theirs, outputs[0].writer, outputs[1].writer), marks)
    except BaseException:
        for output in outputs:
            output.close()
        if ours >= 0:
            os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Ready(started, marks, ours, *outputs)


class Pool:
    """Keeps sandboxes ready.

    Args:
        make: Prepares one; raises `SetupError`.
        discard: Takes back one that nobody will use.
        least: How many are kept when nothing happens.
        most: How many are kept at the most.

    The first is made alone: whoever asks for one at once has it sooner. The one that will be taken next
    stands by (`Started.stand_by`). The number wanted grows to what was in use at once and shrinks by one
    every 30 idle seconds.
    """

    def __init__(
        self, make: Callable[[], Coroutine[Any, Any, Ready]], discard: Callable[[Ready], None],
        *, least: int, most: int,
    ) -> None:  # fmt: skip
        self._make = make
        self._discard = discard
        self._least = least
        self._most = most
        self._wanted = least
        self._in_use = 0
        self._short_since: float | None = (
            None  # when the first was taken that has no replacement yet
        )
        self._ready: deque[Ready] = deque()
        self._making: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[Ready]] = deque()
        self._fill_at: asyncio.TimerHandle | None = None
        self._closed = self._begun = False
        self._shrink_at: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to fill."""
        self._fill()
        self._schedule_shrink()

    def take_ready(self) -> Ready | None:
        """One that is ready; None where there is none, or it has died: `take` one then."""
        if not self._ready or self._ready[0].started.end.done():
            return None
        self._took()
        return self._ready.popleft()

    async def take(self) -> Ready:
        """One that is ready, or the next that will be. Raises `SetupError`, also when closed."""
        self._took()
        while self._ready:
            ready = self._ready.popleft()
            if not ready.started.end.done():
                return ready
            self._discard(ready)  # it died while it waited
        if self._closed:
            self._in_use -= 1
            raise SetupError(_CLOSED)
        future: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._fill()
        try:
            return await future
        except BaseException:
            self._in_use -= 1
            if future in self._waiting:
                self._waiting.remove(future)
            elif future.done() and not future.cancelled() and future.exception() is None:
                self._ready.append(future.result())
            raise

    def refill(self) -> None:
        """Replace what is taken. To be called when something has been in use for `REFILL_SECONDS`."""
        self._short_since = None
        self._have_next_stand_by()
        self._fill()

    def done(self) -> None:
        """Say that one taken has ended."""
        self._in_use -= 1
        self._have_next_stand_by()
        if not self._in_use:
            self._fill_later(_QUIET_SECONDS)
        elif (since := self._short_since) and time.monotonic() - since > REFILL_SECONDS:
            self.refill()

    def _took(self) -> None:
        self._in_use += 1
        if self._in_use > self._wanted:
            self._wanted = min(self._in_use, self._most)
        if self._short_since is None:
            self._short_since = time.monotonic()

    async def aclose(self) -> None:
        """Stop making, and discard those that wait."""
        self._closed = True
        for timer in (self._fill_at, self._shrink_at):
            if timer is not None:
                timer.cancel()
        for task in list(self._making):
            task.cancel()
        if self._making:
            await asyncio.gather(*self._making, return_exceptions=True)
        while self._tell_waiting(SetupError(_CLOSED)):
            pass
        while self._ready:
            self._discard(self._ready.popleft())

    def _fill_later(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._fill_at is not None:
            if self._fill_at.when() <= when:
                return
            self._fill_at.cancel()
        self._fill_at = loop.call_at(when, self._fill_now)

    def _fill_now(self) -> None:
        self._fill_at = None
        self.refill()

    def _fill(self) -> None:
        while not self._closed and self._missing() > 0 and (self._begun or not self._making):
            task = asyncio.create_task(self._make_one())
            self._making.add(task)
            task.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        first, self._begun = not self._begun, True
        if self._waiting:  # also for one who came when it had failed and still counted
            self._fill()
        elif first:
            self._fill_later(REFILL_SECONDS)

    def _missing(self) -> int:
        return self._wanted + len(self._waiting) - len(self._ready) - len(self._making)

    async def _make_one(self) -> None:
        try:
            ready = await self._make()
        except Exception as error:
            # Whoever waits hears of it; nobody waiting, the next who asks will try again.
            if not self._tell_waiting(error) and not isinstance(error, SetupError):
                raise
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(ready)
                return
        self._ready.append(ready)
        self._have_next_stand_by()

    def _have_next_stand_by(self) -> None:
        if self._ready:
            self._ready[0].started.stand_by()

    def _tell_waiting(self, error: Exception) -> bool:
        """The next who still waits; False where nobody does."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
                return True
        return False

    def _schedule_shrink(self) -> None:
        def shrink() -> None:
            self._wanted = max(self._least, self._in_use, self._wanted - 1)
            while len(self._ready) > self._wanted:
                self._discard(self._ready.pop())
            self._schedule_shrink()

        self._shrink_at = asyncio.get_running_loop().call_later(_IDLE_SECONDS, shrink)
