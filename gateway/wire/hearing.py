"""What one server says by itself: notifications to be handed on, and questions to the client.

Theory of operation
    A notification of a request goes where the request's answer will; over stdio nothing says to which
    request a question belongs, so it goes with the newest that may wait. Between different eras a
    question parks the client's call; notifications are put into the words of the other era.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ..call import Version
from ..calls import Calls
from ..pins import Watch
from ..screens import definitions
from . import eras, jsonrpc
from .acts import ACTING, act
from .asks import Tokens
from .client import LOG_LEVEL, SUBSCRIPTION, Client
from .connection import Connection
from .exchange import Exchange, Sink
from .jsonrpc import Id, Message, RpcError, object_of
from .links import Connector, Link
from .session import Session
from .stdio import HIGH_WATER_BYTES
from .task_bridge import TaskBridge
from .task_record import TaskRecord
from .tasks import STATUS

_MOST_ASKED = 256  # of a server's requests at once


class Hearing:
    """One server's, for one session.

    Args:
        name: Of the server, in rules and records.
        connector: Is told of what is not the protocol.
        session: Whom the server serves.
        calls, version: Who decides on what the server asks, and by what now.
        watch: Is told which lists have changed.

    Attributes:
        connection: Where answers go; set by whoever makes both.
        bridge, record: Of tasks between different eras, and of what they give; likewise.
        mine: Requests of the client's in flight at this server, also those that are parked.
        by_id: The same by the ids that the server sees.
        listeners: Open subscriptions, with what each is to hear where the server does not know.
        tokens: Progress tokens of tasks.
    """

    connection: Connection
    bridge: TaskBridge
    record: TaskRecord

    def __init__(
        self, name: str, connector: Connector, session: Session, calls: Calls,
        version: Callable[[], Version], watch: Watch | None,
    ) -> None:  # fmt: skip
        self._name, self._connector, self._session = name, connector, session
        self._calls, self._version, self._watch = calls, version, watch
        self._asked: dict[Id, tuple[asyncio.Task[None], list[Message]]] = {}
        self.listeners: dict[object, tuple[Exchange, Message]] = {}
        self.mine: list[Exchange] = []
        self.by_id: dict[Id, Exchange] = {}
        self.tokens = Tokens()
        self._paused = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_shared(self) -> bool:
        """Whether the server may take another client of the gateway for this one."""
        return self._connector.is_shared and bool(self._session.principal)

    async def aclose(self) -> None:
        """Ask nobody any more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def frame(self, frame: bytes, related: Id | None) -> None:
        """Take one frame."""
        try:
            message = jsonrpc.decode(frame)
        except jsonrpc.FrameError as problem:
            for id in problem.ids:
                why = {"code": jsonrpc.INTERNAL_ERROR, "message": f"The server's answer: {problem}"}
                self.connection.asks.settle(jsonrpc.error(id, why))
            self._connector.say(b"not MCP on its stdout: " + frame[:200])
            return
        assert jsonrpc.is_object(message)
        method = message.get("method")
        if method is None:
            self.connection.asks.settle(message)
        elif "id" in message:
            if len(self._asked) >= _MOST_ASKED:
                text = f"Over {_MOST_ASKED} requests to the client wait"
                refusal = {"code": jsonrpc.OVERLOADED, "message": text}
                with contextlib.suppress(RpcError):
                    self.connection.send(jsonrpc.error(message["id"], refusal))
                return
            reasons: list[Message] = []
            task = self._task(self._questioned(message, reasons, related))
            self._asked[message["id"]] = task, reasons
        else:
            self._heard(method, message.get("params"), related)
        if (
            not self._paused
            and self._session.is_congested(HIGH_WATER_BYTES)
            and self.connection.link
        ):
            self._paused = True
            self.connection.link.pause()
            self._session.when_clear(partial(self._go_on, self.connection.link))

    def _go_on(self, link: Link) -> None:
        self._paused = False
        link.resume()

    def oversize(self, head: bytes) -> None:
        """Take the beginning of a frame over the limit."""
        text = f"The server's answer is over {jsonrpc.MAX_FRAME_BYTES >> 20} MiB"
        problem = {"code": jsonrpc.INTERNAL_ERROR, "message": text}
        self.connection.asks.settle(jsonrpc.error(jsonrpc.salvage_id(head), problem))

    def _heard(self, method: str, params: Message | None, related: Id | None) -> None:
        said = params or {}
        if method == "notifications/progress":
            if self.connection.asks.progressed(said):
                return
            params = self.tokens.restored(said)
            if params is None:  # too late, or nobody's
                return
        elif method in STATUS and not self._session.tasks.is_of(
            said.get("taskId"), self._name, known=self.is_shared
        ):
            return
        if method == "notifications/cancelled":
            id = said.get("requestId")
            found = self._asked.get(id) if jsonrpc.is_id(id) else None
            if found is not None:
                found[1].append(said)
                found[0].cancel()
            return
        if self._watch is not None:
            self._watch.changed(method)
        client = self._session.client
        if method == "notifications/tasks/status" and client and client.era == "modern":
            self._task(self._told(said))
            return
        self.deliver(method, params, related)

    async def _told(self, task: Message) -> None:
        """A legacy server's task has changed: tell a modern client that listens for it, all of it."""
        method, about = "notifications/tasks", {"taskId": task.get("taskId")}
        if any(eras.heard(filters, method, about) for _, filters in self.listeners.values()):
            with contextlib.suppress(RpcError):
                self.deliver(method, await self.bridge.detailed(task))

    def announce(self, method: str) -> None:
        """Send the client a notification of the gateway's own, if it has asked for such."""
        client = self._session.client
        if client is not None and client.era == "legacy":
            self._session.send(jsonrpc.notification(method, None), self._stream(None))
            return
        for exchange, filters in list(self.listeners.values()):
            if eras.heard(filters, method, None):
                meta = {SUBSCRIPTION: exchange.id}
                exchange.emit(jsonrpc.notification(method, {"_meta": meta}))

    def deliver(self, method: str, params: Message | None, related: Id | None = None) -> None:
        """Hand a notification on to the client, screened."""
        client = self._session.client
        if client is None:
            return
        with contextlib.suppress(definitions.Withheld):
            params = definitions.passed(self._version().screen, method, params)
            if method == "notifications/tasks":
                try:
                    self.record.told(self._version(), object_of(params))
                except OSError as error:  # what cannot be recorded is not handed on
                    print(f"purple: cannot write the audit log: {error}", file=sys.stderr)
                    return
            self._notify(client, method, params, related)

    def _notify(
        self, client: Client, method: str, params: Message | None, related: Id | None
    ) -> None:
        if self.connection.era == "modern":
            id = object_of((params or {}).get("_meta")).get(SUBSCRIPTION)
            if client.era == "modern" and type(id) is int and params is not None:
                if id in self.listeners:
                    exchange = self.listeners[id][0]
                    meta = {**params["_meta"], SUBSCRIPTION: exchange.id}
                    exchange.emit(jsonrpc.notification(method, {**params, "_meta": meta}))
                return
            if client.era == "legacy":
                if method == "notifications/subscriptions/acknowledged":
                    return
                params = eras.without_subscription(params)
            self._session.send(jsonrpc.notification(method, params), self._stream(related))
        elif client.era == "legacy":
            self._session.send(jsonrpc.notification(method, params), self._stream(related))
        elif method == "notifications/message":
            for exchange in reversed(self.mine):
                if eras.loud_enough((params or {}).get("level"), exchange.meta.get(LOG_LEVEL)):
                    exchange.emit(jsonrpc.notification(method, params))
                    break
        else:
            for exchange, filters in list(self.listeners.values()):
                if eras.heard(filters, method, params):
                    meta = {**object_of((params or {}).get("_meta")), SUBSCRIPTION: exchange.id}
                    exchange.emit(jsonrpc.notification(method, {**(params or {}), "_meta": meta}))

    def _stream(self, related: Id | None) -> Sink | None:
        """Where a message goes: over HTTP the stream of its request, else of the newest one."""
        if not self._session.has_streams:
            return None
        exchange = self.by_id.get(related) if related is not None else None
        if exchange is None and self.mine:
            exchange = self.mine[-1]
        return exchange.sink if exchange is not None and exchange.bound else None

    async def _questioned(
        self, message: Message, reasons: list[Message], related: Id | None
    ) -> None:
        """Answer a request of the server's."""
        id, method, params = message["id"], message["method"], message.get("params")
        client = self._session.client
        try:
            if client is None:
                raise RpcError(jsonrpc.SERVER_UNAVAILABLE, "There is no client to ask")
            if method.startswith("tasks/"):
                self._session.client_tasks.check(params, self._name, known=True)
            if method == "ping" and client.era == "modern":
                answer: Any = {}
            elif method in ACTING:
                answer = await act(
                    self._calls, self._version(), self._session, client, self._name, method, params,
                    partial(self._question, client, method, reasons, related),
                    self._carrier(related),
                )  # fmt: skip
            else:
                answer = await self._question(client, method, reasons, related, params)
            self._session.client_tasks.made(self._name, answer)
            if method == "tasks/list":
                answer = self._session.client_tasks.listed(self._name, answer, known=True)
            reply = jsonrpc.result(id, answer)
        except RpcError as error:
            reply = jsonrpc.error(id, error.error)
        except asyncio.CancelledError:
            return
        finally:
            self._asked.pop(id, None)
        with contextlib.suppress(RpcError, ValueError):
            self.connection.send(reply)

    async def _question(
        self, client: Client, method: str, reasons: list[Message], related: Id | None,
        params: Message | None,
    ) -> Any:  # fmt: skip
        known = self.by_id.get(related) if related is not None else None
        if client.era == "legacy":
            origin = known or (self.mine[-1] if self.mine else None)
            if not self._session.has_streams:
                origin = None
            return await self._session.ask(
                method, params, origin, reason=lambda: reasons[-1] if reasons else None,
                progress=lambda said: self.connection.send(
                    jsonrpc.notification("notifications/progress", said)
                ),
            )  # fmt: skip
        if self.bridge.is_about(params):
            return await self.bridge.question(method, params)
        if (exchange := self._carrier(related)) is not None:
            return await exchange.ask(method, params)
        raise RpcError(jsonrpc.METHOD_NOT_FOUND, "The client has no request that could carry this")

    def _carrier(self, related: Id | None) -> Exchange | None:
        """The request that may carry a question to the client.

        Over stdio nothing says to which request a question belongs: the newest that may wait.
        """
        if related is not None and related in self.by_id:
            return self.by_id[related]
        for exchange in reversed(self.mine):
            if exchange.method in ("tools/call", "prompts/get", "resources/read"):
                return exchange
        return None
