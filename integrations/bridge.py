"""A gateway from where a framework's tools run: any thread, any event loop.

Theory of operation
    A gateway lives on one event loop: the caller's own, that of `Gateway.sync()`, or the one of
    `shared`. A call goes there as a coroutine, with the caller's context, so that spans nest. Where a
    tool runs in the framework's process (`around`), only the decision, the approval and the record
    are made on the gateway's loop; the work itself is handed back to the thread or loop that asked,
    in a context whose current span is the call's.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from ..gateway.calls import Call, Outcome, Ran, Refusal, Run, Version
from ..gateway.gateway import Gateway, SyncGateway
from ..policies import Policy, load_policy

T = TypeVar("T")
AnyGateway = Gateway | SyncGateway


class Bridge:
    """Calls through one gateway, synchronous and (`a…`) asynchronous.

    Args:
        gateway: Entered by the time of the first call.
    """

    def __init__(self, gateway: AnyGateway) -> None:
        self.gateway = gateway.gateway if isinstance(gateway, SyncGateway) else gateway

    def call(
        self, tool: str, arguments: Mapping[str, Any], *, client: str = "", session: str = ""
    ) -> Outcome:
        """A built-in tool. As `Gateway.call`."""
        return self._wait(self.gateway.call(tool, arguments, client=client, session=session))

    async def acall(
        self, tool: str, arguments: Mapping[str, Any], *, client: str = "", session: str = ""
    ) -> Outcome:
        """The same."""
        return await self._await(self.gateway.call(tool, arguments, client=client, session=session))

    def carry(self, call: Call, run: Run, problem: Refusal | None = None) -> Outcome:
        """A call whose `run` does everything on the gateway's loop. As `Calls.call`."""
        return self._wait(self._carried(call, run, problem))

    async def acarry(self, call: Call, run: Run, problem: Refusal | None = None) -> Outcome:
        """The same."""
        return await self._await(self._carried(call, run, problem))

    def around(self, call: Call, work: Callable[[Call], Ran]) -> Outcome:
        """A call whose `work` is done here, in this thread, once it may be.

        Args:
            call: What is asked for.
            work: Gets the call as judged; must not raise.
        """
        todo: queue.SimpleQueue[tuple[Call, contextvars.Context, Future[Ran]] | None]
        todo = queue.SimpleQueue()

        async def handed_over(call: Call, version: Version) -> Ran:
            done: Future[Ran] = Future()
            todo.put((call, contextvars.copy_context(), done))
            return await asyncio.wrap_future(done)

        future = self._send(self._carried(call, handed_over))
        future.add_done_callback(lambda _: todo.put(None))
        item = todo.get()
        if item is not None:
            judged, context, done = item
            try:
                done.set_result(context.run(work, judged))
            except BaseException as error:  # KeyboardInterrupt in this thread, say
                done.set_exception(error)
                raise
        return future.result()

    async def aaround(self, call: Call, work: Callable[[Call], Awaitable[Ran]]) -> Outcome:
        """The same on this event loop."""
        here = asyncio.get_running_loop()

        async def do(judged: Call) -> Ran:
            return await work(judged)

        async def handed_over(call: Call, version: Version) -> Ran:
            if asyncio.get_running_loop() is here:
                return await do(call)
            # copied: the context as it is here, with the call's span
            context = contextvars.copy_context()
            return await asyncio.wrap_future(context.run(_send, do(call), here))

        return await self._await(self._carried(call, handed_over))

    async def _carried(self, call: Call, run: Run, problem: Refusal | None = None) -> Outcome:
        gateway = self.gateway
        return await gateway.calls.call(call, gateway.version, run, problem=problem)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._send(work)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt while it waits: the call ends, too
            future.cancel()
            raise

    def _send(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        loop = self._loop(work)
        if _running() is loop:
            work.close()
            raise RuntimeError(
                "this would wait for the event loop that it runs on; use the asynchronous method "
                "(ainvoke, …), or enter the gateway with `with Gateway(…).sync()`"
            )
        return _send(work, loop)

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._loop(work)
        if _running() is loop:
            return await work
        return await asyncio.wrap_future(_send(work, loop))

    def _loop(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        try:
            return self.gateway.loop
        except RuntimeError:
            work.close()
            raise


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _send(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, loop)


class _Shared:
    """Gateways of this process that nobody has entered, on one thread.

    They are not closed at exit, where asyncio can no longer: what is left of a gateway's sandboxes
    when its process ends is its keeper's to remove, as after a SIGKILL, and each call's record is
    written by then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gateways: dict[tuple[str, Path], Gateway] = {}

    def get(self, policy: Policy | str, workspace: Path | str) -> Gateway:
        directory = Path(workspace).resolve()
        if not isinstance(policy, Policy):
            policy = load_policy(policy, project=directory)
        key = policy.digest, directory
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            if key not in self._gateways:
                gateway = Gateway(policy, directory)
                _send(gateway.__aenter__(), self._loop).result()
                self._gateways[key] = gateway
            return self._gateways[key]


_shared = _Shared()


def shared(policy: Policy | str = "code-assistant", workspace: Path | str = ".") -> Gateway:
    """The process's own gateway for this policy and workspace, started when first asked for.

    Raises:
        PolicyError, SetupError, EnforcementError, OSError: as `Gateway`.
    """
    return _shared.get(policy, workspace)
