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
import contextlib
import sys
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from . import jsonrpc, seal, tracing
from .jsonrpc import Id, Message, RpcError, object_of

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN_VERSIONS = ("2026-07-28",)
_KEY = "io.modelcontextprotocol/"
VERSION, CLIENT_INFO, CAPABILITIES = (
    f"{_KEY}protocolVersion", f"{_KEY}clientInfo", f"{_KEY}clientCapabilities",
)  # fmt: skip
LOG_LEVEL, SERVER_INFO, SUBSCRIPTION = (
    f"{_KEY}logLevel", f"{_KEY}serverInfo", f"{_KEY}subscriptionId",
)  # fmt: skip
ENVELOPE = frozenset({VERSION, CLIENT_INFO, CAPABILITIES, LOG_LEVEL})

ANYBODY = "loopback"  # the principal of all HTTP clients where no token is asked for
MAX_IN_FLIGHT = 1024
ASK_SECONDS = 300.0  # a person may have to answer; a client without a stream never will
PARKED_SECONDS = 600.0
_MAX_PARKED = 256


class Sink(Protocol):
    """Where messages to the client go."""

    @property
    def buffered_bytes(self) -> int:
        """What the client has not taken yet."""
        ...

    def send(self, message: Message) -> None:
        """Queue one. Raises `ValueError` when it cannot be written as JSON."""
        ...


@dataclass(kw_only=True)
class Client:
    """What a client has said of itself.

    Attributes:
        era: "legacy" has a handshake and sessions, "modern" neither.
        version: Protocol revision that it asked for.
        capabilities, info: As it stated them.
        initialize: The params of its `initialize`, whole; None in the modern era.
        principal: Who it is to the transport: the same for all that may share state.
    """

    era: Literal["legacy", "modern"]
    version: str
    capabilities: Message = field(default_factory=dict[str, Any])
    info: Message = field(default_factory=dict[str, Any])
    initialize: Message | None = None
    principal: str = ""

    @property
    def name(self) -> str:
        """Of its token, else what it calls itself, for rules and the record; "" when neither is."""
        if self.principal not in ("", ANYBODY):
            return self.principal
        name = self.info.get("name")
        return name[:200] if isinstance(name, str) else ""


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


class Exchange:
    """One request of a client, until its answer has left.

    Attributes:
        id: The client's; it changes when a parked exchange is retried.
        method, params: As they came.
        client: As of this request; modern clients state their capabilities with each.
        reason: The params of the client's `notifications/cancelled`; None while it has not come.
    """

    def __init__(self, session: Session, id: Id, message: Message, client: Client, sink: Sink):
        self.session = session
        self.id = id
        self.method: str = message["method"]
        self.params: Message | None = message.get("params")
        self.client = client
        self.sink = sink
        self.reason: Message | None = None
        self.task: asyncio.Task[None] | None = None
        self.token: Any = self.meta.get("progressToken")
        self._inputs: dict[str, tuple[Message, asyncio.Future[Any]]] = {}
        self._count = 0
        self.quiet: set[str] = set()  # notifications that are not sent on
        self.bound = True  # whether a request of the client's waits for this exchange
        self.final: Message | None = None
        self.key: object = id  # in the session; ids of stateless requests may be equal

    @property
    def meta(self) -> Message:
        """`params._meta`, or {}."""
        return object_of((self.params or {}).get("_meta"))

    def emit(self, message: Message) -> None:
        """Send a notification that belongs to this request."""
        if self.bound and message.get("method") not in self.quiet:
            self.session.send(message, self.sink)

    def progress(self, params: Message) -> None:
        """Send `notifications/progress` with the client's own token; nothing where it gave none."""
        if self.token is not None:
            params = {**params, "progressToken": self.token}
            self.emit(jsonrpc.notification("notifications/progress", params))

    async def ask(self, method: str, params: Message | None, meta: Message | None = None) -> Any:
        """Have the client answer `method`; returns its result.

        Raises:
            RpcError: its error, or it cannot be asked, or did not answer in time.
        """
        if self.client.era == "legacy":
            return await self.session.ask(method, params, self)
        need = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling",
                "roots/list": "roots"}.get(method)  # fmt: skip
        if need is None or need not in self.client.capabilities:
            text = f"The client cannot be asked for {method}"
            data: Message | None = {"requiredCapabilities": {need: {}}} if need else None
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, text, data)
        self._count += 1
        key = f"{method.partition('/')[0]}-{self._count}"
        question: Message = {"method": method}
        if params is not None:
            question["params"] = params
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inputs[key] = question, future
        if self.bound:
            asyncio.get_running_loop().call_soon(self.park)
        try:
            return await asyncio.wait_for(future, PARKED_SECONDS)
        except TimeoutError:
            raise RpcError(jsonrpc.TIMED_OUT, f"Nobody answered {method} in time") from None
        finally:
            self._inputs.pop(key, None)

    def park(self) -> None:
        """Answer `input_required` with all that is asked now."""
        waiting = {k: q for k, (q, future) in self._inputs.items() if not future.done()}
        if self.bound and waiting:
            self.session.park(self, waiting)

    def answered(self, responses: Message) -> None:
        """Take the client's answers; questions without one are asked again."""
        for key, (_, future) in self._inputs.items():
            if key in responses and not future.done():
                future.set_result(responses[key])
        asyncio.get_running_loop().call_soon(self.park)


class Session:
    """A client's connection, or in the modern era over HTTP all that one principal sends.

    Args:
        handler: Serves it; made for it alone.
        sink: Where messages go that belong to no request; None where there is no such place.
        principal: Who the client is to the transport.
    """

    def __init__(
        self, handler: Callable[[Session], Handler], sink: Sink | None, *, principal: str = ""
    ) -> None:
        self.id = uuid.uuid4().hex
        self.principal = principal
        self.sink = sink
        self.client: Client | None = None
        self.has_streams = False  # HTTP: each request has a stream of its own
        self.negotiated = ""
        self.asks = Asks()
        self._handler = handler(self)
        self._exchanges: dict[object, Exchange] = {}
        self._parked: dict[str, Exchange] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clear: list[Callable[[], None]] = []
        self._closing = False

    # What comes from the client.

    def receive_frame(self, frame: bytes, sink: Sink) -> None:
        """Take one frame from a duplex transport."""
        try:
            message = jsonrpc.decode(frame, batches=self.negotiated == "2025-03-26", strict=True)
        except jsonrpc.FrameError as problem:
            for answer in problem.answers:
                self.send(answer, sink)
            return
        for one in message if isinstance(message, list) else (message,):
            self.receive(one, sink)

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
                self.negotiated = str(result.get("protocolVersion", ""))
            if exchange.client.era == "modern" and "resultType" not in result:
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
            exchange = self._exchanges.get(object_of(params).get("requestId"))
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


class Asks:
    """Requests to a peer that wait for its answer. Ids and progress tokens are our own."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[int, tuple[asyncio.Future[Message], Callable[[Message], None]]] = {}

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
            seconds: After that it is cancelled; a progress notification starts the time anew.
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

        def expire() -> None:
            if not future.done():
                future.set_exception(TimeoutError())

        timer = loop.call_later(seconds, expire)

        def on_progress(said: Message) -> None:
            nonlocal timer
            timer.cancel()
            timer = loop.call_later(seconds, expire)
            if progress is not None and token is not None:
                progress({**said, "progressToken": token})

        if params is not None and token is not None:
            params = {**params, "_meta": {**params["_meta"], "progressToken": id}}
        self._waiting[id] = future, on_progress
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
            timer.cancel()
            del self._waiting[id]
        if "error" in message:
            raise RpcError.of(message["error"])
        return message["result"]

    def settle(self, message: Message) -> None:
        """Take a response; one that nobody waits for is dropped."""
        id = message.get("id")
        waiting = self._waiting.get(id) if type(id) is int else None
        if waiting is not None and not waiting[0].done():
            waiting[0].set_result(message)

    def progressed(self, params: Message) -> bool:
        """Take a progress notification; False when its token is none of ours."""
        token = params.get("progressToken")
        waiting = self._waiting.get(token) if type(token) is int else None
        if waiting is not None:
            waiting[1](params)
        return waiting is not None

    def close(self, why: str, code: int = jsonrpc.INTERNAL_ERROR) -> None:
        """Fail all that wait."""
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_result(jsonrpc.error(None, {"code": code, "message": why}))


def envelope(params: Message, principal: str) -> Client:
    """The client as the envelope of a modern request states it. Raises `RpcError`.

    Source: 2026-07-28, basic, "Per-request protocol fields".
    """
    meta = object_of(params.get("_meta"))
    missing = [key for key in (VERSION, CAPABILITIES) if key not in meta]
    if missing:
        raise RpcError(jsonrpc.INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}")
    version = meta[VERSION]
    if not isinstance(version, str):
        raise RpcError(jsonrpc.INVALID_PARAMS, f"{VERSION} must be a string")
    if version not in MODERN_VERSIONS:
        data = {"supported": list(MODERN_VERSIONS), "requested": version}
        raise RpcError(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)
    return Client(
        era="modern", version=version, capabilities=object_of(meta[CAPABILITIES]),
        info=object_of(meta.get(CLIENT_INFO)), principal=principal,
    )  # fmt: skip


def digest(exchange: Exchange) -> str:
    """What a retry must have in common with the request that it continues."""
    params = {
        key: value
        for key, value in (exchange.params or {}).items()
        if key not in ("_meta", "inputResponses", "requestState")
    }
    return seal.digest([exchange.method, params])
