"""Requests to a peer that wait for its answer."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from . import jsonrpc
from .jsonrpc import Message, RpcError, object_of


class _Waiting:
    """One request."""

    __slots__ = ("deadline", "future", "progress", "seconds", "token")

    def __init__(
        self, future: asyncio.Future[Message], seconds: float, deadline: float, token: Any,
        progress: Callable[[Message], None] | None,
    ) -> None:  # fmt: skip
        self.future, self.seconds, self.deadline = future, seconds, deadline
        self.token, self.progress = token, progress


class Tokens:
    """Progress tokens of requests that were answered with a task: they hold until the task ends."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._theirs: dict[int, Any] = {}

    def keep(self, ours: int, theirs: Any) -> None:
        """Remember the requestor's own; of more than `most` the oldest is forgotten."""
        self._theirs[ours] = theirs
        if len(self._theirs) > self._most:
            del self._theirs[next(iter(self._theirs))]

    def restored(self, params: Message) -> Message | None:
        """The params of a progress notification with the requestor's token; None where it has none."""
        ours = params.get("progressToken")
        if type(ours) is not int or ours not in self._theirs:
            return None
        return {**params, "progressToken": self._theirs[ours]}


class Asks:
    """Those to one peer. Ids and progress tokens are our own."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[int, _Waiting] = {}
        # One timer for all, at the first deadline that was known when it was set: most requests
        # are answered long before theirs, and a timer for each would cost more than the waiting.
        self._timer: asyncio.TimerHandle | None = None

    async def ask(
        self, send: Callable[[Message], None], method: str, params: Message | None, *,
        seconds: float, progress: Callable[[Message], None] | None = None,
        reason: Callable[[], Message | None] = lambda: None,
        on_id: Callable[[int], None] | None = None,
    ) -> Any:  # fmt: skip
        """Send a request and wait for its result.

        Args:
            send: Puts it on the wire.
            method, params: Of the request; a progress token in it is replaced by ours.
            seconds: After that it is cancelled, never where it is infinite; a progress notification starts the time anew.
            progress: Called with the params of each progress notification, its token restored.
            reason: The params of the cancellation that ends the caller, where there is one.
            on_id: Told the id that the peer sees.

        Raises:
            RpcError: what the peer answered, or TIMED_OUT.

        A cancelled caller has the request cancelled at the peer.
        """
        self._last += 1
        id = self._last
        if on_id is not None:
            on_id(id)
        token = object_of((params or {}).get("_meta")).get("progressToken")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Message] = loop.create_future()
        if params is not None and token is not None:
            params = {**params, "_meta": {**params["_meta"], "progressToken": id}}
        waiting = _Waiting(future, seconds, loop.time() + seconds, token, progress)
        self._waiting[id] = waiting
        if seconds != math.inf and (self._timer is None or self._timer.when() > waiting.deadline):
            self._set_timer(loop, waiting.deadline)
        try:
            send(jsonrpc.request(id, method, params))
            message = await future
        except TimeoutError:
            cancel = {"requestId": id, "reason": "timed out"}
            with contextlib.suppress(RpcError):  # the peer may be gone
                send(jsonrpc.notification("notifications/cancelled", cancel))
            raise RpcError(jsonrpc.TIMED_OUT, f"{method} was not answered in time") from None
        except asyncio.CancelledError:
            cancel = {**(reason() or {}), "requestId": id}
            with contextlib.suppress(RpcError):
                send(jsonrpc.notification("notifications/cancelled", cancel))
            raise
        except ValueError as problem:
            raise RpcError(jsonrpc.PARSE_ERROR, f"The request is not JSON: {problem}") from None
        finally:
            del self._waiting[id]
        if "error" in message:
            raise RpcError.of(message["error"])
        return message["result"]

    def settle(self, message: Message) -> None:
        """Take a response; one that nobody waits for is dropped."""
        id = message.get("id")
        waiting = self._waiting.get(id) if type(id) is int else None
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(message)

    def progressed(self, params: Message) -> bool:
        """Take a progress notification; False when its token is none of ours."""
        token = params.get("progressToken")
        waiting = self._waiting.get(token) if type(token) is int else None
        if waiting is None:
            return False
        waiting.deadline = asyncio.get_running_loop().time() + waiting.seconds
        if waiting.progress is not None and waiting.token is not None:
            waiting.progress({**params, "progressToken": waiting.token})
        return True

    def close(self, why: str, code: int = jsonrpc.INTERNAL_ERROR) -> None:
        """Fail all that wait."""
        for waiting in list(self._waiting.values()):
            if not waiting.future.done():
                waiting.future.set_result(jsonrpc.error(None, {"code": code, "message": why}))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for waiting in self._waiting.values():
            if waiting.deadline <= now and not waiting.future.done():
                waiting.future.set_exception(TimeoutError())
        left = [w.deadline for w in self._waiting.values() if not w.future.done()]
        if (first := min(left, default=math.inf)) != math.inf:
            self._set_timer(loop, first)
