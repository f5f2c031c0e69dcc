"""`LoopThread`: asyncio's event loop in a thread of its own, for callers who have another or none.

An engine lives on asyncio's loop. Under trio, and without any loop, it has one here; calls go in by
`call_soon_threadsafe` and come back by a future, on which a thread blocks, or by a descriptor, for
which any event loop that anyio knows can wait. Whoever stops waiting (cancelled, interrupted) has the
work cancelled and goes on when that has ended, as a caller on asyncio does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from .errors import SetupError
from .streams import Name, OnOutput

T = TypeVar("T")

CLOSED = "the engine has been closed"
_SETTLE_SECONDS = 5.0
_UNSEEN_BYTES = 1 << 20


def is_on_asyncio() -> bool:
    """Whether the caller is a task of asyncio's. Raises `RuntimeError` where there is no event loop at all."""
    try:
        if asyncio.current_task() is not None:
            return True
    except RuntimeError:
        pass
    from anyio import get_current_task  # not where asyncio is: imports take time

    try:
        get_current_task()  # in trio's guest mode asyncio's loop runs, too, but no task of it
    except RuntimeError:
        raise RuntimeError(
            "Engine needs an event loop, asyncio's or trio's; without one use SyncEngine"
        ) from None
    return False


class LoopThread:
    """One loop with its thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="purple-engine", daemon=True)
        self._lock = threading.Lock()
        self._open = False
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop's thread alone looks at it

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether work may be begun."""
        return self._open

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Have a function called on the loop; nothing when it has stopped."""
        with self._lock:
            if self._open:
                self._loop.call_soon_threadsafe(function, *args)

    def wait(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Block until `work` has been done on the loop.

        Args:
            work: Begun there, in a copy of the caller's context.
            timeout: Seconds; None waits for as long as it takes.

        Raises:
            SetupError: the loop has stopped.
            TimeoutError: after `timeout`; the work has been cancelled.
        """
        call = self._begin(work)
        try:
            return call.result(timeout)
        except BaseException:
            call.cancel()
            concurrent.futures.wait([call.outcome])
            raise

    async def wait_from_task(self, work: Coroutine[Any, Any, T], relay: Relay | None = None) -> T:
        """As `wait`, for a task of any event loop that anyio knows; its thread goes on meanwhile.

        Args:
            work: As in `wait`.
            relay: What it takes in is delivered by the caller's task.
        """
        from anyio import CancelScope

        with _Bell() as bell:
            if relay is not None:
                relay.ring = bell.ring
            call = self._begin(work)
            call.outcome.add_done_callback(bell.ring)
            try:
                while True:
                    await bell.heard()
                    ended = call.outcome.done()  # first: nothing is taken in after that
                    if relay is not None:
                        relay.deliver()
                    if ended:
                        return call.result()
            except GeneratorExit:  # its event loop is gone
                call.cancel()
                raise
            except BaseException:
                call.cancel()
                if relay is not None:
                    relay.close()
                with CancelScope(shield=True):
                    while not call.outcome.done():
                        await bell.heard()
                raise
            finally:
                if relay is not None:
                    relay.close()

    async def settle(self) -> None:
        """On the loop: return when all work has ended but that which calls this."""
        own = asyncio.current_task()
        others = {task for task in self._tasks if task is not own}
        if others:
            _, late = await asyncio.wait(others, timeout=_SETTLE_SECONDS)
            for task in late:
                task.cancel()

    def stop(self) -> None:
        """Cancel what is left and return when the thread has ended. May be called again."""
        with self._lock:
            if self._open:
                self._open = False
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _begin(self, work: Coroutine[Any, Any, T]) -> _Call[T]:
        context = contextvars.copy_context()
        if sniffio := sys.modules.get("sniffio"):  # by which anyio tells where it is
            context.run(sniffio.current_async_library_cvar.set, "asyncio")
        call = _Call[T](self)

        def begin() -> None:
            call.task = task = self._loop.create_task(work, context=context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(call.settle)

        with self._lock:
            if not self._open:
                work.close()
                raise SetupError(CLOSED)
            self._loop.call_soon_threadsafe(begin)
        return call

    def _live(self) -> None:
        loop = self._loop
        try:
            loop.run_forever()
            loop.run_until_complete(_cancel_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class Relay:
    """`on_output` for the loop's thread: each chunk is handed to the task that waits for the call.

    Args:
        on_output: Called by that task. What it raises ends the call.

    While more than a mebibyte has not been delivered, the loop's thread waits: a flood costs time and
    not memory, as where both are one thread.
    """

    def __init__(self, on_output: OnOutput) -> None:
        self._on_output = on_output
        self._chunks: deque[tuple[Name, bytes]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self.ring: Callable[[], None] = lambda: None

    def take_in(self, name: Name, data: bytes) -> None:
        """On the loop."""
        with self._changed:
            if self._closed:
                return
            self._chunks.append((name, data))
            self._bytes += len(data)
            self.ring()
            self._changed.wait_for(lambda: self._closed or self._bytes <= _UNSEEN_BYTES)

    def deliver(self) -> None:
        """In the caller's task: what has been taken in since the last time."""
        for _ in range(len(self._chunks)):  # not what comes meanwhile: the caller may be cancelled
            name, data = self._chunks.popleft()
            try:
                self._on_output(name, data)
            finally:
                with self._changed:
                    self._bytes -= len(data)
                    self._changed.notify()

    def close(self) -> None:
        """Keep the loop's thread waiting no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Call(Generic[T]):
    """Work on the loop as its caller sees it.

    Attributes:
        task: The work; set on the loop, before anything else of this call is done there.
        outcome: What became of it.
    """

    def __init__(self, home: LoopThread) -> None:
        self._home = home
        self.task: asyncio.Task[T]
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def result(self, timeout: float | None = None) -> T:
        """Block until there is one."""
        try:
            return self.outcome.result(timeout)
        except asyncio.CancelledError:  # nobody here has cancelled it
            raise SetupError(CLOSED) from None

    def cancel(self) -> None:
        """Have it end; it may have ended already."""

        def cancel() -> None:
            # A turn later: a task that is cancelled before its first step never takes it, and work
            # that has to be done all the same (cancellation.py) would not be begun.
            self._home.post(self.task.cancel)

        self._home.post(cancel)

    def settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.set_exception(asyncio.CancelledError())
        elif error := task.exception():
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


class _Bell:
    """Wakes one task from any thread. eventfd(2)."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def ring(self, _: object = None) -> None:
        """For any thread, at any time."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    async def heard(self) -> None:
        """Return when it has rung since the last time."""
        from anyio import wait_readable

        await wait_readable(self._fd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def __enter__(self) -> _Bell:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        os.close(fd)
