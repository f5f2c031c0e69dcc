"""One tool server: its process, its handshake, and what it and a client say to each other.

Theory of operation
    An `Upstream` serves one session, so nothing of one client's can reach another. The process
    starts with the first request and again, with a growing pause, when it has died. Between equal
    eras params and results pass as they are; only ids and progress tokens are our own, and put back
    on the way. Between different eras `eras` translates: a legacy server's questions park a modern
    client's call; a modern server's `input_required` becomes questions to a legacy client.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from ..calls import Calls, Version
from ..pins import Pins, Watch
from ..pins.watch import Withheld
from ..reasons import Reason
from ..screens import Findings, definitions, detectors
from ..screens.progress import Pieces
from . import eras, jsonrpc, schemas, tracing
from .acts import ACTING, act
from .asks import Asks, Tokens
from .client import LOG_LEVEL, MODERN_VERSIONS, SUBSCRIPTION, Client
from .exchange import Exchange, Sink
from .health import Health
from .jsonrpc import Id, Message, RpcError, list_of, object_of
from .links import Connector, Ears, Link
from .session import Session
from .stdio import HIGH_WATER_BYTES
from .tasks import STATUS

HANDSHAKE_SECONDS = 60.0
PROBE_SECONDS = 10.0
REQUEST_SECONDS = 600.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_MOST_QUEUED_BYTES = 256 << 20
_MOST_ROUNDS = 10
_MOST_ASKED = 256  # of a server's requests at once
_LOOK_SECONDS = 1.0  # between looks at the pins, while some are withheld


class Upstream:
    """A server, for one session.

    Args:
        name: In rules and records.
        connector: Reaches it.
        session: Whom it serves.
        calls, version: Who decides, and by what; `version` may be replaced, for calls to come.
        pins: What it may not change without a person; None: anything.
        request_seconds: The longest that a request may take without progress.
    """

    def __init__(
        self, name: str, connector: Connector, session: Session, calls: Calls, version: Version, *,
        pins: Pins | None = None, request_seconds: float = REQUEST_SECONDS,
    ) -> None:  # fmt: skip
        self.name = name
        self.era: Literal["legacy", "modern"] = "legacy"
        self._connector, self._session = connector, session
        self._calls, self.version = calls, version
        self._watch = Watch(pins) if pins is not None else None
        self._seconds = request_seconds
        self._said: Message = {}
        self._asks = Asks()
        self._asked: dict[Id, tuple[asyncio.Task[None], list[Message]]] = {}
        self._listeners: dict[object, tuple[Exchange, Message]] = {}
        self._mine: list[Exchange] = []  # in flight here, also those that are parked
        self._uris: set[str] = set()
        self._level = ""
        self._link: Link | None = None
        self._by_id: dict[Id, Exchange] = {}
        self._tokens = Tokens()
        self._opening: asyncio.Task[None] | None = None
        self.health = Health()
        self._not_before = 0.0
        self._paused = self._looks = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def whose(self) -> str:
        """As `Watched.whose`."""
        return self._session.client.name if self._session.client is not None else ""

    @property
    def _is_shared(self) -> bool:
        """Whether the server may take another client of the gateway for this one."""
        return self._connector.is_shared and bool(self._session.principal)

    # What the client wants.

    async def describe(self, client: Client, exchange: Exchange | None) -> Message:
        """As `Backend.describe`."""
        await self._open(client)
        said = self._watch.introduced(self._said) if self._watch is not None else self._said
        said = definitions.introduced(self.version.screen, self.name, said)
        if client.era == self.era:
            return said
        return eras.introduction(client, said, self.era == "modern")

    async def request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        """As `Backend.request`."""
        self.health.requests += 1
        try:
            await self._open(exchange.client)
        except RpcError:
            self.health.failed += 1
            raise
        self._mine.append(exchange)
        try:
            return await self._request(exchange, method, params)
        except RpcError:
            self.health.failed += 1
            raise
        finally:
            self._mine.remove(exchange)

    async def _request(self, exchange: Exchange, method: str, params: Message | None) -> Message:
        if method.startswith("tasks/"):
            if exchange.client.era != self.era:
                raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)
            self._session.tasks.check(params, self.name, known=self._is_shared)
        forward = partial(self._forward, exchange, method)
        if method == "tools/call" or method in ACTING:
            problem = None
            if self._watch is not None:
                problem = await self._watch.problem(method, params, partial(self._page, exchange))
            return await act(
                self._calls, self.version, self._session, exchange.client, self.name, method,
                params, forward, exchange, problem,
            )  # fmt: skip
        return await self._screened(method, self._sifted(method, params, forward(params)))

    async def _screened(self, method: str, answer: Awaitable[Any]) -> Message:
        """The answer to what does not act, or its error, screened."""
        screen = self.version.screen
        try:
            try:
                result = await answer
                await screen.prepare(result)
            except RpcError as error:
                raise RpcError.of(definitions.passed(screen, method, error.error)) from None
            if method in definitions.LISTS and jsonrpc.is_object(result):
                return definitions.listed(screen, self.name, method, result)
            passed: Message = definitions.passed(screen, method, result)
            return passed
        except definitions.Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None

    def _asking(self, method: str, params: Any) -> Any:
        """What a server asks of the client in its answer, screened. Raises `RpcError`."""
        try:
            return definitions.passed(self.version.screen, method, params)
        except definitions.Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None

    def _progress(self, exchange: Exchange) -> Callable[[Message], None]:
        """`exchange.progress`, its messages screened; what is split over two is found, too."""
        screen = self.version.screen
        pieces = Pieces(screen, by_line=False)

        def send(params: Message) -> None:
            message = params.get("message")
            rest = screen.value({k: v for k, v in params.items() if k != "message"}, Findings())
            if isinstance(message, str):
                rest["message"] = pieces.feed(message)
            exchange.progress(rest)

        return send

    async def _sifted(self, method: str, params: Message | None, answer: Awaitable[Any]) -> Any:
        """The answer, without what the pins withhold and what no client had better see."""
        result = await answer
        if method == "tools/list":
            result = schemas.safe(self.name, result)
        if self._watch is None or not jsonrpc.is_object(result):
            return result
        cursor: Any = (params or {}).get("cursor")
        try:
            listed = self._watch.listed(method, cursor, result)
        except Withheld as problem:
            raise RpcError(jsonrpc.REFUSED, str(problem)) from None
        if self._watch.withholds and not self._looks:
            self._looks = True
            self._task(self._look_for_acceptance(self._watch), "pins")
        return listed

    async def _look_for_acceptance(self, watch: Watch) -> None:
        """Tell the client when a person has accepted what a list left out."""
        try:
            while watch.withholds:
                await asyncio.sleep(_LOOK_SECONDS)
                for method in watch.accepted():
                    self._announce(method)
        finally:
            self._looks = False

    def _announce(self, method: str) -> None:
        """Send the client a notification of the gateway's own, if it has asked for such."""
        client = self._session.client
        if client is not None and client.era == "legacy":
            self._session.send(jsonrpc.notification(method, None), self._stream(None))
            return
        for exchange, filters in list(self._listeners.values()):
            if eras.heard(filters, method, None):
                meta = {SUBSCRIPTION: exchange.id}
                exchange.emit(jsonrpc.notification(method, {"_meta": meta}))

    async def _page(self, exchange: Exchange, method: str, cursor: str | None) -> Message | None:
        """A page of a list that the gateway itself wants to see."""
        params: Message = {}
        if exchange.client.era == "modern":
            params["_meta"] = {k: v for k, v in exchange.meta.items() if k != "progressToken"}
        if cursor is not None:
            params["cursor"] = cursor
        try:
            return object_of(await self._forward(exchange, method, params))
        except RpcError as error:
            if error.code == jsonrpc.METHOD_NOT_FOUND:
                return None
            raise

    def notified(self, client: Client, method: str, params: Message | None) -> None:
        """As `Backend.notified`."""
        if self._link is not None and (client.era == self.era or not method.startswith("notif")):
            self._send(jsonrpc.notification(method, params))

    async def retire(self) -> None:
        """End the server once its requests have ended, but for subscriptions."""
        while any(e.method != "subscriptions/listen" for e in self._mine):
            await asyncio.sleep(0.1)
        await self.aclose()

    async def aclose(self) -> None:
        """End the server: its stdin is closed, and what is left after two seconds is killed."""
        for task in list(self._tasks):
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connector.close()

    async def _forward(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if exchange.client.era == self.era:
            return await self._ask(exchange, method, params)
        if self.era == "legacy":
            return await self._to_legacy(exchange, method, params)
        return await self._to_modern(exchange, method, params)

    async def _ask(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        listening: list[int] = []

        ids: list[int] = []

        def on_id(id: int) -> None:
            ids.append(id)
            self._by_id[id] = exchange
            if method == "subscriptions/listen":
                listening.append(id)
                self._listeners[id] = exchange, object_of((params or {}).get("notifications"))

        try:
            with tracing.asking(method, params) as traced:
                result = await self._asks.ask(
                    self._send, method, traced,
                    seconds=self._seconds if method != "subscriptions/listen" else math.inf,
                    progress=self._progress(exchange) if exchange.token is not None else None,
                    reason=lambda: exchange.reason, on_id=on_id,
                )  # fmt: skip
        finally:
            for id in ids:
                self._by_id.pop(id, None)
            for id in listening:
                self._listeners.pop(id, None)
        if self._session.tasks.made(self.name, result) is not None and exchange.token is not None:
            self._tokens.keep(ids[0], exchange.token)
        if method == "tasks/list":
            return self._session.tasks.listed(self.name, result, known=self._is_shared)
        if listening and SUBSCRIPTION in object_of(object_of(result).get("_meta")):
            return {**result, "_meta": {**result["_meta"], SUBSCRIPTION: exchange.id}}
        return result

    async def _to_legacy(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if method in eras.GONE:
            raise RpcError(jsonrpc.METHOD_NOT_FOUND, "Method not found", method)
        if "requestState" in (params or {}):  # none of this session's, and the server makes none
            raise RpcError(
                jsonrpc.INVALID_PARAMS, "requestState is not valid here: of another session"
            )
        if method == "subscriptions/listen":
            return await self._listen(exchange, params or {})
        level = exchange.meta.get(LOG_LEVEL)
        logs = "logging" in object_of(self._said.get("capabilities"))
        if logs and isinstance(level, str) and level != self._level:
            self._level = level
            await self._ask(exchange, "logging/setLevel", {"level": level})
        for _ in range(_MOST_ROUNDS):
            try:
                result = await self._ask(exchange, method, eras.bare(params))
            except RpcError as error:
                questions = eras.url_questions(error)
                if not questions:
                    raise eras.modern_error(error) from None
                for question in questions:
                    passed = self._asking("elicitation/create", question)
                    answer = object_of(await exchange.ask("elicitation/create", passed))
                    if answer.get("action") != "accept":
                        text = "The client declined what the server asked for"
                        raise RpcError(jsonrpc.REFUSED, text) from None
                continue
            info = object_of(self._said.get("serverInfo"))
            return eras.modern_result(exchange.client, method, info, object_of(result))
        raise RpcError(jsonrpc.INTERNAL_ERROR, f"Server {self.name!r} asks without end")

    async def _listen(self, exchange: Exchange, params: Message) -> Message:
        """`subscriptions/listen` in front of a server that knows only subscribe."""
        filters = object_of(params.get("notifications"))
        uris = [u for u in list_of(filters.get("resourceSubscriptions")) if isinstance(u, str)]
        honored: Message = {k: True for k in eras.LISTS.values() if filters.get(k) is True}
        for uri in uris:
            await self._ask(exchange, "resources/subscribe", {"uri": uri})
        if uris:
            honored["resourceSubscriptions"] = uris
        meta = {SUBSCRIPTION: exchange.id}
        self._listeners[exchange.key] = exchange, honored
        acknowledged = {"notifications": honored, "_meta": meta}
        exchange.emit(
            jsonrpc.notification("notifications/subscriptions/acknowledged", acknowledged)
        )
        try:
            await asyncio.Event().wait()  # until it is cancelled, or the session ends
        finally:
            self._listeners.pop(exchange.key, None)
        return {"_meta": meta}

    async def _to_modern(self, exchange: Exchange, method: str, params: Message | None) -> Any:
        if method == "ping":
            return {}
        if method == "logging/setLevel":
            self._level = str((params or {}).get("level", ""))
            return {}
        if method in ("resources/subscribe", "resources/unsubscribe"):
            uri = (params or {}).get("uri")
            if not isinstance(uri, str):
                raise RpcError(jsonrpc.INVALID_PARAMS, "uri must be a string")
            (self._uris.add if method == "resources/subscribe" else self._uris.discard)(uri)
            self._relisten(exchange.client)
            return {}
        more: Message = {}
        for _ in range(_MOST_ROUNDS):
            sent = {**eras.enveloped(exchange.client, params, self._level), **more}
            result = object_of(await self._ask(exchange, method, sent))
            if result.get("resultType") != "input_required":
                return eras.legacy_result(result)
            answers: Message = {}
            for key, question in object_of(result.get("inputRequests")).items():
                asked = object_of(question)
                wanted = str(asked.get("method"))
                passed = self._asking(wanted, asked.get("params"))
                answers[key] = await exchange.ask(wanted, passed)
            more = {"inputResponses": answers} if answers else {}
            if "requestState" in result:
                more["requestState"] = result["requestState"]
            if not answers:
                await asyncio.sleep(0.1)
        raise RpcError(jsonrpc.INTERNAL_ERROR, f"Server {self.name!r} asks without end")

    def _relisten(self, client: Client) -> None:
        """Have one `subscriptions/listen` open for a legacy client, with all that it may want."""
        wanted: Message = dict.fromkeys(eras.LISTS.values(), True)
        if self._uris:
            wanted["resourceSubscriptions"] = sorted(self._uris)
        params = eras.enveloped(client, {"notifications": wanted})
        for task in [t for t in self._tasks if t.get_name() == "listen"]:
            task.cancel()

        async def listen() -> None:
            with contextlib.suppress(RpcError):
                await self._asks.ask(self._send, "subscriptions/listen", params, seconds=math.inf)

        self._task(listen(), "listen")

    # The process.

    async def _open(self, client: Client) -> None:
        """Have a server that has been greeted. Raises `RpcError`."""
        opening = self._opening
        if opening is not None and opening.done() and self._link is not None:
            opening.result()
            return
        if opening is None or (opening.done() and self._link is None):
            pause = self._not_before - asyncio.get_running_loop().time()
            if pause > 1.0:
                text = f"Server {self.name!r} has ended and starts again in {pause:.0f} s"
                raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"{text}{self._connector.last()}")
            opening = self._opening = asyncio.create_task(self._start(client))
        await asyncio.shield(opening)

    async def _start(self, client: Client) -> None:
        if self._watch is not None:
            try:
                await self._watch.started()
            except Withheld as problem:
                data = {"reason": str(Reason.PIN_MISMATCH), "rule": "pins.launch"}
                raise RpcError(jsonrpc.REFUSED, str(problem), data) from None
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        starts = self.health.starts
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(starts, 10))
        self._not_before = loop.time() + (pause if starts else 0)
        self.health.starts += 1
        self.health.enter("starting")
        ears = Ears(self._frame, self._oversize, self._ended)
        link = self._link = self._connector.connect(ears)
        try:
            await self._greet(client)
            detectors.load_soon()  # what it will say is looked through, and not all of it may wait
        except BaseException as error:
            if self._link is link:
                self._link = None
            self.health.enter("waiting", str(error) or "it did not start in time")
            await link.aclose(at_once=True)
            raise
        self.health.enter("running")
        if self.health.starts > 1:
            offered = object_of(self._said.get("capabilities"))
            for method in eras.LISTS:
                if object_of(offered.get(method.split("/")[1])).get("listChanged"):
                    self._deliver(method, None)

    def _ended(self, link: Link, how: str) -> None:
        if self._link is not link:
            return
        self._link = None
        text = f"Server {self.name!r} has ended: {how}{self._connector.last()}"
        self.health.enter("waiting", text)
        self._asks.close(text, jsonrpc.SERVER_UNAVAILABLE)
        self._task(link.aclose(at_once=True), "close")

    def _agreed(self, version: str) -> None:
        if self._link is not None:
            self._link.greeted(self.era, version)

    async def _greet(self, client: Client) -> None:
        modern = client.era == "modern" and not self._connector.is_legacy
        discover = eras.enveloped(client, None)
        for attempt in range(2):
            try:
                if modern:
                    seconds = PROBE_SECONDS if attempt == 0 else HANDSHAKE_SECONDS
                    said = await self._asks.ask(
                        self._send, "server/discover", discover, seconds=seconds
                    )
                    if set(MODERN_VERSIONS) & set(
                        list_of(object_of(said).get("supportedVersions"))
                    ):
                        self.era, self._said = "modern", said
                        self._agreed(MODERN_VERSIONS[-1])
                        if client.era == "legacy":
                            self._relisten(client)
                        return
                else:
                    hello = eras.handshake(client)
                    said = await self._asks.ask(
                        self._send, "initialize", hello, seconds=HANDSHAKE_SECONDS
                    )
                    self.era, self._said = "legacy", object_of(said)
                    if client.era == "modern" or self.health.starts > 1:
                        self._send(jsonrpc.notification("notifications/initialized", None))
                    self._agreed(str(self._said.get("protocolVersion", "")))
                    return
            except RpcError as error:
                # A server of the other era only; or one whose era a slow probe has settled.
                if attempt or self._link is None or error.code == jsonrpc.SERVER_UNAVAILABLE:
                    raise
                if not modern and error.code not in (-32022, -32601):
                    raise
            modern = not modern and not self._connector.is_legacy
        raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"Server {self.name!r} speaks no known revision")

    def _send(self, message: Message) -> None:
        link = self._link
        if link is None:
            raise RpcError(jsonrpc.SERVER_UNAVAILABLE, f"Server {self.name!r} is not running")
        if link.buffered_bytes > _MOST_QUEUED_BYTES:
            raise RpcError(jsonrpc.OVERLOADED, f"Server {self.name!r} does not read")
        link.send(message)

    def _task(self, work: Any, name: str) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What the server says.

    def _frame(self, frame: bytes, related: Id | None) -> None:
        try:
            message = jsonrpc.decode(frame)
        except jsonrpc.FrameError as problem:
            for id in problem.ids:
                why = {"code": jsonrpc.INTERNAL_ERROR, "message": f"The server's answer: {problem}"}
                self._asks.settle(jsonrpc.error(id, why))
            self._connector.say(b"not MCP on its stdout: " + frame[:200])
            return
        assert jsonrpc.is_object(message)
        method = message.get("method")
        if method is None:
            self._asks.settle(message)
        elif "id" in message:
            if len(self._asked) >= _MOST_ASKED:
                text = f"Over {_MOST_ASKED} requests to the client wait"
                refusal = {"code": jsonrpc.OVERLOADED, "message": text}
                with contextlib.suppress(RpcError):
                    self._send(jsonrpc.error(message["id"], refusal))
                return
            reasons: list[Message] = []
            task = self._task(self._questioned(message, reasons, related), "question")
            self._asked[message["id"]] = task, reasons
        else:
            self._heard(method, message.get("params"), related)
        if not self._paused and self._session.is_congested(HIGH_WATER_BYTES) and self._link:
            self._paused = True
            self._link.pause()
            self._session.when_clear(partial(self._go_on, self._link))

    def _go_on(self, link: Link) -> None:
        self._paused = False
        link.resume()

    def _oversize(self, head: bytes) -> None:
        text = f"The server's answer is over {jsonrpc.MAX_FRAME_BYTES >> 20} MiB"
        problem = {"code": jsonrpc.INTERNAL_ERROR, "message": text}
        self._asks.settle(jsonrpc.error(jsonrpc.salvage_id(head), problem))

    def _heard(self, method: str, params: Message | None, related: Id | None) -> None:
        said = params or {}
        if method == "notifications/progress":
            if self._asks.progressed(said):
                return
            params = self._tokens.restored(said)
            if params is None:  # too late, or nobody's
                return
        elif method in STATUS and not self._session.tasks.is_of(
            said.get("taskId"), self.name, known=self._is_shared
        ):
            return
        if method == "notifications/cancelled":
            found = self._asked.get(said.get("requestId"))  # type: ignore[arg-type]
            if found is not None:
                found[1].append(said)
                found[0].cancel()
            return
        if self._watch is not None:
            self._watch.changed(method)
        self._deliver(method, params, related)

    def _deliver(self, method: str, params: Message | None, related: Id | None = None) -> None:
        client = self._session.client
        if client is None:
            return
        with contextlib.suppress(definitions.Withheld):
            params = definitions.passed(self.version.screen, method, params)
            self._notify(client, method, params, related)

    def _notify(
        self, client: Client, method: str, params: Message | None, related: Id | None
    ) -> None:
        if self.era == "modern":
            id = object_of((params or {}).get("_meta")).get(SUBSCRIPTION)
            if client.era == "modern" and type(id) is int and params is not None:
                if id in self._listeners:
                    exchange = self._listeners[id][0]
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
            for exchange in reversed(self._mine):
                if eras.loud_enough((params or {}).get("level"), exchange.meta.get(LOG_LEVEL)):
                    exchange.emit(jsonrpc.notification(method, params))
                    break
        else:
            for exchange, filters in list(self._listeners.values()):
                if eras.heard(filters, method, params):
                    meta = {**object_of((params or {}).get("_meta")), SUBSCRIPTION: exchange.id}
                    exchange.emit(jsonrpc.notification(method, {**(params or {}), "_meta": meta}))

    def _stream(self, related: Id | None) -> Sink | None:
        """Where a message goes: over HTTP the stream of its request, else of the newest one."""
        if not self._session.has_streams:
            return None
        exchange = self._by_id.get(related) if related is not None else None
        if exchange is None and self._mine:
            exchange = self._mine[-1]
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
                self._session.client_tasks.check(params, self.name, known=True)
            if method == "ping" and client.era == "modern":
                answer: Any = {}
            elif method in ACTING:
                answer = await act(
                    self._calls, self.version, self._session, client, self.name, method, params,
                    partial(self._question, client, method, reasons, related),
                    self._carrier(related),
                )  # fmt: skip
            else:
                answer = await self._question(client, method, reasons, related, params)
            self._session.client_tasks.made(self.name, answer)
            if method == "tasks/list":
                answer = self._session.client_tasks.listed(self.name, answer, known=True)
            reply = jsonrpc.result(id, answer)
        except RpcError as error:
            reply = jsonrpc.error(id, error.error)
        except asyncio.CancelledError:
            return
        finally:
            self._asked.pop(id, None)
        with contextlib.suppress(RpcError, ValueError):
            self._send(reply)

    async def _question(
        self, client: Client, method: str, reasons: list[Message], related: Id | None,
        params: Message | None,
    ) -> Any:  # fmt: skip
        known = self._by_id.get(related) if related is not None else None
        if client.era == "legacy":
            origin = known or (self._mine[-1] if self._mine else None)
            if not self._session.has_streams:
                origin = None
            return await self._session.ask(
                method, params, origin, reason=lambda: reasons[-1] if reasons else None,
                progress=lambda said: self._send(
                    jsonrpc.notification("notifications/progress", said)
                ),
            )  # fmt: skip
        if (exchange := self._carrier(related)) is not None:
            return await exchange.ask(method, params)
        raise RpcError(jsonrpc.METHOD_NOT_FOUND, "The client has no request that could carry this")

    def _carrier(self, related: Id | None) -> Exchange | None:
        """The request that may carry a question to the client.

        Over stdio nothing says to which request a question belongs: the newest that may wait.
        """
        if related is not None and related in self._by_id:
            return self._by_id[related]
        for exchange in reversed(self._mine):
            if exchange.method in ("tools/call", "prompts/get", "resources/read"):
                return exchange
        return None
