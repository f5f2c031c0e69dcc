"""One client: its era, the requests that it has in flight, and those that it is asked in return.

Theory of operation
    The first request settles the era: one that carries the envelope of 2026-07-28 opens a modern
    session, `initialize` a legacy one. Each request becomes an `Exchange` with a task. What a server
    asks of the client goes through `Exchange.ask`: to a legacy client as a request of the gateway's
    own; a modern client has no such requests, so there the exchange is *parked*: answered
    `input_required` with a sealed `requestState`, while its task goes on waiting. The retry that
    brings state and answers takes the exchange's place, and the task never learns of it.
    Frames come in order and notifications leave at once, results when their task has run: so a
    notification never comes after the result that it was sent before.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from . import jsonrpc, seal, tracing
from .asks import Asks
from .client import MODERN_VERSIONS, VERSION, Client, envelope
from .exchange import PARKED_SECONDS, Exchange, Sink
from .jsonrpc import Id, Message, RpcError, object_of
from .rate import Rate
from .tasks import Tasks

MAX_IN_FLIGHT = 1024
ASK_SECONDS = 300.0  # a person may have to answer; a client without a stream never will
_MAX_PARKED = 256


class Handler(Protocol):
    """What serves a session: a router over its backends."""

    async def handle(self, exchange: Exchange) -> Message:
        """The result of one request. Raises `RpcError`."""
        ...

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """A notification of the client's that belongs to no request."""
        ...

    async def aclose(self) -> None:
        """End what was started for the session."""
        ...


class Session:
    """A client's connection, or in the modern era over HTTP all that one principal sends.

    Args:
        handler: Serves it; made for it alone.
        sink: Where messages go that belong to no request; None where there is no such place.
        principal: Who the client is to the transport.
        rate: How many frames it may send on a duplex transport; over HTTP requests are counted there.
    """

    def __init__(
        self, handler: Callable[[Session], Handler], sink: Sink | None, *, principal: str = "",
        rate: Rate | None = None,
    ) -> None:  # fmt: skip
        self.id = uuid.uuid4().hex
        self.principal = principal
        self.sink = sink
        self._rate = rate or Rate()
        self.client: Client | None = None
        self.has_streams = False  # HTTP: each request has a stream of its own
        self.negotiated = ""
        self.asks = Asks()
        self.tasks = Tasks()  # that servers have made for this client
        self.client_tasks = Tasks()  # that the client has made for a server
        self._handler = handler(self)
        self._exchanges: dict[object, Exchange] = {}
        self._parked: dict[str, Exchange] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clear: list[Callable[[], None]] = []
        self._closing = False

    # What comes from the client.

    def receive_frame(self, frame: bytes, sink: Sink) -> None:
        """Take one frame from a duplex transport.

        Of those that come too fast, requests and what cannot be read are answered `OVERLOADED`;
        notifications are left out, but for cancellations, and answers are taken: somebody waits.
        """
        if not self._rate.take():
            self._too_fast(frame, sink)
            return
        try:
            message = jsonrpc.decode(frame, batches=self.negotiated == "2025-03-26", strict=True)
        except jsonrpc.FrameError as problem:
            for answer in problem.answers:
                self.send(answer, sink)
            return
        for one in message if isinstance(message, list) else (message,):
            self.receive(one, sink)

    def _too_fast(self, frame: bytes, sink: Sink) -> None:
        refusal = self._rate.refusal().error
        try:
            message = jsonrpc.decode(frame, strict=True)
        except jsonrpc.FrameError as problem:
            for id in problem.ids:
                self.send(jsonrpc.error(id, refusal), sink)
            return
        assert jsonrpc.is_object(message)
        if not self._rate.concerns(message):
            self.receive(message, sink)
        elif "id" in message:
            self.send(jsonrpc.error(message["id"], refusal), sink)

    def receive(self, message: Message, sink: Sink, *, stateless: bool = False) -> Exchange | None:
        """Take one message; returns the exchange where it is a request that is being served.

        Args:
            message: As decoded.
            sink: Where its answer and what belongs to it go.
            stateless: Its id is its own (HTTP, modern): others may have the same one.
        """
        method = message.get("method")
        if method is None:
            self.asks.settle(message)
        elif "id" in message:
            return self._requested(message, sink, stateless)
        else:
            self._notified(method, message.get("params"))
        return None

    def disconnected(self, exchange: Exchange) -> None:
        """The client has hung up on one request (HTTP): as if it had cancelled it."""
        self._cancel(exchange, {"requestId": exchange.id, "reason": "the client hung up"})

    async def finish(self, seconds: float) -> None:
        """Wait for what is in flight, for so long at the most."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)

    async def aclose(self) -> None:
        """Cancel everything, parked calls too, and end what was started for the session."""
        self._closing = True
        self.asks.close("The client has gone")
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._handler.aclose()

    def _requested(self, message: Message, sink: Sink, stateless: bool) -> Exchange | None:
        id: Id = message["id"]
        if self.client is None and message["method"] == "ping":
            self.send(jsonrpc.result(id, {}), sink)
            return None
        try:
            if id in self._exchanges and not stateless:
                raise RpcError(jsonrpc.INVALID_REQUEST, "Invalid request: this id is in use")
            if len(self._tasks) >= MAX_IN_FLIGHT:
                raise RpcError(jsonrpc.OVERLOADED, f"Over {MAX_IN_FLIGHT} requests in flight")
            client = self._admit(
                message["method"], object_of(message.get("params")), stateless=stateless
            )
            exchange = Exchange(self, id, message, client, sink)
            if stateless:
                exchange.key = object()
            if parked := self._retried(exchange):
                return parked
        except RpcError as problem:
            self.send(jsonrpc.error(id, problem.error), sink)
            return None
        self._exchanges[exchange.key] = exchange
        task = exchange.task = asyncio.get_running_loop().create_task(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return exchange

    def _admit(self, method: str, params: Message, *, stateless: bool) -> Client:
        """The client that a request comes from; settles the session's era by its first."""
        if stateless and method == "initialize":
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, "2026-07-28 has no initialize")
        if stateless:
            made = envelope(params, self.principal)
            self.client = self.client or made
            return made
        meta = object_of(params.get("_meta"))
        modern = VERSION in meta
        client = self.client
        if method == "initialize":
            if client is not None and client.era == "modern":
                data: Message = {"supported": list(MODERN_VERSIONS)}
                if isinstance(params.get("protocolVersion"), str):
                    data["requested"] = params["protocolVersion"]
                text = "This connection speaks 2026-07-28, which has no initialize"
                raise RpcError(jsonrpc.UNSUPPORTED_VERSION, text, data)
            if client is not None:
                raise RpcError(jsonrpc.INVALID_REQUEST, "Already initialized")
            version = params.get("protocolVersion")
            if not isinstance(version, str):
                raise RpcError(jsonrpc.INVALID_PARAMS, "protocolVersion must be a string")
            self.client = Client(
                era="legacy", version=version, capabilities=object_of(params.get("capabilities")),
                info=object_of(params.get("clientInfo")), initialize=params,
                principal=self.principal,
            )  # fmt: skip
            return self.client
        if client is None and not modern:
            raise RpcError(jsonrpc.INVALID_REQUEST, f"{method} before initialize")
        if client is not None and client.era == "legacy":
            if modern:
                text = "This connection was opened with initialize; 2026-07-28 needs one of its own"
                raise RpcError(jsonrpc.INVALID_REQUEST, text)
            return client
        made = envelope(params, self.principal)
        self.client = client or made
        return made

    async def _serve(self, exchange: Exchange) -> None:
        try:
            with tracing.serving(exchange):
                result = await self._handler.handle(exchange)
            if exchange.method == "initialize":
                self.negotiated = str(object_of(result).get("protocolVersion", ""))
            if (
                exchange.client.era == "modern"
                and jsonrpc.is_object(result)  # a server may answer anything
                and "resultType" not in result
            ):
                result = {**result, "resultType": "complete"}
            self._finish(exchange, jsonrpc.result(exchange.id, result))
        except RpcError as problem:
            self._finish(exchange, jsonrpc.error(exchange.id, problem.error))
        except asyncio.CancelledError:
            self._forget(exchange)
            if exchange.reason is None and not self._closing:
                raise
        except Exception as problem:
            traceback.print_exception(problem, file=sys.stderr)
            text = {"code": jsonrpc.INTERNAL_ERROR, "message": "Internal error of the gateway"}
            self._finish(exchange, jsonrpc.error(exchange.id, text))

    def _finish(self, exchange: Exchange, answer: Message) -> None:
        if exchange.reason is not None:
            self._forget(exchange)
            return  # cancelled: the client waits no longer
        if not exchange.bound:
            exchange.final = answer  # parked: kept for the retry
            return
        self._forget(exchange)
        exchange.ended()
        answer["id"] = exchange.id
        try:
            exchange.sink.send(answer)
        except ValueError as problem:
            text = {"code": jsonrpc.INTERNAL_ERROR, "message": f"The result is not JSON: {problem}"}
            self.send(jsonrpc.error(exchange.id, text), exchange.sink)

    def _forget(self, exchange: Exchange) -> None:
        if self._exchanges.get(exchange.key) is exchange:
            del self._exchanges[exchange.key]

    def _notified(self, method: str, params: Message | None) -> None:
        if method == "notifications/cancelled":
            id = object_of(params).get("requestId")
            exchange = self._exchanges.get(id) if jsonrpc.is_id(id) else None
            if exchange is not None and params is not None and exchange.method != "initialize":
                self._cancel(exchange, params)
        elif method == "notifications/progress" and self.asks.progressed(object_of(params)):
            pass
        elif self.client is not None:
            self._handler.notified(self.client, method, params)

    def _cancel(self, exchange: Exchange, params: Message) -> None:
        exchange.reason = params
        self._forget(exchange)
        if exchange.task is not None:
            exchange.task.cancel()

    # What goes to the client.

    def send(self, message: Message, sink: Sink | None = None) -> None:
        """Send a message; one that is no JSON is dropped, and so is one with nowhere to go."""
        where = sink or self.sink
        if where is not None:
            try:
                where.send(message)
            except ValueError as problem:
                print(f"purple: a message is not JSON and was dropped: {problem}", file=sys.stderr)

    async def ask(
        self, method: str, params: Message | None, exchange: Exchange | None, *,
        progress: Callable[[Message], None] | None = None,
        reason: Callable[[], Message | None] = lambda: None,
    ) -> Any:  # fmt: skip
        """Ask a legacy client; returns its result. Raises `RpcError`. As `Asks.ask`."""
        sink = exchange.sink if exchange is not None else self.sink
        if sink is None:
            raise RpcError(jsonrpc.SERVER_UNAVAILABLE, "The client has no stream to be asked on")
        return await self.asks.ask(
            lambda message: self.send(message, sink), method, params, seconds=ASK_SECONDS,
            progress=progress, reason=reason,
        )  # fmt: skip

    def is_congested(self, limit: int) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self.sink is not None and self.sink.buffered_bytes > limit

    def when_clear(self, callback: Callable[[], None]) -> None:
        """Call back, once, when what was queued has left."""
        self._clear.append(callback)

    def drained(self) -> None:
        """Called by the transport when its queue is empty."""
        if self._clear:
            waiting, self._clear = self._clear, []
            for callback in waiting:
                callback()

    # Parked exchanges.

    def park(self, exchange: Exchange, questions: Message) -> None:
        """Answer `exchange` with `questions`, and wait for its retry."""
        if len(self._parked) >= _MAX_PARKED:
            oldest = next(iter(self._parked.values()))
            if oldest.task is not None:
                oldest.task.cancel()
        name = uuid.uuid4().hex
        self._parked[name] = exchange
        self._forget(exchange)
        exchange.bound = False
        state = seal.seal(name, self.id, self.principal, digest(exchange), PARKED_SECONDS)
        answer = {
            "resultType": "input_required", "inputRequests": questions, "requestState": state,
        }  # fmt: skip
        self.send(jsonrpc.result(exchange.id, answer), exchange.sink)
        if exchange.task is not None:
            exchange.task.add_done_callback(lambda _: self._drop_later(name))

    def _drop_later(self, name: str) -> None:
        asyncio.get_running_loop().call_later(60.0, self._parked.pop, name, None)

    def _retried(self, exchange: Exchange) -> Exchange | None:
        """The parked exchange that `exchange` is the retry of; None when it is none of ours."""
        params = exchange.params or {}
        state = params.get("requestState")
        if not seal.is_ours(state, self.id):
            return None
        name = seal.unseal(state, self.principal, digest(exchange))
        parked = self._parked.pop(name, None) if name else None
        if parked is None:
            text = (
                "requestState is not valid here: forged, used before, expired, or of another call"
            )
            raise RpcError(jsonrpc.INVALID_PARAMS, text)
        parked.id, parked.sink, parked.token = exchange.id, exchange.sink, exchange.token
        parked.bound, parked.key = True, exchange.key
        self._exchanges[parked.key] = parked
        if parked.final is not None:
            self._finish(parked, parked.final)
        else:
            parked.answered(object_of(params.get("inputResponses")))
        return parked


def digest(exchange: Exchange) -> str:
    """What a retry must have in common with the request that it continues."""
    params = {
        key: value
        for key, value in (exchange.params or {}).items()
        if key not in ("_meta", "inputResponses", "requestState")
    }
    return seal.digest([exchange.method, params])
